//! What a bed is like, and every name, path and address that follows from it (pure).

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// Which CNI plugin connects the pods of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Cni {
    /// Each pod by its own routed veth pair.
    #[default]
    Ptp,
    /// All pods of a node on one bridge.
    Bridge,
}

impl Cni {
    pub(crate) fn plugin(self) -> &'static str {
        match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        }
    }
}

/// How kube-proxy translates Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// By nftables.
    #[default]
    Nftables,
    /// By iptables.
    Iptables,
    /// By nftables on n1, n3, …, by iptables on n2, n4, ….
    Both,
}

impl Proxy {
    /// On all nodes, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Both => "nftables and iptables",
        }
    }

    /// On a node, as kube-proxy calls it.
    pub(crate) fn mode(self, node: &str) -> &'static str {
        let is_even = node.ends_with(['0', '2', '4', '6', '8']);
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Both if is_even => "iptables",
            Self::Both => "nftables",
        }
    }
}

/// What a bed is like. Each bed is IPv4 and IPv6; beds of different names can be up at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub(crate) name: String,
    pub(crate) nodes: u8,
    pub(crate) cni: Cni,
    pub(crate) proxy: Proxy,
}

/// The API server's address, and the control plane's host name.
pub(crate) const CONTROL_PLANE: &str = "cp";
/// The name of the namespace that holds the bridge between all hosts.
pub(crate) const FABRIC: &str = "fab";
pub(crate) const API_SERVER: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
pub(crate) const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub(crate) const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:96::/112";
pub(crate) const POD_RANGES: &str = "10.244.0.0/16,fd00:244::/32";

impl Config {
    /// A bed without nodes: etcd and the API server, up in a few seconds. `name` consists of a-z, 0-9 and -.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), nodes: 0, cni: Cni::default(), proxy: Proxy::default() }
    }

    /// With so many nodes (at most 9), called n1, n2, …; also the controller manager, the scheduler and CoreDNS.
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    /// With this CNI plugin.
    pub fn cni(self, cni: Cni) -> Self {
        Self { cni, ..self }
    }

    /// With this mode of kube-proxy.
    pub fn proxy(self, proxy: Proxy) -> Self {
        Self { proxy, ..self }
    }

    pub(crate) fn is_valid(&self) -> bool {
        let letters = self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        letters && (1..=40).contains(&self.name.len()) && self.nodes <= 9
    }

    pub(crate) fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(|number| format!("n{number}")).collect()
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        std::iter::once(CONTROL_PLANE.to_owned()).chain(self.node_names()).collect()
    }
}

/// The name of a host's network namespace and of its cgroup.
pub(crate) fn host_id(bed: &str, host: &str) -> String {
    format!("bed-{bed}-{host}")
}

/// Whether a network namespace or cgroup of this name belongs to the bed. Bed `a` does not own what bed `a-b` does.
pub(crate) fn owns(bed: &str, id: &str) -> bool {
    id.strip_prefix("bed-")
        .and_then(|rest| rest.strip_prefix(bed))
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|host| {
            host == CONTROL_PLANE || host == FABRIC || matches!(host.as_bytes(), [b'n', b'1'..=b'9'])
        })
}

/// Where a bed keeps its files. On a disk, since images are unpacked there; not below /var/lib or /run, which nodes replace.
pub(crate) fn scratch(bed: &str) -> PathBuf {
    PathBuf::from(format!("/var/tmp/durward-bed/{bed}"))
}

/// A node's number, which its addresses end in.
pub(crate) fn number(node: &str) -> u8 {
    node.trim_start_matches('n').parse().unwrap_or(0)
}

/// The addresses of a host.
pub(crate) fn addresses(host: &str) -> (Ipv4Addr, Ipv6Addr) {
    match number(host) {
        0 => (API_SERVER, Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1)),
        n => (
            Ipv4Addr::new(172, 30, 0, 10 + n),
            Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 0x10 + u16::from(n)),
        ),
    }
}

/// The ranges of a node's pods.
pub(crate) fn pod_ranges(node: &str) -> (String, String) {
    let n = number(node);
    (format!("10.244.{n}.0/24"), format!("fd00:244:{n}::/64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bed_owns_only_its_own() {
        for own in ["bed-a-cp", "bed-a-fab", "bed-a-n1"] {
            assert!(owns("a", own), "{own}");
        }
        for other in ["bed-a-b-cp", "bed-ab-cp", "bed-a-n10x", "bed-a-", "a-cp", "bed-b-n1"] {
            assert!(!owns("a", other), "{other}");
        }
    }
}
