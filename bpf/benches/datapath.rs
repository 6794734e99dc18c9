//! What the loaded programs cost: nanoseconds a packet, by `BPF_PROG_TEST_RUN` with 1,000 peers and 10,000 live
//! connections, and microseconds a whole TCP connection over a veth pair. Medians of alternating rounds.
//! The last line of the output is one JSON object.

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use durward_bpf::{DataPath, Direction, Fate, Flags, Options, Settings, Trial};
use lab::frame::*;
use lab::pod::*;
use lab::wire::{Netns, nsid};
use libbpf_rs::query::LinkInfo;
use libbpf_rs::{Link, MapCore, MapFlags, Object, ObjectBuilder, ProgramHandle, ProgramInput};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const BENCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bench.bpf.o"));
const PEERS: u32 = 1_000;
const CONNECTIONS: u32 = 10_000;
const ROUNDS: usize = 61;
/// Repetitions of an established packet in a round.
const REPEAT: u32 = 20_000;
/// New connections in a round: few enough for the table never to be full, and for the ring.
const NEW: u32 = 2_000;

fn main() {
    // `cargo test --benches` and the like ask what there is to run: nothing of theirs.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    lab::run(|lab| {
        let mut figures = packets(lab);
        let extra = connections(lab);
        println!("\nwhole TCP connection, with the programs minus without: {extra:+.2} us");
        figures.insert("connection_extra_us", extra);
        let fields: Vec<_> = figures.iter().map(|(name, value)| format!("\"{name}\": {value:.2}")).collect();
        println!("{{{}}}", fields.join(", "));
    });
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Which packets a round repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of one live connection, another one each round.
    Live,
    /// Of all live connections in turn: what the caches do not hold.
    Spread,
    /// Each of a new connection, or a denied one, with one peer, another one each round.
    New,
    /// The same, with all peers in turn.
    NewSpread,
}

/// Which connections a run walks through.
#[derive(Clone, Copy)]
struct Walk {
    first: u32,
    connections: u32,
    peers: u32,
    first_peer: u32,
    repeat: u32,
}

/// All live connections.
const LIVE: Walk =
    Walk { first: 0, connections: CONNECTIONS, peers: PEERS, first_peer: 0, repeat: CONNECTIONS };

/// One way a packet can take through the programs.
struct Scenario {
    name: &'static str,
    direction: Direction,
    frame: Vec<u8>,
    peer_at: u32,
    port_at: u32,
    kind: Kind,
}

/// The peer with a number, in the bytes that the varying program changes.
fn peer(v4: bool, number: u16, allowed: bool) -> IpAddr {
    let [high, low] = (256 + number).to_be_bytes();
    let net = if allowed { 3 } else { 4 };
    if v4 {
        IpAddr::from([10, net, high, low])
    } else {
        IpAddr::from([0xfd00, u16::from(net), 0, 0, 0, 0, 0, 256 + number])
    }
}

fn scenarios() -> Vec<Scenario> {
    let tcp = |name, f: Family, direction, allowed, flags, kind| {
        let v4 = f.pod.is_ipv4();
        let (src, dst) = ends(direction, f.pod, peer(v4, 0, allowed));
        let (sport, dport) = ends(direction, PORT, 1024);
        let mut payload = tcp_header(sport, dport, flags);
        payload.extend([0; 96]);
        // Offsets of the addresses' last two bytes, and of the ports.
        let (src_at, dst_at, l4) = if v4 { (28, 32, 34) } else { (36, 52, 54) };
        let (peer_at, port_at) = match direction {
            Ingress => (src_at, l4),
            Egress => (dst_at, l4 + 2),
        };
        Scenario { name, direction, frame: ip(src, dst, TCP, 0, &payload), peer_at, port_at, kind }
    };
    vec![
        tcp("established_v4_ns", v4(), Ingress, true, ACK, Kind::Live),
        tcp("established_v6_ns", v6(), Ingress, true, ACK, Kind::Live),
        tcp("reply_v4_ns", v4(), Egress, true, ACK, Kind::Live),
        tcp("reply_v6_ns", v6(), Egress, true, ACK, Kind::Live),
        tcp("spread_v4_ns", v4(), Ingress, true, ACK, Kind::Spread),
        tcp("spread_v6_ns", v6(), Ingress, true, ACK, Kind::Spread),
        tcp("new_logged_ns", v4(), Ingress, true, SYN, Kind::New),
        tcp("new_logged_v6_ns", v6(), Ingress, true, SYN, Kind::New),
        tcp("denied_ns", v4(), Ingress, false, SYN, Kind::New),
        tcp("denied_v6_ns", v6(), Ingress, false, SYN, Kind::New),
        tcp("new_logged_spread_v4_ns", v4(), Ingress, true, SYN, Kind::NewSpread),
        tcp("new_logged_spread_v6_ns", v6(), Ingress, true, SYN, Kind::NewSpread),
        tcp("denied_spread_v4_ns", v4(), Ingress, false, SYN, Kind::NewSpread),
    ]
}

/// The programs that vary packets, and those that they call.
struct Varying {
    object: Object,
    loaded: BTreeMap<Direction, ProgramHandle>,
}

impl Varying {
    fn new(lab: &lab::Lab, pod: &Pod) -> Self {
        let object =
            ObjectBuilder::default().open_memory(BENCH).and_then(|open| open.load()).expect("it loads");
        pod.path.attach(pod.ifindex).expect("the programs attach");
        let loaded = [(Ingress, "to_pod"), (Egress, "from_pod")].map(|(direction, name)| {
            let pin = lab.bpffs.join(format!("durward/v1/links/{}-{name}", pod.ifindex));
            let link = Link::open(pin).expect("the link is pinned");
            let id = LinkInfo::from_fd(link.as_fd()).expect("the link is known").prog_id;
            (direction, ProgramHandle::from_prog_id(id).expect("the program is loaded"))
        });
        Self { object, loaded: loaded.into() }
    }

    /// The time of a packet: through the loaded program, or an empty one.
    fn run(&self, pod: &Pod, scenario: &Scenario, walk: Walk, loaded: bool) -> f64 {
        let (varying, empty, measured) = match scenario.direction {
            Ingress => ("vary_to", "empty_to", "measured_to"),
            Egress => ("vary_from", "empty_from", "measured_from"),
        };
        let fd = if loaded {
            self.loaded[&scenario.direction].as_fd().as_raw_fd()
        } else {
            self.program(empty, |program| program.as_fd().as_raw_fd())
        };
        let map = |name: &str| self.object.maps().find(|map| map.name().to_string_lossy().ends_with(name));
        let measured = map(measured).expect("the map is there");
        measured
            .update(&0_u32.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .expect("the program is called");
        let Walk { first, connections, peers, first_peer, repeat } = walk;
        let vary = [first, connections, peers, first_peer, scenario.peer_at, scenario.port_at];
        let vary: Vec<u8> = vary.into_iter().flat_map(u32::to_ne_bytes).collect();
        map(".bss")
            .expect("it has variables")
            .update(&0_u32.to_ne_bytes(), &vary, MapFlags::ANY)
            .expect("set");
        let mut context = [0_u32; 48];
        (context[9], context[10]) = (pod.uplink, pod.ifindex);
        let mut context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        self.program(varying, |program| {
            let input = ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(&scenario.frame),
                repeat,
                ..Default::default()
            };
            program.test_run(input).expect("it runs").duration.as_nanos() as f64
        })
    }

    fn program<T>(&self, name: &str, with: impl FnOnce(libbpf_rs::ProgramMut<'_>) -> T) -> T {
        with(self.object.progs_mut().find(|program| program.name() == name).expect("the program is there"))
    }

    fn empty(&self, scenario: &Scenario) -> f64 {
        self.program("empty_to", |program| {
            let input = ProgramInput { data_in: Some(&scenario.frame), repeat: REPEAT, ..Default::default() };
            program.test_run(input).expect("it runs").duration.as_nanos() as f64
        })
    }
}

/// The time of a packet of one live connection.
fn live(pod: &Pod, scenario: &Scenario, number: u32) -> f64 {
    let mut frame = scenario.frame.clone();
    let mut put = |at: u32, value: u32| {
        let at = at as usize;
        frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
    };
    put(scenario.peer_at, 256 + number % PEERS);
    put(scenario.port_at, 1024 + number / PEERS);
    let (direction, ifindex, came_in_by) = (scenario.direction, pod.ifindex, pod.uplink);
    let trial = Trial { direction, ifindex, came_in_by, frame: &frame, repeat: REPEAT };
    let (fate, took) = pod.path.try_packet(trial).expect("the packet is tried");
    assert_eq!(fate, Fate::Passed, "{}", scenario.name);
    took.as_nanos() as f64
}

fn packets(lab: &lab::Lab) -> BTreeMap<&'static str, f64> {
    let pod = Pod::new_in(lab, DataPath::open(&lab.bpffs, Options::default()).expect("the programs load"));
    pod.path
        .set(&Settings { log_rate: 10_000_000, log_burst: 10_000_000, ..Settings::default() })
        .expect("set");
    for number in 0..PEERS as u16 {
        for v4 in [true, false] {
            pod.path.set_ip_atom(peer(v4, number, true), FRIEND).expect("an atom");
            pod.path.set_ip_atom(peer(v4, number, false), FRIEND + 1).expect("an atom");
        }
    }
    let varying = Varying::new(lab, &pod);
    let scenarios = scenarios();
    // The live connections: each called once, and answered.
    for scenario in scenarios
        .iter()
        .filter(|scenario| scenario.kind == Kind::NewSpread && scenario.name.starts_with("new"))
    {
        varying.run(&pod, scenario, LIVE, true);
    }
    for scenario in
        scenarios.iter().filter(|scenario| scenario.kind == Kind::Spread || scenario.kind == Kind::Live)
    {
        varying.run(&pod, scenario, LIVE, true);
    }
    let (tracked, counted) = (pod.connections().len() as u32, pod.counters(Ingress));
    assert_eq!(tracked, 2 * CONNECTIONS, "the live connections are there: {counted:?}");
    pod.events();

    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut fresh = CONNECTIONS;
    for round in 0..ROUNDS as u32 {
        let empty = varying.empty(&scenarios[0]);
        times.entry("empty_ns").or_default().push(empty);
        for scenario in &scenarios {
            let new = Walk { connections: u32::MAX, repeat: NEW, ..LIVE };
            let walk = match scenario.kind {
                Kind::Live => None,
                Kind::Spread => Some(Walk { repeat: REPEAT, ..LIVE }),
                // Ports that no other scenario uses.
                Kind::New => Some(Walk { first: 1000, peers: 1, first_peer: round * 7 % PEERS, ..new }),
                Kind::NewSpread => Some(Walk { first: fresh, ..new }),
            };
            let time = match walk {
                None => live(&pod, scenario, round * 163 % CONNECTIONS),
                Some(walk) => {
                    let bare = varying.run(&pod, scenario, walk, false);
                    varying.run(&pod, scenario, walk, true) - bare + empty
                }
            };
            times.entry(scenario.name).or_default().push(time);
        }
        fresh += NEW;
        pod.events();
    }
    let denied = pod.counters(Ingress).denied;
    assert!(denied >= 2 * u64::from(NEW) * ROUNDS as u64, "{denied} packets were denied");
    assert!(pod.counters(Ingress).allowed >= 2 * u64::from(NEW) * ROUNDS as u64);
    assert_eq!(pod.counters(Ingress).unwritten, 0);
    println!(
        "nanoseconds a packet, median of {ROUNDS} rounds; {PEERS} peers, {CONNECTIONS} live connections a family"
    );
    let figures: BTreeMap<_, _> = times.into_iter().map(|(name, values)| (name, median(values))).collect();
    for (name, figure) in &figures {
        println!("{name:>24} {figure:7.1}");
    }
    pod.path.detach(pod.ifindex).expect("the programs are detached");
    figures
}

/// Whole connections (connect, a byte each way, close) from a pod's namespace to a server here, both on one CPU.
fn connections(lab: &lab::Lab) -> f64 {
    let (client, f) = (Netns::new(), v4());
    client.wire("real", [f.pod, v6().pod], [f.friend, v6().friend]);
    let pod = Pod::on_interface(lab.open(), "real", "real");
    let flags = Flags { log_allow: true, log_deny: true, ..Flags::default() };
    let endpoint = durward_bpf::Endpoint {
        ifindex: pod.ifindex,
        nsid: Some(nsid("real")),
        flags,
        addresses: vec![f.pod, v6().pod],
        words: [pod.next_word(IN_SET), pod.next_word(OUT_SET)],
    };
    pod.path.set_endpoint(&endpoint).expect("the endpoint is set");
    let (done, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let listener = TcpListener::bind((f.friend, PORT)).expect("the port is free");
        listener.set_nonblocking(true).expect("it does not wait");
        let pod = &pod;
        // The log's reader, as the enforcer's.
        let stop_reading = &stop;
        let mut reader = pod.path.events().expect("the ring opens");
        scope.spawn(move || {
            while !stop_reading.load(Ordering::Relaxed) {
                reader.take().expect("the ring is read");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut cpu = CpuSet::new();
        cpu.set(0).expect("there is a first CPU");
        let done = &done;
        scope.spawn(move || {
            sched_setaffinity(Pid::from_raw(0), &cpu).expect("one CPU");
            listener.set_nonblocking(false).expect("it waits");
            let mut byte = [0];
            while !done.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else { continue };
                if stream.read_exact(&mut byte).is_ok() {
                    let _ = stream.write_all(&byte);
                }
            }
        });
        let address = SocketAddr::from((f.friend, PORT));
        let connect = || {
            sched_setaffinity(Pid::from_raw(0), &cpu).expect("one CPU");
            let (start, mut count) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_millis(250) {
                let mut stream = TcpStream::connect(address).expect("it connects");
                stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0])).expect("a byte each way");
                count += 1;
            }
            start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        };
        let round = |with: bool| {
            if with {
                pod.path.attach(pod.ifindex).expect("the programs attach");
            } else {
                pod.path.detach(pod.ifindex).expect("the programs are detached");
            }
            client.enter(connect)
        };
        round(true);
        let mut without = Vec::new();
        let pairs = (0..31).map(|number| {
            // Each goes first every other time.
            let first = round(number % 2 == 0);
            let second = round(number % 2 == 1);
            let (with, bare) = if number % 2 == 0 { (first, second) } else { (second, first) };
            without.push(bare);
            with - bare
        });
        let extra = median(pairs.collect());
        println!("\nwhole TCP connection without the programs: {:.1} us", median(without));
        done.store(true, Ordering::Relaxed);
        drop(client.enter(|| TcpStream::connect(address)));
        stop.store(true, Ordering::Relaxed);
        assert!(pod.counters(Egress).allowed > 0, "the connections were judged");
        extra
    })
}
