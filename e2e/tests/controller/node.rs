//! A node as the controller sees it: it subscribes, applies what it hears, and acknowledges (IO).

use std::net::SocketAddr;
use std::time::Duration;

use durward_e2e::PATIENCE;
use durward_proto::wire::control_client::ControlClient;
use durward_proto::wire::{self, FromNode, Hello, from_node};
use durward_proto::{NodeView, ToNode, Version};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

/// A node that has subscribed.
pub(crate) struct Node {
    pub(crate) view: NodeView,
    version: Option<Version>,
    outbound: mpsc::Sender<FromNode>,
    inbound: Streaming<wire::ToNode>,
}

impl Node {
    /// Subscribes, as soon as the controller knows of the node, and hears the whole view.
    pub(crate) async fn subscribe(controller: SocketAddr, name: &str) -> Self {
        let subscribed = tokio::time::timeout(PATIENCE, async {
            loop {
                match Self::try_subscribe(controller, name).await {
                    Ok(node) => return node,
                    Err(status) if status.code() == Code::NotFound => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(status) => panic!("{name} cannot subscribe: {status}"),
                }
            }
        });
        subscribed.await.unwrap_or_else(|_| panic!("{name} was not let in within {PATIENCE:?}"))
    }

    async fn try_subscribe(controller: SocketAddr, name: &str) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{controller}")).unwrap();
        let mut client = ControlClient::new(endpoint.connect().await.unwrap());
        let (outbound, messages) = mpsc::channel(4);
        let hello = Hello { node: name.to_owned(), has: None, backends: false };
        outbound.send(FromNode { message: Some(from_node::Message::Hello(hello)) }).await.unwrap();
        let inbound = client.subscribe(ReceiverStream::new(messages)).await?.into_inner();
        let mut node = Self { view: NodeView::default(), version: None, outbound, inbound };
        node.hear().await?;
        Ok(node)
    }

    /// Hears until the view is whole again.
    async fn hear(&mut self) -> Result<(), Status> {
        loop {
            let message = self.inbound.message().await?;
            let message = message.ok_or_else(|| Status::unavailable("the stream ended"))?;
            let version = match ToNode::try_from(message).unwrap() {
                ToNode::Part(patch) => {
                    self.view.patch(patch).unwrap();
                    continue;
                }
                ToNode::InSync(version) => version,
                ToNode::Change { to, patch } => {
                    self.view.patch(patch).unwrap();
                    to
                }
            };
            self.version = Some(version);
            return Ok(());
        }
    }

    /// Hears until the view is so.
    pub(crate) async fn sees(&mut self, what: &str, is_so: impl Fn(&NodeView) -> bool) {
        let heard = tokio::time::timeout(PATIENCE, async {
            while !is_so(&self.view) {
                self.hear().await.unwrap_or_else(|status| panic!("waiting for {what}: {status}"));
            }
        });
        let heard = heard.await;
        assert!(heard.is_ok(), "{what} did not reach the node within {PATIENCE:?}; it has {:#?}", self.view);
    }

    /// Says that what was heard is in the kernel.
    pub(crate) async fn acknowledge(&self) {
        let acked = from_node::Message::Acked(self.version.unwrap().into());
        self.outbound.send(FromNode { message: Some(acked) }).await.unwrap();
    }

    /// Hears until the stream ends; whether the reason is that the controller went away in order.
    pub(crate) async fn is_told_to_come_back(&mut self) -> bool {
        let ended = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Err(status) = self.hear().await {
                    return status.code() == Code::Unavailable;
                }
            }
        });
        ended.await.expect("the stream ends in time")
    }
}
