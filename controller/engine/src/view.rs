//! A subscribed node's view, kept up to date by what changes. Pure.
//!
//! ```text
//! its pods → sets → terms → addresses and blocks → atoms → rows → attributions
//! ```
//! Each stage counts what the one before it uses, and only what comes into use or goes out of it
//! reaches the next. What is marked is worked out from the cluster as it is now, so that the path
//! that led here cannot matter.

use std::collections::BTreeMap;
use std::net::IpAddr;

use durward_proto::{Block, Delta, Direction, Patch, PodUid, SetDelta, view};
use hashbrown::{HashMap, HashSet};

use crate::block;
use crate::cluster::{Cluster, Dirt, Live};
use crate::rules::Rules;
use crate::set::{Element, Sets};
use crate::table::{AtomIndex, AttributionIndex, ClassId, NodeId, PodId, RowIndex, SetIndex, Tally, TermId};

/// The sets that judge a class's pods, by direction.
pub(crate) type SetPair = [Option<SetIndex>; 2];

/// What a node was told.
#[derive(Debug, Default)]
pub(crate) struct View {
    pods: HashMap<PodId, (PodUid, view::Pod, SetPair)>,
    sets: Tally<SetIndex>,
    terms: Tally<TermId>,
    atoms: Tally<AtomIndex>,
    addresses: HashMap<IpAddr, AtomIndex>,
    blocks: BTreeMap<Block, AtomIndex>,
    /// How many terms are both of a block and of a named port.
    named_blocks: usize,
    /// By set, the rows that differ from its base row.
    rows: HashMap<SetIndex, HashMap<AtomIndex, RowIndex>>,
    attributions: Tally<AttributionIndex>,
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
        let mut addresses = dirt.addresses;
        if self.terms(&new_sets, &old_sets, &mut addresses) {
            patch.blocks = self.blocks();
            addresses.extend(self.view.addresses.keys());
        }
        patch.addresses = self.addresses(addresses);
        self.rows(&new_sets, &old_sets, &mut patch);
        self.attributions(&mut patch);
        patch
    }

    fn pods(&mut self, dirt: &Dirt) -> Delta<PodUid, view::Pod> {
        let mut delta = Delta::default();
        for &id in &dirt.pods {
            let live = self.cluster.pods[id].live.clone().filter(|live| live.node == Some(self.node));
            let new = live.map(|live| self.pod(id, live));
            for &set in new.iter().flat_map(|(_, _, pair)| pair).flatten() {
                self.view.sets.add(set);
            }
            let old = match new.clone() {
                Some(new) => self.view.pods.insert(id, new),
                None => self.view.pods.remove(&id),
            };
            for &set in old.iter().flat_map(|(_, _, pair)| pair).flatten() {
                self.view.sets.sub(set);
            }
            if new == old {
                continue;
            }
            if let Some((uid, ..)) = old {
                delta.removed.insert(uid);
            }
            if let Some((uid, pod, _)) = new {
                delta.put.insert(uid, pod);
            }
        }
        delta.removed.retain(|uid| !delta.put.contains_key(uid));
        delta
    }

    fn pod(&mut self, id: PodId, live: Live) -> (PodUid, view::Pod, SetPair) {
        let pair = self.pair(live.class);
        let mut pod = self.cluster.view_of(id, &live);
        [pod.ingress, pod.egress] = pair.map(|set| set.map(|set| self.sets.sets[set].id));
        (live.uid, pod, pair)
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

    /// Follows the sets to the terms that they use. Addresses that may match differently are added;
    /// says whether blocks may.
    fn terms(&mut self, new: &[SetIndex], old: &[SetIndex], addresses: &mut HashSet<IpAddr>) -> bool {
        for &set in new {
            self.sets.sets.hold(set);
            self.sets.sets[set].terms.iter().for_each(|&term| self.view.terms.add(term));
        }
        for &set in old {
            self.sets.sets[set].terms.iter().for_each(|&term| self.view.terms.sub(term));
            self.sets.sets.release(set);
        }
        let (came, went) = self.view.terms.settle();
        let mut blocks = false;
        for &term in came.iter().chain(&went) {
            let Some(group) = self.rules.terms.key(term).group else {
                blocks = true;
                continue;
            };
            for &class in &self.cluster.groups[group].classes {
                for &pod in &self.cluster.classes[class].pods {
                    addresses.extend(self.cluster.pods[pod].live.iter().flat_map(|live| &live.addresses));
                }
            }
        }
        for (terms, come) in [(came, true), (went, false)] {
            for term in terms.iter().map(|&term| self.rules.terms.key(term)) {
                let Some(group) = term.group else { continue };
                self.cluster.route(group, self.node, come);
                if term.block.is_some() {
                    self.view.named_blocks =
                        if come { self.view.named_blocks + 1 } else { self.view.named_blocks - 1 };
                }
            }
        }
        blocks
    }

    fn blocks(&mut self) -> Delta<Block, durward_proto::AtomId> {
        let terms = self.view.terms.things().filter_map(|term| match self.rules.terms.key(term) {
            crate::rules::Term { group: None, block: Some(block), .. } => Some((term, &**block)),
            _ => None,
        });
        let flat = block::flatten(terms);
        let mut delta = Delta::default();
        let mut blocks = BTreeMap::new();
        for (block, terms) in flat {
            let atom = self.sets.atom(self.rules, terms.into_iter().map(|term| (term, 0)).collect());
            self.view.atoms.add(atom);
            if self.view.blocks.get(&block) != Some(&atom) {
                delta.put.insert(block, self.sets.atoms[atom]);
            }
            blocks.insert(block, atom);
        }
        for (block, atom) in std::mem::replace(&mut self.view.blocks, blocks) {
            self.view.atoms.sub(atom);
            if !self.view.blocks.contains_key(&block) {
                delta.removed.insert(block);
            }
        }
        delta
    }

    fn addresses(&mut self, marked: HashSet<IpAddr>) -> Delta<IpAddr, durward_proto::AtomId> {
        let mut delta = Delta::default();
        // Addresses of one pod of the same class that are in the same blocks have the same atom.
        let mut known = HashMap::new();
        for address in marked {
            let block = self.block(address);
            let class = self.only_class(address);
            let new = match class.and_then(|class| known.get(&(class, block))) {
                Some(atom) => *atom,
                None => {
                    let elements = self.elements(address, block);
                    let atom = elements.map(|elements| self.sets.atom(self.rules, elements));
                    if let Some(class) = class {
                        known.insert((class, block), atom);
                    }
                    atom
                }
            };
            let old = match new {
                Some(atom) => self.view.addresses.insert(address, atom),
                None => self.view.addresses.remove(&address),
            };
            if new == old {
                continue;
            }
            if let Some(atom) = old {
                self.view.atoms.sub(atom);
            }
            match new {
                Some(atom) => {
                    self.view.atoms.add(atom);
                    delta.put.insert(address, self.sets.atoms[atom]);
                }
                None => drop(delta.removed.insert(address)),
            }
        }
        delta
    }

    /// What an address matches of this node's terms; none if no pod makes it match more than blocks do.
    fn elements(&self, address: IpAddr, block: Option<AtomIndex>) -> Option<Vec<Element>> {
        let mut elements: Vec<Element> = vec![];
        for &owner in self.cluster.owners.get(&address).into_iter().flatten() {
            let Some(live) = &self.cluster.pods[owner].live else { continue };
            let groups = self.cluster.classes[live.class].groups.iter();
            for &term in groups.flat_map(|&group| &self.cluster.groups[group].terms) {
                let content = self.rules.terms.key(term);
                let outside = content.block.as_ref().is_some_and(|block| !block.contains(address));
                if outside || !self.view.terms.has(term) {
                    continue;
                }
                match &content.port {
                    None => elements.push((term, 0)),
                    Some((protocol, name)) => {
                        let ports = self.cluster.classes.key(live.class).ports.iter();
                        let bound = ports.filter(|port| port.protocol == *protocol && port.name == *name);
                        elements.extend(bound.map(|port| (term, port.number)));
                    }
                }
            }
        }
        if elements.is_empty() {
            return None;
        }
        elements.extend(block.into_iter().flat_map(|atom| self.sets.atoms.key(atom)));
        elements.sort_unstable();
        elements.dedup();
        Some(elements)
    }

    /// The class of the address's pod, if that decides what it matches besides blocks.
    fn only_class(&self, address: IpAddr) -> Option<ClassId> {
        let [owner] = self.cluster.owners.get(&address)?[..] else { return None };
        let live = self.cluster.pods[owner].live.as_ref().filter(|_| self.view.named_blocks == 0);
        live.map(|live| live.class)
    }

    /// What an address matches by the blocks that hold it.
    fn block(&self, address: IpAddr) -> Option<AtomIndex> {
        if self.view.blocks.is_empty() {
            return None;
        }
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).rev().find_map(|length| {
            let block = Block::containing(address, length).ok()?;
            self.view.blocks.get(&block).copied()
        })
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
    ) -> BTreeMap<durward_proto::AtomId, durward_proto::Row> {
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

    /// The node is gone: lets go of everything.
    pub(crate) fn clear(mut self) {
        let pods = self.view.pods.drain().collect::<Vec<_>>();
        for (_, (_, _, pair)) in pods {
            pair.into_iter().flatten().for_each(|set| self.view.sets.sub(set));
        }
        let (_, old) = self.view.sets.settle();
        let mut addresses = HashSet::new();
        let mut patch = Patch::default();
        self.terms(&[], &old, &mut addresses);
        self.blocks();
        for (_, atom) in self.view.addresses.drain() {
            self.view.atoms.sub(atom);
        }
        self.rows(&[], &old, &mut patch);
    }
}
