//! Reading single fields, and what can be wrong with one. Pure.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use litemap::LiteMap;
use thiserror::Error;

use crate::{Delta, Digest, Direction, LogMode, PodUid, RowError, Verdict, wire};

/// Why a message is refused. What the receiver has is still good.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}.{field}: {problem}; the message is refused, what was there before holds")]
pub struct DecodeError {
    /// The message's name in `durward.proto`.
    pub message: &'static str,
    /// The field's name there.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// It must be there and is not.
    #[error("it is missing")]
    Missing,
    /// It must be empty and is not.
    #[error("it must be empty here, and is not")]
    Unexpected,
    /// An enum value or a name that this side does not know.
    #[error("{0} is unknown to this version; the peer may be newer")]
    Unknown(String),
    /// Bytes of the wrong number.
    #[error("{found} bytes, expected {expected}")]
    Length {
        /// How many are right.
        expected: &'static str,
        /// How many there are.
        found: usize,
    },
    /// Bytes that are not the message that they should be.
    #[error("{0}")]
    Malformed(prost::DecodeError),
    /// A key that occurs twice, or is put and removed at once.
    #[error("{0} occurs twice")]
    Repeated(String),
    /// A list that must be in rising order.
    #[error("{0} is not after the one before it")]
    Unsorted(String),
    /// More than are taken at once.
    #[error("{found} of them, at most {most} are taken")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many are taken.
        most: usize,
    },
    /// An IPv4 address that is written as an IPv6 one.
    #[error("{0} is an IPv4 address in IPv6 form; send 4 bytes")]
    Mapped(IpAddr),
    /// No block of addresses.
    #[error("{0} is no block: the prefix is too long, or bits are set after it")]
    Block(String),
    /// A protocol and port that do not exist.
    #[error("{0:#x} is above the last protocol and port, 0xffffff")]
    Port(u32),
    /// A port that does not exist.
    #[error("{0} is above the last port, 65535")]
    PortNumber(u32),
    /// Steps that are no row.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A number that must not be negative.
    #[error("{0} is negative")]
    Negative(i64),
}

/// A field that is being read: its message's name and its own.
#[derive(Clone, Copy)]
pub(super) struct Field(pub(super) &'static str, pub(super) &'static str);

impl Field {
    pub(super) fn wrong(self, problem: impl Into<Problem>) -> DecodeError {
        DecodeError { message: self.0, field: self.1, problem: problem.into() }
    }

    pub(super) fn required<T>(self, value: Option<T>) -> Result<T, DecodeError> {
        value.ok_or_else(|| self.wrong(Problem::Missing))
    }

    pub(super) fn text(self, text: String) -> Result<Arc<str>, DecodeError> {
        self.required((!text.is_empty()).then(|| text.into()))
    }

    pub(super) fn uid(self, text: &str) -> Result<PodUid, DecodeError> {
        self.required((!text.is_empty()).then(|| text.into()))
    }

    pub(super) fn digest(self, bytes: &[u8]) -> Result<Digest, DecodeError> {
        let wrong = |_| self.wrong(Problem::Length { expected: "16", found: bytes.len() });
        self.required((!bytes.is_empty()).then_some(()))?;
        bytes.try_into().map(Digest).map_err(wrong)
    }

    pub(super) fn address(self, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Ok(v4.into());
        }
        let wrong = |_| self.wrong(Problem::Length { expected: "4 or 16", found: bytes.len() });
        self.v6(<[u8; 16]>::try_from(bytes).map_err(wrong)?)
    }

    pub(super) fn v6(self, octets: [u8; 16]) -> Result<IpAddr, DecodeError> {
        let v6 = Ipv6Addr::from(octets);
        match v6.to_ipv4_mapped() {
            Some(_) => Err(self.wrong(Problem::Mapped(v6.into()))),
            None => Ok(v6.into()),
        }
    }

    pub(super) fn direction(self, number: i32) -> Result<Direction, DecodeError> {
        match wire::Direction::try_from(number) {
            Ok(wire::Direction::Ingress) => Ok(Direction::Ingress),
            Ok(wire::Direction::Egress) => Ok(Direction::Egress),
            Ok(wire::Direction::Unspecified) => Err(self.wrong(Problem::Missing)),
            Err(_) => Err(self.wrong(Problem::Unknown(number.to_string()))),
        }
    }

    pub(super) fn verdict(self, number: i32) -> Result<Verdict, DecodeError> {
        match wire::Verdict::try_from(number) {
            Ok(wire::Verdict::Allow) => Ok(Verdict::Allow),
            Ok(wire::Verdict::Deny) => Ok(Verdict::Deny),
            Ok(wire::Verdict::Unspecified) => Err(self.wrong(Problem::Missing)),
            Err(_) => Err(self.wrong(Problem::Unknown(number.to_string()))),
        }
    }

    pub(super) fn mode(self, number: i32) -> Result<LogMode, DecodeError> {
        match wire::LogMode::try_from(number) {
            Ok(wire::LogMode::Off) => Ok(LogMode::Off),
            Ok(wire::LogMode::All) => Ok(LogMode::All),
            Ok(wire::LogMode::Delegated) => Ok(LogMode::Delegated),
            Ok(wire::LogMode::Unspecified) => Err(self.wrong(Problem::Missing)),
            Err(_) => Err(self.wrong(Problem::Unknown(number.to_string()))),
        }
    }

    /// Items that rise strictly.
    pub(super) fn rising<T: Ord, U: Display>(
        self,
        items: &[T],
        name: impl Fn(&T) -> U,
    ) -> Result<(), DecodeError> {
        match items.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(self.wrong(Problem::Unsorted(name(&pair[1]).to_string()))),
            None => Ok(()),
        }
    }

    /// Entries by their keys, each once.
    pub(super) fn map<K: Ord + Display, V>(
        self,
        entries: impl IntoIterator<Item = Result<(K, V), DecodeError>>,
    ) -> Result<LiteMap<K, V>, DecodeError> {
        let mut entries: Vec<_> = entries.into_iter().collect::<Result<_, _>>()?;
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(self.wrong(Problem::Repeated(pair[0].0.to_string()))),
            None => Ok(LiteMap::from_sorted_store_unchecked(entries)),
        }
    }

    /// What changes in a map; `self` is the field of the removed keys.
    pub(super) fn delta<K: Ord + Display, V>(
        self,
        put: LiteMap<K, V>,
        keys: impl IntoIterator<Item = Result<K, DecodeError>>,
    ) -> Result<Delta<K, V>, DecodeError> {
        let mut removed = BTreeSet::new();
        for key in keys {
            let key = key?;
            if put.contains_key(&key) || removed.contains(&key) {
                return Err(self.wrong(Problem::Repeated(key.to_string())));
            }
            removed.insert(key);
        }
        Ok(Delta { put, removed })
    }
}
