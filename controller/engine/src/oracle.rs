//! The oracle: what the API's text says of one packet, plainly. Pure.
//!
//! Deliberately naive: every question looks at every object, and nothing but the object types is
//! shared with the engine. Tests hold the engine, and the kernel, against it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use durward_proto::{Block, Direction, Verdict, view};

use crate::object::{
    Event, Key, NAMESPACE_NAME_LABEL, Namespace, Operator, Peer, Pod, Policy, Port, Ports, Rule, Selector,
    Spec,
};

/// All objects there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Pods.
    pub pods: BTreeMap<Key, Pod>,
    /// Namespaces.
    pub namespaces: BTreeMap<Arc<str>, Namespace>,
    /// Policies.
    pub policies: BTreeMap<Key, Policy>,
    /// What is logged.
    pub logging: view::Logging,
}

/// A connection as the pod on one of its ends sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whether it comes to the pod or from it.
    pub direction: Direction,
    /// The other end's address.
    pub remote: IpAddr,
    /// The protocol's IANA number.
    pub protocol: u8,
    /// The destination's port, whichever end that is; 0 for protocols without ports.
    pub port: u16,
}

/// What policies say of a packet, and which: on allow, those with a rule that permits it; on deny,
/// those that isolate the pod in that direction.
pub type Judgement = (Verdict, BTreeSet<view::Policy>);

impl Cluster {
    /// Takes what happened.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Pod(pod) => drop(self.pods.insert(pod.key.clone(), pod)),
            Event::PodGone(key) => drop(self.pods.remove(&key)),
            Event::Namespace(namespace) => {
                drop(self.namespaces.insert(namespace.name.clone(), namespace));
            }
            Event::NamespaceGone(name) => drop(self.namespaces.remove(&name)),
            Event::Policy(policy) => drop(self.policies.insert(policy.key.clone(), policy)),
            Event::PolicyGone(key) => drop(self.policies.remove(&key)),
            // Packets have their backend as their remote by the time that policies are asked.
            Event::Service(_) | Event::ServiceGone(_) => {}
            Event::EndpointSlice(_) | Event::EndpointSliceGone(_) => {}
            Event::Logging(logging) => self.logging = logging,
        }
    }

    /// What the policies say of a packet at one of its ends; none if nothing isolates the pod in that
    /// direction. (That a pod reaches itself and its node, and replies, is not the policies' affair.)
    pub fn judge(&self, subject: &Pod, packet: &Packet) -> Option<Judgement> {
        let isolating: Vec<&Policy> =
            self.policies.values().filter(|policy| isolates(policy, subject, packet.direction)).collect();
        if isolating.is_empty() {
            return None;
        }
        let permitting: Vec<&Policy> =
            isolating.iter().copied().filter(|policy| self.permits(policy, subject, packet)).collect();
        let named = |policies: Vec<&Policy>| policies.into_iter().map(name).collect();
        Some(match permitting.is_empty() {
            true => (Verdict::Deny, named(isolating)),
            false => (Verdict::Allow, named(permitting)),
        })
    }

    fn permits(&self, policy: &Policy, subject: &Pod, packet: &Packet) -> bool {
        let Spec::Readable(rules) = &policy.spec else { return false };
        let rules = match packet.direction {
            Direction::Ingress => &rules.ingress,
            Direction::Egress => &rules.egress,
        };
        rules.iter().flatten().any(|rule| self.rule_permits(policy, rule, subject, packet))
    }

    /// A rule permits a packet if one of its peers and one of its ports match the same remote end.
    /// That may be any pod that has the address, or the address by itself.
    fn rule_permits(&self, policy: &Policy, rule: &Rule, subject: &Pod, packet: &Packet) -> bool {
        let remote = unmapped(packet.remote);
        let has_address =
            |pod: &&Pod| counts(pod) && pod.addresses.iter().any(|&address| unmapped(address) == remote);
        let ends = self.pods.values().filter(has_address).map(Some).chain([None]);
        ends.into_iter().any(|end| {
            let peer = rule.peers.is_empty()
                || rule.peers.iter().any(|peer| self.peer_matches(policy, peer, end, remote));
            let destination = match packet.direction {
                Direction::Ingress => Some(subject),
                Direction::Egress => end,
            };
            let port = rule.ports.is_empty()
                || rule.ports.iter().any(|port| port_matches(port, destination, packet));
            peer && port
        })
    }

    fn peer_matches(&self, policy: &Policy, peer: &Peer, end: Option<&Pod>, remote: IpAddr) -> bool {
        match peer {
            Peer::Block { block, except } => {
                holds(block, remote) && !except.iter().any(|hole| holds(hole, remote))
            }
            Peer::Pods { namespaces, pods } => end.is_some_and(|pod| {
                let namespace = match namespaces {
                    None => pod.key.namespace == policy.key.namespace,
                    Some(selector) => self.namespaces.get(&pod.key.namespace).is_some_and(|namespace| {
                        let mut labels = (*namespace.labels).clone();
                        labels.insert(NAMESPACE_NAME_LABEL.into(), namespace.name.clone());
                        selects(selector, &labels)
                    }),
                };
                namespace && selects(pods, &pod.labels)
            }),
        }
    }
}

/// Whether policies see the pod at all.
fn counts(pod: &Pod) -> bool {
    !pod.host_network && !pod.completed
}

fn isolates(policy: &Policy, subject: &Pod, direction: Direction) -> bool {
    let (selector, applies) = match &policy.spec {
        Spec::Unreadable { selector, directions, .. } => (selector, directions.contains(&direction)),
        Spec::Readable(rules) if rules.types.is_empty() => {
            (&rules.selector, direction == Direction::Ingress || rules.egress.is_some())
        }
        Spec::Readable(rules) => (&rules.selector, rules.types.contains(&direction)),
    };
    let same_namespace = policy.key.namespace == subject.key.namespace;
    counts(subject) && applies && same_namespace && selects(selector, &subject.labels)
}

/// An IPv4 address in IPv6 form is that IPv4 address.
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0xffff, high, low] => {
                Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into()
            }
            _ => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// Whether an address is of the block's family, and its first bits are the block's.
fn holds(block: &Block, address: IpAddr) -> bool {
    let same = match (block.address(), address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => (first.to_bits() ^ address.to_bits()).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(address)) => (first.to_bits() ^ address.to_bits()).leading_zeros(),
        _ => return false,
    };
    same >= u32::from(block.length())
}

fn port_matches(port: &Port, destination: Option<&Pod>, packet: &Packet) -> bool {
    port.protocol.number() == packet.protocol
        && match &port.ports {
            Ports::All => true,
            Ports::Range { first, last } => (*first..=*last).contains(&packet.port),
            Ports::Named(name) => destination.is_some_and(|pod| {
                pod.ports.iter().any(|named| {
                    named.name == *name && named.protocol == port.protocol && named.number == packet.port
                })
            }),
        }
}

fn selects(selector: &Selector, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
    selector.0.iter().all(|requirement| match (&requirement.operator, labels.get(&requirement.key)) {
        (Operator::In(values), Some(value)) => values.contains(value),
        (Operator::In(_), None) | (Operator::Exists, None) | (Operator::DoesNotExist, Some(_)) => false,
        (Operator::NotIn(values), Some(value)) => !values.contains(value),
        (Operator::NotIn(_), None) | (Operator::Exists, Some(_)) | (Operator::DoesNotExist, None) => true,
    })
}

fn name(policy: &Policy) -> view::Policy {
    let Key { namespace, name } = policy.key.clone();
    view::Policy { namespace, name, logged: policy.logged }
}
