//! Which atom each remote address has for a node, and had before the batch. Pure.
//!
//! Neither is kept: both follow from the pods that have the address, their groups and the node's terms,
//! and the cluster and the view know until the end of the batch what those were before.

use std::collections::BTreeSet;
use std::net::IpAddr;

use durward_proto::{AtomId, Delta};
use hashbrown::{HashMap, HashSet};

use crate::block::Prefixes;
use crate::set::Element;
use crate::table::{AtomIndex, ClassId, TermId};
use crate::view::Refresh;

/// What changed in what a node's rules mention.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) came: HashSet<TermId>,
    pub(crate) went: HashSet<TermId>,
    /// Whether terms of blocks are among them; then `old_blocks` are those of before.
    pub(crate) blocks: bool,
    pub(crate) old_blocks: Prefixes,
    /// Whether terms that are both of a block and of a named port are among them.
    pub(crate) named_blocks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum When {
    Before,
    Now,
}

/// Atoms of addresses of one pod only, by its class and the block that holds them.
type Known = HashMap<(ClassId, Option<AtomIndex>, When), Option<AtomIndex>>;

impl Refresh<'_> {
    /// Brings the atoms of the marked addresses up to date, and of all that the change concerns.
    pub(crate) fn addresses(&mut self, change: &Change, marked: HashSet<IpAddr>) -> Delta<IpAddr, AtomId> {
        let (mut delta, mut marked, mut known) = (Delta::default(), marked, Known::new());
        let decide = self.classes_decide(change);
        for class in self.concerned(change) {
            let [old, new] = if decide {
                [When::Before, When::Now].map(|when| self.class_atom(change, class, None, when, &mut known))
            } else {
                [None, None]
            };
            if decide && old == new {
                continue;
            }
            for at in 0..self.cluster.classes[class].pods.len() {
                let pod = self.cluster.classes[class].pods[at];
                let Some(live) = self.cluster.pods[pod].live.clone() else { continue };
                for &address in &live.addresses {
                    if decide && !marked.contains(&address) && self.cluster.is_only_its_pods(address) {
                        self.tell(address, old, new, &mut delta);
                    } else {
                        marked.insert(address);
                    }
                }
            }
        }
        for address in marked {
            let [old, new] =
                [When::Before, When::Now].map(|when| self.address_atom(change, address, when, &mut known));
            self.tell(address, old, new, &mut delta);
        }
        delta
    }

    /// Whether the addresses of a class all have the same atom, but for those of several pods.
    fn classes_decide(&self, change: &Change) -> bool {
        let blocks = [&self.view.blocks, &change.old_blocks].iter().any(|blocks| !blocks.atoms().is_empty());
        let named_blocks = self.view.named_blocks > 0 || change.named_blocks;
        !blocks && !named_blocks
    }

    /// Classes of which the change may concern addresses.
    fn concerned(&self, change: &Change) -> BTreeSet<ClassId> {
        let others = self.view.terms.things().filter(|_| change.blocks);
        let terms = change.came.iter().chain(&change.went).copied().chain(others);
        let groups: BTreeSet<_> = terms.filter_map(|term| self.rules.terms.key(term).group).collect();
        groups.into_iter().flat_map(|group| &self.cluster.groups[group].classes).copied().collect()
    }

    fn tell(
        &mut self,
        address: IpAddr,
        old: Option<AtomIndex>,
        new: Option<AtomIndex>,
        delta: &mut Delta<IpAddr, AtomId>,
    ) {
        if old == new {
            return;
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

    fn address_atom(
        &mut self,
        change: &Change,
        address: IpAddr,
        when: When,
        known: &mut Known,
    ) -> Option<AtomIndex> {
        let block = self.block(change, address, when);
        let classes = match when {
            When::Before => self.cluster.classes_before(address),
            When::Now => self.cluster.classes_of(address),
        };
        if let ([class], 0, false) = (&classes[..], self.view.named_blocks, change.named_blocks) {
            return self.class_atom(change, *class, block, when, known);
        }
        let mut elements = vec![];
        for class in classes {
            self.elements(change, class, Some(address), when, &mut elements);
        }
        self.atom(elements, block)
    }

    fn class_atom(
        &mut self,
        change: &Change,
        class: ClassId,
        block: Option<AtomIndex>,
        when: When,
        known: &mut Known,
    ) -> Option<AtomIndex> {
        if let Some(atom) = known.get(&(class, block, when)) {
            return *atom;
        }
        let mut elements = vec![];
        self.elements(change, class, None, when, &mut elements);
        let atom = self.atom(elements, block);
        known.insert((class, block, when), atom);
        atom
    }

    /// None if no pod makes the address match more than blocks do.
    fn atom(&mut self, mut elements: Vec<Element>, block: Option<AtomIndex>) -> Option<AtomIndex> {
        if elements.is_empty() {
            return None;
        }
        elements.extend(block.into_iter().flat_map(|block| self.sets.atoms.key(block)));
        elements.sort_unstable();
        elements.dedup();
        Some(self.sets.atom(self.rules, elements))
    }

    /// Adds what a pod of the class matches; without an address, no term is of a block, too.
    fn elements(
        &self,
        change: &Change,
        class: ClassId,
        address: Option<IpAddr>,
        when: When,
        into: &mut Vec<Element>,
    ) {
        let groups = match when {
            When::Before => self.cluster.groups_before(class),
            When::Now => &self.cluster.classes[class].groups,
        };
        for &term in groups.iter().flat_map(|&group| &self.cluster.groups[group].terms) {
            let content = self.rules.terms.key(term);
            let inside = match (&content.block, address) {
                (Some(block), Some(address)) => block.contains(address),
                _ => true,
            };
            if !inside || !self.uses(change, term, when) {
                continue;
            }
            match &content.port {
                None => into.push((term, 0)),
                Some((protocol, name)) => {
                    let ports = self.cluster.classes.key(class).ports.iter();
                    let bound = ports.filter(|port| port.protocol == *protocol && port.name == *name);
                    into.extend(bound.map(|port| (term, port.number)));
                }
            }
        }
    }

    fn uses(&self, change: &Change, term: TermId, when: When) -> bool {
        let now = self.view.terms.has(term);
        match when {
            When::Now => now,
            When::Before => now && !change.came.contains(&term) || change.went.contains(&term),
        }
    }

    /// What an address matches by the blocks that hold it.
    fn block(&self, change: &Change, address: IpAddr, when: When) -> Option<AtomIndex> {
        match when {
            When::Before if change.blocks => change.old_blocks.longest(address),
            _ => self.view.blocks.longest(address),
        }
    }
}
