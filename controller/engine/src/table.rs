//! Hash-consing: equal things get one small number. Pure.

use std::hash::{BuildHasher, Hash};
use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

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

/// A key, or what is looked for in place of one.
pub(crate) trait Belongs {
    /// The number of what it belongs to, if most such things have few. It is found through that: what is looked for together
    /// was made together, and lies together, where hashes would strew it over all memory.
    fn owner(&self) -> Option<usize> {
        None
    }
}

impl Belongs for str {}
impl Belongs for Arc<str> {}
impl<T> Belongs for Box<[T]> {}

/// How many entries of one owner are looked at one by one. Once there are more, they are found by hash until all are gone.
const FEW: usize = 8;

/// Instead of an owner's first entry, where there are more than [`FEW`].
fn crowd<I: Id>() -> I {
    I::new(u32::MAX as usize - 1)
}

#[derive(Debug)]
struct Slot<K, V, I> {
    key: K,
    value: V,
    holders: u32,
    /// Another entry of the same owner.
    next: Option<I>,
}

/// How many slots are made at once. They never move, so that growing takes no more than what it adds.
const CHUNK: usize = 256;

/// Things by number and by key. What nobody holds stays until [`Table::collect`], so that a number
/// never changes its meaning between two of those.
#[derive(Debug)]
pub(crate) struct Table<I, K, V> {
    chunks: Vec<Vec<Option<Slot<K, V, I>>>>,
    /// By owner: one of its few entries, which leads to the others; [`crowd`] if they are not few.
    first: Vec<Option<I>>,
    /// How many entries such an owner has.
    crowds: HashMap<usize, usize>,
    /// The numbers of all other entries, found by the hash of their keys, which is kept: to work it out
    /// anew for each key whenever the table grows costs more than all else.
    numbers: HashTable<(u32, I)>,
    hasher: DefaultHashBuilder,
    free: Vec<I>,
    idle: Vec<I>,
}

impl<I, K, V> Default for Table<I, K, V> {
    fn default() -> Self {
        Self {
            chunks: vec![],
            first: vec![],
            crowds: HashMap::new(),
            numbers: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            free: vec![],
            idle: vec![],
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

impl<I: Id, K: Eq + Hash + Belongs, V> Table<I, K, V> {
    fn hash<Q: ?Sized + Hash>(&self, key: &Q) -> u32 {
        let hash = self.hasher.hash_one(key);
        (hash ^ hash >> 32) as u32
    }

    pub(crate) fn find<Q: ?Sized + Hash + Equivalent<K> + Belongs>(&self, key: &Q) -> Option<I> {
        match key.owner().and_then(|owner| self.few(owner)) {
            Some(mut few) => few.find(|&id| key.equivalent(self.key(id))),
            None => {
                let hash = self.hash(key);
                let is_it = |&(other, id): &(u32, I)| other == hash && key.equivalent(self.key(id));
                self.numbers.find(spread(hash), is_it).map(|&(_, id)| id)
            }
        }
    }

    /// The owner's entries, if they are few.
    pub(crate) fn few(&self, owner: usize) -> Option<impl Iterator<Item = I> + '_> {
        let first = self.first.get(owner).copied().flatten();
        (first != Some(crowd())).then(|| std::iter::successors(first, |&id| self.slot(id).next))
    }

    /// A new entry, which nobody holds yet. The key must not be there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> I {
        let owner = key.owner();
        let slot = Some(Slot { key, value, holders: 0, next: None });
        let id = match self.free.pop() {
            Some(id) => {
                self.chunks[id.index() / CHUNK][id.index() % CHUNK] = slot;
                id
            }
            None => self.push(slot),
        };
        match owner {
            Some(owner) => self.give(owner, id),
            None => self.file(id),
        }
        self.idle.push(id);
        id
    }

    /// The owner has one more.
    fn give(&mut self, owner: usize, id: I) {
        let len = self.first.len();
        if owner >= len {
            let room = (len + len / 16).max(owner + 1).next_multiple_of(CHUNK);
            self.first.reserve_exact(room - len);
            self.first.resize(room, None);
        }
        if self.first[owner] == Some(crowd()) {
            *self.crowds.entry(owner).or_default() += 1;
            return self.file(id);
        }
        self.slot_mut(id).next = self.first[owner].replace(id);
        if self.few(owner).is_some_and(|mut few| few.nth(FEW).is_some()) {
            let all: Vec<_> = self.few(owner).into_iter().flatten().collect();
            self.first[owner] = Some(crowd());
            self.crowds.insert(owner, all.len());
            all.into_iter().for_each(|id| self.file(id));
        }
    }

    /// Files an entry by the hash of its key.
    fn file(&mut self, id: I) {
        let hash = self.hash(self.key(id));
        if let Some(room) = room_for_more(self.numbers.len(), self.numbers.capacity()) {
            let numbers = std::mem::replace(&mut self.numbers, HashTable::with_capacity(room));
            for entry in numbers {
                self.numbers.insert_unique(spread(entry.0), entry, |&(hash, _)| spread(hash));
            }
        }
        self.numbers.insert_unique(spread(hash), (hash, id), |&(hash, _)| spread(hash));
    }

    /// The owner has one less: this, which led to `next`.
    fn take_from(&mut self, owner: usize, id: I, key: &K, next: Option<I>) {
        if self.first[owner] == Some(id) {
            self.first[owner] = next;
            return;
        }
        if self.first[owner] != Some(crowd()) {
            let leads_here = |&before: &I| self.slot(before).next == Some(id);
            let before = self.few(owner).into_iter().flatten().find(leads_here);
            before.into_iter().for_each(|before| self.slot_mut(before).next = next);
            return;
        }
        if let Some(count) = self.crowds.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                self.crowds.remove(&owner);
                self.first[owner] = None;
            }
        }
        self.unfile(id, key);
    }

    fn unfile(&mut self, id: I, key: &K) {
        let hash = self.hash(key);
        if let Ok(entry) = self.numbers.find_entry(spread(hash), |&(_, other)| other == id) {
            entry.remove();
        }
    }

    fn push(&mut self, slot: Option<Slot<K, V, I>>) -> I {
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
            if let Some(Slot { key, value, next, .. }) = slot.take_if(|slot| slot.holders == 0) {
                match key.owner() {
                    Some(owner) => self.take_from(owner, id, &key, next),
                    None => self.unfile(id, &key),
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
        self.bound() - self.free.len()
    }

    /// All numbers are less than this.
    pub(crate) fn bound(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = I> + '_ {
        let used = self.chunks.iter().flatten().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| I::new(index))
    }

    fn slot(&self, id: I) -> &Slot<K, V, I> {
        match &self.chunks[id.index() / CHUNK][id.index() % CHUNK] {
            Some(slot) => slot,
            None => unreachable!("a number is used only while its entry is there"),
        }
    }

    fn slot_mut(&mut self, id: I) -> &mut Slot<K, V, I> {
        match &mut self.chunks[id.index() / CHUNK][id.index() % CHUNK] {
            Some(slot) => slot,
            None => unreachable!("a number is used only while its entry is there"),
        }
    }
}

impl<I: Id, K: Eq + Hash + Belongs, V> Index<I> for Table<I, K, V> {
    type Output = V;

    fn index(&self, id: I) -> &V {
        &self.slot(id).value
    }
}

impl<I: Id, K: Eq + Hash + Belongs, V> IndexMut<I> for Table<I, K, V> {
    fn index_mut(&mut self, id: I) -> &mut V {
        &mut self.slot_mut(id).value
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    impl Belongs for usize {}

    /// A tenth of it is the owner.
    impl Belongs for u32 {
        fn owner(&self) -> Option<usize> {
            Some(*self as usize / 10)
        }
    }

    #[test]
    fn each_key_is_found_whether_its_owner_has_few_or_many() {
        let mut table = Table::<WordId, u32, ()>::default();
        let mut held = std::collections::BTreeMap::new();
        let mut random = 1_u32;
        for turn in 0..20_000_u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Thirteen owners, which have many in one half of the time and few in the other.
            let (key, few) = (random >> 16 & 127, turn / 2_500 % 2 == 1);
            let comes = if few { random >> 24 & 7 == 0 } else { random >> 24 & 7 != 0 };
            match (held.get(&key), comes) {
                (None, true) => {
                    assert_eq!(table.find(&key), None);
                    let id = table.insert(key, ());
                    table.hold(id);
                    held.insert(key, id);
                }
                (Some(&id), false) => {
                    table.release(id);
                    held.remove(&key);
                    assert_eq!(table.collect(), [(id, key, ())]);
                }
                _ => {}
            }
            assert_eq!((table.find(&key), table.len()), (held.get(&key).copied(), held.len()));
            if turn % 100 == 0 {
                assert!((0..128).all(|key| table.find(&key) == held.get(&key).copied()));
            }
        }
        held.into_values().for_each(|id| table.release(id));
        table.collect();
        assert!(table.first.iter().all(Option::is_none) && table.crowds.is_empty());
        assert!(table.len() == 0 && table.numbers.is_empty());
    }

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
