//! An API server that has the *huge* cluster, as far as the daemon asks. Does IO.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::routing::{any, get};
use bytes::{Bytes, BytesMut};
use durward_engine::object::{Event, Pod};
use futures::{StreamExt, stream};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_stream::wrappers::ReceiverStream;

use crate::json::{self, Kind};
use crate::scenario;

/// How often a watch says that it lives.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How many lines are written at once.
const LINES: usize = 256;

/// Serves the cluster with so many Services, and these pods; gives where, and what is written to the watch of what changes
/// from then on.
pub(crate) async fn start(
    services: usize,
    pods: Vec<Pod>,
    changing: &'static str,
) -> (SocketAddr, Sender<Bytes>) {
    let (changes, changed) = mpsc::channel(8_192);
    let changed = Arc::new(Mutex::new(Some(changed)));
    let of = move |resource: String| -> Box<dyn Iterator<Item = Bytes> + Send> {
        let huge = scenario::huge();
        match &*resource {
            "nodes" => Box::new((0..huge.nodes).map(|n| added(&json::node(&scenario::node(n))))),
            "services" => Box::new((0..services).map(|n| added(&json::service(n)))),
            "networkloggings" => Box::new(std::iter::once(added(&json::logging()))),
            _ => {
                let events = huge.events().chain(pods.clone().into_iter().map(Event::Pod));
                Box::new(events.filter_map(move |event| match (&*resource, event) {
                    ("pods", Event::Pod(pod)) => Some(added(&json::pod(&pod))),
                    ("namespaces", Event::Namespace(namespace)) => Some(added(&json::namespace(&namespace))),
                    ("networkpolicies", Event::Policy(policy)) => Some(added(&json::policy(&policy))),
                    _ => None,
                }))
            }
        }
    };
    let serve = move |Path(resource): Path<String>, request: Request| {
        let is_first = request.uri().query().is_some_and(|query| query.contains("sendInitialEvents=true"));
        assert!(is_first, "the daemon lost a watch: {}", request.uri());
        let later = (resource == changing).then(|| changed.lock().unwrap().take().unwrap());
        let body = watch(of(resource), later);
        async move { body }
    };
    let write = any(async || json::logging().to_string());
    let router = Router::new()
        .route("/api/v1/{resource}", get(serve.clone()))
        .route("/apis/{group}/{version}/{resource}/default/status", write)
        .route(
            "/apis/{group}/{version}/{resource}",
            get(move |Path((_, _, resource)): Path<(String, String, String)>, request: Request| {
                serve(Path(resource), request)
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, changes)
}

fn added(object: &serde_json::Value) -> Bytes {
    json::line(Kind::Added, object)
}

/// All objects, the mark, and what comes later.
fn watch(objects: impl Iterator<Item = Bytes> + Send + 'static, later: Option<Receiver<Bytes>>) -> Body {
    let first = stream::iter(objects.chain([json::mark()])).chunks(LINES);
    let first = first.map(|lines| lines.iter().flatten().copied().collect::<BytesMut>().freeze());
    let later = match later {
        Some(later) => ReceiverStream::new(later).boxed(),
        None => stream::empty().boxed(),
    };
    // Else the daemon would take a quiet watch for a dead one.
    let alive = stream::unfold((), async |()| {
        tokio::time::sleep(BOOKMARKS).await;
        Some((json::bookmark(), ()))
    });
    let later = stream::select(later, alive);
    Body::from_stream(first.chain(later).map(Ok::<_, Infallible>))
}
