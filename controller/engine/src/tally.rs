//! How often things are used, and which come into use or go out of it. Pure.

use crate::cluster::exchange;

/// How often each thing is used; sorted, and nothing that is not used.
#[derive(Debug)]
pub(crate) struct Tally<K>(Vec<(K, u32)>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(vec![])
    }
}

/// Uses that come and go, in any order.
#[derive(Debug)]
pub(crate) struct Uses<K>(Vec<(K, i32)>);

impl<K> Default for Uses<K> {
    fn default() -> Self {
        Self(vec![])
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

    /// What changes for each thing, sorted.
    fn net(mut self) -> Vec<(K, i32)> {
        self.0.sort_unstable_by_key(|&(thing, _)| thing);
        self.0.dedup_by(|&mut (later, more), (first, sum)| {
            let same = later == *first;
            if same {
                *sum += more;
            }
            same
        });
        self.0
    }
}

impl<K: Copy + Ord> Tally<K> {
    pub(crate) fn uses(&self, thing: K) -> u32 {
        self.0.binary_search_by_key(&thing, |&(thing, _)| thing).map_or(0, |at| self.0[at].1)
    }

    pub(crate) fn things(&self) -> impl Iterator<Item = K> + '_ {
        self.0.iter().map(|&(thing, _)| thing)
    }

    /// Counts what comes and goes. Gives what came into use and what went out of it, sorted.
    pub(crate) fn settle(&mut self, uses: Uses<K>) -> (Vec<K>, Vec<K>) {
        if uses.0.is_empty() {
            return (vec![], vec![]);
        }
        let net = uses.net();
        let (mut came, mut went) = (vec![], vec![]);
        for &(thing, change) in &net {
            match self.0.binary_search_by_key(&thing, |&(thing, _)| thing) {
                Ok(at) => match self.0[at].1.checked_add_signed(change) {
                    Some(0) => went.push(thing),
                    Some(uses) => self.0[at].1 = uses,
                    None => unreachable!("what goes was there"),
                },
                Err(_) if change > 0 => came.push(thing),
                Err(_) if change < 0 => unreachable!("what goes was there"),
                Err(_) => {}
            }
        }
        let new = net.into_iter().filter(|(thing, _)| came.binary_search(thing).is_ok());
        let new = new.map(|(thing, uses)| (thing, uses.unsigned_abs())).collect();
        exchange(&mut self.0, &went, new, |&(thing, _)| thing);
        (came, went)
    }
}
