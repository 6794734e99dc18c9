//! From a NetworkPolicy as the API server has it to the engine's. Pure.
//!
//! Read strictly: whatever is not understood, an unknown field of a newer API above all, makes the
//! policy unreadable. It then still says which pods it selects and in which directions, as far as
//! that can be read, so that it isolates these and no others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use durward_engine::object::{
    Operator, Peer, Policy, Port, Ports, Protocol, Requirement, Rule, Rules, Selector, Spec,
};
use durward_proto::{Block, Direction};
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::watch::key;

/// On a policy, asks that connections which it allows are logged.
const LOG_ANNOTATION: &str = "policy.network.gke.io/enable-logging";
/// Kubernetes' own limit on names of ports.
pub(crate) const MAX_PORT_NAME_BYTES: usize = 15;

/// Why a policy is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
struct Unreadable {
    field: String,
    problem: String,
}

type Read<T> = Result<T, Unreadable>;

/// The engine's policy.
pub(crate) fn policy(object: &DynamicObject) -> Policy {
    let annotation = object.annotations().get(LOG_ANNOTATION);
    let key = key(&object.metadata);
    let spec = object.data.get("spec").filter(|spec| !spec.is_null());
    let spec = rules(object, spec).map_or_else(
        |unreadable| Spec::Unreadable {
            selector: spec.and_then(|spec| spec.get("podSelector")).map_or_else(Selector::default, fallback),
            directions: spec.map_or_else(|| Direction::BOTH.to_vec(), fallback_directions),
            reason: format!("NetworkPolicy {key}: {unreadable}"),
        },
        Spec::Readable,
    );
    Policy { key, logged: annotation.is_some_and(|value| value == "true"), spec }
}

/// What the policy selects, if that can be read, else everything.
fn fallback(selector_json: &Value) -> Selector {
    decode("", selector_json).and_then(|json| selector("", json)).unwrap_or_default()
}

/// In which directions it isolates, if that can be read, else both.
fn fallback_directions(spec: &Value) -> Vec<Direction> {
    match spec.get("policyTypes") {
        None | Some(Value::Null) => match spec.get("egress") {
            None => vec![Direction::Ingress],
            Some(_) => Direction::BOTH.to_vec(),
        },
        Some(types) => decode("", types)
            .and_then(|types: Vec<String>| {
                types.iter().map(|text| direction("", text)).collect::<Read<Vec<_>>>()
            })
            .ok()
            .filter(|types| !types.is_empty())
            .unwrap_or_else(|| Direction::BOTH.to_vec()),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpecJson {
    #[serde(default)]
    pod_selector: SelectorJson,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<IngressJson>>,
    egress: Option<Vec<EgressJson>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressJson {
    from: Option<Vec<PeerJson>>,
    ports: Option<Vec<PortJson>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressJson {
    to: Option<Vec<PeerJson>>,
    ports: Option<Vec<PortJson>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerJson {
    pod_selector: Option<SelectorJson>,
    namespace_selector: Option<SelectorJson>,
    ip_block: Option<BlockJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockJson {
    cidr: String,
    except: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortJson {
    protocol: Option<String>,
    port: Option<Value>,
    end_port: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectorJson {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<RequirementJson>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementJson {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> Unreadable {
    Unreadable { field: field.into(), problem: problem.into() }
}

fn decode<T: DeserializeOwned>(field: &str, value: &Value) -> Read<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, problem) = (error.path().to_string(), error.inner());
        let field = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
        wrong(field, format!("{problem}; remove or correct it, or use a Durward that knows it"))
    })
}

fn rules(object: &DynamicObject, spec: Option<&Value>) -> Read<Rules> {
    let fields = object.data.as_object().into_iter().flatten();
    if let Some((field, _)) =
        fields.into_iter().find(|(field, _)| !["spec", "status"].contains(&field.as_str()))
    {
        return Err(wrong(field, "unknown field; remove it, or use a Durward that knows it"));
    }
    let json: SpecJson = spec.map(|spec| decode("spec", spec)).transpose()?.unwrap_or_default();
    let SpecJson { pod_selector, policy_types, ingress, egress } = json;
    let ingress = ingress.map(|rules| {
        let rule =
            |(i, IngressJson { from, ports })| rule(&format!("spec.ingress[{i}]"), "from", from, ports);
        rules.into_iter().enumerate().map(rule).collect()
    });
    let egress = egress.map(|rules| {
        let rule = |(i, EgressJson { to, ports })| rule(&format!("spec.egress[{i}]"), "to", to, ports);
        rules.into_iter().enumerate().map(rule).collect()
    });
    Ok(Rules {
        selector: selector("spec.podSelector", pod_selector)?,
        types: each("spec.policyTypes", policy_types, |field, text| direction(field, &text))?,
        ingress: ingress.transpose()?,
        egress: egress.transpose()?,
    })
}

/// Reads each entry of a list that may be missing, with its field's name.
fn each<T, U>(field: &str, list: Option<Vec<T>>, read: impl Fn(&str, T) -> Read<U>) -> Read<Vec<U>> {
    let entries = list.into_iter().flatten().enumerate();
    entries.map(|(i, entry)| read(&format!("{field}[{i}]"), entry)).collect()
}

fn rule(
    field: &str,
    peers_name: &str,
    peers: Option<Vec<PeerJson>>,
    ports: Option<Vec<PortJson>>,
) -> Read<Rule> {
    Ok(Rule {
        peers: each(&format!("{field}.{peers_name}"), peers, peer)?,
        ports: each(&format!("{field}.ports"), ports, port)?,
    })
}

fn direction(field: &str, text: &str) -> Read<Direction> {
    match text {
        "Ingress" => Ok(Direction::Ingress),
        "Egress" => Ok(Direction::Egress),
        _ => Err(wrong(field, format!("{text:?} is unknown; use Ingress or Egress"))),
    }
}

fn peer(field: &str, json: PeerJson) -> Read<Peer> {
    let PeerJson { pod_selector, namespace_selector, ip_block } = json;
    match (pod_selector, namespace_selector, ip_block) {
        (None, None, Some(block_json)) => block(&format!("{field}.ipBlock"), block_json),
        (None, None, None) => {
            Err(wrong(field, "it is empty; name podSelector, namespaceSelector or ipBlock"))
        }
        (_, _, Some(_)) => Err(wrong(field, "ipBlock stands beside a selector; make two entries of them")),
        (pods, namespaces, None) => {
            let read = |name: &str, json: SelectorJson| selector(&format!("{field}.{name}"), json);
            Ok(Peer::Pods {
                namespaces: namespaces.map(|json| read("namespaceSelector", json)).transpose()?,
                pods: pods.map(|json| read("podSelector", json)).transpose()?.unwrap_or_default(),
            })
        }
    }
}

fn block(field: &str, BlockJson { cidr, except }: BlockJson) -> Read<Peer> {
    let block = cidr_block(&format!("{field}.cidr"), &cidr)?;
    let except = each(&format!("{field}.except"), except, |field, text| {
        let inner = cidr_block(field, &text)?;
        if inner.length() < block.length() || !block.contains(inner.address()) {
            return Err(wrong(field, format!("{text:?} is not within {cidr:?}; remove it or correct it")));
        }
        Ok(inner)
    })?;
    Ok(Peer::Block { block, except })
}

/// Reads a block as the API server does, which lets bits stand after the prefix: they do not count.
fn cidr_block(field: &str, text: &str) -> Read<Block> {
    let refuse = |problem: String| wrong(field, format!("{problem}; correct it"));
    let parsed = || {
        let (address, length) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        // An IPv4 block in IPv6 form: peers disagree on what it covers.
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return None;
        }
        let first = Block::containing(address, length.parse().ok()?).ok()?.address();
        format!("{first}/{length}").parse().ok()
    };
    parsed().ok_or_else(|| {
        refuse(format!(
            "{text:?} is no CIDR block, such as 10.0.0.0/8 or 2001:db8::/32, without leading zeros"
        ))
    })
}

fn port(field: &str, json: PortJson) -> Read<Port> {
    let PortJson { protocol: protocol_name, port, end_port } = json;
    let protocol = protocol(&format!("{field}.protocol"), protocol_name.as_deref())?;
    let number = |name: &str, value: &Value| {
        let number =
            value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|&number| number > 0);
        number.ok_or_else(|| wrong(format!("{field}.{name}"), format!("{value} is no port from 1 to 65535")))
    };
    let ports = match (port, end_port) {
        (None, None) => Ports::All,
        (None, Some(_)) => {
            return Err(wrong(format!("{field}.endPort"), "port is missing beside it; add it"));
        }
        (Some(Value::String(_)), Some(_)) => {
            return Err(wrong(format!("{field}.endPort"), "port is a name; use a number, or remove endPort"));
        }
        (Some(Value::String(name)), None) => {
            let limit = 1..=MAX_PORT_NAME_BYTES;
            if !limit.contains(&name.len()) {
                let problem =
                    format!("a name of {} bytes; names have 1 to {MAX_PORT_NAME_BYTES}", name.len());
                return Err(wrong(format!("{field}.port"), problem));
            }
            Ports::Named(name.into())
        }
        (Some(first), last) => {
            let first = number("port", &first)?;
            let last = last.map_or(Ok(first), |last| number("endPort", &last))?;
            if last < first {
                return Err(wrong(
                    format!("{field}.endPort"),
                    format!("{last} is below port {first}; swap them"),
                ));
            }
            Ports::Range { first, last }
        }
    };
    Ok(Port { protocol, ports })
}

fn protocol(field: &str, name: Option<&str>) -> Read<Protocol> {
    parse_protocol(name).ok_or_else(|| {
        wrong(field, format!("{:?} is unknown; use TCP, UDP or SCTP", name.unwrap_or_default()))
    })
}

/// A protocol by its name in the API; TCP if there is none.
pub(crate) fn parse_protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn selector(field: &str, json: SelectorJson) -> Read<Selector> {
    let SelectorJson { match_labels, match_expressions } = json;
    let labels = match_labels
        .into_iter()
        .flatten()
        .map(|(key, value)| Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) });
    let expressions = each(&format!("{field}.matchExpressions"), match_expressions, requirement)?;
    Ok(Selector(labels.chain(expressions).collect()))
}

fn requirement(field: &str, json: RequirementJson) -> Read<Requirement> {
    let RequirementJson { key, operator: name, values } = json;
    let values: Vec<Arc<str>> = values.into_iter().flatten().map(Arc::from).collect();
    let operator = match (&*name, values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("In" | "NotIn", true) => {
            return Err(wrong(format!("{field}.values"), format!("{name} needs values; add one")));
        }
        ("Exists" | "DoesNotExist", false) => {
            return Err(wrong(format!("{field}.values"), format!("{name} takes none; remove them")));
        }
        _ => {
            let known = "use In, NotIn, Exists or DoesNotExist";
            return Err(wrong(format!("{field}.operator"), format!("{name:?} is unknown; {known}")));
        }
    };
    Ok(Requirement { key: key.into(), operator })
}

#[cfg(test)]
mod tests;
