//! One connection of the matrix, and what each judge says of it. Pure.

use std::net::IpAddr;

use durward_e2e::Protocol;
use durward_engine::object::{Event, Key, Pod};
use durward_engine::oracle::{Cluster, Packet};
use durward_engine::{Engine, Limits};
use durward_proto::{Direction, NodeView, PortKey, Verdict};

/// A connection between two pods' addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) from: Key,
    pub(crate) source: IpAddr,
    pub(crate) to: Key,
    pub(crate) target: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

impl Cell {
    /// Whether the oracle lets it pass: a pod reaches itself, and else both ends decide.
    pub(crate) fn allowed(&self, cluster: &Cluster) -> bool {
        self.from == self.to
            || Direction::BOTH.iter().all(|&direction| {
                let (pod, packet) = self.seen(cluster, direction);
                cluster.judge(pod, &packet).is_none_or(|(verdict, _)| verdict == Verdict::Allow)
            })
    }

    /// What oracle and compiled rules say at both ends, with the rows that decide: for people who wonder.
    pub(crate) fn explain(&self, cluster: &Cluster) -> String {
        let Self { from, source, to, target, protocol, port } = self;
        let mut text = format!("{from} ({source}) → {to} ({target}) {protocol:?} port {port}\n");
        for direction in Direction::BOTH {
            let (pod, packet) = self.seen(cluster, direction);
            let oracle = cluster.judge(pod, &packet);
            text += &format!("    {direction:?}: the oracle says {oracle:?}\n");
            let Some(node) = &pod.node else { continue };
            let view = view(cluster, node);
            let key = PortKey::new(packet.protocol, packet.port);
            let act = view.act(&pod.uid, direction, packet.remote, key);
            text += &format!("    {direction:?}: the compiled rules say {act:?}");
            if let Some(set) = view.pods.get(&pod.uid).and_then(|pod| view.sets.get(&pod.set(direction)?)) {
                let atom = view.atom(packet.remote);
                let row = atom.and_then(|atom| set.rows.get(&atom)).unwrap_or(&set.base);
                text += &format!(", by atom {atom:?} and row {row:?}");
            }
            text += "\n";
        }
        text
    }

    /// The connection as the pod sees it at whose interface this direction is judged.
    fn seen<'a>(&self, cluster: &'a Cluster, direction: Direction) -> (&'a Pod, Packet) {
        let (subject, remote) = match direction {
            Direction::Ingress => (&self.to, self.source),
            Direction::Egress => (&self.from, self.target),
        };
        let protocol = match self.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        (&cluster.pods[subject], Packet { direction, remote, protocol, port: self.port })
    }
}

/// The compiled rules of a node, from nothing but the objects that the oracle has.
fn view(cluster: &Cluster, node: &str) -> NodeView {
    let Cluster { pods, namespaces, policies, logging } = cluster.clone();
    let events = namespaces.into_values().map(Event::Namespace);
    let events = events.chain(pods.into_values().map(Event::Pod));
    let events = events.chain(policies.into_values().map(Event::Policy)).chain([Event::Logging(logging)]);
    let mut engine = Engine::new(Limits::default());
    engine.apply(events);
    engine.subscribe(node)
}
