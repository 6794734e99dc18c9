//! The engine's objects as an API server writes them. Pure.

use std::net::Ipv4Addr;

use bytes::Bytes;
use durward_engine::object::{
    Namespace, Operator, Peer, Pod, Policy, Port, Ports, Protocol, Rule, Selector, Spec,
};
use durward_proto::Direction;
use serde_json::{Value, json};

use crate::scenario::space;

/// What happens to an object.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Added,
    Modified,
    Deleted,
}

/// A line of a watch.
pub(crate) fn line(kind: Kind, object: &Value) -> Bytes {
    let kind = match kind {
        Kind::Added => "ADDED",
        Kind::Modified => "MODIFIED",
        Kind::Deleted => "DELETED",
    };
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

/// The line after all objects that were there when the watch began.
pub(crate) fn mark() -> Bytes {
    bookmark_with(json!({ "k8s.io/initial-events-end": "true" }))
}

/// The line that says that nothing happens.
pub(crate) fn bookmark() -> Bytes {
    bookmark_with(json!({}))
}

fn bookmark_with(annotations: Value) -> Bytes {
    let object = json!({ "metadata": { "resourceVersion": "1", "annotations": annotations } });
    format!("{}\n", json!({ "type": "BOOKMARK", "object": with_type("v1", "Any", object) })).into()
}

fn with_type(version: &str, kind: &str, mut object: Value) -> Value {
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    object
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// A Service by number, of two ports.
pub(crate) fn service(n: usize) -> Value {
    let (address, name) = (Ipv4Addr::from_bits(0xac00_0000 + n as u32), format!("service-{n}"));
    let port = |name: &str, number: u16| json!({ "name": name, "port": number, "protocol": "TCP" });
    with_type(
        "v1",
        "Service",
        json!({
            "metadata": { "name": name, "namespace": space(n), "uid": name, "resourceVersion": "1" },
            "spec": {
                "clusterIP": address,
                "clusterIPs": [address],
                "ports": [port("http", 80), port("metrics", 9090)],
            },
        }),
    )
}

pub(crate) fn pod(pod: &Pod) -> Value {
    let Pod { uid, key, labels, addresses, node, ports, .. } = pod;
    let port = |port: &durward_engine::object::NamedPort| json!({ "name": *port.name, "containerPort": port.number, "protocol": protocol(port.protocol) });
    let ips: Vec<_> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    let object = json!({
        "metadata": {
            "namespace": *key.namespace, "name": *key.name, "uid": uid.to_string(), "labels": **labels,
            "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-set", key.namespace),
                "uid": "u", "controller": true,
            }],
        },
        "spec": {
            "nodeName": node.as_deref(),
            "containers": [{ "name": "c", "image": "registry/image:1", "ports": ports.iter().map(port).collect::<Vec<_>>() }],
        },
        "status": { "phase": "Running", "podIP": addresses.first(), "podIPs": ips },
    });
    with_type("v1", "Pod", object)
}

pub(crate) fn namespace(namespace: &Namespace) -> Value {
    metadata(&namespace.name, &namespace.labels)
}

pub(crate) fn node(name: &str) -> Value {
    metadata(name, &Default::default())
}

fn metadata(name: &str, labels: &durward_engine::object::Labels) -> Value {
    let object = json!({ "metadata": { "name": name, "labels": **labels, "resourceVersion": "1" } });
    with_type("meta.k8s.io/v1", "PartialObjectMetadata", object)
}

pub(crate) fn logging() -> Value {
    let off = json!({ "log": false, "delegate": false });
    let metadata = json!({ "name": "default", "uid": "u", "generation": 1, "resourceVersion": "1" });
    let object = json!({ "metadata": metadata, "spec": { "cluster": { "allow": off, "deny": off } } });
    with_type("networking.gke.io/v1alpha1", "NetworkLogging", object)
}

pub(crate) fn policy(policy: &Policy) -> Value {
    let Spec::Readable(rules) = &policy.spec else { unreachable!("the scenario's policies are readable") };
    let types = rules.types.iter().map(|direction| match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    });
    let mut spec =
        json!({ "podSelector": selector(&rules.selector), "policyTypes": types.collect::<Vec<_>>() });
    for (name, peers, rules) in [("ingress", "from", &rules.ingress), ("egress", "to", &rules.egress)] {
        if let Some(rules) = rules {
            spec[name] = rules.iter().map(|rule| self::rule(peers, rule)).collect();
        }
    }
    let metadata = json!({
        "namespace": *policy.key.namespace, "name": *policy.key.name, "uid": policy.key.to_string(), "resourceVersion": "1",
    });
    with_type("networking.k8s.io/v1", "NetworkPolicy", json!({ "metadata": metadata, "spec": spec }))
}

fn rule(peers: &str, rule: &Rule) -> Value {
    let mut object = json!({});
    if !rule.peers.is_empty() {
        object[peers] = rule.peers.iter().map(peer).collect();
    }
    if !rule.ports.is_empty() {
        object["ports"] = rule.ports.iter().map(port).collect();
    }
    object
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let mut object = json!({ "podSelector": selector(pods) });
            if let Some(namespaces) = namespaces {
                object["namespaceSelector"] = selector(namespaces);
            }
            object
        }
        Peer::Block { block, except } => {
            let except: Vec<_> = except.iter().map(ToString::to_string).collect();
            json!({ "ipBlock": { "cidr": block.to_string(), "except": except } })
        }
    }
}

fn port(port: &Port) -> Value {
    let protocol = protocol(port.protocol);
    match &port.ports {
        Ports::All => json!({ "protocol": protocol }),
        Ports::Range { first, last } => json!({ "protocol": protocol, "port": first, "endPort": last }),
        Ports::Named(name) => json!({ "protocol": protocol, "port": **name }),
    }
}

fn selector(selector: &Selector) -> Value {
    let requirement = |requirement: &durward_engine::object::Requirement| {
        let (operator, values) = match &requirement.operator {
            Operator::In(values) => ("In", values.as_slice()),
            Operator::NotIn(values) => ("NotIn", values.as_slice()),
            Operator::Exists => ("Exists", &[][..]),
            Operator::DoesNotExist => ("DoesNotExist", &[][..]),
        };
        json!({ "key": *requirement.key, "operator": operator, "values": values })
    };
    json!({ "matchExpressions": selector.0.iter().map(requirement).collect::<Vec<_>>() })
}
