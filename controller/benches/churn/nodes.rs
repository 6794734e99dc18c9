//! The nodes: each has a connection of its own, hears its view, and acknowledges every change. Does IO.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use durward_proto::wire::{FromNode, Hello, Patch, from_node, to_node};
use tokio::task::JoinSet;

use crate::PATIENCE;
use crate::connection::Connection;
use crate::events::Sent;
use crate::scenario::node;

/// As many connect at a time.
const AT_ONCE: usize = 64;
/// What is counted together.
const STEP: Duration = Duration::from_micros(100);
const STEPS: usize = 100_000;

/// How long events took until nodes had them.
pub(crate) struct Latencies {
    /// By steps; what takes longer is in the last one.
    counts: Vec<AtomicU64>,
    messages: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: (0..STEPS).map(|_| AtomicU64::new(0)).collect(), messages: AtomicU64::new(0) }
    }
}

impl Latencies {
    fn count(&self, latency: Duration) {
        let step = (latency.as_nanos() / STEP.as_nanos()) as usize;
        self.counts[step.min(STEPS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until nothing more is heard.
    pub(crate) async fn settle(&self) {
        let heard = || self.messages.load(Ordering::Relaxed);
        let mut before = 0;
        while heard() > before {
            before = heard();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    pub(crate) fn quantile_ms(&self, part: f64) -> f64 {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let rank = (counts.clone().sum::<u64>() as f64 * part).ceil() as u64;
        let mut below = 0;
        let reaches = |count| {
            below += count;
            below >= rank
        };
        (counts.map(reaches).take_while(|reached| !reached).count() + 1) as f64 * STEP.as_secs_f64() * 1e3
    }

    pub(crate) fn print(&self) {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| self.quantile_ms(part));
        let messages = self.messages.load(Ordering::Relaxed);
        println!(
            "event to wire: median {p50:.1} ms, p99 {p99:.1} ms, at most {max:.1} ms ({messages} messages)"
        );
    }
}

/// Subscribes so many nodes; they have their views when this is done.
pub(crate) async fn open_all(controller: SocketAddr, nodes: usize) -> Vec<Connection> {
    let (mut opening, mut opened) = (JoinSet::new(), vec![]);
    for n in 0..nodes {
        if opening.len() >= AT_ONCE {
            opened.extend(opening.join_next().await.map(|opened| opened.unwrap()));
        }
        opening.spawn(async move {
            let opened = tokio::time::timeout(PATIENCE, open(controller, node(n))).await;
            (n, opened.expect("a node is served in time"))
        });
    }
    opened.extend(opening.join_all().await);
    opened.sort_unstable_by_key(|&(n, _)| n);
    opened.into_iter().map(|(_, connection)| connection).collect()
}

/// Subscribes a node, which is told its view next.
pub(crate) async fn begin(controller: SocketAddr, node: String) -> Connection {
    let mut connection = Connection::open(controller).await;
    let hello = from_node::Message::Hello(Hello { node, has: None, backends: false });
    connection.say(FromNode { message: Some(hello) }).await;
    connection
}

async fn open(controller: SocketAddr, node: String) -> Connection {
    let mut connection = begin(controller, node).await;
    while !matches!(connection.hear().await.expect("it is served"), to_node::Message::InSync(_)) {}
    connection
}

/// Hears what changes, and acknowledges it.
pub(crate) async fn listen(
    mut connection: Connection,
    sent: Arc<Sent>,
    latencies: Arc<Latencies>,
    counts: Arc<AtomicBool>,
) {
    loop {
        let Some(to_node::Message::Change(change)) = connection.hear().await else {
            panic!("only changes come after the view")
        };
        let patch = change.patch.unwrap();
        if counts.load(Ordering::Relaxed) {
            latencies.messages.fetch_add(1, Ordering::Relaxed);
            for address in changed(&patch) {
                sent.since(IpAddr::V4(address)).iter().for_each(|&since| latencies.count(since));
            }
        }
        connection.say(FromNode { message: change.to.map(from_node::Message::Acked) }).await;
    }
}

/// The addresses of the pods that this change is about. Where the node's own pods come and go, so do the
/// peers of their policies, which did not change themselves.
fn changed(patch: &Patch) -> Vec<Ipv4Addr> {
    let v4 = |bytes: &Vec<u8>| <[u8; 4]>::try_from(&**bytes).ok().map(Ipv4Addr::from);
    if patch.put_pods.is_empty() && patch.removed_pods.is_empty() {
        let put = patch.put_addresses.iter().flat_map(|atom| &atom.v4).map(|&bits| bits.into());
        return put.chain(patch.removed_addresses.iter().filter_map(v4)).collect();
    }
    patch.put_pods.iter().flat_map(|pod| &pod.addresses).filter_map(v4).collect()
}
