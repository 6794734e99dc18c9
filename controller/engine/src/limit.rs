//! Limits, and what is wrong with policies that fail closed. Pure.
//!
//! A policy over a limit of its own isolates the pods that it selects and allows nothing, as an
//! unreadable one does. Where the policies of a pod are too much together, what they are too much for
//! is denied. Other pods are not concerned.

use thiserror::Error;

use crate::object::{Peer, Spec};

/// How much one policy may say, and how much a node may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules of one policy, both directions together.
    pub rules_per_policy: usize,
    /// Entries of `from` or `to` of one policy, all rules together; each `except` counts as one.
    pub peers_per_policy: usize,
    /// Entries of `ports` of one policy, all rules together.
    pub ports_per_policy: usize,
    /// Steps of one row: ranges of ports with a verdict of their own, for one pod and one remote
    /// address. Kernels take no more.
    pub steps_per_row: usize,
    /// How often the rules behind one row, and the attributions in it, may mention a policy.
    pub mentions_per_row: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rules_per_policy: 1_000,
            peers_per_policy: 5_000,
            ports_per_policy: 5_000,
            steps_per_row: 16_384,
            mentions_per_row: 1_000_000,
        }
    }
}

/// Why a policy fails closed: it isolates the pods that it selects and allows nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub enum Fault {
    /// It is not understood.
    #[error("{reason}; until that is mended the policy isolates the pods it selects and allows nothing")]
    Unreadable {
        /// What is not understood, and what to do about it.
        reason: String,
    },
    /// It says more than a policy may.
    #[error(
        "the policy has {found} {what}, and {limit} is the limit: divide it; until then it isolates the pods it \
         selects and allows nothing"
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
    /// It says more than can be judged, together with the other policies of the same pods.
    #[error(
        "with the other policies of the pods it selects, the policy needs more than {limit} {what} for some remote \
         addresses: connections with those are denied; divide it by pods, or join its ports to ranges"
    )]
    TooManyTogether {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

impl Limits {
    /// What is wrong with a policy by itself.
    pub(crate) fn check(&self, spec: &Spec) -> Option<Fault> {
        let rules = match spec {
            Spec::Unreadable { reason, .. } => return Some(Fault::Unreadable { reason: reason.clone() }),
            Spec::Readable(rules) => rules,
        };
        let all = || rules.ingress.iter().chain(&rules.egress).flatten();
        let weight = |peer: &Peer| match peer {
            Peer::Pods { .. } => 1,
            Peer::Block { except, .. } => 1 + except.len(),
        };
        let counts = [
            ("rules", all().count(), self.rules_per_policy),
            ("peers", all().flat_map(|rule| &rule.peers).map(weight).sum(), self.peers_per_policy),
            ("ports", all().map(|rule| rule.ports.len()).sum(), self.ports_per_policy),
        ];
        let over = counts.into_iter().find(|(_, found, limit)| found > limit);
        over.map(|(what, found, limit)| Fault::TooMany { what, found, limit })
    }
}
