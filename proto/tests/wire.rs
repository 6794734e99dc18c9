//! What is encoded is decoded, snapshots come in parts, and bad messages are refused by name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{
    Act, AtomId, Attribution, AttributionId, Backend, Block, Delta, Digest, Direction, Directory, Frontend,
    IdentifyRequest, Identity, LateAttach, LogMode, Logging, LossPlace, NodeReport, NodeView, Patch, Pod,
    PodName, PodUid, Policy, PolicyList, PortKey, Row, Service, ServiceDelta, Set, SetDelta, SetId, Step,
    ToNode, Verdict, Version, Workload, encode, wire,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use prost::Message;
use uuid::Uuid;

fn digest() -> impl Strategy<Value = Digest> {
    // Few, so that keys meet.
    (0..6_u8).prop_map(|n| Digest([n; 16]))
}

fn text() -> impl Strategy<Value = std::sync::Arc<str>> {
    "[a-z]{1,3}".prop_map(Into::into)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| durward_proto::view::canonical(IpAddr::V6(bits.into()))),
    ]
}

fn block() -> impl Strategy<Value = Block> {
    (address(), 0..=128_u8).prop_filter_map("a length that fits", |(address, length)| {
        let block = Block::containing(address, length).ok()?;
        (durward_proto::view::canonical(block.address()) == block.address()).then_some(block)
    })
}

fn row() -> impl Strategy<Value = Row> {
    let act = || {
        (any::<bool>(), digest()).prop_map(|(allow, id)| Act {
            verdict: if allow { Verdict::Allow } else { Verdict::Deny },
            attribution: AttributionId(id),
        })
    };
    let later = btree_map(1..=PortKey::MAX.bits(), act(), 0..5);
    (act(), later).prop_map(|(first, later)| {
        let later =
            later.into_iter().map(|(bits, act)| Step { start: PortKey::from_bits(bits).unwrap(), act });
        Row::new([Step { start: PortKey::MIN, act: first }].into_iter().chain(later).collect()).unwrap()
    })
}

fn rows() -> impl Strategy<Value = BTreeMap<AtomId, Row>> {
    btree_map(digest().prop_map(AtomId), row(), 0..5)
}

fn set() -> impl Strategy<Value = Set> {
    let direction = prop::sample::select(Direction::BOTH.to_vec());
    (direction, row(), rows()).prop_map(|(direction, base, rows)| Set { direction, base, rows })
}

fn pod() -> impl Strategy<Value = Pod> {
    let set = || prop::option::of(digest().prop_map(SetId));
    let addresses = btree_set(address(), 0..3);
    (text(), text(), addresses, prop::option::of(text()), set(), set(), any::<bool>()).prop_map(
        |(namespace, name, addresses, config_hash, ingress, egress, denies_logged)| {
            let addresses = addresses.into_iter().collect();
            Pod { namespace, name, addresses, config_hash, ingress, egress, denies_logged }
        },
    )
}

fn attribution() -> impl Strategy<Value = Attribution> {
    btree_map((text(), text()), any::<bool>(), 1..4).prop_map(|policies| {
        Attribution::new(policies.into_iter().map(|((namespace, name), logged)| Policy {
            namespace,
            name,
            logged,
        }))
    })
}

fn list() -> impl Strategy<Value = PolicyList> {
    let parts = btree_set(digest().prop_map(AttributionId), 1..4);
    prop_oneof![attribution().prop_map(PolicyList::from), parts.prop_map(PolicyList::of_parts)]
}

fn logging() -> impl Strategy<Value = Logging> {
    let mode = || prop::sample::select(vec![LogMode::Off, LogMode::All, LogMode::Delegated]);
    (mode(), mode(), 0..i64::MAX).prop_map(|(allow, deny, generation)| Logging { allow, deny, generation })
}

fn frontend() -> impl Strategy<Value = Frontend> {
    let port = (any::<u8>(), 1..=u16::MAX).prop_map(|(protocol, port)| PortKey::new(protocol, port));
    (prop::option::of(address()), port).prop_map(|(address, port)| Frontend { address, port })
}

fn service() -> impl Strategy<Value = Service> {
    let backend = (address(), 1..=u16::MAX).prop_map(|(address, port)| Backend { address, port });
    (text(), text(), btree_set(backend, 0..3)).prop_map(|(namespace, name, backends)| Service {
        namespace,
        name,
        backends: backends.into_iter().collect(),
    })
}

fn uid() -> impl Strategy<Value = PodUid> {
    let uuid = any::<u128>().prop_map(|bits| Uuid::from_u128(bits).to_string().into());
    prop_oneof![text(), uuid].prop_map(|text: Arc<str>| PodUid::from(&*text))
}

fn delta<K: Ord + Clone + std::fmt::Debug, V: std::fmt::Debug>(
    put: impl Strategy<Value = BTreeMap<K, V>>,
    removed: impl Strategy<Value = BTreeSet<K>>,
) -> impl Strategy<Value = Delta<K, V>> {
    (put, removed).prop_map(|(put, mut removed)| {
        removed.retain(|key| !put.contains_key(key));
        Delta { put: put.into_iter().collect(), removed }
    })
}

fn patch() -> impl Strategy<Value = Patch> {
    let atom = || digest().prop_map(AtomId);
    let set_delta = prop_oneof![
        set().prop_map(|set| SetDelta::New(set.into())),
        delta(rows(), btree_set(atom(), 0..3))
            .prop_filter_map("rows that change", |rows| (!rows.is_empty()).then_some(SetDelta::Rows(rows))),
        Just(SetDelta::Removed),
    ];
    let lists = vec(list(), 0..3).prop_map(|all| all.into_iter().map(|one| (one.id(), one)).collect());
    let set_id = || digest().prop_map(SetId);
    let some = delta(btree_map(frontend(), service(), 0..4), btree_set(frontend(), 0..3));
    // A directory that is not empty makes more than one part.
    let services = (any::<bool>(), some)
        .prop_map(|(forgotten, some)| ServiceDelta { all: forgotten.then(Arc::default), some });
    (
        btree_map(set_id(), set_id(), 0..3),
        delta(btree_map(uid(), pod(), 0..3), btree_set(uid(), 0..3)),
        btree_map(digest().prop_map(SetId), set_delta, 0..4),
        delta(lists, btree_set(digest().prop_map(AttributionId), 0..3)),
        delta(btree_map(address(), atom(), 0..4), btree_set(address(), 0..3)),
        delta(btree_map(block(), atom(), 0..4), btree_set(block(), 0..3)),
        services,
        prop::option::of(logging()),
        any::<bool>(),
    )
        .prop_map(|(moved, pods, sets, attributions, addresses, blocks, services, logging, merged)| {
            let (moved, sets) = (moved.into_iter().collect(), sets.into_iter().collect());
            Patch { moved, pods, sets, attributions, addresses, blocks, services, logging, merged }
        })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(patch in patch(), epoch in 1_u64.., number: u64) {
        let parts = encode::parts(&patch).encoded();
        prop_assert_eq!(parts.len(), 1);
        prop_assert_eq!(decoded(&parts[0]), patch);
        let version = Version { epoch, number };
        prop_assert_eq!(Version::try_from(wire::Version::from(version)), Ok(version));
    }
}

fn decoded(part: &[u8]) -> Patch {
    wire::Patch::decode(part).unwrap().try_into().unwrap()
}

fn digest_of(number: usize) -> Digest {
    Digest::of("test", [number.to_be_bytes()])
}

/// A view of about two megabytes, one set alone of more than one part.
fn large_view() -> NodeView {
    let policy = |number: usize| {
        let policy =
            Policy { namespace: "default".into(), name: format!("p{number}").into(), logged: number > 3 };
        PolicyList::from(Attribution::new([policy]))
    };
    let row = |number: usize| {
        let act = |verdict, number| Act { verdict, attribution: policy(number % 9).id() };
        let later = Step { start: PortKey::new(6, 80), act: act(Verdict::Allow, number) };
        Row::new(vec![Step { start: PortKey::MIN, act: act(Verdict::Deny, number + 1) }, later]).unwrap()
    };
    let set = |direction, rows: usize| {
        let rows = (0..rows).map(|number| (AtomId(digest_of(number)), row(number))).collect();
        Set { direction, base: row(0), rows }
    };
    let pod = |number: usize| Pod {
        namespace: "default".into(),
        name: format!("pod-{number}").into(),
        addresses: vec![IpAddr::from([10, 1, 0, number as u8])],
        config_hash: None,
        ingress: Some(SetId(digest_of(1))),
        egress: number.is_multiple_of(2).then(|| SetId(digest_of(2))),
        denies_logged: number == 1,
    };
    let host = |number: usize| IpAddr::V4((0x0a02_0000 + number as u32).into());
    let service = |number: usize| Service {
        namespace: "default".into(),
        name: format!("service-{number}").into(),
        backends: [Backend { address: host(number), port: 80 }].into(),
    };
    let frontend =
        |number| Frontend { address: Some(host(number)), port: PortKey::new(6, number as u16 + 1) };
    NodeView {
        pods: (0..200).map(|number| (PodUid::from(&*format!("uid-{number}")), pod(number))).collect(),
        sets: [
            (SetId(digest_of(1)), set(Direction::Ingress, 10_000)),
            (SetId(digest_of(2)), set(Direction::Egress, 3_000)),
            (SetId(digest_of(3)), set(Direction::Egress, 0)),
        ]
        .into(),
        attributions: (0..9).map(|number| (policy(number).id(), policy(number))).collect(),
        addresses: (0..20_000)
            .map(|number| (host(number), AtomId(digest_of(number % 50))))
            // More of one atom than a part holds.
            .chain(
                (0..3_000).map(|number| (IpAddr::V6((1_u128 << 120 | number).into()), AtomId(digest_of(1)))),
            )
            .collect(),
        blocks: [("10.0.0.0/8".parse().unwrap(), AtomId(digest_of(1)))].into(),
        services: (0..20_000).map(|number| (frontend(number), service(number))).collect(),
        logging: Logging { allow: LogMode::All, deny: LogMode::Delegated, generation: 7 },
    }
}

/// What the parts of a patch make of a view, none of them longer than it may be.
fn in_parts(mut view: NodeView, patch: &Patch) -> (NodeView, usize) {
    let parts = encode::parts(patch).encoded();
    for part in &parts {
        assert!(part.len() <= encode::MAX_PART_BYTES, "a part of {} bytes", part.len());
        view.patch(decoded(part)).unwrap();
    }
    (view, parts.len())
}

#[test]
fn a_snapshot_comes_in_parts_that_make_the_view() {
    let view = large_view();
    view.check().unwrap();
    let (built, parts) = in_parts(NodeView::default(), &Patch::between(&NodeView::default(), &view));
    assert!(built == view && parts > 4, "{parts} parts");
    assert_eq!(in_parts(NodeView::default(), &Patch::default()).1, 1);
}

#[test]
fn addresses_that_match_the_same_take_little_more_than_themselves() {
    let view = NodeView { addresses: large_view().addresses, ..NodeView::default() };
    let bytes = encode::parts(&Patch::between(&NodeView::default(), &view)).size();
    let (own, atoms) = (20_000 * 4 + 3_000 * 16, 50);
    assert!(bytes < own + own / 20 + atoms * 30, "{bytes} bytes");
}

#[test]
fn a_change_comes_in_parts_that_make_it() {
    let old = large_view();
    let mut new = old.clone();
    let few = |host: &IpAddr| matches!(host, IpAddr::V4(v4) if v4.to_bits() % 3 > 0);
    new.addresses.retain(|host, _| few(host));
    new.pods.retain(|_, pod| few(&pod.addresses[0]));
    new.pods.values_mut().step_by(2).for_each(|pod| pod.denies_logged = true);
    new.blocks.clear();
    let mut rows = new.sets.remove(&SetId(digest_of(2))).unwrap();
    new.sets.insert(SetId(digest_of(3)), rows.clone());
    rows.rows.retain(|atom, _| atom.0.0[0] % 3 > 0);
    new.sets.get_mut(&SetId(digest_of(1))).unwrap().rows = rows.rows;
    for (merged, from) in [(false, &old), (true, &NodeView { pods: BTreeMap::new(), ..old.clone() })] {
        // Of pods that are put and of sets that go, too.
        let moved = [(SetId(digest_of(2)), SetId(digest_of(3)))].into_iter().collect();
        let patch = Patch { moved, merged, ..Patch::between(&old, &new) };
        let whole = from.patched(patch.clone()).unwrap();
        let (built, parts) = in_parts(from.clone(), &patch);
        assert!(built == whole && parts > 4, "{parts} parts");
    }
}

/// However many sets pods move between: in parts, those of one could move twice.
#[test]
fn pods_move_at_once() {
    let set = |number: usize| SetId(digest_of(number));
    let moved = (0..1_000).map(|number| (set(number), set(number + 1))).collect();
    let parts = encode::parts(&Patch { moved, ..Patch::default() }).encoded();
    assert_eq!(parts.iter().filter(|part| !decoded(part).moved.is_empty()).count(), 1);
}

#[test]
fn who_comes_to_know_all_services_forgets_what_it_knew() {
    let large = large_view();
    let all = large.services.iter().map(|(&frontend, service)| (frontend, service.clone())).collect();
    let mut patch = Patch::default();
    patch.services.all = Some(Arc::new(Directory::new(all)));
    let (first, last) = (*large.services.keys().next().unwrap(), *large.services.keys().last().unwrap());
    let other = Service { name: "other".into(), ..large.services[&last].clone() };
    patch.services.some.put.insert(last, other.clone());
    patch.services.some.removed.insert(first);
    let known = [("6 10.96.0.1:80".parse().unwrap(), other.clone())].into();
    let (built, parts) = in_parts(NodeView { services: known, ..NodeView::default() }, &patch);
    assert!(parts > 4, "{parts} parts");
    let mut expected = large.services;
    expected.insert(last, other);
    expected.remove(&first);
    assert_eq!(built.services, expected);
    // What many nodes are told is encoded once.
    let [one, another] = [(); 2].map(|()| encode::parts(&patch).first[1].clone());
    assert_eq!(one.as_ptr(), another.as_ptr());
}

#[test]
fn a_row_that_is_larger_than_a_part_goes_alone() {
    let act =
        |number: u32| Act { verdict: Verdict::Allow, attribution: AttributionId(digest_of(number as usize)) };
    let steps =
        (0..16_384).map(|number| Step { start: PortKey::from_bits(number).unwrap(), act: act(number % 2) });
    let row = Row::new(steps.collect()).unwrap();
    let rows = [(AtomId(digest_of(1)), row.clone()), (AtomId(digest_of(2)), row.clone())].into();
    let set = Set { direction: Direction::Ingress, base: row, rows };
    let view = NodeView { sets: [(SetId(digest_of(1)), set)].into(), ..NodeView::default() };
    let mut built = NodeView::default();
    for part in encode::parts(&Patch::between(&NodeView::default(), &view)).encoded() {
        assert!(part.len() < 1 << 20, "a part of {} bytes", part.len());
        built.patch(decoded(&part)).unwrap();
    }
    assert_eq!(built, view);
}

#[test]
fn reports_identities_and_the_stream_go_both_ways() {
    let report = NodeReport {
        node: "node-1".into(),
        losses: LossPlace::ALL.into_iter().map(|place| (place, place as u64 + 1)).collect(),
        late: vec![LateAttach { pod: "uid-1".into(), open_ms: 12 }],
        problems: vec!["no BTF".into()],
    };
    assert_eq!(NodeReport::try_from(wire::NodeReport::from(&report)), Ok(report));

    let workload = Workload { kind: "Deployment".into(), name: "cart".into() };
    let pod = PodName { namespace: "shop".into(), name: "cart-1".into(), workload: Some(workload) };
    for pod in [None, Some(PodName { workload: None, ..pod.clone() }), Some(pod)] {
        let identity = Identity { pod, since_ms: -5 };
        assert_eq!(Identity::try_from(wire::Identity::from(&identity)), Ok(identity));
    }
    let request = IdentifyRequest(vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
    assert_eq!(IdentifyRequest::try_from(wire::IdentifyRequest::from(&request)), Ok(request));

    let version = wire::Version { epoch: 3, number: 4 };
    let change = wire::Change { to: Some(version), patch: Some(wire::Patch::default()) };
    let message = wire::ToNode { message: Some(wire::to_node::Message::Change(change)) };
    let expected = ToNode::Change { to: Version { epoch: 3, number: 4 }, patch: Patch::default() };
    assert_eq!(ToNode::try_from(message), Ok(expected));
}

/// A patch with one of everything, for the table of bad ones to spoil.
fn v6(text: &str) -> Vec<u8> {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()
}

fn good() -> wire::Patch {
    let id = |n: u8| vec![n; 16];
    let v6 = v6("fd00::1");
    let row = || {
        let step = wire::Step { start: 0, verdict: wire::Verdict::Deny.into(), attribution: id(1) };
        Some(wire::Row { steps: vec![step] })
    };
    let policy = |name: &str| wire::Policy { namespace: "a".into(), name: name.into(), logged: false };
    wire::Patch {
        put_pods: vec![wire::Pod {
            uid: "u".into(),
            namespace: "a".into(),
            name: "p".into(),
            addresses: vec![vec![10, 0, 0, 1], vec![10, 0, 0, 2]],
            config_hash: String::new(),
            ingress_set: id(1),
            egress_set: vec![],
            denies_logged: false,
        }],
        removed_pods: vec!["v".into()],
        new_sets: vec![wire::Set {
            id: id(1),
            direction: wire::Direction::Ingress.into(),
            base: row(),
            rows: vec![wire::AtomRow { atom: id(1), row: row() }],
        }],
        changed_sets: vec![wire::SetRows {
            id: id(2),
            put_rows: vec![wire::AtomRow { atom: id(1), row: row() }],
            removed_rows: vec![id(2)],
        }],
        removed_sets: vec![id(3)],
        moved_sets: vec![wire::SetMove { from: id(3), to: id(1) }],
        put_attributions: vec![
            wire::Attribution { policies: vec![policy("p"), policy("q")], parts: vec![] },
            wire::Attribution { policies: vec![], parts: vec![id(4), id(5)] },
        ],
        removed_attributions: vec![id(2)],
        put_addresses: vec![wire::Atom { id: id(1), v4: vec![0x0a00_0001], v6 }],
        removed_addresses: vec![vec![10, 0, 0, 2]],
        put_blocks: vec![wire::Block { address: vec![10, 0, 0, 0], length: 8, atom: id(1) }],
        removed_blocks: vec![wire::Block { address: vec![11, 0, 0, 0], length: 8, atom: vec![] }],
        logging: Some(wire::Logging {
            allow: wire::LogMode::Off.into(),
            deny: wire::LogMode::All.into(),
            generation: 1,
        }),
        put_services: vec![wire::Service {
            frontend: Some(wire::Frontend { address: vec![10, 96, 0, 1], port: 0x6_0050 }),
            namespace: "a".into(),
            name: "s".into(),
            backends: vec![wire::Backend { address: vec![10, 0, 0, 1], port: 80 }],
        }],
        removed_services: vec![wire::Frontend { address: vec![], port: 0x6_7530 }],
        merged: false,
        forgotten_services: true,
    }
}

#[test]
fn bad_messages_are_refused_by_name() {
    type Spoil = fn(&mut wire::Patch);
    fn step(patch: &mut wire::Patch) -> &mut wire::Step {
        &mut patch.new_sets[0].base.as_mut().unwrap().steps[0]
    }
    fn twice<T: Clone>(list: &mut Vec<T>) {
        list.push(list[0].clone());
    }
    let table: &[(Spoil, &str)] = &[
        (|p| p.put_pods[0].uid.clear(), "Pod.uid: it is missing"),
        (|p| p.put_pods[0].namespace.clear(), "Pod.namespace: it is missing"),
        (|p| p.put_pods[0].name.clear(), "Pod.name: it is missing"),
        (|p| p.put_pods[0].addresses[0].truncate(3), "Pod.addresses: 3 bytes, expected 4 or 16"),
        (|p| p.put_pods[0].addresses.swap(0, 1), "Pod.addresses: 10.0.0.1 is not after the one before it"),
        (|p| p.put_pods[0].addresses[1][3] = 1, "Pod.addresses: 10.0.0.1 is not after the one before it"),
        (|p| p.put_pods[0].ingress_set.truncate(15), "Pod.ingress_set: 15 bytes, expected 16"),
        (|p| p.put_pods[0].egress_set.push(1), "Pod.egress_set: 1 bytes, expected 16"),
        (|p| twice(&mut p.put_pods), "Patch.put_pods: u occurs twice"),
        (|p| p.removed_pods[0] = "u".into(), "Patch.removed_pods: u occurs twice"),
        (|p| p.removed_pods[0].clear(), "Patch.removed_pods: it is missing"),
        (|p| p.new_sets[0].id.clear(), "Set.id: it is missing"),
        (|p| p.new_sets[0].direction = 0, "Set.direction: it is missing"),
        (
            |p| p.new_sets[0].direction = 9,
            "Set.direction: 9 is unknown to this version; the peer may be newer",
        ),
        (|p| p.new_sets[0].base = None, "Set.base: it is missing"),
        (|p| p.new_sets[0].rows[0].row = None, "AtomRow.row: it is missing"),
        (|p| p.new_sets[0].rows[0].atom.clear(), "AtomRow.atom: it is missing"),
        (|p| twice(&mut p.new_sets[0].rows), "Set.rows: 01010101010101010101010101010101 occurs twice"),
        (
            |p| p.changed_sets[0].removed_rows[0] = vec![1; 16],
            "SetRows.removed_rows: 01010101010101010101010101010101 occurs twice",
        ),
        (
            |p| p.removed_sets[0] = vec![2; 16],
            "Patch.new_sets, changed_sets, removed_sets: 02020202020202020202020202020202 occurs twice",
        ),
        (
            |p| step(p).start = 1,
            "Row.steps: a row's first step starts at Some(1), not at 0: the ports before it have no verdict",
        ),
        (
            |p| twice(&mut p.new_sets[0].base.as_mut().unwrap().steps),
            "Row.steps: a row's step 1 starts at 0x0, not after the one before it",
        ),
        (
            |p| step(p).start = 0x100_0000,
            "Step.start: 0x1000000 is above the last protocol and port, 0xffffff",
        ),
        (|p| step(p).verdict = 0, "Step.verdict: it is missing"),
        (|p| step(p).verdict = 3, "Step.verdict: 3 is unknown to this version; the peer may be newer"),
        (|p| step(p).attribution.push(1), "Step.attribution: 17 bytes, expected 16"),
        (|p| p.put_attributions[0].policies.clear(), "Attribution.policies: it is missing"),
        (
            |p| p.put_attributions[0].policies.swap(0, 1),
            "Attribution.policies: a/p is not after the one before it",
        ),
        (
            |p| {
                let mut same = p.put_attributions[0].policies[1].clone();
                same.logged = true;
                p.put_attributions[0].policies.push(same);
            },
            "Attribution.policies: a/q is not after the one before it",
        ),
        (|p| p.put_attributions[0].policies[0].name.clear(), "Policy.name: it is missing"),
        (
            |p| p.put_attributions[1].parts.swap(0, 1),
            "Attribution.parts: 04040404040404040404040404040404 is not after the one before it",
        ),
        (|p| p.put_attributions[1].parts[0].clear(), "Attribution.parts: it is missing"),
        (
            |p| p.put_attributions[0].parts.push(vec![1; 16]),
            "Attribution.parts: it must be empty here, and is not",
        ),
        (|p| p.moved_sets[0].to.clear(), "SetMove.to: it is missing"),
        (|p| twice(&mut p.moved_sets), "Patch.moved_sets: 03030303030303030303030303030303 occurs twice"),
        (|p| p.removed_attributions[0].clear(), "Patch.removed_attributions: it is missing"),
        (|p| p.put_addresses[0].id.clear(), "Atom.id: it is missing"),
        (
            |p| p.put_addresses[0].v6 = v6("::ffff:10.0.0.9"),
            "Atom.v6: ::ffff:10.0.0.9 is an IPv4 address in IPv6 form; send 4 bytes",
        ),
        (|p| p.put_addresses[0].v6.truncate(15), "Atom.v6: 15 bytes, expected 16 for each address"),
        (|p| twice(&mut p.put_addresses[0].v4), "Patch.put_addresses: 10.0.0.1 occurs twice"),
        (|p| twice(&mut p.put_addresses), "Patch.put_addresses: 10.0.0.1 occurs twice"),
        (|p| p.removed_addresses[0][3] = 1, "Patch.removed_addresses: 10.0.0.1 occurs twice"),
        (
            |p| p.put_blocks[0].length = 6,
            "Block.length: 10.0.0.0/6 is no block: the prefix is too long, or bits are set after it",
        ),
        (
            |p| p.put_blocks[0].length = 264,
            "Block.length: 10.0.0.0/264 is no block: the prefix is too long, or bits are set after it",
        ),
        (|p| p.put_blocks[0].atom.clear(), "Block.atom: it is missing"),
        (|p| p.removed_blocks[0].atom.push(1), "Block.atom: it must be empty here, and is not"),
        (|p| p.removed_blocks[0].address[0] = 10, "Patch.removed_blocks: 10.0.0.0/8 occurs twice"),
        (|p| p.logging.as_mut().unwrap().allow = 0, "Logging.allow: it is missing"),
        (
            |p| p.logging.as_mut().unwrap().deny = 4,
            "Logging.deny: 4 is unknown to this version; the peer may be newer",
        ),
        (|p| p.put_services[0].frontend = None, "Service.frontend: it is missing"),
        (|p| p.put_services[0].name.clear(), "Service.name: it is missing"),
        (|p| twice(&mut p.put_services), "Patch.put_services: 6 10.96.0.1:80 occurs twice"),
        (
            |p| twice(&mut p.put_services[0].backends),
            "Service.backends: 10.0.0.1:80 is not after the one before it",
        ),
        (|p| p.put_services[0].backends[0].port = 0, "Backend.port: it is missing"),
        (
            |p| p.put_services[0].backends[0].port = 65_536,
            "Backend.port: 65536 is above the last port, 65535",
        ),
        (|p| p.put_services[0].backends[0].address.clear(), "Backend.address: 0 bytes, expected 4 or 16"),
        (|p| p.removed_services[0].port = 0x6_0000, "Frontend.port: it is missing"),
        (
            |p| p.removed_services[0].port = 0x100_0000,
            "Frontend.port: 0x1000000 is above the last protocol and port, 0xffffff",
        ),
        (|p| twice(&mut p.removed_services), "Patch.removed_services: 6 *:30000 occurs twice"),
        (|p| p.logging.as_mut().unwrap().generation = -1, "Logging.generation: -1 is negative"),
    ];
    assert!(Patch::try_from(good()).is_ok());
    for (spoil, expected) in table {
        let mut patch = good();
        spoil(&mut patch);
        let refused = Patch::try_from(patch).unwrap_err().to_string();
        assert_eq!(refused, format!("{expected}; the message is refused, what was there before holds"));
    }
}

#[test]
fn bad_messages_of_other_kinds_are_refused_by_name() {
    let change = |to, patch| wire::ToNode {
        message: Some(wire::to_node::Message::Change(wire::Change { to, patch })),
    };
    let error = |message| ToNode::try_from(message).unwrap_err();
    let version = Some(wire::Version { epoch: 1, number: 1 });
    assert!(error(wire::ToNode::default()).to_string().starts_with("ToNode.message: it is missing"));
    let part = wire::to_node::Message::Part(vec![0xff].into());
    let broken = error(wire::ToNode { message: Some(part) }).to_string();
    assert!(broken.starts_with("ToNode.part: failed to decode"), "{broken}");
    assert!(error(change(None, None)).to_string().starts_with("Change.to: it is missing"));
    assert!(error(change(version, None)).to_string().starts_with("Change.patch: it is missing"));
    let none = Some(wire::Version::default());
    assert!(error(change(none, None)).to_string().starts_with("Version.epoch: it is missing"));

    let loss = wire::Loss { place: "moon".into(), count: 1 };
    let report = wire::NodeReport { node: "n".into(), losses: vec![loss], ..wire::NodeReport::default() };
    let refused = NodeReport::try_from(report).unwrap_err().to_string();
    assert!(refused.starts_with("Loss.place: \"moon\" is unknown to this version"), "{refused}");

    let nameless = wire::Identity { namespace: "a".into(), ..wire::Identity::default() };
    assert!(
        Identity::try_from(nameless).unwrap_err().to_string().starts_with("Identity.name: it is missing")
    );
    let many = wire::IdentifyRequest { addresses: vec![vec![1; 4]; 1001] };
    let refused = IdentifyRequest::try_from(many).unwrap_err().to_string();
    assert!(
        refused.starts_with("IdentifyRequest.addresses: 1001 of them, at most 1000 are taken"),
        "{refused}"
    );
}
