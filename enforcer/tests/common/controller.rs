//! A controller that says what the test wants, over real gRPC.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use durward_proto::wire::control_server::{Control, ControlServer};
use durward_proto::wire::{self, from_node, to_node};
use durward_proto::{
    IdentifyRequest, Identity, NodeReport, NodeView, Patch, PodName, Version, Workload,
    encode::{self, Parts},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::eventually;
use super::node::Node;
use super::traffic::inside;

/// The controller. Gone when it is dropped.
pub struct Controller {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    /// What is said: a version's number, its view, and a message instead of the change to it.
    said: watch::Sender<(u64, NodeView, Option<wire::ToNode>)>,
    acked: watch::Sender<u64>,
    streams: AtomicUsize,
    whole_views: AtomicUsize,
    reports: Mutex<Vec<NodeReport>>,
}

const EPOCH: u64 = 1;

impl Controller {
    /// Listens in the node's network namespace.
    pub fn start(node: &Node, view: NodeView) -> Self {
        Self::start_at(node, "127.0.0.1:0".parse().unwrap(), view)
    }

    pub fn start_at(node: &Node, at: SocketAddr, view: NodeView) -> Self {
        let listener = inside(&node.host(), || TcpListener::bind(at).unwrap());
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared {
            said: watch::Sender::new((1, view, None)),
            acked: watch::Sender::new(0),
            streams: AtomicUsize::new(0),
            whole_views: AtomicUsize::new(0),
            reports: Mutex::default(),
        });
        let service = ControlServer::new(Service(shared.clone()));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        Self { address, shared, _runtime: runtime }
    }

    /// Says another view, and waits until the node has it in its kernel.
    pub fn say(&self, view: NodeView) {
        self.shared.said.send_modify(|said| *said = (said.0 + 1, view, None));
        self.wait_acked();
    }

    /// Says a message instead of the change to a view; the next stream says the view.
    pub fn say_instead(&self, view: NodeView, message: wire::ToNode) {
        self.shared.said.send_modify(|said| *said = (said.0 + 1, view, Some(message)));
    }

    pub fn wait_acked(&self) {
        let number = self.shared.said.borrow().0;
        eventually("the node acknowledges the view", || {
            (*self.shared.acked.borrow() == number).then_some(())
        });
    }

    /// How many streams there were, and how many of them were sent a whole view.
    pub fn streams(&self) -> (usize, usize) {
        (self.shared.streams.load(Ordering::SeqCst), self.shared.whole_views.load(Ordering::SeqCst))
    }

    /// What the node has said of itself.
    pub fn reports(&self) -> Vec<NodeReport> {
        self.shared.reports.lock().unwrap().clone()
    }
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl Control for Service {
    type SubscribeStream = ReceiverStream<Result<wire::ToNode, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::FromNode>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut incoming = request.into_inner();
        let (to_node, outgoing) = mpsc::channel(16);
        let shared = self.0.clone();
        shared.streams.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let first = incoming.message().await.ok().flatten().and_then(|message| message.message);
            let Some(from_node::Message::Hello(hello)) = first else { return };
            let mut said = shared.said.subscribe();
            let (mut number, mut view, _) = said.borrow_and_update().clone();
            let say = |message| Ok(wire::ToNode { message: Some(message) });
            if hello.has != Some(Version { epoch: EPOCH, number }.into()) {
                shared.whole_views.fetch_add(1, Ordering::SeqCst);
                for part in encode::parts(&Patch::between(&NodeView::default(), &view)).encoded() {
                    let _ = to_node.send(say(to_node::Message::Part(part))).await;
                }
            }
            let version = Version { epoch: EPOCH, number };
            let _ = to_node.send(say(to_node::Message::InSync(version.into()))).await;
            loop {
                tokio::select! {
                    message = incoming.message() => match message.ok().flatten().and_then(|m| m.message) {
                        Some(from_node::Message::Acked(version)) => drop(shared.acked.send_replace(version.number)),
                        _ => return,
                    },
                    Ok(()) = said.changed() => {
                        let (next, new, instead) = said.borrow_and_update().clone();
                        let patch = Patch::between(&view, &new);
                        (number, view) = (next, new);
                        let to = Some(Version { epoch: EPOCH, number }.into());
                        if let Some(message) = instead {
                            let _ = to_node.send(Ok(message)).await;
                            continue;
                        }
                        let Parts { first, last, .. } = encode::parts(&patch);
                        let change = wire::Change { to, patch: Some(last) };
                        let parts = first.into_iter().map(to_node::Message::Part);
                        for message in parts.chain([to_node::Message::Change(change)]) {
                            let _ = to_node.send(say(message)).await;
                        }
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        let request = IdentifyRequest::try_from(request.into_inner());
        let IdentifyRequest(addresses) =
            request.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let view = self.0.said.borrow().1.clone();
        let identify = |address| {
            let pod = view.pods.values().find(|pod| pod.addresses.contains(&address));
            let pod = pod.map(|pod| PodName {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                workload: Some(Workload { kind: "Deployment".into(), name: format!("{}s", pod.name).into() }),
            });
            wire::Identity::from(&Identity { pod, since_ms: 0 })
        };
        let identities = addresses.into_iter().map(identify).collect();
        Ok(Response::new(wire::IdentifyResponse { identities }))
    }

    async fn report(
        &self,
        request: Request<wire::NodeReport>,
    ) -> Result<Response<wire::ReportReceipt>, Status> {
        let report = NodeReport::try_from(request.into_inner());
        let report = report.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.0.reports.lock().unwrap().push(report);
        Ok(Response::new(wire::ReportReceipt {}))
    }
}
