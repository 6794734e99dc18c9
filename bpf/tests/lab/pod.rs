//! One pod in a lab, and packets of it: sentences for tests.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use durward_bpf::{
    Act, Bound, Connection, Counters, DataPath, Direction, Endpoint, Event, Events, Fate, Flags, HostAddress,
    Reason, Trial, Word,
};

use super::frame::*;
use super::{Lab, ifindex, ip};

#[allow(unused_imports)]
pub use Direction::{Egress, Ingress};

pub const IN_SET: u32 = 11;
pub const OUT_SET: u32 = 12;
pub const FRIEND: u32 = 21;
pub const BLOCK: u32 = 22;
pub const PORT: u16 = 80;

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub pod: IpAddr,
    pub friend: IpAddr,
    pub rogue: IpAddr,
    pub node: IpAddr,
    pub other_node: IpAddr,
    pub icmp: u8,
    pub echo: u8,
    pub echo_reply: u8,
}

pub fn v4() -> Family {
    let at = |host| IpAddr::from([10, 1, 0, host]);
    Family {
        pod: at(2),
        friend: at(3),
        rogue: at(4),
        node: at(1),
        other_node: at(9),
        icmp: ICMP,
        echo: 8,
        echo_reply: 0,
    }
}

pub fn v6() -> Family {
    let at = |host| IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, host]);
    Family {
        pod: at(2),
        friend: at(3),
        rogue: at(4),
        node: at(1),
        other_node: at(9),
        icmp: ICMPV6,
        echo: 128,
        echo_reply: 129,
    }
}

pub fn families() -> [Family; 2] {
    [v4(), v6()]
}

pub fn allow(attribution: u32) -> Act {
    Act { allow: true, loggable: false, attribution }
}

pub fn deny(attribution: u32) -> Act {
    Act { allow: false, loggable: false, attribution }
}

pub fn all(act: Act) -> Vec<Bound> {
    vec![Bound { start: 0, act }]
}

/// A row that allows one port of a protocol.
pub fn only(protocol: u8, port: u16, yes: Act, no: Act) -> Vec<Bound> {
    let start = u32::from(protocol) << 16 | u32::from(port);
    vec![Bound { start: 0, act: no }, Bound { start, act: yes }, Bound { start: start + 1, act: no }]
}

/// A pod at an interface that exists, isolated both ways: only its friend may call its port 80, and only its
/// friend's port 80 may it call, by TCP and UDP.
pub struct Pod {
    pub path: DataPath,
    pub ifindex: u32,
    pub uplink: u32,
    generation: AtomicU32,
    events: Mutex<Events>,
    flags: Flags,
}

impl Pod {
    pub fn new(lab: &Lab) -> Self {
        Self::new_in(lab, lab.open())
    }

    pub fn new_in(_lab: &Lab, path: DataPath) -> Self {
        ip("link add pod type veth peer name peer");
        ip("link set pod up");
        ip("link add uplink type veth peer name far");
        Self::on(path)
    }

    pub fn on(path: DataPath) -> Self {
        Self::on_interface(path, "pod", "uplink")
    }

    pub fn on_interface(path: DataPath, name: &str, uplink: &str) -> Self {
        let events = path.events().expect("the ring opens").into();
        let flags = Flags { log_allow: true, log_deny: true, ..Flags::default() };
        let (ifindex, uplink) = (ifindex(name), ifindex(uplink));
        let pod = Self { path, ifindex, uplink, generation: 0.into(), events, flags };
        for set in [IN_SET, OUT_SET] {
            pod.path.set_row(set, 0, &all(deny(100 + set))).expect("a base row");
            pod.path.set_row(set, FRIEND, &Self::web(set)).expect("a row");
        }
        for family in families() {
            pod.path.set_ip_atom(family.friend, FRIEND).expect("an atom");
            pod.path.set_host_address(family.node, HostAddress::This).expect("an address");
            pod.path.set_host_address(family.other_node, HostAddress::Other).expect("an address");
        }
        pod.put(pod.flags, &[v4().pod, v6().pod]);
        pod
    }

    /// TCP, UDP and SCTP port 80 are allowed.
    pub fn web(set: u32) -> Vec<Bound> {
        let (yes, no) = (allow(200 + set), deny(100 + set));
        let mut bounds = vec![Bound { start: 0, act: no }];
        for protocol in [TCP, UDP, SCTP] {
            let start = u32::from(protocol) << 16 | u32::from(PORT);
            bounds.extend([Bound { start, act: yes }, Bound { start: start + 1, act: no }]);
        }
        bounds
    }

    pub fn next_word(&self, set: u32) -> Word {
        Word::new(set, self.generation.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub fn put(&self, flags: Flags, addresses: &[IpAddr]) {
        let endpoint = Endpoint {
            ifindex: self.ifindex,
            nsid: None,
            flags,
            addresses: addresses.to_vec(),
            words: [self.next_word(IN_SET), self.next_word(OUT_SET)],
        };
        self.path.set_endpoint(&endpoint).expect("the endpoint is set");
    }

    /// Judges a direction by another set from now on; 0: not isolated.
    pub fn judge_by(&self, direction: Direction, set: u32) {
        self.path.set_word(self.ifindex, direction, self.next_word(set)).expect("the word is stored");
    }

    /// The fate of a frame that another sent to the pod, or the pod sent.
    pub fn frame(&self, direction: Direction, frame: &[u8]) -> Fate {
        let came_in_by = if direction == Ingress { self.uplink } else { self.ifindex };
        self.frame_from(direction, came_in_by, frame)
    }

    pub fn frame_from(&self, direction: Direction, came_in_by: u32, frame: &[u8]) -> Fate {
        let trial = Trial { direction, ifindex: self.ifindex, came_in_by, frame, repeat: 1 };
        self.path.try_packet(trial).expect("the packet is tried").0
    }

    /// Packets between the pod and a remote; ports are the pod's first.
    pub fn tcp(
        &self,
        direction: Direction,
        f: Family,
        remote: IpAddr,
        lport: u16,
        rport: u16,
        flags: u8,
    ) -> Fate {
        let (src, dst) = ends(direction, f.pod, remote);
        let (sport, dport) = ends(direction, lport, rport);
        self.frame(direction, &super::frame::ip(src, dst, TCP, 0, &tcp_header(sport, dport, flags)))
    }

    pub fn udp(&self, direction: Direction, f: Family, remote: IpAddr, lport: u16, rport: u16) -> Fate {
        let (src, dst) = ends(direction, f.pod, remote);
        let (sport, dport) = ends(direction, lport, rport);
        self.frame(direction, &super::frame::ip(src, dst, UDP, 0, &udp_header(sport, dport)))
    }

    pub fn ping(&self, direction: Direction, f: Family, remote: IpAddr, kind: u8, id: u16) -> Fate {
        let (src, dst) = ends(direction, f.pod, remote);
        self.frame(direction, &super::frame::ip(src, dst, f.icmp, 0, &icmp_header(kind, id, b"data")))
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("nobody panicked").take().expect("the ring is read")
    }

    pub fn counters(&self, direction: Direction) -> Counters {
        self.path.counters(self.ifindex, direction).expect("the counters are read")
    }

    pub fn dropped(&self, direction: Direction, reason: Reason) -> u64 {
        self.counters(direction).dropped.get(&reason).copied().unwrap_or(0)
    }

    pub fn connections(&self) -> Vec<Connection> {
        let all = self.path.connections().expect("the connections are read");
        all.collect::<Result<_, _>>().expect("they are read to the end")
    }

    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Forgets all connections, as if they had been evicted.
    pub fn forget(&self) {
        let keys: Vec<_> = self.connections().into_iter().map(|connection| connection.key).collect();
        self.path.forget(keys).expect("the connections are deleted");
    }

    /// Asserts that a frame is dropped for a reason, which is counted once.
    pub fn assert_dropped(&self, direction: Direction, frame: &[u8], reason: Reason) {
        let before = self.dropped(direction, reason);
        assert_eq!(self.frame(direction, frame), Fate::Dropped, "{reason:?} {direction:?}");
        let counters = self.counters(direction);
        assert_eq!(
            counters.dropped.get(&reason),
            Some(&(before + 1)),
            "{reason:?} {direction:?}: {counters:?}"
        );
    }
}
