//! One node's stream: hello, the view, then what changes in it, as the connection has room. Does IO.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use durward_engine::Detail;
use durward_proto::encode::{self, Parts};
use durward_proto::wire::{self, from_node, to_node};
use futures::Stream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::{Status, Streaming};
use tracing::{debug, info};

use crate::mailbox::{End, Leave, Mailbox};
use crate::metrics::{Metrics, Sent};
use crate::outlet::Opening;
use crate::serve::stopping;
use crate::task::{Ask, Subscription};

/// How long a node may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// One node's stream.
pub(crate) struct NodeStream {
    asks: mpsc::Sender<Ask>,
    epoch: u64,
    metrics: Arc<Metrics>,
    phase: Phase,
}

enum Phase {
    Greeting(Box<Streaming<wire::FromNode>>),
    Talking(Box<Talk>),
    Ended,
}

/// A stream whose node is known.
struct Talk {
    sending: Option<Sending>,
    mailbox: Arc<Mailbox>,
    stream: u64,
    bell: Arc<Notify>,
    /// Why the node's half ended.
    heard_last: oneshot::Receiver<Status>,
    /// Listens to the node's half as long as this half lives; else the stream would never close.
    _listener: JoinSet<()>,
    _leave: Leave,
}

/// What is being sent: a view or a change, and with what it is whole.
struct Sending {
    parts: std::vec::IntoIter<Bytes>,
    last: to_node::Message,
}

impl NodeStream {
    pub(crate) fn new(
        inbound: Streaming<wire::FromNode>,
        asks: mpsc::Sender<Ask>,
        epoch: u64,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { asks, epoch, metrics, phase: Phase::Greeting(Box::new(inbound)) }
    }

    /// The messages to the node; a refusal is the last one.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<wire::ToNode, Status>> {
        futures::stream::unfold(self, |mut this| async move {
            let message = this.next().await?;
            let message = message.map(|message| wire::ToNode { message: Some(message) });
            if let Err(status) = &message {
                debug!(%status, "a node's stream is ended");
                this.phase = Phase::Ended;
            }
            Some((message, this))
        })
    }

    async fn next(&mut self) -> Option<Result<to_node::Message, Status>> {
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        let mut talk = match phase {
            Phase::Greeting(inbound) => match self.greet(*inbound).await {
                Ok(talk) => talk,
                Err(status) => {
                    self.metrics.requests_refused.inc();
                    return Some(Err(status));
                }
            },
            Phase::Talking(talk) => talk,
            Phase::Ended => return None,
        };
        let message = talk.next(self.epoch, &self.metrics).await;
        self.phase = Phase::Talking(talk);
        Some(message)
    }

    async fn greet(&self, mut inbound: Streaming<wire::FromNode>) -> Result<Box<Talk>, Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("FromNode.hello: none came in time"))??;
        let wire::Hello { node, has, backends } = hello(first)?;
        let detail = if backends { Detail::Backends } else { Detail::Frontends };
        let node: Arc<str> = node.into();
        let has = has.filter(|version| version.epoch == self.epoch).map(|version| version.number);
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Subscribe { node: node.clone(), has, detail, reply };
        self.asks.send(ask).await.map_err(|_| stopping())?;
        let Subscription { mailbox, stream, opening, bell, leave } =
            answer.await.map_err(|_| Status::from(End::Replaced))??;
        info!(node = &*node, has, "a node's stream begins");
        let (last, heard_last) = oneshot::channel();
        let metrics = self.metrics.clone();
        let listener = Listener { mailbox: mailbox.clone(), metrics, stream, epoch: self.epoch };
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            // If nobody hears the reason, the stream has ended already.
            let _ = last.send(listener.listen(inbound).await);
        });
        Ok(Box::new(Talk {
            sending: Some(self.open(opening)),
            bell,
            mailbox,
            stream,
            heard_last,
            _listener: listening,
            _leave: leave,
        }))
    }

    fn open(&self, opening: Opening) -> Sending {
        let (parts, number) = match opening {
            Opening::Resume(number) => {
                self.metrics.sent(Sent::Resumption);
                (vec![], number)
            }
            Opening::Whole(patch, number) => {
                self.metrics.sent(Sent::Snapshot);
                (encode::parts(&patch).encoded(), number)
            }
        };
        let in_sync = wire::Version { epoch: self.epoch, number };
        Sending { parts: parts.into_iter(), last: to_node::Message::InSync(in_sync) }
    }
}

impl Talk {
    async fn next(&mut self, epoch: u64, metrics: &Metrics) -> Result<to_node::Message, Status> {
        loop {
            if let Some(mut sending) = self.sending.take() {
                // Else tonic would gather parts in the buffer that it keeps.
                tokio::task::yield_now().await;
                let part = sending.parts.next();
                self.mailbox.sent(self.stream, part.is_none());
                let Some(part) = part else { return Ok(sending.last) };
                self.sending = Some(sending);
                return Ok(to_node::Message::Part(part));
            }
            if let Some((number, patch)) = self.mailbox.take(self.stream)? {
                let Parts { first, last, .. } = encode::parts(&patch);
                let to = Some(wire::Version { epoch, number });
                let last = to_node::Message::Change(wire::Change { to, patch: Some(last) });
                metrics.sent(Sent::Change);
                if first.is_empty() {
                    self.mailbox.sent(self.stream, true);
                    return Ok(last);
                }
                self.sending = Some(Sending { parts: first.into_iter(), last });
                continue;
            }
            tokio::select! {
                () = self.bell.notified() => {}
                last = &mut self.heard_last => return Err(last.unwrap_or_else(|_| stopping())),
            }
        }
    }
}

impl From<End> for Status {
    fn from(end: End) -> Self {
        match end {
            End::Replaced | End::Behind => Self::aborted(end.to_string()),
            End::Closed => Self::unavailable(end.to_string()),
        }
    }
}

fn hello(first: Option<wire::FromNode>) -> Result<wire::Hello, Status> {
    let first =
        first.ok_or_else(|| Status::invalid_argument("FromNode.hello: the stream ended before it"))?;
    match first.message {
        Some(from_node::Message::Hello(hello)) if hello.node.is_empty() => {
            Err(Status::invalid_argument("Hello.node: it is empty; say the node's name"))
        }
        Some(from_node::Message::Hello(hello)) => Ok(hello),
        Some(from_node::Message::Acked(_)) => {
            Err(Status::invalid_argument("FromNode.acked: a stream begins with hello"))
        }
        None => Err(unknown_message()),
    }
}

fn unknown_message() -> Status {
    Status::invalid_argument("FromNode.message: missing, or one that this controller does not know")
}

/// Listens to the node's half of the stream.
struct Listener {
    mailbox: Arc<Mailbox>,
    metrics: Arc<Metrics>,
    stream: u64,
    epoch: u64,
}

impl Listener {
    /// Hears acknowledgements, until there are no more; gives the reason.
    async fn listen(self, mut inbound: Streaming<wire::FromNode>) -> Status {
        loop {
            let message = match inbound.message().await {
                Ok(Some(message)) => message.message,
                Ok(None) => return Status::ok("the node ended the stream"),
                Err(status) => return status,
            };
            let version = match message {
                Some(from_node::Message::Acked(version)) if version.epoch == self.epoch => version,
                Some(from_node::Message::Acked(version)) => {
                    let wire::Version { epoch, .. } = version;
                    return Status::invalid_argument(format!(
                        "Version.epoch: {epoch} is not this controller's"
                    ));
                }
                Some(from_node::Message::Hello(_)) => {
                    return Status::invalid_argument("FromNode.hello: there was one already");
                }
                None => return unknown_message(),
            };
            if let Some(heard) = self.mailbox.acknowledge(self.stream, version.number) {
                self.metrics.propagation.observe(heard.elapsed().as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use durward_proto::Patch;
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::room::Room;

    #[tokio::test]
    async fn parts_of_a_view_leave_one_by_one() {
        const PARTS: usize = 3;
        let (mailbox, stream) = (Arc::new(Mailbox::new(1, Detail::Frontends, Room::new(1))), 1);
        let (_, bell) = mailbox.open(stream, None, Patch::default);
        let sending = Sending {
            parts: vec![Bytes::new(); PARTS - 1].into_iter(),
            last: to_node::Message::InSync(wire::Version { epoch: 7, number: 1 }),
        };
        let (_last, heard_last) = oneshot::channel();
        let talk = Talk {
            sending: Some(sending),
            mailbox: mailbox.clone(),
            stream,
            bell,
            heard_last,
            _listener: JoinSet::new(),
            _leave: Leave { mailbox, stream, node: "node-1".into() },
        };
        let phase = Phase::Talking(Box::new(talk));
        let talking = NodeStream { asks: mpsc::channel(1).0, epoch: 7, metrics: Arc::default(), phase };
        let mut messages = pin!(talking.into_stream());
        for _ in 0..PARTS {
            // What encodes sends what it has when it must wait.
            assert!(messages.next().now_or_never().is_none());
            assert!(messages.next().await.is_some_and(|part| part.is_ok()));
        }
    }
}
