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

/// Where the longest prefix that holds an address changes, and to which atom; sorted.
type Spans = Box<[(u128, Option<AtomIndex>)]>;

/// Atoms by prefix.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    /// Sorted.
    atoms: Box<[(Block, AtomIndex)]>,
    /// Of IPv4 and of IPv6.
    spans: [Spans; 2],
}

impl Prefixes {
    /// The blocks must be sorted: those within a block come after it.
    pub(crate) fn new(atoms: Vec<(Block, AtomIndex)>) -> Self {
        let spans = [true, false].map(|v4| {
            let of_family = atoms.iter().filter(|(block, _)| block.address().is_ipv4() == v4);
            spans(of_family.copied())
        });
        Self { atoms: atoms.into(), spans }
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
        let spans = &self.spans[usize::from(address.is_ipv6())];
        if spans.is_empty() {
            return None;
        }
        let after = spans.partition_point(|&(first, _)| first <= bits(address));
        spans[after.checked_sub(1)?].1
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The last address of a block, as a number.
fn last(block: Block) -> u128 {
    let width = if block.address().is_ipv4() { 32 } else { 128 };
    let free = width - u32::from(block.length());
    bits(block.address()) | 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1)
}

fn spans(blocks: impl Iterator<Item = (Block, AtomIndex)>) -> Spans {
    let mut spans: Vec<(u128, Option<AtomIndex>)> = vec![];
    let mut inside: Vec<(Block, AtomIndex)> = vec![];
    let mut begin = |first, atom| {
        // A block that begins where the one before ends, or where the one around it begins.
        spans.pop_if(|(same, _)| *same == first);
        spans.push((first, atom));
    };
    let close = |inside: &mut Vec<(Block, AtomIndex)>, begin: &mut dyn FnMut(u128, Option<AtomIndex>)| {
        if let Some((left, _)) = inside.pop()
            && let Some(after) = last(left).checked_add(1)
        {
            begin(after, inside.last().map(|&(_, atom)| atom));
        }
    };
    for (block, atom) in blocks {
        while inside.last().is_some_and(|(outer, _)| !outer.contains(block.address())) {
            close(&mut inside, &mut begin);
        }
        begin(bits(block.address()), Some(atom));
        inside.push((block, atom));
    }
    while !inside.is_empty() {
        close(&mut inside, &mut begin);
    }
    spans.into()
}

/// What each prefix that occurs in the blocks matches, where that differs from what the next shorter
/// one matches. An address matches what the longest prefix that holds it does, because blocks and
/// their holes begin and end nowhere else. `count` hears how many prefixes and how many matches of terms there
/// are so far, and may end it. As a match counts each block and each hole, too: there may be very many that say
/// nothing new.
pub(crate) fn flatten<'a, E>(
    blocks: impl IntoIterator<Item = (TermId, &'a IpBlock)>,
    mut count: impl FnMut(usize, usize) -> Result<(), E>,
) -> Result<BTreeMap<Block, Vec<TermId>>, E> {
    // For each prefix, which terms begin to match there and which stop.
    let mut edges: BTreeMap<Block, Vec<(TermId, bool)>> = BTreeMap::new();
    let mut matches = 0;
    for (term, IpBlock { block, except }) in blocks {
        matches += 1 + except.len();
        count(0, matches)?;
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
        matches += terms.len();
        count(found.len(), matches)?;
        inside.push((prefix, terms));
    }
    Ok(found)
}

/// Which terms' blocks cover the place that is looked at, and how many of their holes.
#[derive(Default)]
struct Cover {
    blocks: BTreeSet<TermId>,
    holes: BTreeMap<TermId, u32>,
    /// Those of the blocks of which no hole does: very many may have one.
    matching: BTreeSet<TermId>,
}

impl Cover {
    fn enter(&mut self, (term, block): (TermId, bool)) {
        if block {
            self.blocks.insert(term);
        } else {
            *self.holes.entry(term).or_default() += 1;
        }
        self.decide(term);
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
        self.decide(term);
    }

    fn decide(&mut self, term: TermId) {
        if self.blocks.contains(&term) && !self.holes.contains_key(&term) {
            self.matching.insert(term);
        } else {
            self.matching.remove(&term);
        }
    }

    fn terms(&self) -> Vec<TermId> {
        self.matching.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Id;

    #[test]
    fn prefixes_that_say_nothing_new_are_counted() {
        let cidr = |text: &str| text.parse::<Block>().expect("a block");
        // Each hole is within the one before: only the first says something new.
        let except = (9..32).map(|length| cidr(&format!("10.0.0.0/{length}"))).collect();
        let block = IpBlock { block: cidr("10.0.0.0/8"), except };
        let mut counts = (0, 0);
        let count = |prefixes, matches| {
            counts = (prefixes, matches);
            if matches > 10 { Err(matches) } else { Ok(()) }
        };
        assert_eq!(flatten([(TermId::new(0), &block)], count), Err(24));
        assert_eq!(counts, (0, 24));
        let all =
            flatten([(TermId::new(0), &block)], |_, matches| if matches > 25 { Err(()) } else { Ok(()) });
        assert_eq!(all.map(|all| all.len()), Ok(2));
    }
}
