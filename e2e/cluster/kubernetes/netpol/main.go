// Netpol runs Kubernetes' own network policy suite against the cluster that -kubeconfig names.
package main

import (
	"flag"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/network/netpol"
)

// outcome stands where ginkgo expects a *testing.T; what it is told, RunSpecs returns too.
type outcome struct{}

func (outcome) Fail() {}

func main() {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	framework.AfterReadingAllFlags(&framework.TestContext)
	gomega.RegisterFailHandler(framework.Fail)
	if !ginkgo.RunSpecs(outcome{}, "NetworkPolicy") {
		os.Exit(1)
	}
}
