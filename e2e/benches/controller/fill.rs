//! Fills an API server with what a cluster of 100 nodes has: 1,000 namespaces of 20 pods, 5 policies, 4 ReplicaSets (IO).

use durward_e2e::Bed;
use futures::{StreamExt, stream};
use http::Request;
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

const NAMESPACES: usize = 1_000;
const PODS: usize = 20;
const POLICIES: usize = 5;
const SETS: usize = 4;
const NODES: usize = 100;
/// As many requests are under way at a time.
const AT_ONCE: usize = 64;

pub(crate) async fn fill(bed: &Bed) {
    let kubeconfig = Kubeconfig::read_from(bed.kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = &Client::try_from(config).unwrap();
    each(0..NODES, async |n| make(client, "/api/v1/nodes", &node(n)).await).await;
    each(0..NAMESPACES, async |n| make(client, "/api/v1/namespaces", &namespace(n)).await).await;
    let within = |version: &str, space: usize, resource: &str| {
        format!("/{version}/namespaces/space-{space}/{resource}")
    };
    each(0..NAMESPACES * SETS, async |n| {
        make(client, &within("apis/apps/v1", n / SETS, "replicasets"), &replica_set(n % SETS)).await;
    })
    .await;
    each(0..NAMESPACES * POLICIES, async |n| {
        let path = within("apis/networking.k8s.io/v1", n / POLICIES, "networkpolicies");
        make(client, &path, &policy(n / POLICIES, n % POLICIES)).await;
    })
    .await;
    each(0..NAMESPACES * PODS, async |n| {
        let path = within("api/v1", n / PODS, "pods");
        make(client, &path, &pod(n)).await;
        let request = Request::patch(format!("{path}/pod-{n}/status"));
        let request = request.header("Content-Type", "application/merge-patch+json");
        client.request::<Value>(request.body(status(n).to_string().into_bytes()).unwrap()).await.unwrap();
    })
    .await;
}

async fn each(numbers: std::ops::Range<usize>, work: impl AsyncFn(usize)) {
    stream::iter(numbers).map(|n| work(n)).buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn make(client: &Client, path: &str, object: &Value) {
    let request = Request::post(path).header("Content-Type", "application/json");
    client.request::<Value>(request.body(object.to_string().into_bytes()).unwrap()).await.unwrap();
}

fn node(n: usize) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("node-{n}") } })
}

fn namespace(n: usize) -> Value {
    let labels = json!({ "team": format!("team-{}", n / 10) });
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": format!("space-{n}"), "labels": labels } })
}

/// No set is to make pods: there is nobody who would.
fn replica_set(n: usize) -> Value {
    let labels = json!({ "app": format!("app-{n}") });
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": { "name": format!("app-{n}-7d4b9c6f58"), "labels": labels, "ownerReferences": [owner("Deployment", &format!("app-{n}"))] },
        "spec": { "replicas": 0, "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": spec() } },
    })
}

fn owner(kind: &str, name: &str) -> Value {
    json!({ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1f0c1c9e-5f5c-4d7a-9c7f-000000000000", "controller": true })
}

/// Default deny; the namespace's own pods; the next namespaces of the team; DNS; outside.
fn policy(space: usize, n: usize) -> Value {
    let app = |n: usize| json!({ "matchLabels": { "app": format!("app-{n}") } });
    let team = json!({ "matchLabels": { "team": format!("team-{}", space / 10) } });
    let spec = match n {
        0 => json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
        1 => {
            json!({ "podSelector": app(0), "ingress": [{ "from": [{ "podSelector": app(1) }], "ports": [{ "port": 8080 }] }] })
        }
        2 => {
            json!({ "podSelector": app(1), "ingress": [{ "from": [{ "namespaceSelector": team, "podSelector": app(2) }], "ports": [{ "port": "http" }] }] })
        }
        3 => json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [
            { "to": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "space-0" } } }], "ports": [{ "protocol": "UDP", "port": 53 }] },
            { "to": [{ "podSelector": {} }] },
        ] }),
        _ => json!({ "podSelector": app(3), "policyTypes": ["Egress"], "egress": [
            { "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"] } }], "ports": [{ "port": 443 }] },
        ] }),
    };
    json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": format!("policy-{n}") }, "spec": spec })
}

/// What a container of an ordinary service says of itself.
fn spec() -> Value {
    let probe = |path: &str| json!({ "httpGet": { "path": path, "port": "http" }, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3 });
    let env: Vec<_> = (0..10).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("http://service-{n}.default.svc:8080") })).collect();
    let resources =
        json!({ "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } });
    json!({
        "containers": [{
            "name": "app", "image": "registry.example.com/team/app:1.2.3", "env": env, "resources": resources,
            "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "metrics", "containerPort": 9090 }],
            "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
            "volumeMounts": [{ "name": "config", "mountPath": "/etc/app", "readOnly": true }],
        }],
        "volumes": [{ "name": "config", "configMap": { "name": "app" } }],
    })
}

fn pod(n: usize) -> Value {
    let app = format!("app-{}", n % SETS);
    let mut spec = spec();
    spec["nodeName"] = format!("node-{}", n % NODES).into();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{n}"),
            "labels": { "app": app, "pod-template-hash": "7d4b9c6f58", "app.kubernetes.io/part-of": "shop" },
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "9090" },
            "ownerReferences": [owner("ReplicaSet", &format!("{app}-7d4b9c6f58"))],
        },
        "spec": spec,
    })
}

fn status(n: usize) -> Value {
    let time = "2026-01-01T00:00:00Z";
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": time });
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let ip = format!("10.{}.{}.{}", 100 + (n >> 16), n >> 8 & 255, n & 255);
    json!({ "status": {
        "phase": "Running", "hostIP": "172.30.0.11", "podIP": ip, "podIPs": [{ "ip": ip }], "startTime": time,
        "conditions": conditions,
        "containerStatuses": [{
            "name": "app", "ready": true, "started": true, "restartCount": 0, "image": "registry.example.com/team/app:1.2.3",
            "imageID": "registry.example.com/team/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "containerID": "containerd://9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "state": { "running": { "startedAt": time } },
        }],
    } })
}
