//! The pinned maps by name, and typed access to those that are hashes. IO.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::PathBuf;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use thiserror::Error;

use crate::abi::{self, Plain};

/// Why a map could not be read or changed.
#[derive(Debug, Error)]
pub enum MapError {
    /// The kernel refused an operation on an element.
    #[error("BPF map {map}: cannot {operation} the element of {key}: {source}")]
    Element {
        /// The map's name.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// The element's key.
        key: String,
        /// What the kernel said. `E2BIG` and `ENOSPC` say that the map is full.
        source: libbpf_rs::Error,
    },
    /// The kernel refused to list a map, or to map it into memory.
    #[error("BPF map {map}: {source}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No endpoint has this interface.
    #[error("interface {ifindex} has no endpoint")]
    NoEndpoint {
        /// The interface's index.
        ifindex: u32,
    },
    /// All places for endpoints are taken.
    #[error("no place for another endpoint: {limit} have one, which is the limit of a node")]
    Full {
        /// How many there are.
        limit: usize,
    },
    /// A row that the programs cannot read.
    #[error(
        "the row of set {set} and atom {atom} has {bounds} bounds: it must have 1 to {limit}, rising from 0"
    )]
    Row {
        /// The row's set.
        set: u32,
        /// The row's atom.
        atom: u32,
        /// How many bounds it has.
        bounds: usize,
        /// The limit.
        limit: usize,
    },
    /// A block of addresses that the programs cannot match.
    #[error("{address}/{length} is no block that packets can match")]
    Block {
        /// The block's address.
        address: std::net::IpAddr,
        /// The length of its prefix.
        length: u8,
    },
    /// A program that user space asks could not run.
    #[error("BPF program {program} did not run: {source}")]
    Program {
        /// The program's name.
        program: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
}

/// A pinned hash or trie, with its key and value types.
pub(crate) struct Table<K, V> {
    pub(crate) name: &'static str,
    pub(crate) map: MapHandle,
    _of: PhantomData<fn(K) -> V>,
}

impl<K: Plain + std::fmt::Debug, V: Plain> Table<K, V> {
    pub(crate) fn new(name: &'static str, map: MapHandle) -> Self {
        Self { name, map, _of: PhantomData }
    }

    fn error(&self, operation: &'static str, key: &K) -> impl FnOnce(libbpf_rs::Error) -> MapError {
        let (map, key) = (self.name, format!("{key:?}"));
        move |source| MapError::Element { map, operation, key, source }
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> Result<(), MapError> {
        self.put_with(key, value, MapFlags::ANY)
    }

    pub(crate) fn put_with(&self, key: &K, value: &V, flags: MapFlags) -> Result<(), MapError> {
        self.map.update(key.bytes(), value.bytes(), flags).map_err(self.error("write", key))
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let found = self.map.lookup(key.bytes(), MapFlags::ANY).map_err(self.error("read", key))?;
        Ok(found.map(|bytes| V::from_bytes(&bytes)))
    }

    /// Each CPU's value.
    pub(crate) fn get_percpu(&self, key: &K) -> Result<Vec<V>, MapError> {
        let found = self.map.lookup_percpu(key.bytes(), MapFlags::ANY).map_err(self.error("read", key))?;
        Ok(found.unwrap_or_default().iter().map(|bytes| V::from_bytes(&bytes[..size_of::<V>()])).collect())
    }

    /// Deletes an element; whether it was there.
    pub(crate) fn remove(&self, key: &K) -> Result<bool, MapError> {
        match self.map.delete(key.bytes()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.error("delete", key)(error)),
        }
    }

    /// The keys that are there now. Meanwhile others may come and go.
    pub(crate) fn keys(&self) -> Vec<K> {
        self.map.keys().map(|key| K::from_bytes(&key)).collect()
    }

    /// All elements.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut entries = Vec::new();
        for key in self.keys() {
            // An element that went in between is none.
            entries.extend(self.get(&key)?.map(|value| (key, value)));
        }
        Ok(entries)
    }
}

// SAFETY: an integer.
unsafe impl Plain for u32 {}

/// The maps that are hashes and tries.
pub(crate) struct Tables {
    pub(crate) ep_overflow: Table<u32, abi::ep>,
    pub(crate) source: Table<abi::sourcek, u32>,
    pub(crate) owner: Table<abi::addr, u32>,
    pub(crate) vip: Table<abi::vipk, u32>,
    pub(crate) host: Table<abi::addr, u32>,
    pub(crate) ip_atom: Table<abi::addr, AtomCell>,
    pub(crate) cidr_atom: Table<abi::cidrk, u32>,
    pub(crate) row: Table<abi::rowk, abi::row>,
    pub(crate) big_row: Table<abi::pagek, abi::page>,
    pub(crate) ct: Table<abi::ctk, abi::ctv>,
    pub(crate) counter: Table<u32, abi::counters>,
    pub(crate) suppressed: Table<abi::suppk, abi::suppv>,
    pub(crate) config: Table<u32, abi::config>,
    pub(crate) events: MapHandle,
    pub(crate) grace: MapHandle,
}

/// An atom that is changed in place, under the map's own lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AtomCell {
    lock: u32,
    pub(crate) atom: u32,
}

// SAFETY: `repr(C)`, two integers.
unsafe impl Plain for AtomCell {}

impl AtomCell {
    pub(crate) fn new(atom: u32) -> Self {
        Self { lock: 0, atom }
    }
}

// SAFETY: `repr(C)`, integers, no padding; arrays of 128 have no `Default` to be generated, hence by hand.
unsafe impl Plain for abi::page {}

impl Tables {
    /// Takes the maps by name.
    pub(crate) fn new(mut maps: BTreeMap<String, MapHandle>) -> Result<Self, PathBuf> {
        let mut take = |name: &'static str| maps.remove(name).ok_or_else(|| PathBuf::from(name));
        macro_rules! table {
            ($name:literal) => {
                Table::new($name, take($name)?)
            };
        }
        Ok(Self {
            ep_overflow: table!("ep_overflow"),
            source: table!("source"),
            owner: table!("owner"),
            vip: table!("vip"),
            host: table!("host"),
            ip_atom: table!("ip_atom"),
            cidr_atom: table!("cidr_atom"),
            row: table!("row"),
            big_row: table!("big_row"),
            ct: table!("ct"),
            counter: table!("counter"),
            suppressed: table!("suppressed"),
            config: table!("config"),
            events: take("events")?,
            grace: take("grace")?,
        })
    }
}
