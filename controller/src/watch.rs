//! One list and one watch of each kind of objects, reduced at the door. Does IO.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use durward_engine::object::Key;
use futures::{Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::Api;
use kube_runtime::WatchStreamExt;
use kube_runtime::utils::ResetTimerBackoff;
use kube_runtime::watcher::{self, Event, ExponentialBackoff};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::event::{Notice, Notices};
use crate::health::Health;
use crate::initial;
use crate::metrics::{Kind, Metrics, OfKind};
use crate::task::Change;

/// The first wait after a failure; the next ones double, each with as much again of jitter.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// A watch that held for so long starts over with the first wait.
const RETRY_RESET: Duration = Duration::from_secs(60);

/// What an object comes to at the door.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    /// What the task is told.
    pub(crate) changes: Vec<Change>,
    /// What could not be understood, if anything.
    pub(crate) fault: Option<Notice>,
}

/// How one kind of objects is watched.
pub(crate) struct Watch<K> {
    pub(crate) kind: Kind,
    pub(crate) api: Api<K>,
    pub(crate) put: fn(&K) -> Translation,
    pub(crate) gone: fn(&Key) -> Vec<Change>,
}

/// What all watches share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) changes: mpsc::Sender<Change>,
    pub(crate) notices: Notices,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The events of a watch that starts over after failures, at most `slowest_retry` (and as much again
/// of jitter) later; failures are counted and shown.
pub(crate) fn events<K>(
    kind: Kind,
    api: Api<K>,
    config: watcher::Config,
    slowest_retry: Duration,
    around: &Surroundings,
) -> Pin<Box<dyn Stream<Item = Event<K>> + Send>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let waits =
        ExponentialBuilder::new().with_min_delay(FIRST_RETRY).with_max_delay(slowest_retry).with_jitter();
    let waits = ExponentialBackoff::from(waits.without_max_times());
    let (health, failures) =
        (around.health.clone(), around.metrics.watch_failures.get_or_create_owned(&OfKind { kind }));
    let events = initial::objects(api, config).backoff(ResetTimerBackoff::new(waits, RETRY_RESET));
    Box::pin(events.filter_map(move |event| {
        let event = event
            .inspect_err(|error| {
                warn!(?kind, %error, "a watch failed; what is known stays in force, and it is tried again");
                failures.inc();
                health.failed(kind, error.to_string());
            })
            .ok();
        std::future::ready(event)
    }))
}

/// What one watch knows.
#[derive(Default)]
struct Known {
    /// The objects that are there.
    objects: HashSet<Key>,
    /// Those of a listing that is under way.
    listing: HashSet<Key>,
    /// What was told of objects that are at fault, so that it is told once.
    faults: HashMap<Key, String>,
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Watches for as long as there is somebody to tell.
    pub(crate) async fn run(self, around: Surroundings, slowest_retry: Duration) {
        let Self { kind, api, put, gone } = self;
        let mut events = events(kind, api, watcher::Config::default(), slowest_retry, &around);
        let mut known = Known::default();
        let objects = around.metrics.objects.get_or_create_owned(&OfKind { kind });
        let mut listed = false;
        while let Some(event) = events.next().await {
            let is_listing_done = matches!(event, Event::InitDone);
            let mut changes = known.take(event, put, gone, kind, &around);
            if is_listing_done && !listed {
                listed = true;
                changes.push(Change::Listed(kind));
                debug!(?kind, objects = known.objects.len(), "listed");
            }
            objects.set(known.objects.len() as i64);
            for change in changes {
                if around.changes.send(change).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Known {
    fn take<K: Resource>(
        &mut self,
        event: Event<K>,
        put: fn(&K) -> Translation,
        gone: fn(&Key) -> Vec<Change>,
        kind: Kind,
        around: &Surroundings,
    ) -> Vec<Change> {
        match event {
            Event::Init => {
                self.listing.clear();
                vec![]
            }
            Event::InitApply(object) => {
                let key = key(object.meta());
                self.listing.insert(key.clone());
                self.put(key, put(&object), kind, around)
            }
            Event::Apply(object) => self.put(key(object.meta()), put(&object), kind, around),
            Event::Delete(object) => self.remove(&key(object.meta()), gone),
            Event::InitDone => self.listed(gone),
        }
    }

    fn put(&mut self, key: Key, translation: Translation, kind: Kind, around: &Surroundings) -> Vec<Change> {
        let Translation { changes, fault } = translation;
        match fault {
            Some(notice) if self.faults.get(&key) != Some(&notice.note) => {
                around.metrics.fault(kind);
                self.faults.insert(key.clone(), notice.note.clone());
                around.notices.tell(notice);
            }
            Some(_) => {}
            None => drop(self.faults.remove(&key)),
        }
        self.objects.insert(key);
        changes
    }

    fn remove(&mut self, key: &Key, gone: fn(&Key) -> Vec<Change>) -> Vec<Change> {
        self.faults.remove(key);
        self.objects.remove(key);
        gone(key)
    }

    /// A listing is complete: what it does not name is gone.
    fn listed(&mut self, gone: fn(&Key) -> Vec<Change>) -> Vec<Change> {
        let listing = std::mem::take(&mut self.listing);
        let lost: Vec<_> = self.objects.difference(&listing).cloned().collect();
        lost.iter().flat_map(|key| self.remove(key, gone)).collect()
    }
}

/// An object's namespace and name; the namespace of cluster-scoped objects is empty.
pub(crate) fn key(meta: &ObjectMeta) -> Key {
    let ObjectMeta { namespace, name, .. } = meta;
    Key::new(namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_engine::object;
    use k8s_openapi::api::core::v1;
    use kube::core::{PartialObjectMeta, PartialObjectMetaExt};

    type Namespace = PartialObjectMeta<v1::Namespace>;

    fn namespace(name: &str) -> Namespace {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        metadata.into_response_partial()
    }

    /// What the engine hears of an event: the names of namespaces, those that are gone with a minus.
    fn hear(known: &mut Known, event: Event<Namespace>) -> Vec<String> {
        let metrics = Arc::new(Metrics::default());
        let (notices, _queue) = Notices::new(metrics.clone());
        let around = Surroundings { changes: mpsc::channel(1).0, notices, health: Arc::default(), metrics };
        let (put, gone) = (crate::translate::put_namespace, crate::translate::namespace_gone);
        let changes = known.take(event, put, gone, Kind::Namespace, &around);
        let said = |change| match change {
            Change::Engine(object::Event::Namespace(namespace)) => namespace.name.to_string(),
            Change::Engine(object::Event::NamespaceGone(name)) => format!("-{name}"),
            other => panic!("{other:?}"),
        };
        changes.into_iter().map(said).collect()
    }

    #[test]
    fn what_a_new_listing_does_not_name_is_gone_when_it_is_complete() {
        let mut known = Known::default();
        let begin = |known: &mut Known| {
            assert_eq!(hear(known, Event::Init), [""; 0]);
            assert_eq!(hear(known, Event::InitApply(namespace("a"))), ["a"]);
        };
        begin(&mut known);
        assert_eq!(hear(&mut known, Event::InitApply(namespace("b"))), ["b"]);
        assert_eq!(hear(&mut known, Event::InitDone), [""; 0]);
        assert_eq!(hear(&mut known, Event::Apply(namespace("c"))), ["c"]);
        assert_eq!(hear(&mut known, Event::Delete(namespace("b"))), ["-b"]);
        assert_eq!(hear(&mut known, Event::Apply(namespace("d"))), ["d"]);
        // A listing that breaks off says nothing of what it would have named.
        begin(&mut known);
        begin(&mut known);
        assert_eq!(hear(&mut known, Event::InitApply(namespace("d"))), ["d"]);
        assert_eq!(hear(&mut known, Event::InitDone), ["-c"]);
        begin(&mut known);
        assert_eq!(hear(&mut known, Event::InitDone), ["-d"]);
    }
}
