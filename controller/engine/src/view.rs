//! A subscribed node's view, kept up to date by what changes. Pure.
//!
//! ```text
//! its pods → classes → sets → terms → addresses and blocks → atoms → rows → attributions
//! ```
//! Each stage counts what the one before it uses, and only what comes into use or goes out of it
//! reaches the next. What is marked is worked out from the cluster as it is now, so that the path
//! that led here cannot matter. What follows from that is not kept: which address has which atom (see
//! `address.rs`), which rows there are (each set's for each atom; see `answer.rs`).
//!
//! Nothing is told before it is known that the node can hold it. If it cannot, the pods of some
//! namespace are closed (see `shed.rs`), and what follows from that is worked out anew.

use std::net::IpAddr;

use durward_proto::{AtomId, Block, Delta, Direction, Patch};
use litemap::LiteMap;
use smallvec::SmallVec;

use crate::address::Change;
use crate::alike::Alike;
use crate::block::{self, Prefixes};
use crate::cluster::{Cluster, Dirt};
use crate::elements::Element;
use crate::limit::{Load, Need, NoRoom};
use crate::list::FAN;
use crate::own::{Pairs, Told};
use crate::rules::{Rules, Term};
use crate::set::Sets;
use crate::shed::{Closing, Shed};
use crate::sorted::sorted;
use crate::table::{AtomIndex, AttributionIndex, ClassId, NodeId, PodId, SetIndex};
use crate::tally::{Tally, Turnover, Uses};
use crate::terms::Terms;

/// What a node was told.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Its own pods, sorted.
    pub(crate) pods: Vec<(PodId, ClassId)>,
    /// Their classes, sorted.
    pub(crate) classes: Vec<(ClassId, Told)>,
    /// How many of its classes each set judges.
    pub(crate) sets: Tally<SetIndex>,
    pub(crate) terms: Terms,
    /// How many addresses and blocks have each atom.
    pub(crate) atoms: Tally<AtomIndex>,
    pub(crate) blocks: Prefixes,
    /// How many terms are both of a block and of a named port.
    pub(crate) named_blocks: usize,
    /// How many addresses and blocks there are.
    pub(crate) entries: usize,
    /// How many terms its atoms match, all together.
    pub(crate) matches: usize,
    /// What its rows take.
    pub(crate) load: Load,
    /// How many rows name each list.
    attributions: Tally<AttributionIndex>,
    /// Namespaces whose pods here are closed, because the node cannot hold what their policies need.
    pub(crate) shed: Vec<Shed>,
    /// The engine's generation when it was last tried with none of them closed.
    pub(crate) tried: u64,
}

impl View {
    /// Whether one of the node's pods is isolated on egress.
    pub(crate) fn judges_egress(&self, sets: &Sets) -> bool {
        self.sets.things().any(|set| sets.whole(set).direction == Direction::Egress)
    }
}

/// Brings one node's view up to date and says what changed.
pub(crate) struct Refresh<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) rules: &'a mut Rules,
    pub(crate) sets: &'a mut Sets,
    /// The sets of classes, worked out once for all nodes.
    pub(crate) pairs: &'a mut Pairs,
    /// Addresses, worked out once for all nodes whose rules mention the same.
    pub(crate) alike: &'a mut Alike,
    pub(crate) node: NodeId,
    pub(crate) view: &'a mut View,
    pub(crate) atoms: Uses<AtomIndex>,
    pub(crate) attributions: Uses<AttributionIndex>,
}

impl Refresh<'_> {
    pub(crate) fn run(mut self, dirt: Dirt) -> Patch {
        let Dirt { pods, mut classes, peers, addresses } = dirt;
        let moved = self.moved(pods, &mut classes);
        let (mut turns, mut uses) = self.turns(sorted(classes), &moved);
        let (marked, mut patch) = (sorted(addresses), Patch::default());
        let mut change = Change { all: self.view.terms.is_empty(), peers, ..Change::default() };
        let mut sets = Turnover::default();
        loop {
            let turnover = self.view.sets.settle(&mut uses);
            self.terms(&turnover, &mut change);
            sets.then(turnover);
            match self.remote(&change, &marked, &sets, &mut patch) {
                Ok(()) => break,
                Err(closing) => uses = self.close(closing, &mut turns),
            }
        }
        self.tell_own(&turns, moved, &mut patch);
        self.attributions(&mut patch);
        patch
    }

    /// Brings everything that its rules say of others up to date, if the node can hold that. Otherwise nothing of
    /// it has happened.
    fn remote(
        &mut self,
        change: &Change,
        marked: &[IpAddr],
        sets: &Turnover<SetIndex>,
        patch: &mut Patch,
    ) -> Result<(), Closing> {
        if change.blocks {
            patch.blocks = self.blocks(change).map_err(|NoRoom| self.choose(&Need::OF_BLOCKS, &vec![]))?;
        }
        patch.addresses = self.addresses(change, marked);
        self.rows(sets, patch)
    }

    /// Follows the sets to the terms that they use, and adds what changes there.
    fn terms(&mut self, sets: &Turnover<SetIndex>, change: &mut Change) {
        let uses = |sets: &[SetIndex]| {
            let terms = |set: SetIndex| &self.sets.sets[set].terms;
            let mut uses = Vec::with_capacity(sets.iter().map(|&set| terms(set).len()).sum());
            sets.iter().for_each(|&set| uses.extend(terms(set).iter().map(|&term| (term, set))));
            uses
        };
        let (come, go) = (uses(&sets.came), uses(&sets.went));
        sets.came.iter().for_each(|&set| self.sets.sets.hold(set));
        sets.went.iter().for_each(|&set| self.sets.sets.release(set));
        let turnover = self.view.terms.settle(come, go);
        let came = turnover.came.iter().map(|&term| (term, true));
        for (term, come) in came.chain(turnover.went.iter().map(|&term| (term, false))) {
            let Term { group, block, .. } = self.rules.terms.key(term);
            match group {
                Some(group) => self.cluster.route(*group, self.node, come),
                None if !change.blocks => {
                    change.blocks = true;
                    change.old_blocks = std::mem::take(&mut self.view.blocks);
                }
                None => {}
            }
            if group.is_some() && block.is_some() {
                let count = &mut self.view.named_blocks;
                *count = if come { *count + 1 } else { *count - 1 };
                change.named_blocks = true;
            }
        }
        change.terms.then(turnover);
    }

    fn blocks(&mut self, change: &Change) -> Result<Delta<Block, AtomId>, NoRoom> {
        let terms = self.view.terms.iter().filter_map(|term| Some((term, self.rules.block(term)?)));
        let flat = block::flatten(terms, |prefixes, matches| {
            self.sets.limits.hold_all([(Need::Blocks, prefixes), (Need::BlockMatches, matches)])
        })?;
        let (mut put, mut blocks) = (vec![], vec![]);
        for (block, terms) in flat {
            let elements: Vec<Element> = terms.into_iter().map(|term| (term, 0)).collect();
            let atom = self.sets.atom(self.rules, &elements);
            self.atoms.add(atom);
            if change.old_blocks.get(block) != Some(atom) {
                put.push((block, self.sets.atoms[atom]));
            }
            blocks.push((block, atom));
        }
        self.view.blocks = Prefixes::new(blocks);
        let mut delta = Delta { put: LiteMap::from_sorted_store_unchecked(put), ..Delta::default() };
        for &(block, atom) in change.old_blocks.atoms() {
            self.atoms.sub(atom);
            if self.view.blocks.get(block).is_none() {
                delta.removed.insert(block);
            }
        }
        Ok(delta)
    }

    /// Follows the lists that rows name to the lists that those are made of.
    fn attributions(&mut self, patch: &mut Patch) {
        // Of all that came or went on the way, whether it was there before.
        let mut before = SmallVec::<[(AttributionIndex, bool); 32]>::new();
        let mut uses = std::mem::take(&mut self.attributions);
        loop {
            let turnover = self.view.attributions.settle(&mut uses);
            if turnover.is_empty() {
                break;
            }
            uses.clear();
            before.extend(turnover.came.iter().map(|&list| (list, false)));
            before.extend(turnover.went.iter().map(|&list| (list, true)));
            let parts = |list: &[AttributionIndex], at: usize| {
                list.get(at).and_then(|&list| self.sets.attributions.key(list).parts())
            };
            for at in 0..turnover.came.len().max(turnover.went.len()) {
                let came = parts(&turnover.came, at).unwrap_or(&[None; FAN]);
                let went = parts(&turnover.went, at).unwrap_or(&[None; FAN]);
                // Where one policy of a list changed, all of its other branches are the same.
                for (came, went) in came.iter().zip(went).filter(|(came, went)| came != went) {
                    came.iter().for_each(|&part| uses.add(part));
                    went.iter().for_each(|&part| uses.sub(part));
                }
            }
        }
        if before.is_empty() {
            return;
        }
        // Where nothing went, each list came once. Stable: of one list, the first says what was, and after the last it is
        // the other way round.
        if before.iter().any(|&(_, was)| was) {
            before.sort_by_key(|&(list, _)| list);
        }
        let (mut put, mut removed) = (vec![], vec![]);
        for same in before.chunk_by(|(one, _), (other, _)| one == other) {
            let ((list, was), is) = (same[0], !same[same.len() - 1].1);
            let id = self.sets.attributions[list].id;
            match (was, is) {
                (false, true) => put.push((id, self.sets.policy_list(self.rules, list))),
                (true, false) => removed.push(id),
                _ => {}
            }
        }
        put.sort_unstable_by_key(|&(id, _)| id);
        debug_assert!(put.is_sorted_by(|(one, _), (other, _)| one < other), "other content is another name");
        let put = LiteMap::from_sorted_store_unchecked(put);
        patch.attributions = Delta { put, removed: removed.into_iter().collect() };
    }

    /// Nobody is interested in the node any more: lets go of everything.
    pub(crate) fn clear(mut self) {
        for term in self.view.terms.iter() {
            if let Some(group) = self.rules.terms.key(term).group {
                self.cluster.route(group, self.node, false);
            }
        }
        self.release_rows();
        self.view.atoms.things().for_each(|atom| self.sets.atoms.release(atom));
        self.view.open(self.cluster, self.sets);
    }
}
