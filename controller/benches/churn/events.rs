//! 1,000 changes of pods a second: some are relabelled, some come, some go. Does IO.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use durward_engine::object::Pod;
use durward_engine::sample::labels;
use tokio::sync::mpsc::Sender;

use crate::json::{self, Kind};
use crate::scenario::{self, plain};
use crate::{EVENTS_PER_SECOND, SECONDS};

/// Pods' numbers, and so their addresses, are below this.
const PODS: usize = 1 << 19;
const FIRST_ADDRESS: u32 = 0x0a00_0001;
/// As many pods are changed in turn; each rests for seconds, so that what is heard of it tells which change it was.
const IN_TURN: usize = 5_000;

/// When the last change of each pod was sent.
pub(crate) struct Sent {
    begin: Instant,
    /// In nanoseconds since then; 0 if never.
    at: Vec<AtomicU64>,
}

impl Sent {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), at: (0..PODS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn mark(&self, pod: &Pod) {
        let nanos = u64::try_from(self.begin.elapsed().as_nanos()).unwrap();
        if let Some(at) = pod.addresses.first().and_then(|&address| self.slot(address)) {
            at.store(nanos, Ordering::Relaxed);
        }
    }

    /// How long ago the last change of the pod with this address was sent.
    pub(crate) fn since(&self, address: IpAddr) -> Option<Duration> {
        let nanos = self.slot(address)?.load(Ordering::Relaxed);
        (nanos > 0).then(|| self.begin.elapsed().saturating_sub(Duration::from_nanos(nanos)))
    }

    fn slot(&self, address: IpAddr) -> Option<&AtomicU64> {
        let IpAddr::V4(address) = address else { return None };
        self.at.get(Ipv4Addr::to_bits(address).checked_sub(FIRST_ADDRESS)? as usize)
    }
}

/// The change with this number. Each kind goes forth and back.
fn change(number: usize) -> (Kind, Pod) {
    let (turn, back) = (number / 3 % IN_TURN, number / 3 / IN_TURN % 2 == 1);
    let known = |first: usize| scenario::huge().pod(first + 13 * turn);
    match number % 3 {
        0 => (if back { Kind::Added } else { Kind::Deleted }, known(1_000)),
        1 if back => (Kind::Modified, known(70_000)),
        1 => (Kind::Modified, Pod { labels: labels("app=other,tier=t0"), ..known(70_000) }),
        _ => {
            let with = ["app=web,tier=t0", "app=db,tier=t1"][turn % 2];
            let pod = plain(50 + 4 * turn, 300_000 + turn, 7_500, with);
            (if back { Kind::Deleted } else { Kind::Added }, pod)
        }
    }
}

/// Sends all changes of a round, each when it is due.
pub(crate) async fn send(changes: &Sender<Bytes>, sent: &Arc<Sent>, round: usize) {
    let (changes, sent) = (changes.clone(), sent.clone());
    let all = EVENTS_PER_SECOND * SECONDS;
    // A thread of its own: it must not wait for its turn among the nodes.
    let sending = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        for n in 0..all {
            let (kind, pod) = change(round * all + n);
            let line = json::line(kind, &json::pod(&pod));
            let due = begin + Duration::from_secs(1) * u32::try_from(n).unwrap() / EVENTS_PER_SECOND as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            sent.mark(&pod);
            changes.blocking_send(line).unwrap();
        }
    });
    sending.await.unwrap();
}
