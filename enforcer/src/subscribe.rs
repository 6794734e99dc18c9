//! The controller's stream: from messages to whole views. IO.
//!
//! The newest whole view is published; whoever reads slowly sees the newest, not a queue. What cannot be
//! understood is counted and named, the stream is opened anew and asks for a whole view; what is enforced
//! stays as it is meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use durward_proto::wire::control_client::ControlClient;
use durward_proto::wire::{self, from_node};
use durward_proto::{DecodeError, NodeView, PatchError, ToNode, Version, ViewError};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::metrics::Metrics;
use crate::services::Judging;
use crate::status::{Problem, Status};

/// A whole view, as the controller said it.
#[derive(Clone, Debug)]
pub struct Synced {
    /// Its version.
    pub version: Version,
    /// What it says.
    pub view: Arc<NodeView>,
    /// When the message came that made it.
    pub arrived: Instant,
}

/// Why a stream ended.
#[derive(Debug, Error)]
pub enum StreamError {
    /// It broke, or could not be opened.
    #[error("cannot hear the controller: {message}: look whether it runs and can be reached from this node", message = told(.0))]
    Broken(Box<tonic::Status>),
    /// The controller ended it.
    #[error("the controller ended the stream")]
    Ended,
    /// A message that this version does not understand.
    #[error("the controller's message is not understood: {0}")]
    Decode(#[from] DecodeError),
    /// A patch for another view.
    #[error("the controller lost track of this node: {0}")]
    Patch(#[from] PatchError),
    /// A view with holes.
    #[error("the controller's view is not whole: {0}")]
    View(#[from] ViewError),
    /// A message where it has no place.
    #[error("the controller's message has no place here: {0}")]
    Order(&'static str),
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Broken(Box::new(status))
    }
}

impl StreamError {
    /// Whether the view that we have may not be what the controller thinks we have.
    fn taints(&self) -> bool {
        !matches!(self, Self::Broken(_) | Self::Ended)
    }
}

/// A status with its causes: tonic's own words stop at "transport error".
fn told(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The shortest and the longest wait before the stream is opened again.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Who subscribes, and where what it hears goes.
pub struct Subscriber {
    /// The way to the controller.
    pub channel: Channel,
    /// This node's name.
    pub node: String,
    /// Takes each whole view.
    pub views: watch::Sender<Option<Synced>>,
    /// The version that the kernel has.
    pub applied: watch::Receiver<Option<Version>>,
    /// How calls to Services are judged, on which depends what must be known of them; none until that is decided.
    pub judging: watch::Receiver<Option<Judging>>,
    /// Where problems are told.
    pub status: Arc<Status>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

impl Subscriber {
    /// Subscribes, again and again.
    pub async fn run(mut self) {
        let (mut wait, mut trusted) = (WAITS.0, true);
        loop {
            let began = Instant::now();
            let error = match self.listen(trusted).await {
                // Something else must be known from now on: no reason to wait.
                Ok(()) => continue,
                Err(error) => error,
            };
            self.metrics.stream_errors(&error).inc();
            self.status.raise(Problem::Controller, &error);
            // What is enforced stays; but where it may not be what the controller thinks that we have, the
            // next stream must send a whole view.
            trusted = !error.taints();
            wait = if began.elapsed() > WAITS.1 { WAITS.0 } else { (wait * 2).min(WAITS.1) };
            // Half of it by chance, so that the nodes do not all come at once.
            tokio::time::sleep(wait.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        }
    }

    /// One stream, until it breaks, or the node needs to know something else.
    async fn listen(&mut self, trusted: bool) -> Result<(), StreamError> {
        let Ok(judging) = self.judging.wait_for(Option::is_some).await.map(|judging| *judging) else {
            return Err(StreamError::Ended);
        };
        self.judging.mark_unchanged();
        let had = self.views.borrow().clone().filter(|_| trusted);
        let hello = wire::Hello {
            node: self.node.clone(),
            has: had.as_ref().map(|view| view.version.into()),
            backends: judging == Some(Judging::Conservative),
        };
        let (to_controller, outgoing) = mpsc::channel(4);
        let say = |message| wire::FromNode { message: Some(message) };
        // The channel is new and empty, and its other end is below.
        let _ = to_controller.try_send(say(from_node::Message::Hello(hello)));
        let mut client = ControlClient::new(self.channel.clone());
        let mut incoming = client.subscribe(ReceiverStream::new(outgoing)).await?.into_inner();

        let mut listener = Listener { had, parts: None, synced: false };
        self.applied.mark_changed();
        loop {
            tokio::select! {
                message = incoming.message() => {
                    let message = ToNode::try_from(message?.ok_or(StreamError::Ended)?)?;
                    if let Some(synced) = listener.hear(message)? {
                        self.status.clear(&Problem::Controller);
                        self.metrics.view_version.set(i64::try_from(synced.version.number).unwrap_or(i64::MAX));
                        self.views.send_replace(Some(synced));
                    }
                }
                Ok(()) = self.judging.changed() => return Ok(()),
                Ok(()) = self.applied.changed() => {
                    let applied = *self.applied.borrow_and_update();
                    if let Some(version) = applied.filter(|_| listener.synced) {
                        let acked = say(from_node::Message::Acked(version.into()));
                        to_controller.send(acked).await.map_err(|_| StreamError::Ended)?;
                    }
                }
            }
        }
    }
}

/// What has been heard on one stream. Pure.
struct Listener {
    /// What we had when it began, and since then what we have.
    had: Option<Synced>,
    /// The view as far as it was heard in parts: of a snapshot, and after that of a change.
    parts: Option<NodeView>,
    synced: bool,
}

impl Listener {
    /// The whole view that a message makes, if it makes one.
    fn hear(&mut self, message: ToNode) -> Result<Option<Synced>, StreamError> {
        let arrived = Instant::now();
        let (version, view) = match message {
            ToNode::Part(patch) => {
                let before = self.had.as_ref().filter(|_| self.synced);
                let before = || before.map(|had| NodeView::clone(&had.view)).unwrap_or_default();
                self.parts.get_or_insert_with(before).patch(patch)?;
                return Ok(None);
            }
            ToNode::InSync(_) if self.synced => {
                return Err(StreamError::Order("in_sync for the second time"));
            }
            ToNode::InSync(version) => {
                self.synced = true;
                match (self.parts.take(), self.had.take()) {
                    (Some(view), _) => (version, Arc::new(view)),
                    (None, Some(had)) => (version, had.view),
                    (None, None) => return Err(StreamError::Order("in_sync before any part of a snapshot")),
                }
            }
            ToNode::Change { .. } if !self.synced => {
                return Err(StreamError::Order("a change before in_sync"));
            }
            ToNode::Change { to, patch } => match (self.parts.take(), self.had.take()) {
                (Some(mut view), _) => {
                    view.patch(patch)?;
                    (to, Arc::new(view))
                }
                (None, Some(had)) => (to, Arc::new(had.view.patched(patch)?)),
                (None, None) => return Err(StreamError::Order("a change to nothing")),
            },
        };
        view.check()?;
        let synced = Synced { version, view, arrived };
        self.had = Some(synced.clone());
        Ok(Some(synced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_proto::{Logging, Patch};

    fn version(number: u64) -> Version {
        Version { epoch: 7, number }
    }

    fn logging(generation: i64) -> Patch {
        Patch { logging: Some(Logging { generation, ..Logging::default() }), ..Patch::default() }
    }

    fn heard(listener: &mut Listener, message: ToNode) -> Option<(u64, i64)> {
        let synced = listener.hear(message).unwrap();
        synced.map(|synced| (synced.version.number, synced.view.logging.generation))
    }

    #[test]
    fn a_view_is_published_when_it_is_whole_and_after_each_change() {
        let mut listener = Listener { had: None, parts: None, synced: false };
        assert_eq!(heard(&mut listener, ToNode::Part(logging(1))), None);
        assert_eq!(heard(&mut listener, ToNode::InSync(version(3))), Some((3, 1)));
        let change = ToNode::Change { to: version(4), patch: logging(2) };
        assert_eq!(heard(&mut listener, change), Some((4, 2)));
    }

    #[test]
    fn a_node_that_has_the_view_is_in_sync_without_hearing_it_again() {
        let had = Synced { version: version(3), view: Arc::default(), arrived: Instant::now() };
        let mut listener = Listener { had: Some(had), parts: None, synced: false };
        assert_eq!(heard(&mut listener, ToNode::InSync(version(3))), Some((3, 0)));
    }

    #[test]
    fn a_change_in_parts_is_published_when_it_is_whole() {
        let address = |host| std::net::IpAddr::from([10, 0, 0, host]);
        let atom = durward_proto::AtomId(durward_proto::Digest([1; 16]));
        let of = |hosts: &[u8]| NodeView {
            addresses: hosts.iter().map(|&host| (address(host), atom)).collect(),
            ..NodeView::default()
        };
        let part = |old: &[u8], new: &[u8]| Patch::between(&of(old), &of(new));
        let had = Synced { version: version(3), view: Arc::new(of(&[1, 2])), arrived: Instant::now() };
        let mut listener = Listener { had: Some(had), parts: None, synced: false };
        assert_eq!(heard(&mut listener, ToNode::InSync(version(3))), Some((3, 0)));
        assert!(listener.hear(ToNode::Part(part(&[1, 2], &[2]))).unwrap().is_none());
        assert!(listener.hear(ToNode::Part(part(&[2], &[2, 3]))).unwrap().is_none());
        let change = |to, patch| ToNode::Change { to: version(to), patch };
        let synced = listener.hear(change(4, part(&[2, 3], &[2, 3, 4]))).unwrap().unwrap();
        assert_eq!((synced.version, &*synced.view), (version(4), &of(&[2, 3, 4])));
        // The next one begins with what was there then.
        let synced = listener.hear(change(5, part(&[2, 3, 4], &[4]))).unwrap().unwrap();
        assert_eq!(*synced.view, of(&[4]));
    }

    #[test]
    fn a_message_out_of_place_is_refused() {
        let mut listener = Listener { had: None, parts: None, synced: false };
        let change = ToNode::Change { to: version(4), patch: Patch::default() };
        assert!(matches!(listener.hear(change), Err(StreamError::Order(_))));
        assert!(matches!(listener.hear(ToNode::InSync(version(1))), Err(StreamError::Order(_))));
        let mut listener = Listener { had: None, parts: None, synced: false };
        assert!(heard(&mut listener, ToNode::Part(logging(1))).is_none());
        assert_eq!(heard(&mut listener, ToNode::InSync(version(1))), Some((1, 1)));
        assert!(matches!(listener.hear(ToNode::InSync(version(2))), Err(StreamError::Order(_))));
    }
}
