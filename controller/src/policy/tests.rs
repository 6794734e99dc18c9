//! NetworkPolicies as people write them, and what is made of them.

use super::*;
use durward_engine::object::Key;
use serde_json::json;

fn read(spec: Value) -> Policy {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "p" }, "spec": spec,
    });
    policy(&serde_json::from_value(object).unwrap())
}

fn label(key: &str, value: &str) -> Requirement {
    Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) }
}

/// What an unreadable policy still selects, and why it is unreadable.
fn unreadable(spec: Value) -> (Selector, Vec<Direction>, String) {
    match read(spec).spec {
        Spec::Unreadable { selector, directions, reason } => (selector, directions, reason),
        Spec::Readable(rules) => panic!("it was understood: {rules:?}"),
    }
}

/// A policy with one entry of `from`.
fn from(peer: Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": [peer] }] })
}

/// A policy with one entry of `ports`.
fn ports(port: Value) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "web" } }, "egress": [{ "ports": [port] }] })
}

#[test]
fn every_field_is_read() {
    let policy = read(json!({
        "podSelector": {
            "matchLabels": { "app": "web" },
            "matchExpressions": [
                { "key": "tier", "operator": "In", "values": ["a", "b"] },
                { "key": "old", "operator": "NotIn", "values": ["yes"] },
                { "key": "x", "operator": "Exists" },
                { "key": "y", "operator": "DoesNotExist" },
            ],
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{
            "from": [
                { "podSelector": {} },
                { "namespaceSelector": { "matchLabels": { "team": "a" } }, "podSelector": { "matchLabels": { "app": "b" } } },
                { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } },
            ],
            "ports": [{ "port": 80 }, { "protocol": "UDP", "port": 100, "endPort": 200 }, { "protocol": "SCTP" },
                      { "port": "http" }],
        }],
        "egress": [],
    }));
    let operator = |key: &str, operator| Requirement { key: key.into(), operator };
    let selector = Selector(vec![
        label("app", "web"),
        operator("tier", Operator::In(vec!["a".into(), "b".into()])),
        operator("old", Operator::NotIn(vec!["yes".into()])),
        operator("x", Operator::Exists),
        operator("y", Operator::DoesNotExist),
    ]);
    let peers = vec![
        Peer::Pods { namespaces: None, pods: Selector::default() },
        Peer::Pods {
            namespaces: Some(Selector(vec![label("team", "a")])),
            pods: Selector(vec![label("app", "b")]),
        },
        Peer::Block { block: "10.0.0.0/8".parse().unwrap(), except: vec!["10.1.0.0/16".parse().unwrap()] },
    ];
    let port = |protocol, ports| Port { protocol, ports };
    let ports = vec![
        port(Protocol::Tcp, Ports::Range { first: 80, last: 80 }),
        port(Protocol::Udp, Ports::Range { first: 100, last: 200 }),
        port(Protocol::Sctp, Ports::All),
        port(Protocol::Tcp, Ports::Named("http".into())),
    ];
    let spec = Spec::Readable(Rules {
        selector,
        types: Direction::BOTH.to_vec(),
        ingress: Some(vec![Rule { peers, ports }]),
        egress: Some(vec![]),
    });
    assert_eq!(policy, Policy { key: Key::new("shop", "p"), logged: false, spec });
}

#[test]
fn what_is_missing_is_left_to_the_engine() {
    assert_eq!(read(json!({})).spec, Spec::Readable(Rules::default()));
    assert_eq!(read(Value::Null).spec, Spec::Readable(Rules::default()));
}

#[test]
fn bits_after_the_prefix_do_not_count() {
    let Spec::Readable(rules) = read(from(json!({ "ipBlock": { "cidr": "192.168.1.5/24" } }))).spec else {
        panic!("not understood")
    };
    let block = Peer::Block { block: "192.168.1.0/24".parse().unwrap(), except: vec![] };
    assert_eq!(rules.ingress.unwrap()[0].peers, [block]);
}

#[test]
fn an_unknown_field_is_seen_wherever_it_is() {
    let requirement = json!({ "key": "a", "operator": "Exists", "regex": "x" });
    let block = json!({ "cidr": "10.0.0.0/8", "region": 1 });
    for (spec, field) in [
        (json!({ "tier": 1 }), "spec.tier"),
        (json!({ "podSelector": { "matchFields": [] } }), "spec.podSelector.matchFields"),
        (json!({ "ingress": [{ "action": "Deny" }] }), "spec.ingress[0].action"),
        (json!({ "egress": [{}, { "action": "Deny" }] }), "spec.egress[1].action"),
        (from(json!({ "podSelector": {}, "user": 1 })), "spec.ingress[0].from[0].user"),
        (from(json!({ "ipBlock": block })), "spec.ingress[0].from[0].ipBlock.region"),
        (
            from(json!({ "namespaceSelector": { "matchExpressions": [requirement] } })),
            "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0].regex",
        ),
        (ports(json!({ "port": 80, "icmpType": 8 })), "spec.egress[0].ports[0].icmpType"),
    ] {
        let (.., reason) = unreadable(spec);
        assert!(reason.contains(&format!("{field}: unknown field")), "{reason:?} does not say {field:?}");
    }
    let mut object = json!({ "metadata": { "name": "p" }, "spec": {}, "status": {}, "action": "Deny" });
    let reason = |object: &Value| match policy(&serde_json::from_value(object.clone()).unwrap()).spec {
        Spec::Unreadable { reason, .. } => Some(reason),
        Spec::Readable(_) => None,
    };
    assert!(reason(&object).is_some_and(|reason| reason.contains("action: unknown field")));
    object.as_object_mut().unwrap().remove("action");
    assert_eq!(reason(&object), None, "servers before 1.28 may still say a status");
}

#[test]
fn an_unknown_field_anywhere_is_named_and_the_policy_still_selects() {
    let web = Selector(vec![label("app", "web")]);
    let mut spec = from(json!({ "podSelector": {} }));
    spec["tier"] = json!(7);
    let (selector, directions, reason) = unreadable(spec);
    assert_eq!((selector, directions), (web.clone(), vec![Direction::Ingress]));
    assert!(reason.starts_with("NetworkPolicy shop/p: spec.tier: unknown field `tier`"), "{reason}");

    let (selector, _, reason) = unreadable(from(json!({ "serviceSelector": {} })));
    assert_eq!(selector, web);
    assert!(reason.contains("spec.ingress[0].from[0].serviceSelector: unknown field"), "{reason}");

    let (selector, directions, _) =
        unreadable(json!({ "podSelector": { "matchFields": [] }, "policyTypes": ["Egress"] }));
    assert_eq!((selector, directions), (Selector::default(), vec![Direction::Egress]));
    let (_, directions, reason) = unreadable(json!({ "policyTypes": ["Sideways"] }));
    assert_eq!(directions, Direction::BOTH);
    assert!(reason.contains("spec.policyTypes[0]: \"Sideways\" is unknown"), "{reason}");
    let (_, directions, _) = unreadable(ports(json!({ "tier": 1 })));
    assert_eq!(directions, Direction::BOTH);
}

#[test]
fn what_makes_no_sense_is_named_by_field() {
    let block = |cidr: &str, except: &str| from(json!({ "ipBlock": { "cidr": cidr, "except": [except] } }));
    for (spec, expected) in [
        (block("010.0.0.0/8", "10.0.0.0/9"), "spec.ingress[0].from[0].ipBlock.cidr: \"010.0.0.0/8\""),
        (block("10.0.0.0", "10.0.0.0/9"), "ipBlock.cidr: \"10.0.0.0\" is no CIDR block"),
        (block("10.0.0.0/33", "10.0.0.0/9"), "ipBlock.cidr"),
        (block("::ffff:10.0.0.0/104", "10.0.0.0/9"), "ipBlock.cidr"),
        (block("10.0.0.0/8", "11.0.0.0/9"), "ipBlock.except[0]: \"11.0.0.0/9\" is not within \"10.0.0.0/8\""),
        (block("10.0.0.0/8", "10.0.0.0/7"), "ipBlock.except[0]"),
        (block("10.0.0.0/8", "::/0"), "ipBlock.except[0]"),
        (from(json!({})), "spec.ingress[0].from[0]: it is empty"),
        (from(json!({ "ipBlock": { "cidr": "::/0" }, "podSelector": {} })), "from[0]: ipBlock stands beside"),
        (
            from(json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "In" }] } })),
            "from[0].podSelector.matchExpressions[0].values: In needs values",
        ),
        (
            from(
                json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Gt", "values": ["1"] }] } }),
            ),
            "matchExpressions[0].operator: \"Gt\" is unknown",
        ),
        (ports(json!({ "protocol": "ICMP" })), "spec.egress[0].ports[0].protocol: \"ICMP\" is unknown"),
        (ports(json!({ "port": 0 })), "ports[0].port: 0 is no port"),
        (ports(json!({ "port": 65536 })), "ports[0].port: 65536 is no port"),
        (ports(json!({ "port": "x".repeat(300) })), "ports[0].port: a name of 300 bytes"),
        (ports(json!({ "port": 9, "endPort": 8 })), "ports[0].endPort: 8 is below port 9"),
        (ports(json!({ "port": "http", "endPort": 8 })), "ports[0].endPort: port is a name"),
        (ports(json!({ "endPort": 8 })), "ports[0].endPort: port is missing"),
    ] {
        let (selector, _, reason) = unreadable(spec);
        assert_eq!(selector, Selector(vec![label("app", "web")]), "{reason}");
        assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
    }
}

#[test]
fn the_annotation_counts_if_it_is_exactly_true() {
    for (value, logged) in [("true", true), ("True", false), ("", false)] {
        let object = json!({
            "metadata": { "name": "p", "annotations": { LOG_ANNOTATION: value } }, "spec": {},
        });
        assert_eq!(policy(&serde_json::from_value(object).unwrap()).logged, logged);
    }
}
