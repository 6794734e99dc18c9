//! From Services and their EndpointSlices to where they are called and where calls end. Pure.
//!
//! As kube-proxy reads them: what it does not translate is no Service here.

use std::net::IpAddr;

use durward_engine::object::{EndpointSlice, Event, Key, NamedPort, Protocol, Service, ServicePort};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;

use crate::event::{Notice, Severity, reference};
use crate::policy::parse_protocol;
use crate::task::Change;
use crate::watch::{Translation, key};

/// On a slice, the name of its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The address of a Service without one.
const HEADLESS: &str = "None";

/// What of a Service or a slice is not understood, and so is left out of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ServiceFault {
    #[error(
        "{0}: it has the address {1:?}, which is none; calls to it are judged as calls to any address that is no \
         Service's"
    )]
    Address(Key, String),
    #[error("{0}: a port has the number {1}, and ports go from 1 to 65535; it is left out")]
    Number(Key, i32),
    #[error("{0}: a port has the protocol {1:?}, which is neither TCP, UDP nor SCTP; it is left out")]
    Protocol(Key, String),
}

/// A Service is so.
pub(crate) fn put_service(object: &v1::Service) -> Translation {
    let (key, mut faults) = (key(&object.metadata), vec![]);
    let uid = object.metadata.uid.as_deref();
    let change = match service(&key, object, &mut faults) {
        Some(service) => Change::Service(service, uid.unwrap_or_default().into()),
        None => Change::Engine(Event::ServiceGone(key.clone())),
    };
    let fault = notice(faults, reference::<v1::Service>(Some(&key.namespace), &key.name, uid));
    Translation { changes: vec![change], fault }
}

/// There is no such Service.
pub(crate) fn service_gone(key: &Key) -> Vec<Change> {
    vec![Change::Engine(Event::ServiceGone(key.clone()))]
}

/// An EndpointSlice is so.
pub(crate) fn put_slice(object: &discovery::EndpointSlice) -> Translation {
    let (key, mut faults) = (key(&object.metadata), vec![]);
    let slice = slice(&key, object, &mut faults);
    let event = slice.map_or_else(|| Event::EndpointSliceGone(key.clone()), Event::EndpointSlice);
    let regarding = reference::<discovery::EndpointSlice>(
        Some(&key.namespace),
        &key.name,
        object.metadata.uid.as_deref(),
    );
    Translation { changes: vec![Change::Engine(event)], fault: notice(faults, regarding) }
}

/// There is no such EndpointSlice.
pub(crate) fn slice_gone(key: &Key) -> Vec<Change> {
    vec![Change::Engine(Event::EndpointSliceGone(key.clone()))]
}

fn notice(
    faults: Vec<ServiceFault>,
    regarding: k8s_openapi::api::core::v1::ObjectReference,
) -> Option<Notice> {
    (!faults.is_empty()).then(|| Notice {
        regarding,
        severity: Severity::Warning,
        reason: "ServiceNotUnderstood",
        action: "LeaveOut",
        note: faults.iter().map(ServiceFault::to_string).collect::<Vec<_>>().join("; "),
    })
}

/// None if it has no address of its own.
fn service(key: &Key, object: &v1::Service, faults: &mut Vec<ServiceFault>) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") || cluster_ip == HEADLESS {
        return None;
    }
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    // In mode Proxy, calls from pods go out to the load balancer, and are not translated here.
    let is_local = |point: &&v1::LoadBalancerIngress| point.ip_mode.as_deref() != Some("Proxy");
    let balanced = ingress.and_then(|status| status.ingress.as_ref()).into_iter().flatten().filter(is_local);
    let texts = spec
        .cluster_ips
        .iter()
        .flatten()
        .map(String::as_str)
        .chain([cluster_ip])
        .chain(spec.external_ips.iter().flatten().map(String::as_str))
        .chain(balanced.filter_map(|point| point.ip.as_deref()));
    let addresses = addresses(key, texts, faults);
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(key, port.protocol.as_deref(), faults)?,
            number: number(key, port.port, faults)?,
            node_port: port
                .node_port
                .filter(|&number| number != 0)
                .and_then(|port| number(key, port, faults)),
        })
    });
    Some(Service { key: key.clone(), ports: ports.collect(), addresses })
}

/// None if it is no Service's.
fn slice(
    key: &Key,
    object: &discovery::EndpointSlice,
    faults: &mut Vec<ServiceFault>,
) -> Option<EndpointSlice> {
    let service = object.metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    // Where none is ready, kube-proxy takes those that still serve while they end: they may be called, too.
    let may_be_called = |endpoint: &&discovery::Endpoint| {
        let Some(conditions) = &endpoint.conditions else { return true };
        conditions.ready.unwrap_or(true) || conditions.serving.unwrap_or(true)
    };
    let endpoints = object.endpoints.iter().flatten().filter(may_be_called);
    let texts = endpoints.flat_map(|endpoint| endpoint.addresses.iter().map(String::as_str));
    let texts = texts.filter(|_| object.address_type != "FQDN");
    let addresses = addresses(key, texts, faults);
    let ports = object.ports.iter().flatten().filter_map(|port| {
        Some(NamedPort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(key, port.protocol.as_deref(), faults)?,
            // Without a number it is for consumers of their own, and kube-proxy ignores it.
            number: number(key, port.port?, faults)?,
        })
    });
    Some(EndpointSlice {
        key: key.clone(),
        service: service.as_str().into(),
        ports: ports.collect(),
        addresses,
    })
}

fn addresses<'a>(
    key: &Key,
    texts: impl Iterator<Item = &'a str>,
    faults: &mut Vec<ServiceFault>,
) -> Vec<IpAddr> {
    let mut addresses = vec![];
    for text in texts.filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(durward_proto::view::canonical(address)),
            Err(_) => faults.push(ServiceFault::Address(key.clone(), text.to_owned())),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn number(key: &Key, number: i32, faults: &mut Vec<ServiceFault>) -> Option<u16> {
    let read = u16::try_from(number).ok().filter(|&number| number > 0);
    if read.is_none() {
        faults.push(ServiceFault::Number(key.clone(), number));
    }
    read
}

fn protocol(key: &Key, text: Option<&str>, faults: &mut Vec<ServiceFault>) -> Option<Protocol> {
    let read = parse_protocol(text);
    if read.is_none() {
        faults.push(ServiceFault::Protocol(key.clone(), text.unwrap_or_default().to_owned()));
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read_service(object: Value) -> (Event, Option<String>) {
        let Translation { mut changes, fault } = put_service(&serde_json::from_value(object).unwrap());
        let event = match changes.pop() {
            Some(Change::Engine(event)) => event,
            Some(Change::Service(service, uid)) => {
                assert_eq!(&*uid, "uid of web");
                Event::Service(service)
            }
            _ => panic!("not one event"),
        };
        (event, fault.map(|notice| notice.note))
    }

    fn read_slice(object: Value) -> (Event, Option<String>) {
        let Translation { mut changes, fault } = put_slice(&serde_json::from_value(object).unwrap());
        let Some(Change::Engine(event)) = changes.pop() else { panic!("not one event") };
        (event, fault.map(|notice| notice.note))
    }

    fn web() -> Value {
        json!({
            "metadata": { "namespace": "shop", "name": "web", "uid": "uid of web" },
            "spec": {
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.1"],
                "ports": [
                    { "name": "http", "port": 80, "targetPort": "named", "nodePort": 30080 },
                    { "name": "dns", "port": 53, "protocol": "UDP" },
                ],
            },
            "status": { "loadBalancer": { "ingress": [
                { "ip": "192.0.2.2" }, { "ip": "192.0.2.3", "ipMode": "Proxy" }, { "hostname": "lb.example" },
            ] } },
        })
    }

    #[test]
    fn a_service_is_called_at_all_addresses_that_kube_proxy_translates() {
        let addresses = ["10.96.0.1", "192.0.2.1", "192.0.2.2", "fd00::1"].map(|text| text.parse().unwrap());
        let expected = Service {
            key: Key::new("shop", "web"),
            addresses: addresses.into(),
            ports: vec![
                ServicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    number: 80,
                    node_port: Some(30080),
                },
                ServicePort { name: "dns".into(), protocol: Protocol::Udp, number: 53, node_port: None },
            ],
        };
        assert_eq!(read_service(web()), (Event::Service(expected), None));
    }

    #[test]
    fn what_kube_proxy_does_not_translate_is_no_service() {
        let gone = (Event::ServiceGone(Key::new("shop", "web")), None);
        let mut headless = web();
        headless["spec"]["clusterIP"] = json!("None");
        assert_eq!(read_service(headless), gone);
        let mut external = web();
        external["spec"]["type"] = json!("ExternalName");
        assert_eq!(read_service(external), gone);
    }

    #[test]
    fn a_slice_tells_the_addresses_that_may_be_called() {
        let endpoint = |host: u8, conditions: Value| json!({ "addresses": [format!("10.0.0.{host}")], "conditions": conditions });
        let object = json!({
            "metadata": { "namespace": "shop", "name": "web-x", "labels": { SERVICE_LABEL: "web" } },
            "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.0.0.1"] },
                endpoint(2, json!({ "ready": true })),
                endpoint(3, json!({ "ready": false, "serving": true, "terminating": true })),
                endpoint(4, json!({ "ready": false, "serving": false })),
            ],
            "ports": [{ "name": "http", "port": 8080 }, { "name": "all" }],
        });
        let expected = EndpointSlice {
            key: Key::new("shop", "web-x"),
            service: "web".into(),
            addresses: ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap()).into(),
            ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }],
        };
        assert_eq!(read_slice(object.clone()), (Event::EndpointSlice(expected), None));
        let mut alone = object;
        alone["metadata"]["labels"] = json!({});
        assert_eq!(read_slice(alone), (Event::EndpointSliceGone(Key::new("shop", "web-x")), None));
    }

    #[test]
    fn what_is_not_understood_is_left_out_and_said() {
        let mut wrong = web();
        wrong["spec"]["externalIPs"] = json!(["192.0.2.999"]);
        wrong["spec"]["ports"][0]["port"] = json!(0);
        wrong["spec"]["ports"][1]["protocol"] = json!("QUIC");
        let (event, fault) = read_service(wrong);
        let Event::Service(service) = event else { panic!("a Service") };
        assert_eq!((service.addresses.len(), service.ports), (3, vec![]));
        let fault = fault.unwrap();
        for part in ["the address \"192.0.2.999\"", "the number 0", "the protocol \"QUIC\""] {
            assert!(fault.contains(part), "{fault:?} does not say {part:?}");
        }
    }
}
