//! Where nobody sees packets after translation, a call to a Service is allowed if each of its backends is. Pure.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use durward_plan::service::EVERY_ADDRESS;
use durward_plan::{Access, Found, Kernel, Numbers, Step, Wanted, conservative, plan};
use durward_proto::{
    Act, AtomId, Attribution, Backend, Digest, Direction, Frontend, NodeView, Pod, PodUid, Policy, PortKey,
    Row, Service, Set, SetId, Verdict,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const REMOTES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "10.96.0.1"];
const FRONTENDS: [&str; 5] =
    ["6 10.96.0.1:80", "6 10.96.0.1:443", "17 10.96.0.2:53", "6 [fd00::1]:80", "6 *:30080"];
const PORTS: [u16; 3] = [80, 443, 8080];

fn remote(n: usize) -> IpAddr {
    REMOTES[n].parse().unwrap()
}

fn policies(names: &[&str]) -> Attribution {
    let policy = |name: &&str| Policy { namespace: "n".into(), name: (*name).into(), logged: false };
    Attribution::new(names.iter().map(policy))
}

fn act(verdict: Verdict, names: &[&str]) -> Act {
    Act { verdict, attribution: policies(names).id() }
}

/// One of a few rows: all denied, all allowed, and TCP's port 80 or 8080 allowed by one policy or another.
fn row(n: u8) -> Row {
    let denied = act(Verdict::Deny, &["a", "b"]);
    match n {
        0 => Row::uniform(denied),
        1 => Row::uniform(act(Verdict::Allow, &["a"])),
        _ => {
            let (port, by) = ([80, 8080][usize::from(n % 2)], ["a", "b"][usize::from(n / 4)]);
            Row::uniform(denied).with(PortKey::new(6, port), act(Verdict::Allow, &[by]))
        }
    }
}

fn atom(n: u8) -> AtomId {
    AtomId(Digest([n; 16]))
}

fn set_id(direction: Direction) -> SetId {
    SetId(Digest([100 + direction as u8; 16]))
}

fn pod() -> PodUid {
    PodUid::from("pod")
}

fn view() -> impl Strategy<Value = NodeView> {
    let backend =
        (0..REMOTES.len(), select(PORTS.to_vec())).prop_map(|(n, port)| Backend { address: remote(n), port });
    let service = vec(backend, 0..3).prop_map(|backends| Service {
        namespace: "n".into(),
        name: "s".into(),
        backends: backends.into_iter().collect::<BTreeSet<_>>().into_iter().collect(),
    });
    let services =
        (subsequence(FRONTENDS.to_vec(), 0..5), vec(service, 5)).prop_map(|(frontends, services)| {
            frontends.into_iter().map(|text| text.parse::<Frontend>().unwrap()).zip(services).collect()
        });
    let rows = || btree_map((0..4_u8).prop_map(atom), (0..8_u8).prop_map(row), 0..4);
    let addresses = btree_map((0..REMOTES.len()).prop_map(remote), (0..4_u8).prop_map(atom), 0..5);
    (services, rows(), rows(), 0..8_u8, addresses).prop_map(|(services, ingress, egress, base, addresses)| {
        let set = |direction, rows| Set { direction, base: row(base), rows };
        let sets = [(Direction::Ingress, ingress), (Direction::Egress, egress)];
        let pod_of = Pod {
            namespace: "n".into(),
            name: "p".into(),
            addresses: vec![],
            config_hash: None,
            ingress: Some(set_id(Direction::Ingress)),
            egress: Some(set_id(Direction::Egress)),
            denies_logged: false,
        };
        let lists: [&[&str]; 3] = [&["a"], &["b"], &["a", "b"]];
        NodeView {
            pods: [(pod(), pod_of)].into(),
            sets: sets.map(|(direction, rows)| (set_id(direction), set(direction, rows))).into(),
            attributions: lists.map(policies).map(|list| (list.id(), list.into())).into(),
            addresses,
            services,
            ..NodeView::default()
        }
    })
}

fn said(view: &NodeView, direction: Direction, remote: IpAddr, key: PortKey) -> Act {
    view.act(&pod(), direction, remote, key).unwrap()
}

proptest! {
    #[test]
    fn a_frontend_is_allowed_where_all_of_its_backends_are(view in view()) {
        let judged = conservative(&view);
        judged.check().unwrap();
        for (frontend, service) in &view.services {
            let at = frontend.address.unwrap_or(EVERY_ADDRESS);
            let act = said(&judged, Direction::Egress, at, frontend.port);
            let backend = |backend: &Backend| {
                let port = PortKey::new(frontend.port.protocol(), backend.port);
                said(&view, Direction::Egress, backend.address, port)
            };
            let acts: Vec<Act> = service.backends.iter().map(backend).collect();
            let allowed = acts.iter().all(|act| act.verdict == Verdict::Allow);
            if !acts.is_empty() {
                prop_assert_eq!(act.verdict == Verdict::Allow, allowed);
            }
            if act.verdict == Verdict::Allow {
                let by: BTreeSet<_> = judged.attribution(act.attribution).unwrap().0.iter().cloned().collect();
                let lists = acts.iter().map(|act| view.attribution(act.attribution).unwrap());
                let each = lists.flat_map(|list| list.0.to_vec());
                prop_assert!(acts.is_empty() || by == each.collect());
            } else {
                prop_assert_eq!(act.attribution, policies(&["a", "b"]).id());
            }
        }
    }

    #[test]
    fn nothing_else_is_judged_otherwise(view in view()) {
        let judged = conservative(&view);
        let remotes = (0..REMOTES.len()).map(remote);
        for at in remotes.chain(["10.96.0.2", "fd00::1", "192.0.2.1"].map(|text| text.parse().unwrap())) {
            for key in [PortKey::new(6, 79), PortKey::new(6, 80), PortKey::new(6, 443), PortKey::new(17, 53)] {
                let ingress = said(&view, Direction::Ingress, at, key);
                prop_assert_eq!(said(&judged, Direction::Ingress, at, key), ingress);
                if !view.services.contains_key(&Frontend { address: Some(at), port: key }) {
                    prop_assert_eq!(said(&judged, Direction::Egress, at, key), said(&view, Direction::Egress, at, key));
                }
            }
        }
    }
}

#[test]
fn a_service_without_backends_is_denied_unless_nothing_is() {
    let frontend: Frontend = FRONTENDS[0].parse().unwrap();
    let service = Service { namespace: "n".into(), name: "s".into(), backends: [].into() };
    for (base, expected) in [(0, Verdict::Deny), (2, Verdict::Deny), (1, Verdict::Allow)] {
        let set = Set { direction: Direction::Egress, base: row(base), rows: BTreeMap::new() };
        let view = NodeView {
            sets: [(set_id(Direction::Egress), set)].into(),
            services: [(frontend, service.clone())].into(),
            ..NodeView::default()
        };
        let judged = conservative(&view);
        let row = &judged.sets[&set_id(Direction::Egress)];
        let atom = judged.addresses[&frontend.address.unwrap()];
        assert_eq!(row.rows.get(&atom).unwrap_or(&row.base).act(frontend.port).verdict, expected, "{base}");
    }
}

#[test]
fn frontends_are_known_before_a_word_judges_and_forgotten_after_the_last_did() {
    let frontend: Frontend = FRONTENDS[0].parse().unwrap();
    let service = Service { namespace: "n".into(), name: "s".into(), backends: [].into() };
    let set = Set { direction: Direction::Egress, base: row(0), rows: BTreeMap::new() };
    let mut view = NodeView {
        pods: [(
            pod(),
            Pod {
                namespace: "n".into(),
                name: "p".into(),
                addresses: vec![],
                config_hash: None,
                ingress: None,
                egress: Some(set_id(Direction::Egress)),
                denies_logged: false,
            },
        )]
        .into(),
        sets: [(set_id(Direction::Egress), set)].into(),
        attributions: [policies(&["a", "b"])].map(|list| (list.id(), list.into())).into(),
        services: [(frontend, service)].into(),
        ..NodeView::default()
    };
    let found = Found { namespace: 1, nsid: 0, pod: Some(pod()), addresses: vec![] };
    let (found, misfits) = ([(10, found)].into(), BTreeSet::new());
    let (mut kernel, mut numbers) = (Kernel::default(), Numbers::default());
    let mut take = |view: &NodeView| -> Vec<Step> {
        let wanted = Wanted { view, found: &found, unknown: Access::Closed, misfits: &misfits };
        let steps = plan(wanted, &kernel, &mut numbers).unwrap();
        steps.iter().for_each(|step| kernel.apply(step));
        steps
    };
    assert_eq!(take(&view).first(), Some(&Step::PutFrontend(frontend)));
    assert_eq!(take(&view), []);
    view.pods.values_mut().for_each(|pod| pod.egress = None);
    (view.sets, view.services) = (BTreeMap::new(), BTreeMap::new());
    assert_eq!(take(&view).last(), Some(&Step::RemoveFrontend(frontend)));
    assert_eq!(take(&view), []);
}
