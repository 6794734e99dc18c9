//! Between the task that owns the engine and the stream of one node. Pure, but for waking the stream.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use durward_engine::Detail;
use durward_proto::{NodeView, Patch};
use tokio::sync::watch;

use crate::outlet::{Lost, Opening, Outlet};

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

/// One node's outlet, shared with the stream that is open.
#[derive(Debug)]
pub(crate) struct Mailbox {
    detail: Detail,
    inner: Mutex<Inner>,
    bell: watch::Sender<()>,
}

#[derive(Debug)]
struct Inner {
    outlet: Outlet,
    /// The stream that is open.
    stream: Option<u64>,
    closed: bool,
}

impl Mailbox {
    /// The mailbox of a node whose view is version `first`.
    pub(crate) fn new(first: u64, detail: Detail) -> Self {
        let inner = Inner { outlet: Outlet::new(first), stream: None, closed: false };
        Self { detail, inner: Mutex::new(inner), bell: watch::Sender::new(()) }
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
        let pushed = self.inner().outlet.push(patch, heard);
        self.bell.send_replace(());
        pushed
    }

    /// A stream begins, and replaces the one before it. See [`Outlet::open`].
    pub(crate) fn open(&self, stream: u64, has: Option<u64>, whole: impl FnOnce() -> NodeView) -> Opening {
        let mut inner = self.inner();
        inner.stream = Some(stream);
        let opening = inner.outlet.open(has, whole);
        self.bell.send_replace(());
        opening
    }

    /// The patch that a stream is to send now, if there is one.
    pub(crate) fn take(&self, stream: u64) -> Result<Option<(u64, Patch)>, End> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(End::Closed);
        }
        if inner.stream != Some(stream) {
            return Err(End::Replaced);
        }
        if inner.outlet.is_lost() {
            return Err(End::Behind);
        }
        Ok(inner.outlet.take())
    }

    /// The stream could not send what it took: the next one begins with the whole view.
    pub(crate) fn forget(&self, stream: u64) {
        let mut inner = self.inner();
        if inner.stream == Some(stream) {
            inner.outlet.forget();
        }
    }

    /// A stream ends.
    pub(crate) fn leave(&self, stream: u64) {
        let mut inner = self.inner();
        if inner.stream == Some(stream) {
            inner.stream = None;
        }
    }

    /// The mailbox is given up: its stream ends.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.bell.send_replace(());
    }

    /// The node has a version in its kernel. See [`Outlet::acknowledge`].
    pub(crate) fn acknowledge(&self, stream: u64, number: u64) -> Option<Instant> {
        let mut inner = self.inner();
        if inner.stream == Some(stream) { inner.outlet.acknowledge(number) } else { None }
    }

    /// Whether a stream is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.inner().stream.is_some()
    }

    /// Whether the node has the logging that is in force.
    pub(crate) fn runs_logging(&self) -> bool {
        self.inner().outlet.runs_logging()
    }

    /// Rings whenever there may be something to take.
    pub(crate) fn bell(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }
}
