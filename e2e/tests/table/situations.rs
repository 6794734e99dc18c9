//! Situations: policies, and what they are for. Pure.

use durward_engine::object::Key;
use serde_json::{Value, json};

use crate::grid::{Grid, PolicyJson};

pub(crate) struct Situation {
    pub(crate) name: &'static str,
    pub(crate) policies: Vec<PolicyJson>,
}

pub(crate) fn pod(name: &str) -> Value {
    json!({"matchLabels": {"pod": name}})
}

pub(crate) fn ns(name: &str) -> Value {
    json!({"matchLabels": {"ns": name}})
}

/// Every pod of the namespaces that this selects.
pub(crate) fn peers(namespaces: &Value) -> Value {
    json!({"namespaceSelector": namespaces})
}

pub(crate) fn ingress(subject: Value, rules: Value) -> Value {
    json!({"podSelector": subject, "policyTypes": ["Ingress"], "ingress": rules})
}

pub(crate) fn egress(subject: Value, rules: Value) -> Value {
    json!({"podSelector": subject, "policyTypes": ["Egress"], "egress": rules})
}

/// `key` is `from` or `to`.
pub(crate) fn rule(key: &str, peers: &[Value], ports: Value) -> Value {
    json!({key: peers, "ports": ports})
}

pub(crate) fn ports(ports: &[(&str, u16)]) -> Value {
    ports.iter().map(|(protocol, port)| json!({"protocol": protocol, "port": port})).collect()
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    match operator {
        "In" | "NotIn" => json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
        _ => json!({"matchExpressions": [{"key": key, "operator": operator}]}),
    }
}

fn block(cidr: impl Into<String>, except: &[String]) -> Value {
    match except {
        [] => json!({"ipBlock": {"cidr": cidr.into()}}),
        _ => json!({"ipBlock": {"cidr": cidr.into(), "except": except}}),
    }
}

pub(crate) fn all(grid: &Grid) -> Vec<Situation> {
    let one = |(name, spec): (&'static str, Value)| Situation {
        name,
        policies: vec![(Key::new("x", "policy"), spec)],
    };
    let single = whole_policies().into_iter().chain(peer_selection()).chain(port_selection());
    let single = single.chain(egress_rules()).chain(blocks(grid));
    single.map(one).chain(several_policies()).collect()
}

type Named = (&'static str, Value);

fn whole_policies() -> Vec<Named> {
    let both = ["Ingress", "Egress"];
    vec![
        ("nothing comes in", ingress(json!({}), json!([]))),
        ("nothing goes out", egress(json!({}), json!([]))),
        ("nothing at all", json!({"podSelector": {}, "policyTypes": both})),
        ("everything comes in", ingress(json!({}), json!([{}]))),
        ("everything goes out", egress(json!({}), json!([{}]))),
        ("in closed, out open", json!({"podSelector": {}, "policyTypes": both, "egress": [{}]})),
        ("out closed, in open", json!({"podSelector": {}, "policyTypes": both, "ingress": [{}]})),
        ("no types and no rules: ingress", json!({"podSelector": pod("a")})),
        ("no types, egress rules: both", json!({"podSelector": pod("a"), "egress": [{}]})),
        (
            "types say Ingress only, egress rules do nothing",
            json!({"podSelector": pod("a"), "policyTypes": ["Ingress"], "egress": []}),
        ),
        ("subject by In", ingress(expression("pod", "In", &["a", "b"]), json!([]))),
        ("subject by NotIn", ingress(expression("pod", "NotIn", &["a"]), json!([]))),
        ("subject by Exists", ingress(expression("pod", "Exists", &[]), json!([]))),
        ("subject by DoesNotExist: nobody", ingress(expression("pod", "DoesNotExist", &[]), json!([]))),
        ("an empty from is everybody", ingress(pod("a"), json!([{"from": [], "ports": [{"port": 80}]}]))),
        (
            "an empty ports is every port",
            ingress(pod("a"), json!([{"from": [peers(&ns("y"))], "ports": []}])),
        ),
    ]
}

fn peer_selection() -> Vec<Named> {
    let from = |peers: &[Value]| ingress(pod("a"), json!([{"from": peers}]));
    let pods = |selector: Value| json!({"podSelector": selector});
    let and = |namespaces: Value, pods: Value| json!({"namespaceSelector": namespaces, "podSelector": pods});
    vec![
        ("from a pod of the namespace", from(&[pods(pod("b"))])),
        ("from all pods of the namespace", from(&[pods(json!({}))])),
        ("from another namespace", from(&[peers(&ns("y"))])),
        ("from all namespaces", from(&[peers(&json!({}))])),
        ("from a namespace and a pod in one peer", from(&[and(ns("y"), pod("b"))])),
        ("from a namespace or a pod in two peers", from(&[peers(&ns("y")), pods(pod("b"))])),
        ("from one pod name in all namespaces", from(&[and(json!({}), pod("c"))])),
        ("from namespaces by In", from(&[peers(&expression("ns", "In", &["x", "z"]))])),
        ("from namespaces by NotIn", from(&[peers(&expression("ns", "NotIn", &["x"]))])),
        ("from namespaces without a label", from(&[peers(&expression("ns", "DoesNotExist", &[]))])),
        ("from pods by NotIn, everywhere", from(&[and(json!({}), expression("pod", "NotIn", &["a", "b"]))])),
        ("from pods with a label that none has", from(&[and(json!({}), expression("role", "Exists", &[]))])),
        (
            "from a namespace by its name's label",
            from(&[peers(&json!({"matchLabels": {"kubernetes.io/metadata.name": "z"}}))]),
        ),
        (
            "from a pod by two requirements",
            from(&[and(
                json!({}),
                json!({"matchLabels": {"pod": "b"}, "matchExpressions": [{"key": "pod", "operator": "Exists"}]}),
            )]),
        ),
        ("from itself alone", from(&[pods(pod("a"))])),
    ]
}

fn port_selection() -> Vec<Named> {
    let of = |ports: Value| ingress(pod("a"), json!([{"ports": ports}]));
    let range =
        |protocol: &str, first: u16, last: u16| json!({"protocol": protocol, "port": first, "endPort": last});
    vec![
        ("one TCP port", of(ports(&[("TCP", 80)]))),
        ("one UDP port", of(ports(&[("UDP", 81)]))),
        ("a port without protocol is TCP's", of(json!([{"port": 81}]))),
        ("all TCP ports", of(json!([{"protocol": "TCP"}]))),
        ("all UDP ports", of(json!([{"protocol": "UDP"}]))),
        ("SCTP says nothing of the others", of(json!([{"protocol": "SCTP", "port": 80}]))),
        ("one port of each protocol", of(ports(&[("TCP", 80), ("UDP", 81)]))),
        ("a range over both", of(json!([range("TCP", 80, 81)]))),
        ("a range that ends at the first", of(json!([range("TCP", 1, 80)]))),
        ("a range that begins at the second", of(json!([range("UDP", 81, 65535)]))),
        ("a range of all", of(json!([range("TCP", 1, 65535)]))),
        ("adjacent ranges", of(json!([range("TCP", 79, 80), range("TCP", 81, 82)]))),
        ("overlapping ranges", of(json!([range("UDP", 1, 80), range("UDP", 80, 81)]))),
        ("a range beside both", of(json!([range("TCP", 82, 90)]))),
        ("a named port", of(json!([{"port": "serve-80-tcp"}]))),
        ("a named UDP port", of(json!([{"port": "serve-81-udp", "protocol": "UDP"}]))),
        ("a name of the other protocol", of(json!([{"port": "serve-81-udp", "protocol": "TCP"}]))),
        ("a name that nobody has", of(json!([{"port": "unheard-of"}]))),
        (
            "a port from one peer only",
            ingress(pod("a"), json!([rule("from", &[peers(&ns("y"))], ports(&[("TCP", 80)]))])),
        ),
        (
            "every protocol from one, all TCP ports from another",
            ingress(
                pod("a"),
                json!([
                    {"from": [peers(&ns("y"))]},
                    rule("from", &[peers(&ns("z"))], json!([{"protocol": "TCP"}])),
                ]),
            ),
        ),
        (
            "one port from one, another from another",
            ingress(
                pod("a"),
                json!([
                    rule("from", &[peers(&ns("y"))], ports(&[("TCP", 80)])),
                    rule("from", &[peers(&ns("z"))], ports(&[("TCP", 81)])),
                ]),
            ),
        ),
    ]
}

fn egress_rules() -> Vec<Named> {
    let to = |peers: &[Value], ports: Value| egress(pod("a"), json!([rule("to", peers, ports)]));
    let everybody = json!({"namespaceSelector": {}});
    vec![
        ("to a pod of the namespace", to(&[json!({"podSelector": pod("b")})], json!([]))),
        ("to another namespace", to(&[peers(&ns("y"))], json!([]))),
        (
            "to a pod of another namespace",
            to(&[json!({"namespaceSelector": ns("z"), "podSelector": pod("c")})], json!([])),
        ),
        ("to one port of everybody", to(&[], ports(&[("TCP", 80)]))),
        (
            "to a range of ports",
            to(std::slice::from_ref(&everybody), json!([{"protocol": "UDP", "port": 80, "endPort": 81}])),
        ),
        ("to a port by its name", to(&[everybody], json!([{"port": "serve-81-tcp"}]))),
        (
            "to a port by its name, of one namespace",
            to(&[peers(&ns("y"))], json!([{"port": "serve-80-tcp"}])),
        ),
        (
            "to a named port of nobody in particular",
            to(&[], json!([{"port": "serve-80-udp", "protocol": "UDP"}])),
        ),
    ]
}

fn blocks(grid: &Grid) -> Vec<Named> {
    let from = |peers: &[Value]| ingress(pod("a"), json!([{"from": peers}]));
    let host = |namespace: &str, name: &str| format!("{}/32", grid.v4(namespace, name));
    let host6 = |namespace: &str, name: &str| format!("{}/128", grid.v6(namespace, name));
    let range = |namespace: &str, name: &str| {
        let [a, b, c, _] = grid.v4(namespace, name).octets();
        format!("{a}.{b}.{c}.0/24")
    };
    let everything = || block("0.0.0.0/0", &[]);
    vec![
        ("from all of IPv4", from(&[everything()])),
        ("from all of IPv6", from(&[block("::/0", &[])])),
        ("from all of both", from(&[everything(), block("::/0", &[])])),
        ("from one pod's address", from(&[block(host("y", "b"), &[])])),
        ("from one pod's IPv6 address", from(&[block(host6("y", "b"), &[])])),
        ("from one node's pods", from(&[block(range("y", "b"), &[])])),
        ("from all but one pod", from(&[block("0.0.0.0/0", &[host("y", "b")])])),
        ("from all but one node's pods", from(&[block("0.0.0.0/0", &[range("y", "b")])])),
        ("from all but two pods", from(&[block("0.0.0.0/0", &[host("y", "b"), host("z", "c")])])),
        ("from all but one pod, by IPv6", from(&[block("::/0", &[host6("y", "b")])])),
        ("to all of IPv4", egress(pod("a"), json!([{"to": [everything()]}]))),
        ("to all of IPv6", egress(pod("a"), json!([{"to": [block("::/0", &[])]}]))),
        (
            "a named port from a block",
            ingress(pod("a"), json!([{"from": [everything()], "ports": [{"port": "serve-81-tcp"}]}])),
        ),
        (
            "what is excepted, another peer lets in",
            from(&[block("0.0.0.0/0", &[host("y", "b")]), peers(&ns("y"))]),
        ),
        (
            "what is excepted, another block lets in",
            from(&[block("0.0.0.0/0", &[range("y", "b")]), block(host("y", "b"), &[])]),
        ),
        (
            "to one node's pods but one",
            egress(pod("a"), json!([{"to": [block(range("y", "b"), &[host("y", "b")])]}])),
        ),
        (
            "to a pod's named port by its address",
            egress(
                pod("a"),
                json!([{"to": [block(host("y", "b"), &[])], "ports": [{"port": "serve-80-tcp"}]}]),
            ),
        ),
    ]
}

fn several_policies() -> Vec<Situation> {
    let named = |namespace: &str, name: &str, spec: Value| (Key::new(namespace, name), spec);
    let nothing = |namespace: &str| named(namespace, "nothing", ingress(json!({}), json!([])));
    vec![
        Situation {
            name: "denial and permission add up",
            policies: vec![
                nothing("x"),
                named("x", "some", ingress(pod("a"), json!([{"from": [peers(&ns("y"))]}]))),
            ],
        },
        Situation {
            name: "two policies permit different peers",
            policies: vec![
                named("x", "from-y", ingress(pod("a"), json!([{"from": [peers(&ns("y"))]}]))),
                named(
                    "x",
                    "from-z",
                    ingress(pod("a"), json!([rule("from", &[peers(&ns("z"))], ports(&[("UDP", 80)]))])),
                ),
            ],
        },
        Situation {
            name: "both ends must permit",
            policies: vec![
                named("x", "out", egress(pod("a"), json!([{"to": [peers(&ns("y"))]}]))),
                named(
                    "y",
                    "in",
                    ingress(
                        pod("b"),
                        json!([{"from": [json!({"namespaceSelector": ns("x"), "podSelector": pod("a")})]}]),
                    ),
                ),
            ],
        },
        Situation {
            name: "every namespace closed",
            policies: vec![nothing("x"), nothing("y"), nothing("z")],
        },
        Situation {
            name: "a policy is of its own namespace only",
            policies: vec![named("y", "own", ingress(json!({}), json!([{"from": [{"podSelector": {}}]}])))],
        },
    ]
}
