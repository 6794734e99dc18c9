//! A subscribed node's view, kept up to date by what changes. Pure.
//!
//! ```text
//! its pods → sets → terms → addresses and blocks → atoms → rows → attributions
//! ```
//! Each stage counts what the one before it uses, and only what comes into use or goes out of it
//! reaches the next. What is marked is worked out from the cluster as it is now, so that the path
//! that led here cannot matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use durward_proto::{AtomId, Block, Delta, Direction, Patch, PodUid, SetDelta, view};
use hashbrown::HashMap;

use crate::address::Change;
use crate::block::{self, Prefixes};
use crate::cluster::{Cluster, Dirt, Live};
use crate::object::Key;
use crate::rules::{Rules, Term};
use crate::set::Sets;
use crate::table::{AtomIndex, AttributionIndex, ClassId, NodeId, PodId, RowIndex, SetIndex, Tally, TermId};

/// The sets that judge a class's pods, by direction.
pub(crate) type SetPair = [Option<SetIndex>; 2];

/// What a node was told.
#[derive(Debug, Default)]
pub(crate) struct View {
    pods: HashMap<PodId, Shown>,
    sets: Tally<SetIndex>,
    pub(crate) terms: Tally<TermId>,
    /// How many addresses and blocks have each atom. Which ones is not kept: see `address.rs`.
    pub(crate) atoms: Tally<AtomIndex>,
    pub(crate) blocks: Prefixes,
    /// How many terms are both of a block and of a named port.
    pub(crate) named_blocks: usize,
    /// By set, the rows that differ from its base row.
    rows: HashMap<SetIndex, HashMap<AtomIndex, RowIndex>>,
    attributions: Tally<AttributionIndex>,
}

impl View {
    /// Whether one of the node's pods is isolated on egress.
    pub(crate) fn judges_egress(&self, sets: &Sets) -> bool {
        self.sets.things().any(|set| sets.sets.key(set).direction == Direction::Egress)
    }
}

/// One of the node's own pods, as it was told.
#[derive(Clone, Debug)]
struct Shown {
    live: Arc<Live>,
    denies_logged: bool,
    pair: SetPair,
}

impl Shown {
    fn says_the_same(&self, other: &Self) -> bool {
        let told = |shown: &Self| (shown.denies_logged, shown.pair);
        let Live { uid, class: _, addresses, node: _, config_hash } = &*self.live;
        told(self) == told(other)
            && (uid, addresses, config_hash)
                == (&other.live.uid, &other.live.addresses, &other.live.config_hash)
    }
}

/// Brings one node's view up to date and says what changed.
pub(crate) struct Refresh<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) rules: &'a mut Rules,
    pub(crate) sets: &'a mut Sets,
    /// The sets of classes, worked out once in a batch for all nodes.
    pub(crate) pairs: &'a mut HashMap<ClassId, SetPair>,
    pub(crate) node: NodeId,
    pub(crate) view: &'a mut View,
}

impl Refresh<'_> {
    pub(crate) fn run(mut self, dirt: Dirt) -> Patch {
        let mut patch = Patch { pods: self.pods(&dirt), ..Patch::default() };
        let (new_sets, old_sets) = self.view.sets.settle();
        let mut change = self.terms(&new_sets, &old_sets);
        if change.blocks {
            patch.blocks = self.blocks(&mut change);
        }
        patch.addresses = self.addresses(&change, dirt.addresses);
        self.rows(&new_sets, &old_sets, &mut patch);
        self.attributions(&mut patch);
        patch
    }

    fn pods(&mut self, dirt: &Dirt) -> Delta<PodUid, view::Pod> {
        let mut delta = Delta::default();
        for &id in &dirt.pods {
            let live = self.cluster.pods[id].live.clone().filter(|live| live.node == Some(self.node));
            let new = live.map(|live| self.shown(live));
            for &set in new.iter().flat_map(|new| &new.pair).flatten() {
                self.view.sets.add(set);
            }
            let old = match new.clone() {
                Some(new) => self.view.pods.insert(id, new),
                None => self.view.pods.remove(&id),
            };
            for &set in old.iter().flat_map(|old| &old.pair).flatten() {
                self.view.sets.sub(set);
            }
            if matches!((&old, &new), (Some(old), Some(new)) if old.says_the_same(new)) {
                continue;
            }
            if let Some(old) = old {
                delta.removed.insert(old.live.uid.clone());
            }
            if let Some(new) = new {
                delta.put.insert(new.live.uid.clone(), self.pod(id, &new));
            }
        }
        delta.removed.retain(|uid| !delta.put.contains_key(uid));
        delta
    }

    fn shown(&mut self, live: Arc<Live>) -> Shown {
        let (pair, denies_logged) = (self.pair(live.class), self.cluster.denies_logged(live.class));
        Shown { live, denies_logged, pair }
    }

    fn pod(&self, id: PodId, shown: &Shown) -> view::Pod {
        let Key { namespace, name } = self.cluster.pods.key(id).clone();
        let [ingress, egress] = shown.pair.map(|set| set.map(|set| self.sets.sets[set].id));
        view::Pod {
            namespace,
            name,
            addresses: shown.live.addresses.to_vec(),
            config_hash: shown.live.config_hash.clone(),
            ingress,
            egress,
            denies_logged: shown.denies_logged,
        }
    }

    fn pair(&mut self, class: ClassId) -> SetPair {
        if let Some(pair) = self.pairs.get(&class) {
            return *pair;
        }
        let pair = Direction::BOTH.map(|direction| {
            let bodies = self.cluster.isolating(class, direction);
            let ports = match direction {
                Direction::Ingress => &*self.cluster.classes.key(class).ports,
                Direction::Egress => &[],
            };
            (!bodies.is_empty()).then(|| self.sets.set(self.rules, direction, bodies, ports))
        });
        self.pairs.insert(class, pair);
        pair
    }

    /// Follows the sets to the terms that they use.
    fn terms(&mut self, new: &[SetIndex], old: &[SetIndex]) -> Change {
        for &set in new {
            self.sets.sets.hold(set);
            self.sets.sets[set].terms.iter().for_each(|&term| self.view.terms.add(term));
        }
        for &set in old {
            self.sets.sets[set].terms.iter().for_each(|&term| self.view.terms.sub(term));
            self.sets.sets.release(set);
        }
        let (came, went) = self.view.terms.settle();
        let mut change = Change::default();
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
        (change.came, change.went) = (came.into_iter().collect(), went.into_iter().collect());
        change
    }

    fn blocks(&mut self, change: &mut Change) -> Delta<Block, AtomId> {
        let terms = self.view.terms.things().filter_map(|term| match self.rules.terms.key(term) {
            Term { group: None, block: Some(block), .. } => Some((term, &**block)),
            _ => None,
        });
        let flat = block::flatten(terms);
        let mut delta = Delta::default();
        let mut blocks = BTreeMap::new();
        for (block, terms) in flat {
            let atom = self.sets.atom(self.rules, terms.into_iter().map(|term| (term, 0)).collect());
            self.view.atoms.add(atom);
            if self.view.blocks.atoms().get(&block) != Some(&atom) {
                delta.put.insert(block, self.sets.atoms[atom]);
            }
            blocks.insert(block, atom);
        }
        change.old_blocks = std::mem::replace(&mut self.view.blocks, Prefixes::new(blocks));
        for (block, &atom) in change.old_blocks.atoms() {
            self.view.atoms.sub(atom);
            if !self.view.blocks.atoms().contains_key(block) {
                delta.removed.insert(*block);
            }
        }
        delta
    }

    fn rows(&mut self, new_sets: &[SetIndex], old_sets: &[SetIndex], patch: &mut Patch) {
        let (new_atoms, old_atoms) = self.view.atoms.settle();
        new_atoms.iter().for_each(|&atom| self.sets.atoms.hold(atom));
        for set in old_sets {
            let rows = self.view.rows.remove(set).unwrap_or_default();
            for row in rows.into_values().chain([self.sets.sets[*set].base]) {
                self.drop_row(row);
            }
            patch.sets.insert(self.sets.sets[*set].id, SetDelta::Removed);
        }
        let new_by_term = self.by_term(new_atoms.iter().copied());
        let untouched = new_atoms.is_empty() && old_atoms.is_empty();
        let kept: Vec<_> = if untouched { vec![] } else { self.view.rows.keys().copied().collect() };
        for set in kept {
            let mut delta = Delta::default();
            for atom in &old_atoms {
                if let Some(row) = self.view.rows.get_mut(&set).and_then(|rows| rows.remove(atom)) {
                    self.drop_row(row);
                    delta.removed.insert(self.sets.atoms[*atom]);
                }
            }
            delta.put = self.add_rows(set, &new_by_term);
            if !delta.is_empty() {
                patch.sets.insert(self.sets.sets[set].id, SetDelta::Rows(delta));
            }
        }
        let atoms = if new_sets.is_empty() { HashMap::new() } else { self.by_term(self.view.atoms.things()) };
        for &set in new_sets {
            self.view.rows.insert(set, HashMap::new());
            let (id, base) = (self.sets.sets[set].id, self.sets.sets[set].base);
            self.take_row(base);
            let content = view::Set {
                direction: self.sets.sets.key(set).direction,
                base: self.sets.rows[base].row.clone(),
                rows: self.add_rows(set, &atoms),
            };
            patch.sets.insert(id, SetDelta::New(content));
        }
        old_atoms.iter().for_each(|&atom| self.sets.atoms.release(atom));
    }

    /// Atoms by the terms that their addresses match.
    fn by_term(&self, atoms: impl Iterator<Item = AtomIndex>) -> HashMap<TermId, Vec<AtomIndex>> {
        let mut by_term = HashMap::<_, Vec<_>>::new();
        for atom in atoms {
            for &(term, _) in self.sets.atoms.key(atom) {
                by_term.entry(term).or_default().push(atom);
            }
        }
        by_term
    }

    /// Adds a set's rows for these atoms.
    fn add_rows(
        &mut self,
        set: SetIndex,
        atoms: &HashMap<TermId, Vec<AtomIndex>>,
    ) -> BTreeMap<AtomId, durward_proto::Row> {
        let mut added = BTreeMap::new();
        let terms = self.sets.sets[set].terms.iter();
        let mut matching: Vec<_> = terms.filter_map(|term| atoms.get(term)).flatten().copied().collect();
        matching.sort_unstable();
        matching.dedup();
        for atom in matching {
            let Some(row) = self.sets.row(self.rules, set, atom) else { continue };
            self.take_row(row);
            self.view.rows.entry(set).or_default().insert(atom, row);
            added.insert(self.sets.atoms[atom], self.sets.rows[row].row.clone());
        }
        added
    }

    fn take_row(&mut self, row: RowIndex) {
        self.sets.rows.hold(row);
        self.sets.rows[row]
            .attributions
            .iter()
            .for_each(|&attribution| self.view.attributions.add(attribution));
    }

    fn drop_row(&mut self, row: RowIndex) {
        self.sets.rows[row]
            .attributions
            .iter()
            .for_each(|&attribution| self.view.attributions.sub(attribution));
        self.sets.rows.release(row);
    }

    fn attributions(&mut self, patch: &mut Patch) {
        let (came, went) = self.view.attributions.settle();
        let content = |attribution: AttributionIndex| self.sets.attributions[attribution].clone();
        patch.attributions.put = came.into_iter().map(content).collect();
        patch.attributions.removed = went.into_iter().map(|attribution| content(attribution).0).collect();
    }

    /// Nobody is interested in the node any more: lets go of everything.
    pub(crate) fn clear(self) {
        for term in self.view.terms.things() {
            if let Some(group) = self.rules.terms.key(term).group {
                self.cluster.route(group, self.node, false);
            }
        }
        for (set, rows) in self.view.rows.drain() {
            let base = self.sets.sets[set].base;
            rows.into_values().chain([base]).for_each(|row| self.sets.rows.release(row));
            self.sets.sets.release(set);
        }
        self.view.atoms.things().for_each(|atom| self.sets.atoms.release(atom));
    }
}
