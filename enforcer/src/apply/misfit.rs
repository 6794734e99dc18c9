//! Pods whose rules the kernel has no room for: they are closed, and nobody else is affected. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use durward_plan::{Found, Kernel, Numbers, Step};
use durward_proto::{AtomId, Block, Direction, Frontend, NodeView, Pod, PodUid};

/// What had no room: pods, and remote entries that they alone need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Misfits {
    pub(super) pods: BTreeSet<PodUid>,
    addresses: BTreeSet<IpAddr>,
    blocks: BTreeSet<Block>,
    /// Calls to them are judged by their address, like those to any other: no pod need be closed.
    pub(super) frontends: BTreeSet<Frontend>,
}

impl Misfits {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The view without what had no room.
    pub(super) fn fitting(&self, view: &NodeView) -> Option<NodeView> {
        let Self { pods: _, addresses, blocks, frontends } = self;
        (!addresses.is_empty() || !blocks.is_empty() || !frontends.is_empty()).then(|| {
            let mut view = view.clone();
            view.addresses.retain(|address, _| !addresses.contains(address));
            view.blocks.retain(|block, _| !blocks.contains(block));
            view.services.retain(|frontend, _| !frontends.contains(frontend));
            view
        })
    }

    /// Adds what a step that failed was for; false if that is nothing, or nothing new.
    pub(super) fn add(&mut self, step: &Step, view: &NodeView, of: &Known<'_>) -> bool {
        let before = self.clone();
        let pods = match step {
            Step::PutRow(key, _) => judged_by(view, |direction, uid, pod| {
                // The set that judges the pod now, or the one that will.
                let set = pod.set(direction).and_then(|set| of.numbers.set_number(set));
                set == Some(key.set) || of.word_sets(uid, pod, direction).any(|set| set == key.set)
            }),
            Step::PutAddress(address, _) => {
                self.addresses.insert(*address);
                let with = view.atom(*address);
                let mut without = NodeView { addresses: view.addresses.clone(), ..NodeView::default() };
                without.addresses.remove(address);
                without.blocks.clone_from(&view.blocks);
                told_apart(view, with, without.atom(*address))
            }
            Step::PutBlock(block, _) => {
                self.blocks.insert(*block);
                let mut without = NodeView { blocks: view.blocks.clone(), ..NodeView::default() };
                without.blocks.remove(block);
                told_apart(view, view.blocks.get(block).copied(), without.atom(block.address()))
            }
            // The map is full: none of those that are not in it have room.
            Step::PutFrontend(_) => {
                let new = view.services.keys().filter(|frontend| !of.kernel.frontends.contains(frontend));
                self.frontends.extend(new);
                BTreeSet::new()
            }
            _ => return false,
        };
        self.pods.extend(pods);
        *self != before
    }
}

/// What is known of the pods beside the view.
pub(super) struct Known<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) numbers: &'a Numbers,
    pub(super) found: &'a BTreeMap<u32, Found>,
}

impl Known<'_> {
    /// The sets that judge a pod now.
    fn word_sets(&self, uid: &PodUid, pod: &Pod, direction: Direction) -> impl Iterator<Item = u32> {
        let config_name = pod.config_name();
        let is_pod = move |found: &&Found| {
            let name = found.pod.as_ref();
            name.is_some_and(|name| name == uid || Some(name) == config_name.as_ref())
        };
        let own = self.found.iter().filter(move |(_, found)| is_pod(found));
        own.filter_map(move |(ifindex, _)| Some(self.kernel.endpoints.get(ifindex)?.word(direction).set))
    }
}

/// Pods that some direction's test accepts.
fn judged_by(view: &NodeView, test: impl Fn(Direction, &PodUid, &Pod) -> bool) -> BTreeSet<PodUid> {
    let judged = |(uid, pod): &(&PodUid, &Pod)| Direction::BOTH.into_iter().any(|d| test(d, uid, pod));
    view.pods.iter().filter(judged).map(|(uid, _)| uid.clone()).collect()
}

/// Pods whose rules say another thing of one atom than of the other.
fn told_apart(view: &NodeView, one: Option<AtomId>, other: Option<AtomId>) -> BTreeSet<PodUid> {
    judged_by(view, |direction, _, pod| {
        pod.set(direction).and_then(|set| view.sets.get(&set)).is_some_and(|set| {
            let row = |atom: Option<AtomId>| atom.and_then(|atom| set.rows.get(&atom)).unwrap_or(&set.base);
            row(one) != row(other)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_plan::{Access, Wanted, plan};
    use durward_proto::{Act, AttributionId, Digest, Row, Service, Set, SetId, Verdict};

    /// Two pods, each isolated by a set of its own; only the first's set knows the near atom.
    fn view() -> NodeView {
        let row = |verdict| Row::uniform(Act { verdict, attribution: AttributionId(Digest([9; 16])) });
        let (near, set) = (AtomId(Digest([5; 16])), |n| SetId(Digest([n; 16])));
        let of = |rows| Set { direction: Direction::Ingress, base: row(Verdict::Deny), rows };
        let pod = |n: u8| Pod {
            namespace: "n".into(),
            name: "p".into(),
            addresses: vec![],
            config_hash: None,
            ingress: Some(set(n)),
            egress: None,
            denies_logged: false,
        };
        NodeView {
            pods: [(PodUid::from("a"), pod(1)), (PodUid::from("b"), pod(2))].into(),
            sets: [(set(1), of([(near, row(Verdict::Allow))].into())), (set(2), of(BTreeMap::new()))].into(),
            addresses: [("10.0.0.1".parse().unwrap(), near)].into(),
            ..NodeView::default()
        }
    }

    #[test]
    fn only_the_pods_whose_rules_had_no_room_are_closed() {
        let (view, kernel, mut numbers) = (view(), Kernel::default(), Numbers::default());
        let found = |(n, uid): (u32, &str)| {
            (n, Found { namespace: 1, nsid: 0, pod: Some(uid.into()), addresses: vec![] })
        };
        let found: BTreeMap<u32, Found> = [(10, "a"), (11, "b")].into_iter().map(found).collect();
        let none = BTreeSet::new();
        let wanted = Wanted { view: &view, found: &found, unknown: Access::Closed, misfits: &none };
        let steps = plan(wanted, &kernel, &mut numbers).unwrap();
        let of_near = |step: &&Step| match step {
            Step::PutRow(key, _) => key.atom != 0,
            Step::PutAddress(..) => true,
            _ => false,
        };
        let failing: Vec<_> = steps.iter().filter(of_near).collect();
        assert_eq!(failing.len(), 2);
        for step in failing {
            let mut misfits = Misfits::default();
            let known = Known { kernel: &kernel, numbers: &numbers, found: &found };
            assert!(misfits.add(step, &view, &known));
            assert!(!misfits.add(&Step::Grace, &view, &known));
            assert_eq!(misfits.pods, [PodUid::from("a")].into());
            let fitting = misfits.fitting(&view).unwrap_or_else(|| view.clone());
            let wanted =
                Wanted { view: &fitting, found: &found, unknown: Access::Closed, misfits: &misfits.pods };
            let steps = plan(wanted, &kernel, &mut numbers).unwrap();
            assert!(!steps.contains(step));
            let access = |ifindex| {
                steps.iter().find_map(|step| match step {
                    Step::Bind(index, endpoint) if *index == ifindex => Some(endpoint.access),
                    _ => None,
                })
            };
            assert_eq!((access(10), access(11)), (Some(Access::Closed), Some(Access::Judged)));
        }
    }

    #[test]
    fn a_frontend_that_had_no_room_closes_nobody() {
        let frontend: Frontend = "6 10.96.0.1:80".parse().unwrap();
        let service = Service { namespace: "n".into(), name: "s".into(), backends: [].into() };
        let view = NodeView { services: [(frontend, service)].into(), ..view() };
        let (kernel, numbers, found) = (Kernel::default(), Numbers::default(), BTreeMap::new());
        let known = Known { kernel: &kernel, numbers: &numbers, found: &found };
        let mut misfits = Misfits::default();
        assert!(misfits.add(&Step::PutFrontend(frontend), &view, &known));
        assert!(!misfits.add(&Step::PutFrontend(frontend), &view, &known));
        assert_eq!((misfits.pods.len(), misfits.frontends.len()), (0, 1));
        assert_eq!(misfits.fitting(&view).unwrap().services, BTreeMap::new());
    }
}
