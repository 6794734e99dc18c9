//! Limits, and what is wrong with policies that fail closed. Pure.
//!
//! A policy over a limit of its own isolates the pods that it selects and allows nothing, as an
//! unreadable one does. Where the policies of a pod are too much together, what they are too much for
//! is denied. Where a node would have to hold too much, it closes the pods of the namespaces that
//! need most (see `shed.rs`). Other pods are not concerned. Where Services have more frontends than nodes
//! have room for, namespaces that have most leave out some of their own (see `share.rs`).

use std::num::NonZeroUsize;
use std::ops::{AddAssign, SubAssign};
use std::sync::Arc;

use durward_proto::Frontend;
use thiserror::Error;

use crate::list::LEAF;
use crate::object::{Peer, Ports, Rule, Spec};

/// How much one policy may say, and how much a node may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules of one policy, both directions together.
    pub rules_per_policy: usize,
    /// Entries of `from` or `to` of one policy, all rules together; each `except` counts as one.
    pub peers_per_policy: usize,
    /// Entries of `ports` of one policy, all rules together.
    pub ports_per_policy: usize,
    /// Peers of one policy's egress rules, once for each port that the rule names: each pair is matched by itself.
    pub named_peers_per_policy: usize,
    /// Steps of one row: ranges of ports with a verdict of their own, for one pod and one remote
    /// address. Kernels take no more.
    pub steps_per_row: usize,
    /// How many policies a list has at most that is not divided. All controllers must have the same, for what lists
    /// are called depends on it; fewer than the default is for tests, in which lists are short.
    pub policies_per_leaf: usize,
    /// After how many events, while no node is subscribed, what they leave behind is put in order, also in the middle of a
    /// batch: as long as caches hold it.
    pub events_per_piece: NonZeroUsize,
    /// How often the rules behind one row, and the attributions in it, may mention a policy.
    pub mentions_per_row: usize,
    /// Addresses of pods that the rules on one node mention. Kernels hold 524,288, so that there is room
    /// for what comes beside what goes.
    pub addresses_per_node: usize,
    /// Prefixes that `ipBlock`s on one node are told apart by. Kernels hold twice that.
    pub blocks_per_node: usize,
    /// Atoms of one node: kinds of addresses and blocks that its rules tell apart.
    pub atoms_per_node: usize,
    /// How many peers of rules the atoms of one node match, all together, and likewise its prefixes.
    pub matches_per_node: usize,
    /// For each set of one node the atoms that its rules mention, all together. Kernels hold twice that.
    pub rows_per_node: usize,
    /// Pages of one node's rows: a row of more than 16 steps takes one for each 128 of them and one more.
    /// Kernels hold twice that.
    pub pages_per_node: usize,
    /// Entries of `ports` behind one node's rows, all together: what it costs to work them out.
    pub ports_per_node: usize,
    /// How often the rows of one node permit by a policy, all ports of a row that the same policies
    /// permit together. What all of a pod's policies permit does not count, nor what they deny: those are
    /// one list.
    pub mentions_per_node: usize,
    /// Frontends of Services. Kernels hold twice that, so that there is room for what comes beside what goes.
    pub frontends_per_node: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rules_per_policy: 1_000,
            peers_per_policy: 5_000,
            ports_per_policy: 5_000,
            named_peers_per_policy: 50_000,
            steps_per_row: 16_384,
            policies_per_leaf: LEAF,
            events_per_piece: const { NonZeroUsize::new(256).unwrap() },
            mentions_per_row: 1_000_000,
            addresses_per_node: 400_000,
            blocks_per_node: 65_536,
            atoms_per_node: 65_536,
            matches_per_node: 4_000_000,
            rows_per_node: 131_072,
            pages_per_node: 32_768,
            ports_per_node: 16_000_000,
            mentions_per_node: 4_000_000,
            frontends_per_node: 65_536,
        }
    }
}

/// How many steps a row may have that takes no page.
const SHORT: usize = 16;
/// How many steps there are to a page.
const PAGE: usize = 128;

/// How many pages a row of so many steps takes in the kernel.
pub(crate) fn pages(steps: usize) -> usize {
    if steps <= SHORT { 0 } else { 1 + steps.div_ceil(PAGE) }
}

/// What a node may only hold so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    BlockMatches,
    Blocks,
    Addresses,
    AtomMatches,
    Atoms,
    Rows,
    Pages,
    Ports,
    Mentions,
}

/// A node would have to hold more than it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// What rows take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) rows: usize,
    pub(crate) pages: usize,
    pub(crate) ports: usize,
    pub(crate) mentions: usize,
}

impl Load {
    pub(crate) fn of(&self, need: Need) -> usize {
        match need {
            Need::Rows => self.rows,
            Need::Pages => self.pages,
            Need::Ports => self.ports,
            Need::Mentions => self.mentions,
            Need::BlockMatches | Need::Blocks | Need::Addresses | Need::AtomMatches | Need::Atoms => 0,
        }
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.pages += other.pages;
        self.ports += other.ports;
        self.mentions += other.mentions;
    }
}

impl SubAssign for Load {
    fn sub_assign(&mut self, other: Self) {
        self.rows -= other.rows;
        self.pages -= other.pages;
        self.ports -= other.ports;
        self.mentions -= other.mentions;
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
    /// A node cannot hold what the policies of its namespace need, beside what all others do.
    #[error(
        "node {node} would need more than {limit} {what}, and of all namespaces with pods on it this policy's needs \
         most: its pods there that policies isolate are allowed nothing; of those policies this one mentions most: \
         let it mention fewer pods, blocks and ports"
    )]
    TooManyOnNode {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// Which node; of several, the first by name.
        node: Arc<str>,
    },
}

/// A namespace has more frontends than nodes have room for, beside those of all others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "nodes have room for {limit} addresses and ports of Services, and this namespace is one of those with most: of its \
     own, {count} are left out, from {first} on, which is this Service's; calls there are judged as calls to any address \
     that is no Service's: have fewer Services, addresses or ports in the namespace"
)]
pub struct LeftOut {
    /// The Service of the first that is left out.
    pub service: Arc<str>,
    /// The first that is left out, as all of the namespace after it are.
    pub first: Frontend,
    /// How many are.
    pub count: usize,
    /// How many frontends a node has room for.
    pub limit: usize,
}

impl Fault {
    /// Whether it says the same of a policy, if of another node.
    pub fn is_same_but_for_node(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::TooManyOnNode { what, limit, .. }, Self::TooManyOnNode { what: of, limit: most, .. }) => {
                (what, limit) == (of, most)
            }
            _ => self == other,
        }
    }
}

impl Need {
    /// In the order in which a node is made to hold no more of each than it can. What comes first bounds what it
    /// costs to find out how much there is of the others.
    pub(crate) const ALL: [Self; 9] = [
        Self::BlockMatches,
        Self::Blocks,
        Self::Addresses,
        Self::AtomMatches,
        Self::Atoms,
        Self::Rows,
        Self::Ports,
        Self::Pages,
        Self::Mentions,
    ];

    /// Those of blocks, without which there are no atoms.
    pub(crate) const OF_BLOCKS: [Self; 2] = [Self::BlockMatches, Self::Blocks];

    /// Those of rows: what several namespaces need of them is at least what each does, together.
    pub(crate) const OF_ROWS: [Self; 4] = [Self::Rows, Self::Ports, Self::Pages, Self::Mentions];

    /// What there is too much of, and how much there may be.
    pub(crate) fn of(self, limits: &Limits) -> (&'static str, usize) {
        match self {
            Self::BlockMatches => ("matches of blocks", limits.matches_per_node),
            Self::Blocks => ("prefixes of blocks", limits.blocks_per_node),
            Self::Addresses => ("addresses of pods", limits.addresses_per_node),
            Self::AtomMatches => ("matches of peers", limits.matches_per_node),
            Self::Atoms => ("kinds of addresses", limits.atoms_per_node),
            Self::Rows => ("rows", limits.rows_per_node),
            Self::Pages => ("pages of ranges of ports", limits.pages_per_node),
            Self::Ports => ("ports of rules", limits.ports_per_node),
            Self::Mentions => ("mentions of policies", limits.mentions_per_node),
        }
    }
}

impl Limits {
    /// Whether a node can hold what rows take.
    pub(crate) fn hold(&self, load: &Load) -> Result<(), NoRoom> {
        self.hold_all(Need::OF_ROWS.map(|need| (need, load.of(need))))
    }

    /// Whether a node can hold so much of these.
    pub(crate) fn hold_all(&self, counts: impl IntoIterator<Item = (Need, usize)>) -> Result<(), NoRoom> {
        let fit = counts.into_iter().all(|(need, count)| count <= need.of(self).1);
        if fit { Ok(()) } else { Err(NoRoom) }
    }

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
        let named = |rule: &Rule| {
            let ports = rule.ports.iter().filter(|port| matches!(port.ports, Ports::Named(_))).count();
            ports * rule.peers.iter().map(weight).sum::<usize>().max(1)
        };
        let named = rules.egress.iter().flatten().map(named).sum();
        let counts = [
            ("rules", all().count(), self.rules_per_policy),
            ("peers", all().flat_map(|rule| &rule.peers).map(weight).sum(), self.peers_per_policy),
            ("ports", all().map(|rule| rule.ports.len()).sum(), self.ports_per_policy),
            ("peers for each of its named ports", named, self.named_peers_per_policy),
        ];
        let over = counts.into_iter().find(|(_, found, limit)| found > limit);
        over.map(|(what, found, limit)| Fault::TooMany { what, found, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Protocol;
    use crate::sample::{block, egress, named, rule};

    #[test]
    fn what_it_costs_to_work_rows_out_is_bounded_before_they_are() {
        let at = |need| Need::ALL.iter().position(|other| *other == need);
        // The number of rows is known without any of them; of the others each needs all rows.
        assert!(at(Need::Rows) < at(Need::Ports));
        assert!(at(Need::Ports) < at(Need::Pages) && at(Need::Ports) < at(Need::Mentions));
        assert_eq!(Need::ALL[5..], Need::OF_ROWS);
    }

    #[test]
    fn a_policy_of_too_many_peers_for_named_ports_fails_closed() {
        let limits = Limits { named_peers_per_policy: 6, ..Limits::default() };
        let check = |peers: usize, ports: usize| {
            let peers = (0..peers).map(|n| block(&format!("10.0.{n}.0/24"), &[]));
            let ports = (0..ports).map(|n| named(Protocol::Tcp, &format!("p{n}")));
            limits.check(&egress("a/p", "", [rule(peers, ports)]).spec)
        };
        assert_eq!((check(2, 3), check(0, 6)), (None, None));
        let fault =
            |found| Some(Fault::TooMany { what: "peers for each of its named ports", found, limit: 6 });
        assert_eq!((check(3, 3), check(0, 7)), (fault(9), fault(7)));
    }
}
