//! Kubernetes Events, which tell people what is wrong with their objects. Does IO.
//!
//! Nobody waits for an Event: what finds no room in the queue, or is refused, is counted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::metrics::{EventLoss, Metrics, OfEventLoss};

/// How many Events can wait to be written.
const MAX_WAITING: usize = 256;
/// The API server takes notes of at most 1,024 bytes.
const MAX_NOTE_BYTES: usize = 1024;
const REPORTER: &str = "durward-controller";

/// How serious it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// For information.
    Normal,
    /// Something is to be put right.
    Warning,
}

/// What is to be told about an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Notice {
    /// The object.
    pub(crate) regarding: ObjectReference,
    /// How serious it is.
    pub(crate) severity: Severity,
    /// What it is, in one word.
    pub(crate) reason: &'static str,
    /// What was done about it, in one word.
    pub(crate) action: &'static str,
    /// What it is and what to do, for people.
    pub(crate) note: String,
}

/// Where notices are handed in.
#[derive(Clone, Debug)]
pub(crate) struct Notices {
    queue: mpsc::Sender<Notice>,
    metrics: Arc<Metrics>,
}

impl Notices {
    /// A place to hand notices in, and the queue that [`write`] empties.
    pub(crate) fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Notice>) {
        let (queue, notices) = mpsc::channel(MAX_WAITING);
        (Self { queue, metrics }, notices)
    }

    /// Hands a notice in; never waits.
    pub(crate) fn tell(&self, notice: Notice) {
        let (kind, name) = (notice.regarding.kind.as_deref(), notice.regarding.name.as_deref());
        let namespace = notice.regarding.namespace.as_deref();
        match notice.severity {
            Severity::Normal => info!(kind, namespace, name, reason = notice.reason, "{}", notice.note),
            Severity::Warning => warn!(kind, namespace, name, reason = notice.reason, "{}", notice.note),
        }
        if self.queue.try_send(notice).is_err() {
            self.metrics.events_lost.get_or_create(&OfEventLoss { reason: EventLoss::QueueFull }).inc();
        }
    }
}

/// Writes notices as Events, one after the other, as long as there are any to come.
pub(crate) async fn write(client: Client, mut notices: mpsc::Receiver<Notice>, metrics: Arc<Metrics>) {
    while let Some(notice) = notices.recv().await {
        let event = event(notice, Timestamp::now());
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            metrics.events_lost.get_or_create(&OfEventLoss { reason: EventLoss::Refused }).inc();
            warn!(%error, reason = event.reason.as_deref(), "an Event was not written: check RBAC for events");
        }
    }
}

/// A reference to an object of a kind known here.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(
    namespace: Option<&str>,
    name: &str,
    uid: Option<&str>,
) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        uid: uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}

/// What an object may be called at most.
const MAX_NAME_BYTES: usize = 253;

/// The object's name as far as there is room, and the time: unique, and still a name.
fn event_name(object: &str, now: Timestamp) -> String {
    let time = format!("{:x}", now.as_nanosecond());
    let room = MAX_NAME_BYTES - time.len() - 1;
    let object = object.char_indices().take_while(|(at, _)| *at < room).map(|(_, c)| c).collect::<String>();
    format!("{}.{time}", object.trim_end_matches(['.', '-']))
}

fn event(notice: Notice, now: Timestamp) -> Event {
    let Notice { regarding, severity, reason, action, note } = notice;
    let name = regarding.name.as_deref().unwrap_or(REPORTER);
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(name, now)),
            // Events on cluster-scoped objects live in the namespace "default".
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        action: Some(action.to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(shortened(note)),
        reason: Some(reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(std::env::var("HOSTNAME").unwrap_or_else(|_| REPORTER.to_owned())),
        type_: Some(format!("{severity:?}")),
        ..Event::default()
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > MAX_NOTE_BYTES {
        let room = MAX_NOTE_BYTES - '…'.len_utf8();
        note.truncate((0..=room).rfind(|&end| note.is_char_boundary(end)).unwrap_or(0));
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_shortened_to_what_an_event_may_be_called() {
        let name = event_name(&format!("{}.{}", "a".repeat(234), "b".repeat(18)), Timestamp::now());
        assert!(name.len() <= MAX_NAME_BYTES && name.starts_with("aaa") && !name.contains(".."), "{name}");
        assert_eq!(event_name("short", Timestamp::UNIX_EPOCH), "short.0");
    }

    #[test]
    fn an_event_of_a_cluster_scoped_object_lives_in_default_and_its_note_fits() {
        let notice = Notice {
            regarding: reference::<durward_crds::NetworkLogging>(None, "default", Some("uid-1")),
            severity: Severity::Warning,
            reason: "InvalidNetworkLogging",
            action: "Ignore",
            note: "é".repeat(600),
        };
        let event = event(notice, Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let note = event.note.unwrap();
        assert!(note.len() <= MAX_NOTE_BYTES && note.ends_with("é…"));
        let regarding = event.regarding.unwrap();
        assert_eq!(regarding.api_version.as_deref(), Some("networking.gke.io/v1alpha1"));
        assert_eq!(regarding.kind.as_deref(), Some("NetworkLogging"));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let (notices, _queue) = Notices::new(metrics.clone());
        for _ in 0..MAX_WAITING + 3 {
            notices.tell(Notice {
                regarding: ObjectReference::default(),
                severity: Severity::Normal,
                reason: "R",
                action: "A",
                note: String::new(),
            });
        }
        let lost = metrics.events_lost.get_or_create(&OfEventLoss { reason: EventLoss::QueueFull }).get();
        assert_eq!(lost, 3);
    }
}
