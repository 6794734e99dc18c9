//! Starts everything, and ends it. Does IO.

use std::fmt::Debug;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use durward_engine::object::Key;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ApiResource};
use kube::{Client, Resource};
use nix::errno::Errno;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tracing::info;

use crate::config::Config;
use crate::event::{self, Notices};
use crate::health::{self, Health};
use crate::initial;
use crate::keeper::Keeper;
use crate::logging::Progress;
use crate::metrics::{Kind, Metrics};
use crate::room::{self, Room};
use crate::serve::{self, Service};
use crate::service;
use crate::task::{Change, Task};
use crate::translate;
use crate::watch::{Surroundings, Translation, Watch};

/// How many changes can wait for the task; then the watches are read more slowly.
const MAX_CHANGES_WAITING: usize = 8192;
/// How many requests can wait for the task.
const MAX_ASKS_WAITING: usize = 1024;
/// The longest wait before a watch is tried again, without its jitter.
const SLOWEST_RETRY: Duration = Duration::from_secs(5);

/// How long nodes have to let go of their connections when the daemon ends.
const GRACE: Duration = Duration::from_secs(5);

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another controller on this node?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The gRPC server ended.
    #[error("the gRPC server failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The HTTP server ended.
    #[error("the server of metrics failed: {0}")]
    Http(#[source] io::Error),
    /// A part of the daemon ended that never should.
    #[error("the daemon's {0} ended unexpectedly: this is a bug, please report it with the log")]
    Ended(&'static str),
}

/// The sockets that the daemon listens on.
#[derive(Debug)]
pub struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
}

impl Listeners {
    /// Listens; nobody is served yet.
    ///
    /// # Errors
    ///
    /// [`RunError::Listen`] names the address.
    pub async fn bind(config: &Config) -> Result<Self, RunError> {
        let bind = async |address: SocketAddr| {
            let bound = match TcpListener::bind(address).await {
                Err(error) if without_ipv6(&error) && address.is_ipv6() && address.ip().is_unspecified() => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
                }
                bound => bound,
            };
            bound.map_err(|source| RunError::Listen { address, source })
        };
        Ok(Self { grpc: bind(config.listen).await?, http: bind(config.metrics_listen).await? })
    }

    /// The addresses in fact: of gRPC and of HTTP.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.grpc.local_addr()?, self.http.local_addr()?))
    }
}

/// Whether the host has no IPv6 (`ipv6.disable=1`): all its addresses are IPv4 ones.
fn without_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

/// Runs the controller until `stop` resolves; it then ends its streams and is done.
///
/// # Errors
///
/// [`RunError`], if a part ends that should not.
pub async fn run(
    client: Client,
    listeners: Listeners,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (metrics, registry) = Metrics::new();
    let health = Arc::new(Health::default());
    let (notices, written) = Notices::new(metrics.clone());
    let (changes, changed) = mpsc::channel(MAX_CHANGES_WAITING);
    let (asks, asked) = mpsc::channel(MAX_ASKS_WAITING);
    let (progress, progressed) = latest::channel(Progress::default());
    let (backends, wanted) = latest::channel(false);
    let (stopping, stopped) = latest::channel(false);
    let stopped = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|&stopped| stopped).await) }
    };

    let client = initial::newest(client);
    let around =
        Surroundings { changes, notices: notices.clone(), health: health.clone(), metrics: metrics.clone() };
    let mut watches = JoinSet::new();
    watch_all(&client, &around, &mut watches);
    watch_slices(&client, &around, wanted, &mut watches);
    watches.spawn(Keeper::new(client.clone(), around, progressed).run());
    watches.spawn(event::write(client, written, metrics.clone()));

    let room = Room::new(room::MOST);
    let task = Task::new(room, progress, backends, notices, health.clone(), metrics.clone());
    let task = tokio::spawn(task.run(changed, asked, stopped()));
    let service = Service { asks, epoch: epoch(), metrics };
    let mut grpc = tokio::spawn(serve::serve(service, listeners.grpc, stopped()));
    let mut http = tokio::spawn(health::serve(listeners.http, health, registry, stopped()));

    let outcome = tokio::select! {
        () = stop => Ok(()),
        _ = watches.join_next() => Err(RunError::Ended("watch")),
        ended = &mut grpc => Err(failure(ended, RunError::Grpc, "gRPC server")),
        ended = &mut http => Err(failure(ended, RunError::Http, "server of metrics")),
    };
    info!("ending");
    stopping.send_replace(true);
    watches.shutdown().await;
    // The task ends the streams, which lets the server end.
    let _ = task.await;
    if outcome.is_ok() {
        let servers = async { tokio::join!(grpc, http) };
        if tokio::time::timeout(GRACE, servers).await.is_err() {
            info!("some nodes did not let go of their connections; they are cut");
        }
    }
    outcome
}

fn failure<E>(
    ended: Result<Result<(), E>, tokio::task::JoinError>,
    failed: impl Fn(E) -> RunError,
    part: &'static str,
) -> RunError {
    match ended {
        Ok(Err(error)) => failed(error),
        Ok(Ok(())) | Err(_) => RunError::Ended(part),
    }
}

/// A number that no other run of a controller has, and never 0.
fn epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
}

fn watch_all(client: &Client, around: &Surroundings, watches: &mut JoinSet<()>) {
    let policies = Api::all_with(client.clone(), &ApiResource::erase::<NetworkPolicy>(&()));
    watch(watches, around, Kind::Pod, Api::all(client.clone()), translate::put_pod, translate::pod_gone);
    watch(watches, around, Kind::NetworkPolicy, policies, translate::put_policy, translate::policy_gone);
    let namespaces = Api::all(client.clone());
    watch(watches, around, Kind::Namespace, namespaces, translate::put_namespace, translate::namespace_gone);
    watch(watches, around, Kind::Node, Api::all(client.clone()), translate::put_node, translate::node_gone);
    let services = Api::all(client.clone());
    watch(watches, around, Kind::Service, services, service::put_service, service::service_gone);
    let sets = Api::all(client.clone());
    watch(
        watches,
        around,
        Kind::ReplicaSet,
        sets,
        |set| translate::put_owned::<ReplicaSet>("ReplicaSet", set),
        |key| translate::owned_gone("ReplicaSet", key),
    );
    let jobs = Api::all(client.clone());
    watch(
        watches,
        around,
        Kind::Job,
        jobs,
        |job| translate::put_owned::<Job>("Job", job),
        |key| translate::owned_gone("Job", key),
    );
}

/// EndpointSlices change with every pod that becomes ready: they are watched once a node asks for what they say.
fn watch_slices(
    client: &Client,
    around: &Surroundings,
    mut wanted: latest::Receiver<bool>,
    watches: &mut JoinSet<()>,
) {
    let (api, around) = (Api::all(client.clone()), around.clone());
    let (put, gone) = (service::put_slice, service::slice_gone);
    watches.spawn(async move {
        if wanted.wait_for(|&wanted| wanted).await.is_ok() {
            Watch { kind: Kind::EndpointSlice, api, put, gone }.run(around, SLOWEST_RETRY).await;
        }
    });
}

fn watch<K>(
    watches: &mut JoinSet<()>,
    around: &Surroundings,
    kind: Kind,
    api: Api<K>,
    put: fn(&K) -> Translation,
    gone: fn(&Key) -> Vec<Change>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    watches.spawn(Watch { kind, api, put, gone }.run(around.clone(), SLOWEST_RETRY));
}
