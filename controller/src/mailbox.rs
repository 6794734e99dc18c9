//! Between the task that owns the engine and the stream of one node. Pure, but for waking the stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use durward_engine::Detail;
use durward_proto::Patch;
use tokio::sync::Notify;
use tracing::info;

use crate::outlet::{Lost, Opening, Outlet};
use crate::room::{Load, Room};

/// What takes longer to be sent counts no more: nodes that hang must not keep others from being served.
const MAX_SENDING: Duration = Duration::from_secs(30);

/// Why a stream ends that the node did not end itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    /// The node opened another one.
    #[error("a newer stream of this node took over")]
    Replaced,
    /// More changes came than were taken.
    #[error("this node is too far behind: subscribe again, for the whole view")]
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
    /// What the stream takes of it, and since when.
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
}

impl Mailbox {
    /// The mailbox of a node whose view is version `first`.
    pub(crate) fn new(first: u64, detail: Detail, room: Arc<Room>) -> Self {
        let (outlet, waiting) = (Outlet::new(first), Load::of(&room, 0));
        let inner = Inner { outlet, waiting, sending: None, stream: None, closed: false };
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
        let pushed = inner.outlet.push(patch, heard, !self.room.is_full());
        let waiting = inner.outlet.waiting();
        inner.waiting.set(waiting);
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
        if let Opening::Whole(patch, _) = &opening {
            inner.waiting.set(0);
            inner.sending = Some((Load::of(&self.room, patch.len()), Instant::now()));
        }
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
            inner.sending = Some((waiting, Instant::now()));
        }
        Ok(taken)
    }

    /// A stream has sent what it had to.
    pub(crate) fn sent(&self, stream: u64) {
        let mut inner = self.inner();
        if inner.is_open(stream) {
            inner.sending = None;
        }
    }

    /// What takes very long to be sent counts no more.
    pub(crate) fn expire(&self, now: Instant) {
        self.inner().sending.take_if(|(_, since)| now.duration_since(*since) > MAX_SENDING);
    }

    /// A stream ends.
    pub(crate) fn leave(&self, stream: u64) {
        let mut inner = self.inner();
        if inner.is_open(stream) {
            (inner.stream, inner.sending) = (None, None);
        }
    }

    /// The mailbox is given up: its stream ends.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
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
