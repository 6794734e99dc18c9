//! From the API server's objects to what the engine and the log need of them. Pure.
//!
//! Done once, at the door, so that nothing else of an object is ever kept. Policies: see `policy`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use durward_engine::object::{Event, Key, Labels, NamedPort, Namespace, Pod};
use durward_proto::Workload;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::api::DynamicObject;
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use serde::{Deserialize, Deserializer};

use crate::event::{Notice, Severity, reference};
use crate::identity::PodIdentity;
use crate::policy::{MAX_PORT_NAME_BYTES, parse_protocol, policy};
use crate::task::Change;
use crate::watch::{Translation, key};

/// On a namespace, asks that connections which are denied to or from its pods are logged.
const DENY_LOG_ANNOTATION: &str = "policy.network.gke.io/enable-deny-logging";
/// A static pod's hash, by which its cgroup is named, and the mark of its mirror in the API.
const CONFIG_HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
const CONFIG_MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// A pod, with those of its fields that are needed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PodJson {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpecJson,
    #[serde(default)]
    status: PodStatusJson,
}

impl Resource for PodJson {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        v1::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        v1::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        v1::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        v1::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Reads what is needed of a pod's metadata: `managedFields` are more than all the rest.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct MetadataJson {
        namespace: Option<String>,
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
        creation_timestamp: Option<Time>,
    }
    let read = MetadataJson::deserialize(deserializer)?;
    Ok(ObjectMeta {
        namespace: read.namespace,
        name: read.name,
        uid: read.uid,
        resource_version: read.resource_version,
        labels: read.labels,
        annotations: read.annotations,
        owner_references: read.owner_references,
        creation_timestamp: read.creation_timestamp,
        ..ObjectMeta::default()
    })
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpecJson {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<ContainerJson>>,
    init_containers: Option<Vec<ContainerJson>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerJson {
    restart_policy: Option<String>,
    ports: Option<Vec<PortJson>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortJson {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatusJson {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIpJson>>,
    start_time: Option<Time>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIpJson {
    ip: Option<String>,
}

/// What of a pod is not understood, and so is left out of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum PodFault {
    #[error(
        "Pod {0}: a container port has a name of {1} bytes, and {MAX_PORT_NAME_BYTES} is the limit: shorten it; \
         until then no policy can mean the port by its name"
    )]
    PortName(Key, usize),
    #[error(
        "Pod {0}: its container port {1:?} has the number {2}, and ports go from 1 to 65535: correct it; until \
         then no policy can mean the port by its name"
    )]
    PortNumber(Key, String, i64),
    #[error(
        "Pod {0}: its container port {1:?} has the protocol {2:?}: use TCP, UDP or SCTP; until then no policy \
         can mean the port by its name"
    )]
    PortProtocol(Key, String, String),
    #[error("Pod {0}: its status has the address {1:?}, which is none: see what its kubelet and CNI do")]
    Address(Key, String),
}

/// A pod is so.
pub(crate) fn put_pod(object: &PodJson) -> Translation {
    let PodJson { metadata, spec, status } = object;
    let (key, mut faults) = (key(metadata), vec![]);
    let host_network = spec.host_network.unwrap_or_default();
    let completed = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let addresses = addresses(&key, status, &mut faults);
    let pod = Pod {
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        key: key.clone(),
        labels: labels(metadata),
        addresses: addresses.clone(),
        node: spec.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from),
        host_network,
        completed,
        config_hash: config_hash(metadata),
        ports: named_ports(&key, spec, &mut faults),
    };
    let has_own = !host_network && !completed;
    let started = status.start_time.as_ref().or(metadata.creation_timestamp.as_ref());
    let identity = PodIdentity {
        uid: pod.uid.clone(),
        addresses: if has_own { addresses } else { vec![] },
        owner: controller(metadata).filter(|owner| &*owner.kind != "Node"),
        started_ms: started.map_or(0, |Time(time)| time.as_millisecond()),
    };
    let fault = (!faults.is_empty()).then(|| Notice {
        regarding: reference::<v1::Pod>(Some(&key.namespace), &key.name, metadata.uid.as_deref()),
        severity: Severity::Warning,
        reason: "PodNotUnderstood",
        action: "LeaveOut",
        note: faults.iter().map(PodFault::to_string).collect::<Vec<_>>().join("; "),
    });
    let changes = vec![Change::Engine(Event::Pod(pod)), Change::Identity(key, Some(identity))];
    Translation { changes, fault }
}

/// There is no such pod.
pub(crate) fn pod_gone(key: &Key) -> Vec<Change> {
    vec![Change::Engine(Event::PodGone(key.clone())), Change::Identity(key.clone(), None)]
}

/// A namespace is so.
pub(crate) fn put_namespace(object: &PartialObjectMeta<v1::Namespace>) -> Translation {
    let denies_logged = annotation(&object.metadata, DENY_LOG_ANNOTATION) == Some("true");
    let Key { name, .. } = key(&object.metadata);
    let namespace = Namespace { name, labels: labels(&object.metadata), denies_logged };
    told(Change::Engine(Event::Namespace(namespace)))
}

/// There is no such namespace.
pub(crate) fn namespace_gone(key: &Key) -> Vec<Change> {
    vec![Change::Engine(Event::NamespaceGone(key.name.clone()))]
}

/// A policy is so. What is at fault in it the engine tells.
pub(crate) fn put_policy(object: &DynamicObject) -> Translation {
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    told(Change::Policy(policy(object), uid.into()))
}

/// There is no such policy.
pub(crate) fn policy_gone(key: &Key) -> Vec<Change> {
    vec![Change::Engine(Event::PolicyGone(key.clone()))]
}

/// A node is there.
pub(crate) fn put_node(object: &PartialObjectMeta<v1::Node>) -> Translation {
    told(Change::Node(key(&object.metadata).name, true))
}

/// There is no such node.
pub(crate) fn node_gone(key: &Key) -> Vec<Change> {
    vec![Change::Node(key.name.clone(), false)]
}

/// A ReplicaSet or a Job is so: who owns it counts.
pub(crate) fn put_owned<K>(kind: &str, object: &PartialObjectMeta<K>) -> Translation {
    let Key { namespace, name } = key(&object.metadata);
    told(Change::Owner(namespace, Workload { kind: kind.into(), name }, controller(&object.metadata)))
}

/// There is no such ReplicaSet or Job.
pub(crate) fn owned_gone(kind: &str, key: &Key) -> Vec<Change> {
    let Key { namespace, name } = key.clone();
    vec![Change::Owner(namespace, Workload { kind: kind.into(), name }, None)]
}

fn told(change: Change) -> Translation {
    Translation { changes: vec![change], fault: None }
}

fn labels(meta: &ObjectMeta) -> Labels {
    let labels = meta.labels.iter().flatten();
    Arc::new(labels.map(|(key, value)| (Arc::from(&**key), Arc::from(&**value))).collect::<BTreeMap<_, _>>())
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// What controls an object.
fn controller(meta: &ObjectMeta) -> Option<Workload> {
    let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    Some(Workload { kind: owner.kind.as_str().into(), name: owner.name.as_str().into() })
}

/// A static pod's hash. Anybody can annotate a pod, but the mirror of a static pod is its node's.
fn config_hash(meta: &ObjectMeta) -> Option<Arc<str>> {
    let is_mirror = annotation(meta, CONFIG_MIRROR_ANNOTATION).is_some()
        && controller(meta).is_some_and(|owner| &*owner.kind == "Node");
    annotation(meta, CONFIG_HASH_ANNOTATION).filter(|hash| is_mirror && !hash.is_empty()).map(Arc::from)
}

fn addresses(key: &Key, status: &PodStatusJson, faults: &mut Vec<PodFault>) -> Vec<IpAddr> {
    let PodStatusJson { pod_ip, pod_ips, .. } = status;
    let listed: Vec<_> = pod_ips.iter().flatten().filter_map(|PodIpJson { ip }| ip.as_ref()).collect();
    let all = if listed.is_empty() { pod_ip.iter().collect() } else { listed };
    let mut addresses = vec![];
    for text in all.into_iter().filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(durward_proto::view::canonical(address)),
            Err(_) => faults.push(PodFault::Address(key.clone(), text.clone())),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The named ports of the containers that run as long as the pod: native sidecars are among them.
fn named_ports(key: &Key, spec: &PodSpecJson, faults: &mut Vec<PodFault>) -> Vec<NamedPort> {
    let PodSpecJson { containers, init_containers, .. } = spec;
    let is_sidecar = |container: &&ContainerJson| container.restart_policy.as_deref() == Some("Always");
    let sidecars = init_containers.iter().flatten().filter(is_sidecar);
    let ports =
        containers.iter().flatten().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let mut named = vec![];
    for PortJson { name, protocol, container_port } in ports {
        let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
        match read_port(key, name, protocol.as_deref(), *container_port) {
            Ok(port) => named.push(port),
            Err(fault) => faults.push(fault),
        }
    }
    named
}

fn read_port(key: &Key, name: &str, protocol: Option<&str>, number: i64) -> Result<NamedPort, PodFault> {
    if name.len() > MAX_PORT_NAME_BYTES {
        return Err(PodFault::PortName(key.clone(), name.len()));
    }
    let wrong_number = || PodFault::PortNumber(key.clone(), name.to_owned(), number);
    let wrong_protocol =
        || PodFault::PortProtocol(key.clone(), name.to_owned(), protocol.unwrap_or_default().to_owned());
    Ok(NamedPort {
        name: name.into(),
        protocol: parse_protocol(protocol).ok_or_else(wrong_protocol)?,
        number: u16::try_from(number).ok().filter(|&number| number > 0).ok_or_else(wrong_number)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_engine::object::Protocol;
    use serde_json::{Value, json};

    fn read(pod: Value) -> (Pod, PodIdentity, Option<String>) {
        let Translation { mut changes, fault } = put_pod(&serde_json::from_value(pod).unwrap());
        let (identity, pod) = (changes.pop(), changes.pop());
        let (Some(Change::Engine(Event::Pod(pod))), Some(Change::Identity(_, Some(identity)))) =
            (pod, identity)
        else {
            panic!("not a pod and its identity")
        };
        (pod, identity, fault.map(|notice| notice.note))
    }

    fn pod() -> Value {
        json!({
            "metadata": {
                "namespace": "shop", "name": "web-1", "uid": "u1", "labels": { "app": "web" },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r", "controller": true }],
            },
            "spec": {
                "nodeName": "node-1",
                "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 80 }, { "containerPort": 9 }] }],
                "initContainers": [
                    { "name": "i", "ports": [{ "name": "init", "containerPort": 1 }] },
                    { "name": "s", "restartPolicy": "Always", "ports": [{ "name": "dns", "protocol": "UDP", "containerPort": 53 }] },
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
                "startTime": "1970-01-01T00:00:05Z",
            },
        })
    }

    #[test]
    fn a_pod_is_reduced_to_what_is_needed() {
        let (read, identity, fault) = read(pod());
        let addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let port = |name: &str, protocol, number| NamedPort { name: name.into(), protocol, number };
        let expected = Pod {
            uid: "u1".into(),
            key: Key::new("shop", "web-1"),
            labels: Arc::new([("app".into(), "web".into())].into()),
            addresses: addresses.clone(),
            node: Some("node-1".into()),
            host_network: false,
            completed: false,
            config_hash: None,
            ports: vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)],
        };
        assert_eq!((read, fault), (expected, None));
        let owner = Some(Workload { kind: "ReplicaSet".into(), name: "web".into() });
        assert_eq!(identity, PodIdentity { uid: "u1".into(), addresses, owner, started_ms: 5000 });
    }

    #[test]
    fn pods_without_an_address_of_their_own_are_not_named() {
        let mut host = pod();
        host["spec"]["hostNetwork"] = json!(true);
        let (host, identity, _) = read(host);
        assert!(host.host_network && identity.addresses.is_empty());
        for phase in ["Succeeded", "Failed"] {
            let mut completed = pod();
            completed["status"]["phase"] = json!(phase);
            let (completed, identity, _) = read(completed);
            assert!(completed.completed && identity.addresses.is_empty());
        }
    }

    #[test]
    fn a_pod_that_is_not_scheduled_yet_is_on_no_node() {
        for name in [json!(""), json!(null)] {
            let mut pending = pod();
            pending["spec"]["nodeName"] = name;
            assert_eq!(read(pending).0.node, None);
        }
    }

    #[test]
    fn a_terminating_pod_is_like_any_other() {
        let mut terminating = pod();
        terminating["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:09Z");
        terminating["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        assert_eq!(read(terminating), read(pod()));
    }

    #[test]
    fn addresses_are_the_list_or_the_single_one_and_mapped_ones_are_ipv4() {
        let of = |status: Value| {
            let mut pod = pod();
            pod["status"] = status;
            let (pod, ..) = read(pod);
            pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(json!({})), [""; 0]);
        assert_eq!(of(json!({ "podIP": "10.0.0.1" })), ["10.0.0.1"]);
        let both =
            json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "fd00::1" }, { "ip": "::ffff:10.0.0.2" }] });
        assert_eq!(of(both), ["10.0.0.2", "fd00::1"]);
    }

    #[test]
    fn what_is_not_understood_is_left_out_and_said() {
        let mut wrong = pod();
        wrong["spec"]["containers"][0]["ports"] = json!([
            { "name": "x".repeat(300), "containerPort": 1 },
            { "name": "zero", "containerPort": 0 },
            { "name": "odd", "protocol": "ICMP", "containerPort": 1 },
            { "name": "good", "containerPort": 2 },
        ]);
        wrong["status"]["podIPs"] = json!([{ "ip": "10.0.0.999" }, { "ip": "10.0.0.1" }]);
        let (read, _, fault) = read(wrong);
        let names: Vec<_> = read.ports.iter().map(|port| &*port.name).collect();
        assert_eq!((names, read.addresses.len()), (vec!["good", "dns"], 1));
        let fault = fault.unwrap();
        for part in [
            "Pod shop/web-1: a container port has a name of 300 bytes",
            "\"zero\" has the number 0",
            "\"odd\" has the protocol \"ICMP\"",
            "the address \"10.0.0.999\"",
        ] {
            assert!(fault.contains(part), "{fault:?} does not say {part:?}");
        }
    }

    #[test]
    fn only_a_nodes_own_mirror_has_a_config_hash() {
        let mut mirror = pod();
        mirror["metadata"]["annotations"] =
            json!({ CONFIG_HASH_ANNOTATION: "h", CONFIG_MIRROR_ANNOTATION: "h" });
        assert_eq!(read(mirror.clone()).0.config_hash, None);
        mirror["metadata"]["ownerReferences"][0]["kind"] = json!("Node");
        let (read, identity, _) = read(mirror);
        assert_eq!((read.config_hash.as_deref(), identity.owner), (Some("h"), None));
    }

    #[test]
    fn a_namespace_asks_for_denials_to_be_logged_by_exactly_true() {
        for (value, expected) in [("true", true), ("yes", false)] {
            let object =
                json!({ "metadata": { "name": "shop", "annotations": { DENY_LOG_ANNOTATION: value } } });
            let mut translation = put_namespace(&serde_json::from_value(object).unwrap());
            let Some(Change::Engine(Event::Namespace(namespace))) = translation.changes.pop() else {
                panic!()
            };
            assert_eq!((&*namespace.name, namespace.denies_logged), ("shop", expected));
        }
    }
}
