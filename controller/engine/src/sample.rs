//! Objects in few words, for tests and benchmarks. Pure.
//!
//! Labels are written `app=web,tier=front`, selectors `app=web|shop,tier!=back,debug,!canary` (one of,
//! none of, exists, does not exist; nothing selects everything), keys `namespace/name`. Panics at
//! anything else: whoever writes it sees it at once.

use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{Block, Direction, PodUid};

use crate::object::{
    Key, Labels, NamedPort, Namespace, Operator, Peer, Pod, Policy, Port, Ports, Protocol, Requirement, Rule,
    Rules, Selector, Spec,
};

/// The key `namespace/name`.
pub fn key(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').unwrap_or_else(|| panic!("no key: {text:?}"));
    Key::new(namespace, name)
}

/// Labels such as `app=web,tier=front`.
pub fn labels(text: &str) -> Labels {
    let label = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or_else(|| panic!("no label: {text:?}"));
        (key.into(), value.into())
    };
    Arc::new(text.split(',').filter(|text| !text.is_empty()).map(label).collect())
}

/// A selector such as `app=web|shop,tier!=back,debug,!canary`.
pub fn selector(text: &str) -> Selector {
    let requirement = |text: &str| {
        let values = |text: &str| text.split('|').map(Arc::from).collect();
        let (key, operator) = match (text.split_once("!="), text.split_once('='), text.strip_prefix('!')) {
            (Some((key, text)), ..) => (key, Operator::NotIn(values(text))),
            (_, Some((key, text)), _) => (key, Operator::In(values(text))),
            (.., Some(key)) => (key, Operator::DoesNotExist),
            _ => (text, Operator::Exists),
        };
        Requirement { key: key.into(), operator }
    };
    Selector(text.split(',').filter(|text| !text.is_empty()).map(requirement).collect())
}

/// A namespace with these labels.
pub fn namespace(name: &str, text: &str) -> Namespace {
    Namespace { name: name.into(), labels: labels(text), denies_logged: false }
}

/// A pod on a node, with these labels and addresses. Its UID is its key.
pub fn pod(text: &str, node: &str, with: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: PodUid::from(text),
        key: key(text),
        labels: labels(with),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        node: Some(node.into()),
        host_network: false,
        completed: false,
        config_hash: None,
        ports: vec![],
    }
}

/// An address.
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// A container port with a name.
pub fn port(name: &str, protocol: Protocol, number: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol, number }
}

/// A policy with these rules.
pub fn policy(text: &str, rules: Rules) -> Policy {
    Policy { key: key(text), logged: false, spec: Spec::Readable(rules) }
}

/// A policy that isolates what it selects on ingress but for what these rules permit.
pub fn ingress(text: &str, subjects: &str, rules: impl IntoIterator<Item = Rule>) -> Policy {
    let (selector, types) = (selector(subjects), vec![Direction::Ingress]);
    policy(text, Rules { selector, types, ingress: Some(rules.into_iter().collect()), egress: None })
}

/// A policy that isolates what it selects on egress but for what these rules permit.
pub fn egress(text: &str, subjects: &str, rules: impl IntoIterator<Item = Rule>) -> Policy {
    let (selector, types) = (selector(subjects), vec![Direction::Egress]);
    policy(text, Rules { selector, types, ingress: None, egress: Some(rules.into_iter().collect()) })
}

/// A rule for these peers and ports.
pub fn rule(peers: impl IntoIterator<Item = Peer>, ports: impl IntoIterator<Item = Port>) -> Rule {
    Rule { peers: peers.into_iter().collect(), ports: ports.into_iter().collect() }
}

/// Pods of the policy's own namespace.
pub fn pods(text: &str) -> Peer {
    Peer::Pods { namespaces: None, pods: selector(text) }
}

/// Pods of the namespaces that the first selector selects.
pub fn pods_in(namespaces: &str, text: &str) -> Peer {
    Peer::Pods { namespaces: Some(selector(namespaces)), pods: selector(text) }
}

/// An `ipBlock`.
pub fn block(text: &str, except: &[&str]) -> Peer {
    Peer::Block { block: cidr(text), except: except.iter().map(|text| cidr(text)).collect() }
}

/// A CIDR block.
pub fn cidr(text: &str) -> Block {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// One TCP port.
pub fn tcp(number: u16) -> Port {
    range(Protocol::Tcp, number, number)
}

/// One UDP port.
pub fn udp(number: u16) -> Port {
    range(Protocol::Udp, number, number)
}

/// All ports of a protocol.
pub fn every(protocol: Protocol) -> Port {
    Port { protocol, ports: Ports::All }
}

/// A range of ports.
pub fn range(protocol: Protocol, first: u16, last: u16) -> Port {
    Port { protocol, ports: Ports::Range { first, last } }
}

/// A port by name.
pub fn named(protocol: Protocol, name: &str) -> Port {
    Port { protocol, ports: Ports::Named(name.into()) }
}
