//! Everything that is in the kernel, for people. IO.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::{
    Act, Attached, Block, Bound, Connection, Counters, DataPath, Denial, Direction, Endpoint, Frontend,
    HostAddress, MapError, Services, Word,
};

/// What the kernel holds.
#[derive(Clone, Debug, Serialize)]
pub struct Dump {
    /// The endpoints, with their totals.
    pub endpoints: Vec<EndpointDump>,
    /// What was counted for interfaces without an endpoint.
    pub elsewhere: [Counters; 2],
    /// The programs' links.
    pub links: Vec<Attached>,
    /// Exact addresses and their atoms.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Blocks and their atoms.
    pub blocks: Vec<(Block, u32)>,
    /// Nodes' addresses.
    pub hosts: Vec<(IpAddr, HostAddress)>,
    /// How calls to Services are judged, and where they are called.
    pub services: (Services, Vec<Frontend>),
    /// Rows by set and atom.
    pub rows: Vec<RowDump>,
    /// Connections.
    pub connections: Vec<ConnectionDump>,
    /// Windows of denials that are open.
    pub denials: Vec<Denial>,
}

/// An endpoint and its totals.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointDump {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Totals to and from the pod.
    pub counters: [Counters; 2],
}

/// A row.
#[derive(Clone, Debug, Serialize)]
pub struct RowDump {
    /// Its set.
    pub set: u32,
    /// Its atom; 0 for the set's base row.
    pub atom: u32,
    /// Its bounds.
    pub bounds: Vec<Bound>,
}

/// A connection.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionDump {
    /// Its endpoint's interface.
    pub ifindex: u32,
    /// The protocol's IANA number.
    pub protocol: u8,
    /// The pod's side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// Whose rules count.
    pub opener: Direction,
    /// What was said.
    pub act: Act,
    /// Under which word.
    pub word: Word,
    /// How far it is.
    pub state: &'static str,
    /// Whether it was cut.
    pub cut: bool,
    /// Whether it is between the pod and its node.
    pub host: bool,
    /// Whether it was there before us.
    pub adopted: bool,
}

impl DataPath {
    /// Reads everything.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn dump(&self) -> Result<Dump, MapError> {
        let both = |ifindex| -> Result<[Counters; 2], MapError> {
            Ok([self.counters(ifindex, Direction::Ingress)?, self.counters(ifindex, Direction::Egress)?])
        };
        let mut endpoints = Vec::new();
        for endpoint in self.endpoints()? {
            let counters = both(endpoint.ifindex)?;
            endpoints.push(EndpointDump { endpoint, counters });
        }
        let mut rows = Vec::new();
        for (set, atom) in self.row_keys() {
            let bounds = self.row(set, atom)?.unwrap_or_default();
            rows.push(RowDump { set, atom, bounds });
        }
        rows.sort_unstable_by_key(|row| (row.set, row.atom));
        let dumped = |connection: Connection| ConnectionDump {
            ifindex: connection.key.ifindex(),
            protocol: connection.key.protocol(),
            local: connection.key.local(),
            remote: connection.key.remote(),
            opener: connection.opener(),
            act: connection.act(),
            word: connection.word(),
            state: connection.state(),
            cut: connection.cut(),
            host: connection.host(),
            adopted: connection.adopted(),
        };
        let connections = self.connections()?.map(|connection| connection.map(dumped));
        Ok(Dump {
            endpoints,
            elsewhere: both(0)?,
            links: self.attached().unwrap_or_default(),
            addresses: self.ip_atoms()?,
            blocks: self.cidr_atoms()?,
            hosts: self.host_addresses()?,
            services: (self.services()?, self.frontends()),
            rows,
            connections: connections.collect::<Result<_, _>>()?,
            denials: self.denials(),
        })
    }
}
