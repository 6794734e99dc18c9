//! One connection of the matrix, and what each judge says of it. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use durward_e2e::Protocol;
use durward_engine::object::{Event, Key, Pod};
use durward_engine::oracle::{Cluster, Packet};
use durward_engine::{Engine, Limits};
use durward_proto::{Act, Direction, NodeView, PortKey, Row, Step, Verdict};

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

    /// What the oracle, the compiled rules, and those that the nodes have say at both ends, and the rows that decide.
    pub(crate) fn explain(&self, cluster: &Cluster, nodes: &BTreeMap<String, NodeView>) -> String {
        let Self { from, source, to, target, protocol, port } = self;
        let mut text = format!("{from} ({source}) → {to} ({target}) {protocol:?} port {port}\n");
        for direction in [Direction::Egress, Direction::Ingress] {
            let (pod, packet) = self.seen(cluster, direction);
            let oracle = match cluster.judge(pod, &packet) {
                None => "nothing isolates it".to_owned(),
                Some((verdict, policies)) => by(verdict, &policies),
            };
            text += &format!("    {direction:?} of {}\n      the oracle:         {oracle}\n", pod.key);
            let node = pod.node.as_deref().unwrap_or_default();
            let compiled = view(cluster, node);
            text += &format!("      the compiled rules: {}\n", rules(&compiled, pod, &packet));
            let has =
                nodes.get(node).map_or_else(|| "nobody knows".to_owned(), |view| rules(view, pod, &packet));
            text += &format!("      those of node {node}:   {has}\n");
        }
        text
    }

    /// The connection as the pod sees it at whose interface this direction is judged.
    fn seen<'a>(&self, cluster: &'a Cluster, direction: Direction) -> (&'a Pod, Packet) {
        let (subject, remote) = match direction {
            Direction::Ingress => (&self.to, self.source),
            Direction::Egress => (&self.from, self.target),
        };
        let protocol = match (self.protocol, remote) {
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Icmp, IpAddr::V4(_)) => 1,
            (Protocol::Icmp, IpAddr::V6(_)) => 58,
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

/// What a view says of a packet, and the row by which it does.
fn rules(view: &NodeView, pod: &Pod, packet: &Packet) -> String {
    let Some(own) = view.pods.get(&pod.uid) else { return "the pod is not there".into() };
    let Some(set) = own.set(packet.direction).and_then(|set| view.sets.get(&set)) else {
        return "nothing isolates it".into();
    };
    let special = view.atom(packet.remote).and_then(|atom| set.rows.get(&atom));
    let (row, of) = special.map_or((&set.base, "everybody"), |row| (row, "the address"));
    let act = row.act(PortKey::new(packet.protocol, packet.port));
    format!("{}; the row of {of}: {}", said(view, act), steps(view, row))
}

/// From which protocol and port on a row says what.
fn steps(view: &NodeView, row: &Row) -> String {
    let step = |Step { start, act }: &Step| {
        format!("from {}/{} on {}", start.protocol(), start.port(), said(view, *act))
    };
    row.steps().iter().map(step).collect::<Vec<_>>().join(", ")
}

fn said(view: &NodeView, Act { verdict, attribution }: Act) -> String {
    view.attribution(attribution).map_or_else(|| "?".into(), |policies| by(verdict, &*policies.0))
}

fn by<'a>(verdict: Verdict, policies: impl IntoIterator<Item = &'a durward_proto::view::Policy>) -> String {
    let names = policies.into_iter().map(|policy| format!(" {}/{}", policy.namespace, policy.name));
    format!("{verdict:?} by{}", names.collect::<String>())
}
