//! How often things are used, and which come into use or go out of it. Pure.

use smallvec::SmallVec;

use crate::sorted::{Few, few_sorted, update};
use crate::table::Id;

/// How often each thing is used; sorted, and nothing that is not used.
#[derive(Debug)]
pub(crate) struct Tally<K>(Vec<(K, u32)>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(vec![])
    }
}

/// Uses that come and go, in any order. Most changes are of a few.
#[derive(Debug)]
pub(crate) struct Uses<K>(SmallVec<[(K, i32); 16]>);

impl<K> Default for Uses<K> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<K: Copy + Ord> Uses<K> {
    pub(crate) fn add(&mut self, thing: K) {
        self.0.push((thing, 1));
    }

    pub(crate) fn add_times(&mut self, thing: K, times: i32) {
        self.0.push((thing, times));
    }

    pub(crate) fn sub(&mut self, thing: K) {
        self.0.push((thing, -1));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing comes or goes any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// How much there is more in all.
    pub(crate) fn sum(&self) -> isize {
        self.0.iter().map(|&(_, change)| change as isize).sum()
    }

    /// Makes what came go again, and the other way round.
    pub(crate) fn reverse(&mut self) {
        self.0.iter_mut().for_each(|(_, change)| *change = -*change);
    }

    /// How much there is more of a thing; they must be what changes for each.
    pub(crate) fn of(&self, thing: K) -> i32 {
        self.0.binary_search_by_key(&thing, |&(thing, _)| thing).map_or(0, |at| self.0[at].1)
    }

    /// Makes them what changes for each thing, sorted; nothing is said of what does not.
    pub(crate) fn net(&mut self) {
        self.0.sort_unstable_by_key(|&(thing, _)| thing);
        self.0.dedup_by(|&mut (later, more), (first, sum)| {
            let same = later == *first;
            if same {
                *sum += more;
            }
            same
        });
        // Much comes again that went: where one policy of a list changes, most of what its rows name.
        self.0.retain(|(_, change)| *change != 0);
    }
}

/// What came into use and what went out of it; sorted, and nothing that is in both.
#[derive(Debug)]
pub(crate) struct Turnover<K> {
    pub(crate) came: Few<K>,
    pub(crate) went: Few<K>,
}

impl<K> Default for Turnover<K> {
    fn default() -> Self {
        Self { came: Few::new(), went: Few::new() }
    }
}

impl<K: Copy + Ord> Turnover<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.came.is_empty() && self.went.is_empty()
    }

    /// Adds what happened after this.
    pub(crate) fn then(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        let both = |first: &[K], then: &[K], back_first: &[K], back_then: &[K]| {
            let stays = first.iter().filter(|thing| back_then.binary_search(thing).is_err());
            let is_new = then.iter().filter(|thing| back_first.binary_search(thing).is_err());
            few_sorted(stays.chain(is_new).copied().collect())
        };
        *self = Self {
            came: both(&self.came, &later.came, &self.went, &later.went),
            went: both(&self.went, &later.went, &self.came, &later.came),
        };
    }
}

impl<K: Id> Tally<K> {
    pub(crate) fn things(&self) -> impl Iterator<Item = K> + '_ {
        self.0.iter().map(|&(thing, _)| thing)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Counts what comes and goes. What is left in `uses` is what changed for each thing: reversed, it
    /// leads back.
    pub(crate) fn settle(&mut self, uses: &mut Uses<K>) -> Turnover<K> {
        if uses.0.is_empty() {
            return Turnover::default();
        }
        uses.net();
        let net = &uses.0;
        let (mut came, mut went) = (Few::with_capacity(net.len()), Few::with_capacity(net.len()));
        update(&mut self.0, net.iter().copied(), |thing, before, change| {
            let Some(uses) = before.unwrap_or(&0).checked_add_signed(change) else {
                unreachable!("what goes was there")
            };
            match (before, uses) {
                (None, _) => came.push(thing),
                (Some(_), 0) => went.push(thing),
                _ => {}
            }
            (uses > 0).then_some(uses)
        });
        Turnover { came, went }
    }
}
