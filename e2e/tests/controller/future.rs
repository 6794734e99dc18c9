//! An API server that stores what today's refuses or drops, to the controller's eyes. And what the controller
//! asked it (IO).
//!
//! Stands between the controller's client and the real API server. In what is read of NetworkPolicies and pods, the
//! fields that an object's annotation holds replace or join those of its spec.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// On an object: fields of its spec, as JSON.
pub(crate) const ANNOTATION: &str = "test.durward/spec";

/// What was asked of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    lists: usize,
    /// Watches that begin with all objects, as they are now.
    whole: usize,
    /// Watches that go on from a version.
    later: usize,
}

/// How many lists and watches of each resource were asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests(Arc<Mutex<BTreeMap<String, Count>>>);

impl Requests {
    fn note(&self, request: &Request<Body>) {
        if request.method() != http::Method::GET {
            return;
        }
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let has = |pair: &str| query.split('&').any(|one| one == pair);
        let is_whole = has("sendInitialEvents=true") && has("resourceVersion=");
        let mut counts = self.0.lock().unwrap();
        let Count { lists, whole, later } = counts.entry(resource).or_default();
        *(if is_whole {
            whole
        } else if has("watch=true") {
            later
        } else {
            lists
        }) += 1;
    }

    /// Holds if the controller asked for each kind once, for list and watch together, and for nothing else.
    pub(crate) fn asked_for_each_kind_once(&self) {
        self.are(Count { lists: 0, whole: 1, later: 0 });
    }

    /// Holds if the controller was refused that once, and then listed and watched each kind once.
    pub(crate) fn listed_and_watched_each_kind_once(&self) {
        self.are(Count { lists: 1, whole: 1, later: 1 });
    }

    fn are(&self, expected: Count) {
        let mut counts = self.0.lock().unwrap().clone();
        // A watch that ends goes on where it was: after some minutes, and when its CRD is applied anew.
        counts.values_mut().for_each(|count| count.later = count.later.min(expected.later));
        let kinds = [
            "jobs",
            "namespaces",
            "networkloggings",
            "networkpolicies",
            "nodes",
            "pods",
            "replicasets",
            "services",
        ];
        let once: BTreeMap<_, _> = kinds.map(|kind| (kind.to_owned(), expected)).into();
        assert_eq!(counts, once, "what was asked of each kind");
    }
}

/// Whether a watch can begin with all objects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    Streamed,
    /// As by an older API server.
    Refused,
}

/// The client as the controller is given it.
pub(crate) fn client(inner: &Client, requests: Requests, lists: Lists) -> Client {
    let inner = inner.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        requests.note(&request);
        let resource = request.uri().path().rsplit('/').next();
        let is_changed = matches!(resource, Some("networkpolicies" | "pods"));
        let is_streamed = request.uri().query().is_some_and(|query| query.contains("sendInitialEvents=true"));
        async move {
            if is_streamed && lists == Lists::Refused {
                return Ok(refuse());
            }
            let response = inner.send(request).await?;
            Ok::<_, kube::Error>(if is_changed {
                add_fields(response)
            } else {
                response.map(BodyExt::boxed_unsync)
            })
        }
    });
    Client::new(service, "default")
}

type Reply = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, kube::Error>>;

fn refuse() -> Reply {
    let status = json!({ "kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid" });
    let body = Body::from(status.to_string().into_bytes()).boxed_unsync();
    Response::builder().status(422).body(body).unwrap()
}

/// Adds the fields to each line of a reply: a list is one, and of a watch each event is.
fn add_fields(response: Response<Body>) -> Reply {
    response.map(|body| {
        let frames = body.into_data_stream().map_ok(|bytes| bytes.to_vec());
        let lines =
            futures::stream::unfold((Box::pin(frames), Vec::new()), |(mut frames, mut rest)| async move {
                loop {
                    if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                        let line: Vec<u8> = rest.drain(..=end).collect();
                        return Some((Ok(add_to_line(&line)), (frames, rest)));
                    }
                    match frames.next().await {
                        Some(Ok(bytes)) => rest.extend(bytes),
                        Some(Err(error)) => return Some((Err(error), (frames, rest))),
                        None if rest.is_empty() => return None,
                        None => return Some((Ok(add_to_line(&std::mem::take(&mut rest))), (frames, rest))),
                    }
                }
            });
        StreamBody::new(lines.map_ok(http_body::Frame::data)).boxed_unsync()
    })
}

fn add_to_line(line: &[u8]) -> Bytes {
    let mut value: Value = serde_json::from_slice(line).unwrap();
    let add = |object: &mut Value| {
        let fields = object["metadata"]["annotations"][ANNOTATION].as_str().unwrap_or("{}");
        let fields: serde_json::Map<String, Value> = serde_json::from_str(fields).unwrap();
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.extend(fields);
        }
    };
    value.get_mut("object").into_iter().for_each(add);
    let items = value.get_mut("items").and_then(Value::as_array_mut);
    items.into_iter().flatten().for_each(add);
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}
