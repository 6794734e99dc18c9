//! Atoms of remote addresses, rows of verdicts, and the node's own addresses. IO.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use libbpf_rs::{MapCore, MapFlags};
use serde::Serialize;

use crate::abi::{self, Plain};
use crate::tables::AtomCell;
use crate::{Act, DataPath, MapError};

/// From `start` on, up to the next bound, `act` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bound {
    /// `protocol << 16 | port`, with port 0 for a protocol without ports.
    pub start: u32,
    /// What holds.
    pub act: Act,
}

/// A block of addresses: its first address and the length of its prefix.
pub type Block = (IpAddr, u8);

/// Whose address a node's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAddress {
    /// This node's: traffic between it and the node's own pods always passes.
    This,
    /// Another node's: its traffic is judged like anybody's, but pods send it no tunnels.
    Other,
}

const BOUNDS: usize = abi::ROW_BOUNDS as usize;
const PAGE_BOUNDS: usize = abi::PAGE_BOUNDS as usize;
const LIMIT: usize = PAGE_BOUNDS * PAGE_BOUNDS;

impl DataPath {
    /// Says which atom an exact address belongs to: in place, so that a packet sees the old or the new.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses, as when the map is full.
    pub fn set_ip_atom(&self, address: IpAddr, atom: u32) -> Result<(), MapError> {
        self.tables.ip_atom.put_with(&address.into(), &AtomCell::new(atom), MapFlags::LOCK)
    }

    /// Forgets an exact address: then its longest block counts. Whether it was there.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn remove_ip_atom(&self, address: IpAddr) -> Result<bool, MapError> {
        self.tables.ip_atom.remove(&address.into())
    }

    /// All exact addresses and their atoms.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn ip_atoms(&self) -> Result<Vec<(IpAddr, u32)>, MapError> {
        let entries = self.tables.ip_atom.entries()?;
        Ok(entries.into_iter().map(|(address, cell)| (address.into(), cell.atom)).collect())
    }

    /// Says which atom a block of addresses belongs to.
    ///
    /// # Errors
    ///
    /// [`MapError`] if it is no block that a packet can match, or the kernel refuses.
    pub fn set_cidr_atom(&self, address: IpAddr, length: u8, atom: u32) -> Result<(), MapError> {
        self.tables.cidr_atom.put(&cidr_key(address, length)?, &atom)
    }

    /// Forgets a block.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses. A block that is not there is no error.
    pub fn remove_cidr_atom(&self, address: IpAddr, length: u8) -> Result<(), MapError> {
        let key = cidr_key(address, length)?;
        if key == v4_root() { self.guard_v4() } else { self.tables.cidr_atom.remove(&key).map(drop) }
    }

    /// All blocks and their atoms.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn cidr_atoms(&self) -> Result<Vec<(Block, u32)>, MapError> {
        let mut blocks = self.tables.cidr_atom.entries()?;
        blocks.retain(|(key, atom)| *key != v4_root() || *atom != 0);
        let block = |key: abi::cidrk| {
            let address = IpAddr::from(key.addr);
            let length =
                if address.is_ipv4() && key.prefixlen >= 96 { key.prefixlen - 96 } else { key.prefixlen };
            (address, length as u8)
        };
        Ok(blocks.into_iter().map(|(key, atom)| (block(key), atom)).collect())
    }

    /// IPv4 lives in `::ffff:0:0/96`, where IPv6 blocks such as `::/0` must not reach: the block of all of
    /// IPv4 is always there, with atom 0 unless somebody says otherwise.
    pub(crate) fn guard_v4(&self) -> Result<(), MapError> {
        self.tables.cidr_atom.put(&v4_root(), &0)
    }

    /// Writes the row of a set and an atom; atom 0 is the set's base row. A packet sees the old or the new.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the bounds are no row, or the kernel refuses, as when the map is full.
    pub fn set_row(&self, set: u32, atom: u32, bounds: &[Bound]) -> Result<(), MapError> {
        let rises = bounds.windows(2).all(|pair| pair[0].start < pair[1].start);
        if bounds.first().is_none_or(|first| first.start != 0) || !rises || bounds.len() > LIMIT {
            return Err(MapError::Row { set, atom, bounds: bounds.len(), limit: LIMIT });
        }
        let key = abi::rowk { set, atom };
        let before = self.tables.row.get(&key)?.map_or(0, |row| row.big);
        let mut row = abi::row {
            self_: key,
            bounds: bounds.len() as u32,
            lo: [u32::MAX; BOUNDS],
            ..Default::default()
        };
        if bounds.len() <= BOUNDS {
            fill(&mut row.lo, &mut row.act, bounds);
        } else {
            row.big = self.write_pages(bounds)?;
        }
        self.tables.row.put(&key, &row)?;
        self.free_pages(before)
    }

    /// Removes rows. The sets must have been unlinked from every word, or the atoms from every address, and
    /// a grace period have passed, unless their base rows may hold for them from now on.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses. A row that is not there is no error.
    pub fn remove_row(&self, set: u32, atom: u32) -> Result<(), MapError> {
        let key = abi::rowk { set, atom };
        let big = self.tables.row.get(&key)?.map_or(0, |row| row.big);
        self.tables.row.remove(&key)?;
        self.free_pages(big)
    }

    /// The row of a set and an atom, as the programs read it.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn row(&self, set: u32, atom: u32) -> Result<Option<Vec<Bound>>, MapError> {
        let row = self.tables.row.get(&abi::rowk { set, atom })?;
        row.map(|row| self.bounds_of(&row)).transpose()
    }

    /// All rows, as (set, atom).
    pub fn row_keys(&self) -> Vec<(u32, u32)> {
        self.tables.row.keys().into_iter().map(|key| (key.set, key.atom)).collect()
    }

    /// Adds an address of this or another node, or changes whose it is.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn set_host_address(&self, address: IpAddr, whose: HostAddress) -> Result<(), MapError> {
        let kind = match whose {
            HostAddress::This => abi::HOST_THIS,
            HostAddress::Other => abi::HOST_OTHER,
        };
        self.tables.host.put(&address.into(), &kind)
    }

    /// Removes a node's address. Whether it was there.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn remove_host_address(&self, address: IpAddr) -> Result<bool, MapError> {
        self.tables.host.remove(&address.into())
    }

    /// The nodes' addresses.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn host_addresses(&self) -> Result<Vec<(IpAddr, HostAddress)>, MapError> {
        let whose = |kind| if kind == abi::HOST_THIS { HostAddress::This } else { HostAddress::Other };
        let entries = self.tables.host.entries()?;
        Ok(entries.into_iter().map(|(address, kind)| (address.into(), whose(kind))).collect())
    }

    /// Writes a row of more bounds than fit, under a number that was never used.
    fn write_pages(&self, bounds: &[Bound]) -> Result<u32, MapError> {
        let row = self.next_page_row.fetch_add(1, Ordering::Relaxed);
        let mut index = Vec::new();
        for (page, bounds) in bounds.chunks(PAGE_BOUNDS).enumerate() {
            self.write_page(row, page as u32, bounds.iter().map(|bound| (bound.start, bound.act.bits())))?;
            index.push((bounds[0].start, page as u32));
        }
        self.write_page(row, abi::INDEX_PAGE, index.into_iter())?;
        Ok(row)
    }

    fn write_page(
        &self,
        row: u32,
        page: u32,
        bounds: impl Iterator<Item = (u32, u32)>,
    ) -> Result<(), MapError> {
        let key = abi::pagek { row, page };
        let mut value = abi::page { self_: key, lo: [u32::MAX; PAGE_BOUNDS], act: [0; PAGE_BOUNDS] };
        for (place, (lo, act)) in bounds.enumerate() {
            (value.lo[place], value.act[place]) = (lo, act);
        }
        self.tables.big_row.put(&key, &value)
    }

    /// Frees the pages of a row that nothing leads to, once no packet can be reading them.
    fn free_pages(&self, row: u32) -> Result<(), MapError> {
        if row == 0 {
            return Ok(());
        }
        self.grace_period()?;
        let pages = (0..PAGE_BOUNDS as u32).chain([abi::INDEX_PAGE]);
        for page in pages {
            self.tables.big_row.remove(&abi::pagek { row, page })?;
        }
        Ok(())
    }

    pub(crate) fn bounds_of(&self, row: &abi::row) -> Result<Vec<Bound>, MapError> {
        let bound = |(&start, &act): (&u32, &u32)| Bound { start, act: Act::of(act) };
        if row.big == 0 {
            return Ok(row.lo.iter().zip(&row.act).take(row.bounds as usize).map(bound).collect());
        }
        let mut bounds = Vec::new();
        for page in 0..PAGE_BOUNDS as u32 {
            let Some(page) = self.tables.big_row.get(&abi::pagek { row: row.big, page })? else { break };
            bounds.extend(page.lo.iter().zip(&page.act).map(bound).filter(|bound| bound.start != u32::MAX));
        }
        Ok(bounds)
    }

    /// Waits until no program runs that began before the call: then nothing that was unlinked is still being
    /// read. Takes about 10 ms.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn grace_period(&self) -> Result<(), MapError> {
        // To replace a map in a map of maps, the kernel waits for just that.
        let _one_at_a_time = self.grace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let inner = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&self.tables.config.map));
        let replaced = self.tables.grace.update(0_u32.bytes(), &inner.to_ne_bytes(), MapFlags::ANY);
        replaced.map_err(|source| MapError::Element {
            map: "grace",
            operation: "write",
            key: "0".into(),
            source,
        })
    }
}

pub(crate) fn v4_root() -> abi::cidrk {
    abi::cidrk { prefixlen: 96, addr: IpAddr::from([0, 0, 0, 0]).into() }
}

fn cidr_key(address: IpAddr, length: u8) -> Result<abi::cidrk, MapError> {
    let prefixlen = match address {
        IpAddr::V4(_) if length <= 32 => u32::from(length) + 96,
        // Packets with such addresses in an IPv6 header are dropped; as a block it would match IPv4.
        IpAddr::V6(v6) if length <= 128 && v6.to_ipv4_mapped().is_none() => length.into(),
        _ => return Err(MapError::Block { address, length }),
    };
    Ok(abi::cidrk { prefixlen, addr: address.into() })
}

fn fill(lo: &mut [u32], act: &mut [u32], bounds: &[Bound]) {
    for (place, bound) in bounds.iter().enumerate() {
        (lo[place], act[place]) = (bound.start, bound.act.bits());
    }
}
