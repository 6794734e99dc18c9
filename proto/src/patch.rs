//! Patches: what turns one view into the next. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use litemap::LiteMap;
use thiserror::Error;

use crate::{
    AtomId, AttributionId, Block, Direction, Directory, Frontend, Logging, NodeView, Pod, PodUid, PolicyList,
    Row, Service, Set, SetId,
};

/// What changes in a map: the entries with their new values, and those that go.
///
/// Most are made once, read in order and let go: so what is put is a sorted list, which costs less than a tree. What waits
/// for a node is merged into, at a cost that follows its length where much comes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K: Ord, V> {
    /// New entries, and new values of old ones.
    pub put: LiteMap<K, V>,
    /// Entries that go. Disjoint from `put`.
    pub removed: BTreeSet<K>,
}

/// So many entries are merged one by one.
const FEW: usize = 8;

impl<K: Ord, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { put: LiteMap::new_vec(), removed: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Delta<K, V> {
    /// What turns `old` into `new`.
    pub fn between(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        let changed = new.iter().filter(|(key, value)| old.get(key) != Some(value));
        let put = changed.map(|(key, value)| (key.clone(), value.clone())).collect();
        let put = LiteMap::from_sorted_store_unchecked(put);
        let removed = old.keys().filter(|key| !new.contains_key(key)).cloned().collect();
        Self { put, removed }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.removed.is_empty()
    }

    /// How many entries change.
    pub fn len(&self) -> usize {
        self.put.len() + self.removed.len()
    }

    /// Adds what changes after this. What comes and goes again stays among `removed`: whether it was
    /// there before cannot be told.
    fn merge(&mut self, later: Self) {
        for key in later.put.keys() {
            self.removed.remove(key);
        }
        self.removed.extend(later.change(&mut self.put));
    }

    /// Changes a sorted list; gives what was to be removed.
    fn change(self, list: &mut LiteMap<K, V>) -> BTreeSet<K> {
        let Self { put, removed } = self;
        if put.len() + removed.len() <= FEW {
            removed.iter().for_each(|key| drop(list.remove(key)));
            put.into_iter().for_each(|(key, value)| drop(list.insert(key, value)));
        } else {
            // Each that goes or comes by itself would move what is after it.
            list.retain(|key, _| !removed.contains(key));
            list.extend(put);
        }
        removed
    }

    fn apply(self, map: &mut BTreeMap<K, V>, removal: Removal, what: &'static str) -> Result<(), PatchError> {
        for key in self.removed {
            removal.check(map.remove(&key).is_some(), what)?;
        }
        if map.is_empty() {
            // At once: it is sorted.
            *map = self.put.into_iter().collect();
        } else {
            map.extend(self.put);
        }
        Ok(())
    }
}

/// Whether what a patch removes has to be there.
#[derive(Clone, Copy)]
enum Removal {
    Exact,
    Lenient,
}

impl Removal {
    fn check(self, was_there: bool, what: &'static str) -> Result<(), PatchError> {
        match self {
            Self::Exact if !was_there => Err(PatchError { what }),
            _ => Ok(()),
        }
    }
}

/// A set as it is told: its rows are a sorted list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSet {
    /// The direction, seen from the pod.
    pub direction: Direction,
    /// What holds for every atom without a row of its own.
    pub base: Row,
    /// The atoms of which something else than `base` holds.
    pub rows: LiteMap<AtomId, Row>,
}

impl From<Set> for NewSet {
    fn from(Set { direction, base, rows }: Set) -> Self {
        Self { direction, base, rows: LiteMap::from_sorted_store_unchecked(rows.into_iter().collect()) }
    }
}

impl From<NewSet> for Set {
    fn from(NewSet { direction, base, rows }: NewSet) -> Self {
        Self { direction, base, rows: rows.into_iter().collect() }
    }
}

/// What changes in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetDelta {
    /// The set is new.
    New(NewSet),
    /// Rows of a set that is already there change. Its rules cannot: they are in its name.
    Rows(Delta<AtomId, Row>),
    /// The set goes.
    Removed,
}

/// What changes in what is known of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceDelta {
    /// First: from now on all that is known is this.
    pub all: Option<Arc<Directory>>,
    /// Then: frontends that come, change and go.
    pub some: Delta<Frontend, Service>,
}

impl ServiceDelta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries change; a directory is one, for it is shared.
    pub fn len(&self) -> usize {
        usize::from(self.all.is_some()) + self.some.len()
    }

    fn merge(&mut self, later: Self) {
        match later.all {
            Some(_) => *self = later,
            None => self.some.merge(later.some),
        }
    }

    fn apply(self, map: &mut BTreeMap<Frontend, Service>, removal: Removal) -> Result<(), PatchError> {
        if let Some(all) = self.all {
            *map = all.services().iter().map(|(&frontend, service)| (frontend, service.clone())).collect();
        }
        self.some.apply(map, removal, "a Service's frontend")
    }
}

/// What turns one view into the next; applied whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Before `pods`: all pods that one set judges are judged by another from now on. At once: a pod moves
    /// only once, and one that `pods` puts is judged as that says.
    pub moved: LiteMap<SetId, SetId>,
    /// Pods of the node.
    pub pods: Delta<PodUid, Pod>,
    /// Sets and their rows.
    pub sets: LiteMap<SetId, SetDelta>,
    /// Lists of policies.
    pub attributions: Delta<AttributionId, PolicyList>,
    /// Remote addresses.
    pub addresses: Delta<IpAddr, AtomId>,
    /// Remote blocks.
    pub blocks: Delta<Block, AtomId>,
    /// Where Services are called.
    pub services: ServiceDelta,
    /// What is logged, if that changes.
    pub logging: Option<Logging>,
    /// Whether it is several in one: then what it removes need not be there, nor what pods move from.
    pub merged: bool,
}

/// A patch that was made for another view: sender and receiver disagree on what was sent before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the patch is for another view: it changes or removes {what} that this one does not hold")]
pub struct PatchError {
    /// What the patch names and the view does not hold.
    pub what: &'static str,
}

impl Patch {
    /// What turns `old` into `new`.
    pub fn between(old: &NodeView, new: &NodeView) -> Self {
        // Destructured in full, so that a new field cannot be forgotten here.
        let NodeView { pods, sets, attributions, addresses, blocks, services, logging } = new;
        let mut set_deltas = LiteMap::new_vec();
        for (&id, set) in sets {
            match old.sets.get(&id) {
                Some(before) if before == set => {}
                Some(before) if (before.direction, &before.base) == (set.direction, &set.base) => {
                    set_deltas.insert(id, SetDelta::Rows(Delta::between(&before.rows, &set.rows)));
                }
                _ => {
                    set_deltas.insert(id, SetDelta::New(set.clone().into()));
                }
            }
        }
        for id in old.sets.keys().filter(|id| !sets.contains_key(id)) {
            set_deltas.insert(*id, SetDelta::Removed);
        }
        Self {
            moved: LiteMap::new_vec(),
            pods: Delta::between(&old.pods, pods),
            sets: set_deltas,
            attributions: Delta::between(&old.attributions, attributions),
            addresses: Delta::between(&old.addresses, addresses),
            blocks: Delta::between(&old.blocks, blocks),
            services: ServiceDelta { all: None, some: Delta::between(&old.services, services) },
            logging: (old.logging != *logging).then_some(*logging),
            merged: false,
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let Self { moved, pods, sets, attributions, addresses, blocks, services, logging, merged: _ } = self;
        let maps = pods.is_empty() && attributions.is_empty() && addresses.is_empty() && blocks.is_empty();
        maps && moved.is_empty() && sets.is_empty() && services.is_empty() && logging.is_none()
    }

    /// About what the patch costs in memory and on the wire, in entries: each counts with what is listed in it, such as
    /// the steps of a row. A directory is one, for it is shared.
    pub fn weight(&self) -> usize {
        let Self { moved, pods, sets, attributions, addresses, blocks, services, logging, merged: _ } = self;
        let own = pods.put.values().map(|pod| pod.addresses.len()).sum::<usize>();
        let sets = sets.values().map(SetDelta::weight).sum::<usize>();
        let policies = attributions.put.values().map(PolicyList::len).sum::<usize>();
        let backends = services.some.put.values().map(|service| service.backends.len()).sum::<usize>();
        let maps = pods.len() + attributions.len() + addresses.len() + blocks.len() + services.len();
        moved.len() + own + sets + policies + backends + maps + usize::from(logging.is_some())
    }

    /// Adds what changes after this, so that this one patch leads to where `later` does.
    ///
    /// # Errors
    ///
    /// [`PatchError`] if `later` was made for a view that this one cannot lead to. This one is then
    /// half merged and must not be used.
    pub fn merge(&mut self, later: Self) -> Result<(), PatchError> {
        let Self { moved, pods, sets, attributions, addresses, blocks, services, logging, merged: _ } = later;
        self.move_on(&moved)?;
        self.pods.merge(pods);
        for (id, delta) in sets {
            match self.sets.get_mut(&id) {
                Some(before) => before.merge(delta)?,
                None => drop(self.sets.insert(id, delta)),
            }
        }
        self.attributions.merge(attributions);
        self.addresses.merge(addresses);
        self.blocks.merge(blocks);
        self.services.merge(services);
        self.logging = logging.or(self.logging);
        self.merged = true;
        Ok(())
    }

    /// Adds moves that come after this: of the pods that were put, of those that moved, and of the others.
    fn move_on(&mut self, later: &LiteMap<SetId, SetId>) -> Result<(), PatchError> {
        if later.keys().any(|set| self.sets.get(set) == Some(&SetDelta::Removed)) {
            return Err(PatchError { what: "a set" });
        }
        if later.is_empty() {
            return Ok(());
        }
        self.pods.put.iter_mut().for_each(|(_, pod)| pod.follow(later));
        for (_, to) in self.moved.iter_mut() {
            *to = later.get(to).copied().unwrap_or(*to);
        }
        // Pods that this one moves from a set are not in it any more when the later moves come.
        for (&from, &to) in later {
            if !self.moved.contains_key(&from) {
                self.moved.insert(from, to);
            }
        }
        Ok(())
    }
}

impl Pod {
    /// Is judged by the sets that its sets move to.
    fn follow(&mut self, moved: &LiteMap<SetId, SetId>) {
        for set in [&mut self.ingress, &mut self.egress].into_iter().flatten() {
            *set = moved.get(set).copied().unwrap_or(*set);
        }
    }
}

impl SetDelta {
    /// The set itself, and its rows that change, with their steps.
    fn weight(&self) -> usize {
        let steps = |rows: &LiteMap<AtomId, Row>| rows.values().map(|row| row.steps().len()).sum::<usize>();
        match self {
            Self::New(NewSet { base, rows, .. }) => 1 + base.steps().len() + rows.len() + steps(rows),
            Self::Rows(rows) => 1 + rows.len() + steps(&rows.put),
            Self::Removed => 1,
        }
    }

    fn merge(&mut self, later: Self) -> Result<(), PatchError> {
        match (&mut *self, later) {
            (Self::New(set), Self::Rows(rows)) => {
                if !rows.removed.iter().all(|atom| set.rows.contains_key(atom)) {
                    return Err(PatchError { what: "a row" });
                }
                rows.change(&mut set.rows);
                Ok(())
            }
            (Self::Rows(rows), Self::Rows(later)) => {
                rows.merge(later);
                Ok(())
            }
            (Self::Removed, Self::Rows(_)) => Err(PatchError { what: "a set" }),
            (_, later @ (Self::New(_) | Self::Removed)) => {
                *self = later;
                Ok(())
            }
        }
    }
}

impl NodeView {
    /// The view that the patch turns this one into.
    ///
    /// # Errors
    ///
    /// [`PatchError`] if the patch was made for another view. The receiver should ask for a whole
    /// view; the one it has is still good.
    pub fn patched(&self, patch: Patch) -> Result<Self, PatchError> {
        let mut view = self.clone();
        view.patch(patch)?;
        Ok(view)
    }

    /// Turns this view into the next in place: the work follows the patch's size, not the view's.
    ///
    /// # Errors
    ///
    /// [`PatchError`] if the patch was made for another view. This one is then half changed and must
    /// not be used; who cannot be sure of the patch takes [`NodeView::patched`].
    pub fn patch(&mut self, patch: Patch) -> Result<(), PatchError> {
        let Patch { moved, pods, sets, attributions, addresses, blocks, services, logging, merged } = patch;
        let removal = if merged { Removal::Lenient } else { Removal::Exact };
        for set in moved.keys() {
            removal.check(self.sets.contains_key(set), "a set")?;
        }
        if !moved.is_empty() {
            self.pods.values_mut().for_each(|pod| pod.follow(&moved));
        }
        pods.apply(&mut self.pods, removal, "a pod")?;
        attributions.apply(&mut self.attributions, removal, "an attribution")?;
        addresses.apply(&mut self.addresses, removal, "an address")?;
        blocks.apply(&mut self.blocks, removal, "a block")?;
        services.apply(&mut self.services, removal)?;
        for (id, delta) in sets {
            match delta {
                SetDelta::New(set) => drop(self.sets.insert(id, set.into())),
                SetDelta::Rows(rows) => {
                    let set = self.sets.get_mut(&id).ok_or(PatchError { what: "a set" })?;
                    rows.apply(&mut set.rows, removal, "a row")?;
                }
                SetDelta::Removed => removal.check(self.sets.remove(&id).is_some(), "a set")?,
            }
        }
        self.logging = logging.unwrap_or(self.logging);
        Ok(())
    }
}

impl Set {
    /// A set without rows: `base` holds for every address.
    pub fn of_base(direction: Direction, base: Row) -> Self {
        Self { direction, base, rows: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Act, Digest, Policy, Verdict};
    use proptest::prelude::*;

    fn act() -> Act {
        Act { verdict: Verdict::Deny, attribution: AttributionId(Digest([1; 16])) }
    }

    fn set_id(n: u8) -> SetId {
        SetId(Digest([n; 16]))
    }

    fn pod(ingress: Option<SetId>, egress: Option<SetId>) -> Pod {
        Pod {
            namespace: "n".into(),
            name: "p".into(),
            addresses: vec![],
            config_hash: None,
            ingress,
            egress,
            denies_logged: false,
        }
    }

    fn row() -> impl Strategy<Value = Row> {
        (any::<bool>(), 0..3_u8).prop_map(|(allow, n)| {
            let verdict = if allow { Verdict::Allow } else { Verdict::Deny };
            Row::uniform(Act { verdict, attribution: AttributionId(Digest([n; 16])) })
        })
    }

    fn set() -> impl Strategy<Value = Set> {
        let rows =
            proptest::collection::btree_map((0..4_u8).prop_map(|n| AtomId(Digest([n; 16]))), row(), 0..3);
        (row(), rows).prop_map(|(base, rows)| Set { direction: Direction::Ingress, base, rows })
    }

    fn service((port, other): (u16, bool)) -> (Frontend, Service) {
        let name = if other { "other" } else { "s" };
        let service = Service { namespace: "n".into(), name: name.into(), backends: [].into() };
        (Frontend { address: None, port: crate::PortKey::new(6, port) }, service)
    }

    fn view() -> impl Strategy<Value = NodeView> {
        let sets = proptest::collection::btree_map((0..4_u8).prop_map(set_id), set(), 0..4);
        // More than are merged one by one.
        let addresses = proptest::collection::btree_map(0..20_u8, 0..3_u8, 0..20);
        let attributions = proptest::collection::btree_map(0..4_u8, any::<bool>(), 0..3);
        let judged = (prop::option::of(0..4_u8), prop::option::of(0..4_u8));
        let pods = proptest::collection::btree_map(0..4_u8, judged, 0..4);
        let services = proptest::collection::btree_map(1..6_u16, any::<bool>(), 0..6);
        let others = (addresses, attributions, services, 0..2_i64);
        (pods, sets, others).prop_map(|(pods, sets, (addresses, attributions, services, generation))| {
            let held = |n: Option<u8>| n.map(set_id).filter(|id| sets.contains_key(id));
            let pod_of = |(n, (ingress, egress)): (u8, _)| {
                (PodUid::from(&*format!("uid-{n}")), pod(held(ingress), held(egress)))
            };
            NodeView {
                pods: pods.into_iter().map(pod_of).collect(),
                sets,
                addresses: addresses
                    .into_iter()
                    .map(|(host, atom)| (IpAddr::from([10, 0, 0, host]), AtomId(Digest([atom; 16]))))
                    .collect(),
                attributions: attributions
                    .into_iter()
                    .map(|(id, logged)| {
                        let policy = Policy { namespace: "n".into(), name: "p".into(), logged };
                        (AttributionId(Digest([id; 16])), crate::Attribution::new([policy]).into())
                    })
                    .collect(),
                services: services.into_iter().map(service).collect(),
                logging: Logging { generation, ..Logging::default() },
                blocks: BTreeMap::new(),
            }
        })
    }

    /// A view, where pods move on the way to it from the one before, and whether all Services are told anew.
    fn step() -> impl Strategy<Value = (BTreeMap<u8, u8>, bool, NodeView)> {
        (proptest::collection::btree_map(0..4_u8, 0..4_u8, 0..4), any::<bool>(), view())
    }

    /// What leads from one view to the other, moves some pods as sets, and may tell all Services anew.
    fn moving(old: &NodeView, moves: &BTreeMap<u8, u8>, anew: bool, new: &NodeView) -> Patch {
        let moves = moves.iter().map(|(&from, &to)| (set_id(from), set_id(to)));
        let moved: LiteMap<_, _> = moves.filter(|(from, _)| old.sets.contains_key(from)).collect();
        let mut after = old.clone();
        for pod in after.pods.values_mut() {
            pod.ingress = pod.ingress.map(|set| *moved.get(&set).unwrap_or(&set));
            pod.egress = pod.egress.map(|set| *moved.get(&set).unwrap_or(&set));
        }
        let mut patch = Patch { moved, ..Patch::between(&after, new) };
        if anew {
            // Of which some change at once.
            let all = old.services.iter().chain(&new.services);
            let all = all.map(|(&frontend, service)| (frontend, service.clone())).collect();
            let gone = old.services.keys().filter(|frontend| !new.services.contains_key(frontend));
            let some = Delta { removed: gone.copied().collect(), ..Delta::default() };
            patch.services = ServiceDelta { all: Some(Arc::new(Directory::new(all))), some };
        }
        patch
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_one_view_to_the_other(old in view(), new in view()) {
            prop_assert_eq!(old.patched(Patch::between(&old, &new)), Ok(new.clone()));
            prop_assert!(Patch::between(&new, &new).is_empty());
        }

        #[test]
        fn patches_in_one_lead_to_where_they_do_in_turn(
            first in view(),
            steps in proptest::collection::vec(step(), 1..5),
        ) {
            let (mut current, mut all) = (first.clone(), None::<Patch>);
            for (moves, anew, next) in steps {
                let patch = moving(&current, &moves, anew, &next);
                prop_assert_eq!(&current.patched(patch.clone()), &Ok(next.clone()));
                match &mut all {
                    None => all = Some(patch),
                    Some(all) => all.merge(patch).unwrap(),
                }
                current = next;
            }
            prop_assert_eq!(first.patched(all.unwrap()), Ok(current));
        }
    }

    #[test]
    fn pods_move_from_a_set_to_another_unless_they_are_put() {
        let [old, new] = [1, 2].map(set_id);
        let set = Set::of_base(Direction::Ingress, Row::uniform(act()));
        let view = NodeView {
            pods: [("a".into(), pod(Some(old), None)), ("b".into(), pod(Some(old), Some(old)))].into(),
            sets: [(old, set.clone())].into(),
            ..NodeView::default()
        };
        let mut patch = Patch { moved: LiteMap::from_iter([(old, new)]), ..Patch::default() };
        patch.sets = LiteMap::from_iter([(old, SetDelta::Removed), (new, SetDelta::New(set.into()))]);
        patch.pods.put.insert("b".into(), pod(None, None));
        let next = view.patched(patch.clone()).unwrap();
        assert_eq!(next.pods[&"a".into()], pod(Some(new), None));
        assert_eq!(next.pods[&"b".into()], pod(None, None));
        assert_eq!(next.patched(patch), Err(PatchError { what: "a set" }));
    }

    #[test]
    fn a_patch_for_another_view_is_refused() {
        let mut patch = Patch::default();
        patch.addresses.removed.insert(IpAddr::from([10, 0, 0, 1]));
        let refused = NodeView::default().patched(patch);
        assert_eq!(refused, Err(PatchError { what: "an address" }));
    }

    #[test]
    fn a_patch_that_cannot_follow_is_refused() {
        let id = SetId(Digest([1; 16]));
        let removed = || Patch { sets: LiteMap::from_iter([(id, SetDelta::Removed)]), ..Patch::default() };
        let rows = || Patch {
            sets: LiteMap::from_iter([(id, SetDelta::Rows(Delta::default()))]),
            ..Patch::default()
        };
        assert_eq!(removed().merge(rows()), Err(PatchError { what: "a set" }));
        let moved = || Patch { moved: LiteMap::from_iter([(id, set_id(2))]), ..Patch::default() };
        assert_eq!(removed().merge(moved()), Err(PatchError { what: "a set" }));
        let mut gone = Delta::default();
        gone.removed.insert(AtomId(Digest([1; 16])));
        let empty = Set::of_base(Direction::Ingress, Row::uniform(act()));
        let mut new =
            Patch { sets: LiteMap::from_iter([(id, SetDelta::New(empty.into()))]), ..Patch::default() };
        let later = Patch { sets: LiteMap::from_iter([(id, SetDelta::Rows(gone))]), ..Patch::default() };
        assert_eq!(new.merge(later), Err(PatchError { what: "a row" }));
    }

    /// As many as a node may have: one by one, this would take minutes.
    #[test]
    fn what_waits_for_a_node_goes_again_at_once() {
        let addresses = || (0..400_000_u32).map(|bits| IpAddr::V4(bits.into()));
        let atom = AtomId(Digest([1; 16]));
        let mut waiting = Patch::default();
        waiting.addresses.put = addresses().map(|address| (address, atom)).collect();
        let mut later = Patch::default();
        later.addresses.removed = addresses().collect();
        waiting.merge(later).unwrap();
        assert!(waiting.addresses.put.is_empty());
        assert!(waiting.addresses.removed.iter().copied().eq(addresses()));
    }

    fn addresses(n: u8) -> Vec<IpAddr> {
        (0..n).map(|host| IpAddr::from([10, 0, 0, host])).collect()
    }

    #[test]
    fn a_patch_weighs_what_is_listed_in_it() {
        let id = |n| SetId(Digest([n; 16]));
        let row = |n| (AtomId(Digest([n; 16])), Row::uniform(act()));
        let set =
            Set { rows: [row(1), row(2)].into(), ..Set::of_base(Direction::Ingress, Row::uniform(act())) };
        let rows = Delta { put: LiteMap::from_iter([row(1)]), removed: [AtomId(Digest([2; 16]))].into() };
        let mut patch = Patch::default();
        assert!(patch.is_empty());
        let sets =
            [(id(1), SetDelta::New(set.into())), (id(2), SetDelta::Rows(rows)), (id(3), SetDelta::Removed)];
        patch.sets = sets.into_iter().collect();
        patch.addresses.put.insert(IpAddr::from([10, 0, 0, 1]), AtomId(Digest([1; 16])));
        patch.pods.removed.insert(PodUid::from("u"));
        patch.logging = Some(Logging::default());
        patch.moved.insert(id(3), id(1));
        assert_eq!(patch.weight(), (1 + 1 + 2 * 2) + (1 + 2 + 1) + 1 + 4);
        let policy = |name: &str| Policy { namespace: "n".into(), name: name.into(), logged: false };
        let list = PolicyList::from(crate::Attribution::new(["a", "b", "c"].map(policy)));
        let mut listing = Patch::default();
        listing.attributions.put.insert(list.id(), list);
        listing.pods.put.insert(PodUid::from("u"), Pod { addresses: addresses(2), ..pod(None, None) });
        let (frontend, called) = service((1, false));
        let backend = |address| crate::Backend { address, port: 1 };
        let backends = addresses(5).into_iter().map(backend).collect();
        listing.services.some.put.insert(frontend, Service { backends, ..called });
        listing.services.all = Some(Arc::default());
        assert_eq!(listing.weight(), (1 + 3) + (1 + 2) + (1 + 5) + 1);
    }
}
