//! Services: where they are called, and where calls end. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use litemap::LiteMap;
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::PortKey;

/// Where a Service is called: an address of its own, or a port of every node.
///
/// Written `6 10.96.0.10:53`, with the protocol's IANA number, or `17 *:30053`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// A ClusterIP, an external or a load balancer's address; none for a NodePort, which is on every address of the
    /// node.
    pub address: Option<IpAddr>,
    /// The protocol and the port that is called. Never port 0.
    pub port: PortKey,
}

/// Where a call to a Service may end: a pod's address (or a node's, or one outside) and its port, after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    /// The address.
    pub address: IpAddr,
    /// The port; the protocol is the frontend's.
    pub port: u16,
}

/// What a node knows of the Service behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The Service's namespace.
    pub namespace: Arc<str>,
    /// The Service's name.
    pub name: Arc<str>,
    /// Where calls to this frontend may end, sorted. Only nodes that ask for backends are told any: who sees packets
    /// after translation need not guess.
    pub backends: Arc<[Backend]>,
}

/// All frontends, as nodes are told them that knew of none, or of which very many change at once. They all are
/// told the same, so that it is shared by them, and encoded only once.
#[derive(Debug)]
pub struct Directory {
    services: LiteMap<Frontend, Service>,
    pub(crate) encoded: OnceLock<Box<[Bytes]>>,
}

impl Directory {
    /// The directory of these.
    pub fn new(services: LiteMap<Frontend, Service>) -> Self {
        Self { services, encoded: OnceLock::new() }
    }

    /// All frontends, with their Services.
    pub fn services(&self) -> &LiteMap<Frontend, Service> {
        &self.services
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new(LiteMap::new_vec())
    }
}

impl PartialEq for Directory {
    fn eq(&self, other: &Self) -> bool {
        self.services == other.services
    }
}

impl Eq for Directory {}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = (self.port.protocol(), self.port.port());
        match self.address {
            Some(address) => write!(f, "{protocol} {}", SocketAddr::from((address, port))),
            None => write!(f, "{protocol} *:{port}"),
        }
    }
}

/// Why a text is no frontend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no frontend: expected a protocol's number, a space, and address:port or *:port")]
pub struct FrontendError(pub String);

impl FromStr for Frontend {
    type Err = FrontendError;

    fn from_str(text: &str) -> Result<Self, FrontendError> {
        let read = || {
            let (protocol, end) = text.split_once(' ')?;
            let protocol = protocol.parse().ok()?;
            let (address, port) = match end.strip_prefix("*:") {
                Some(port) => (None, port.parse().ok()?),
                None => end.parse::<SocketAddr>().ok().map(|end| (Some(end.ip()), end.port()))?,
            };
            Some(Self { address, port: PortKey::new(protocol, port) })
        };
        read().ok_or_else(|| FrontendError(text.to_owned()))
    }
}

impl Serialize for Frontend {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Frontend {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_is_read_as_it_is_written() {
        for text in ["6 10.96.0.10:53", "17 [fd00::a]:53", "132 *:30053"] {
            assert_eq!(text.parse::<Frontend>().map(|frontend| frontend.to_string()), Ok(text.to_owned()));
        }
        for text in ["10.96.0.10:53", "6 10.96.0.10", "6 *", "x *:1", "6 *:99999"] {
            assert_eq!(text.parse::<Frontend>(), Err(FrontendError(text.to_owned())));
        }
    }
}
