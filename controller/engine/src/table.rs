//! Hash-consing: equal things get one small number. Pure.

use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

use hashbrown::{DefaultHashBuilder, Equivalent, HashMap, HashTable};

/// A small number for an entry of one kind of table.
pub(crate) trait Id: Copy + Eq + Ord + Hash {
    fn new(index: usize) -> Self;
    fn index(self) -> usize;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(NonZeroU32);

        impl Id for $name {
            fn new(index: usize) -> Self {
                // Four billion entries do not fit into memory.
                Self(NonZeroU32::MIN.saturating_add(index as u32))
            }
            fn index(self) -> usize {
                self.0.get() as usize - 1
            }
        }
    )*};
}

ids! {
    PodId PolicyId NodeId NamespaceId ScopeId
    /// A string of a label.
    WordId
    /// The labels of pods or namespaces.
    LabelsId
    /// The named ports of pods.
    PortsId
    /// A selector in its one form.
    SelectorId
    /// Pods that no selector and no named port can tell apart.
    ClassId
    /// A scope and a pod selector.
    GroupId
    /// Something that a remote address can match.
    TermId
    /// A policy's rules for one direction.
    BodyId
    /// A list of bodies.
    ListId
    SetIndex AtomIndex RowIndex AttributionIndex
    /// What a branch of a set adds to a row.
    PartId
    /// What rows say.
    ContentId
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    holders: u32,
}

/// How many slots are made at once. They never move, so that growing takes no more than what it adds.
const CHUNK: usize = 256;

/// Things by number and by key. What nobody holds stays until [`Table::collect`], so that a number
/// never changes its meaning within a batch.
#[derive(Debug)]
pub(crate) struct Table<I, K, V> {
    chunks: Vec<Vec<Option<Slot<K, V>>>>,
    /// The numbers of all slots in use, found by the hash of their keys, which is kept: to work it out
    /// anew for each key whenever the table grows costs more than all else.
    numbers: HashTable<(u32, I)>,
    hasher: DefaultHashBuilder,
    free: Vec<I>,
    idle: Vec<I>,
    kind: PhantomData<I>,
}

impl<I, K, V> Default for Table<I, K, V> {
    fn default() -> Self {
        Self {
            chunks: vec![],
            numbers: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            free: vec![],
            idle: vec![],
            kind: PhantomData,
        }
    }
}

/// How many entries a hash table must have room for, if it has none left: left to itself, one that is more than half full
/// would double because of what was taken out of it, which leaves marks.
fn room_for_more(len: usize, capacity: usize) -> Option<usize> {
    (len == capacity).then_some(len + len / 16 + 1)
}

/// Puts a value, of which the map grows no more than [`room_for_more`] says.
pub(crate) fn insert<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: K, value: V) -> Option<V> {
    if let Some(room) = room_for_more(map.len(), map.capacity()) {
        let entries = std::mem::replace(map, HashMap::with_capacity(room));
        map.extend(entries);
    }
    map.insert(key, value)
}

/// The table looks at the highest and at the lowest bits.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl<I: Id, K: Eq + Hash, V> Table<I, K, V> {
    fn hash<Q: ?Sized + Hash>(&self, key: &Q) -> u32 {
        let hash = self.hasher.hash_one(key);
        (hash ^ hash >> 32) as u32
    }

    pub(crate) fn find<Q: ?Sized + Hash + Equivalent<K>>(&self, key: &Q) -> Option<I> {
        let hash = self.hash(key);
        let is_it = |&(other, id): &(u32, I)| other == hash && key.equivalent(self.key(id));
        self.numbers.find(spread(hash), is_it).map(|&(_, id)| id)
    }

    /// A new entry, which nobody holds yet. The key must not be there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> I {
        let hash = self.hash(&key);
        let slot = Some(Slot { key, value, holders: 0 });
        let id = match self.free.pop() {
            Some(id) => {
                self.chunks[id.index() / CHUNK][id.index() % CHUNK] = slot;
                id
            }
            None => self.push(slot),
        };
        if let Some(room) = room_for_more(self.numbers.len(), self.numbers.capacity()) {
            let numbers = std::mem::replace(&mut self.numbers, HashTable::with_capacity(room));
            for entry in numbers {
                self.numbers.insert_unique(spread(entry.0), entry, |&(hash, _)| spread(hash));
            }
        }
        self.numbers.insert_unique(spread(hash), (hash, id), |&(hash, _)| spread(hash));
        self.idle.push(id);
        id
    }

    fn push(&mut self, slot: Option<Slot<K, V>>) -> I {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let chunk = &mut self.chunks[before / CHUNK];
        chunk.push(slot);
        I::new(before + chunk.len() - 1)
    }

    pub(crate) fn hold(&mut self, id: I) {
        self.slot_mut(id).holders += 1;
    }

    pub(crate) fn release(&mut self, id: I) {
        let slot = self.slot_mut(id);
        slot.holders -= 1;
        if slot.holders == 0 {
            self.idle.push(id);
        }
    }

    /// Takes out everything that nobody holds.
    pub(crate) fn collect(&mut self) -> Vec<(I, K, V)> {
        let mut gone = vec![];
        for id in std::mem::take(&mut self.idle) {
            let slot = &mut self.chunks[id.index() / CHUNK][id.index() % CHUNK];
            if let Some(Slot { key, value, .. }) = slot.take_if(|slot| slot.holders == 0) {
                let hash = self.hash(&key);
                if let Ok(entry) = self.numbers.find_entry(spread(hash), |&(_, other)| other == id) {
                    entry.remove();
                }
                self.free.push(id);
                gone.push((id, key, value));
            }
        }
        gone
    }

    /// Takes out everything that nobody holds, and what was held by that only. `let_go` releases what an entry held.
    pub(crate) fn collect_all(&mut self, mut let_go: impl FnMut(&mut Self, K, V)) {
        loop {
            let gone = self.collect();
            if gone.is_empty() {
                return;
            }
            gone.into_iter().for_each(|(_, key, value)| let_go(self, key, value));
        }
    }

    pub(crate) fn key(&self, id: I) -> &K {
        &self.slot(id).key
    }

    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// All numbers are less than this.
    pub(crate) fn bound(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = I> + '_ {
        let used = self.chunks.iter().flatten().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| I::new(index))
    }

    fn slot(&self, id: I) -> &Slot<K, V> {
        match &self.chunks[id.index() / CHUNK][id.index() % CHUNK] {
            Some(slot) => slot,
            None => unreachable!("a number is used only while its entry is there"),
        }
    }

    fn slot_mut(&mut self, id: I) -> &mut Slot<K, V> {
        match &mut self.chunks[id.index() / CHUNK][id.index() % CHUNK] {
            Some(slot) => slot,
            None => unreachable!("a number is used only while its entry is there"),
        }
    }
}

impl<I: Id, K: Eq + Hash, V> Index<I> for Table<I, K, V> {
    type Output = V;

    fn index(&self, id: I) -> &V {
        &self.slot(id).value
    }
}

impl<I: Id, K: Eq + Hash, V> IndexMut<I> for Table<I, K, V> {
    fn index_mut(&mut self, id: I) -> &mut V {
        &mut self.slot_mut(id).value
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn what_comes_and_goes_leaves_a_table_as_large_as_it_was() {
        let mut table = Table::<WordId, usize, ()>::default();
        let add = |table: &mut Table<_, _, _>, key| {
            let id = table.insert(key, ());
            table.hold(id);
            id
        };
        // Well filled, of 1,792 for which there is room.
        let mut held: VecDeque<_> = (0..1_680).map(|key| add(&mut table, key)).collect();
        let capacity = table.numbers.capacity();
        for key in 1_680..100_000 {
            table.release(held.pop_front().expect("one that is held"));
            table.collect();
            held.push_back(add(&mut table, key));
        }
        assert!(held.iter().zip(98_320..).all(|(&id, key)| table.find(&key) == Some(id)));
        assert!(table.numbers.capacity() <= capacity, "{capacity} became {}", table.numbers.capacity());
    }
}
