//! The table of denials: closing the windows that are over. IO.
//!
//! A window is opened and counted by the programs alone. It is closed here in three steps, so that no count is
//! ever credited to the place's next owner, and a crash in between repeats a line rather than losing one:
//! its tag changes to closing, a grace period passes, it is read; and once its line is written it is freed.

use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::abi;
use crate::conntrack::ConnectionKey;
use crate::{Act, DataPath, Direction, MapError};

/// Denied packets, those of connections that were cut among them, of one remote, local address, port, protocol, direction and act, within one window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// The endpoint's interface.
    pub ifindex: u32,
    /// Whose rules denied.
    pub direction: Direction,
    /// The protocol's IANA number.
    pub protocol: u8,
    /// The pod's side, with the first packet's port.
    pub local: SocketAddr,
    /// The other side, with the first packet's port.
    pub remote: SocketAddr,
    /// The Service's frontend that was called, if it was one; `remote` is its backend.
    pub service: Option<SocketAddr>,
    /// What was said: the attribution of those that isolate the pod.
    pub act: Act,
    /// How many packets.
    pub count: u32,
    /// When the first packet came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// A window that is over. Its place is free again once it is given to [`DataPath::free_denials`].
#[derive(Debug)]
pub struct Closed {
    /// What it counted.
    pub denial: Denial,
    place: usize,
}

const TAG: usize = offset_of!(abi::denial, tag);
const OPENED: usize = offset_of!(abi::denial, opened);

impl DataPath {
    /// Closes and reads the windows that are over, and those that somebody closed and did not free. With `all`
    /// also those that are not over, as when logging ends.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the kernel refuses.
    pub fn close_denials(&self, all: bool) -> Result<Vec<Closed>, MapError> {
        let now = self.clock()?.jiffies as u32;
        let mut closing = Vec::new();
        for place in 0..self.denials.len() {
            let tag = self.denials.u64(place, TAG).load(Ordering::Acquire);
            let opened = self.denials.u32(place, OPENED).load(Ordering::Acquire);
            let over = now.wrapping_sub(opened).cast_signed() >= self.timing.window.cast_signed();
            match tag {
                0 => continue,
                _ if tag & abi::TAG_OPEN as u64 == 0 => {}
                // Not filled in yet: the program that took the place is still at it.
                _ if opened == 0 || !(over || all) => continue,
                _ => {
                    let closed = tag & !(abi::TAG_OPEN as u64);
                    self.denials.u64(place, TAG).store(closed, Ordering::Release);
                }
            }
            closing.push(place);
        }
        if closing.is_empty() {
            return Ok(Vec::new());
        }
        self.grace_period()?;
        Ok(closing.into_iter().map(|place| Closed { denial: self.denial_at(place), place }).collect())
    }

    /// Frees the places of windows whose lines are written.
    pub fn free_denials(&self, closed: impl IntoIterator<Item = Closed>) {
        for Closed { place, .. } in closed {
            self.denials.u32(place, OPENED).store(0, Ordering::Relaxed);
            self.denials.u32(place, offset_of!(abi::denial, count)).store(0, Ordering::Relaxed);
            self.denials.u64(place, TAG).store(0, Ordering::Release);
        }
    }

    /// The windows that are open or not yet freed, as they are now.
    pub fn denials(&self) -> Vec<Denial> {
        let used = |&place: &usize| self.denials.u64(place, TAG).load(Ordering::Acquire) != 0;
        (0..self.denials.len()).filter(used).map(|place| self.denial_at(place)).collect()
    }

    fn denial_at(&self, place: usize) -> Denial {
        let value = self.denials.copy(place);
        let key = ConnectionKey(abi::ctk {
            local: value.local,
            remote: value.remote,
            lport: value.lport,
            rport: value.rport,
            if_proto: value.if_proto,
        });
        Denial {
            ifindex: key.ifindex(),
            direction: Direction::of(value.direction),
            protocol: key.protocol(),
            local: key.local(),
            remote: key.remote(),
            service: crate::events::frontend(value.service, value.sport),
            act: Act::of(value.act),
            count: value.count,
            at_ns: value.at_ns,
        }
    }
}
