//! Policies as the oracle sees them, read from what is applied to the API server. Pure.
//!
//! Written from the API's text, without the product's own reader, so that a mistake in that one shows.

use durward_engine::object::{
    Key, NamedPort, Operator, Peer, Policy, Port, Ports, Protocol, Requirement, Rule, Rules, Selector, Spec,
};
use durward_proto::Direction;
use serde_json::Value;

pub(crate) fn policy(key: Key, spec: &Value) -> Policy {
    let rules = Rules {
        selector: selector(&spec["podSelector"]),
        types: list(&spec["policyTypes"]).iter().map(direction).collect(),
        ingress: spec.get("ingress").map(|rules| list(rules).iter().map(|r| rule(r, "from")).collect()),
        egress: spec.get("egress").map(|rules| list(rules).iter().map(|r| rule(r, "to")).collect()),
    };
    Policy { key, logged: false, spec: Spec::Readable(rules) }
}

pub(crate) fn named_ports(container_ports: &Value) -> Vec<NamedPort> {
    let read = |port: &Value| NamedPort {
        name: text(&port["name"]).into(),
        protocol: protocol(&port["protocol"]),
        number: number(&port["containerPort"]),
    };
    list(container_ports).iter().map(read).collect()
}

fn direction(value: &Value) -> Direction {
    if text(value) == "Ingress" { Direction::Ingress } else { Direction::Egress }
}

fn rule(rule: &Value, peers: &str) -> Rule {
    Rule {
        peers: list(&rule[peers]).iter().map(peer).collect(),
        ports: list(&rule["ports"]).iter().map(port).collect(),
    }
}

fn peer(peer: &Value) -> Peer {
    if let Some(block) = peer.get("ipBlock") {
        let parse = |block: &Value| text(block).parse().unwrap();
        return Peer::Block {
            block: parse(&block["cidr"]),
            except: list(&block["except"]).iter().map(parse).collect(),
        };
    }
    Peer::Pods {
        namespaces: peer.get("namespaceSelector").map(selector),
        pods: selector(&peer["podSelector"]),
    }
}

fn port(port: &Value) -> Port {
    let ports = match (&port["port"], port.get("endPort")) {
        (Value::Null, _) => Ports::All,
        (Value::String(name), _) => Ports::Named(name.as_str().into()),
        (first, last) => Ports::Range { first: number(first), last: number(last.unwrap_or(first)) },
    };
    Port { protocol: protocol(&port["protocol"]), ports }
}

fn protocol(value: &Value) -> Protocol {
    match value.as_str() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => Protocol::Sctp,
    }
}

pub(crate) fn selector(selector: &Value) -> Selector {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| Requirement {
        key: key.as_str().into(),
        operator: Operator::In(vec![text(value).into()]),
    });
    let expressions = list(&selector["matchExpressions"]).iter().map(|expression| {
        let values = || list(&expression["values"]).iter().map(|value| text(value).into()).collect();
        let operator = match text(&expression["operator"]) {
            "In" => Operator::In(values()),
            "NotIn" => Operator::NotIn(values()),
            "Exists" => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        Requirement { key: text(&expression["key"]).into(), operator }
    });
    Selector(labels.chain(expressions).collect())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u16 {
    value.as_u64().unwrap().try_into().unwrap()
}
