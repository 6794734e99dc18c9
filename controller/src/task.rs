//! The task that owns the engine, and what goes in and out of it. IO only through channels.
//!
//! What happens in the cluster is received cheaply and applied in batches; what changes for a node is
//! put into that node's mailbox at once. Nothing is published before every kind was listed, so that
//! no node is told of a cluster that lacks half of its objects.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use durward_engine::object::{Event, Key, Policy, Service as Called};
use durward_engine::{Detail, Engine, Fault, LeftOut, Limits, News, Outcome};
use durward_proto::{Identity, Logging, NodeReport, Patch, Workload};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info};

use crate::event::{Notice, Notices, Severity, reference};
use crate::health::Health;
use crate::identity::{Identities, PodIdentity};
use crate::logging::Progress;
use crate::mailbox::{Leave, Mailbox};
use crate::metrics::{Kind, Metrics};
use crate::outlet::{Lost, Opening};
use crate::room::Room;

/// How many changes are applied at once at most.
const MAX_BATCH: usize = 1024;
/// How often progress is counted.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// How often nodes that have no room for some namespaces are tried again at most.
const RECONSIDER_INTERVAL: Duration = Duration::from_secs(1);
/// For how long no further node is begun with then.
const RECONSIDER_TIME: Duration = Duration::from_millis(100);
/// The rest after that, as a multiple of what it took: one node may take longer.
const RECONSIDER_REST: u32 = 10;

/// For how long nodes that wait are served at once; then what else there is has its turn.
const SERVING_TIME: Duration = Duration::from_millis(100);

/// Something that happened in the cluster.
#[derive(Debug)]
pub(crate) enum Change {
    /// What the engine is told.
    Engine(Event),
    /// A policy is so; its UID.
    Policy(Policy, Arc<str>),
    /// A Service is so; its UID.
    Service(Called, Arc<str>),
    /// A pod's name for the log; none if it is gone.
    Identity(Key, Option<PodIdentity>),
    /// Who owns a ReplicaSet or a Job of a namespace, if anybody does.
    Owner(Arc<str>, Workload, Option<Workload>),
    /// A node is there, or is gone.
    Node(Arc<str>, bool),
    /// All objects of a kind have been told.
    Listed(Kind),
}

/// What the nodes' streams and requests ask.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A node opens a stream, and has this version.
    Subscribe {
        node: Arc<str>,
        has: Option<u64>,
        detail: Detail,
        reply: oneshot::Sender<Result<Subscription, UnknownNode>>,
    },
    /// Who has these addresses?
    Identify { addresses: Vec<IpAddr>, reply: oneshot::Sender<Vec<Identity>> },
    /// What a node has to say of itself.
    Report { report: NodeReport, reply: oneshot::Sender<Result<(), UnknownNode>> },
}

/// A stream that is open.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) stream: u64,
    pub(crate) opening: Opening,
    /// Rings whenever there may be something to take.
    pub(crate) bell: Arc<Notify>,
    pub(crate) leave: Leave,
}

/// A node says a name that the cluster does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster has no Node {0:?}: the enforcer's --node-name must be its Node object's name")]
pub(crate) struct UnknownNode(Arc<str>);

impl From<UnknownNode> for tonic::Status {
    fn from(unknown: UnknownNode) -> Self {
        Self::not_found(unknown.to_string())
    }
}

/// A stream that waits until everything was listed, and there is room for its view.
#[derive(Debug)]
struct Waiting {
    node: Arc<str>,
    has: Option<u64>,
    detail: Detail,
    reply: oneshot::Sender<Result<Subscription, UnknownNode>>,
}

/// The one owner of the engine.
pub(crate) struct Task {
    engine: Engine,
    identities: Identities,
    nodes: HashSet<Arc<str>>,
    mailboxes: HashMap<Arc<str>, Arc<Mailbox>>,
    /// How many streams, and how many nodes' views, there have been.
    streams: u64,
    views: u64,
    unlisted: BTreeSet<Kind>,
    /// Whether a node has asked for the backends of Services: then their slices are watched.
    backends: watch::Sender<bool>,
    slices_listed: bool,
    /// In the order in which they asked.
    waiting: VecDeque<Waiting>,
    room: Arc<Room>,
    problems: HashMap<Arc<str>, Vec<String>>,
    /// Of all policies and Services, so that an Event can be found with its object.
    policy_uids: HashMap<Key, Arc<str>>,
    service_uids: HashMap<Key, Arc<str>>,
    failing_closed: BTreeMap<Key, Fault>,
    logging: Logging,
    progress: watch::Sender<Progress>,
    notices: Notices,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Change {
    /// What is logged from now on.
    pub(crate) fn logging(logging: Logging) -> Self {
        Self::Engine(Event::Logging(logging))
    }
}

impl Task {
    pub(crate) fn new(
        room: Arc<Room>,
        progress: watch::Sender<Progress>,
        backends: watch::Sender<bool>,
        notices: Notices,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            engine: Engine::new(Limits::default()),
            identities: Identities::new(now_ms()),
            nodes: HashSet::new(),
            mailboxes: HashMap::new(),
            streams: 0,
            views: 0,
            unlisted: Kind::NEEDED.into(),
            backends,
            slices_listed: false,
            waiting: VecDeque::new(),
            room,
            problems: HashMap::new(),
            policy_uids: HashMap::new(),
            service_uids: HashMap::new(),
            failing_closed: BTreeMap::new(),
            logging: Logging::default(),
            progress,
            notices,
            health,
            metrics,
        }
    }

    /// Runs until nobody can ask or tell anything any more, or `stop` resolves. All streams end then.
    pub(crate) async fn run(
        mut self,
        mut changes: mpsc::Receiver<Change>,
        mut asks: mpsc::Receiver<Ask>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let mut count = tokio::time::interval(PROGRESS_INTERVAL);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconsider = tokio::time::interval(RECONSIDER_INTERVAL);
        let room = self.room.clone();
        loop {
            tokio::select! {
                received = changes.recv_many(&mut batch, MAX_BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.apply(batch.drain(..), Instant::now());
                }
                ask = asks.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => break,
                },
                () = room.freed() => self.serve_waiting(SERVING_TIME),
                _ = count.tick() => self.count(),
                _ = reconsider.tick() => {
                    let begun = Instant::now();
                    self.reconsider(RECONSIDER_TIME);
                    reconsider.reset_after(rest_after(begun.elapsed()));
                }
                () = &mut stop => break,
            }
        }
        self.mailboxes.values().for_each(|mailbox| mailbox.close());
    }

    /// Applies what happened, and tells the nodes.
    pub(crate) fn apply(&mut self, batch: impl Iterator<Item = Change>, heard: Instant) {
        let now_ms = now_ms();
        let (mut events, mut listed) = (vec![], vec![]);
        for change in batch {
            match change {
                Change::Engine(event) => {
                    match &event {
                        Event::Logging(logging) => self.logging = *logging,
                        Event::PolicyGone(key) => drop(self.policy_uids.remove(key)),
                        Event::ServiceGone(key) => drop(self.service_uids.remove(key)),
                        _ => {}
                    }
                    events.push(event);
                }
                Change::Policy(policy, uid) => {
                    self.policy_uids.insert(policy.key.clone(), uid);
                    events.push(Event::Policy(policy));
                }
                Change::Service(service, uid) => {
                    self.service_uids.insert(service.key.clone(), uid);
                    events.push(Event::Service(service));
                }
                Change::Identity(key, Some(pod)) => self.identities.put_pod(key, pod, now_ms),
                Change::Identity(key, None) => self.identities.remove_pod(&key, now_ms),
                Change::Owner(namespace, owned, owner) => self.identities.put_owner(namespace, owned, owner),
                Change::Node(node, true) => drop(self.nodes.insert(node)),
                Change::Node(node, false) => self.forget(&node),
                Change::Listed(kind) => listed.push(kind),
            }
        }
        let Self { engine, mailboxes, metrics, .. } = self;
        let news = engine.apply_each(events, |node, patch| push(mailboxes, metrics, node, patch, heard));
        self.tell(news);
        if !listed.is_empty() {
            self.unlisted.retain(|kind| !listed.contains(kind));
            self.slices_listed |= listed.contains(&Kind::EndpointSlice);
            self.synced();
        }
    }

    /// Tries nodes again that have no room for some namespaces: one, and others as long as there is time.
    fn reconsider(&mut self, time: Duration) {
        let begun = Instant::now();
        while let Some(outcome) = self.engine.reconsider() {
            let Outcome { patches, news } = outcome;
            for (node, patch) in patches {
                push(&self.mailboxes, &self.metrics, &node, patch, Instant::now());
            }
            self.tell(news);
            if begun.elapsed() >= time {
                break;
            }
        }
    }

    fn tell(&mut self, News { faults, left_out }: News) {
        self.tell_left_out(left_out);
        for (key, fault) in faults {
            let Some(fault) = fault else {
                self.failing_closed.remove(&key);
                continue;
            };
            // One Event says it for all nodes.
            let known = self.failing_closed.insert(key.clone(), fault.clone());
            if known.is_some_and(|known| known.is_same_but_for_node(&fault)) {
                continue;
            }
            self.metrics.fault(Kind::NetworkPolicy);
            let Key { namespace, name } = &key;
            let uid = self.policy_uids.get(&key).map(|uid| &**uid);
            self.notices.tell(Notice {
                regarding: reference::<NetworkPolicy>(Some(namespace), name, uid),
                severity: Severity::Warning,
                reason: "PolicyFailsClosed",
                action: "FailClosed",
                note: fault.to_string(),
            });
        }
        self.metrics.policies_failing_closed.set(self.failing_closed.len() as i64);
    }

    fn tell_left_out(&self, namespaces: BTreeMap<Arc<str>, Option<LeftOut>>) {
        let without_room = namespaces.into_iter().filter_map(|(name, left_out)| Some((name, left_out?)));
        for (namespace, left_out) in without_room {
            self.metrics.fault(Kind::Service);
            let key = Key { namespace, name: left_out.service.clone() };
            let uid = self.service_uids.get(&key).map(|uid| &**uid);
            self.notices.tell(Notice {
                regarding: reference::<Service>(Some(&key.namespace), &key.name, uid),
                severity: Severity::Warning,
                reason: "TooManyServicePorts",
                action: "LeaveOut",
                note: left_out.to_string(),
            });
        }
    }

    /// Serves those that waited, if there is nothing to wait for any more.
    fn synced(&mut self) {
        if !self.unlisted.is_empty() {
            info!(missing = ?self.unlisted, "not in sync yet");
            return;
        }
        info!(nodes = self.nodes.len(), "in sync");
        self.health.synced();
        self.serve_waiting(SERVING_TIME);
    }

    /// Serves those that wait, as long as there is room for their views: one, and others as long as there is time.
    fn serve_waiting(&mut self, time: Duration) {
        let begun = Instant::now();
        while !self.room.is_full() {
            let next = self.waiting.iter().position(|waiting| self.is_ready(waiting.detail));
            let Some(Waiting { node, has, detail, reply }) = next.and_then(|at| self.waiting.remove(at))
            else {
                return;
            };
            // Who does not wait any more comes back.
            if !reply.is_closed() {
                let _ = reply.send(self.subscribe(&node, has, detail));
            }
            if begun.elapsed() >= time {
                return self.room.wake();
            }
        }
    }

    /// Whether everything was listed that a node must be told of.
    fn is_ready(&self, detail: Detail) -> bool {
        self.unlisted.is_empty() && (detail == Detail::Frontends || self.slices_listed)
    }

    pub(crate) fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Subscribe { node, has, detail, reply } => {
                if detail == Detail::Backends {
                    self.backends.send_if_modified(|wanted| !std::mem::replace(wanted, true));
                }
                let resumes = self.mailboxes.get(&node).is_some_and(|mailbox| mailbox.resumes(has, detail));
                let is_unknown = self.unlisted.is_empty() && !self.nodes.contains(&node);
                // What waits for a node that resumes would be in its own way.
                if is_unknown || resumes && self.is_ready(detail) {
                    let _ = reply.send(self.subscribe(&node, has, detail));
                } else {
                    self.waiting.push_back(Waiting { node, has, detail, reply });
                    self.serve_waiting(SERVING_TIME);
                }
            }
            Ask::Identify { addresses, reply } => {
                let now_ms = now_ms();
                let identify = |address| self.identities.identify(address, now_ms);
                let _ = reply.send(addresses.into_iter().map(identify).collect());
            }
            Ask::Report { report, reply } => {
                let _ = reply.send(self.report(report));
            }
        }
    }

    fn subscribe(
        &mut self,
        node: &Arc<str>,
        has: Option<u64>,
        detail: Detail,
    ) -> Result<Subscription, UnknownNode> {
        if !self.nodes.contains(node) {
            return Err(UnknownNode(node.clone()));
        }
        if self.mailboxes.get(node).is_some_and(|mailbox| mailbox.detail() != detail) {
            self.close(node);
        }
        let mailbox = match self.mailboxes.get(node) {
            Some(mailbox) => mailbox.clone(),
            None => {
                // A node that was forgotten and comes back must not find an old number with a new content.
                self.views += 1;
                let mailbox = Arc::new(Mailbox::new((self.views << 32) | 1, detail, self.room.clone()));
                self.metrics.view_versions.inc();
                self.mailboxes.insert(node.clone(), mailbox.clone());
                mailbox
            }
        };
        self.streams += 1;
        let (opening, bell) = mailbox.open(self.streams, has, || self.engine.subscribe_with(node, detail));
        let leave = Leave { mailbox: mailbox.clone(), stream: self.streams, node: node.clone() };
        Ok(Subscription { mailbox, stream: self.streams, opening, bell, leave })
    }

    /// A node is gone.
    fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
        self.problems.remove(node);
        self.close(node);
    }

    fn close(&mut self, node: &str) {
        if let Some(mailbox) = self.mailboxes.remove(node) {
            mailbox.close();
            self.engine.unsubscribe(node);
        }
    }

    fn report(&mut self, report: NodeReport) -> Result<(), UnknownNode> {
        let Some(node) = self.nodes.get(report.node.as_str()).cloned() else {
            return Err(UnknownNode(report.node.into()));
        };
        self.metrics.report(&report);
        let NodeReport { problems, .. } = report;
        if problems.is_empty() {
            self.problems.remove(&node);
        } else if self.problems.get(&node) != Some(&problems) {
            self.notices.tell(Notice {
                regarding: reference::<Node>(None, &node, None),
                severity: Severity::Warning,
                reason: "NetworkPolicyEnforcementProblem",
                action: "Enforce",
                note: problems.join("; "),
            });
            self.problems.insert(node, problems);
        }
        Ok(())
    }

    /// Counts what is counted at times, not at each change.
    fn count(&mut self) {
        let now = Instant::now();
        self.mailboxes.values().for_each(|mailbox| mailbox.expire(now));
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        let connected = self.mailboxes.values().filter(|mailbox| mailbox.is_connected()).count();
        let applied = self.mailboxes.values().filter(|mailbox| mailbox.runs_logging()).count();
        self.metrics.nodes_connected.set(connected as i64);
        self.metrics.nodes_waiting.set(self.waiting.len() as i64);
        self.metrics.nodes_with_problems.set(self.problems.len() as i64);
        self.metrics.frontends_left_out.set(self.engine.sizes().frontends_left_out as i64);
        let progress = Progress { generation: self.logging.generation, applied, total: self.nodes.len() };
        self.progress.send_if_modified(|old| std::mem::replace(old, progress) != progress);
    }
}

/// What changes in a node's view waits for its stream.
fn push(
    mailboxes: &HashMap<Arc<str>, Arc<Mailbox>>,
    metrics: &Metrics,
    node: &Arc<str>,
    patch: Patch,
    heard: Instant,
) {
    let Some(mailbox) = mailboxes.get(node) else { return };
    metrics.view_versions.inc();
    // The node keeps what it has until it comes back, and is told the whole view then.
    match mailbox.push(patch, heard) {
        Ok(()) => {}
        Err(Lost::Behind | Lost::Crowded) => {
            metrics.nodes_behind.inc();
        }
        Err(Lost::Patch(error)) => error!(%error, node = &**node, "a node's view went wrong"),
    }
}

/// How long to wait after nodes were tried again for so long.
fn rest_after(took: Duration) -> Duration {
    RECONSIDER_INTERVAL.max(took * RECONSIDER_REST)
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
