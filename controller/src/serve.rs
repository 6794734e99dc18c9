//! The gRPC service that enforcers talk to. Does IO.
//!
//! It holds no state but the streams': requests go to the task that owns the engine, and each stream
//! takes what it sends from its node's mailbox when the connection has room for it. So nothing queues
//! up for a node that is slow, and a node that is dead is found out by keepalive.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use durward_proto::wire::control_server::{Control, ControlServer};
use durward_proto::{DecodeError, IdentifyRequest, NodeReport, wire};
use futures::Stream;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::metrics::Metrics;
use crate::stream::NodeStream;
use crate::task::Ask;

/// Nodes send small messages: a hello, versions, lists of addresses, reports.
const MAX_REQUEST_BYTES: usize = 256 << 10;
/// One for the view, some for look-ups and reports.
const MAX_STREAMS_PER_CONNECTION: u32 = 32;
/// A connection that is silent for so long is asked whether it lives,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// and has so long to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// The service.
pub(crate) struct Service {
    pub(crate) asks: mpsc::Sender<Ask>,
    pub(crate) epoch: u64,
    pub(crate) metrics: Arc<Metrics>,
}

/// Serves until `stop` resolves and all streams have ended.
///
/// # Errors
///
/// The transport's, if the listener fails.
pub(crate) async fn serve(
    service: Service,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let control = ControlServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .add_service(control)
        .serve_with_incoming_shutdown(incoming(listener), stop)
        .await
}

/// The connections of nodes. Without `TCP_NODELAY` a change would wait until the node's kernel has confirmed
/// the one before it, and that takes its time.
fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

#[tonic::async_trait]
impl Control for Service {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<wire::ToNode, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::FromNode>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (asks, epoch, metrics) = (self.asks.clone(), self.epoch, self.metrics.clone());
        let stream = NodeStream::new(request.into_inner(), asks, epoch, metrics);
        Ok(Response::new(Box::pin(stream.into_stream())))
    }

    async fn identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        let IdentifyRequest(addresses) = self.read(request)?;
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Identify { addresses, reply }).await?;
        let identities = answer.await.map_err(|_| stopping())?;
        let identities = identities.iter().map(wire::Identity::from).collect();
        Ok(Response::new(wire::IdentifyResponse { identities }))
    }

    async fn report(
        &self,
        request: Request<wire::NodeReport>,
    ) -> Result<Response<wire::ReportReceipt>, Status> {
        let report: NodeReport = self.read(request)?;
        let (reply, answer) = oneshot::channel();
        self.ask(Ask::Report { report, reply }).await?;
        answer.await.map_err(|_| stopping())?.map_err(|unknown| self.refuse(unknown.into()))?;
        Ok(Response::new(wire::ReportReceipt {}))
    }
}

impl Service {
    async fn ask(&self, ask: Ask) -> Result<(), Status> {
        self.asks.send(ask).await.map_err(|_| stopping())
    }

    fn read<W, T: TryFrom<W, Error = DecodeError>>(&self, request: Request<W>) -> Result<T, Status> {
        let refused = |error: DecodeError| self.refuse(Status::invalid_argument(error.to_string()));
        request.into_inner().try_into().map_err(refused)
    }

    fn refuse(&self, status: Status) -> Status {
        debug!(%status, "refused a request");
        self.metrics.requests_refused.inc();
        status
    }
}

/// What a request is told when the task that could answer it is gone.
pub(crate) fn stopping() -> Status {
    Status::unavailable("this controller is stopping: ask again")
}

#[cfg(test)]
mod tests;
