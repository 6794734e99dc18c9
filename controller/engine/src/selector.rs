//! An index of many selectors. Pure.

use std::hash::Hash;

use hashbrown::HashMap;

use crate::sorted::Few;
use crate::table::{SelectorId, WordId, insert};
use crate::words::{Need, Test, Words};

/// What labels must have for a selector to be worth trying: a key, or a key and a value, or nothing.
type Anchor = (Option<WordId>, Option<WordId>);

/// Things by key, where most keys have one.
#[derive(Debug)]
pub(crate) struct Files<K, I> {
    filed: HashMap<K, Filed<I>>,
    /// Those of keys that have several; none where it is free.
    more: Vec<Vec<I>>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Filed<I> {
    One(I),
    /// Where in `more`: a list in its place would make all others longer.
    More(u32),
}

impl<K, I> Default for Files<K, I> {
    fn default() -> Self {
        Self { filed: HashMap::new(), more: vec![], free: vec![] }
    }
}

impl<K: Copy + Eq + Hash, I: Copy + Eq> Files<K, I> {
    pub(crate) fn insert(&mut self, key: K, id: I) {
        let Self { filed, more, free } = self;
        match filed.get_mut(&key) {
            None => drop(insert(filed, key, Filed::One(id))),
            Some(Filed::More(at)) => more[*at as usize].push(id),
            Some(filed @ &mut Filed::One(first)) => {
                let at = free.pop().unwrap_or_else(|| {
                    more.push(vec![]);
                    more.len() as u32 - 1
                });
                more[at as usize] = vec![first, id];
                *filed = Filed::More(at);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: K, id: I) {
        let empty = match self.filed.get(&key) {
            Some(&Filed::More(at)) => {
                let more = &mut self.more[at as usize];
                more.retain(|found| *found != id);
                if more.is_empty() {
                    *more = vec![];
                    self.free.push(at);
                }
                more.is_empty()
            }
            Some(Filed::One(found)) => *found == id,
            None => false,
        };
        if empty {
            self.filed.remove(&key);
        }
    }

    pub(crate) fn get(&self, key: K) -> &[I] {
        match self.filed.get(&key) {
            None => &[],
            Some(Filed::One(id)) => std::slice::from_ref(id),
            Some(Filed::More(at)) => &self.more[*at as usize],
        }
    }
}

/// Many selectors in many places, filed so that labels meet only those of their place that mention
/// them: each under the values of its smallest `In`, else under a key that must exist, else with those
/// that are always tried.
#[derive(Debug)]
pub(crate) struct SelectorIndex<P, I>(Files<(P, Anchor), I>);

impl<P, I> Default for SelectorIndex<P, I> {
    fn default() -> Self {
        Self(Files::default())
    }
}

impl<P: Copy + Eq + Hash, I: Copy + Eq> SelectorIndex<P, I> {
    pub(crate) fn insert(&mut self, words: &Words, place: P, selector: SelectorId, id: I) {
        for anchor in anchors(words.selectors.key(selector)) {
            self.0.insert((place, anchor), id);
        }
    }

    pub(crate) fn remove(&mut self, words: &Words, place: P, selector: SelectorId, id: I) {
        for anchor in anchors(words.selectors.key(selector)) {
            self.0.remove((place, anchor), id);
        }
    }

    /// Gives what is filed in a place and may select these labels: each at most once.
    pub(crate) fn try_each(&self, place: P, labels: &[(WordId, WordId)], mut take: impl FnMut(I)) {
        let mut at = |anchor| self.0.get((place, anchor)).iter().copied().for_each(&mut take);
        at((None, None));
        for &(key, value) in labels {
            at((Some(key), None));
            at((Some(key), Some(value)));
        }
    }
}

/// The values of which labels must have one, for a selector that asks for any.
pub(crate) fn smallest(needs: &[Need]) -> Option<(WordId, &[WordId])> {
    let of = needs.iter().filter_map(|need| match &need.test {
        Test::In(values) => Some((need.key, &**values)),
        _ => None,
    });
    of.min_by_key(|(_, values)| values.len())
}

/// Where a selector is filed. Labels have at most one of these, so that it is found at most once.
fn anchors(needs: &[Need]) -> Few<Anchor> {
    if let Some((key, values)) = smallest(needs) {
        return values.iter().map(|&value| (Some(key), Some(value))).collect();
    }
    let mut present = needs.iter().filter(|need| need.test == Test::Exists);
    Few::from_iter([(present.next().map(|need| need.key), None)])
}
