//! What nodes are told of Services, against what the objects say, after any history.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use durward_engine::object::{EndpointSlice, Event, Key, NamedPort, Protocol, Service, ServicePort};
use durward_engine::sample::{address, egress, key, namespace, pod, port as target};
use durward_engine::{Detail, Engine, LeftOut, Limits, Outcome, Sizes};
use durward_proto::{Backend, Frontend, NodeView, PortKey, Service as Told};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const DETAILS: [(&str, Detail); 2] = [("exact", Detail::Frontends), ("conservative", Detail::Backends)];

fn port(name: &str, protocol: Protocol, number: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), protocol, number, node_port }
}

fn slice(name: &str, service: &str, addresses: &[&str], ports: Vec<NamedPort>) -> EndpointSlice {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    EndpointSlice { key: key(name), service: service.into(), addresses, ports }
}

/// Nodes `exact` and `conservative`, each with a pod that is isolated on egress.
fn isolated() -> Engine {
    isolated_with(Limits::default().frontends_per_node)
}

/// Those, with room for so many frontends.
fn isolated_with(room: usize) -> Engine {
    let mut engine = Engine::new(Limits { frontends_per_node: room, ..Limits::default() });
    engine.apply([Event::Namespace(namespace("shop", ""))]);
    for (node, _) in DETAILS {
        engine.apply([Event::Pod(pod(&format!("shop/{node}"), node, "app=a", &["10.0.0.9"]))]);
    }
    engine.apply([closed(true)]);
    engine
}

/// The policy that isolates all pods on egress is there, or is gone.
fn closed(there: bool) -> Event {
    let key = key("shop/closed");
    if there { Event::Policy(egress("shop/closed", "", [])) } else { Event::PolicyGone(key) }
}

fn view(engine: &mut Engine, node: &str, detail: Detail) -> NodeView {
    NodeView::default().patched(engine.subscribe_with(node, detail)).unwrap()
}

fn told(engine: &mut Engine, node: &str, detail: Detail) -> Vec<(String, String, Vec<String>)> {
    let view = view(engine, node, detail);
    let backends = |told: &Told| {
        told.backends.iter().map(|backend| format!("{} {}", backend.address, backend.port)).collect()
    };
    let services = view.services.iter();
    services
        .map(|(at, told)| (at.to_string(), format!("{}/{}", told.namespace, told.name), backends(told)))
        .collect()
}

#[test]
fn a_service_is_told_by_its_frontends_and_to_who_asks_by_its_backends_of_the_same_family() {
    let mut engine = isolated();
    let web = Service {
        key: key("shop/web"),
        addresses: vec![address("10.96.0.1"), address("fd00::1")],
        ports: vec![port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)],
    };
    engine.apply([
        Event::EndpointSlice(slice(
            "shop/s4",
            "web",
            &["10.0.0.2", "10.0.0.1"],
            vec![target("http", Protocol::Tcp, 8080)],
        )),
        Event::EndpointSlice(slice(
            "shop/s6",
            "web",
            &["fd01::1"],
            vec![target("http", Protocol::Tcp, 8081)],
        )),
        // Another protocol, another Service, another namespace.
        Event::EndpointSlice(slice("shop/s7", "web", &["10.0.0.7"], vec![target("http", Protocol::Udp, 1)])),
        Event::EndpointSlice(slice(
            "shop/s8",
            "other",
            &["10.0.0.8"],
            vec![target("http", Protocol::Tcp, 2)],
        )),
        Event::EndpointSlice(slice("else/s9", "web", &["10.0.0.9"], vec![target("http", Protocol::Tcp, 3)])),
        Event::Service(web),
    ]);
    let name = || "shop/web".to_owned();
    let entry = |at: &str, backends: &[&str]| {
        (at.to_owned(), name(), backends.iter().map(|&text| text.to_owned()).collect())
    };
    let exact = ["6 *:30080", "6 10.96.0.1:80", "17 10.96.0.1:53", "6 [fd00::1]:80", "17 [fd00::1]:53"];
    assert_eq!(told(&mut engine, "exact", Detail::Frontends), exact.map(|at| entry(at, &[])));
    let all = [
        entry("6 *:30080", &["10.0.0.1 8080", "10.0.0.2 8080", "fd01::1 8081"]),
        entry("6 10.96.0.1:80", &["10.0.0.1 8080", "10.0.0.2 8080"]),
        entry("17 10.96.0.1:53", &[]),
        entry("6 [fd00::1]:80", &["fd01::1 8081"]),
        entry("17 [fd00::1]:53", &[]),
    ];
    assert_eq!(told(&mut engine, "conservative", Detail::Backends), all);
}

#[test]
fn a_node_without_an_isolated_pod_is_told_of_no_service() {
    let mut engine = isolated();
    let service = Service {
        key: key("shop/web"),
        addresses: vec![address("10.96.0.1")],
        ports: vec![port("", Protocol::Tcp, 80, None)],
    };
    let mut view = engine.subscribe("exact");
    let mut apply = |view: &mut NodeView, events: Vec<Event>| {
        let patch = engine.apply(events).patches.remove("exact").unwrap_or_default();
        view.patch(patch).unwrap();
        view.services.len()
    };
    assert_eq!(apply(&mut view, vec![Event::Service(service.clone())]), 1);
    assert_eq!(apply(&mut view, vec![closed(false)]), 0);
    assert_eq!(apply(&mut view, vec![Event::ServiceGone(key("shop/web"))]), 0);
    // Isolated and served in one batch, and the reverse.
    assert_eq!(apply(&mut view, vec![closed(true), Event::Service(service)]), 1);
    assert_eq!(apply(&mut view, vec![closed(false), Event::ServiceGone(key("shop/web"))]), 0);
}

#[test]
fn nodes_that_come_to_need_all_services_share_what_they_are_told() {
    let service = |name: &str, at: &str| {
        let ports = vec![port("", Protocol::Tcp, 80, None)];
        Event::Service(Service { key: key(name), addresses: vec![address(at)], ports })
    };
    let mut engine = isolated();
    for node in ["one", "other", "later"] {
        engine.apply([Event::Pod(pod(&format!("shop/{node}"), node, "app=a", &["10.0.0.9"]))]);
    }
    engine.apply([service("shop/web", "10.96.0.1"), closed(false)]);
    let nodes =
        [("exact", Detail::Frontends), ("one", Detail::Frontends), ("conservative", Detail::Backends)];
    let _ = nodes.map(|(node, detail)| engine.subscribe_with(node, detail));
    let all = |patch: &durward_proto::Patch| patch.services.all.clone().unwrap();
    let told = engine.apply([closed(true)]).patches;
    let [exact, one, conservative] = nodes.map(|(node, _)| all(&told[node]));
    assert!(Arc::ptr_eq(&exact, &one) && !Arc::ptr_eq(&exact, &conservative));
    let later = all(&engine.subscribe_with("later", Detail::Frontends));
    assert!(Arc::ptr_eq(&exact, &later));
    // One frontend is told by itself, very many are not.
    let told = engine.apply([service("shop/db", "10.96.0.2")]).patches;
    assert_eq!((told["one"].services.len(), &told["one"].services.all), (1, &None));
    assert_eq!(all(&engine.subscribe_with("other", Detail::Frontends)).services().len(), 2);
    let ports = (1..2_000).map(|number| port("x", Protocol::Tcp, number, None)).collect();
    let large = Service { key: key("shop/large"), addresses: vec![address("10.96.0.3")], ports };
    let told = engine.apply([Event::Service(large)]).patches;
    let [exact, one, conservative] = nodes.map(|(node, _)| all(&told[node]));
    assert!(Arc::ptr_eq(&exact, &one) && !Arc::ptr_eq(&exact, &conservative));
    assert_eq!(exact.services().len(), 2 + 1_999);
    // Backends concern one who knows them only, and leave what others share as it is.
    let target = vec![target("x", Protocol::Tcp, 8080)];
    let told = engine.apply([Event::EndpointSlice(slice("shop/s", "large", &["10.0.0.1"], target))]).patches;
    let conservative = all(&told["conservative"]);
    assert_eq!(
        (told.len(), conservative.services().values().filter(|told| told.backends.len() == 1).count()),
        (1, 1_999)
    );
    assert!(Arc::ptr_eq(&exact, &all(&engine.subscribe_with("later", Detail::Frontends))));
    let told = engine.apply([Event::ServiceGone(key("shop/large"))]).patches;
    assert_eq!(all(&told["exact"]).services().len(), 2);
}

#[test]
fn who_judges_after_translation_does_not_hear_of_backends() {
    let mut engine = isolated();
    engine.subscribe("exact");
    engine.subscribe_with("conservative", Detail::Backends);
    let service = Service {
        key: key("shop/web"),
        addresses: vec![address("10.96.0.1")],
        ports: vec![port("", Protocol::Tcp, 80, None)],
    };
    assert_eq!(engine.apply([Event::Service(service)]).patches.len(), 2);
    let slice = slice("shop/s", "web", &["10.0.0.1"], vec![target("", Protocol::Tcp, 8080)]);
    let patches = engine.apply([Event::EndpointSlice(slice)]).patches;
    assert_eq!(patches.keys().map(|node| &**node).collect::<Vec<_>>(), ["conservative"]);
}

#[test]
fn two_services_with_one_frontend_are_told_as_one_that_may_end_at_either() {
    let mut engine = isolated();
    for name in ["b", "a"] {
        engine.apply([
            Event::Service(Service {
                key: key(&format!("shop/{name}")),
                addresses: vec![address("192.0.2.1")],
                ports: vec![port("", Protocol::Tcp, 80, None)],
            }),
            Event::EndpointSlice(slice(
                &format!("shop/{name}-1"),
                name,
                &[if name == "a" { "10.0.0.1" } else { "10.0.0.2" }],
                vec![target("", Protocol::Tcp, 80)],
            )),
        ]);
    }
    let both = vec!["10.0.0.1 80".to_owned(), "10.0.0.2 80".to_owned()];
    let expected = ("6 192.0.2.1:80".to_owned(), "shop/a".to_owned(), both);
    assert_eq!(told(&mut engine, "conservative", Detail::Backends), [expected]);
    engine.apply([Event::ServiceGone(key("shop/a"))]);
    let expected = ("6 192.0.2.1:80".to_owned(), "shop/b".to_owned(), vec!["10.0.0.2 80".to_owned()]);
    assert_eq!(told(&mut engine, "conservative", Detail::Backends), [expected]);
}

#[test]
fn who_has_very_many_frontends_leaves_out_its_own_and_is_told_so() {
    let mut engine = isolated_with(10);
    let mut view = engine.subscribe("exact");
    let service = |name: &str, at: &str, ports: u16| {
        let ports = (1..=ports).map(|number| port("x", Protocol::Tcp, number, None)).collect();
        Event::Service(Service { key: key(name), addresses: vec![address(at)], ports })
    };
    let mut apply = |events: &[Event]| {
        let Outcome { mut patches, news } = engine.apply(events.to_vec());
        view.patch(patches.remove("exact").unwrap_or_default()).unwrap();
        assert_eq!(engine.sizes().frontends, view.services.len() + engine.sizes().frontends_left_out);
        let at = |addresses: [&str; 2]| {
            let at = addresses.map(address);
            let is_one = |frontend: &&Frontend| frontend.address.is_some_and(|address| at.contains(&address));
            view.services.keys().filter(is_one).count()
        };
        let left_out =
            news.left_out.into_iter().map(|(namespace, left_out)| (namespace.to_string(), left_out));
        (at(["10.96.0.1", "10.96.0.4"]), at(["10.96.0.2", "10.96.0.3"]), left_out.collect::<Vec<_>>())
    };
    let news = |left_out: Option<LeftOut>| vec![("hostile".to_owned(), left_out)];
    let (web, db) = (service("shop/web", "10.96.0.1", 4), service("shop/db", "10.96.0.4", 1));
    assert_eq!(apply(&[web, service("hostile/a", "10.96.0.3", 2)]), (4, 2, vec![]));
    let first = "6 10.96.0.2:7".parse().unwrap();
    let left_out = LeftOut { service: "b".into(), first, count: 14, limit: 10 };
    let many = [service("hostile/a", "10.96.0.2", 1), service("hostile/b", "10.96.0.2", 20)];
    assert_eq!(apply(&many), (4, 6, news(Some(left_out.clone()))));
    for part in ["room for 10 addresses and ports", "14 are left out, from 6 10.96.0.2:7 on"] {
        let note = left_out.to_string();
        assert!(note.contains(part), "{note:?} does not say {part:?}");
    }
    // Of others there are more: that is no news.
    assert_eq!(apply(&[db]), (5, 5, vec![]));
    // It claims what others have: that takes its own room, not theirs.
    assert_eq!(apply(&[service("hostile/0", "10.96.0.1", 4)]), (5, 1, vec![]));
    let gone = ["hostile/0", "shop/db"].map(|name| Event::ServiceGone(key(name)));
    assert_eq!(apply(&gone), (4, 6, vec![]));
    assert_eq!(apply(&[service("hostile/b", "10.96.0.2", 6)]), (4, 6, news(None)));
}

/// Few names, addresses and ports, so that they meet.
fn service() -> impl Strategy<Value = Event> {
    let names = select(vec!["shop/a", "shop/b", "else/a"]);
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    let one = (select(vec!["", "x"]), protocol, 1..3_u16, prop::option::of(30_001..30_003_u16));
    let ports = vec(one, 1..3).prop_map(|ports| {
        ports.into_iter().map(|(name, protocol, number, node)| port(name, protocol, number, node)).collect()
    });
    let addresses = subsequence(vec!["10.96.0.1", "10.96.0.2", "fd00::1"], 0..3);
    (names, addresses, ports).prop_map(|(name, addresses, ports)| {
        let addresses = addresses.into_iter().map(address).collect();
        Event::Service(Service { key: key(name), addresses, ports })
    })
}

fn endpoint_slice() -> impl Strategy<Value = Event> {
    let name = select(vec!["shop/1", "shop/2", "else/1"]);
    let ports =
        vec((select(vec!["", "x"]), select(vec![Protocol::Tcp, Protocol::Udp]), 8000..8002_u16), 0..3);
    let addresses = subsequence(vec!["10.0.0.1", "10.0.0.2", "fd01::1"], 0..3);
    (name, select(vec!["a", "b"]), addresses, ports).prop_map(|(name, service, addresses, ports)| {
        let ports =
            ports.into_iter().map(|(name, protocol, number)| target(name, protocol, number)).collect();
        Event::EndpointSlice(slice(name, service, &addresses, ports))
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => service(),
        1 => select(vec!["shop/a", "shop/b", "else/a"]).prop_map(|name| Event::ServiceGone(key(name))),
        3 => endpoint_slice(),
        1 => select(vec!["shop/1", "shop/2", "else/1"]).prop_map(|name| Event::EndpointSliceGone(key(name))),
        1 => any::<bool>().prop_map(closed),
    ]
}

/// The frontends that there is room for: of each namespace as many as of any other that has so many.
fn with_room(all: &BTreeMap<Arc<str>, BTreeSet<Frontend>>, room: usize) -> BTreeSet<Frontend> {
    let first = |level: usize| all.values().flat_map(move |of| of.iter().take(level));
    let level = (0..=room).rfind(|&level| first(level).count() <= room).unwrap_or(0);
    first(level).copied().collect()
}

/// What the objects say, plainly.
fn meant(
    services: &BTreeMap<Key, Service>,
    slices: &BTreeMap<Key, EndpointSlice>,
    room: usize,
) -> BTreeMap<Frontend, Told> {
    let mut meant = BTreeMap::<Frontend, (Key, BTreeSet<Backend>)>::new();
    let mut all = BTreeMap::<Arc<str>, BTreeSet<Frontend>>::new();
    for (key, service) in services {
        for port in &service.ports {
            let number = |number| PortKey::new(port.protocol.number(), number);
            let own =
                service.addresses.iter().map(|&at| Frontend { address: Some(at), port: number(port.number) });
            let everywhere = port.node_port.map(|node| Frontend { address: None, port: number(node) });
            for frontend in own.chain(everywhere) {
                all.entry(key.namespace.clone()).or_default().insert(frontend);
                let (_, backends) = meant.entry(frontend).or_insert_with(|| (key.clone(), BTreeSet::new()));
                for slice in slices.values().filter(|slice| slice.service_key() == *key) {
                    for target in &slice.ports {
                        for &address in &slice.addresses {
                            let family = frontend.address.is_none_or(|at| at.is_ipv4() == address.is_ipv4());
                            if family && (&target.name, target.protocol) == (&port.name, port.protocol) {
                                backends.insert(Backend { address, port: target.number });
                            }
                        }
                    }
                }
            }
        }
    }
    let told = |(key, backends): (Key, BTreeSet<Backend>)| Told {
        namespace: key.namespace,
        name: key.name,
        backends: backends.into_iter().collect(),
    };
    let has_room = with_room(&all, room);
    meant.retain(|frontend, _| has_room.contains(frontend));
    meant.into_iter().map(|(frontend, one)| (frontend, told(one))).collect()
}

proptest! {
    #[test]
    fn whatever_happens_nodes_know_what_the_objects_say(
        batches in vec(vec(event(), 1..4), 1..12),
        room in select(vec![0, 1, 3, 5, 65_536]),
    ) {
        let mut engine = isolated_with(room);
        let (mut services, mut slices, mut needs) = (BTreeMap::new(), BTreeMap::new(), true);
        let mut views: BTreeMap<Arc<str>, NodeView> =
            DETAILS.map(|(node, detail)| (node.into(), view(&mut engine, node, detail))).into();
        for batch in batches {
            for event in &batch {
                match event.clone() {
                    Event::Service(service) => drop(services.insert(service.key.clone(), service)),
                    Event::ServiceGone(key) => drop(services.remove(&key)),
                    Event::EndpointSlice(slice) => drop(slices.insert(slice.key.clone(), slice)),
                    Event::EndpointSliceGone(key) => drop(slices.remove(&key)),
                    Event::Policy(_) => needs = true,
                    Event::PolicyGone(_) => needs = false,
                    _ => {}
                }
            }
            for (node, patch) in engine.apply(batch).patches {
                prop_assert!(!patch.is_empty());
                views.get_mut(&node).unwrap().patch(patch).unwrap();
            }
            let all = if needs { meant(&services, &slices, room) } else { BTreeMap::new() };
            let names = all.iter().map(|(&at, told)| (at, Told { backends: Arc::default(), ..told.clone() }));
            prop_assert_eq!(&views["exact"].services, &names.collect::<BTreeMap<_, _>>());
            prop_assert_eq!(&views["conservative"].services, &all);
        }
        for (node, _) in DETAILS {
            engine.unsubscribe(node);
            engine.apply([Event::PodGone(key(&format!("shop/{node}")))]);
        }
        engine.apply([closed(false), Event::NamespaceGone("shop".into())]);
        engine.apply(services.into_keys().map(Event::ServiceGone));
        engine.apply(slices.into_keys().map(Event::EndpointSliceGone));
        prop_assert_eq!(engine.sizes(), Sizes::default());
    }
}
