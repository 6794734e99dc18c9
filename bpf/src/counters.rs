//! Totals by endpoint and direction, and what was not logged. IO.

use serde::Serialize;

use crate::abi;
use crate::{Act, DataPath, Direction, MapError};

/// Why packets were dropped of which no policy spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The interface has no endpoint.
    NoEndpoint,
    /// Nobody knows whose interface it is, and it was not the node's own traffic.
    UnknownPod,
    /// A tagged frame from a pod.
    Vlan,
    /// An ARP claim to an address that is not the pod's.
    Arp,
    /// Neighbour or router discovery that is not the pod's to send.
    Neighbour,
    /// A header that ends too early or contradicts itself.
    Malformed,
    /// Neither IP nor ARP, for or from an isolated pod.
    NotIp,
    /// An IPv4-mapped address in an IPv6 header.
    Mapped,
    /// More IPv6 extension headers than are read, or a route that is still to be walked.
    Extension,
    /// A tunnel that a node would unpack.
    Tunnel,
    /// From a pod, with a source that is not its own.
    Source,
    /// To a pod, with a destination that is not its own.
    Destination,
    /// The set has no base row.
    NoRow,
    /// A first fragment without the whole transport header.
    ShortFragment,
    /// A later fragment whose first was not allowed, or not seen.
    Fragment,
    /// An ICMP error of no live connection.
    IcmpError,
    /// A TCP reset of no connection.
    StrayReset,
    /// A reply of a Service's connection that is not judged yet.
    Deferred,
}

impl Reason {
    /// All, in the kernel's order.
    pub const ALL: [Self; 18] = [
        Self::NoEndpoint,
        Self::UnknownPod,
        Self::Vlan,
        Self::Arp,
        Self::Neighbour,
        Self::Malformed,
        Self::NotIp,
        Self::Mapped,
        Self::Extension,
        Self::Tunnel,
        Self::Source,
        Self::Destination,
        Self::NoRow,
        Self::ShortFragment,
        Self::Fragment,
        Self::IcmpError,
        Self::StrayReset,
        Self::Deferred,
    ];
}

const _: () = assert!(Reason::Deferred as u32 == abi::DROP_DEFERRED);

/// Totals of one endpoint and direction, over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Connections allowed.
    pub allowed: u64,
    /// Packets denied by policy.
    pub denied: u64,
    /// Packets of connections that were cut.
    pub cut: u64,
    /// Connections that were there before us.
    pub adopted: u64,
    /// Packets allowed whose connection found no room in the table.
    pub untracked: u64,
    /// Records that were not written: over the budget, or no place in the deny table.
    pub suppressed: u64,
    /// Records that were not written: the ring was full.
    pub unwritten: u64,
    /// Packets dropped, by reason; only those that occurred.
    pub dropped: std::collections::BTreeMap<Reason, u64>,
}

impl Counters {
    fn sum(values: &[abi::counters]) -> Self {
        let total = |field: fn(&abi::counters) -> u64| values.iter().map(field).sum();
        let dropped = Reason::ALL
            .into_iter()
            .map(|reason| (reason, values.iter().map(|value| value.dropped[reason as usize]).sum()));
        Self {
            allowed: total(|value| value.allowed),
            denied: total(|value| value.denied),
            cut: total(|value| value.cut),
            adopted: total(|value| value.adopted),
            untracked: total(|value| value.untracked),
            suppressed: total(|value| value.suppressed),
            unwritten: total(|value| value.unwritten),
            dropped: dropped.filter(|&(_, count)| count > 0).collect(),
        }
    }
}

/// What was not logged, by endpoint, direction and act, within one window's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suppressed {
    /// The endpoint's interface.
    pub ifindex: u32,
    /// Whose rules spoke.
    pub direction: Direction,
    /// What was said.
    pub act: Act,
    /// Allowed connections without a record.
    pub connections: u64,
    /// Denied packets without a place in the deny table.
    pub packets: u64,
}

impl DataPath {
    /// The totals of an endpoint in a direction; of what belongs to no endpoint, for `ifindex` 0. An endpoint
    /// that is new starts at 0.
    ///
    /// # Errors
    ///
    /// [`MapError::NoEndpoint`] if the interface has none.
    pub fn counters(&self, ifindex: u32, direction: Direction) -> Result<Counters, MapError> {
        let slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = if ifindex == 0 { Some(0) } else { slots.get(&ifindex).copied() };
        let slot = slot.ok_or(MapError::NoEndpoint { ifindex })?;
        Ok(Counters::sum(&self.tables.counter.get_percpu(&(slot * 2 + direction as u32))?))
    }

    /// What was not logged in windows that are over; each is told once.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn take_suppressed(&self) -> Result<Vec<Suppressed>, MapError> {
        let now = self.clock()?.jiffies;
        // A program that began in the last jiffy of an epoch has long ended a second later.
        let over =
            (now.saturating_sub(u64::from(self.timing.hz)) / u64::from(self.timing.window.max(1))) as u32;
        let mut all = Vec::new();
        for key in self.tables.suppressed.keys() {
            if over.wrapping_sub(key.epoch).cast_signed() <= 0 {
                continue;
            }
            let values = self.tables.suppressed.get_percpu(&key)?;
            self.tables.suppressed.remove(&key)?;
            all.push(Suppressed {
                ifindex: key.ifindex,
                direction: Direction::of(key.direction as u8),
                act: Act::of(key.act),
                connections: values.iter().map(|value| value.connections).sum(),
                packets: values.iter().map(|value| value.packets).sum(),
            });
        }
        Ok(all)
    }

    pub(crate) fn clear_counters(&self, slot: u32) -> Result<(), MapError> {
        use libbpf_rs::MapCore as _;
        for direction in Direction::BOTH {
            let key = slot * 2 + direction as u32;
            let cpus = self.tables.counter.get_percpu(&key)?.len();
            let zeros = vec![vec![0; size_of::<abi::counters>()]; cpus];
            let cleared = self.tables.counter.map.update_percpu(
                crate::abi::Plain::bytes(&key),
                &zeros,
                libbpf_rs::MapFlags::ANY,
            );
            cleared.map_err(|source| MapError::Element {
                map: "counter",
                operation: "clear",
                key: key.to_string(),
                source,
            })?;
        }
        Ok(())
    }
}
