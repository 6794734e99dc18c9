//go:build tools

// Package tools names what is built from other modules as it is, so that go.mod pins its version.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "helm.sh/helm/v4/cmd/helm"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
