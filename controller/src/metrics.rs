//! What the daemon counts. Pure, but for the counters themselves.

use std::sync::Arc;

use durward_proto::NodeReport;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
pub(crate) enum Kind {
    /// Pods.
    Pod,
    /// Namespaces.
    Namespace,
    /// Network policies.
    NetworkPolicy,
    /// The NetworkLogging object.
    NetworkLogging,
    /// Nodes.
    Node,
    /// ReplicaSets, for the workloads' names.
    ReplicaSet,
    /// Jobs, for the workloads' names.
    Job,
    /// Services.
    Service,
    /// EndpointSlices: listed once the first node asks for backends.
    EndpointSlice,
}

impl Kind {
    /// Those that must be listed before any node is told anything.
    pub(crate) const NEEDED: [Self; 8] = [
        Self::Pod,
        Self::Namespace,
        Self::NetworkPolicy,
        Self::NetworkLogging,
        Self::Node,
        Self::ReplicaSet,
        Self::Job,
        Self::Service,
    ];
}

/// Labels: a kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfKind {
    /// The kind.
    pub(crate) kind: Kind,
}

/// Why a Kubernetes Event was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum EventLoss {
    /// Too many were waiting.
    QueueFull,
    /// The API server did not take it.
    Refused,
}

/// Labels: why an Event was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfEventLoss {
    /// Why.
    pub(crate) reason: EventLoss,
}

/// What a node's stream was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Sent {
    /// A whole view.
    Snapshot,
    /// A change.
    Change,
    /// Nothing but that it has the newest.
    Resumption,
}

/// Labels: what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfSent {
    /// What.
    pub(crate) message: Sent,
}

/// The daemon's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Objects that are known.
    pub(crate) objects: Family<OfKind, Gauge>,
    /// Failures of watches.
    pub(crate) watch_failures: Family<OfKind, Counter>,
    /// Objects that could not be understood in full.
    pub(crate) faults: Family<OfKind, Counter>,
    /// Policies that fail closed now.
    pub(crate) policies_failing_closed: Gauge,
    /// Addresses and ports of Services that nodes are not told of, as they have no room for more.
    pub(crate) frontends_left_out: Gauge,
    /// Nodes with a stream.
    pub(crate) nodes_connected: Gauge,
    /// Nodes whose stream waits for its view.
    pub(crate) nodes_waiting: Gauge,
    /// Versions of nodes' views.
    pub(crate) view_versions: Counter,
    /// Messages to nodes.
    pub(crate) sent: Family<OfSent, Counter>,
    /// Nodes whose changes were dropped for the whole view: they took too little, or all together were told too much.
    pub(crate) nodes_behind: Counter,
    /// From a change's arrival here until a node has it in its kernel.
    pub(crate) propagation: Histogram,
    /// Events that were lost.
    pub(crate) events_lost: Family<OfEventLoss, Counter>,
    /// Pods that ran before they were attached, as nodes report them.
    pub(crate) pods_attached_late: Counter,
    /// Nodes whose last report speaks of problems.
    pub(crate) nodes_with_problems: Gauge,
    /// Requests that were refused.
    pub(crate) requests_refused: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            objects: Family::default(),
            watch_failures: Family::default(),
            faults: Family::default(),
            policies_failing_closed: Gauge::default(),
            frontends_left_out: Gauge::default(),
            nodes_connected: Gauge::default(),
            nodes_waiting: Gauge::default(),
            view_versions: Counter::default(),
            sent: Family::default(),
            nodes_behind: Counter::default(),
            propagation: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
            events_lost: Family::default(),
            pods_attached_late: Counter::default(),
            nodes_with_problems: Gauge::default(),
            requests_refused: Counter::default(),
        }
    }
}

impl Metrics {
    /// New metrics, and the registry that shows them.
    pub(crate) fn new() -> (Arc<Self>, Registry) {
        let (metrics, mut registry) =
            (Arc::new(Self::default()), Registry::with_prefix("durward_controller"));
        metrics.register(&mut registry);
        (metrics, registry)
    }

    fn register(&self, registry: &mut Registry) {
        // Destructured in full, so that no metric is forgotten.
        let Self {
            objects,
            watch_failures,
            faults,
            policies_failing_closed,
            frontends_left_out,
            nodes_connected,
            nodes_waiting,
            view_versions,
            sent,
            nodes_behind,
            propagation,
            events_lost,
            pods_attached_late,
            nodes_with_problems,
            requests_refused,
        } = self;
        registry.register("objects", "Objects that are known", objects.clone());
        registry.register("watch_failures", "Failures of watches", watch_failures.clone());
        registry.register("faults", "Objects that could not be understood in full", faults.clone());
        registry.register(
            "policies_failing_closed",
            "Policies that are not understood, and so allow nothing to the pods that they select",
            policies_failing_closed.clone(),
        );
        registry.register(
            "frontends_left_out",
            "Addresses and ports of Services that nodes are not told of, as they have no room for more",
            frontends_left_out.clone(),
        );
        registry.register("nodes_connected", "Nodes with a stream", nodes_connected.clone());
        registry.register(
            "nodes_waiting",
            "Nodes whose stream waits for its view: until everything was listed, or what is under way to others was sent",
            nodes_waiting.clone(),
        );
        registry.register("view_versions", "Versions of nodes' views", view_versions.clone());
        registry.register("sent", "Messages to nodes", sent.clone());
        registry.register(
            "nodes_behind",
            "Times that a node took so little, or all nodes together were told so much, that its changes were dropped: it \
             asks for the whole view",
            nodes_behind.clone(),
        );
        registry.register_with_unit(
            "propagation",
            "From a change's arrival here until a node has it in its kernel",
            Unit::Seconds,
            propagation.clone(),
        );
        registry.register("events_lost", "Kubernetes Events that were not written", events_lost.clone());
        registry.register(
            "pods_attached_late",
            "Pods that ran before they were attached, as nodes report them",
            pods_attached_late.clone(),
        );
        registry.register(
            "nodes_with_problems",
            "Nodes whose last report speaks of problems",
            nodes_with_problems.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests of nodes that were refused",
            requests_refused.clone(),
        );
    }

    /// Counts an object that could not be understood in full.
    pub(crate) fn fault(&self, kind: Kind) {
        self.faults.get_or_create(&OfKind { kind }).inc();
    }

    /// Counts a message to a node.
    pub(crate) fn sent(&self, message: Sent) {
        self.sent.get_or_create(&OfSent { message }).inc();
    }

    /// Counts what a node reports.
    pub(crate) fn report(&self, report: &NodeReport) {
        self.pods_attached_late.inc_by(report.late.len() as u64);
    }
}
