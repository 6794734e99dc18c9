//! Hash-consing: equal things get one small number. Pure.

use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
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
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(u32);

        impl Id for $name {
            fn new(index: usize) -> Self {
                // Four billion entries do not fit into memory.
                Self(index as u32)
            }
            fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

ids! {
    PodId NodeId NamespaceId ScopeId
    /// Pods that no selector and no named port can tell apart.
    ClassId
    /// A scope and a pod selector.
    GroupId
    /// Something that a remote address can match.
    TermId
    /// A policy as attributions name it.
    NameId
    /// A policy's rules for one direction.
    BodyId
    SetIndex AtomIndex RowIndex AttributionIndex
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: V,
    holders: u32,
}

/// Things by number and by key. What nobody holds stays until [`Table::collect`], so that a number
/// never changes its meaning within a batch.
#[derive(Debug)]
pub(crate) struct Table<I, K, V> {
    slots: Vec<Option<Slot<K, V>>>,
    /// The numbers of all slots in use, found by the hash of their keys.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
    free: Vec<u32>,
    idle: Vec<u32>,
    kind: PhantomData<I>,
}

impl<I, K, V> Default for Table<I, K, V> {
    fn default() -> Self {
        Self {
            slots: vec![],
            numbers: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            free: vec![],
            idle: vec![],
            kind: PhantomData,
        }
    }
}

impl<I: Id, K: Eq + Hash, V> Table<I, K, V> {
    pub(crate) fn find<Q: ?Sized + Hash + Equivalent<K>>(&self, key: &Q) -> Option<I> {
        let is_it = |&number: &u32| key.equivalent(&held(&self.slots, number).key);
        self.numbers.find(self.hasher.hash_one(key), is_it).map(|&number| I::new(number as usize))
    }

    /// A new entry, which nobody holds yet. The key must not be there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> I {
        let hash = self.hasher.hash_one(&key);
        let slot = Some(Slot { key, value, holders: 0 });
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        let Self { slots, numbers, hasher, .. } = self;
        numbers.insert_unique(hash, number, |&other| hasher.hash_one(&held(slots, other).key));
        self.idle.push(number);
        I::new(number as usize)
    }

    pub(crate) fn hold(&mut self, id: I) {
        self.slot_mut(id).holders += 1;
    }

    pub(crate) fn release(&mut self, id: I) {
        let slot = self.slot_mut(id);
        slot.holders -= 1;
        if slot.holders == 0 {
            self.idle.push(id.index() as u32);
        }
    }

    /// Takes out everything that nobody holds.
    pub(crate) fn collect(&mut self) -> Vec<(I, K, V)> {
        let mut gone = vec![];
        for number in std::mem::take(&mut self.idle) {
            let slot = &mut self.slots[number as usize];
            if let Some(Slot { key, value, .. }) = slot.take_if(|slot| slot.holders == 0) {
                if let Ok(entry) =
                    self.numbers.find_entry(self.hasher.hash_one(&key), |&other| other == number)
                {
                    entry.remove();
                }
                self.free.push(number);
                gone.push((I::new(number as usize), key, value));
            }
        }
        gone
    }

    pub(crate) fn key(&self, id: I) -> &K {
        &held(&self.slots, id.index() as u32).key
    }

    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = I> + '_ {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| I::new(index))
    }

    fn slot_mut(&mut self, id: I) -> &mut Slot<K, V> {
        match &mut self.slots[id.index()] {
            Some(slot) => slot,
            None => unreachable!("a number is used only while its entry is there"),
        }
    }
}

fn held<K, V>(slots: &[Option<Slot<K, V>>], number: u32) -> &Slot<K, V> {
    match &slots[number as usize] {
        Some(slot) => slot,
        None => unreachable!("a number is used only while its entry is there"),
    }
}

impl<I: Id, K: Eq + Hash, V> Index<I> for Table<I, K, V> {
    type Output = V;

    fn index(&self, id: I) -> &V {
        &held(&self.slots, id.index() as u32).value
    }
}

impl<I: Id, K: Eq + Hash, V> IndexMut<I> for Table<I, K, V> {
    fn index_mut(&mut self, id: I) -> &mut V {
        &mut self.slot_mut(id).value
    }
}

/// How often each thing is used, and which things came into use or went out of it.
#[derive(Debug)]
pub(crate) struct Tally<K> {
    uses: HashMap<K, u32>,
    /// Things whose count changed since the last `settle`, and whether they were in use then.
    touched: HashMap<K, bool>,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self { uses: HashMap::new(), touched: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Tally<K> {
    pub(crate) fn add(&mut self, thing: K) {
        let uses = self.uses.entry(thing).or_default();
        self.touched.entry(thing).or_insert(*uses > 0);
        *uses += 1;
    }

    pub(crate) fn sub(&mut self, thing: K) {
        self.touched.entry(thing).or_insert(true);
        match self.uses.get_mut(&thing) {
            Some(1) => drop(self.uses.remove(&thing)),
            Some(uses) => *uses -= 1,
            None => unreachable!("what goes was there"),
        }
    }

    pub(crate) fn has(&self, thing: K) -> bool {
        self.uses.contains_key(&thing)
    }

    pub(crate) fn things(&self) -> impl Iterator<Item = K> + '_ {
        self.uses.keys().copied()
    }

    /// What came into use since the last time, and what went out of it.
    pub(crate) fn settle(&mut self) -> (Vec<K>, Vec<K>) {
        let (mut came, mut went) = (vec![], vec![]);
        for (thing, before) in self.touched.drain() {
            match (before, self.uses.contains_key(&thing)) {
                (false, true) => came.push(thing),
                (true, false) => went.push(thing),
                _ => {}
            }
        }
        (came, went)
    }
}
