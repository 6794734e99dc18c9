//! Sorted lists, in which things are found, and come and go. Pure.

use std::cmp::Ordering;

use smallvec::{Array, SmallVec};

use crate::table::Id;

/// Many lists are short: up to four things are kept in place of a pointer to them.
pub(crate) type Few<T> = SmallVec<[T; 4]>;

/// Up to so many changes of a list are made one by one.
const FEW: usize = 8;

/// Puts a thing where it belongs in a sorted list, if it is not there.
pub(crate) fn enter<A: Array<Item: Ord>>(sorted: &mut SmallVec<A>, thing: A::Item) {
    if let Err(at) = sorted.binary_search(&thing) {
        insert(sorted, at, thing);
    }
}

/// Inserts, with less room to grow than usual: there are very many short lists.
pub(crate) fn insert<A: Array>(list: &mut SmallVec<A>, at: usize, thing: A::Item) {
    if list.len() == list.capacity() {
        list.reserve_exact(1 + list.len() / 4);
    }
    list.insert(at, thing);
}

/// Changes what a list, sorted by keys, has for some of them, which are sorted and each once: `change` hears what it has and
/// says what it is to have. A few come and go where they are found, more all at once.
pub(crate) fn update<K: Id, V, C>(
    list: &mut Vec<(K, V)>,
    changes: impl ExactSizeIterator<Item = (K, C)>,
    mut change: impl FnMut(K, Option<&V>, C) -> Option<V>,
) {
    if changes.len() <= FEW {
        return update_few(list, changes, change);
    }
    let (mut gone, mut come) = (vec![], vec![]);
    for (key, how) in changes {
        match find(list, key) {
            Ok(at) => match change(key, Some(&list[at].1), how) {
                Some(value) => list[at].1 = value,
                None => gone.push(key),
            },
            Err(_) => come.extend(change(key, None, how).map(|value| (key, value))),
        }
    }
    exchange(list, &gone, come, |&(key, _)| key);
}

/// What the list does not show yet: what goes from a place, or comes there.
enum Pending<T> {
    Gone(usize),
    Come(usize, T),
}

/// Where one goes and another comes, only what is between them moves.
fn update_few<K: Id, V, C>(
    list: &mut Vec<(K, V)>,
    changes: impl Iterator<Item = (K, C)>,
    mut change: impl FnMut(K, Option<&V>, C) -> Option<V>,
) {
    let mut pending = None;
    for (key, how) in changes {
        let next = match find(list, key) {
            Ok(at) => match change(key, Some(&list[at].1), how) {
                Some(value) => {
                    list[at].1 = value;
                    continue;
                }
                None => Pending::Gone(at),
            },
            Err(at) => match change(key, None, how) {
                Some(value) => Pending::Come(at, (key, value)),
                None => continue,
            },
        };
        pending = match (pending, next) {
            (None, next) => Some(next),
            (Some(Pending::Gone(from)), Pending::Come(to, entry)) => {
                list[from..to].rotate_left(1);
                list[to - 1] = entry;
                None
            }
            (Some(Pending::Come(to, entry)), Pending::Gone(from)) => {
                list[to..=from].rotate_right(1);
                list[to] = entry;
                None
            }
            (Some(Pending::Gone(first)), Pending::Gone(at)) => {
                list.remove(first);
                Some(Pending::Gone(at - 1))
            }
            (Some(Pending::Come(first, entry)), Pending::Come(at, next)) => {
                put(list, first, entry);
                Some(Pending::Come(at + 1, next))
            }
        };
    }
    match pending {
        Some(Pending::Gone(at)) => drop(list.remove(at)),
        Some(Pending::Come(at, entry)) => put(list, at, entry),
        None => {}
    }
}

fn put<T>(list: &mut Vec<T>, at: usize, entry: T) {
    list.reserve_exact(1);
    list.insert(at, entry);
}

/// Up to so long, a list is in the cache before it matters where one looks.
const SHORT: usize = 64;

/// Where a key is in a list that is sorted by keys, or belongs. In a long list it is looked for from where it would be if
/// numbers were evenly spread: nearly all places that a binary search looks at are far from each other in memory.
fn find<K: Id, V>(list: &[(K, V)], key: K) -> Result<usize, usize> {
    let within = |from: usize, to: usize| {
        let at = list[from..to].binary_search_by_key(&key, |(key, _)| *key);
        at.map(|at| from + at).map_err(|at| from + at)
    };
    let ([(first, _), .., (last, _)], SHORT..) = (list, list.len()) else { return within(0, list.len()) };
    // New numbers are large.
    match (key.cmp(first), key.cmp(last)) {
        (_, Ordering::Greater) => return Err(list.len()),
        (_, Ordering::Equal) => return Ok(list.len() - 1),
        (Ordering::Less, _) => return Err(0),
        (Ordering::Equal, _) => return Ok(0),
        (Ordering::Greater, Ordering::Less) => {}
    }
    let [first, last, wanted] = [*first, *last, key].map(Id::index);
    let guess = (wanted - first) * (list.len() - 1) / (last - first);
    let (mut step, mut from, mut to) = (8, guess, guess);
    if list[guess].0 <= key {
        while to < list.len() && list[to].0 <= key {
            from = to;
            to = (to + step).min(list.len());
            step *= 2;
        }
    } else {
        while list[from].0 > key {
            to = from;
            from = from.saturating_sub(step);
            step *= 2;
        }
    }
    within(from, to)
}

/// Takes out of a list that is sorted by a key what has one of these keys, which are sorted, and puts others in.
pub(crate) fn exchange<T, K: Copy + Ord>(list: &mut Vec<T>, gone: &[K], come: Vec<T>, key: impl Fn(&T) -> K) {
    if gone.len() + come.len() <= FEW {
        for gone in gone {
            if let Ok(at) = list.binary_search_by_key(gone, &key) {
                list.remove(at);
            }
        }
        list.reserve_exact(come.len());
        for thing in come {
            list.insert(list.partition_point(|other| key(other) < key(&thing)), thing);
        }
        return;
    }
    if !gone.is_empty() {
        list.retain(|thing| gone.binary_search(&key(thing)).is_err());
    }
    if !come.is_empty() {
        list.reserve_exact(come.len());
        list.extend(come);
        list.sort_by_key(key);
    }
}

pub(crate) fn leave<A: Array<Item: Ord>>(sorted: &mut SmallVec<A>, thing: A::Item) {
    if let Ok(at) = sorted.binary_search(&thing) {
        sorted.remove(at);
    }
}

/// [`sorted`] for what is mostly so short that it has no box.
pub(crate) fn few_sorted<A: Array<Item: Ord>>(mut things: SmallVec<A>) -> SmallVec<A> {
    things.sort_unstable();
    things.dedup();
    things
}

/// Sorted, each thing once.
pub(crate) fn sorted<T: Ord>(mut things: Vec<T>) -> Vec<T> {
    things.sort_unstable();
    things.dedup();
    things
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::table::WordId;

    /// Close together and far from each other.
    fn key() -> impl Strategy<Value = u32> {
        prop_oneof![0..300_u32, 0..10_000_u32, 1_000_000..1_000_050_u32]
    }

    proptest! {
        #[test]
        fn a_list_is_what_its_changes_say(
            before in btree_map(key(), 0..9_u8, 0..300),
            steps in vec(btree_map(key(), prop::option::of(0..9_u8), 0..12), 1..4),
            again in vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let id = |&key: &u32| WordId::new(key as usize);
            let mut list: Vec<_> = before.iter().map(|(key, &value)| (id(key), value)).collect();
            let mut meant = before;
            for mut step in steps {
                for index in &again {
                    // Most keys are new: some are those of things that are there.
                    let there = meant.keys().nth(index.index(meant.len().max(1)));
                    step.extend(there.map(|&key| (key, None)));
                }
                update(&mut list, step.iter().map(|(key, &value)| (id(key), value)), |key, value, new| {
                    assert_eq!(value, meant.get(&(key.index() as u32)));
                    new
                });
                for (key, value) in step {
                    match value {
                        Some(value) => drop(meant.insert(key, value)),
                        None => drop(meant.remove(&key)),
                    }
                }
                let expected: BTreeMap<_, _> = meant.iter().map(|(key, &value)| (id(key), value)).collect();
                prop_assert!(list.iter().copied().eq(expected));
            }
        }
    }
}
