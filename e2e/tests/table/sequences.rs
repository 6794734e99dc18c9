//! Changes, one after the other; after each the whole matrix must hold. Pure.

use durward_engine::object::Key;
use serde_json::{Value, json};

use crate::grid::PolicyJson;
use crate::situations::{egress, ingress, ns, peers, pod, ports, rule};

pub(crate) struct Sequence {
    pub(crate) name: &'static str,
    pub(crate) changes: Vec<Change>,
}

pub(crate) enum Change {
    Policy(PolicyJson),
    DeletePolicy(Key),
    LabelPod(Key, &'static str, &'static str),
    /// A namespace, a label, its value; none takes the label away.
    LabelNamespace(&'static str, &'static str, Option<&'static str>),
    Recreate(Key),
}

use Change::{DeletePolicy, LabelNamespace, LabelPod, Recreate};

fn put(name: &str, spec: Value) -> Change {
    Change::Policy((Key::new("x", name), spec))
}

fn gone(name: &str) -> Change {
    DeletePolicy(Key::new("x", name))
}

fn label_pod(namespace: &str, name: &str, label: &'static str, value: &'static str) -> Change {
    LabelPod(Key::new(namespace, name), label, value)
}

fn recreate(namespace: &str, name: &str) -> Change {
    Recreate(Key::new(namespace, name))
}

pub(crate) fn all() -> Vec<Sequence> {
    let to_a = |rules: Value| ingress(pod("a"), rules);
    let from = |peer: Value| json!([rule("from", &[peer], json!([]))]);
    let role = |role: &str| json!({"podSelector": {"matchLabels": {"role": role}}});
    let team = || json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}});
    let sequences = [
        ("a policy comes and goes", vec![put("p", to_a(json!([]))), gone("p")]),
        ("a rule is added", vec![put("p", to_a(json!([]))), put("p", to_a(from(peers(&ns("y")))))]),
        ("a rule is taken away", vec![put("p", to_a(json!([{}]))), put("p", to_a(from(peers(&ns("y")))))]),
        (
            "a port is changed",
            vec![
                put("p", to_a(json!([rule("from", &[], ports(&[("TCP", 80)]))]))),
                put("p", to_a(json!([rule("from", &[], ports(&[("TCP", 81)]))]))),
            ],
        ),
        ("the subject is changed", vec![put("p", to_a(json!([]))), put("p", ingress(pod("b"), json!([])))]),
        ("the direction is changed", vec![put("p", to_a(json!([]))), put("p", egress(pod("a"), json!([])))]),
        (
            "a second policy adds to the first, which goes",
            vec![put("p", to_a(from(peers(&ns("y"))))), put("q", to_a(from(peers(&ns("z"))))), gone("p")],
        ),
        (
            "a peer gets the label and loses it",
            vec![
                put("p", to_a(from(role("friend")))),
                label_pod("x", "b", "role", "friend"),
                label_pod("x", "b", "role", "stranger"),
            ],
        ),
        (
            "a subject gets the label and loses it",
            vec![
                put("p", ingress(json!({"matchLabels": {"role": "closed"}}), json!([]))),
                label_pod("x", "c", "role", "closed"),
                label_pod("x", "c", "role", "open"),
            ],
        ),
        (
            "a namespace gets the label and loses it",
            vec![
                put("p", to_a(from(team()))),
                LabelNamespace("y", "team", Some("blue")),
                LabelNamespace("y", "team", None),
            ],
        ),
        (
            "the label moves to another namespace",
            vec![
                put("p", egress(pod("a"), json!([rule("to", &[team()], json!([]))]))),
                LabelNamespace("y", "team", Some("blue")),
                LabelNamespace("z", "team", Some("blue")),
                LabelNamespace("y", "team", None),
            ],
        ),
        ("a subject is made anew", vec![put("p", to_a(from(peers(&ns("y"))))), recreate("x", "a")]),
        (
            "a peer is made anew, with another address",
            vec![
                put("p", to_a(json!([rule("from", &[role("friend")], json!([]))]))),
                label_pod("x", "b", "role", "friend"),
                recreate("x", "b"),
            ],
        ),
        (
            "an egress peer is made anew",
            vec![
                put(
                    "p",
                    egress(pod("a"), json!([rule("to", &[json!({"podSelector": pod("c")})], json!([]))])),
                ),
                recreate("x", "c"),
            ],
        ),
        (
            "both ends close, one after the other, and open again",
            vec![
                put("out", egress(json!({}), json!([]))),
                put("in", ingress(json!({}), json!([]))),
                gone("out"),
                gone("in"),
            ],
        ),
        (
            "the same rules under another name",
            vec![
                put("p", to_a(from(peers(&ns("y"))))),
                put("q", to_a(from(peers(&ns("y"))))),
                gone("p"),
                gone("q"),
            ],
        ),
    ];
    sequences.into_iter().map(|(name, changes)| Sequence { name, changes }).collect()
}
