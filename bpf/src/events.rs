//! The ring: records of new, cut and denied connections, as the programs write them. IO.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use libbpf_rs::{RingBuffer, RingBufferBuilder};
use serde::Serialize;

use crate::abi::{self, Plain};
use crate::{Act, DataPath, Direction, MapError};

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The first denied packet of a window. Provisional: the window's line comes from the deny table.
    Deny,
    /// A new connection was allowed.
    Allow,
    /// The same, of the first packet of an established connection that was cut: the rules no longer allow it.
    Cut,
}

/// A record of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What it tells.
    pub kind: EventKind,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The endpoint's interface.
    pub ifindex: u32,
    /// Whose rules spoke; of an allowed connection, who opened it.
    pub direction: Direction,
    /// The protocol's IANA number.
    pub protocol: u8,
    /// The pod's side.
    pub local: SocketAddr,
    /// The other side: of a Service, its backend.
    pub remote: SocketAddr,
    /// The Service's frontend that was called, if it was one.
    pub service: Option<SocketAddr>,
    /// What was said.
    pub act: Act,
}

impl From<&abi::event> for Event {
    fn from(record: &abi::event) -> Self {
        let end = |address: abi::addr, port| SocketAddr::from((IpAddr::from(address), u16::from_be(port)));
        let kind = match u32::from(record.kind) {
            kind if kind == abi::EVENT_ALLOW => EventKind::Allow,
            kind if kind == abi::EVENT_CUT => EventKind::Cut,
            _ => EventKind::Deny,
        };
        Self {
            kind,
            at_ns: record.at_ns,
            ifindex: record.ifindex,
            direction: Direction::of(record.direction),
            protocol: record.protocol,
            local: end(record.local, record.lport),
            remote: end(record.remote, record.rport),
            service: frontend(record.service, record.sport),
            act: Act::of(record.act),
        }
    }
}

pub(crate) fn frontend(address: abi::addr, port: u16) -> Option<SocketAddr> {
    (address != abi::addr::default()).then(|| (IpAddr::from(address), u16::from_be(port)).into())
}

/// The ring's one reader. The programs never wake it: it looks by itself, every 5 to 100 ms.
pub struct Events {
    ring: RingBuffer<'static>,
    read: Arc<Mutex<Vec<Event>>>,
}

impl Events {
    /// Takes what is in the ring.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn take(&mut self) -> Result<Vec<Event>, MapError> {
        let consumed = self.ring.consume();
        consumed.map_err(|error| MapError::Map { map: "events", source: std::io::Error::other(error) })?;
        Ok(std::mem::take(&mut *self.read.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl DataPath {
    /// Opens the ring. There must be one reader at a time.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn events(&self) -> Result<Events, MapError> {
        let read = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&read);
        let push = move |bytes: &[u8]| {
            // The ring pads records; ours is at the front.
            if let Some(record) = bytes.get(..size_of::<abi::event>()) {
                let event = Event::from(&abi::event::from_bytes(record));
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
            0
        };
        let mut builder = RingBufferBuilder::new();
        let ring = builder.add(&self.tables.events, push).and_then(|builder| std::mem::take(builder).build());
        let ring =
            ring.map_err(|error| MapError::Map { map: "events", source: std::io::Error::other(error) })?;
        Ok(Events { ring, read })
    }
}
