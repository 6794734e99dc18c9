//! How a watch begins: with all objects, one by one, as they are now. Does IO.
//!
//! So no answer ever holds a whole list, on either side, and one request does for list and watch. An
//! API server that cannot do so (Kubernetes 1.30, 1.31 and 1.33 unless told to) refuses; there, objects
//! are listed in pages first.

use std::fmt::Debug;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use http::{Request, StatusCode, Uri};
use kube::api::Api;
use kube::client::Body;
use kube::{Client, Resource};
use kube_runtime::watcher::{self, Config, Error, Event};
use serde::de::DeserializeOwned;
use tracing::info;

type Events<K> = BoxStream<'static, watcher::Result<Event<K>>>;

/// All objects, then what happens to them.
pub(crate) fn objects<K>(api: Api<K>, config: Config) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events: Events<K> = kube_runtime::watcher(api.clone(), config.clone().streaming_lists()).boxed();
    stream::unfold((events, Some((api, config))), |(mut events, mut refusable)| async move {
        let mut event = events.next().await?;
        if let Err(error) = &event
            && is_refused(error)
            && let Some((api, config)) = refusable.take()
        {
            info!(path = api.resource_url(), "the API server does not stream lists: it is listed in pages");
            events = kube_runtime::watcher(api, config).boxed();
            event = events.next().await?;
        }
        Some((event, (events, refusable)))
    })
}

/// Whether the API server understands the request, and does not do such things.
fn is_refused(error: &Error) -> bool {
    matches!(error, Error::WatchStartFailed(kube::Error::Api(status))
        if status.code == StatusCode::UNPROCESSABLE_ENTITY.as_u16())
}

/// A client whose watches begin with the newest objects. The watcher is content with those that the API
/// server remembers, which after a restart could take nodes back to rules of some time ago.
pub(crate) fn newest(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        if let Some(uri) = newest_uri(request.uri()) {
            *request.uri_mut() = uri;
        }
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, namespace)
}

fn newest_uri(uri: &Uri) -> Option<Uri> {
    let query = uri.query().filter(|query| query.split('&').any(|pair| pair == "sendInitialEvents=true"))?;
    let newest = |pair| if pair == "resourceVersion=0" { "resourceVersion=" } else { pair };
    let query = query.split('&').map(newest).collect::<Vec<_>>().join("&");
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::Response;
    use k8s_openapi::api::core::v1::Namespace;
    use kube::core::PartialObjectMeta;
    use serde_json::{Value, json};

    use super::*;

    fn namespace(name: &str) -> Value {
        let metadata = json!({ "name": name, "resourceVersion": "7" });
        json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata })
    }

    /// What an API server answers that has two namespaces, and later three.
    fn answer(uri: &Uri, streams: bool) -> Response<Body> {
        let has = |pair: &str| uri.query().unwrap_or_default().split('&').any(|one| one == pair);
        let added = |name| json!({ "type": "ADDED", "object": namespace(name) });
        let mark = json!({ "type": "BOOKMARK", "object": {
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "resourceVersion": "7", "annotations": { "k8s.io/initial-events-end": "true" } },
        } });
        let (code, lines) = match (has("watch=true"), has("sendInitialEvents=true")) {
            (true, true) if !streams => (
                422,
                vec![json!({ "kind": "Status", "status": "Failure", "code": 422, "reason": "Invalid" })],
            ),
            (true, true) => (200, vec![added("a"), added("b"), mark, added("c")]),
            (true, false) => (200, vec![added("c")]),
            (false, _) => {
                let list = json!({
                    "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "7" },
                    "items": [namespace("a"), namespace("b")],
                });
                (200, vec![list])
            }
        };
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        Response::builder().status(code).body(Body::from(text.into_bytes())).unwrap()
    }

    /// The first events, and what was asked for to have them.
    async fn hear(streams: bool) -> (Vec<String>, Vec<String>) {
        let asked = Arc::new(Mutex::new(vec![]));
        let asking = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            asking.lock().unwrap().push(request.uri().to_string());
            let answer = answer(request.uri(), streams);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(newest(Client::new(service, "default")));
        let events = objects(api, Config::default()).take(5);
        let events = events.map(|event| event.unwrap().to_string()).collect().await;
        (events, asked.lock().unwrap().clone())
    }

    const EVENTS: [&str; 5] = ["Init", "InitApply(a)", "InitApply(b)", "InitDone", "Apply(c)"];

    #[tokio::test]
    async fn one_request_is_list_and_watch_and_begins_with_what_is_newest() {
        let (events, asked) = hear(true).await;
        assert_eq!(events, EVENTS);
        let [one] = &asked[..] else { panic!("{asked:?}") };
        assert!(one.contains("sendInitialEvents=true") && one.ends_with("resourceVersion="), "{one}");
    }

    #[tokio::test]
    async fn where_lists_are_not_streamed_there_is_one_list_and_one_watch() {
        let (events, asked) = hear(false).await;
        assert_eq!(events, EVENTS);
        let [refused, list, watch] = &asked[..] else { panic!("{asked:?}") };
        assert!(refused.contains("sendInitialEvents=true"), "{refused}");
        assert!(!list.contains("watch=true") && !list.contains("resourceVersion"), "{list}");
        assert!(watch.contains("watch=true") && watch.ends_with("resourceVersion=7"), "{watch}");
    }
}
