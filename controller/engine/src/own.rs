//! A node's own pods: which sets judge them. Pure.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroU32;

use durward_proto::{Delta, Direction, Patch, PodUid, view};
use litemap::LiteMap;

use crate::cluster::{Live, PodKey};
use crate::sorted::{sorted, update};
use crate::table::{ClassId, Id, PodId, SetIndex};
use crate::tally::Uses;
use crate::view::Refresh;

/// The sets that judge a class's pods, by direction.
pub(crate) type SetPair = [Option<SetIndex>; 2];

/// The sets of classes, as long as nothing changes that they follow from.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// By class; with the age in which it was worked out, which is none for those that were not.
    of: Vec<(Option<NonZeroU32>, SetPair)>,
    age: NonZeroU32,
}

impl Default for Pairs {
    fn default() -> Self {
        Self { of: vec![], age: NonZeroU32::MIN }
    }
}

/// For how many classes room is made at once: left to itself, a list has room for twice as many as there are.
const CHUNK: usize = 1_024;

impl Pairs {
    fn get(&self, class: ClassId) -> Option<SetPair> {
        let (age, pair) = *self.of.get(class.index())?;
        (age == Some(self.age)).then_some(pair)
    }

    fn put(&mut self, class: ClassId, pair: SetPair, classes: usize) {
        if class.index() >= self.of.len() {
            let room = classes.next_multiple_of(CHUNK);
            self.of.reserve_exact(room - self.of.len());
            self.of.resize(room, (None, [None; 2]));
        }
        self.of[class.index()] = (Some(self.age), pair);
    }

    /// Something may have changed.
    pub(crate) fn clear(&mut self) {
        self.age = self.age.checked_add(1).unwrap_or_else(|| {
            // What was worked out in an age of the same number holds no more.
            self.of.clear();
            NonZeroU32::MIN
        });
    }
}

/// What a node was told of all its pods of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pair: SetPair,
    denies_logged: bool,
    /// How many pods of it are on the node.
    pods: u32,
}

impl Told {
    /// The sets that judge them.
    pub(crate) fn sets(&self) -> impl Iterator<Item = SetIndex> + use<> {
        self.pair.into_iter().flatten()
    }

    fn says_the_same(&self, other: &Self) -> bool {
        (self.pair, self.denies_logged) == (other.pair, other.denies_logged)
    }
}

/// A pod that was touched, and its class on the node before the batch and now.
pub(crate) type Moved = (PodId, Option<ClassId>, Option<ClassId>);

/// What was told of a class before the batch, and what is to be told now.
type Turn = (Option<Told>, Option<Told>);

/// Of each class that may be judged differently, sorted.
pub(crate) type Turns = Vec<(ClassId, Turn)>;

fn turn(turns: &Turns, class: ClassId) -> Turn {
    match turns.binary_search_by_key(&class, |(class, _)| *class) {
        Ok(at) => turns[at].1,
        Err(_) => unreachable!("the classes of pods that moved are among them"),
    }
}

/// A pod as it is told.
type ToldPod = (PodUid, view::Pod);

impl Refresh<'_> {
    /// Finds where the marked pods were and are; their classes are added.
    pub(crate) fn moved(&mut self, pods: Vec<PodId>, classes: &mut Vec<ClassId>) -> Vec<Moved> {
        let mut moved = vec![];
        for pod in sorted(pods) {
            let old = self.view.class_of(pod);
            let live = self.cluster.pods[pod].as_ref();
            let new =
                live.filter(|live| self.cluster.member(live).node == Some(self.node)).map(|live| live.class);
            classes.extend([old, new].into_iter().flatten());
            moved.push((pod, old, new));
        }
        self.view.place(&moved);
        moved
    }

    /// Tells of pods that moved, and of those that are judged differently.
    pub(crate) fn tell_own(&self, turns: &Turns, mut moved: Vec<Moved>, patch: &mut Patch) {
        let (mut put, mut removed) = (self.tell_classes(turns, &moved, patch), vec![]);
        // What is told is sorted by UIDs. It is longer than what it is made from, and so sorted where it must be only.
        let uid = |&(pod, ..): &Moved| self.cluster.pods[pod].as_ref().map(|live| &live.uid);
        moved.sort_unstable_by(|one, other| uid(one).cmp(&uid(other)));
        // To share a name waits for its memory, one after the other; to read them first waits for many at once.
        for (pod, ..) in &moved {
            black_box(self.cluster.pods.key(*pod).name.bytes().next());
        }
        for (pod, old, new) in moved {
            let (was, is) = self.tell_pod(pod, old, new, turns);
            removed.extend(was);
            put.extend(is);
        }
        if put.is_empty() && removed.is_empty() {
            return;
        }
        if !put.is_sorted_by(|(one, _), (other, _)| one < other) {
            put.sort_by(|(one, _), (other, _)| one.cmp(other));
            put.dedup_by(|(one, _), (other, _)| one == other);
        }
        let put = LiteMap::from_sorted_store_unchecked(put);
        removed.retain(|uid| !put.contains_key(uid));
        patch.pods = Delta { put, removed: removed.into_iter().collect() };
    }

    /// What is told of each of these classes, and the sets that come into use and go out of it.
    pub(crate) fn turns(&mut self, classes: Vec<ClassId>, moved: &[Moved]) -> (Turns, Uses<SetIndex>) {
        let mut change = Uses::default();
        for &(_, old, new) in moved {
            old.into_iter().for_each(|class| change.sub(class));
            new.into_iter().for_each(|class| change.add(class));
        }
        change.net();
        let (mut turns, mut uses) = (Vec::with_capacity(classes.len()), Uses::default());
        for class in classes {
            let before = self.view.told(class);
            let change = change.of(class);
            let pods = before.map_or(0, |told| told.pods).saturating_add_signed(change);
            let now = (pods > 0).then(|| Told {
                pair: self.pair(class),
                denies_logged: self.cluster.denies_logged(class),
                pods,
            });
            before.iter().flat_map(|told| told.pair).flatten().for_each(|set| uses.sub(set));
            now.iter().flat_map(|told| told.pair).flatten().for_each(|set| uses.add(set));
            turns.push((class, (before, now)));
        }
        self.view.tell(&turns);
        (turns, uses)
    }

    /// Tells of the pods of classes that are judged differently, but for those that moved themselves. Gives those
    /// that are told one by one.
    fn tell_classes(&self, turns: &Turns, moved: &[Moved], patch: &mut Patch) -> Vec<ToldPod> {
        let differs = |(class, turn): &(ClassId, Turn)| match turn {
            (Some(before), Some(now)) if !before.says_the_same(now) => Some((*class, *before, *now)),
            _ => None,
        };
        let differ: Vec<_> = turns.iter().filter_map(differs).collect();
        let ways = self.ways(&differ);
        let mut singly = BTreeMap::new();
        for (class, before, now) in differ {
            let both = || before.pair.into_iter().zip(now.pair).filter(|(old, new)| old != new);
            let goes =
                |(old, new): (Option<SetIndex>, _)| old.is_some_and(|old| ways.get(&old) == Some(&new));
            if before.denies_logged != now.denies_logged || !both().all(goes) {
                singly.insert(class, now);
                continue;
            }
            let id = |set| self.sets.whole(set).id;
            patch.moved.extend(both().filter_map(|(old, new)| Some((id(old?), id(new?)))));
        }
        if singly.is_empty() {
            return vec![];
        }
        let moved = |pod: &PodId| moved.binary_search_by_key(pod, |(pod, ..)| *pod).is_ok();
        let stay = self.view.pods.iter().filter(|(pod, _)| !moved(pod));
        stay.filter_map(|(pod, class)| self.told_pod(*pod, singly.get(class)?)).collect()
    }

    /// Sets all of whose pods on the node go to one and the same other.
    fn ways(&self, differ: &[(ClassId, Told, Told)]) -> BTreeMap<SetIndex, Option<SetIndex>> {
        let mut ways = BTreeMap::new();
        for (_, before, now) in differ {
            for (old, new) in before.pair.into_iter().zip(now.pair).filter(|(old, new)| old != new) {
                let Some(old) = old else { continue };
                let way = ways.entry(old).or_insert(new);
                *way = way.filter(|way| Some(*way) == new);
            }
        }
        let stays = |set| self.view.sets_of_classes().any(|other| other == set);
        ways.retain(|&old, way| way.is_some() && !stays(old));
        ways
    }

    /// What a pod that moved was told as, and what it is told as now; none if that says the same.
    fn tell_pod(
        &self,
        pod: PodId,
        old: Option<ClassId>,
        new: Option<ClassId>,
        turns: &Turns,
    ) -> (Option<PodUid>, Option<ToldPod>) {
        let old = old.and_then(|class| turn(turns, class).0);
        let new = new.and_then(|class| turn(turns, class).1);
        let was = old.and_then(|_| self.cluster.pods_before.get(&pod)?.as_ref());
        let is = self.cluster.pods[pod].as_ref().filter(|_| new.is_some());
        if let (Some(old), Some(new), Some(was), Some(is)) = (old, new, was, is) {
            let content = |live: &Live| (live.uid.clone(), live.config_hash.clone());
            let same_pod = content(&was.live) == content(is);
            if same_pod && was.addresses == self.cluster.member(is).addresses && old.says_the_same(&new) {
                return (None, None);
            }
        }
        (was.map(|was| was.live.uid.clone()), new.and_then(|new| self.told_pod(pod, &new)))
    }

    /// A pod as it is told, if it is there.
    fn told_pod(&self, id: PodId, told: &Told) -> Option<ToldPod> {
        let live = self.cluster.pods[id].as_ref()?;
        let PodKey { namespace, name } = self.cluster.pods.key(id);
        let [ingress, egress] = told.pair.map(|set| set.map(|set| self.sets.whole(set).id));
        let pod = view::Pod {
            namespace: self.cluster.namespaces.key(*namespace).clone(),
            name: name.clone(),
            addresses: self.cluster.member(live).addresses.to_vec(),
            config_hash: live.config_hash.as_deref().cloned(),
            ingress,
            egress,
            denies_logged: told.denies_logged,
        };
        Some((live.uid.clone(), pod))
    }

    fn pair(&mut self, class: ClassId) -> SetPair {
        if self.view.sheds(self.cluster.classes.key(class).namespace) {
            return self.sets_of(class, true);
        }
        self.pairs.get(class).unwrap_or_else(|| {
            let pair = self.sets_of(class, false);
            self.pairs.put(class, pair, self.cluster.classes.bound());
            pair
        })
    }

    fn sets_of(&mut self, class: ClassId, closed: bool) -> SetPair {
        Direction::BOTH.map(|direction| {
            let list = self.rules.union(&self.cluster.isolating(class, direction))?;
            let ports = match direction {
                Direction::Ingress => self.cluster.ports(class),
                Direction::Egress => &[],
            };
            Some(self.sets.set(self.rules, direction, list, (!closed).then_some(ports)))
        })
    }
}

impl crate::view::View {
    fn class_of(&self, pod: PodId) -> Option<ClassId> {
        let at = self.pods.binary_search_by_key(&pod, |(pod, _)| *pod).ok()?;
        Some(self.pods[at].1)
    }

    fn told(&self, class: ClassId) -> Option<Told> {
        let at = self.classes.binary_search_by_key(&class, |(class, _)| *class).ok()?;
        Some(self.classes[at].1)
    }

    fn sets_of_classes(&self) -> impl Iterator<Item = SetIndex> + '_ {
        self.classes.iter().flat_map(|(_, told)| told.pair).flatten()
    }

    fn place(&mut self, moved: &[Moved]) {
        update(&mut self.pods, moved.iter().map(|&(pod, _, new)| (pod, new)), |_, _, new| new);
    }

    fn tell(&mut self, turns: &[(ClassId, Turn)]) {
        update(&mut self.classes, turns.iter().map(|&(class, (_, now))| (class, now)), |_, _, now| now);
    }
}
