//! Which pods have an address. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;

use crate::table::{PodId, insert};

/// Pods by their addresses. Nearly all addresses are IPv4 ones that one pod has, so that those take no more
/// than they must.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    v4: HashMap<Ipv4Addr, PodId>,
    v6: HashMap<Ipv6Addr, PodId>,
    /// Addresses that several pods have.
    shared: HashMap<IpAddr, Vec<PodId>>,
}

impl Owners {
    /// The pods that have an address.
    pub(crate) fn of(&self, address: IpAddr) -> impl Iterator<Item = PodId> + '_ {
        let only = match &address {
            IpAddr::V4(v4) => self.v4.get(v4),
            IpAddr::V6(v6) => self.v6.get(v6),
        };
        only.into_iter().chain(self.shared_by(address)).copied()
    }

    fn shared_by(&self, address: IpAddr) -> &[PodId] {
        self.shared.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_shared(&self, address: IpAddr) -> bool {
        self.shared.contains_key(&address)
    }

    /// Addresses that several pods have.
    pub(crate) fn shared(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.shared.keys().copied()
    }

    /// The pod has the address from now on; it had not before.
    pub(crate) fn add(&mut self, address: IpAddr, pod: PodId) {
        if let Some(owners) = self.shared.get_mut(&address) {
            owners.push(pod);
        } else if let Some(other) = self.put(address, pod) {
            self.take(address);
            self.shared.insert(address, vec![other, pod]);
        }
    }

    /// The pod has not the address any more.
    pub(crate) fn remove(&mut self, address: IpAddr, pod: PodId) {
        let Some(owners) = self.shared.get_mut(&address) else {
            self.take(address);
            return;
        };
        owners.retain(|owner| *owner != pod);
        if let [last] = owners[..] {
            self.shared.remove(&address);
            self.put(address, last);
        }
    }

    fn put(&mut self, address: IpAddr, pod: PodId) -> Option<PodId> {
        match address {
            IpAddr::V4(v4) => insert(&mut self.v4, v4, pod),
            IpAddr::V6(v6) => insert(&mut self.v6, v6, pod),
        }
    }

    fn take(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4.remove(&v4),
            IpAddr::V6(v6) => self.v6.remove(&v6),
        };
    }
}
