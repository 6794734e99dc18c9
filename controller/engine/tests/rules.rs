//! The rules that implementations get wrong, one by one. Whatever is asked here, engine and oracle
//! must agree on; numbers are those of the list in docs/conformance.md.

use std::collections::BTreeSet;

use Protocol::{Sctp, Tcp, Udp};
use durward_engine::object::{Event, Pod, Policy, Protocol, Rule, Rules, Spec};
use durward_engine::oracle::{Cluster, Packet};
use durward_engine::sample::*;
use durward_engine::{Engine, Fault, Limits};
use durward_proto::Direction::{Egress, Ingress};
use durward_proto::{Direction, NodeView, PortKey, Verdict};

const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// A cluster whose pods are all on one node, as the engine and as the oracle see it.
struct World {
    engine: Engine,
    oracle: Cluster,
    view: NodeView,
}

impl World {
    fn new(events: impl IntoIterator<Item = Event>) -> Self {
        let mut engine = Engine::new(Limits::default());
        let view = engine.subscribe("node");
        let mut world = Self { engine, oracle: Cluster::default(), view };
        world.apply(events);
        world
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<(String, Option<Fault>)> {
        let events: Vec<_> = events.into_iter().collect();
        events.iter().cloned().for_each(|event| self.oracle.apply(event));
        let outcome = self.engine.apply(events);
        for patch in outcome.patches.into_values() {
            self.view = self.view.patched(patch).expect("a patch for this view");
        }
        self.view.check().expect("a whole view");
        outcome.news.faults.into_iter().map(|(key, fault)| (key.to_string(), fault)).collect()
    }

    /// "open", or the verdict and the policies behind it.
    fn ask(&self, pod: &str, direction: Direction, remote: &str, protocol: u8, port: u16) -> String {
        let (subject, remote) = (&self.oracle.pods[&key(pod)], address(remote));
        let act = self.view.act(&subject.uid, direction, remote, PortKey::new(protocol, port));
        let said = act.map(|act| {
            let policies = self.view.attribution(act.attribution).expect("a whole list");
            (act.verdict, policies.0.iter().cloned().collect::<BTreeSet<_>>())
        });
        let judged = self.oracle.judge(subject, &Packet { direction, remote, protocol, port });
        assert_eq!(said, judged, "engine and oracle on {pod} {direction:?} {remote} {protocol}:{port}");
        let Some((verdict, policies)) = said else { return "open".into() };
        let verdict = if verdict == Verdict::Allow { "allow" } else { "deny" };
        policies.iter().fold(verdict.into(), |text, policy| text + " " + &policy.name)
    }

    /// What is said of a TCP connection to a pod.
    fn to(&self, pod: &str, remote: &str, port: u16) -> String {
        self.ask(pod, Ingress, remote, Tcp.number(), port)
    }

    /// What is said of a TCP connection from a pod.
    fn from(&self, pod: &str, remote: &str, port: u16) -> String {
        self.ask(pod, Egress, remote, Tcp.number(), port)
    }
}

fn on_node(text: &str, with: &str, address: &str) -> Event {
    Event::Pod(pod(text, "node", with, &[address]))
}

fn with_ports(text: &str, with: &str, address: &str, ports: &[(&str, Protocol, u16)]) -> Event {
    let ports = ports.iter().map(|&(name, protocol, number)| port(name, protocol, number)).collect();
    Event::Pod(Pod { ports, ..pod(text, "node", with, &[address]) })
}

fn put(policy: Policy) -> Event {
    Event::Policy(policy)
}

fn space(name: &str, labels: &str) -> Event {
    Event::Namespace(namespace(name, labels))
}

fn anybody(ports: impl IntoIterator<Item = durward_engine::object::Port>) -> Rule {
    rule([], ports)
}

/// Pods a/x, a/y and b/z with addresses 10.0.0.1 to 3, and these policies.
fn world(policies: impl IntoIterator<Item = Policy>) -> World {
    let pods = [
        on_node("a/x", "app=x", "10.0.0.1"),
        on_node("a/y", "app=y", "10.0.0.2"),
        on_node("b/z", "app=z", "10.0.0.3"),
    ];
    let spaces = [space("a", "team=red"), space("b", "team=blue")];
    World::new(pods.into_iter().chain(spaces).chain(policies.into_iter().map(put)))
}

#[test]
fn rule_1_a_pod_is_isolated_where_a_policy_of_its_namespace_selects_it_for_that_direction() {
    let world = world([ingress("a/in", "app=x", []), egress("a/out", "app=y", [])]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "deny in");
    assert_eq!(world.from("a/x", "10.0.0.2", 80), "open");
    assert_eq!(world.to("a/y", "10.0.0.1", 80), "open");
    assert_eq!(world.from("a/y", "10.0.0.1", 80), "deny out");
    assert_eq!(world.to("b/z", "10.0.0.1", 80), "open");
}

#[test]
fn rule_1_without_policy_types_a_policy_isolates_on_ingress_and_on_egress_only_with_that_field() {
    let selector = selector("app=x");
    let without = policy("a/p", Rules { selector: selector.clone(), ..Rules::default() });
    assert_eq!(world([without.clone()]).to("a/x", "10.0.0.2", 80), "deny p");
    assert_eq!(world([without]).from("a/x", "10.0.0.2", 80), "open");
    let with = policy("a/p", Rules { selector, egress: Some(vec![]), ..Rules::default() });
    assert_eq!(world([with.clone()]).to("a/x", "10.0.0.2", 80), "deny p");
    assert_eq!(world([with]).from("a/x", "10.0.0.2", 80), "deny p");
}

#[test]
fn rule_1_rules_of_a_direction_that_is_not_a_policy_type_mean_nothing() {
    let rules = Rules { types: vec![Egress], ingress: Some(vec![anybody([])]), ..Rules::default() };
    let world = world([policy("a/p", rules), ingress("a/in", "", [])]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "deny in");
}

#[test]
fn rule_2_rules_and_policies_are_a_union_and_every_one_that_permits_is_named() {
    let world = world([
        ingress("a/none", "", []),
        ingress("a/y", "app=x", [rule([pods("app=y")], [tcp(80)]), rule([pods("app=y")], [tcp(81)])]),
        ingress("a/all", "app=x", [anybody([tcp(80)])]),
    ]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "allow all y");
    assert_eq!(world.to("a/x", "10.0.0.2", 81), "allow y");
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "allow all");
    assert_eq!(world.to("a/x", "10.0.0.3", 81), "deny all none y");
}

#[test]
fn rule_3_without_peers_everybody_and_without_ports_every_protocol() {
    let world =
        world([ingress("a/p", "app=x", [rule([], [])]), ingress("a/q", "app=y", [rule([pods("")], [])])]);
    for (protocol, port) in [
        (Tcp.number(), 1),
        (Udp.number(), 65535),
        (Sctp.number(), 9),
        (ICMP, 0),
        (ICMP6, 0),
        (0, 0),
        (255, 0),
    ] {
        assert_eq!(world.ask("a/x", Ingress, "10.0.0.2", protocol, port), "allow p");
        assert_eq!(world.ask("a/x", Ingress, "203.0.113.9", protocol, port), "allow p");
        assert_eq!(world.ask("a/x", Ingress, "2001:db8::9", protocol, port), "allow p");
        assert_eq!(world.ask("a/y", Ingress, "10.0.0.1", protocol, port), "allow q");
    }
}

#[test]
fn rule_3_a_rule_with_ports_says_nothing_of_other_protocols() {
    let world = world([ingress("a/p", "app=x", [anybody([every(Tcp)])])]);
    assert_eq!(world.to("a/x", "10.0.0.2", 0), "allow p");
    assert_eq!(world.to("a/x", "10.0.0.2", 65535), "allow p");
    for protocol in [0, ICMP, Udp.number(), ICMP6, Sctp.number(), 5, 7, 255] {
        assert_eq!(world.ask("a/x", Ingress, "10.0.0.2", protocol, 0), "deny p");
    }
}

#[test]
fn rule_4_two_selectors_in_one_peer_are_both_needed_and_two_peers_are_either() {
    let both = ingress("a/p", "app=x", [rule([pods_in("team=blue", "app=z")], [])]);
    assert_eq!(world([both.clone()]).to("a/x", "10.0.0.3", 80), "allow p");
    assert_eq!(world([both]).to("a/x", "10.0.0.2", 80), "deny p");
    let either = world([ingress("a/p", "app=x", [rule([pods_in("team=blue", ""), pods("app=y")], [])])]);
    assert_eq!(either.to("a/x", "10.0.0.3", 80), "allow p");
    assert_eq!(either.to("a/x", "10.0.0.2", 80), "allow p");
    assert_eq!(either.to("a/x", "10.0.0.1", 80), "deny p");
}

#[test]
fn rule_4_a_pod_selector_alone_means_the_policys_own_namespace_and_an_empty_one_all() {
    let world = world([
        ingress("a/own", "app=x", [rule([pods("")], [])]),
        ingress("a/any", "app=y", [rule([pods_in("", "")], [])]),
    ]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "allow own");
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "deny own");
    assert_eq!(world.to("a/y", "10.0.0.3", 80), "allow any");
    assert_eq!(world.to("a/y", "203.0.113.9", 80), "deny any");
}

#[test]
fn rule_4_expressions() {
    let peers = [
        ("app=x|y", "yes"),
        ("app=z", "no"),
        ("app!=x|z", "yes"),
        ("app!=y", "no"),
        ("other!=y", "yes"),
        ("app", "yes"),
        ("other", "no"),
        ("!app", "no"),
        ("!other", "yes"),
        ("app=y,!app", "no"),
    ];
    for (text, matches) in peers {
        let world = world([ingress("a/p", "app=x", [rule([pods(text)], [])])]);
        let expected = if matches == "yes" { "allow p" } else { "deny p" };
        assert_eq!(world.to("a/x", "10.0.0.2", 80), expected, "{text}");
    }
}

#[test]
fn rule_4_every_namespace_carries_its_name_as_a_label() {
    let by_name = "kubernetes.io/metadata.name=b";
    let world = world([ingress("a/p", "app=x", [rule([pods_in(by_name, "")], [])])]);
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "allow p");
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "deny p");
}

#[test]
fn rule_5_a_block_matches_pods_too_and_except_concerns_its_own_block_only() {
    let world = world([
        ingress("a/p", "app=x", [rule([block("10.0.0.0/8", &["10.0.0.2/31", "10.9.0.0/16"])], [])]),
        ingress("a/q", "app=x", [rule([block("10.9.9.0/24", &[]), pods("app=y")], [tcp(80)])]),
    ]);
    assert_eq!(world.to("a/x", "10.0.0.1", 81), "allow p");
    assert_eq!(world.to("a/x", "10.0.0.2", 81), "deny p q");
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "allow q");
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "deny p q");
    assert_eq!(world.to("a/x", "10.9.8.1", 80), "deny p q");
    assert_eq!(world.to("a/x", "10.9.9.1", 80), "allow q");
    assert_eq!(world.to("a/x", "10.255.255.255", 80), "allow p");
    assert_eq!(world.to("a/x", "11.0.0.0", 80), "deny p q");
}

#[test]
fn rule_5_a_block_matches_its_own_family_only() {
    let world = world([
        ingress("a/four", "app=x", [rule([block("0.0.0.0/0", &[])], [])]),
        ingress("a/six", "app=y", [rule([block("::/0", &[])], [])]),
    ]);
    for (remote, x, y) in [
        ("203.0.113.9", "allow four", "deny six"),
        ("::ffff:203.0.113.9", "allow four", "deny six"),
        ("2001:db8::9", "deny four", "allow six"),
    ] {
        assert_eq!(world.to("a/x", remote, 80), x);
        assert_eq!(world.to("a/y", remote, 80), y);
    }
}

#[test]
fn rule_6_ranges_include_both_ends_and_may_overlap_and_adjoin() {
    let world = world([
        ingress("a/p", "app=x", [anybody([range(Tcp, 80, 90), range(Tcp, 85, 95), range(Tcp, 96, 96)])]),
        ingress("a/q", "app=x", [anybody([range(Tcp, 90, 97), range(Tcp, 65535, 65535)])]),
    ]);
    let expected = [
        (79, "deny p q"),
        (80, "allow p"),
        (89, "allow p"),
        (90, "allow p q"),
        (96, "allow p q"),
        (97, "allow q"),
        (98, "deny p q"),
        (65534, "deny p q"),
        (65535, "allow q"),
    ];
    for (port, said) in expected {
        assert_eq!(world.to("a/x", "10.0.0.2", port), said, "{port}");
    }
    assert_eq!(world.ask("a/x", Ingress, "10.0.0.2", Udp.number(), 80), "deny p q");
    assert_eq!(world.ask("a/x", Ingress, "10.0.0.2", 7, 0), "deny p q", "the key after TCP's last port");
}

#[test]
fn rule_7_on_ingress_a_name_is_the_selected_pods_own() {
    let world = World::new([
        with_ports("a/x", "app=x", "10.0.0.1", &[("http", Tcp, 80), ("dns", Udp, 53)]),
        with_ports("a/y", "app=x", "10.0.0.2", &[("http", Tcp, 8080)]),
        with_ports("a/z", "app=x", "10.0.0.3", &[]),
        put(ingress("a/p", "app=x", [anybody([named(Tcp, "http"), named(Tcp, "dns")])])),
    ]);
    assert_eq!(world.to("a/x", "10.0.0.9", 80), "allow p");
    assert_eq!(world.to("a/x", "10.0.0.9", 8080), "deny p");
    assert_eq!(world.to("a/y", "10.0.0.9", 8080), "allow p");
    assert_eq!(world.to("a/y", "10.0.0.9", 80), "deny p");
    assert_eq!(world.to("a/z", "10.0.0.9", 80), "deny p");
    for protocol in [Tcp, Udp] {
        let said = world.ask("a/x", Ingress, "10.0.0.9", protocol.number(), 53);
        assert_eq!(said, "deny p", "the name is there, with the other protocol");
    }
}

#[test]
fn rule_7_on_egress_a_name_is_each_destinations_own() {
    let world = World::new([
        on_node("a/me", "app=me", "10.0.0.9"),
        with_ports("a/x", "app=x", "10.0.0.1", &[("http", Tcp, 80), ("http", Udp, 81)]),
        with_ports("a/y", "app=x", "10.0.0.2", &[("http", Tcp, 8080)]),
        with_ports("b/z", "app=x", "10.0.0.3", &[("http", Tcp, 80)]),
        put(egress("a/p", "app=me", [rule([pods("app=x")], [named(Tcp, "http")])])),
        put(egress("a/any", "app=me", [anybody([named(Udp, "http")])])),
    ]);
    assert_eq!(world.from("a/me", "10.0.0.1", 80), "allow p");
    assert_eq!(world.from("a/me", "10.0.0.1", 8080), "deny any p");
    assert_eq!(world.from("a/me", "10.0.0.2", 8080), "allow p");
    assert_eq!(world.from("a/me", "10.0.0.2", 80), "deny any p");
    assert_eq!(world.from("a/me", "10.0.0.3", 80), "deny any p");
    assert_eq!(world.ask("a/me", Egress, "10.0.0.1", Udp.number(), 81), "allow any");
    assert_eq!(world.ask("a/me", Egress, "10.0.0.2", Udp.number(), 81), "deny any p");
}

#[test]
fn rule_7_a_name_with_a_block_matches_pods_of_that_block_only() {
    let world = World::new([
        on_node("a/me", "app=me", "10.0.0.9"),
        with_ports("a/x", "", "10.0.0.1", &[("http", Tcp, 80)]),
        with_ports("b/y", "", "10.1.0.1", &[("http", Tcp, 80)]),
        on_node("b/z", "", "10.0.0.3"),
        put(egress("a/p", "app=me", [rule([block("10.0.0.0/16", &["10.0.0.8/29"])], [named(Tcp, "http")])])),
    ]);
    assert_eq!(world.from("a/me", "10.0.0.1", 80), "allow p");
    assert_eq!(world.from("a/me", "10.1.0.1", 80), "deny p", "a pod outside the block");
    assert_eq!(world.from("a/me", "10.0.0.3", 80), "deny p", "a pod without the name");
    assert_eq!(world.from("a/me", "10.0.0.4", 80), "deny p", "no pod");
}

#[test]
fn rule_10_both_ends_are_judged_by_themselves() {
    let world = world([
        egress("a/out", "app=x", [rule([pods_in("", "")], [tcp(80)])]),
        ingress("b/in", "", [rule([pods_in("team=red", "app=y")], [tcp(80)])]),
    ]);
    assert_eq!(world.from("a/x", "10.0.0.3", 80), "allow out");
    assert_eq!(world.to("b/z", "10.0.0.1", 80), "deny in");
    assert_eq!(world.to("b/z", "10.0.0.2", 80), "allow in");
}

#[test]
fn rule_13_pods_of_the_hosts_network_are_no_subjects_and_no_selector_matches_them() {
    let host = Pod { host_network: true, ..pod("a/h", "node", "app=y", &["192.0.2.1"]) };
    let mut world = world([
        ingress("a/p", "", [rule([pods_in("", ""), pods("")], [tcp(80)])]),
        ingress("a/node", "app=x", [rule([block("192.0.2.1/32", &[])], [tcp(81)])]),
    ]);
    world.apply([Event::Pod(host)]);
    assert_eq!(world.to("a/h", "10.0.0.1", 80), "open");
    assert_eq!(world.to("a/x", "192.0.2.1", 80), "deny node p");
    assert_eq!(world.to("a/x", "192.0.2.1", 81), "allow node", "by its address");
}

#[test]
fn rule_13_completed_pods_neither_match_nor_isolate_and_their_address_may_be_used_again() {
    let mut world = world([ingress("a/p", "app=x", [rule([pods("app=y")], [])])]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "allow p");
    let completed = Pod { completed: true, ..pod("a/y", "node", "app=y", &["10.0.0.2"]) };
    world.apply([Event::Pod(completed), on_node("b/again", "app=y", "10.0.0.2")]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "deny p");
    let completed = Pod { completed: true, ..pod("a/x", "node", "app=x", &["10.0.0.1"]) };
    world.apply([Event::Pod(completed)]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "open");
    assert!(!world.view.pods.contains_key(&"a/x".into()), "it is not the node's affair any more");
}

#[test]
fn two_pods_with_one_address_match_what_either_does() {
    let mut world = world([
        ingress("a/y", "app=x", [rule([pods("app=y")], [tcp(80)])]),
        ingress("a/z", "app=x", [rule([pods_in("team=blue", "")], [tcp(81)])]),
    ]);
    world.apply([on_node("b/z", "app=z", "10.0.0.2")]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "allow y");
    assert_eq!(world.to("a/x", "10.0.0.2", 81), "allow z");
    world.apply([Event::PodGone(key("a/y"))]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "deny y z");
    assert_eq!(world.to("a/x", "10.0.0.2", 81), "allow z");
}

#[test]
fn rule_14_what_moves_is_judged_anew() {
    let mut world =
        world([ingress("a/p", "app=x", [rule([pods("app=y"), pods_in("team=blue", "")], [tcp(80)])])]);
    world.apply([on_node("a/y", "app=y", "10.0.0.7")]);
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "deny p", "the old address");
    assert_eq!(world.to("a/x", "10.0.0.7", 80), "allow p", "the new one");
    world.apply([on_node("a/y", "app=other", "10.0.0.7")]);
    assert_eq!(world.to("a/x", "10.0.0.7", 80), "deny p", "other labels");
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "allow p");
    world.apply([space("b", "team=green")]);
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "deny p", "a namespace relabelled");
    world.apply([put(ingress("a/p", "app=x", [anybody([tcp(81)])]))]);
    assert_eq!(world.to("a/x", "10.0.0.3", 81), "allow p", "a policy changed");
    world.apply([Event::PolicyGone(key("a/p"))]);
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "open", "a policy deleted");
    world.apply([Event::Pod(pod("a/x", "elsewhere", "app=x", &["10.0.0.1"]))]);
    assert!(!world.view.pods.contains_key(&"a/x".into()), "a pod of another node");
}

#[test]
fn rule_14_a_pod_and_its_namespace_may_change_at_once() {
    let of_blue = || ingress("a/p", "app=x", [rule([pods_in("team=blue", "")], [])]);
    let blue =
        [space("b", "team=blue"), on_node("b/z", "app=z", "10.0.0.8"), on_node("b/w", "app=z", "10.0.0.9")];
    let relabelled = || space("b", "team=green");
    let gone = || Event::PodGone(key("b/z"));
    let other = || on_node("b/z", "app=other", "10.0.0.8");
    for change in
        [[relabelled(), gone()], [gone(), relabelled()], [relabelled(), other()], [other(), relabelled()]]
    {
        let mut world = world([of_blue()]);
        world.apply(blue.clone());
        for remote in ["10.0.0.8", "10.0.0.9"] {
            assert_eq!(world.to("a/x", remote, 80), "allow p");
        }
        world.apply(change.clone());
        for remote in ["10.0.0.8", "10.0.0.9"] {
            assert_eq!(world.to("a/x", remote, 80), "deny p", "{remote} after {change:?}");
        }
    }
}

#[test]
fn rule_14_references_may_come_before_their_targets() {
    let mut world = World::new([
        Event::PolicyGone(key("a/never")),
        put(ingress("a/p", "app=x", [rule([pods_in("team=blue", "")], [tcp(80)])])),
        on_node("b/z", "", "10.0.0.3"),
    ]);
    world.apply([on_node("a/x", "app=x", "10.0.0.1")]);
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "deny p", "its namespace is not known yet");
    world.apply([space("b", "team=blue")]);
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "allow p");
    world.apply([Event::NamespaceGone("b".into())]);
    assert_eq!(world.to("a/x", "10.0.0.3", 80), "deny p");
}

#[test]
fn rule_16_a_policy_that_is_not_understood_isolates_and_harms_no_other() {
    let mut world = world([ingress("a/good", "", [rule([pods("app=y")], [tcp(80)])])]);
    let spec =
        Spec::Unreadable { selector: selector("app=x"), directions: vec![Egress], reason: "odd".into() };
    let odd = Policy { key: key("a/odd"), logged: false, spec };
    let reason = "odd".to_owned();
    assert_eq!(world.apply([put(odd.clone())]), [("a/odd".into(), Some(Fault::Unreadable { reason }))]);
    assert_eq!(world.apply([put(odd)]), [], "said once");
    assert_eq!(world.from("a/x", "10.0.0.2", 80), "deny odd");
    assert_eq!(world.from("a/y", "10.0.0.1", 80), "open");
    assert_eq!(world.to("a/x", "10.0.0.2", 80), "allow good");
    assert_eq!(world.apply([put(egress("a/odd", "app=x", [anybody([])]))]), [("a/odd".into(), None)]);
    assert_eq!(world.from("a/x", "10.0.0.2", 80), "allow odd");
}

#[test]
fn a_policy_over_a_limit_fails_closed_and_names_the_number() {
    let limits = Limits { ports_per_policy: 2, ..Limits::default() };
    let mut engine = Engine::new(limits);
    let ports = |count| (1..=count).map(tcp).collect::<Vec<_>>();
    let fits = ingress("a/fits", "app=x", [anybody(ports(2))]);
    let over = ingress("a/over", "app=y", [anybody(ports(3))]);
    let pods = [on_node("a/x", "app=x", "10.0.0.1"), on_node("a/y", "app=y", "10.0.0.2")];
    let outcome = engine.apply(pods.into_iter().chain([put(fits), put(over)]));
    let fault = Fault::TooMany { what: "ports", found: 3, limit: 2 };
    assert_eq!(outcome.news.faults, [(key("a/over"), Some(fault))].into());
    let view = engine.subscribe("node");
    let verdict = |pod: &str| {
        view.act(&pod.into(), Ingress, address("10.0.0.9"), PortKey::new(6, 1)).map(|act| act.verdict)
    };
    assert_eq!(verdict("a/x"), Some(Verdict::Allow));
    assert_eq!(verdict("a/y"), Some(Verdict::Deny));
}

#[test]
fn policies_that_are_too_much_together_deny_what_they_are_too_much_for() {
    let limits = Limits { steps_per_row: 7, ..Limits::default() };
    let mut engine = Engine::new(limits);
    let y = |ports: [u16; 2]| [rule([pods("app=y")], ports.map(tcp))];
    let z = rule([pods("app=z")], [tcp(80)]);
    engine.apply([
        on_node("a/x", "app=x", "10.0.0.1"),
        on_node("a/y", "app=y", "10.0.0.2"),
        on_node("a/z", "app=z", "10.0.0.3"),
        put(ingress("a/some", "app=x", y([10, 20]).into_iter().chain([z]))),
    ]);
    let mut view = engine.subscribe("node");
    let verdict = |view: &NodeView, remote| {
        let act = view.act(&"a/x".into(), Ingress, address(remote), PortKey::new(6, 80));
        act.map(|act| act.verdict)
    };
    let more = |ports| [put(ingress("a/more", "app=x", [rule([pods("app=y")], ports)]))];
    let outcome = engine.apply(more(vec![tcp(30), tcp(80), tcp(90)]));
    let fault = Fault::TooManyTogether { what: "ranges of ports", limit: 7 };
    assert_eq!(outcome.news.faults, [(key("a/more"), Some(fault))].into(), "the policy that says most");
    view = view.patched(outcome.patches["node"].clone()).unwrap();
    assert_eq!(verdict(&view, "10.0.0.2"), Some(Verdict::Deny));
    assert_eq!(verdict(&view, "10.0.0.3"), Some(Verdict::Allow), "another address, to which less is said");
    let outcome = engine.apply(more(vec![tcp(80)]));
    assert_eq!(outcome.news.faults, [(key("a/more"), None)].into());
    view = view.patched(outcome.patches["node"].clone()).unwrap();
    assert_eq!(verdict(&view, "10.0.0.2"), Some(Verdict::Allow));
}

#[test]
fn a_policy_of_a_thousand_peers_and_a_thousand_ports() {
    let peers = (0..500).map(|n| pods(&format!("app=p{n}"))).chain((0..=255).flat_map(|n| {
        [
            block(&format!("172.16.{n}.0/24"), &[]),
            block(&format!("172.17.{n}.0/24"), &[&format!("172.17.{n}.7/32")]),
        ]
    }));
    let ports = (1..=1000).map(|n| tcp(2 * n));
    let mut world = world([ingress("a/p", "app=x", [rule(peers, ports)])]);
    world.apply([on_node("a/p7", "app=p7", "10.0.0.7")]);
    for remote in ["10.0.0.7", "172.16.200.1", "172.17.9.8"] {
        assert_eq!(world.to("a/x", remote, 2000), "allow p");
        assert_eq!(world.to("a/x", remote, 1999), "deny p");
        assert_eq!(world.to("a/x", remote, 2002), "deny p");
    }
    assert_eq!(world.to("a/x", "172.17.9.7", 2000), "deny p");
}

#[test]
fn annotations_reach_attributions_and_pods() {
    let logged = |world: &World| {
        let lists: Vec<_> =
            world.view.attributions.keys().filter_map(|&id| world.view.attribution(id)).collect();
        assert!(!lists.is_empty());
        lists.into_iter().map(|list| list.0[0].logged)
    };
    let mut world = world([Policy { logged: true, ..ingress("a/p", "app=x", []) }]);
    assert!(logged(&world).all(|logged| logged));
    assert!(!world.view.pods[&"a/x".into()].denies_logged);
    world.apply([
        Event::Namespace(durward_engine::object::Namespace {
            denies_logged: true,
            ..namespace("a", "team=red")
        }),
        put(ingress("a/p", "app=x", [])),
    ]);
    assert!(world.view.pods[&"a/x".into()].denies_logged);
    assert!(logged(&world).all(|logged| !logged));
}

#[test]
fn a_node_hears_only_of_what_its_own_pods_need() {
    let mut world = world([ingress("a/p", "app=x", [rule([pods("app=y")], [tcp(80)])])]);
    let elsewhere =
        |name: &str, with: &str, address: &str| Event::Pod(pod(name, "elsewhere", with, &[address]));
    let unconcerned = [
        elsewhere("b/new", "app=y", "10.0.0.8"),
        put(ingress("b/q", "", [rule([pods("")], [])])),
        space("c", "team=red"),
        elsewhere("a/y2", "app=y2", "10.0.0.9"),
    ];
    world.apply([on_node("b/z", "app=z", "10.0.0.3"), Event::PodGone(key("b/z"))]);
    for event in unconcerned {
        assert!(world.engine.apply([event.clone()]).patches.is_empty(), "{event:?}");
    }
    assert_eq!(world.view.addresses.len(), 1, "only a/y, which the rule mentions");
}

#[test]
fn nodes_whose_rules_mention_the_same_are_told_the_same_each_as_if_alone() {
    // Of two kinds, and one address is of two pods.
    let pod_of = |n: usize| {
        let (labels, host) = (if n.is_multiple_of(3) { "app=a" } else { "app=b" }, n.max(1));
        Event::Pod(pod(
            &format!("a/pod-{n}"),
            &format!("node-{}", n % 5),
            labels,
            &[&format!("10.0.0.{host}")],
        ))
    };
    let policy = |labels: &str| put(ingress("a/policy", "", [rule([pods(labels)], [tcp(80)])]));
    let mut all: Vec<_> = (0..20).map(pod_of).collect();
    let mut engine = Engine::new(Limits::default());
    let nodes: Vec<_> = (0..5).map(|n| format!("node-{n}")).collect();
    let mut views: Vec<NodeView> = vec![];
    engine.apply(all.iter().cloned());
    // What comes at once, what changes, who comes back, and what goes: a policy, and with it all that was mentioned.
    for event in [policy("app=a"), policy(""), pod_of(3), Event::PolicyGone(key("a/policy")), policy("app=b")]
    {
        let mut outcome = engine.apply([event.clone()]);
        for (node, view) in nodes.iter().zip(&mut views) {
            view.patch(outcome.patches.remove(&**node).unwrap_or_default()).unwrap();
        }
        all.push(event);
        let mut fresh = Engine::new(Limits::default());
        fresh.apply(all.iter().cloned());
        let alone: Vec<_> = nodes
            .iter()
            .map(|node| {
                let view = fresh.subscribe(node);
                fresh.unsubscribe(node);
                view
            })
            .collect();
        assert!(views.is_empty() || views == alone);
        engine.unsubscribe("node-1");
        views = nodes.iter().map(|node| engine.subscribe(node)).collect();
        assert_eq!(views, alone);
    }
    assert_eq!(views[0].addresses.len(), 13);
}
