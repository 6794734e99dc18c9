//! A policy that has pods on many nodes and mentions a quarter of the cluster's pods. Does IO.

use std::net::SocketAddr;

use bytes::Bytes;
use durward_engine::object::{Key, Pod};
use durward_engine::sample::{ingress, pods_in, rule};
use durward_proto::wire::{Patch, to_node};
use prost::Message;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::json::{self, Kind};
use crate::nodes::begin;
use crate::scenario::{self, node, plain};

pub(crate) const NODES: usize = 500;
/// How many pods the policy mentions.
const MENTIONED: usize = 50_000;

/// One on each of these nodes.
pub(crate) fn pods() -> Vec<Pod> {
    let pod = |n: usize| {
        let pod = plain(0, 400_000 + n, scenario::huge().nodes, "app=crowd");
        Pod { key: Key::new("crowd", format!("pod-{n}")), node: Some(node(n).into()), ..pod }
    };
    (0..NODES).map(pod).collect()
}

/// The policy comes, and all nodes are told what it mentions. Gives how many of them began anew for that.
pub(crate) async fn hear(controller: SocketAddr, nodes: Vec<Connection>, changes: &Sender<Bytes>) -> usize {
    let mut hearing = JoinSet::new();
    for (n, connection) in nodes.into_iter().enumerate() {
        hearing.spawn(hear_all(controller, connection, node(n)));
    }
    let policy = ingress("crowd/all", "", [rule([pods_in("", "app=web,tier=t0")], [])]);
    changes.send(json::line(Kind::Added, &json::policy(&policy))).await.unwrap();
    hearing.join_all().await.into_iter().sum()
}

/// How many addresses a patch puts.
fn addresses(patch: &Patch) -> usize {
    patch.put_addresses.iter().map(|atom| atom.v4.len()).sum()
}

/// Until the node was told all that are mentioned.
async fn hear_all(controller: SocketAddr, mut connection: Connection, name: String) -> usize {
    let (mut told, mut begun_anew) = (0, 0);
    while told < MENTIONED {
        told += match connection.hear().await {
            Some(to_node::Message::Part(part)) => addresses(&Patch::decode(part).unwrap()),
            Some(to_node::Message::Change(change)) => addresses(&change.patch.unwrap()),
            Some(to_node::Message::InSync(_)) => 0,
            None => {
                begun_anew += 1;
                connection = begin(controller, name.clone()).await;
                told = 0;
                0
            }
        };
    }
    begun_anew
}
