//! What the kernel saw, as both its records and its windows tell it. Pure.

use std::net::SocketAddr;

use durward_bpf::{Denial, Event};
use durward_log::Connection;
use durward_proto::Direction;

use super::clock::Clock;

/// A verdict that is due in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether it passed.
    pub(crate) allowed: bool,
    /// The connection.
    pub(crate) connection: Connection,
    /// The frontend that was called, if the verdict is on its backend.
    pub(crate) called: Option<SocketAddr>,
    /// The endpoint whose policies spoke.
    pub(crate) ifindex: u32,
    /// The policies' number.
    pub(crate) attribution: u32,
    /// How many packets.
    pub(crate) count: u64,
    /// When, in nanoseconds since 1970.
    pub(crate) at_ns: i64,
}

impl Seen {
    /// What a record tells.
    pub(crate) fn event(event: &Event, clock: Clock) -> Self {
        Self {
            allowed: event.act.allow,
            connection: connection(event.direction, event.local, event.remote, event.protocol),
            called: event.service,
            ifindex: event.ifindex,
            attribution: event.act.attribution,
            count: 1,
            at_ns: clock.wall_ns(event.at_ns),
        }
    }

    /// What a window tells.
    pub(crate) fn denial(denial: &Denial, clock: Clock) -> Self {
        Self {
            allowed: denial.act.allow,
            connection: connection(denial.direction, denial.local, denial.remote, denial.protocol),
            called: denial.service,
            ifindex: denial.ifindex,
            attribution: denial.act.attribution,
            count: denial.count.into(),
            at_ns: clock.wall_ns(denial.at_ns),
        }
    }

    /// The side of the pod whose policies spoke.
    pub(crate) fn local(&self) -> SocketAddr {
        match self.connection.direction {
            Direction::Ingress => self.connection.dest,
            Direction::Egress => self.connection.src,
        }
    }

    /// The other side.
    pub(crate) fn remote(&self) -> SocketAddr {
        match self.connection.direction {
            Direction::Ingress => self.connection.src,
            Direction::Egress => self.connection.dest,
        }
    }
}

/// A direction in the domain's words.
pub(crate) fn direction(direction: durward_bpf::Direction) -> Direction {
    match direction {
        durward_bpf::Direction::Ingress => Direction::Ingress,
        durward_bpf::Direction::Egress => Direction::Egress,
    }
}

fn connection(
    judged: durward_bpf::Direction,
    local: SocketAddr,
    remote: SocketAddr,
    protocol: u8,
) -> Connection {
    let direction = direction(judged);
    let (src, dest) = match direction {
        Direction::Ingress => (remote, local),
        Direction::Egress => (local, remote),
    };
    Connection { src, dest, protocol, direction }
}
