//! Services: which addresses are frontends, and the program that judges after translation. IO.

use std::net::IpAddr;
use std::path::PathBuf;

use libbpf_rs::{Link, NF_INET_FORWARD, NFPROTO_IPV4, NFPROTO_IPV6, NetfilterOpts, ObjectBuilder};
use serde::Serialize;

use crate::load::prepare;
use crate::{DataPath, LoadError, MapError, abi};

/// Where a Service is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Frontend {
    /// Its address; none for a NodePort, which is on every address of the node.
    pub address: Option<IpAddr>,
    /// The protocol's IANA number.
    pub protocol: u8,
    /// Its port.
    pub port: u16,
}

/// How a pod's calls to frontends are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Services {
    /// Like calls to any address.
    #[default]
    ByAddress,
    /// By their backend: they pass the pod's interface, and are judged at the forward hook. Only with
    /// [`DataPath::attach_forward`], and where kube-proxy translates by nftables or iptables.
    Translated,
    /// By what the rules say of the frontend's own address, be it one of the node's, too; of NodePorts, by what they
    /// say of `::`.
    ByFrontend,
}

impl From<Frontend> for abi::vipk {
    fn from(frontend: Frontend) -> Self {
        let Frontend { address, protocol, port } = frontend;
        let addr = address.map(abi::addr::from).unwrap_or_default();
        Self { addr, port: port.to_be(), proto: protocol, rsv: 0 }
    }
}

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forward.bpf.o"));
const FAMILIES: [(&str, i32); 2] = [("4", NFPROTO_IPV4), ("6", NFPROTO_IPV6)];
/// After the filters of others. A priority holds one program, and a link's program cannot be changed: a new
/// one comes to the other priority before the old one goes.
const PRIORITIES: [(&str, i32); 2] = [("a", 100), ("b", 101)];

impl DataPath {
    /// Adds a frontend. How calls to it are judged, [`DataPath::judge_services`] says.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn set_frontend(&self, frontend: Frontend) -> Result<(), MapError> {
        self.tables.vip.put(&frontend.into(), &1)
    }

    /// Removes a frontend. Whether it was there.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn remove_frontend(&self, frontend: Frontend) -> Result<bool, MapError> {
        self.tables.vip.remove(&frontend.into())
    }

    /// All frontends.
    pub fn frontends(&self) -> Vec<Frontend> {
        let frontend = |key: abi::vipk| Frontend {
            address: (key.addr != abi::addr::default()).then(|| key.addr.into()),
            protocol: key.proto,
            port: u16::from_be(key.port),
        };
        self.tables.vip.keys().into_iter().map(frontend).collect()
    }

    /// Attaches the program at the forward hook of this network namespace, for both families; one that is
    /// there, of whatever version, gives way once the new one is in place.
    ///
    /// # Errors
    ///
    /// [`LoadError::Forward`] where the kernel cannot.
    pub fn attach_forward(&self) -> Result<(), LoadError> {
        let refused = |source| LoadError::Forward { source };
        let mut open = ObjectBuilder::default().open_memory(PROGRAM).map_err(refused)?;
        prepare(&mut open, &self.pins, 0, self.timing)?;
        let object = open.load().map_err(refused)?;
        let program = object.progs_mut().find(|program| program.name() == "forward");
        let program = program.ok_or_else(|| LoadError::Object { what: "forward".to_owned() })?;
        for (family, protocol_family) in FAMILIES {
            // Both are there only after a crash in between: then the first gives way.
            let [a, b] = PRIORITIES;
            let (old, new) = if self.forward_pin(family, b.0).exists() { (b, a) } else { (a, b) };
            self.remove_forward(family, new.0)?;
            let options = NetfilterOpts {
                protocol_family,
                hooknum: NF_INET_FORWARD,
                priority: new.1,
                ..Default::default()
            };
            let mut link = program.attach_netfilter_with_opts(options).map_err(refused)?;
            link.pin(self.forward_pin(family, new.0)).map_err(refused)?;
            // The pin keeps it.
            link.disconnect();
            self.remove_forward(family, old.0)?;
        }
        Ok(())
    }

    /// Says how calls to frontends are judged. Connections that were judged otherwise go on until their word changes.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn judge_services(&self, how: Services) -> Result<(), MapError> {
        let mut config = self.tables.config.get(&0)?.unwrap_or_default();
        config.services = match how {
            Services::ByAddress => abi::SERVICES_BY_ADDRESS,
            Services::Translated => abi::SERVICES_TRANSLATED,
            Services::ByFrontend => abi::SERVICES_BY_FRONTEND,
        };
        self.tables.config.put(&0, &config)
    }

    /// How calls to frontends are judged.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn services(&self) -> Result<Services, MapError> {
        let config = self.tables.config.get(&0)?.unwrap_or_default();
        Ok(match config.services {
            abi::SERVICES_TRANSLATED => Services::Translated,
            abi::SERVICES_BY_FRONTEND => Services::ByFrontend,
            _ => Services::ByAddress,
        })
    }

    fn forward_pin(&self, family: &str, name: &str) -> PathBuf {
        self.pins.join(format!("forward{family}{name}"))
    }

    fn remove_forward(&self, family: &str, name: &str) -> Result<(), LoadError> {
        let path = self.forward_pin(family, name);
        if !path.exists() {
            return Ok(());
        }
        // At once, not when the kernel gets round to it: its priority is needed.
        if let Ok(link) = Link::open(&path) {
            // It fails only where the hook is gone already.
            let _ = link.detach();
        }
        std::fs::remove_file(&path).map_err(|source| LoadError::Pin { path, source })
    }
}
