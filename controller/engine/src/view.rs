//! A subscribed node's view, kept up to date by what changes. Pure.
//!
//! ```text
//! its pods → classes → sets → terms → addresses and blocks → atoms → rows → attributions
//! ```
//! Each stage counts what the one before it uses, and only what comes into use or goes out of it
//! reaches the next. What is marked is worked out from the cluster as it is now, so that the path
//! that led here cannot matter. What follows from that is not kept: which address has which atom (see
//! `address.rs`), which rows there are (each set's for each atom).

use std::collections::BTreeMap;

use durward_proto::{AtomId, Block, Delta, Direction, Patch, Row, SetDelta, view};
use hashbrown::HashMap;

use crate::address::Change;
use crate::attribution::AttributionState;
use crate::block::{self, Prefixes};
use crate::cluster::{Cluster, Dirt, sorted};
use crate::elements::Element;
use crate::own::{SetPair, Told};
use crate::rules::{Rules, Term};
use crate::set::{Sets, Whole};
use crate::table::{AtomIndex, AttributionIndex, ClassId, NodeId, PodId, RowIndex, SetIndex};
use crate::tally::{Tally, Uses};
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
    /// How many rows name each list.
    attributions: Tally<AttributionIndex>,
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
    pub(crate) pairs: &'a mut HashMap<ClassId, SetPair>,
    pub(crate) node: NodeId,
    pub(crate) view: &'a mut View,
    pub(crate) atoms: Uses<AtomIndex>,
    pub(crate) attributions: Uses<AttributionIndex>,
}

/// Atoms by the terms that their addresses match, sorted.
type ByTerm = Vec<(Element, AtomIndex)>;

impl Refresh<'_> {
    pub(crate) fn run(mut self, dirt: Dirt) -> Patch {
        let Dirt { pods, classes, addresses } = dirt;
        let mut patch = Patch::default();
        let uses = self.own(pods, classes, &mut patch);
        let (new_sets, old_sets) = self.view.sets.settle(uses);
        let mut change = self.terms(&new_sets, &old_sets);
        if change.blocks {
            patch.blocks = self.blocks(&mut change);
        }
        patch.addresses = self.addresses(&change, addresses);
        self.rows(&new_sets, &old_sets, &mut patch);
        self.attributions(&mut patch);
        patch
    }

    /// Follows the sets to the terms that they use.
    fn terms(&mut self, new: &[SetIndex], old: &[SetIndex]) -> Change {
        let uses = |sets: &[SetIndex]| {
            let of = |&set: &SetIndex| self.sets.sets[set].terms.iter().map(move |&term| (term, set));
            sets.iter().flat_map(of).collect()
        };
        let (come, go) = (uses(new), uses(old));
        new.iter().for_each(|&set| self.sets.sets.hold(set));
        old.iter().for_each(|&set| self.sets.sets.release(set));
        let all = self.view.terms.is_empty();
        let (came, went) = self.view.terms.settle(come, go);
        let mut change = Change { all, ..Change::default() };
        for (&term, come) in came.iter().map(|term| (term, true)).chain(went.iter().map(|term| (term, false)))
        {
            let Term { group, block, .. } = self.rules.terms.key(term);
            match group {
                Some(group) => self.cluster.route(*group, self.node, come),
                None => change.blocks = true,
            }
            if group.is_some() && block.is_some() {
                let count = &mut self.view.named_blocks;
                *count = if come { *count + 1 } else { *count - 1 };
                change.named_blocks = true;
            }
        }
        (change.came, change.went) = (came, went);
        change
    }

    fn blocks(&mut self, change: &mut Change) -> Delta<Block, AtomId> {
        let terms = self.view.terms.iter().filter_map(|term| match self.rules.terms.key(term) {
            Term { group: None, block: Some(block), .. } => Some((term, &**block)),
            _ => None,
        });
        let flat = block::flatten(terms);
        let mut delta = Delta::default();
        let mut blocks = vec![];
        for (block, terms) in flat {
            let elements: Vec<Element> = terms.into_iter().map(|term| (term, 0)).collect();
            let atom = self.sets.atom(self.rules, &elements);
            self.atoms.add(atom);
            if self.view.blocks.get(block) != Some(atom) {
                delta.put.insert(block, self.sets.atoms[atom]);
            }
            blocks.push((block, atom));
        }
        change.old_blocks = std::mem::replace(&mut self.view.blocks, Prefixes::new(blocks));
        for &(block, atom) in change.old_blocks.atoms() {
            self.atoms.sub(atom);
            if self.view.blocks.get(block).is_none() {
                delta.removed.insert(block);
            }
        }
        delta
    }

    fn rows(&mut self, new_sets: &[SetIndex], old_sets: &[SetIndex], patch: &mut Patch) {
        let uses = std::mem::take(&mut self.atoms);
        let before = if old_sets.is_empty() { vec![] } else { self.by_term(self.view.atoms.things()) };
        let (new_atoms, old_atoms) = self.view.atoms.settle(uses);
        new_atoms.iter().for_each(|&atom| self.sets.atoms.hold(atom));
        for &set in old_sets {
            for (_, row) in self.told_rows(set, &before) {
                self.drop_row(row);
            }
            let Whole { id, base, .. } = self.sets.whole(set);
            self.drop_row(base);
            patch.sets.insert(id, SetDelta::Removed);
        }
        if !(new_atoms.is_empty() && old_atoms.is_empty()) {
            let [new, old] = [&new_atoms, &old_atoms].map(|atoms| self.by_term(atoms.iter().copied()));
            let terms = new.iter().chain(&old).map(|((term, _), _)| *term);
            let sets = sorted(terms.flat_map(|term| self.view.terms.users(term)).collect());
            for set in sets.into_iter().filter(|set| new_sets.binary_search(set).is_err()) {
                let delta = self.change_rows(set, &new, &old);
                if !delta.is_empty() {
                    patch.sets.insert(self.sets.whole(set).id, SetDelta::Rows(delta));
                }
            }
        }
        let atoms = if new_sets.is_empty() { vec![] } else { self.by_term(self.view.atoms.things()) };
        for &set in new_sets {
            let Whole { id, direction, base } = self.sets.whole(set);
            self.take_row(base);
            let content = view::Set {
                direction,
                base: self.sets.said(base).clone(),
                rows: self.change_rows(set, &atoms, &vec![]).put,
            };
            patch.sets.insert(id, SetDelta::New(content));
        }
        old_atoms.iter().for_each(|&atom| self.sets.atoms.release(atom));
    }

    fn by_term(&self, atoms: impl Iterator<Item = AtomIndex>) -> ByTerm {
        let mut by_term: ByTerm = atoms
            .flat_map(|atom| self.sets.atoms.key(atom).iter().map(move |&element| (element, atom)))
            .collect();
        by_term.sort_unstable();
        by_term
    }

    /// Adds a set's rows for atoms that came, and removes those for atoms that went.
    fn change_rows(&mut self, set: SetIndex, new: &ByTerm, old: &ByTerm) -> Delta<AtomId, Row> {
        let mut delta = Delta::default();
        for (atom, row) in self.told_rows(set, old) {
            self.drop_row(row);
            delta.removed.insert(self.sets.atoms[atom]);
        }
        let told = self.told_rows(set, new);
        let mut put = Vec::with_capacity(told.len());
        for (atom, row) in told {
            self.take_row(row);
            put.push((self.sets.atoms[atom], self.sets.said(row).clone()));
        }
        delta.put = put.into_iter().collect();
        delta
    }

    /// A set's rows for these atoms, where they say something else than its base row.
    fn told_rows(&mut self, set: SetIndex, atoms: &ByTerm) -> Vec<(AtomIndex, RowIndex)> {
        let terms = &self.sets.sets[set].terms;
        let mut matching: Vec<(AtomIndex, Element)> = vec![];
        if terms.len() < atoms.len() {
            for term in terms {
                let first = atoms.partition_point(|((other, _), _)| other < term);
                let same = atoms[first..].iter().take_while(|((other, _), _)| other == term);
                matching.extend(same.map(|&(element, atom)| (atom, element)));
            }
        } else {
            let used = atoms.iter().filter(|((term, _), _)| terms.binary_search(term).is_ok());
            matching.extend(used.map(|&(element, atom)| (atom, element)));
        }
        matching.sort_unstable();
        let (mut told, mut elements) = (vec![], vec![]);
        for same in matching.chunk_by(|(one, _), (other, _)| one == other) {
            elements.clear();
            elements.extend(same.iter().map(|&(_, element)| element));
            if let Some(row) = self.sets.row(self.rules, set, &elements) {
                told.push((same[0].0, row));
            }
        }
        told
    }

    fn take_row(&mut self, row: RowIndex) {
        self.sets.rows.hold(row);
        self.sets.named(row).iter().for_each(|&attribution| self.attributions.add(attribution));
    }

    fn drop_row(&mut self, row: RowIndex) {
        self.sets.named(row).iter().for_each(|&attribution| self.attributions.sub(attribution));
        self.sets.rows.release(row);
    }

    /// Follows the lists that rows name to the lists that those are made of.
    fn attributions(&mut self, patch: &mut Patch) {
        // What was there before, of all that came or went on the way.
        let mut before = BTreeMap::<AttributionIndex, bool>::new();
        let mut uses = std::mem::take(&mut self.attributions);
        loop {
            let (came, went) = self.view.attributions.settle(uses);
            if came.is_empty() && went.is_empty() {
                break;
            }
            uses = Uses::default();
            for &list in &came {
                before.entry(list).or_insert(false);
                self.sets.attributions.key(list).children().for_each(|part| uses.add(part));
            }
            for &list in &went {
                before.entry(list).or_insert(true);
                self.sets.attributions.key(list).children().for_each(|part| uses.sub(part));
            }
        }
        let Delta { put, removed } = &mut patch.attributions;
        for (list, was) in before {
            let AttributionState { id, list: content, .. } = &self.sets.attributions[list];
            match (was, self.view.attributions.uses(list) > 0) {
                (false, true) => drop(put.insert(*id, content.clone())),
                (true, false) => drop(removed.insert(*id)),
                _ => {}
            }
        }
    }

    /// Nobody is interested in the node any more: lets go of everything.
    pub(crate) fn clear(mut self) {
        for term in self.view.terms.iter() {
            if let Some(group) = self.rules.terms.key(term).group {
                self.cluster.route(group, self.node, false);
            }
        }
        let atoms = self.by_term(self.view.atoms.things());
        for set in self.view.sets.things().collect::<Vec<_>>() {
            let base = self.sets.whole(set).base;
            let rows = self.told_rows(set, &atoms);
            rows.into_iter().map(|(_, row)| row).chain([base]).for_each(|row| self.sets.rows.release(row));
            self.sets.sets.release(set);
        }
        self.view.atoms.things().for_each(|atom| self.sets.atoms.release(atom));
    }
}
