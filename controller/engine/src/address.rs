//! Which atom each remote address has for a node, and had before the batch. Pure.
//!
//! Neither is kept: both follow from the pods that have the address, their groups and the node's terms,
//! and the cluster and the view know until the end of the batch what those were before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use durward_proto::{AtomId, Delta};
use litemap::LiteMap;
use smallvec::SmallVec;

use crate::alike::Found;
use crate::block::Prefixes;
use crate::elements::Element;
use crate::rules::Term;
use crate::set::Sets;
use crate::sorted::{few_sorted, sorted};
use crate::table::{AtomIndex, ClassId, TermId};
use crate::tally::Turnover;
use crate::view::Refresh;

/// What changed in what a node's rules mention, and in the classes of that.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Whether they mentioned nothing before.
    pub(crate) all: bool,
    /// Classes that came into groups that they mention, or left them.
    pub(crate) peers: Vec<ClassId>,
    /// Terms that came into use and went out of it.
    pub(crate) terms: Turnover<TermId>,
    /// Whether terms of blocks are among them; then `old_blocks` are those of before.
    pub(crate) blocks: bool,
    pub(crate) old_blocks: Prefixes,
    /// Whether terms that are both of a block and of a named port are among them.
    pub(crate) named_blocks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    Now,
}

impl When {
    const BOTH: [Self; 2] = [Self::Before, Self::Now];
}

/// What an address matches, while it is put together.
type Matched = SmallVec<[Element; 8]>;

/// What is to be told, each address once.
#[derive(Default)]
struct Moves {
    put: Vec<(IpAddr, AtomId)>,
    removed: Vec<IpAddr>,
}

/// The addresses of a view that had none, as they are come upon, and their atoms.
struct Used {
    /// Atoms as they were come upon, and how many addresses in a row have each; there may be the same again.
    atoms: Vec<(AtomIndex, AtomId, i32)>,
    /// Addresses, and which of those atoms each has: as one number, they are sorted soonest.
    v4: Vec<u64>,
    v6: Vec<(u128, u32)>,
}

impl Used {
    /// The addresses that follow have this atom.
    fn of(&mut self, sets: &Sets, atom: AtomIndex) {
        self.atoms.push((atom, sets.atoms[atom], 0));
    }

    fn put(&mut self, address: IpAddr) {
        let at = self.atoms.len() as u32 - 1;
        self.atoms[at as usize].2 += 1;
        match address {
            IpAddr::V4(v4) => self.v4.push(u64::from(v4.to_bits()) << 32 | u64::from(at)),
            IpAddr::V6(v6) => self.v6.push((v6.to_bits(), at)),
        }
    }

    fn sorted(mut self) -> Vec<(IpAddr, AtomId)> {
        self.v4.sort_unstable();
        self.v6.sort_unstable();
        let mut sorted = Vec::with_capacity(self.v4.len() + self.v6.len());
        let v4 = |both: u64| IpAddr::V4(Ipv4Addr::from_bits((both >> 32) as u32));
        sorted.extend(self.v4.into_iter().map(|both| (v4(both), self.atoms[both as u32 as usize].1)));
        let v6 = |bits| IpAddr::V6(Ipv6Addr::from_bits(bits));
        sorted.extend(self.v6.into_iter().map(|(bits, at)| (v6(bits), self.atoms[at as usize].1)));
        sorted
    }
}

/// A class, and the block that holds addresses of its pods.
type Where = (ClassId, Option<AtomIndex>, When);

/// Atoms of addresses of one pod only: those of late.
#[derive(Default)]
struct Known(SmallVec<[(Where, Option<AtomIndex>); 4]>);

impl Known {
    /// Beyond that, to look costs more than to work it out.
    const MANY: usize = 16;

    fn get(&self, of: Where) -> Option<Option<AtomIndex>> {
        self.0.iter().find(|(known, _)| *known == of).map(|(_, atom)| *atom)
    }

    fn put(&mut self, of: Where, atom: Option<AtomIndex>) {
        if self.0.len() == Self::MANY {
            self.0.clear();
        }
        self.0.push((of, atom));
    }
}

impl Refresh<'_> {
    /// Brings the atoms of the marked addresses (sorted) up to date, and of all that the change concerns.
    pub(crate) fn addresses(&mut self, change: &Change, marked: &[IpAddr]) -> Delta<IpAddr, AtomId> {
        if change.all && self.view.named_blocks == 0 {
            return self.all_addresses();
        }
        let (mut told, mut known, mut again) = (Moves::default(), Known::default(), marked.to_vec());
        let alike = self.classes_are_alike(change);
        for class in self.concerned(change) {
            let [before, now] = When::BOTH.map(|when| self.elements_of(change, class, when));
            if alike && before == now && (!change.blocks || now.is_empty()) {
                continue;
            }
            let mut last = None;
            for at in 0..self.cluster.classes[class].members.len() {
                let addresses = self.cluster.classes[class].members[at].addresses.clone();
                for &address in &*addresses {
                    if marked.binary_search(&address).is_ok() {
                        continue;
                    }
                    if !alike || !self.cluster.is_only_its_pods(address) {
                        again.push(address);
                        continue;
                    }
                    let blocks = self.blocks_of(change, address);
                    let (_, [old, new]) = match last {
                        Some(known @ (same, _)) if same == blocks => known,
                        _ => (blocks, [self.atom(&before, blocks[0]), self.atom(&now, blocks[1])]),
                    };
                    last = Some((blocks, [old, new]));
                    self.tell(address, old, new, &mut told);
                }
            }
        }
        // Several pods may have one.
        for address in sorted(again) {
            let [before, now] = self.blocks_of(change, address);
            let old = self.address_atom(change, address, before, When::Before, &mut known);
            let new = self.address_atom(change, address, now, When::Now, &mut known);
            self.tell(address, old, new, &mut told);
        }
        Delta { put: told.put.into_iter().collect(), removed: told.removed.into_iter().collect() }
    }

    /// All addresses of a view that had none.
    fn all_addresses(&mut self) -> Delta<IpAddr, AtomId> {
        let kind = self.alike.kind(&self.view.terms);
        let known = self.alike.find(kind, &self.view.terms).cloned();
        let found = known.unwrap_or_else(|| {
            let found = self.find_all();
            self.alike.told(kind, &self.view.terms, &found);
            found
        });
        found.atoms.iter().for_each(|&(atom, times)| self.atoms.add_times(atom, times));
        Delta { put: LiteMap::from_sorted_store_unchecked(found.addresses), ..Delta::default() }
    }

    fn find_all(&mut self) -> Found {
        let matches = self.matches();
        let others = self.shared_addresses(&matches);
        let Self { cluster, rules, sets, view, .. } = self;
        let classes = || matches.chunk_by(|(one, _), (other, _)| one == other);
        let most = classes().map(|same| cluster.classes[same[0].0].members.len()).sum();
        let mut used = Used { atoms: vec![], v4: Vec::with_capacity(most), v6: vec![] };
        // Many classes in a row match the same, and so have the same atom where one block holds them, or none.
        let (mut elements, mut block, mut is_last) = (vec![], None, false);
        for same in classes() {
            if !same.iter().map(|(_, element)| element).eq(&elements) {
                elements.clear();
                elements.extend(same.iter().map(|&(_, element)| element));
                is_last = false;
            }
            for member in &cluster.classes[same[0].0].members {
                for &address in &*member.addresses {
                    if cluster.owners.is_shared(address) {
                        continue;
                    }
                    let here = view.blocks.longest(address);
                    if !is_last || here != block {
                        let atom = sets.atom_within(rules, &elements, here);
                        used.of(sets, atom);
                        (block, is_last) = (here, true);
                    }
                    used.put(address);
                }
            }
        }
        for (address, atom) in others {
            used.of(sets, atom);
            used.put(address);
        }
        let atoms = used.atoms.iter().map(|&(atom, _, times)| (atom, times)).collect();
        Found { addresses: used.sorted(), atoms }
    }

    /// The addresses of several pods, of the classes that match something.
    fn shared_addresses(&mut self, matches: &[(ClassId, Element)]) -> Vec<(IpAddr, AtomIndex)> {
        let (change, mut known, mut found) = (Change::default(), Known::default(), vec![]);
        let shared: Vec<_> = self.cluster.owners.shared().collect();
        for address in shared {
            let classes = self.cluster.classes_of(address);
            if classes.iter().all(|class| matches.binary_search_by_key(class, |(class, _)| *class).is_err()) {
                continue;
            }
            let [_, block] = self.blocks_of(&change, address);
            if let Some(atom) = self.address_atom(&change, address, block, When::Now, &mut known) {
                found.push((address, atom));
            }
        }
        found
    }

    /// The classes that the node's terms mention, with what they match; sorted.
    fn matches(&self) -> Vec<(ClassId, Element)> {
        let mut matches = vec![];
        for term in self.view.terms.iter() {
            let Term { group: Some(group), port, .. } = self.rules.terms.key(term) else { continue };
            let classes = self.cluster.groups[*group].classes.iter();
            match port {
                None => matches.extend(classes.map(|&class| (class, (term, 0)))),
                Some((protocol, name)) => matches.extend(classes.flat_map(|&class| {
                    let ports = self.cluster.ports(class).iter();
                    let bound = ports.filter(|port| port.protocol == *protocol && port.name == *name);
                    bound.map(move |port| (class, (term, port.number)))
                })),
            }
        }
        matches.sort_unstable();
        matches
    }

    /// Whether addresses of one class, but for those of several pods, differ by nothing but the blocks that hold them.
    fn classes_are_alike(&self, change: &Change) -> bool {
        self.view.named_blocks == 0 && !change.named_blocks
    }

    /// Classes of which the change may concern addresses.
    fn concerned(&self, change: &Change) -> Vec<ClassId> {
        let others = change.blocks.then(|| self.view.terms.iter()).into_iter().flatten();
        let terms = change.terms.came.iter().chain(&change.terms.went).copied().chain(others);
        let groups = sorted(terms.filter_map(|term| self.rules.terms.key(term).group).collect());
        let classes = groups.into_iter().flat_map(|group| &self.cluster.groups[group].classes);
        sorted(classes.chain(&change.peers).copied().collect())
    }

    fn tell(&mut self, address: IpAddr, old: Option<AtomIndex>, new: Option<AtomIndex>, told: &mut Moves) {
        if old == new {
            return;
        }
        if let Some(atom) = old {
            self.atoms.sub(atom);
        }
        match new {
            Some(atom) => {
                self.atoms.add(atom);
                told.put.push((address, self.sets.atoms[atom]));
            }
            None => told.removed.push(address),
        }
    }

    fn address_atom(
        &mut self,
        change: &Change,
        address: IpAddr,
        block: Option<AtomIndex>,
        when: When,
        known: &mut Known,
    ) -> Option<AtomIndex> {
        let classes = match when {
            When::Before => self.cluster.classes_before(address),
            When::Now => self.cluster.classes_of(address),
        };
        if let ([class], true) = (&classes[..], self.classes_are_alike(change)) {
            return self.class_atom(change, *class, block, when, known);
        }
        let mut elements = Matched::new();
        for class in classes {
            self.elements(change, class, Some(address), when, &mut elements);
        }
        self.atom(&few_sorted(elements), block)
    }

    fn class_atom(
        &mut self,
        change: &Change,
        class: ClassId,
        block: Option<AtomIndex>,
        when: When,
        known: &mut Known,
    ) -> Option<AtomIndex> {
        if let Some(atom) = known.get((class, block, when)) {
            return atom;
        }
        let elements = self.elements_of(change, class, when);
        let atom = self.atom(&elements, block);
        known.put((class, block, when), atom);
        atom
    }

    /// None if no pod makes the address match more than blocks do.
    fn atom(&mut self, elements: &[Element], block: Option<AtomIndex>) -> Option<AtomIndex> {
        (!elements.is_empty()).then(|| self.sets.atom_within(self.rules, elements, block))
    }

    /// What pods of the class match, where no term is also of a block; sorted.
    fn elements_of(&self, change: &Change, class: ClassId, when: When) -> Matched {
        let mut elements = Matched::new();
        self.elements(change, class, None, when, &mut elements);
        few_sorted(elements)
    }

    /// Adds what a pod of the class matches; without an address, no term is of a block, too.
    fn elements(
        &self,
        change: &Change,
        class: ClassId,
        address: Option<IpAddr>,
        when: When,
        into: &mut Matched,
    ) {
        let groups = match when {
            When::Before => self.cluster.groups_before(class),
            When::Now => &self.cluster.classes[class].groups,
        };
        // Very many groups may have terms that only others use. Those that went may be of groups that are not routed
        // here any more.
        let all = when == When::Before && !change.terms.went.is_empty();
        let groups = groups.iter().filter(|&&group| all || self.cluster.is_routed(group, self.node));
        for &term in groups.flat_map(|&group| &self.cluster.groups[group].terms) {
            if !self.uses(change, term, when) {
                continue;
            }
            let content = self.rules.terms.key(term);
            if let (Some(block), Some(address)) = (&content.block, address)
                && !block.contains(address)
            {
                continue;
            }
            match &content.port {
                None => into.push((term, 0)),
                Some((protocol, name)) => {
                    let ports = self.cluster.ports(class).iter();
                    let bound = ports.filter(|port| port.protocol == *protocol && port.name == *name);
                    into.extend(bound.map(|port| (term, port.number)));
                }
            }
        }
    }

    fn uses(&self, change: &Change, term: TermId, when: When) -> bool {
        let now = self.view.terms.contains(term);
        match when {
            When::Now => now,
            When::Before if now => change.terms.came.binary_search(&term).is_err(),
            When::Before => change.terms.went.binary_search(&term).is_ok(),
        }
    }

    /// What an address matched by the blocks that hold it, and matches now.
    fn blocks_of(&self, change: &Change, address: IpAddr) -> [Option<AtomIndex>; 2] {
        let now = self.view.blocks.longest(address);
        [if change.blocks { change.old_blocks.longest(address) } else { now }, now]
    }
}
