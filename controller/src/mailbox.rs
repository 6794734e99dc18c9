//! Between the task that owns the engine and the stream of one node. Pure, but for the clock and for waking the stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use durward_engine::Detail;
use durward_proto::Patch;
use tokio::sync::Notify;
use tracing::info;

use crate::outlet::{Lost, Opening, Outlet};
use crate::room::{Load, Room};

/// Nodes that hang must not keep others from being served: what waits for longer is dropped, and what is being sent
/// without progress counts no more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a stream ends that the node did not end itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    /// The node opened another one.
    #[error("a newer stream of this node took over")]
    Replaced,
    /// More changes came than were taken.
    #[error(
        "this node is too far behind, or all are told too much at once: subscribe again, for the whole view"
    )]
    Behind,
    /// The controller forgot the node's view, or stops.
    #[error("the controller has closed this view: subscribe again")]
    Closed,
}

/// Tells, when a stream is dropped for whatever reason, that it has ended: also where its node went before it began.
#[derive(Debug)]
pub(crate) struct Leave {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) stream: u64,
    pub(crate) node: Arc<str>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.mailbox.leave(self.stream);
        info!(node = &*self.node, "a node's stream has ended");
    }
}

/// One node's outlet, shared with the stream that is open.
#[derive(Debug)]
pub(crate) struct Mailbox {
    detail: Detail,
    room: Arc<Room>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    outlet: Outlet,
    /// What the outlet takes of the room.
    waiting: Load,
    /// Since when something has waited.
    since: Option<Instant>,
    /// What the stream takes of the room, and when it last had some of it.
    sending: Option<(Load, Instant)>,
    /// The stream that is open.
    stream: Option<Open>,
    closed: bool,
}

#[derive(Debug)]
struct Open {
    number: u64,
    bell: Arc<Notify>,
}

impl Inner {
    fn is_open(&self, stream: u64) -> bool {
        self.stream.as_ref().is_some_and(|open| open.number == stream)
    }

    fn ring(&self) {
        if let Some(open) = &self.stream {
            open.bell.notify_one();
        }
    }

    /// What waits has changed.
    fn weigh(&mut self, now: Instant) {
        let weight = self.outlet.waiting();
        self.waiting.set(weight);
        self.since = (weight > 0).then(|| self.since.unwrap_or(now));
    }
}

impl Mailbox {
    /// The mailbox of a node whose view is version `first`.
    pub(crate) fn new(first: u64, detail: Detail, room: Arc<Room>) -> Self {
        let (outlet, waiting) = (Outlet::new(first), Load::of(&room, 0));
        let inner = Inner { outlet, waiting, since: None, sending: None, stream: None, closed: false };
        Self { detail, room, inner: Mutex::new(inner) }
    }

    /// How much of Services the view tells.
    pub(crate) fn detail(&self) -> Detail {
        self.detail
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held; if it did, the next patch would show that it was broken.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view changes. See [`Outlet::push`].
    pub(crate) fn push(&self, patch: Patch, heard: Instant) -> Result<(), Lost> {
        let mut inner = self.inner();
        let room = inner.stream.is_some() && !self.room.is_crowded();
        let pushed = inner.outlet.push(patch, heard, room);
        inner.weigh(Instant::now());
        inner.ring();
        pushed
    }

    /// A stream begins, and replaces the one before it. See [`Outlet::open`]. Its bell rings whenever there may
    /// be something to take.
    pub(crate) fn open(
        &self,
        stream: u64,
        has: Option<u64>,
        whole: impl FnOnce() -> Patch,
    ) -> (Opening, Arc<Notify>) {
        let mut inner = self.inner();
        inner.ring();
        let bell = Arc::new(Notify::new());
        inner.stream = Some(Open { number: stream, bell: bell.clone() });
        let opening = inner.outlet.open(has, whole);
        let now = Instant::now();
        inner.weigh(now);
        inner.sending = match &opening {
            Opening::Whole(patch, _) => Some((Load::of(&self.room, patch.weight()), now)),
            Opening::Resume(_) => None,
        };
        (opening, bell)
    }

    /// The patch that a stream is to send now, if there is one. When it has, it says so.
    pub(crate) fn take(&self, stream: u64) -> Result<Option<(u64, Patch)>, End> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(End::Closed);
        }
        if !inner.is_open(stream) {
            return Err(End::Replaced);
        }
        if inner.outlet.is_lost() {
            return Err(End::Behind);
        }
        let taken = inner.outlet.take();
        if taken.is_some() {
            let waiting = std::mem::replace(&mut inner.waiting, Load::of(&self.room, 0));
            (inner.since, inner.sending) = (None, Some((waiting, Instant::now())));
        }
        Ok(taken)
    }

    /// Whether a stream of a node that has this version, and needs so much, would be told no whole view.
    pub(crate) fn resumes(&self, has: Option<u64>, detail: Detail) -> bool {
        self.detail == detail && self.inner().outlet.resumes(has)
    }

    /// A stream has sent some of what it took, or all.
    pub(crate) fn sent(&self, stream: u64, all: bool) {
        let mut inner = self.inner();
        if inner.is_open(stream) {
            inner.sending = inner.sending.take().filter(|_| !all).map(|(load, _)| (load, Instant::now()));
        }
    }

    /// Gives up what a node that hangs keeps from others.
    pub(crate) fn expire(&self, now: Instant) {
        let mut inner = self.inner();
        let is_over = |since: Instant| now.duration_since(since) > PATIENCE;
        inner.sending.take_if(|(_, since)| is_over(*since));
        if inner.since.is_some_and(is_over) {
            inner.outlet.give_up();
            inner.weigh(now);
            inner.ring();
        }
    }

    /// A stream ends.
    pub(crate) fn leave(&self, stream: u64) {
        let mut inner = self.inner();
        if inner.is_open(stream) {
            (inner.stream, inner.sending) = (None, None);
            inner.outlet.give_up();
            inner.weigh(Instant::now());
        }
    }

    /// The mailbox is given up: its stream ends.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        (inner.closed, inner.sending) = (true, None);
        inner.waiting.set(0);
        inner.ring();
    }

    /// The node has a version in its kernel. See [`Outlet::acknowledge`].
    pub(crate) fn acknowledge(&self, stream: u64, number: u64) -> Option<Instant> {
        let mut inner = self.inner();
        if inner.is_open(stream) { inner.outlet.acknowledge(number) } else { None }
    }

    /// Whether a stream is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.inner().stream.is_some()
    }

    /// Whether the node has the logging that is in force.
    pub(crate) fn runs_logging(&self) -> bool {
        self.inner().outlet.runs_logging()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use durward_proto::{AtomId, Digest};
    use futures::FutureExt;

    use super::*;

    const LATER: Duration = Duration::from_secs(31);

    fn addresses(count: u32) -> Patch {
        let address = |host: u32| (IpAddr::V4(host.into()), AtomId(Digest([1; 16])));
        let mut patch = Patch::default();
        patch.addresses.put = (0..count).map(address).collect();
        patch
    }

    /// A mailbox with stream 1, which was told 5 addresses and has sent them, and room for 100.
    fn opened() -> (Mailbox, Arc<Room>, Arc<Notify>) {
        let room = Room::new(100);
        let mailbox = Mailbox::new(1, Detail::Frontends, room.clone());
        let (_, bell) = mailbox.open(1, None, || addresses(5));
        assert_eq!(room.taken(), 5);
        mailbox.sent(1, false);
        assert_eq!(room.taken(), 5);
        mailbox.sent(1, true);
        assert_eq!(room.taken(), 0);
        (mailbox, room, bell)
    }

    fn push(mailbox: &Mailbox, count: u32) -> Result<(), Lost> {
        mailbox.push(addresses(count), Instant::now())
    }

    #[test]
    fn what_waits_and_what_is_sent_takes_room() {
        let (mailbox, room, _) = opened();
        push(&mailbox, 300).unwrap();
        push(&mailbox, 10).unwrap();
        assert_eq!(room.taken(), 300);
        assert!(mailbox.take(1).unwrap().is_some() && room.taken() == 300);
        push(&mailbox, 10).unwrap();
        assert_eq!((room.taken(), push(&mailbox, 300)), (310, Err(Lost::Crowded)));
        assert!(room.taken() == 300 && mailbox.take(1) == Err(End::Behind));
        // Another stream takes over, then the view is closed.
        mailbox.open(2, Some(1), || addresses(7));
        assert_eq!(room.taken(), 7);
        mailbox.sent(1, true);
        mailbox.leave(1);
        assert_eq!(room.taken(), 7);
        push(&mailbox, 3).unwrap();
        mailbox.close();
        assert!(room.taken() == 0 && mailbox.take(2) == Err(End::Closed));
    }

    #[test]
    fn little_waits_for_a_node_that_is_away() {
        let (mailbox, room, _) = opened();
        push(&mailbox, 300).unwrap();
        mailbox.leave(1);
        assert!(room.taken() == 0 && !mailbox.resumes(Some(1), Detail::Frontends));
        mailbox.open(2, None, Patch::default);
        mailbox.leave(2);
        push(&mailbox, 200).unwrap();
        assert!(room.taken() == 200 && mailbox.resumes(Some(2), Detail::Frontends));
        assert!(!mailbox.resumes(Some(2), Detail::Backends));
        assert_eq!(push(&mailbox, 300), Err(Lost::Crowded));
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn who_hangs_takes_room_for_a_while_only() {
        let (mailbox, room, bell) = opened();
        push(&mailbox, 40).unwrap();
        mailbox.take(1).unwrap();
        push(&mailbox, 300).unwrap();
        let is_rung = || bell.notified().now_or_never().is_some();
        assert!(is_rung() && !is_rung());
        mailbox.expire(Instant::now());
        assert_eq!(room.taken(), 340);
        mailbox.expire(Instant::now() + LATER);
        assert!(room.taken() == 0 && is_rung() && mailbox.take(1) == Err(End::Behind));
    }
}
