//! Events as YAML that a person can read.

use std::fmt::Write;

use durward_engine::object::{Event, Operator, Peer, Port, Ports, Rule, Selector, Spec};

pub(crate) fn events<'a>(events: impl IntoIterator<Item = &'a Event>) -> String {
    events.into_iter().map(|event| format!("- {}\n", one(event))).collect()
}

fn one(event: &Event) -> String {
    match event {
        Event::Pod(pod) => format!(
            "pod: {{key: {}, uid: {}, labels: {:?}, addresses: {:?}, node: {:?}, ports: {:?}{}{}}}",
            pod.key,
            pod.uid,
            pod.labels,
            pod.addresses,
            pod.node,
            pod.ports.iter().map(|p| format!("{} {:?} {}", p.name, p.protocol, p.number)).collect::<Vec<_>>(),
            if pod.host_network { ", hostNetwork: true" } else { "" },
            if pod.completed { ", completed: true" } else { "" },
        ),
        Event::PodGone(key) => format!("podGone: {key}"),
        Event::Namespace(ns) => {
            format!(
                "namespace: {{name: {}, labels: {:?}, deniesLogged: {}}}",
                ns.name, ns.labels, ns.denies_logged
            )
        }
        Event::NamespaceGone(name) => format!("namespaceGone: {name}"),
        Event::PolicyGone(key) => format!("policyGone: {key}"),
        // Not among the random ones: `services.rs` has its own.
        Event::Service(_) | Event::ServiceGone(_) | Event::EndpointSlice(_) | Event::EndpointSliceGone(_) => {
            format!("{event:?}")
        }
        Event::Logging(logging) => format!("logging: {logging:?}"),
        Event::Policy(policy) => {
            let mut text = format!("policy: {}  # logged: {}\n", policy.key, policy.logged);
            match &policy.spec {
                Spec::Unreadable { selector: s, directions, reason } => {
                    let _ =
                        write!(text, "  unreadable: {reason}, podSelector: {}, {directions:?}", selector(s));
                }
                Spec::Readable(spec) => {
                    let _ = write!(
                        text,
                        "  podSelector: {}\n  policyTypes: {:?}",
                        selector(&spec.selector),
                        spec.types
                    );
                    for (name, rules) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
                        if let Some(rules) = rules {
                            let _ = write!(text, "\n  {name}:{}", if rules.is_empty() { " []" } else { "" });
                            rules.iter().for_each(|rule| text += &format!("\n  - {}", rule_text(rule)));
                        }
                    }
                }
            }
            text
        }
    }
}

fn rule_text(rule: &Rule) -> String {
    let peers: Vec<_> = rule.peers.iter().map(peer).collect();
    let ports: Vec<_> = rule.ports.iter().map(port).collect();
    format!("{{peers: [{}], ports: [{}]}}", peers.join(", "), ports.join(", "))
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces: None, pods } => format!("{{podSelector: {}}}", selector(pods)),
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            format!("{{namespaceSelector: {}, podSelector: {}}}", selector(namespaces), selector(pods))
        }
        Peer::Block { block, except } => format!("{{cidr: {block}, except: {except:?}}}"),
    }
}

fn port(port: &Port) -> String {
    let ports = match &port.ports {
        Ports::All => "all".to_owned(),
        Ports::Range { first, last } => format!("{first}-{last}"),
        Ports::Named(name) => name.to_string(),
    };
    format!("{:?} {ports}", port.protocol)
}

fn selector(selector: &Selector) -> String {
    let requirement = |requirement: &durward_engine::object::Requirement| {
        let key = &requirement.key;
        match &requirement.operator {
            Operator::In(values) => format!("{key} in {values:?}"),
            Operator::NotIn(values) => format!("{key} notin {values:?}"),
            Operator::Exists => format!("{key} exists"),
            Operator::DoesNotExist => format!("{key} does not exist"),
        }
    };
    format!("{{{}}}", selector.0.iter().map(requirement).collect::<Vec<_>>().join(", "))
}
