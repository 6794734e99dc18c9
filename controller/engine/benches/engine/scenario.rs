//! The clusters.

use std::net::{IpAddr, Ipv4Addr};

use durward_engine::object::{Event, Peer, Pod, Policy, Port, Protocol, Rules, Spec};
use durward_engine::sample::*;
use durward_engine::{Detail, Engine, Limits};
use durward_proto::{Direction, PodUid};

use Protocol::{Tcp, Udp};

/// Objects by number, made when they are asked for.
pub(crate) struct Scenario {
    pub(crate) nodes: usize,
    pub(crate) namespaces: usize,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    pod: fn(usize) -> Pod,
    policy: fn(usize) -> Policy,
}

/// How many namespaces the first scenario has, to see how time and memory grow.
pub(crate) const GROWING: [usize; 4] = [25_000 / 16, 25_000 / 4, 25_000, 50_000];

/// All of them, by name.
pub(crate) fn all() -> [(&'static str, Scenario); 5] {
    [("small", small(25_000)), ("large", large()), ("one", one()), ("per_pod", per_pod()), ("huge", huge())]
}

impl Scenario {
    /// An engine that heard of these events, and to which all nodes are subscribed.
    pub(crate) fn filled(&self, events: impl IntoIterator<Item = Event>) -> Engine {
        let mut engine = Engine::new(Limits::default());
        engine.apply(events);
        for n in 0..self.nodes {
            engine.subscribe_with(&node(n), Detail::Frontends);
        }
        engine
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = Event> + use<> {
        let (pod, policy) = (self.pod, self.policy);
        let namespaces = (0..self.namespaces).map(space).map(|name| {
            let team = format!("team=t{}", name[1..].parse::<usize>().unwrap_or(0) / 10);
            Event::Namespace(namespace(&name, &team))
        });
        let policies = (0..self.policies).map(move |n| Event::Policy(policy(n)));
        namespaces.chain(policies).chain((0..self.pods).map(move |n| Event::Pod(pod(n))))
    }

    pub(crate) fn pod(&self, n: usize) -> Pod {
        let pod = self.pod;
        pod(n)
    }

    pub(crate) fn policy(&self, n: usize) -> Policy {
        let policy = self.policy;
        policy(n)
    }
}

pub(crate) fn node(n: usize) -> String {
    format!("node-{n}")
}

pub(crate) fn space(n: usize) -> String {
    format!("n{n}")
}

pub(crate) fn plain(space: usize, n: usize, nodes: usize, labels: &str) -> Pod {
    let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + n as u32));
    let pod = pod(&format!("n{space}/pod-{n}"), &node(n % nodes), labels, &[]);
    Pod { uid: PodUid::from(&*uid(n)), addresses: vec![address], ..pod }
}

/// A UUID, in no order, as the API server gives them.
fn uid(n: usize) -> String {
    let digits = format!("{:032x}", (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Namespaces of four pods and three policies each: default deny, and each of two labels from itself.
pub(crate) fn small(namespaces: usize) -> Scenario {
    Scenario {
        nodes: 1_000,
        namespaces,
        pods: 4 * namespaces,
        policies: 3 * namespaces,
        pod: |n| plain(n / 4, n, 1_000, &format!("app=a{}", n % 2)),
        policy: |n| own_label(n / 3, n % 3, |n| format!("app=a{}", n - 1)),
    }
}

/// Default deny for number 0, else a policy from a label to itself.
fn own_label(space: usize, n: usize, label: impl Fn(usize) -> String) -> Policy {
    let name = format!("n{space}/policy-{n}");
    if n == 0 {
        return ingress(&name, "", []);
    }
    ingress(&name, &label(n), [rule([pods(&label(n))], [])])
}

/// 100 namespaces of 1,000 pods, 101 policies each.
pub(crate) fn large() -> Scenario {
    Scenario {
        nodes: 1_000,
        namespaces: 100,
        pods: 100_000,
        policies: 10_100,
        pod: |n| plain(n / 1_000, n, 1_000, &format!("app=a{}", n % 100)),
        policy: |n| own_label(n / 101, n % 101, |n| format!("app=a{}", n - 1)),
    }
}

/// One namespace; each of 10,000 policies is from all of 10,000 pods to all.
pub(crate) fn one() -> Scenario {
    Scenario {
        nodes: 100,
        namespaces: 1,
        pods: 10_000,
        policies: 10_000,
        pod: |n| plain(0, n, 100, "app=a"),
        policy: |n| ingress(&format!("n0/policy-{n}"), "", [rule([pods("")], [])]),
    }
}

/// One namespace; each of 10,000 pods has a policy of its own, which permits one other pod.
pub(crate) fn per_pod() -> Scenario {
    Scenario {
        nodes: 100,
        namespaces: 1,
        pods: 10_000,
        policies: 10_000,
        pod: |n| plain(0, n, 100, &format!("app=a{n}")),
        policy: |n| {
            let other = format!("app=a{}", (n + 1) % 10_000);
            ingress(&format!("n0/policy-{n}"), &format!("app=a{n}"), [rule([pods(&other)], [])])
        },
    }
}

const HUGE_NODES: usize = 7_500;

/// 25,000 namespaces in teams of ten, 8 pods and 4 policies each. Namespace 0 has the cluster's DNS and
/// namespace 1 its monitoring.
pub(crate) fn huge() -> Scenario {
    Scenario {
        nodes: HUGE_NODES,
        namespaces: 25_000,
        pods: 200_000,
        policies: 100_000,
        pod: |n| {
            // Pods of a namespace are on different nodes.
            let mut pod =
                plain(n / 8, n, HUGE_NODES, &format!("app={},tier=t{}", ["web", "db"][n % 2], n / 2 % 2));
            pod.ports = vec![port("http", Tcp, 8080), port("metrics", Tcp, 9000 + (n % 2) as u16)];
            pod
        },
        policy: |n| huge_policy(n / 4, n % 4),
    }
}

fn huge_policy(space: usize, n: usize) -> Policy {
    let name = format!("n{space}/policy-{n}");
    let team = format!("team=t{}", space / 10);
    match n {
        // All are isolated; names are resolved, the namespace's own pods are reached, some reach outside.
        0 => {
            let dns = rule([named_space(0, "app=web")], [range(Udp, 53, 53), tcp(53)]);
            let mut egress = vec![dns, rule([pods("")], [])];
            if space.is_multiple_of(10) {
                egress.push(rule([block("0.0.0.0/0", &["10.0.0.0/8"])], [tcp(443)]));
            }
            let types = Direction::BOTH.to_vec();
            policy(&name, Rules { types, ingress: Some(vec![]), egress: Some(egress), ..Rules::default() })
        }
        1 => ingress(&name, "app=db", [rule([pods("app=web")], [tcp(5432)])]),
        2 => ingress(
            &name,
            "app=web",
            [rule([pods_in(&team, "app=web"), pods("tier=t0")], [named(Tcp, "http")])],
        ),
        _ => ingress(&name, "", [rule([named_space(1, "app=db")], [named(Tcp, "metrics")])]),
    }
}

fn named_space(space: usize, labels: &str) -> Peer {
    pods_in(&format!("kubernetes.io/metadata.name=n{space}"), labels)
}

/// The same policy with another port.
pub(crate) fn with_port(mut policy: Policy, number: u16) -> Policy {
    if let Spec::Readable(rules) = &mut policy.spec {
        for rule in rules.ingress.iter_mut().chain(&mut rules.egress).flatten() {
            rule.ports = vec![Port { ..tcp(number) }];
        }
    }
    policy
}
