//! What the kernel's maps hold, as plain data. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{Block, Direction, Frontend, PodUid, Verdict};
use serde::Serialize;

/// What judges one direction of an endpoint: the number of a set, and a generation that makes every
/// store of a word another word. Set 0 is no set: nothing isolates the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Word {
    /// The set's number.
    pub set: u32,
    /// Which store of a word this is.
    pub generation: u32,
}

impl Word {
    /// The number that the kernel holds.
    pub const fn bits(self) -> u64 {
        (self.set as u64) << 32 | self.generation as u64
    }

    /// The word that a number is.
    pub const fn from_bits(bits: u64) -> Self {
        Self { set: (bits >> 32) as u32, generation: bits as u32 }
    }
}

/// A verdict, with the number of the policies behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Act {
    /// Whether the packet passes.
    pub verdict: Verdict,
    /// Whether one of the policies behind it asks for its connections to be logged.
    pub logged: bool,
    /// The number of the policies behind it.
    pub attribution: u32,
}

/// From a protocol and port on, up to the next bound, an act holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Bound {
    /// `protocol << 16 | port` of the first.
    pub start: u32,
    /// What holds there.
    pub act: Act,
}

/// Bounds in rising order, the first at 0. Cheap to clone.
pub type Row = Arc<[Bound]>;

/// A set's number and an atom's; with atom 0 it is the key of the set's base row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RowKey {
    /// The set.
    pub set: u32,
    /// The atom.
    pub atom: u32,
}

/// What an endpoint may do before its policies are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// The pod is known: its words judge.
    Judged,
    /// Only the node's own traffic passes: the pod is unknown, or its rules do not fit in the kernel.
    #[default]
    Closed,
    /// Everything passes: the pod is unknown, and a setting says so.
    Open,
}

/// What of an endpoint's connections is to be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LogFlags {
    /// Every allowed connection.
    pub allowed: bool,
    /// Allowed connections whose act says `logged`.
    pub delegated: bool,
    /// Denied connections.
    pub denied: bool,
}

/// A pod's interface, as the kernel's table of endpoints has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// The namespace's identity: another one on the same interface index is another endpoint.
    pub namespace: u64,
    /// The namespace's number as the host counts them, for look-ups of sockets; -1 if it has none.
    pub nsid: i32,
    /// Whether it is judged at all.
    pub access: Access,
    /// What judges it, in the order of [`Direction::BOTH`].
    pub words: [Word; 2],
    /// The addresses that are its own.
    pub addresses: Vec<IpAddr>,
    /// What is recorded.
    pub log: LogFlags,
}

impl Endpoint {
    /// The word of a direction.
    pub fn word(&self, direction: Direction) -> Word {
        self.words[direction as usize]
    }
}

/// An interface that was found to be a pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The namespace's identity.
    pub namespace: u64,
    /// The namespace's number as the host counts them; -1 if it has none.
    pub nsid: i32,
    /// Which pod its processes say it is; none while they say nothing, or disagree.
    pub pod: Option<PodUid>,
    /// The addresses that were there when the namespace appeared: they count until the view has any.
    pub addresses: Vec<IpAddr>,
}

/// Everything in the kernel that a plan can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Endpoints by interface index.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Atoms of exact remote addresses.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Atoms of remote blocks.
    pub blocks: BTreeMap<Block, u32>,
    /// What each set says of each atom.
    pub rows: BTreeMap<RowKey, Row>,
    /// Where Services are called.
    pub frontends: BTreeSet<Frontend>,
}

impl Kernel {
    /// The atom of a remote address: its own, else that of the longest block, else 0.
    pub fn atom(&self, address: IpAddr) -> u32 {
        self.addresses.get(&address).copied().unwrap_or_else(|| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            self.block_atom(address, longest)
        })
    }

    /// The atom of the longest block that holds an address and is no longer than `longest`; else 0.
    pub fn block_atom(&self, address: IpAddr, longest: u8) -> u32 {
        let block = |length| self.blocks.get(&Block::containing(address, length).ok()?).copied();
        (0..=longest).rev().find_map(block).unwrap_or(0)
    }

    /// What a set says of an atom: its row, else the set's base row.
    pub fn row(&self, set: u32, atom: u32) -> Option<&Row> {
        self.rows.get(&RowKey { set, atom }).or_else(|| self.rows.get(&RowKey { set, atom: 0 }))
    }

    /// The sets that some endpoint's word names.
    pub fn linked(&self) -> BTreeSet<u32> {
        let words = self.endpoints.values().flat_map(|endpoint| endpoint.words);
        words.map(|word| word.set).filter(|&set| set != 0).collect()
    }
}
