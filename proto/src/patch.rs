//! Patches: what turns one view into the next. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use thiserror::Error;

use crate::{
    AtomId, AttributionId, Block, Direction, Logging, NodeView, Pod, PodUid, PolicyList, Row, Set, SetId,
};

/// What changes in a map: the entries with their new values, and those that go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K: Ord, V> {
    /// New entries, and new values of old ones.
    pub put: BTreeMap<K, V>,
    /// Entries that go. Disjoint from `put`.
    pub removed: BTreeSet<K>,
}

impl<K: Ord, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { put: BTreeMap::new(), removed: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Delta<K, V> {
    /// What turns `old` into `new`.
    pub fn between(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        let changed = new.iter().filter(|(key, value)| old.get(key) != Some(value));
        let put = changed.map(|(key, value)| (key.clone(), value.clone())).collect();
        let removed = old.keys().filter(|key| !new.contains_key(key)).cloned().collect();
        Self { put, removed }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.removed.is_empty()
    }

    fn apply(self, map: &mut BTreeMap<K, V>, what: &'static str) -> Result<(), PatchError> {
        for key in self.removed {
            map.remove(&key).ok_or(PatchError { what })?;
        }
        if map.is_empty() {
            *map = self.put;
        } else {
            map.extend(self.put);
        }
        Ok(())
    }
}

/// What changes in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetDelta {
    /// The set is new.
    New(Set),
    /// Rows of a set that is already there change. Its rules cannot: they are in its name.
    Rows(Delta<AtomId, Row>),
    /// The set goes.
    Removed,
}

/// What turns one view into the next; applied whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// All pods that one set judges are judged by another from now on, unless `pods` says otherwise.
    pub moved: BTreeMap<SetId, SetId>,
    /// Pods of the node.
    pub pods: Delta<PodUid, Pod>,
    /// Sets and their rows.
    pub sets: BTreeMap<SetId, SetDelta>,
    /// Lists of policies.
    pub attributions: Delta<AttributionId, PolicyList>,
    /// Remote addresses.
    pub addresses: Delta<IpAddr, AtomId>,
    /// Remote blocks.
    pub blocks: Delta<Block, AtomId>,
    /// What is logged, if that changes.
    pub logging: Option<Logging>,
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
        let NodeView { pods, sets, attributions, addresses, blocks, logging } = new;
        let mut set_deltas = BTreeMap::new();
        for (&id, set) in sets {
            match old.sets.get(&id) {
                Some(before) if before == set => {}
                Some(before) if (before.direction, &before.base) == (set.direction, &set.base) => {
                    set_deltas.insert(id, SetDelta::Rows(Delta::between(&before.rows, &set.rows)));
                }
                _ => {
                    set_deltas.insert(id, SetDelta::New(set.clone()));
                }
            }
        }
        for id in old.sets.keys().filter(|id| !sets.contains_key(id)) {
            set_deltas.insert(*id, SetDelta::Removed);
        }
        Self {
            moved: BTreeMap::new(),
            pods: Delta::between(&old.pods, pods),
            sets: set_deltas,
            attributions: Delta::between(&old.attributions, attributions),
            addresses: Delta::between(&old.addresses, addresses),
            blocks: Delta::between(&old.blocks, blocks),
            logging: (old.logging != *logging).then_some(*logging),
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
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
        let Patch { moved, pods, sets, attributions, addresses, blocks, logging } = patch;
        if !moved.keys().all(|set| self.sets.contains_key(set)) {
            return Err(PatchError { what: "a set" });
        }
        if !moved.is_empty() {
            for set in self.pods.values_mut().flat_map(|pod| [&mut pod.ingress, &mut pod.egress]).flatten() {
                *set = moved.get(set).copied().unwrap_or(*set);
            }
        }
        pods.apply(&mut self.pods, "a pod")?;
        attributions.apply(&mut self.attributions, "an attribution")?;
        addresses.apply(&mut self.addresses, "an address")?;
        blocks.apply(&mut self.blocks, "a block")?;
        for (id, delta) in sets {
            match delta {
                SetDelta::New(set) => drop(self.sets.insert(id, set)),
                SetDelta::Rows(rows) => {
                    let set = self.sets.get_mut(&id).ok_or(PatchError { what: "a set" })?;
                    rows.apply(&mut set.rows, "a row")?;
                }
                SetDelta::Removed => {
                    self.sets.remove(&id).ok_or(PatchError { what: "a set" })?;
                }
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

    fn view() -> impl Strategy<Value = NodeView> {
        let sets =
            proptest::collection::btree_map((0..4_u8).prop_map(|n| SetId(Digest([n; 16]))), set(), 0..4);
        let addresses = proptest::collection::btree_map(0..4_u8, 0..3_u8, 0..4);
        let attributions = proptest::collection::btree_map(0..4_u8, any::<bool>(), 0..3);
        (sets, addresses, attributions, 0..2_i64).prop_map(|(sets, addresses, attributions, generation)| {
            NodeView {
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
                logging: Logging { generation, ..Logging::default() },
                ..NodeView::default()
            }
        })
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_one_view_to_the_other(old in view(), new in view()) {
            prop_assert_eq!(old.patched(Patch::between(&old, &new)), Ok(new.clone()));
            prop_assert!(Patch::between(&new, &new).is_empty());
        }
    }

    #[test]
    fn pods_move_from_a_set_to_another_unless_they_are_put() {
        let [old, new] = [1, 2].map(|n| SetId(Digest([n; 16])));
        let pod = |ingress, egress| Pod {
            namespace: "n".into(),
            name: "p".into(),
            addresses: vec![],
            config_hash: None,
            ingress,
            egress,
            denies_logged: false,
        };
        let set = Set::of_base(
            Direction::Ingress,
            Row::uniform(Act { verdict: Verdict::Deny, attribution: AttributionId(Digest([0; 16])) }),
        );
        let view = NodeView {
            pods: [("a".into(), pod(Some(old), None)), ("b".into(), pod(Some(old), Some(old)))].into(),
            sets: [(old, set.clone())].into(),
            ..NodeView::default()
        };
        let mut patch = Patch { moved: [(old, new)].into(), ..Patch::default() };
        patch.sets = [(old, SetDelta::Removed), (new, SetDelta::New(set))].into();
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
}
