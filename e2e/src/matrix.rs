//! Many connections at once, and what is expected of each (IO).

use std::{net::SocketAddr, thread};

use crate::{Namespaces, Outcome, Pod, Probe, Protocol, Result, error::Named, wait};

/// Connections between pods, each with the outcome that it should have.
#[derive(Debug, Default)]
pub struct Matrix<'a> {
    entries: Vec<Entry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    what: String,
    from: &'a Namespaces,
    probe: Probe,
    expected: Outcome,
}

impl<'a> Matrix<'a> {
    /// Without any connection yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// TCP from one pod to another's port, IPv4 and IPv6.
    pub fn tcp(self, from: &'a Pod, to: &Pod, port: u16, expected: Outcome) -> Self {
        self.pods(Protocol::Tcp, from, to, port, expected)
    }

    /// UDP from one pod to another's port, IPv4 and IPv6.
    pub fn udp(self, from: &'a Pod, to: &Pod, port: u16, expected: Outcome) -> Self {
        self.pods(Protocol::Udp, from, to, port, expected)
    }

    /// A ping from one pod to another, IPv4 and IPv6.
    pub fn ping(self, from: &'a Pod, to: &Pod, expected: Outcome) -> Self {
        self.pods(Protocol::Icmp, from, to, 0, expected)
    }

    /// Any connection; `what` says it in the report.
    pub fn probe(
        mut self,
        what: impl Into<String>,
        from: &'a Namespaces,
        protocol: Protocol,
        target: SocketAddr,
        expected: Outcome,
    ) -> Self {
        let probe = Probe { protocol, target };
        self.entries.push(Entry { what: what.into(), from, probe, expected });
        self
    }

    /// Waits until one round of all connections at once has every outcome as expected.
    pub fn hold(&self) -> Result<()> {
        wait("the matrix of connections is as expected", || {
            let outcomes = self.round().map_err(|error| error.to_string())?;
            let wrong =
                self.entries.iter().zip(outcomes).filter(|(entry, outcome)| entry.expected != *outcome);
            let wrong: Vec<_> = wrong.map(|(entry, outcome)| entry.describe(&outcome)).collect();
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        })
    }

    /// One round: the outcomes in the order in which the connections were added.
    pub fn round(&self) -> Result<Vec<Outcome>> {
        thread::scope(|scope| {
            let probes = self.entries.iter().map(|entry| {
                // Each on a thread of its own, since a thread is in one network namespace.
                scope.spawn(|| entry.from.run(|| in_runtime(entry.probe))?)
            });
            let probes: Vec<_> = probes.collect();
            let outcomes = probes.into_iter().map(|probe| probe.join());
            outcomes.map(|outcome| outcome.unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        })
    }

    fn pods(mut self, protocol: Protocol, from: &'a Pod, to: &Pod, port: u16, expected: Outcome) -> Self {
        for target in to.sockets(port) {
            let what = format!("{} → {}", from.name, to.name);
            self = self.probe(what, &from.network, protocol, target, expected.clone());
        }
        self
    }
}

impl Entry<'_> {
    fn describe(&self, outcome: &Outcome) -> String {
        let Self { what, probe: Probe { protocol, target }, expected, .. } = self;
        format!("{what} ({protocol:?} {target}): expected {expected:?}, but {outcome:?}")
    }
}

fn in_runtime(probe: Probe) -> Result<Outcome> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().named("starting a runtime")?;
    Ok(runtime.block_on(probe.outcome()))
}
