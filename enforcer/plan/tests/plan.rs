//! After every single step each packet is judged as before the plan or as the view says, and at the
//! end as the view says; whatever the views are, and wherever an earlier plan broke off. Pure.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use durward_plan::model::Judgement;
use durward_plan::{Access, Found, Kernel, Numbers, RowKey, Step, Wanted, Word, plan};
use durward_proto::{
    Act, AtomId, Attribution, Block, Digest, Direction, NodeView, Pod, PodUid, Policy, PolicyList, PortKey,
    Row, Set, SetId, Step as RowStep, Verdict,
};
use proptest::prelude::*;

const PODS: [&str; 4] = ["pod-0", "pod-1", "pod-2", "pod-3"];
const REMOTES: [&str; 7] =
    ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "192.0.2.1", "2001:db8::1", "2001:db8:0:1::1"];
const BLOCKS: [&str; 6] =
    ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/31", "2001:db8::/32", "2001:db8::/64"];
const PORTS: [PortKey; 4] =
    [PortKey::MIN, PortKey::new(6, 80), PortKey::new(6, 81), PortKey::new(17, u16::MAX)];

/// Some policies; the second is to be logged.
fn policy(n: u8) -> PolicyList {
    Attribution::new([Policy { namespace: "n".into(), name: n.to_string().into(), logged: n == 1 }]).into()
}

/// What rows are attributed to: one policy, the last to several, as a long list is.
fn attribution(n: u8) -> PolicyList {
    match n {
        3 => PolicyList::of_parts([1, 4].map(|n| policy(n).id())),
        _ => policy(n),
    }
}

/// One of a few rows; the last has more bounds than the kernel's short rows hold.
fn row(n: u8) -> Row {
    let act = |n: u8| Act {
        verdict: if n.is_multiple_of(2) { Verdict::Allow } else { Verdict::Deny },
        attribution: attribution(n % 4).id(),
    };
    match n {
        0..4 => Row::uniform(act(n)),
        4..6 => Row::new(vec![
            RowStep { start: PortKey::MIN, act: act(n) },
            RowStep { start: PortKey::new(6, 80), act: act(n + 1) },
            RowStep { start: PortKey::new(6, 81), act: act(n + 2) },
        ])
        .unwrap(),
        _ => {
            let start = |port: u16| if port == 0 { PortKey::MIN } else { PortKey::new(6, 60 + port) };
            let step = |port: u16| RowStep { start: start(port), act: act((port % 2) as u8) };
            Row::new((0..40).map(step).collect()).unwrap()
        }
    }
}

/// Indices from which a view is made; small, so that views have much in common.
#[derive(Clone, Debug)]
struct Seed {
    pods: BTreeMap<u8, [Option<u8>; 2]>,
    base: Vec<u8>,
    rows: Vec<Vec<Option<u8>>>,
    addresses: BTreeMap<u8, u8>,
    blocks: BTreeMap<u8, u8>,
    misfit: Option<u8>,
}

const SETS: usize = 4;
const ATOMS: usize = 4;

fn seed() -> impl Strategy<Value = Seed> {
    use proptest::collection::{btree_map, vec};
    let sets = proptest::array::uniform2(proptest::option::weighted(0.8, 0..SETS as u8));
    (
        btree_map(0..PODS.len() as u8, sets, 0..=PODS.len()),
        vec(0..7_u8, SETS),
        vec(vec(proptest::option::of(0..7_u8), ATOMS), SETS),
        btree_map(0..REMOTES.len() as u8, 0..ATOMS as u8, 0..=REMOTES.len()),
        btree_map(0..BLOCKS.len() as u8, 0..ATOMS as u8, 0..=BLOCKS.len()),
        proptest::option::weighted(0.3, 0..PODS.len() as u8),
    )
        .prop_map(|(pods, base, rows, addresses, blocks, misfit)| Seed {
            pods,
            base,
            rows,
            addresses,
            blocks,
            misfit,
        })
}

/// Views whose sets say what their names say, as the controller makes them: only pods, addresses and
/// blocks differ.
fn kindred() -> impl Strategy<Value = (Seed, Seed, Seed)> {
    (seed(), seed(), seed()).prop_map(|(first, second, third)| {
        let alike = |seed: Seed| Seed { base: first.base.clone(), rows: first.rows.clone(), ..seed };
        (first.clone(), alike(second), alike(third))
    })
}

fn set_id(direction: Direction, n: u8) -> SetId {
    SetId(Digest([n + 100 * direction as u8; 16]))
}

fn view(seed: &Seed) -> NodeView {
    let atom = |n: usize| AtomId(Digest([n as u8; 16]));
    let pod = |(&n, sets): (&u8, &[Option<u8>; 2])| {
        let pod = Pod {
            namespace: "n".into(),
            name: PODS[n as usize].into(),
            addresses: vec![],
            config_hash: None,
            ingress: sets[0].map(|set| set_id(Direction::Ingress, set)),
            egress: sets[1].map(|set| set_id(Direction::Egress, set)),
            denies_logged: n == 0,
        };
        (PodUid::from(PODS[n as usize]), pod)
    };
    let pods: BTreeMap<_, _> = seed.pods.iter().map(pod).collect();
    let mut sets = BTreeMap::new();
    for n in 0..SETS {
        let own = seed.rows[n].iter().enumerate();
        let rows: BTreeMap<_, _> = own.filter_map(|(a, r)| Some((atom(a), row((*r)?)))).collect();
        for direction in Direction::BOTH {
            let set = Set { direction, base: row(seed.base[n]), rows: rows.clone() };
            sets.insert(set_id(direction, n as u8), set);
        }
    }
    let attributions = (0..4).map(attribution).chain([policy(4)]).map(|list| (list.id(), list)).collect();
    let addresses = seed.addresses.iter().map(|(&n, &a)| (remote(n), atom(a as usize))).collect();
    let block = |n: u8| BLOCKS[n as usize].parse::<Block>().unwrap();
    let blocks = seed.blocks.iter().map(|(&n, &a)| (block(n), atom(a as usize))).collect();
    NodeView { pods, sets, attributions, addresses, blocks, ..NodeView::default() }
}

fn remote(n: u8) -> IpAddr {
    REMOTES[n as usize].parse().unwrap()
}

/// A node: its kernel, its numbers and what was found on it.
#[derive(Clone, Default)]
struct Node {
    kernel: Kernel,
    numbers: Numbers,
}

/// Every pod is on the node, at interface 10 and up.
fn found() -> BTreeMap<u32, Found> {
    let found = |(n, uid): (usize, &&str)| {
        let pod = Some(PodUid::from(*uid));
        (10 + n as u32, Found { namespace: n as u64, nsid: n as i32, pod, addresses: vec![] })
    };
    PODS.iter().enumerate().map(found).collect()
}

impl Node {
    fn plan(&mut self, seed: &Seed) -> Vec<Step> {
        let misfits: BTreeSet<PodUid> = seed.misfit.iter().map(|&n| PodUid::from(PODS[n as usize])).collect();
        let (view, found) = (view(seed), found());
        let wanted = Wanted { view: &view, found: &found, unknown: Access::Closed, misfits: &misfits };
        plan(wanted, &self.kernel, &mut self.numbers).unwrap()
    }

    /// Every judgement that a packet can meet.
    fn judgements(&self) -> Vec<Judgement> {
        every(|n, direction, remote, key| self.kernel.judge(10 + n as u32, direction, remote, key))
    }

    /// Takes steps, and checks after each that every packet is judged as before or as the view says.
    fn take(&mut self, steps: &[Step], seed: &Seed) {
        let (old, new) = (self.judgements(), wanted_judgements(seed, &self.numbers));
        for (i, step) in steps.iter().enumerate() {
            self.kernel.apply(step);
            for (packet, now) in self.judgements().into_iter().enumerate() {
                assert!(
                    now == old[packet] || now == new[packet],
                    "after step {i}, {step:?}, of {steps:#?}: packet {packet} is judged {now:?}, not {:?} or {:?}",
                    old[packet],
                    new[packet],
                );
            }
        }
    }

    /// Takes steps, and checks after each that also a packet that is under way, with a word and perhaps an
    /// atom that it read since the last grace period, is judged as before or as the view says.
    fn take_under_way(&mut self, steps: &[Step], seed: &Seed) {
        let (old, new) = (self.judgements(), wanted_judgements(seed, &self.numbers));
        let mut since_grace = vec![self.kernel.clone()];
        for step in steps {
            self.kernel.apply(step);
            if *step == Step::Grace {
                since_grace.clear();
            }
            since_grace.push(self.kernel.clone());
            let now = &self.kernel;
            for earlier in &since_grace {
                for atoms in [earlier, now] {
                    let judged = every(|n, direction, remote, key| {
                        let mut met = earlier.clone_for(10 + n as u32, direction, atoms.atom(remote), now);
                        met.addresses.insert(remote, atoms.atom(remote));
                        met.judge(10 + n as u32, direction, remote, key)
                    });
                    for (packet, judged) in judged.into_iter().enumerate() {
                        let fine = judged == old[packet] || judged == new[packet];
                        assert!(
                            fine,
                            "after {step:?} of {steps:#?}: packet {packet} under way is judged {judged:?}"
                        );
                    }
                }
            }
        }
    }

    fn check_settled(&mut self, seed: &Seed) {
        assert_eq!(self.judgements(), wanted_judgements(seed, &self.numbers));
        assert_eq!(self.plan(seed), [], "a plan for what is already there");
    }
}

/// What one packet meets that read its word earlier than its row.
trait Met {
    fn clone_for(&self, ifindex: u32, direction: Direction, atom: u32, rows: &Kernel) -> Kernel;
}

impl Met for Kernel {
    fn clone_for(&self, ifindex: u32, direction: Direction, atom: u32, rows: &Kernel) -> Kernel {
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return Kernel::default() };
        let set = endpoint.word(direction).set;
        let keys = [RowKey { set, atom }, RowKey { set, atom: 0 }];
        let row = |key| rows.rows.get(&key).map(|row| (key, row.clone()));
        Kernel {
            endpoints: [(ifindex, endpoint.clone())].into(),
            rows: keys.into_iter().filter_map(row).collect(),
            ..Kernel::default()
        }
    }
}

fn every<T>(mut judge: impl FnMut(usize, Direction, IpAddr, PortKey) -> T) -> Vec<T> {
    let mut all = Vec::new();
    for pod in 0..PODS.len() {
        for direction in Direction::BOTH {
            for remote in (0..REMOTES.len() as u8).map(remote) {
                for key in PORTS {
                    all.push(judge(pod, direction, remote, key));
                }
            }
        }
    }
    all
}

/// What [`NodeView::act`] says, in the node's numbers.
fn wanted_judgements(seed: &Seed, numbers: &Numbers) -> Vec<Judgement> {
    let view = view(seed);
    every(|n, direction, remote, key| {
        let uid = PodUid::from(PODS[n]);
        if !view.pods.contains_key(&uid) || seed.misfit == Some(n as u8) {
            return Judgement::Refused;
        }
        view.act(&uid, direction, remote, key).map_or(Judgement::Free, |act| {
            let attribution = numbers.attribution(act.attribution).expect("a number for what is judged by");
            let logged =
                view.attribution(act.attribution).expect("a list").0.iter().any(|policy| policy.logged);
            Judgement::By(durward_plan::Act { verdict: act.verdict, logged, attribution })
        })
    })
}

/// From nothing to the first view, to the second; broken off after `stop` steps, and on to the third.
fn walk(first: &Seed, second: &Seed, third: &Seed, stop: prop::sample::Index) {
    let mut node = Node::default();
    for seed in [first, second] {
        let mut broken = node.clone();
        let steps = node.plan(seed);
        node.take(&steps, seed);
        node.check_settled(seed);

        // The numbers are saved before the first step; the next run reads the kernel as it was left.
        broken.plan(seed);
        let done = &steps[..stop.index(steps.len() + 1)];
        done.iter().for_each(|step| broken.kernel.apply(step));
        for next in [seed, third] {
            let mut node = broken.clone();
            node.numbers = serde_json::from_str(&serde_json::to_string(&node.numbers).unwrap()).unwrap();
            assert!(node.numbers.cover(&node.kernel));
            let steps = node.plan(next);
            node.take(&steps, next);
            node.check_settled(next);
        }

        // And if even the numbers are lost, no number in the kernel comes to mean something else.
        broken.numbers = Numbers::default();
        broken.numbers.step_over(&broken.kernel);
        let steps = broken.plan(third);
        broken.take(&steps, third);
        broken.check_settled(third);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_under_way_is_judged_by_old_or_new((first, second, _) in prop_oneof![
        kindred(),
        (seed(), seed(), Just(simple([None; 4], &[]))),
    ]) {
        let mut node = Node::default();
        for seed in [first, second] {
            let steps = node.plan(&seed);
            node.take_under_way(&steps, &seed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_packet_is_judged_by_old_or_new(
        (first, second, third) in (seed(), seed(), seed()),
        stop: prop::sample::Index,
    ) {
        walk(&first, &second, &third, stop);
    }

    #[test]
    fn each_packet_is_judged_by_old_or_new_as_peers_come_and_go(
        (first, second, third) in kindred(),
        stop: prop::sample::Index,
    ) {
        walk(&first, &second, &third, stop);
    }

    #[test]
    fn a_word_is_stored_anew_where_what_it_says_changes(first in seed(), second in seed()) {
        let mut node = Node::default();
        let steps = node.plan(&first);
        node.take(&steps, &first);
        let (before, words) = (node.judgements(), words(&node));
        let steps = node.plan(&second);
        node.take(&steps, &second);
        let packets = before.len() / words.len();
        for (i, (old, new)) in words.iter().zip(self::words(&node)).enumerate() {
            let of_pod = i * packets..(i + 1) * packets;
            if before[of_pod.clone()] != node.judgements()[of_pod] && old.is_some() && new.is_some() {
                prop_assert_ne!(*old, new, "established connections of pod direction {}", i);
            }
        }
    }
}

/// The words that judge, by pod and direction.
fn words(node: &Node) -> Vec<Option<Word>> {
    let word = |pod: usize, direction| {
        let endpoint = &node.kernel.endpoints[&(10 + pod as u32)];
        (endpoint.access == Access::Judged).then(|| endpoint.word(direction))
    };
    (0..PODS.len()).flat_map(|pod| Direction::BOTH.map(|direction| word(pod, direction))).collect()
}

/// A view in which pod 0 is isolated on ingress by set 0, with rows for atoms 0 to 3.
fn simple(rows: [Option<u8>; 4], addresses: &[(u8, u8)]) -> Seed {
    Seed {
        pods: [(0, [Some(0), None]), (1, [None, None])].into(),
        base: vec![1; SETS],
        rows: vec![rows.to_vec(); SETS],
        addresses: addresses.iter().copied().collect(),
        blocks: BTreeMap::new(),
        misfit: None,
    }
}

#[test]
fn a_relabelled_peer_costs_one_store_and_a_bump() {
    let mut node = Node::default();
    let rows = [Some(0), Some(2), None, None];
    let before = simple(rows, &[(0, 0), (1, 1), (2, 2)]);
    let steps = node.plan(&before);
    node.take(&steps, &before);
    let steps = node.plan(&simple(rows, &[(0, 0), (1, 0), (2, 2)]));
    assert!(
        matches!(
            steps[..],
            [Step::PutAddress(..), Step::SetWord(10, Direction::Ingress, _), Step::Grace, Step::RemoveRow(_)]
        ),
        "{steps:?}"
    );
}

#[test]
fn a_new_peer_with_a_known_label_costs_one_store_and_a_bump() {
    let mut node = Node::default();
    let rows = [Some(0), Some(2), None, None];
    let before = simple(rows, &[(0, 0), (1, 1)]);
    let steps = node.plan(&before);
    node.take(&steps, &before);
    let steps = node.plan(&simple(rows, &[(0, 0), (1, 1), (2, 1)]));
    assert!(matches!(steps[..], [Step::PutAddress(..), Step::SetWord(10, ..)]), "{steps:?}");
}

#[test]
fn an_interface_with_another_namespace_is_another_endpoint() {
    let mut node = Node::default();
    let seed = simple([Some(0), None, None, None], &[(0, 0)]);
    let steps = node.plan(&seed);
    node.take(&steps, &seed);
    let mut found = found();
    found.retain(|&ifindex, _| ifindex == 10);
    found.get_mut(&10).unwrap().namespace = 99;
    let (view, misfits) = (view(&seed), BTreeSet::new());
    let wanted = Wanted { view: &view, found: &found, unknown: Access::Closed, misfits: &misfits };
    let steps = plan(wanted, &node.kernel, &mut node.numbers).unwrap();
    let kinds: Vec<_> =
        steps.iter().filter(|step| matches!(step, Step::Unbind(10) | Step::Bind(10, _))).collect();
    assert!(matches!(kinds[..], [Step::Unbind(10), Step::Bind(10, endpoint)] if endpoint.namespace == 99));
}
