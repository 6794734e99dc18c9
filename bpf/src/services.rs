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
    /// Adds a frontend. With [`DataPath::defer_services`] a pod's packets to it are judged by their backend.
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

    /// Detaches it, and defers no more.
    ///
    /// # Errors
    ///
    /// [`LoadError`] if a pin cannot be removed.
    pub fn detach_forward(&self) -> Result<(), LoadError> {
        self.defer_services(false)?;
        for (family, _) in FAMILIES {
            for (name, _) in PRIORITIES {
                self.remove_forward(family, name)?;
            }
        }
        Ok(())
    }

    /// Whether a pod's packets to a frontend pass its interface, to be judged after translation. Off, they are
    /// judged there by the frontend's address, like any other. Only with the program at the forward hook, and where
    /// kube-proxy translates by nftables or iptables.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn defer_services(&self, defer: bool) -> Result<(), MapError> {
        let mut config = self.tables.config.get(&0)?.unwrap_or_default();
        config.services = defer.into();
        self.tables.config.put(&0, &config)
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
