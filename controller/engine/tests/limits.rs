//! A node that would have to hold too much closes the pods of the namespaces that need most.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use durward_engine::object::{Event, Key, Policy, Protocol};
use durward_engine::sample::*;
use durward_engine::{Engine, Fault, Limits, Outcome, Sizes};
use durward_proto::{Act, Direction, NodeView, PodUid, PortKey, Verdict};

/// How many pods of `evil` there are: all combinations of four labels.
const PODS: usize = 16;

fn evil_address(n: usize) -> String {
    format!("10.0.1.{n}")
}

/// Two namespaces with pods on `north`; `evil` has none on `south`.
fn pods_of_both() -> impl Iterator<Item = Event> {
    let bits = |n: usize| (0..4).filter(move |bit| n >> bit & 1 == 1).map(|bit| format!("b{bit}=x"));
    let evil = (0..PODS).map(move |n| {
        let node = if n < 2 { "north" } else { "elsewhere" };
        pod(&format!("evil/p{n}"), node, &bits(n).collect::<Vec<_>>().join(","), &[&evil_address(n)])
    });
    let good = (0..10).map(|n| {
        let node = ["north", "south"][n % 2];
        pod(&format!("good/p{n}"), node, &format!("app=a{}", n / 2), &[&format!("10.0.2.{n}")])
    });
    let others = (0..10).map(|n| {
        let space = ["others", "further"][n / 6];
        pod(&format!("{space}/p{n}"), "elsewhere", "", &[&format!("10.0.3.{n}")])
    });
    let namespaces = [("evil", "near=x"), ("good", "near=x"), ("others", "near=y"), ("further", "")];
    let namespaces = namespaces.map(|(name, labels)| Event::Namespace(namespace(name, labels)));
    namespaces.into_iter().chain(evil.chain(good).chain(others).map(Event::Pod))
}

/// Each pod of `good` has a set of its own, and all of them hear from all pods of both.
fn good_policies() -> Vec<Policy> {
    let from = [rule([pods_in("near=x", "")], [tcp(80)]), rule([pods("app=a1")], [])];
    let own = (0..5).map(|n| {
        let app = format!("app=a{n}");
        ingress(&format!("good/own-{n}"), &app, [rule([pods(&app)], [tcp(90 + n)])])
    });
    own.chain([
        ingress("good/all", "", from),
        egress("good/out", "", [rule([block("10.9.0.0/16", &[])], [])]),
    ])
    .collect()
}

/// Selects the pods by each of their labels: every one of them is an atom.
fn crossing() -> Vec<Policy> {
    (0..4)
        .map(|bit| ingress(&format!("evil/bit-{bit}"), "", [rule([pods(&format!("b{bit}"))], [])]))
        .collect()
}

/// One permits some, and one everybody, very many ports that are no range.
fn scattered() -> Vec<Policy> {
    let every_other = |from: u16| (0..60).map(move |n| tcp(from + 2 * n));
    vec![
        ingress("evil/scattered", "", [rule([pods("b0")], every_other(1000))]),
        ingress("evil/open", "", [rule([], every_other(2000))]),
    ]
}

/// A limit, policies that are over it, the policy that mentions most, and what the outcome says of it.
struct Case {
    limits: Limits,
    policies: Vec<Policy>,
    loudest: &'static str,
    what: &'static str,
    limit: usize,
}

fn cases() -> Vec<Case> {
    let few = Limits::default();
    let blocks = |n: usize| block(&format!("10.1.{n}.0/24"), &[&format!("10.1.{n}.128/25")]);
    let nested = |length: u8| block(&format!("11.0.0.0/{length}"), &[]);
    vec![
        Case {
            limits: Limits { addresses_per_node: 34, ..few },
            policies: vec![
                ingress("evil/near", "", [rule([pods_in("near", "")], [])]),
                ingress("evil/further", "", [rule([pods_in("!near", "")], [])]),
            ],
            loudest: "near",
            what: "addresses of pods",
            limit: 34,
        },
        Case {
            limits: Limits { blocks_per_node: 5, ..few },
            policies: vec![
                egress("evil/few", "", [rule([blocks(0)], [])]),
                egress("evil/many", "b0", [rule([blocks(1), blocks(2)], [])]),
            ],
            loudest: "many",
            what: "prefixes of blocks",
            limit: 5,
        },
        Case {
            limits: Limits { atoms_per_node: 12, ..few },
            policies: crossing(),
            loudest: "bit-0",
            what: "kinds of addresses",
            limit: 12,
        },
        Case {
            // The one set of `evil` has 15. The five of `good` would have 30 without that, but with it each
            // of them has one for each of the pods of `evil` and more: not they are too many.
            limits: Limits { rows_per_node: 60, ..few },
            policies: crossing(),
            loudest: "bit-0",
            what: "rows",
            limit: 60,
        },
        Case {
            limits: Limits { matches_per_node: 40, ..few },
            policies: crossing(),
            loudest: "bit-0",
            what: "matches of peers",
            limit: 40,
        },
        Case {
            // Each block is within all that are larger.
            limits: Limits { matches_per_node: 30, ..few },
            policies: vec![
                egress("evil/few", "", [rule((13..16).map(nested), [])]),
                egress("evil/many", "", [rule((8..13).map(nested), [])]),
            ],
            loudest: "many",
            what: "matches of blocks",
            limit: 30,
        },
        Case {
            limits: Limits { ports_per_node: 150, ..few },
            policies: scattered(),
            loudest: "scattered",
            what: "ports of rules",
            limit: 150,
        },
        Case {
            limits: Limits { pages_per_node: 3, ..few },
            policies: scattered(),
            loudest: "scattered",
            what: "pages of ranges of ports",
            limit: 3,
        },
        Case {
            limits: Limits { mentions_per_node: 100, ..few },
            policies: crossing(),
            loudest: "bit-0",
            what: "mentions of policies",
            limit: 100,
        },
    ]
}

/// Nodes as they hear of changes, and what is known of policies.
#[derive(Default)]
struct Told {
    views: BTreeMap<Arc<str>, NodeView>,
    faults: BTreeMap<Key, Fault>,
}

impl Told {
    fn hear(&mut self, Outcome { patches, news }: Outcome) -> BTreeSet<Arc<str>> {
        let nodes = patches.keys().cloned().collect();
        for (node, patch) in patches {
            assert!(!patch.is_empty() && !patch.merged, "{node}: {patch:?}");
            let view = self.views[&node].patched(patch).expect("a patch for this view");
            assert_eq!(view.check(), Ok(()));
            self.views.insert(node, view);
        }
        for (key, fault) in news.faults {
            match fault {
                Some(fault) => drop(self.faults.insert(key, fault)),
                None => assert!(self.faults.remove(&key).is_some(), "{key} had no fault"),
            }
        }
        nodes
    }

    fn subscribe(&mut self, engine: &mut Engine, node: &str) {
        let view = engine.subscribe(node);
        assert_eq!(view.check(), Ok(()));
        self.views.insert(node.into(), view);
    }
}

fn events(policies: &[Policy]) -> impl Iterator<Item = Event> {
    policies.iter().cloned().map(Event::Policy)
}

fn gone(policies: &[Policy]) -> impl Iterator<Item = Event> {
    policies.iter().map(|policy| Event::PolicyGone(policy.key.clone()))
}

/// An engine that knows all pods, the policies of `good` and these.
fn filled(limits: Limits, policies: &[Policy]) -> Engine {
    let mut engine = Engine::new(limits);
    engine.apply(pods_of_both().chain(events(&good_policies())).chain(events(policies)));
    engine
}

/// What a view says of a pod: for some addresses and ports the verdict, and which policies.
fn said(view: &NodeView, pod: &str) -> Vec<Option<(Verdict, Vec<String>)>> {
    let evil = (0..PODS).map(|n| address(&evil_address(n)));
    let others = ["10.0.2.1", "10.0.2.2", "10.0.2.4", "10.1.0.1", "10.1.1.200", "10.9.1.1", "1.2.3.4"];
    let remotes: Vec<IpAddr> = evil.chain(others.map(address)).collect();
    let ports = [1, 80, 91, 1000, 1001, 2000];
    let act = |direction, remote, port| {
        let Act { verdict, attribution } =
            view.act(&PodUid::from(pod), direction, remote, PortKey::new(Protocol::Tcp.number(), port))?;
        let list = view.attribution(attribution).expect("a whole list");
        Some((verdict, list.0.iter().map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect()))
    };
    let of =
        |direction| remotes.iter().flat_map(move |&remote| ports.map(|port| act(direction, remote, port)));
    Direction::BOTH.into_iter().flat_map(of).collect()
}

/// That the pods of `evil` are denied everything where they are isolated, by all policies that do.
fn assert_closed(view: &NodeView, policies: &[Policy]) {
    let rules_of = |policy: &Policy| match &policy.spec {
        durward_engine::object::Spec::Readable(rules) => rules.clone(),
        spec @ durward_engine::object::Spec::Unreadable { .. } => panic!("{spec:?}"),
    };
    // p0 has no label, p1 has b0.
    for (pod, subjects) in [("evil/p0", &[""][..]), ("evil/p1", &["", "b0"])] {
        let of = |direction| -> Vec<String> {
            let isolates = |policy: &&Policy| {
                let rules = rules_of(policy);
                rules.types == [direction] && subjects.iter().any(|&text| selector(text) == rules.selector)
            };
            let mut names: Vec<_> =
                policies.iter().filter(isolates).map(|policy| policy.key.to_string()).collect();
            names.sort_unstable();
            names
        };
        let said = said(view, pod);
        let (ingress, egress) = said.split_at(said.len() / 2);
        for (direction, said) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            let names = of(direction);
            let expected = (!names.is_empty()).then_some((Verdict::Deny, names));
            assert!(
                said.iter().all(|act| *act == expected),
                "{pod} {direction:?}: {said:?}, not {expected:?}"
            );
        }
    }
}

#[test]
fn who_needs_most_is_closed_and_nobody_else_is_concerned() {
    for Case { limits, policies, loudest, what, limit } in cases() {
        println!("{what}");
        let mut engine = filled(limits, &[]);
        let mut told = Told::default();
        ["north", "south"].into_iter().for_each(|node| told.subscribe(&mut engine, node));
        let before = told.views.clone();
        let nodes = told.hear(engine.apply(events(&policies)));
        assert_eq!(nodes, ["north".into()].into(), "of {what}");
        let fault = Fault::TooManyOnNode { node: "north".into(), what, limit };
        assert_eq!(told.faults, [(Key::new("evil", loudest), fault.clone())].into());
        assert!(fault.to_string().contains(&format!("node north would need more than {limit} {what}")));
        let north = &told.views["north"];
        assert_closed(north, &policies);
        for pod in ["good/p0", "good/p2", "good/p4", "good/p6", "good/p8"] {
            assert_eq!(said(north, pod), said(&before["north"], pod), "{pod}, {what}");
        }
        // A node that subscribes finds the same.
        let fresh = filled(limits, &policies).subscribe("north");
        assert_eq!(*north, fresh, "{what}");
        // Another node's pods of the same namespaces are none of its concern: it has room for them.
        assert_eq!(told.views["south"], before["south"]);

        // It does not fit yet, and that is no news. Until something changes it is not tried again.
        assert_eq!(engine.reconsider(), Some(Outcome::default()), "{what}");
        assert_eq!(engine.reconsider(), None, "{what}");
        // Then most of it goes: what is left would fit, but is closed until it is reconsidered.
        let (rest, left): (Vec<_>, Vec<_>) =
            policies.into_iter().partition(|policy| &*policy.key.name != loudest);
        told.hear(engine.apply(gone(&rest)));
        assert_closed(&told.views["north"], &left);
        assert_eq!(told.faults.len(), 1);
        let nodes = told.hear(engine.reconsider().expect("something changed"));
        assert_eq!(nodes, ["north".into()].into());
        assert_eq!(told.views["north"], filled(limits, &left).subscribe("north"), "{what}");
        assert_eq!(told.faults, BTreeMap::new(), "{what}");
        told.hear(engine.apply(gone(&left)));
        assert_eq!(told.views, before);
        assert_eq!(told.faults, BTreeMap::new());
        assert_eq!(engine.reconsider(), None);
        ["north", "south"].into_iter().for_each(|node| engine.unsubscribe(node));
        engine.apply(gone(&good_policies()));
        engine.apply(pods_of_both().map(|event| match event {
            Event::Pod(pod) => Event::PodGone(pod.key),
            Event::Namespace(namespace) => Event::NamespaceGone(namespace.name),
            other => other,
        }));
        assert_eq!(engine.sizes(), Sizes::default());
    }
}

#[test]
fn what_comes_to_a_closed_namespace_is_closed_too() {
    let mut engine = filled(Limits { atoms_per_node: 12, ..Limits::default() }, &crossing());
    let mut told = Told::default();
    told.subscribe(&mut engine, "north");
    let mut policies = crossing();
    policies.push(egress("evil/out", "", [rule([], [])]));
    told.hear(engine.apply([Event::Policy(policies[4].clone())]));
    // It was heard of only now, for nobody hears of what a subscription changes.
    assert_eq!(told.faults.keys().cloned().collect::<Vec<_>>(), [Key::new("evil", "bit-0")]);
    assert_closed(&told.views["north"], &policies);
    told.hear(engine.apply([Event::Pod(pod("evil/new", "north", "", &["10.0.1.99"]))]));
    assert_eq!(said(&told.views["north"], "evil/new"), said(&told.views["north"], "evil/p0"));
    // Where the policy that was named is gone nothing is said of it, and another one is named in its turn.
    told.hear(engine.apply([Event::PolicyGone(Key::new("evil", "bit-0"))]));
    assert_eq!(told.faults, BTreeMap::new());
    told.hear(engine.apply([Event::Policy(ingress("evil/many", "", [rule([pods("b0"), pods("")], [])]))]));
    told.hear(engine.reconsider().expect("something changed"));
    assert_eq!(told.faults.keys().cloned().collect::<Vec<_>>(), [Key::new("evil", "many")]);
}

#[test]
fn nodes_are_reconsidered_one_after_the_other() {
    let mut engine = filled(Limits { atoms_per_node: 12, ..Limits::default() }, &[]);
    let mut told = Told::default();
    ["south", "north", "elsewhere"].into_iter().for_each(|node| told.subscribe(&mut engine, node));
    let before = told.views.clone();
    told.hear(engine.apply(events(&crossing())));
    // One name is enough.
    let node = |faults: &BTreeMap<Key, Fault>| match &faults[&Key::new("evil", "bit-0")] {
        Fault::TooManyOnNode { node, .. } => node.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!((told.faults.len(), node(&told.faults)), (1, "elsewhere".to_owned()));
    told.hear(engine.apply(gone(&crossing()[1..])));
    let [first, second] = [(); 2].map(|()| told.hear(engine.reconsider().expect("a node to try")));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first, second);
    assert_eq!(told.faults, BTreeMap::new());
    assert_eq!(engine.reconsider(), None);
    told.hear(engine.apply(gone(&crossing())));
    assert_eq!(told.views, before);
}

#[test]
fn of_namespaces_that_need_the_same_the_first_is_closed_and_of_those_that_need_too_much_all() {
    let of = |name: &str, tell_apart: usize| {
        let pods_of = (0..4).map(|n| {
            let (key, labels) = (format!("{name}/p{n}"), format!("app=a{n}"));
            Event::Pod(pod(&key, "north", &labels, &[&format!("10.{}.0.{n}", name.len())]))
        });
        let rules = (0..tell_apart).map(|n| rule([pods(&format!("app=a{n}"))], [tcp(n as u16 + 1)]));
        let policy = ingress(&format!("{name}/policy"), "", rules.collect::<Vec<_>>());
        pods_of.chain([Event::Policy(policy)]).collect::<Vec<_>>()
    };
    let closed = |limit: usize, namespaces: &[(&str, usize)]| -> Vec<String> {
        let mut engine = Engine::new(Limits { atoms_per_node: limit, ..Limits::default() });
        engine.apply(namespaces.iter().flat_map(|(name, kinds)| of(name, *kinds)));
        engine.subscribe("north");
        engine
            .reconsider()
            .unwrap_or_default()
            .news
            .faults
            .into_keys()
            .map(|key| key.namespace.to_string())
            .collect()
    };
    assert_eq!(closed(8, &[("b", 4), ("aa", 4)]), [""; 0]);
    assert_eq!(closed(7, &[("b", 4), ("aa", 4)]), ["aa"]);
    assert_eq!(closed(6, &[("b", 4), ("aa", 3)]), ["b"]);
    assert_eq!(closed(5, &[("b", 2), ("aa", 2), ("ccc", 2)]), ["aa"]);
    assert_eq!(closed(3, &[("b", 4), ("aa", 4), ("ccc", 2)]), ["aa", "b"]);
}

/// Every order of these.
fn orders<T: Clone>(things: &[T]) -> Vec<Vec<T>> {
    if things.is_empty() {
        return vec![vec![]];
    }
    let first = |at: usize| {
        let mut others = things.to_vec();
        let first = others.remove(at);
        orders(&others).into_iter().map(move |others| [vec![first.clone()], others].concat())
    };
    (0..things.len()).flat_map(first).collect()
}

#[test]
fn where_two_namespaces_are_too_much_of_two_things_what_came_first_does_not_say_who_is_closed() {
    // Together they need too many pages and too many mentions. Without either there is room for the other.
    let limits = Limits { pages_per_node: 5, mentions_per_node: 15, ..Limits::default() };
    let pods_of = |name: &str, n: u8| {
        let with = format!("n=x{n}");
        [("north", 1), ("elsewhere", 2)].map(|(node, host)| {
            let address = format!("10.{}.{n}.{host}", name.len());
            Event::Pod(pod(&format!("{name}/on-{node}-{n}"), node, &with, &[&address]))
        })
    };
    let scattered = |key: &str, n: u8| {
        let ports = (0..20).map(|port| tcp(2 * port));
        Event::Policy(ingress(key, "", [rule([pods(&format!("n=x{n}"))], ports)]))
    };
    let open = (0..14).map(|n| ingress(&format!("mentions/open-{n:02}"), "", [rule([pods("n=x0")], [])]));
    let things = [
        [pods_of("pages", 0), pods_of("pages", 1)].concat(),
        [scattered("pages/0", 0), scattered("pages/1", 1)].into(),
        pods_of("mentions", 0).into(),
        pods_of("mentions", 1).into(),
        [vec![scattered("mentions/1", 1)], open.map(Event::Policy).collect()].concat(),
    ];
    let mut fresh = Engine::new(limits);
    fresh.apply(things.concat());
    let closed = fresh.subscribe("north");
    for order in orders(&things) {
        let (mut late, mut early, mut told) = (Engine::new(limits), Engine::new(limits), Told::default());
        told.subscribe(&mut early, "north");
        for events in &order {
            late.apply(events.clone());
            told.hear(early.apply(events.clone()));
        }
        assert_eq!(late.subscribe("north"), closed, "{order:?}");
        told.hear(early.reconsider().expect("something changed"));
        assert_eq!(told.views["north"], closed, "{order:?}");
        let fault = Fault::TooManyOnNode { node: "north".into(), what: "pages of ranges of ports", limit: 5 };
        assert_eq!(told.faults, [(Key::new("pages", "0"), fault)].into());
    }
}
