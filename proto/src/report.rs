//! What a node says of itself, and what it is told of addresses: domain types. Pure.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Patch, PodUid};

/// A version of one node's view, by one controller. Controllers that restart choose another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The controller's run; never 0.
    pub epoch: u64,
    /// The view's number within it.
    pub number: u64,
}

/// What a node hears on its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// Before `InSync` a part of the whole view: the first is a patch to an empty one. After it a part of the next
    /// change.
    Part(Patch),
    /// The view is whole: with all the parts since the stream began, or, if there were none, with what the
    /// node said that it has.
    InSync(Version),
    /// What changes: what the parts before it say, and then this, all at once.
    Change {
        /// The version that it leads to.
        to: Version,
        /// The change, or the last of its parts.
        patch: Patch,
    },
}

/// What controls a pod: a ReplicaSet's Deployment, a Job's CronJob, else its controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Its kind.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A pod as the log names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What controls it; none of a bare pod.
    pub workload: Option<Workload>,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pod; none if no pod has it.
    pub pod: Option<PodName>,
    /// Since when that is so, in milliseconds of the controller's clock since 1970. What happened before is
    /// not known to be this pod's doing.
    pub since_ms: i64,
}

/// Asks who has these addresses, at most [`IdentifyRequest::MAX`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyRequest(pub Vec<IpAddr>);

impl IdentifyRequest {
    /// How many addresses one request may ask for.
    pub const MAX: usize = 1000;
}

/// Where something can be lost between a packet and its log line.
///
/// The names are fixed: dashboards and the wire have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossPlace {
    /// Kernel: a record was due and the ring was full.
    Ring,
    /// Kernel: over the budget of an endpoint and CPU, or no place in the table of denials.
    KernelBudget,
    /// The node's budget of lines a second was used up.
    LineBudget,
    /// The writer's queue was full: the disk is slow.
    Queue,
    /// The file could not be written.
    File,
    /// The interface is nobody's that is known: the line names its pod by the address only.
    Endpoint,
    /// The verdict's policies are not known any more: a line without them, or none where they decide.
    Policies,
    /// A name was not learnt in time: the line has the address.
    Name,
}

impl LossPlace {
    /// All places.
    pub const ALL: [Self; 8] = [
        Self::Ring,
        Self::KernelBudget,
        Self::LineBudget,
        Self::Queue,
        Self::File,
        Self::Endpoint,
        Self::Policies,
        Self::Name,
    ];

    /// The place's fixed name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::KernelBudget => "kernel_budget",
            Self::LineBudget => "line_budget",
            Self::Queue => "queue",
            Self::File => "file",
            Self::Endpoint => "endpoint",
            Self::Policies => "policies",
            Self::Name => "name",
        }
    }

    /// The place of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.name() == name)
    }
}

impl fmt::Display for LossPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A pod that ran before it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateAttach {
    /// The pod.
    pub pod: PodUid,
    /// For how long, in milliseconds.
    pub open_ms: u64,
}

/// What a node has to say of itself; the newest report counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// The node.
    pub node: String,
    /// What was lost on the way to the log, since the enforcer started. Each place at most once.
    pub losses: Vec<(LossPlace, u64)>,
    /// Pods that ran before they were attached, since the last report.
    pub late: Vec<LateAttach>,
    /// What stands in the way of full enforcement, for people to read; empty when all is well.
    pub problems: Vec<String>,
}
