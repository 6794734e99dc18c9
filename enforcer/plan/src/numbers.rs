//! Numbers: the node's own short names for what the wire names by content. Pure.
//!
//! A number is given once and never again, also not by a later run of the enforcer: an entry that was
//! left behind in the kernel must not come to mean something else. So they are saved before the first
//! step that uses them.

use std::collections::BTreeMap;

use durward_proto::{AtomId, AttributionId, NodeView, SetId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Kernel, Word};

/// The last attribution's number: the two bits above are the verdict's.
const LAST_ATTRIBUTION: u32 = (1 << 30) - 1;
/// The last set's number: the bit above marks, in a connection's word, that it was cut.
const LAST_SET: u32 = (1 << 31) - 1;
/// How far to step over numbers that may have been given but are not seen any more.
const LEAP: u32 = 1 << 20;

/// There is no number left.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "no {0} number is left on this node: drain it, remove the enforcer's state folder and its pins below \
     /sys/fs/bpf/durward, and start it again"
)]
pub struct Exhausted(pub &'static str);

/// The numbers of one kind of thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Given<K: Ord> {
    last: u32,
    of: BTreeMap<K, u32>,
}

impl<K: Ord> Default for Given<K> {
    fn default() -> Self {
        Self { last: 0, of: BTreeMap::new() }
    }
}

impl<K: Ord> Given<K> {
    fn fresh(&mut self, end: u32, what: &'static str) -> Result<u32, Exhausted> {
        self.last = self.last.checked_add(1).filter(|&number| number <= end).ok_or(Exhausted(what))?;
        Ok(self.last)
    }

    fn get_or_give(&mut self, key: K, end: u32, what: &'static str) -> Result<u32, Exhausted> {
        if let Some(&number) = self.of.get(&key) {
            return Ok(number);
        }
        let number = self.fresh(end, what)?;
        self.of.insert(key, number);
        Ok(number)
    }
}

/// All numbers that this node has given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    sets: Given<SetId>,
    atoms: Given<AtomId>,
    attributions: Given<AttributionId>,
    generation: u32,
}

impl Numbers {
    /// The number of an attribution of the view that was planned last.
    pub fn attribution(&self, id: AttributionId) -> Option<u32> {
        self.attributions.of.get(&id).copied()
    }

    /// The number of a set of the view that was planned last.
    pub fn set_number(&self, id: SetId) -> Option<u32> {
        self.sets.of.get(&id).copied()
    }

    /// Steps over every number that the kernel holds: for a node whose saved numbers were lost while
    /// its maps were not.
    pub fn step_over(&mut self, kernel: &Kernel) {
        let words = || kernel.endpoints.values().flat_map(|endpoint| endpoint.words);
        let sets = kernel.rows.keys().map(|key| key.set).chain(words().map(|word| word.set));
        let remotes = kernel.addresses.values().chain(kernel.blocks.values()).copied();
        let atoms = kernel.rows.keys().map(|key| key.atom).chain(remotes);
        let acts = kernel.rows.values().flat_map(|row| row.iter().map(|bound| bound.act.attribution));
        let over = |last: &mut u32, held: u32| *last = (*last).max(held).saturating_add(LEAP);
        over(&mut self.sets.last, sets.max().unwrap_or(0));
        over(&mut self.atoms.last, atoms.max().unwrap_or(0));
        over(&mut self.attributions.last, acts.max().unwrap_or(0));
        over(&mut self.generation, words().map(|word| word.generation).max().unwrap_or(0));
    }

    /// Whether every number in the kernel is one that these have given. If not, they are not this kernel's.
    pub fn cover(&self, kernel: &Kernel) -> bool {
        let words = || kernel.endpoints.values().flat_map(|endpoint| endpoint.words);
        kernel.rows.iter().all(|(key, row)| {
            key.set <= self.sets.last
                && key.atom <= self.atoms.last
                && row.iter().all(|bound| bound.act.attribution <= self.attributions.last)
        }) && words().all(|word| word.set <= self.sets.last && word.generation <= self.generation)
            && kernel.addresses.values().chain(kernel.blocks.values()).all(|&atom| atom <= self.atoms.last)
    }

    pub(crate) fn set(&mut self, id: SetId) -> Result<u32, Exhausted> {
        self.sets.get_or_give(id, LAST_SET, "set")
    }

    /// Another number for a set that has one.
    pub(crate) fn renumber_set(&mut self, id: SetId) -> Result<u32, Exhausted> {
        self.sets.of.remove(&id);
        self.set(id)
    }

    pub(crate) fn atom(&mut self, id: AtomId) -> Result<u32, Exhausted> {
        self.atoms.get_or_give(id, u32::MAX, "atom")
    }

    /// A number for an atom that lives only while a plan is carried out.
    pub(crate) fn passing_atom(&mut self) -> Result<u32, Exhausted> {
        self.atoms.fresh(u32::MAX, "atom")
    }

    pub(crate) fn give_attribution(&mut self, id: AttributionId) -> Result<u32, Exhausted> {
        self.attributions.get_or_give(id, LAST_ATTRIBUTION, "attribution")
    }

    /// The next word for a set.
    pub(crate) fn word(&mut self, set: u32) -> Result<Word, Exhausted> {
        self.generation = self.generation.checked_add(1).ok_or(Exhausted("generation"))?;
        Ok(Word { set, generation: self.generation })
    }

    /// Forgets the names that a view does not have. Their numbers stay given.
    pub(crate) fn retain(&mut self, view: &NodeView, atoms: &BTreeMap<AtomId, u32>) {
        self.sets.of.retain(|id, _| view.sets.contains_key(id));
        self.atoms.of.retain(|id, _| atoms.contains_key(id));
        self.attributions.of.retain(|id, _| view.attributions.contains_key(id));
    }
}
