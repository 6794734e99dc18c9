//! The cluster's objects, reduced to what policies can see of them, and the events that carry them. Pure.
//!
//! Whoever watches the API server makes these from its objects, once, at the door. An object's key is
//! what the API server keeps unique: a put with a key replaces what had it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{Block, Direction, Logging, PodUid};

/// Labels by key. Shared, because most pods look like another.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

/// The label that every namespace has; its value is the namespace's name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The namespace and the name of a pod or a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// The key of these two.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A protocol that a policy's port can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: PodUid,
    /// Its key.
    pub key: Key,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, in any order; IPv4 addresses may be written as mapped IPv6 ones.
    pub addresses: Vec<IpAddr>,
    /// Its node; none until it is scheduled.
    pub node: Option<Arc<str>>,
    /// Whether it is in its node's network: such a pod is nobody's peer and no policy's subject.
    pub host_network: bool,
    /// Whether it has Succeeded or Failed: another pod may have its address. A pod that is being
    /// deleted is not completed.
    pub completed: bool,
    /// For a static pod, its `kubernetes.io/config.hash`.
    pub config_hash: Option<Arc<str>>,
    /// The named ports of its containers, native sidecars included, in any order.
    pub ports: Vec<NamedPort>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels; [`NAMESPACE_NAME_LABEL`] counts whether it is among them or not.
    pub labels: Labels,
    /// Whether it carries `policy.network.gke.io/enable-deny-logging: "true"`.
    pub denies_logged: bool,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its key.
    pub key: Key,
    /// Whether it carries `policy.network.gke.io/enable-logging: "true"`.
    pub logged: bool,
    /// What it says.
    pub spec: Spec,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Spec {
    /// It is understood.
    Readable(Rules),
    /// It is not understood, so it isolates what it selects and allows nothing.
    Unreadable {
        /// Which pods of its namespace it selects; `Selector::default()`, which selects all, if
        /// even that is not understood.
        selector: Selector,
        /// In which directions; both if even that is not understood.
        directions: Vec<Direction>,
        /// What is not understood and what to do about it, for people to read.
        reason: String,
    },
}

/// The spec of a policy that is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Which pods of its namespace it selects.
    pub selector: Selector,
    /// `policyTypes`; empty if the policy leaves it to the default.
    pub types: Vec<Direction>,
    /// `ingress`; none if the field is missing.
    pub ingress: Option<Vec<Rule>>,
    /// `egress`; none if the field is missing.
    pub egress: Option<Vec<Rule>>,
}

/// One entry of `ingress` or `egress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `from` or `to`; everybody if empty.
    pub peers: Vec<Peer>,
    /// `ports`; every port of every protocol if empty.
    pub ports: Vec<Port>,
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods.
    Pods {
        /// `namespaceSelector`; the policy's own namespace if missing.
        namespaces: Option<Selector>,
        /// `podSelector`; `Selector::default()`, which selects all, if missing.
        pods: Selector,
    },
    /// `ipBlock`: every address of `block` that is in none of `except`.
    Block {
        /// `cidr`.
        block: Block,
        /// `except`.
        except: Vec<Block>,
    },
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// `protocol`.
    pub protocol: Protocol,
    /// `port` and `endPort`.
    pub ports: Ports,
}

/// Which ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All: `port` is missing.
    All,
    /// From the first to the last, both included.
    Range {
        /// `port`.
        first: u16,
        /// `endPort`, or `port` again.
        last: u16,
    },
    /// Whatever number the pod that is connected to gives this name.
    Named(Arc<str>),
}

/// A label selector: all of the requirements must hold. Without any it selects everything.
/// `matchLabels` are requirements of one value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(pub Vec<Requirement>);

/// What a selector requires of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What must hold for it.
    pub operator: Operator,
}

/// What must hold for a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// It is there and has one of these values.
    In(Vec<Arc<str>>),
    /// It is missing or has none of these values.
    NotIn(Vec<Arc<str>>),
    /// It is there.
    Exists,
    /// It is missing.
    DoesNotExist,
}

/// A Service that kube-proxy translates; headless ones are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// ClusterIPs, external addresses, and those of load balancers.
    pub addresses: Vec<IpAddr>,
    /// What is served there.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which slices say where calls end; empty if it is the only one.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number at the Service's addresses.
    pub number: u16,
    /// Its number at every node, if it has one.
    pub node_port: Option<u16>,
}

/// Where calls to a Service may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: Key,
    /// The name of its Service, in the same namespace.
    pub service: Arc<str>,
    /// Addresses that calls may be sent to: those that are ready, and those that still serve.
    pub addresses: Vec<IpAddr>,
    /// The Service's ports by name, with their numbers there.
    pub ports: Vec<NamedPort>,
}

impl EndpointSlice {
    /// Namespace and name of its Service.
    pub fn service_key(&self) -> Key {
        Key { namespace: self.key.namespace.clone(), name: self.service.clone() }
    }
}

/// Something changed in the cluster. What an object refers to need not be there, what goes need not
/// have been there, and the same thing may be said twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A pod is so.
    Pod(Pod),
    /// There is no such pod.
    PodGone(Key),
    /// A namespace is so.
    Namespace(Namespace),
    /// There is no such namespace.
    NamespaceGone(Arc<str>),
    /// A policy is so.
    Policy(Policy),
    /// There is no such policy.
    PolicyGone(Key),
    /// A Service is so.
    Service(Service),
    /// There is no such Service.
    ServiceGone(Key),
    /// An EndpointSlice is so.
    EndpointSlice(EndpointSlice),
    /// There is no such EndpointSlice.
    EndpointSliceGone(Key),
    /// What is logged is so; `Logging::default()` if there is no NetworkLogging object.
    Logging(Logging),
}
