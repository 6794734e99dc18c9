//! The book: what whoever writes about verdicts must know of the numbers in the kernel. Pure.
//!
//! One task publishes it, whole, whenever it changes.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use durward_proto::{Frontend, Leaves, Logging, PodUid, PortKey};

use crate::services::Judging;

/// Who and what the kernel's numbers mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// The policies behind each attribution's number; those that left the view, for 15 minutes more. As leaves,
    /// of which a changed policy changes one: thousands of long lists may have been there in that time.
    pub attributions: HashMap<u32, Leaves>,
    /// The known pods by interface.
    pub endpoints: HashMap<u32, Endpoint>,
    /// The Services by where they are called; those that left the view, for 15 minutes more.
    pub services: HashMap<Frontend, ServiceName>,
    /// The node's own addresses: NodePorts are there.
    pub host: BTreeSet<IpAddr>,
    /// How calls to Services are judged.
    pub judging: Judging,
    /// What is logged.
    pub logging: Logging,
}

impl Book {
    /// The Service that is called there.
    pub fn service(&self, called: SocketAddr, protocol: u8) -> Option<&ServiceName> {
        let port = PortKey::new(protocol, called.port());
        let at = |address| self.services.get(&Frontend { address, port });
        let is_host = self.host.contains(&called.ip());
        at(Some(called.ip())).or_else(|| at(None).filter(|_| is_host))
    }
}

/// A Service's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A pod of this node, as the log needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its UID.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its namespace asks for denials to be logged.
    pub denies_logged: bool,
}
