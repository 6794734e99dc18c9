//! Keeps the NetworkLogging object: makes it when it is missing, hears what it says, writes its status.
//! Does IO.

use std::time::Duration;

use durward_crds::{DEFAULT_NAME, NetworkLogging, NetworkLoggingSpec, NetworkLoggingStatus};
use futures::StreamExt;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use kube_runtime::watcher::{Config, Event};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::event::{Notice, Severity, reference};
use crate::logging::{self, Decision, Progress, Seen, Tell};
use crate::metrics::{Kind, OfKind};
use crate::task::Change;
use crate::watch::{Surroundings, events};

/// The CRD may come after the controller: its watch is tried again at least this often.
const SLOWEST_RETRY: Duration = Duration::from_secs(2);
/// What the API server did not take is tried again after this.
const WRITE_RETRY: Duration = Duration::from_secs(2);

/// Keeps the object for as long as the task listens.
pub(crate) struct Keeper {
    api: Api<DynamicObject>,
    typed: Api<NetworkLogging>,
    around: Surroundings,
    progress: watch::Receiver<Progress>,
    decision: Decision,
    /// The status that was written last, and to which object.
    written: Option<(String, NetworkLoggingStatus)>,
    /// Whether all that is stored has been heard of.
    listed: bool,
    /// When something that failed is tried again.
    retry_at: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new(client: Client, around: Surroundings, progress: watch::Receiver<Progress>) -> Self {
        let resource = ApiResource::erase::<NetworkLogging>(&());
        Self {
            api: Api::all_with(client.clone(), &resource),
            typed: Api::all(client),
            around,
            progress,
            decision: Decision::default(),
            written: None,
            listed: false,
            retry_at: None,
        }
    }

    pub(crate) async fn run(mut self) {
        let config = Config::default().fields(&format!("metadata.name={DEFAULT_NAME}"));
        let kind = Kind::NetworkLogging;
        let mut events = events(kind, self.api.clone(), config, SLOWEST_RETRY, &self.around);
        let objects = self.around.metrics.objects.get_or_create_owned(&OfKind { kind });
        let mut listing = None;
        loop {
            let retry_at = self.retry_at;
            let retry = async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let alive = tokio::select! {
                event = events.next() => match event {
                    Some(Event::Init) => {
                        listing = None;
                        continue;
                    }
                    Some(Event::InitApply(object)) => {
                        listing = Some(object);
                        continue;
                    }
                    Some(Event::InitDone) => self.hear(listing.take()).await,
                    Some(Event::Apply(object)) => self.hear(Some(object)).await,
                    Some(Event::Delete(_)) => self.hear(None).await,
                    None => false,
                },
                changed = self.progress.changed() => changed.is_ok(),
                () = retry => true,
            };
            if !alive {
                return;
            }
            self.retry_at = None;
            objects.set(i64::from(self.decision.seen().is_some()));
            self.write().await;
        }
    }

    /// The object is this, or is missing. False if nobody listens any more.
    async fn hear(&mut self, object: Option<DynamicObject>) -> bool {
        let before = self.decision.logging();
        let seen = object.as_ref().map(logging::read);
        if let Some(tell) = self.decision.hear(seen) {
            self.tell(tell);
        }
        let mut changes = vec![];
        let now = self.decision.logging();
        if now != before {
            info!(allow = ?now.allow, deny = ?now.deny, generation = now.generation, "logging changes");
            changes.push(Change::logging(now));
        }
        if !self.listed {
            self.listed = true;
            changes.push(Change::Listed(Kind::NetworkLogging));
        }
        for change in changes {
            if self.around.changes.send(change).await.is_err() {
                return false;
            }
        }
        true
    }

    fn tell(&self, tell: Tell) {
        let uid = self.decision.seen().map(|seen| &*seen.uid);
        let regarding = reference::<NetworkLogging>(None, DEFAULT_NAME, uid);
        let notice = match tell {
            Tell::Updated(note) => {
                let (reason, action) = ("UpdateNetworkLogging", "Update");
                Notice { regarding, severity: Severity::Normal, reason, action, note }
            }
            Tell::Invalid(note) => {
                self.around.metrics.fault(Kind::NetworkLogging);
                let (reason, action) = ("InvalidNetworkLogging", "Ignore");
                Notice { regarding, severity: Severity::Warning, reason, action, note }
            }
        };
        self.around.notices.tell(notice);
    }

    /// Makes the object if it is missing, and its status what it should be.
    async fn write(&mut self) {
        if !self.listed {
            return;
        }
        let outcome = match self.decision.seen().cloned() {
            None => self.create().await,
            Some(seen) => self.write_status(&seen).await,
        };
        if let Err(error) = outcome {
            warn!(%error, "the NetworkLogging object was not written; it is tried again");
            self.retry_at = Some(Instant::now() + WRITE_RETRY);
        }
    }

    async fn create(&mut self) -> kube::Result<()> {
        let object = NetworkLogging::new(DEFAULT_NAME, NetworkLoggingSpec::default());
        match self.typed.create(&PostParams::default(), &object).await {
            Ok(made) => info!(uid = made.uid(), "made the NetworkLogging object, all false"),
            // Somebody was faster; the watch will tell.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn write_status(&mut self, seen: &Seen) -> kube::Result<()> {
        let progress = *self.progress.borrow_and_update();
        let now = Timestamp::now().round(Unit::Second).unwrap_or_else(|_| Timestamp::now()).to_string();
        let own = self.written.as_ref().filter(|(uid, _)| *uid == seen.uid).map(|(_, status)| status);
        let before = own.unwrap_or(&seen.status);
        let Some(status) = self.decision.status(progress, before, &now) else { return Ok(()) };
        // What an older CRD does not store comes back different each time: it is not written again.
        if *before == status {
            return Ok(());
        }
        let patch = json!({ "metadata": { "uid": seen.uid }, "status": status });
        self.api.patch_status(DEFAULT_NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        self.written = Some((seen.uid.clone(), status));
        Ok(())
    }
}
