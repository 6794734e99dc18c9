//! Many policies on the same pods: lists are trees, and a change of one policy is a change of one branch.

use std::collections::BTreeSet;

use durward_engine::object::{Event, Policy, Protocol};
use durward_engine::oracle::{Cluster, Packet};
use durward_engine::sample::*;
use durward_engine::{Engine, Fault, Limits};
use durward_proto::{Direction, NodeView, PortKey, encode};

const POLICIES: usize = 300;

fn pods_of_two_nodes() -> impl Iterator<Item = Event> {
    (0..12).map(|n| {
        let node = ["north", "south"][n % 2];
        let address = format!("10.0.0.{n}");
        let pod = pod(&format!("a/p{n}"), node, &format!("app=x,tier=t{}", n % 3), &[&address]);
        Event::Pod(durward_engine::object::Pod {
            ports: vec![port("http", Protocol::Tcp, 8000 + n as u16 % 2)],
            ..pod
        })
    })
}

/// Policy `n` in its `form`: of another port, of another peer, by name, for everybody.
fn policy_of(n: usize, form: usize) -> Policy {
    let (tier, number) = (format!("tier=t{}", (n + form) % 3), (n % 5 + form) as u16);
    let rules = match (n + form) % 4 {
        0 => rule([pods(&tier)], [named(Protocol::Tcp, "http")]),
        1 => rule([], [tcp(number)]),
        _ => rule([pods(&tier)], [tcp(number), range(Protocol::Udp, number, 100)]),
    };
    Policy { logged: form == 3, ..ingress(&format!("a/policy-{n}"), "app=x", [rules]) }
}

/// Every verdict with its exact list, asked of the oracle too.
fn agree(view: &NodeView, cluster: &Cluster, node: &str) {
    for subject in cluster.pods.values().filter(|pod| pod.node.as_deref() == Some(node)) {
        for (remote, port) in [("10.0.0.1", 3), ("10.0.0.5", 8000), ("10.0.0.6", 50), ("1.2.3.4", 2)] {
            for protocol in [Protocol::Tcp.number(), Protocol::Udp.number()] {
                let (direction, remote) = (Direction::Ingress, address(remote));
                let act = view.act(&subject.uid, direction, remote, PortKey::new(protocol, port));
                let said = act.map(|act| {
                    let list = view.attribution(act.attribution).expect("a whole list");
                    (act.verdict, list.0.iter().cloned().collect::<BTreeSet<_>>())
                });
                assert_eq!(said, cluster.judge(subject, &Packet { direction, remote, protocol, port }));
            }
        }
    }
}

#[test]
fn long_lists_are_exact_whatever_led_to_them() {
    let (mut engine, mut cluster) = (Engine::new(Limits::default()), Cluster::default());
    let apply = |engine: &mut Engine, cluster: &mut Cluster, events: Vec<Event>| {
        events.iter().cloned().for_each(|event| cluster.apply(event));
        engine.apply(events).patches
    };
    apply(&mut engine, &mut cluster, pods_of_two_nodes().collect());
    let mut told = engine.subscribe("north");
    // Grow over what a leaf holds and shrink below it, in steps that are no multiple of anything.
    let sizes = [3, 40, 31, 33, POLICIES, 290, 32, 150, 0, 70];
    let mut there = 0;
    for (form, size) in sizes.into_iter().enumerate() {
        let more = (there..size).map(|n| Event::Policy(policy_of(n, form % 4)));
        let fewer = (size..there).map(|n| Event::PolicyGone(policy_of(n, 0).key));
        let changed = (0..size.min(there)).step_by(7).map(|n| Event::Policy(policy_of(n, form % 4)));
        let events: Vec<_> = more.chain(fewer).chain(changed).collect();
        there = size;
        for patch in apply(&mut engine, &mut cluster, events).into_values() {
            told = told.patched(patch).expect("a patch for this view");
        }
        assert_eq!(told.check(), Ok(()));
        agree(&told, &cluster, "north");
        let mut fresh = Engine::new(Limits::default());
        fresh.apply(cluster.policies.values().cloned().map(Event::Policy));
        fresh.apply(cluster.pods.values().cloned().map(Event::Pod));
        assert_eq!(told, fresh.subscribe("north"), "{size} policies");
    }
    engine.unsubscribe("north");
    engine.apply(cluster.pods.into_keys().map(Event::PodGone));
    engine.apply(cluster.policies.into_keys().map(Event::PolicyGone));
    assert_eq!(engine.sizes(), durward_engine::Sizes::default());
}

#[test]
fn a_node_hears_of_the_branch_in_which_a_policy_changed() {
    let mut engine = Engine::new(Limits::default());
    engine.apply(pods_of_two_nodes());
    engine.apply((0..POLICIES).map(|n| Event::Policy(policy_of(n, 0))));
    let view = engine.subscribe("north");
    let whole: usize = view.attributions.len();
    let outcome = engine.apply([Event::Policy(policy_of(9, 1))]);
    let patch = &outcome.patches["north"];
    assert!(patch.attributions.put.len() * 3 < whole, "{} of {whole} lists", patch.attributions.put.len());
    let known: BTreeSet<_> = view.pods.values().filter_map(|pod| pod.ingress).collect();
    assert!(patch.pods.put.is_empty(), "the pods are moved with their sets");
    assert!(patch.moved.keys().eq(&known));
    let bytes = encode::parts(patch).size();
    let list: usize = encode::parts(&durward_proto::Patch::between(&NodeView::default(), &view)).size();
    assert!(bytes * 4 < list, "{bytes} bytes of {list}");
}

#[test]
fn pods_that_do_not_go_the_same_way_are_told_singly() {
    let mut engine = Engine::new(Limits::default());
    let on = |name: &str, with: &str, address: &str| Event::Pod(pod(name, "node", with, &[address]));
    engine.apply([on("a/x", "app=x,one=1", "10.0.0.1"), on("a/y", "app=x", "10.0.0.2")]);
    engine.apply([Event::Policy(ingress("a/all", "app=x", []))]);
    let view = engine.subscribe("node");
    // The set that judged both still judges one of them.
    let outcome = engine.apply([Event::Policy(ingress("a/some", "one", []))]);
    let patch = outcome.patches["node"].clone();
    assert!(patch.moved.is_empty());
    assert_eq!(patch.pods.put.len(), 1);
    let view = view.patched(patch).expect("a patch for this view");
    let [x, y] = ["a/x", "a/y"].map(|uid| view.pods[&uid.into()].ingress);
    assert!(x.is_some() && y.is_some() && x != y);
    // Now both go, each its own way.
    let outcome = engine.apply([Event::Policy(ingress("a/all", "app=x", [rule([], [])]))]);
    assert_eq!(outcome.patches["node"].moved.len(), 2);
}

#[test]
fn long_lists_that_are_too_much_together_name_the_policy_that_says_most() {
    let mut engine = Engine::new(Limits { steps_per_row: 60, ..Limits::default() });
    engine.apply(pods_of_two_nodes());
    engine.subscribe("north");
    let one = |n: u16| ingress(&format!("a/policy-{n}"), "app=x", [rule([], [tcp(2 * n)])]);
    let outcome = engine.apply((0..28).map(|n| Event::Policy(one(n))));
    assert!(outcome.news.faults.is_empty());
    let most = rule([], (200..207).map(tcp));
    let most = Event::Policy(ingress("a/most", "app=x", [most]));
    let outcome = engine.apply((28..90).map(|n| Event::Policy(one(n))).chain([most]));
    let fault = Fault::TooManyTogether { what: "ranges of ports", limit: 60 };
    assert_eq!(outcome.news.faults, [(key("a/most"), Some(fault))].into());
    let outcome = engine.apply((20..90).map(|n| Event::PolicyGone(key(&format!("a/policy-{n}")))));
    assert_eq!(outcome.news.faults, [(key("a/most"), None)].into());
}
