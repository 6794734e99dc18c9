//! Blocks with holes, as disjoint answers by longest prefix. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use durward_proto::Block;

use crate::table::{AtomIndex, TermId};

/// An `ipBlock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IpBlock {
    pub(crate) block: Block,
    pub(crate) except: Vec<Block>,
}

impl IpBlock {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.block.contains(address) && !self.except.iter().any(|hole| hole.contains(address))
    }
}

/// Atoms by prefix.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    /// Sorted.
    atoms: Box<[(Block, AtomIndex)]>,
    /// The lengths that occur, the longest first: of IPv4 and of IPv6.
    lengths: [Box<[u8]>; 2],
}

impl Prefixes {
    /// The blocks must be sorted.
    pub(crate) fn new(atoms: Vec<(Block, AtomIndex)>) -> Self {
        let lengths = [true, false].map(|v4| {
            let blocks = atoms.iter().filter(|(block, _)| block.address().is_ipv4() == v4);
            let lengths: BTreeSet<_> = blocks.map(|(block, _)| block.length()).collect();
            lengths.into_iter().rev().collect()
        });
        Self { atoms: atoms.into(), lengths }
    }

    pub(crate) fn atoms(&self) -> &[(Block, AtomIndex)] {
        &self.atoms
    }

    pub(crate) fn get(&self, block: Block) -> Option<AtomIndex> {
        let at = self.atoms.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        Some(self.atoms[at].1)
    }

    /// The atom of the longest prefix that holds an address.
    pub(crate) fn longest(&self, address: IpAddr) -> Option<AtomIndex> {
        self.lengths[usize::from(address.is_ipv6())]
            .iter()
            .find_map(|&length| self.get(Block::containing(address, length).ok()?))
    }
}

/// What each prefix that occurs in the blocks matches, where that differs from what the next shorter
/// one matches. An address matches what the longest prefix that holds it does, because blocks and
/// their holes begin and end nowhere else.
pub(crate) fn flatten<'a>(
    blocks: impl IntoIterator<Item = (TermId, &'a IpBlock)>,
) -> BTreeMap<Block, Vec<TermId>> {
    // For each prefix, which terms begin to match there and which stop.
    let mut edges: BTreeMap<Block, Vec<(TermId, bool)>> = BTreeMap::new();
    for (term, IpBlock { block, except }) in blocks {
        edges.entry(*block).or_default().push((term, true));
        for hole in except {
            edges.entry(*hole).or_default().push((term, false));
        }
    }
    let mut found = BTreeMap::new();
    let mut inside = Vec::<(Block, Vec<TermId>)>::new();
    let mut cover = Cover::default();
    // A prefix comes before those within it.
    for (&prefix, here) in &edges {
        while let Some((left, _)) = inside.pop_if(|(outer, _)| !outer.contains(prefix.address())) {
            edges[&left].iter().for_each(|&edge| cover.leave(edge));
        }
        here.iter().for_each(|&edge| cover.enter(edge));
        let terms = cover.terms();
        let outer = inside.last().map_or(&[][..], |(_, terms)| terms);
        if terms != outer {
            found.insert(prefix, terms.clone());
        }
        inside.push((prefix, terms));
    }
    found
}

/// How often each term's block and its holes cover the place that is looked at.
#[derive(Default)]
struct Cover {
    blocks: BTreeSet<TermId>,
    holes: BTreeMap<TermId, u32>,
}

impl Cover {
    fn enter(&mut self, (term, block): (TermId, bool)) {
        if block {
            self.blocks.insert(term);
        } else {
            *self.holes.entry(term).or_default() += 1;
        }
    }

    fn leave(&mut self, (term, block): (TermId, bool)) {
        if block {
            self.blocks.remove(&term);
        } else if let Some(holes) = self.holes.get_mut(&term) {
            *holes -= 1;
            if *holes == 0 {
                self.holes.remove(&term);
            }
        }
    }

    fn terms(&self) -> Vec<TermId> {
        self.blocks.iter().copied().filter(|term| !self.holes.contains_key(term)).collect()
    }
}
