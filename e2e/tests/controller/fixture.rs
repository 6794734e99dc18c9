//! A cluster that is only an API server, and the controller beside it (IO).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use durward_controller::{Config, Listeners, RunError, run};
use durward_e2e::{Bed, PATIENCE, Result};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::future::{self, Lists, Requests};
use crate::node::Node;

pub(crate) const CRD: &str = include_str!("../../../crds/networkloggings.yaml");

/// The cluster, and a client of its API server.
#[derive(Clone)]
pub(crate) struct Cluster<'a> {
    pub(crate) bed: &'a Bed,
    client: Client,
}

/// Runs a test where the API server is reached.
pub(crate) fn on_cluster<'a, F>(bed: &'a Bed, test: impl FnOnce(Cluster<'a>) -> F + Send) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    bed.on("cp", || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(bed.kubeconfig()).unwrap();
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            test(Cluster { bed, client: Client::try_from(config).unwrap() }).await
        })
    })?
}

impl Cluster<'_> {
    /// Installs the CRD as it is now.
    pub(crate) fn install(&self) -> Result<()> {
        self.bed.apply(CRD)?;
        self.bed.wait("NetworkLogging is served", || self.bed.kubectl(&["get", "nl"]).map(Some)).map(drop)
    }

    /// Installs a CRD like one of old, which lets anything into the spec, and waits until it does.
    pub(crate) fn install_without_rules(&self) -> Result<()> {
        let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let patch = json!([{
            "op": "replace",
            "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
            "value": open,
        }]);
        let crd = "networkloggings.networking.gke.io";
        self.bed.kubectl(&["patch", "crd", crd, "--type=json", "-p", &patch.to_string()])?;
        let probe = json!({ "spec": { "probe": "let in" } }).to_string();
        self.bed
            .wait("the old CRD is in force", || {
                let patch = [
                    "patch",
                    "nl",
                    "default",
                    "--type=merge",
                    "--dry-run=server",
                    "-o",
                    "json",
                    "-p",
                    &probe,
                ];
                Ok(self.bed.kubectl(&patch)?.contains("let in").then_some(()))
            })
            .map(drop)
    }

    /// Adds Node objects; nothing runs on them.
    pub(crate) fn add_nodes(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
            self.bed.apply(&node.to_string())?;
        }
        Ok(())
    }

    /// Adds a pod that a kubelet might have reported.
    pub(crate) fn add_pod(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        address: &str,
        annotations: Value,
    ) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": { "app": name },
                          "annotations": annotations },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "none" }] },
        });
        self.bed.apply(&pod.to_string())?;
        let status =
            json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
        let patch = ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p"];
        self.bed.kubectl(&[&patch[..], &[&status.to_string()]].concat()).map(drop)
    }

    /// Waits until the NetworkLogging object is so.
    pub(crate) fn object(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        self.bed.wait(what, || {
            let object = self.bed.json(&["get", "nl", "default"])?;
            if is_so(&object) { Ok(Some(object)) } else { Err(seen(&object)) }
        })
    }

    /// Waits until there are so many Events for a reason, and fails if there are more.
    pub(crate) fn events(&self, reason: &str, number: usize) -> Result<Vec<Value>> {
        let events = self.bed.wait(&format!("{number} Events {reason}"), || {
            let all = self.bed.json(&["get", "events.events.k8s.io", "-A"])?;
            let all = all["items"].as_array().cloned().unwrap_or_default();
            let found: Vec<_> = all.into_iter().filter(|event| event["reason"] == reason).collect();
            Ok((found.len() >= number).then_some(found))
        })?;
        assert_eq!(events.len(), number, "{events:#?}");
        Ok(events)
    }
}

/// What is there instead, for the report of a wait that was in vain.
fn seen(object: &Value) -> durward_e2e::Error {
    durward_e2e::Error::Unfit(format!("{object:#}"))
}

/// A controller that runs.
pub(crate) struct Daemon {
    grpc: SocketAddr,
    http: SocketAddr,
    pub(crate) requests: Requests,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Daemon {
    pub(crate) async fn start(cluster: &Cluster<'_>) -> Self {
        Self::start_with(cluster, Lists::Streamed).await
    }

    pub(crate) async fn start_with(cluster: &Cluster<'_>, lists: Lists) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let listeners = Listeners::bind(&Config { listen: any, metrics_listen: any }).await.unwrap();
        let (grpc, http) = listeners.addresses().unwrap();
        let (stop, stopped) = oneshot::channel();
        let requests = Requests::default();
        let client = future::client(&cluster.client, requests.clone(), lists);
        let task = tokio::spawn(run(client, listeners, async { drop(stopped.await) }));
        Self { grpc, http, requests, stop, task }
    }

    /// A node subscribes.
    pub(crate) async fn node(&self, name: &str) -> Node {
        Node::subscribe(self.grpc, name).await
    }

    /// Waits until a page answers so, and contains this.
    pub(crate) async fn reads(&self, path: &str, status: u16, text: &str) {
        let begin = Instant::now();
        loop {
            let answer = self.get(path).await;
            if answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text) {
                return;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{path} does not answer {status} with {text:?}, but {answer}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Makes a namespace, and waits until the controller has heard of it: by then it has heard of what was before.
    pub(crate) async fn sees_a_new_namespace(&self, cluster: &Cluster<'_>, name: &str) {
        let namespaces = cluster.bed.json(&["get", "namespaces"]).unwrap();
        let number = namespaces["items"].as_array().unwrap().len();
        cluster.bed.namespace(name, &[]).unwrap();
        self.reads(
            "/metrics",
            200,
            &format!("durward_controller_objects{{kind=\"Namespace\"}} {}", number + 1),
        )
        .await;
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) {
        // Were it gone already, the outcome tells why.
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("the controller ends in time");
        ended.unwrap().unwrap();
    }
}
