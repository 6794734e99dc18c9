//! Durward's BPF programs, and a typed API over the objects that are loaded and pinned.
//!
//! The only crate with `unsafe`. It knows nothing of Kubernetes: addresses are [`IpAddr`]s, and sets, atoms,
//! attributions are the node's own numbers. It runs no task: every call is one look at, or one change of,
//! the kernel, and most take microseconds ([`DataPath::grace_period`] takes about 10 ms).
//!
//! ```text
//!   load      probe, load, take over what is pinned        attach   programs ↔ interfaces
//!   endpoint  whose interface, judged by which sets        policy   atoms, rows
//!   conntrack connections                                  denials  open windows of denied packets
//!   events    the ring        counters  totals             dump     all of it, for people
//! ```
//!
//! The order that keeps every packet old or new is the caller's: everything that a [`Word`] can lead to is
//! written before the word, everything is unlinked, and a grace period has passed, before it is freed.

pub mod abi;

mod attach;
mod conntrack;
mod counters;
mod denials;
mod dump;
mod endpoint;
mod events;
mod load;
mod mapped;
mod policy;
mod services;
mod tables;
mod trial;

pub use attach::{AttachError, Attached};
pub use conntrack::{Connection, ConnectionKey, Connections};
pub use counters::{Counters, Reason, Suppressed};
pub use denials::{Closed, Denial};
pub use dump::Dump;
pub use endpoint::{Endpoint, Flags};
pub use events::{Event, EventKind, Events};
pub use load::{DataPath, LoadError, Options, Settings, Shape};
pub use policy::{Block, Bound, HostAddress};
pub use services::{Frontend, Services};
pub use tables::MapError;
pub use trial::{Fate, Trial};

use serde::Serialize;

/// Which side of a connection the pod is on, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Direction {
    /// To the pod.
    Ingress = abi::INGRESS as u8,
    /// From the pod.
    Egress = abi::EGRESS as u8,
}

impl Direction {
    /// Both, in the kernel's order.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn of(number: u8) -> Self {
        Self::BOTH[usize::from(number & 1)]
    }
}

/// A policy word: the set that judges a pod in one direction, and the generation of its rules.
///
/// Each store of a word takes a generation that was never used before, so that no connection judged under
/// other rules ever matches it. Set 0 judges nobody: the pod is not isolated in that direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Word {
    /// The set's number, below 2³¹; 0 for none.
    pub set: u32,
    /// The generation.
    pub generation: u32,
}

impl Word {
    /// The word of a set and a generation.
    pub const fn new(set: u32, generation: u32) -> Self {
        Self { set, generation }
    }

    pub(crate) const fn bits(self) -> u64 {
        // Bit 63 marks connections that were cut. A set with that number would be judged by no row.
        ((self.set as u64) << 32 | self.generation as u64) & !CUT
    }

    pub(crate) const fn of(bits: u64) -> Self {
        let bits = bits & !CUT;
        Self { set: (bits >> 32) as u32, generation: bits as u32 }
    }
}

/// What is said of a packet: its verdict, and which policies are behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Act {
    /// Whether it passes.
    pub allow: bool,
    /// Whether one of the policies asks for it to be logged (for allow logs that are delegated).
    pub loggable: bool,
    /// The attribution's number: from 1, below 2³⁰; 0 where no policy spoke.
    pub attribution: u32,
}

impl Act {
    pub(crate) const fn bits(self) -> u32 {
        let allow = if self.allow { abi::ACT_ALLOW } else { 0 };
        let loggable = if self.loggable { abi::ACT_LOGGABLE } else { 0 };
        allow | loggable | (self.attribution & abi::ACT_ATTRIBUTION)
    }

    pub(crate) const fn of(bits: u32) -> Self {
        Self {
            allow: bits & abi::ACT_ALLOW != 0,
            loggable: bits & abi::ACT_LOGGABLE != 0,
            attribution: bits & abi::ACT_ATTRIBUTION,
        }
    }
}

/// The bit of a connection's word that says that it was cut. bindgen sees a signed number.
pub(crate) const CUT: u64 = abi::WORD_CUT as u64;
