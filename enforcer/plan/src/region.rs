//! Regions: the remote addresses that one entry answers for, and how they come to their new atom. Pure.
//!
//! An entry (an address, or a block) answers for what no more specific entry answers for. A region's
//! addresses are judged alike before and after, so each region moves from one atom to one other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use durward_proto::{AtomId, Block, NodeView};

use crate::{Kernel, Step};

/// The entry that answers for a region. The more specific sorts first: addresses, then long blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Address(IpAddr),
    Block(std::cmp::Reverse<u8>, Block),
}

impl Key {
    /// The step that gives the region an atom.
    pub(crate) fn put(self, atom: u32) -> Step {
        match self {
            Self::Address(address) => Step::PutAddress(address, atom),
            Self::Block(_, block) => Step::PutBlock(block, atom),
        }
    }

    /// The step that takes the entry away.
    pub(crate) fn remove(self) -> Step {
        match self {
            Self::Address(address) => Step::RemoveAddress(address),
            Self::Block(_, block) => Step::RemoveBlock(block),
        }
    }
}

/// A region that moves, or whose entry comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) key: Key,
    /// The atom that the kernel says now.
    pub(crate) now: u32,
    /// The atom that the view says.
    pub(crate) new: u32,
    /// Whether the kernel has the entry.
    pub(crate) held: bool,
    /// Whether the view has it.
    pub(crate) wanted: bool,
}

/// All regions in which something changes, the most specific first.
pub(crate) fn regions(kernel: &Kernel, view: &NodeView, atoms: &BTreeMap<AtomId, u32>) -> Vec<Region> {
    let number = |id: Option<AtomId>| id.and_then(|id| atoms.get(&id).copied()).unwrap_or(0);
    let addresses: BTreeSet<_> = kernel.addresses.keys().chain(view.addresses.keys()).copied().collect();
    let blocks: BTreeSet<_> = kernel.blocks.keys().chain(view.blocks.keys()).copied().collect();
    let of_address = addresses.into_iter().map(|address| Region {
        key: Key::Address(address),
        now: kernel.atom(address),
        new: number(view.atom(address)),
        held: kernel.addresses.contains_key(&address),
        wanted: view.addresses.contains_key(&address),
    });
    let of_block = blocks.into_iter().map(|block| Region {
        key: Key::Block(std::cmp::Reverse(block.length()), block),
        now: kernel.block_atom(block.address(), block.length()),
        new: number(view_block_atom(view, block)),
        held: kernel.blocks.contains_key(&block),
        wanted: view.blocks.contains_key(&block),
    });
    let changes = |region: &Region| region.now != region.new || region.held != region.wanted;
    let mut regions: Vec<_> = of_address.chain(of_block).filter(changes).collect();
    regions.sort_unstable_by_key(|region| region.key);
    regions
}

fn view_block_atom(view: &NodeView, block: Block) -> Option<AtomId> {
    let holder = |length| view.blocks.get(&Block::containing(block.address(), length).ok()?).copied();
    (0..=block.length()).rev().find_map(holder)
}
