//! A verdict as one line of JSON. Pure.
//!
//! Other people's tools read exactly these keys, and some read them in this order: the fields of the structs
//! below are in the order in which they are written.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use durward_proto::{Direction, PodName, Policy};
use serde::{Serialize, Serializer};

use crate::time;

/// A connection, from the side that opened it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Who opened it. The port counts where the protocol has ports.
    pub src: SocketAddr,
    /// Who was called: of a Service, its backend.
    pub dest: SocketAddr,
    /// The protocol's IANA number.
    pub protocol: u8,
    /// The direction, seen from the pod whose policies spoke.
    pub direction: Direction,
}

/// What became of it, and the policies behind that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It was allowed, by these.
    Allow(Vec<Policy>),
    /// It was denied, because these isolate the pod.
    Deny(Vec<Policy>),
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod of this cluster.
    Pod(PodName),
    /// Something else.
    Instance(IpAddr),
}

/// The Service that was called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Whether the verdict is on the Service, not on the backend that was called: the line's end is then the Service's
    /// own address.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub conservative: bool,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The connection.
    pub connection: Connection,
    /// What became of it.
    pub disposition: Disposition,
    /// Who opened it.
    pub src: End,
    /// Who was called.
    pub dest: End,
    /// The Service by which it was called, if it was by one.
    pub service: Option<Service>,
    /// How many denied packets are folded into the line; 1 on allow.
    pub count: u64,
    /// The node that enforced.
    pub node: Arc<str>,
    /// When the (first) packet came, in nanoseconds since 1970.
    pub at_ns: i64,
}

impl Line {
    /// The line as it is in the file, with its newline.
    pub fn json(&self) -> String {
        let Self { connection, disposition, src, dest, service, count, node, at_ns } = self;
        let (disposition, policies, isolated_by) = match disposition {
            Disposition::Allow(policies) => ("allow", Some(Policies(policies)), None),
            // Without the key if they are not known any more: an empty list would say that there were none.
            Disposition::Deny(policies) => {
                ("deny", None, (!policies.is_empty()).then_some(Policies(policies)))
            }
        };
        line_of(&Json {
            connection: connection.into(),
            disposition,
            policies,
            isolated_by,
            src: src.into(),
            dest: dest.into(),
            service: service.as_ref(),
            count: *count,
            node_name: node,
            timestamp: time::rfc3339(*at_ns),
        })
    }
}

/// One object as one line.
pub(crate) fn line_of(object: &impl Serialize) -> String {
    // Structs of strings and numbers always serialise; a line that did not would be an empty one.
    let mut line = serde_json::to_string(object).unwrap_or_default();
    line.push('\n');
    line
}

#[derive(Serialize)]
struct Json<'a> {
    connection: ConnectionJson,
    disposition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Policies<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated_by: Option<Policies<'a>>,
    src: EndJson<'a>,
    dest: EndJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a Service>,
    count: u64,
    node_name: &'a str,
    timestamp: String,
}

/// Also what a line that was written says of its connection, so that it can be recognised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
pub(crate) struct ConnectionJson {
    src_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    dest_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dest_port: Option<u16>,
    protocol: String,
    direction: Direction,
}

impl From<&Connection> for ConnectionJson {
    fn from(connection: &Connection) -> Self {
        let Connection { src, dest, protocol, direction } = *connection;
        let port = |end: SocketAddr| has_ports(protocol).then(|| end.port());
        Self {
            src_ip: src.ip(),
            src_port: port(src),
            dest_ip: dest.ip(),
            dest_port: port(dest),
            protocol: protocol_name(protocol),
            direction,
        }
    }
}

#[derive(Serialize)]
struct EndJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<IpAddr>,
}

impl<'a> From<&'a End> for EndJson<'a> {
    fn from(end: &'a End) -> Self {
        let (pod, instance) = match end {
            End::Pod(pod) => (Some(pod), None),
            End::Instance(address) => (None, Some(*address)),
        };
        let namespace = pod.map(|pod| &*pod.namespace);
        let workload = pod.and_then(|pod| pod.workload.as_ref());
        Self {
            pod_name: pod.map(|pod| &*pod.name),
            pod_namespace: namespace,
            namespace,
            workload_kind: workload.map(|workload| &*workload.kind),
            workload_name: workload.map(|workload| &*workload.name),
            instance,
        }
    }
}

pub(crate) struct Policies<'a>(pub(crate) &'a [Policy]);

impl Serialize for Policies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct PolicyJson<'a> {
            kind: &'static str,
            name: &'a str,
            namespace: &'a str,
        }
        serializer.collect_seq(self.0.iter().map(|policy| PolicyJson {
            kind: "NetworkPolicy",
            name: &policy.name,
            namespace: &policy.namespace,
        }))
    }
}

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        number => format!("proto-{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_proto::Workload;

    /// The line that the product's users know.
    const KNOWN: &str = concat!(
        r#"{"connection":{"src_ip":"10.8.1.8","src_port":45084,"dest_ip":"10.8.0.11","dest_port":6379,"#,
        r#""protocol":"tcp","direction":"ingress"},"disposition":"deny","src":{"pod_name":"rogue-1","#,
        r#""pod_namespace":"default","namespace":"default"},"dest":{"pod_name":"redis-cart-74594bd569-wcvlz","#,
        r#""pod_namespace":"default","namespace":"default","workload_kind":"Deployment","#,
        r#""workload_name":"redis-cart"},"count":3,"node_name":"node-1","#,
        r#""timestamp":"2026-01-05T21:30:22.292379064Z"}"#,
        "\n"
    );

    fn pod(name: &str, workload: Option<(&str, &str)>) -> End {
        let workload = workload.map(|(kind, name)| Workload { kind: kind.into(), name: name.into() });
        End::Pod(PodName { namespace: "default".into(), name: name.into(), workload })
    }

    fn policy(name: &str) -> Policy {
        Policy { namespace: "default".into(), name: name.into(), logged: true }
    }

    fn denied() -> Line {
        Line {
            connection: Connection {
                src: "10.8.1.8:45084".parse().unwrap(),
                dest: "10.8.0.11:6379".parse().unwrap(),
                protocol: 6,
                direction: Direction::Ingress,
            },
            disposition: Disposition::Deny(vec![]),
            src: pod("rogue-1", None),
            dest: pod("redis-cart-74594bd569-wcvlz", Some(("Deployment", "redis-cart"))),
            service: None,
            count: 3,
            node: "node-1".into(),
            at_ns: time::parse("2026-01-05T21:30:22.292379064Z").unwrap(),
        }
    }

    #[test]
    fn the_known_line_is_written_to_the_letter() {
        assert_eq!(denied().json(), KNOWN);
    }

    #[test]
    fn a_denial_names_those_that_isolate_under_a_key_of_their_own() {
        let line = Line { disposition: Disposition::Deny(vec![policy("a"), policy("b")]), ..denied() };
        let isolated_by = concat!(
            r#""disposition":"deny","isolated_by":[{"kind":"NetworkPolicy","name":"a","namespace":"default"},"#,
            r#"{"kind":"NetworkPolicy","name":"b","namespace":"default"}],"src""#
        );
        assert_eq!(line.json(), KNOWN.replace(r#""disposition":"deny","src""#, isolated_by));
    }

    #[test]
    fn a_service_stands_beside_its_backend() {
        let service = Service { name: "redis-cart".into(), namespace: "shop".into(), conservative: false };
        let line = Line { service: Some(service.clone()), ..denied() };
        let shown = r#""service":{"name":"redis-cart","namespace":"shop"},"count""#;
        assert_eq!(line.json(), KNOWN.replace(r#""count""#, shown));
        let line = Line { service: Some(Service { conservative: true, ..service }), ..denied() };
        let shown = r#""service":{"name":"redis-cart","namespace":"shop","conservative":true},"count""#;
        assert_eq!(line.json(), KNOWN.replace(r#""count""#, shown));
    }

    #[test]
    fn an_allowed_connection_to_somewhere_else() {
        let line = Line {
            connection: Connection {
                src: "[2001:db8::8]:0".parse().unwrap(),
                dest: "[2001:db8::9]:7".parse().unwrap(),
                protocol: 58,
                direction: Direction::Egress,
            },
            disposition: Disposition::Allow(vec![policy("a")]),
            dest: End::Instance("2001:db8::9".parse().unwrap()),
            count: 1,
            at_ns: 1_000_000_000,
            ..denied()
        };
        let expected = concat!(
            r#"{"connection":{"src_ip":"2001:db8::8","dest_ip":"2001:db8::9","protocol":"icmpv6","#,
            r#""direction":"egress"},"disposition":"allow","policies":[{"kind":"NetworkPolicy","name":"a","#,
            r#""namespace":"default"}],"src":{"pod_name":"rogue-1","pod_namespace":"default","#,
            r#""namespace":"default"},"dest":{"instance":"2001:db8::9"},"count":1,"node_name":"node-1","#,
            r#""timestamp":"1970-01-01T00:00:01.000000000Z"}"#,
            "\n"
        );
        assert_eq!(line.json(), expected);
    }

    #[test]
    fn protocols_have_names_or_numbers_and_some_have_ports() {
        let names = [1, 6, 17, 47, 58, 132].map(protocol_name);
        assert_eq!(names, ["icmp", "tcp", "udp", "proto-47", "icmpv6", "sctp"]);
        assert_eq!([1, 6, 17, 47, 58, 132].map(has_ports), [false, true, true, false, false, true]);
    }
}
