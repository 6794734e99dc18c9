//! Which frontends nodes have room for, where Services have more of them than that. Pure.
//!
//! Each namespace may have as many as any other: where all together are too many, those that have most keep their
//! first ones up to one number, the largest for which there is room. So Services leave out others of their own
//! namespace, never those of one with fewer; and where one more comes, one goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use durward_proto::Frontend;

/// Frontends by the namespaces whose Services have them.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    namespaces: BTreeMap<Arc<str>, Share>,
    /// How many all of them have; what two namespaces have counts for both.
    count: usize,
    /// Whether there was too little room for them when it was divided last.
    is_short: bool,
    /// Whether any came or went since then.
    is_stale: bool,
}

/// The frontends of a namespace.
#[derive(Debug, Default)]
struct Share {
    /// NodePorts first.
    frontends: BTreeSet<Frontend>,
    /// The first for which there is no room, nor for any after it.
    left_out: Option<Frontend>,
}

/// What is different after the room was divided anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Divided {
    /// Frontends for which there is room now in a namespace, or is none any more.
    pub(crate) frontends: Vec<Frontend>,
    /// Namespaces with frontends for which there is none, as they come to that (true) or are out of it.
    pub(crate) namespaces: Vec<(Arc<str>, bool)>,
}

impl Shares {
    /// A namespace has a frontend.
    pub(crate) fn add(&mut self, namespace: &Arc<str>, frontend: Frontend) {
        self.is_stale = true;
        let share = self.namespaces.entry(namespace.clone()).or_default();
        self.count += usize::from(share.frontends.insert(frontend));
    }

    /// A namespace has a frontend no more.
    pub(crate) fn remove(&mut self, namespace: &str, frontend: Frontend) {
        self.is_stale = true;
        let Some(share) = self.namespaces.get_mut(namespace) else { return };
        self.count -= usize::from(share.frontends.remove(&frontend));
        if share.frontends.is_empty() && share.left_out.is_none() {
            self.namespaces.remove(namespace);
        }
    }

    /// Whether there is room for a frontend of a namespace.
    pub(crate) fn has_room(&self, namespace: &str, frontend: Frontend) -> bool {
        let share = self.namespaces.get(namespace);
        share.is_some_and(|share| share.left_out.is_none_or(|first| frontend < first))
    }

    /// The frontends of a namespace for which there is no room.
    pub(crate) fn left_out(&self, namespace: &str) -> impl Iterator<Item = Frontend> + '_ {
        let share = self.namespaces.get(namespace);
        share
            .into_iter()
            .flat_map(|share| share.left_out.map(|first| share.frontends.range(first..)))
            .flatten()
            .copied()
    }

    /// Divides the room, which is always the same, among what is there now.
    pub(crate) fn divide(&mut self, room: usize) -> Divided {
        let (mut divided, was_short) = (Divided::default(), self.is_short);
        self.is_short = self.count > room;
        if !std::mem::take(&mut self.is_stale) || !was_short && !self.is_short {
            return divided;
        }
        let level = match self.is_short {
            true => level(self.namespaces.values().map(|share| share.frontends.len()), room),
            false => usize::MAX,
        };
        self.namespaces.retain(|namespace, share| {
            let (before, now) = (share.left_out, share.first_beyond(level));
            if before != now {
                divided.frontends.extend(share.between(before, now));
            }
            if before.is_some() != now.is_some() {
                divided.namespaces.push((namespace.clone(), now.is_some()));
            }
            share.left_out = now;
            !share.frontends.is_empty()
        });
        divided
    }
}

impl Share {
    fn first_beyond(&self, level: usize) -> Option<Frontend> {
        (self.frontends.len() > level).then(|| self.frontends.iter().nth(level).copied()).flatten()
    }

    /// Those from the one on, but not from the other on; none is beyond all.
    fn between(&self, one: Option<Frontend>, other: Option<Frontend>) -> impl Iterator<Item = Frontend> + '_ {
        let reaches = |end: Option<Frontend>, frontend| end.is_none_or(|end| frontend < end);
        let first = one.into_iter().chain(other).min();
        let from = first.into_iter().flat_map(|first| self.frontends.range(first..).copied());
        from.take_while(move |&frontend| reaches(one, frontend) || reaches(other, frontend))
    }
}

/// The largest number up to which each may have what it has, so that there is room for all of that. Together they
/// have more.
fn level(counts: impl Iterator<Item = usize>, mut room: usize) -> usize {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_unstable();
    let mut left = counts.len();
    for count in counts {
        if count * left > room {
            break;
        }
        // It has less than an equal part of what is left: the others have more for that.
        room -= count;
        left -= 1;
    }
    room.checked_div(left).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frontend(n: u16) -> Frontend {
        format!("6 10.96.0.1:{}", n + 1).parse().unwrap()
    }

    fn filled(counts: &[u16]) -> Shares {
        let mut shares = Shares::default();
        for (name, &count) in (0..).zip(counts) {
            (0..count).for_each(|n| shares.add(&namespace(name), frontend(n)));
        }
        shares
    }

    fn namespace(n: usize) -> Arc<str> {
        format!("n{n}").into()
    }

    fn admitted(shares: &Shares, counts: &[u16]) -> Vec<u16> {
        let has_room = |name: usize, n: &u16| shares.has_room(&namespace(name), frontend(*n));
        (0..)
            .zip(counts)
            .map(|(name, &count)| (0..count).filter(|n| has_room(name, n)).count() as u16)
            .collect()
    }

    #[test]
    fn who_has_most_leaves_out_its_own() {
        let counts = [2, 50, 7, 100];
        assert_eq!(filled(&counts).divide(159), Divided::default());
        let mut shares = filled(&counts);
        let Divided { frontends, namespaces } = shares.divide(99);
        assert_eq!(admitted(&shares, &counts), [2, 45, 7, 45]);
        assert_eq!((frontends.len(), namespaces), (5 + 55, vec![("n1".into(), true), ("n3".into(), true)]));
        assert_eq!(shares.left_out("n1").collect::<Vec<_>>(), (45..50).map(frontend).collect::<Vec<_>>());
        // One more comes, and one goes.
        shares.add(&namespace(0), frontend(2));
        assert_eq!(shares.divide(99).frontends, [frontend(44), frontend(44)]);
        shares.remove("n0", frontend(2));
        assert_eq!(shares.divide(99).frontends.len(), 2);
        assert_eq!(shares.divide(99), Divided::default());
        // There is room again.
        (40..100).for_each(|n| shares.remove("n3", frontend(n)));
        let Divided { namespaces, .. } = shares.divide(99);
        assert_eq!(
            (namespaces, shares.left_out("n3").count()),
            (vec![("n1".into(), false), ("n3".into(), false)], 0)
        );
    }

    proptest! {
        #[test]
        fn there_is_room_for_what_is_told_and_none_for_more(counts in vec(0..40_u16, 1..12), room in 0..200_usize) {
            let mut shares = filled(&counts);
            shares.divide(room);
            let told = admitted(&shares, &counts);
            let sum = |counts: &[u16]| counts.iter().map(|&count| usize::from(count)).sum::<usize>();
            prop_assert!(sum(&told) <= room);
            let level = told.iter().max().copied().unwrap_or(0);
            for (&told, &count) in told.iter().zip(&counts) {
                prop_assert_eq!(told, count.min(level));
            }
            // One more for each that has more would be too many.
            let more: Vec<_> = counts.iter().map(|&count| count.min(level + 1)).collect();
            prop_assert!(told == counts || sum(&more) > room);
        }

        #[test]
        fn only_what_is_there_matters(
            steps in vec((0..4_usize, 0..30_u16, any::<bool>(), any::<bool>()), 1..60),
            room in 0..40_usize,
        ) {
            let (mut shares, mut fresh) = (Shares::default(), Shares::default());
            let mut there = BTreeMap::new();
            for (name, n, comes, divides) in steps {
                let (namespace, frontend) = (namespace(name), frontend(n));
                if comes {
                    shares.add(&namespace, frontend);
                    there.entry((namespace, frontend)).or_insert(None);
                } else {
                    shares.remove(&namespace, frontend);
                    there.remove(&(namespace, frontend));
                }
                if divides {
                    let divided = shares.divide(room).frontends;
                    for ((namespace, frontend), had_room) in &mut there {
                        let has_room = shares.has_room(namespace, *frontend);
                        let is_news = had_room.is_some_and(|had_room| had_room != has_room);
                        prop_assert!(!is_news || divided.contains(frontend));
                        *had_room = Some(has_room);
                    }
                }
            }
            shares.divide(room);
            there.keys().for_each(|(namespace, frontend)| fresh.add(namespace, *frontend));
            fresh.divide(room);
            for (namespace, frontend) in there.keys() {
                prop_assert_eq!(shares.has_room(namespace, *frontend), fresh.has_room(namespace, *frontend));
            }
            for (namespace, frontend) in there.into_keys() {
                shares.remove(&namespace, frontend);
            }
            shares.divide(room);
            prop_assert!(shares.namespaces.is_empty() && shares.count == 0);
        }
    }
}
