//! Events as YAML that a person can read: objects as the API writes them, without what no policy sees.

use std::fmt::Display;

use durward_engine::object::{
    Event, Key, Labels, NamedPort, Operator, Peer, Pod, Policy, Port, Ports, Protocol, Rule, Selector, Spec,
};
use durward_proto::Direction;

/// A document for each event.
pub(crate) fn events<'a>(events: impl IntoIterator<Item = &'a Event>) -> String {
    events.into_iter().map(|event| format!("---\n{}\n", one(event))).collect()
}

fn one(event: &Event) -> String {
    match event {
        Event::Pod(pod) => self::pod(pod),
        Event::PodGone(key) => format!("deleted: {{kind: Pod, {}}}", metadata(key, "")),
        Event::Namespace(ns) => {
            let metadata = format!("name: {}, labels: {}", ns.name, labels(&ns.labels));
            let logged =
                if ns.denies_logged { format!(", {}", annotation("enable-deny-logging")) } else { "".into() };
            format!("kind: Namespace\nmetadata: {{{metadata}{logged}}}")
        }
        Event::NamespaceGone(name) => format!("deleted: {{kind: Namespace, metadata: {{name: {name}}}}}"),
        Event::Policy(policy) => self::policy(policy),
        Event::PolicyGone(key) => format!("deleted: {{kind: NetworkPolicy, {}}}", metadata(key, "")),
        // Not among the random ones: `services.rs` has its own.
        Event::Service(_) | Event::ServiceGone(_) | Event::EndpointSlice(_) | Event::EndpointSliceGone(_) => {
            format!("{event:?}")
        }
        Event::Logging(logging) => format!("kind: NetworkLogging # {logging:?}"),
    }
}

fn pod(pod: &Pod) -> String {
    let Pod { uid, key, labels: own, addresses, node, host_network, completed, config_hash, ports } = pod;
    let hash = config_hash.as_ref().map(|hash| format!(" # a static pod: {hash}")).unwrap_or_default();
    let named = |NamedPort { name, protocol: of, number }: &NamedPort| {
        format!("{{name: {name}, protocol: {}, containerPort: {number}}}", protocol(*of))
    };
    let node = node.as_ref().map(|node| format!("nodeName: {node}, ")).unwrap_or_default();
    let host = if *host_network { "hostNetwork: true, " } else { "" };
    let phase = if *completed { "phase: Succeeded, " } else { "" };
    format!(
        "kind: Pod\n{}{hash}\nspec: {{{node}{host}containers: [{{ports: {}}}]}}\n\
         status: {{{phase}podIPs: {}}}",
        metadata(key, &format!(", uid: {:?}, labels: {}", uid.to_string(), labels(own))),
        list(ports, named),
        list(addresses, |ip| format!("{{ip: \"{ip}\"}}")),
    )
}

fn policy(Policy { key, logged, spec }: &Policy) -> String {
    let note = if *logged { format!(", {}", annotation("enable-logging")) } else { "".into() };
    let mut text = format!("kind: NetworkPolicy\n{}\nspec:\n  podSelector: ", metadata(key, &note));
    let types = |types: &[Direction]| list(types, |direction| format!("{direction:?}"));
    match spec {
        Spec::Unreadable { selector: subjects, directions, reason } => {
            text += &format!("{}\n  policyTypes: {}", selector(subjects), types(directions));
            text += &format!("\n  unknown: {reason}");
        }
        Spec::Readable(rules) => {
            text += &format!("{}\n  policyTypes: {}", selector(&rules.selector), types(&rules.types));
            let sides = [("ingress", "from", &rules.ingress), ("egress", "to", &rules.egress)];
            for (field, peers, rules) in sides {
                if let Some(rules) = rules {
                    text += &format!("\n  {field}:{}", if rules.is_empty() { " []" } else { "" });
                    rules.iter().for_each(|rule| text += &format!("\n  - {}", self::rule(peers, rule)));
                }
            }
        }
    }
    text
}

fn rule(peers_name: &str, Rule { peers, ports }: &Rule) -> String {
    format!("{{{peers_name}: {}, ports: {}}}", list(peers, peer), list(ports, port))
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces: None, pods } => format!("{{podSelector: {}}}", selector(pods)),
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            format!("{{namespaceSelector: {}, podSelector: {}}}", selector(namespaces), selector(pods))
        }
        Peer::Block { block, except } => {
            format!("{{ipBlock: {{cidr: {}, except: {}}}}}", quoted(block), list(except, quoted))
        }
    }
}

fn port(Port { protocol: of, ports }: &Port) -> String {
    let ports = match ports {
        Ports::All => String::new(),
        Ports::Range { first, last } if first == last => format!(", port: {first}"),
        Ports::Range { first, last } => format!(", port: {first}, endPort: {last}"),
        Ports::Named(name) => format!(", port: {name}"),
    };
    format!("{{protocol: {}{ports}}}", protocol(*of))
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn selector(Selector(requirements): &Selector) -> String {
    if requirements.is_empty() {
        return "{}".into();
    }
    let requirement = |requirement: &durward_engine::object::Requirement| {
        let (operator, values): (_, &[_]) = match &requirement.operator {
            Operator::In(values) => ("In", values),
            Operator::NotIn(values) => ("NotIn", values),
            Operator::Exists => ("Exists", &[]),
            Operator::DoesNotExist => ("DoesNotExist", &[]),
        };
        let values =
            if values.is_empty() { "".into() } else { format!(", values: {}", list(values, quoted)) };
        format!("{{key: {}, operator: {operator}{values}}}", requirement.key)
    };
    format!("{{matchExpressions: {}}}", list(requirements, requirement))
}

fn metadata(Key { namespace, name }: &Key, more: &str) -> String {
    format!("metadata: {{namespace: {namespace}, name: {name}{more}}}")
}

fn annotation(name: &str) -> String {
    format!("annotations: {{policy.network.gke.io/{name}: \"true\"}}")
}

fn labels(labels: &Labels) -> String {
    format!(
        "{{{}}}",
        labels.iter().map(|(key, value)| format!("{key}: {value:?}")).collect::<Vec<_>>().join(", ")
    )
}

fn list<T>(items: &[T], print: impl Fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(", "))
}

fn quoted(text: &impl Display) -> String {
    format!("\"{text}\"")
}
