//! Endpoints: whose interface it is, its addresses, and the words that judge it. IO.

use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::abi::{self, Plain};
use crate::{DataPath, Direction, MapError, Word};

/// What the programs do at an endpoint besides judging; changes without touching a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Flags {
    /// Nobody knows whose interface it is: only the node's own traffic passes.
    pub unknown: bool,
    /// No guard of sources and destinations, and tunnels are allowed: for pods that route for others.
    pub gateway: bool,
    /// DHCP passes.
    pub dhcp: bool,
    /// Allowed connections are logged.
    pub log_allow: bool,
    /// Of the allowed ones only those with a loggable act.
    pub log_allow_loggable_only: bool,
    /// Denials are logged.
    pub log_deny: bool,
}

impl Flags {
    fn bits(self) -> u32 {
        let Self { unknown, gateway, dhcp, log_allow, log_allow_loggable_only, log_deny } = self;
        [
            (unknown, abi::EP_UNKNOWN),
            (gateway, abi::EP_GATEWAY),
            (dhcp, abi::EP_DHCP),
            (log_allow, abi::EP_LOG_ALLOW),
            (log_allow_loggable_only, abi::EP_LOG_LOGGABLE),
            (log_deny, abi::EP_LOG_DENY),
        ]
        .into_iter()
        .fold(0, |bits, (set, flag)| if set { bits | flag } else { bits })
    }

    fn of(bits: u32) -> Self {
        let has = |flag| bits & flag != 0;
        Self {
            unknown: has(abi::EP_UNKNOWN),
            gateway: has(abi::EP_GATEWAY),
            dhcp: has(abi::EP_DHCP),
            log_allow: has(abi::EP_LOG_ALLOW),
            log_allow_loggable_only: has(abi::EP_LOG_LOGGABLE),
            log_deny: has(abi::EP_LOG_DENY),
        }
    }
}

/// A pod's interface, as the programs know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// The index of the interface's host side.
    pub ifindex: u32,
    /// The host's id for the pod's network namespace (`link-netnsid`), if it has one.
    pub nsid: Option<u32>,
    /// What is done besides judging.
    pub flags: Flags,
    /// Its addresses, in any order.
    pub addresses: Vec<IpAddr>,
    /// The word of each direction, as [`Direction::BOTH`] orders them.
    pub words: [Word; 2],
}

/// How many endpoints a node can have. Slot 0 counts what belongs to none.
const SLOTS: u32 = 4096;

impl DataPath {
    /// Makes an endpoint, or changes all of one. A new one is seen by the programs only once it is whole.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses, or there are too many.
    pub fn set_endpoint(&self, endpoint: &Endpoint) -> Result<(), MapError> {
        let Endpoint { ifindex, nsid, flags, addresses, words } = endpoint;
        let mut slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = match slots.get(ifindex) {
            Some(&slot) => slot,
            None => {
                let taken: std::collections::BTreeSet<_> = slots.values().copied().collect();
                let free = (1..SLOTS).find(|slot| !taken.contains(slot));
                free.ok_or(MapError::Full { limit: SLOTS as usize - 1 })?
            }
        };
        let mut more = self.more_addresses(*ifindex);
        let mut value = abi::ep {
            ifindex: *ifindex,
            flags: flags.bits(),
            word: words.map(Word::bits),
            slot,
            nsid: nsid.map_or(-1, |nsid| nsid.cast_signed()),
            ..abi::ep::default()
        };
        for &address in addresses {
            let first = if address.is_ipv4() { &mut value.ip4 } else { &mut value.ip6 };
            if *first == abi::addr::default() {
                *first = address.into();
            } else {
                let key = abi::sourcek { ifindex: *ifindex, addr: address.into() };
                self.tables.source.put(&key, &1)?;
                more.retain(|other| other != &key);
                value.flags |= abi::EP_MORE_ADDRESSES;
            }
        }
        self.write_endpoint(&value)?;
        slots.insert(*ifindex, slot);
        self.own(*ifindex, addresses)?;
        more.iter().try_for_each(|key| self.tables.source.remove(key).map(drop))
    }

    /// Stores a word: one aligned 64-bit store, after everything that was written before it.
    ///
    /// # Errors
    ///
    /// [`MapError::NoEndpoint`] if the interface has none.
    pub fn set_word(&self, ifindex: u32, direction: Direction, word: Word) -> Result<(), MapError> {
        let offset = offset_of!(abi::ep, word) + 8 * direction as usize;
        match self.place(ifindex)? {
            Place::Array(index) => self.eps.u64(index, offset).store(word.bits(), Ordering::Release),
            Place::Overflow(mut value) => {
                value.word[direction as usize] = word.bits();
                self.tables.ep_overflow.put(&ifindex, &value)?;
            }
        }
        Ok(())
    }

    /// Changes what is done besides judging. No connection is judged again for it.
    ///
    /// # Errors
    ///
    /// [`MapError::NoEndpoint`] if the interface has none.
    pub fn set_flags(&self, ifindex: u32, flags: Flags) -> Result<(), MapError> {
        match self.place(ifindex)? {
            Place::Array(index) => {
                let cell = self.eps.u32(index, offset_of!(abi::ep, flags));
                let kept = cell.load(Ordering::Relaxed) & abi::EP_MORE_ADDRESSES;
                cell.store(flags.bits() | kept, Ordering::Release);
            }
            Place::Overflow(mut value) => {
                value.flags = flags.bits() | (value.flags & abi::EP_MORE_ADDRESSES);
                self.tables.ep_overflow.put(&ifindex, &value)?;
            }
        }
        Ok(())
    }

    /// Removes an endpoint. What still passes its interface is dropped, so detach first (or afterwards, for
    /// an interface that is gone). Its connections are the caller's to purge.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses. An endpoint that is not there is no error.
    pub fn remove_endpoint(&self, ifindex: u32) -> Result<(), MapError> {
        match self.place(ifindex) {
            Ok(Place::Array(index)) => {
                self.eps.u32(index, offset_of!(abi::ep, ifindex)).store(0, Ordering::Release);
            }
            Ok(Place::Overflow(_)) => drop(self.tables.ep_overflow.remove(&ifindex)?),
            Err(MapError::NoEndpoint { .. }) => {}
            Err(error) => return Err(error),
        }
        self.more_addresses(ifindex).iter().try_for_each(|key| self.tables.source.remove(key).map(drop))?;
        self.own(ifindex, &[])?;
        // Its counters start again with the slot's next owner.
        let mut slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match slots.remove(&ifindex) {
            Some(slot) => self.clear_counters(slot),
            None => Ok(()),
        }
    }

    /// All endpoints, by interface.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, MapError> {
        let mut all: Vec<_> = self.raw_endpoints()?.iter().map(|value| self.endpoint_of(value)).collect();
        all.sort_unstable_by_key(|endpoint| endpoint.ifindex);
        Ok(all)
    }

    pub(crate) fn raw_endpoints(&self) -> Result<Vec<abi::ep>, MapError> {
        let ifindex =
            |&index: &usize| self.eps.u32(index, offset_of!(abi::ep, ifindex)).load(Ordering::Acquire);
        let in_array =
            (0..self.eps.len()).filter(|index| ifindex(index) != 0).map(|index| self.eps.copy(index));
        let overflow = self.tables.ep_overflow.entries()?.into_iter().map(|(_, value)| value);
        Ok(in_array.chain(overflow).collect())
    }

    fn endpoint_of(&self, value: &abi::ep) -> Endpoint {
        let first = [value.ip4, value.ip6].into_iter().filter(|address| *address != abi::addr::default());
        let more = if value.flags & abi::EP_MORE_ADDRESSES != 0 {
            self.more_addresses(value.ifindex)
        } else {
            Vec::new()
        };
        Endpoint {
            ifindex: value.ifindex,
            nsid: u32::try_from(value.nsid).ok(),
            flags: Flags::of(value.flags),
            addresses: first.chain(more.iter().map(|key| key.addr)).map(IpAddr::from).collect(),
            words: value.word.map(Word::of),
        }
    }

    /// Says at the forward hook whose these addresses are, and that the interface's others are not any more.
    fn own(&self, ifindex: u32, addresses: &[IpAddr]) -> Result<(), MapError> {
        let new: Vec<abi::addr> = addresses.iter().map(|&address| address.into()).collect();
        for address in &new {
            self.tables.owner.put(address, &ifindex)?;
        }
        for (address, owner) in self.tables.owner.entries()? {
            if owner == ifindex && !new.contains(&address) {
                self.tables.owner.remove(&address)?;
            }
        }
        Ok(())
    }

    fn more_addresses(&self, ifindex: u32) -> Vec<abi::sourcek> {
        let mut keys = self.tables.source.keys();
        keys.retain(|key| key.ifindex == ifindex);
        keys
    }

    /// Where an interface's endpoint is.
    fn place(&self, ifindex: u32) -> Result<Place, MapError> {
        let index = ifindex as usize % self.eps.len();
        if ifindex != 0
            && self.eps.u32(index, offset_of!(abi::ep, ifindex)).load(Ordering::Acquire) == ifindex
        {
            return Ok(Place::Array(index));
        }
        let value = self.tables.ep_overflow.get(&ifindex)?;
        value.map(Place::Overflow).ok_or(MapError::NoEndpoint { ifindex })
    }

    fn write_endpoint(&self, value: &abi::ep) -> Result<(), MapError> {
        let index = value.ifindex as usize % self.eps.len();
        let owner = self.eps.u32(index, offset_of!(abi::ep, ifindex));
        let found = owner.load(Ordering::Acquire);
        let overflows = self.tables.ep_overflow.get(&value.ifindex)?.is_some();
        if overflows || (found != 0 && found != value.ifindex) {
            return self.tables.ep_overflow.put(&value.ifindex, value);
        }
        // The first word holds `ifindex` and `flags`: it is written last, and makes a new endpoint seen.
        for (word, bytes) in value.bytes().chunks_exact(8).enumerate().rev() {
            let bits = bytes.try_into().map_or(0, u64::from_ne_bytes);
            self.eps.u64(index, word * 8).store(bits, Ordering::Release);
        }
        Ok(())
    }
}

/// Where an endpoint is kept.
enum Place {
    /// In the array, at this index.
    Array(usize),
    /// In the hash of those whose index another interface has.
    Overflow(abi::ep),
}
