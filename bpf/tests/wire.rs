//! The programs at a real interface, with real sockets in network namespaces.

#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use durward_bpf::{Direction, Endpoint, Word};
use lab::eventually;
use lab::pod::*;
use lab::wire::{Netns, Wires, nft, nsid};

const PATIENCE: Duration = Duration::from_secs(120);
/// How long one try may take before the next; never a verdict.
const TRY: Duration = Duration::from_secs(2);

/// A connection between a server and a client, on the way each is used first in these tests.
struct Pair {
    server: TcpStream,
    client: TcpStream,
}

fn listen(at: &Netns, address: IpAddr, port: u16) -> TcpListener {
    at.enter(|| TcpListener::bind((address, port)).expect("the port is free"))
}

fn connect(listener: &TcpListener, from: &Netns) -> Pair {
    let address = listener.local_addr().expect("it is bound");
    let client = eventually("a connection", || from.enter(|| TcpStream::connect_timeout(&address, TRY).ok()));
    let (server, _) = listener.accept().expect("it was made");
    for end in [&server, &client] {
        end.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    }
    Pair { server, client }
}

impl Pair {
    /// A byte each way, the client's first.
    fn talks(&mut self) {
        talk(&mut self.client, &mut self.server);
    }

    /// A byte each way, the server's first: its rules alone would not let it.
    fn talks_backwards(&mut self) {
        talk(&mut self.server, &mut self.client);
    }

    /// One end speaks and is not heard, which the programs count.
    fn ends_cut(mut self, pod: &Pod, server_speaks: bool) {
        // A socket does not overrule the pod's own rules: then these are what denies, not the caller's.
        let refused = || {
            Direction::BOTH
                .map(|direction| pod.counters(direction))
                .map(|c| c.cut + c.denied)
                .iter()
                .sum::<u64>()
        };
        let before = refused();
        let (speaker, listener) = if server_speaks {
            (&mut self.server, &mut self.client)
        } else {
            (&mut self.client, &mut self.server)
        };
        speaker.write_all(b"x").expect("it is in the socket's buffer");
        // The packet, and its first repetition.
        eventually("the packets are dropped", || (refused() >= before + 2).then_some(()));
        listener.set_nonblocking(true).expect("it does not wait");
        let heard = listener.read(&mut [0]);
        assert!(heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "heard {heard:?}");
    }
}

fn talk(first: &mut TcpStream, second: &mut TcpStream) {
    let mut byte = [0];
    first.write_all(b"?").expect("the first writes");
    second.read_exact(&mut byte).expect("the second hears");
    second.write_all(b"!").expect("the second writes");
    first.read_exact(&mut byte).expect("the first hears");
}

/// Hears what is said again until it is heard: the neighbours may have to be found first.
fn hear(socket: &UdpSocket, buffer: &mut [u8], say: impl Fn()) -> (usize, SocketAddr) {
    socket.set_read_timeout(Some(TRY)).expect("a time limit");
    eventually("somebody hears", || {
        say();
        socket.recv_from(buffer).ok()
    })
}

fn pod_on_wires(lab: &lab::Lab) -> (Wires, Pod) {
    let wires = Wires::new(families());
    let pod = Pod::on(lab.open());
    (wires, pod)
}

/// Sets the endpoint with its namespace's id, isolated as the words say.
fn bind(pod: &Pod, ingress: Word, egress: Word, with_nsid: bool) {
    let endpoint = Endpoint {
        ifindex: pod.ifindex,
        nsid: with_nsid.then(|| nsid("pod")),
        flags: pod.flags(),
        addresses: vec![v4().pod, v6().pod],
        words: [ingress, egress],
    };
    pod.path.set_endpoint(&endpoint).unwrap();
}

#[test]
fn sockets_connect_as_the_rules_say_and_the_programs_outlive_their_loader() {
    lab::run(|lab| {
        let (wires, pod) = pod_on_wires(lab);
        pod.path.attach(pod.ifindex).unwrap();
        let mut pairs = Vec::new();
        for f in families() {
            let listener = listen(&wires.pod, f.pod, PORT);
            let mut pair = connect(&listener, &wires.friend);
            pair.talks();
            // The node itself always may, for its probes.
            let address: SocketAddr = (f.pod, PORT).into();
            eventually("the node connects", || TcpStream::connect_timeout(&address, TRY).ok());
            let before = pod.counters(Ingress).denied;
            wires.rogue.enter(|| {
                let refused = TcpStream::connect_timeout(&address, Duration::from_millis(200));
                assert!(refused.is_err(), "the rogue was let in");
            });
            eventually("the denial is counted", || (pod.counters(Ingress).denied > before).then_some(()));
            // What goes out.
            let friend = listen(&wires.friend, f.friend, PORT);
            connect(&friend, &wires.pod).talks();
            pairs.push((pair, listener));
        }
        // The loader goes, and another takes over: nothing that is established notices.
        let ifindex = pod.ifindex;
        drop(pod);
        pairs.iter_mut().for_each(|(pair, _)| pair.talks());
        let path = lab.open();
        assert_eq!(
            path.attached().unwrap().iter().filter(|link| link.live && link.ifindex == ifindex).count(),
            2
        );
        path.attach(ifindex).unwrap();
        pairs.iter_mut().for_each(|(pair, _)| pair.talks());
        let pod = Pod::on(path);
        pairs.iter_mut().for_each(|(pair, _)| pair.talks());
        // The rules change under them.
        pod.path.set_row(IN_SET, FRIEND, &all(deny(1))).unwrap();
        pod.judge_by(Ingress, IN_SET);
        for (number, (pair, _)) in pairs.into_iter().enumerate() {
            pair.ends_cut(&pod, number == 0);
        }
        pod.path.detach(ifindex).unwrap();
        assert_eq!(pod.path.attached().unwrap(), []);
        let listener = listen(&wires.pod, v4().pod, 81);
        connect(&listener, &wires.rogue).talks();
    });
}

/// Connections from before the programs: who opened them decides, whichever witness tells, and whoever speaks first.
fn connections_from_before(witness_is_conntrack: bool) {
    lab::run(|lab| {
        if witness_is_conntrack {
            nft("table inet t { chain c { type filter hook forward priority 0; ct state new counter; }; }");
        }
        let (wires, pod) = pod_on_wires(lab);
        for f in families() {
            // The pod serves port 80 to both, and calls port 80 of both.
            let serving = listen(&wires.pod, f.pod, PORT);
            let (friend, rogue) =
                (listen(&wires.friend, f.friend, PORT), listen(&wires.rogue, f.rogue, PORT));
            for server_speaks in [true, false] {
                pod.path.detach(pod.ifindex).unwrap();
                pod.forget();
                let mut by_friend = connect(&serving, &wires.friend);
                let mut to_friend = connect(&friend, &wires.pod);
                let by_rogue = connect(&serving, &wires.rogue);
                let to_rogue = connect(&rogue, &wires.pod);
                bind(&pod, pod.next_word(IN_SET), pod.next_word(OUT_SET), !witness_is_conntrack);
                pod.path.attach(pod.ifindex).unwrap();
                // The pod's own rules hold against its own socket, but not against the host's conntrack.
                if witness_is_conntrack {
                    by_friend.talks_backwards()
                } else {
                    by_friend.talks()
                }
                to_friend.talks_backwards();
                by_rogue.ends_cut(&pod, server_speaks);
                to_rogue.ends_cut(&pod, server_speaks);
            }
            // Nothing isolates what goes out: the answer to a rogue's call is none the less his connection's.
            pod.path.detach(pod.ifindex).unwrap();
            pod.forget();
            let by_rogue = connect(&serving, &wires.rogue);
            bind(&pod, pod.next_word(IN_SET), pod.next_word(0), !witness_is_conntrack);
            pod.path.attach(pod.ifindex).unwrap();
            by_rogue.ends_cut(&pod, true);
            assert!(pod.counters(Ingress).adopted > 0 && pod.counters(Egress).adopted > 0);
        }
    });
}

#[test]
fn conntrack_tells_who_opened_a_connection_from_before() {
    connections_from_before(true);
}

#[test]
fn the_pods_socket_tells_who_opened_a_connection_from_before() {
    connections_from_before(false);
}

#[test]
fn udp_from_before_goes_on_where_conntrack_knows_it() {
    lab::run(|lab| {
        nft("table inet t { chain c { type filter hook forward priority 0; ct state new counter; }; }");
        let (wires, pod) = pod_on_wires(lab);
        for f in families() {
            pod.path.detach(pod.ifindex).unwrap();
            let server = wires.friend.enter(|| UdpSocket::bind((f.friend, 53)).expect("the port is free"));
            let client = wires.pod.enter(|| UdpSocket::bind((f.pod, 0)).expect("a port is free"));
            client.connect((f.friend, 53)).unwrap();
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            let mut buffer = [0; 8];
            let (_, caller) = hear(&server, &mut buffer, || assert_eq!(client.send(b"?").unwrap(), 1));
            server.send_to(b"!", caller).unwrap();
            client.recv(&mut buffer).unwrap();
            // Nothing may come in; but this is an answer, in a connection that the pod opened.
            bind(&pod, pod.next_word(IN_SET), pod.next_word(0), true);
            pod.path.attach(pod.ifindex).unwrap();
            server.send_to(b"!", caller).unwrap();
            client.recv(&mut buffer).unwrap();
            let before = pod.counters(Ingress).denied;
            server.send_to(b"!", SocketAddr::new(f.pod, caller.port() ^ 1)).unwrap();
            eventually("the call is denied", || (pod.counters(Ingress).denied > before).then_some(()));
        }
    });
}

#[test]
fn fragments_and_path_mtu_work_end_to_end() {
    lab::run(|lab| {
        let (wires, pod) = pod_on_wires(lab);
        pod.path.attach(pod.ifindex).unwrap();
        for f in families() {
            let server = wires.pod.enter(|| UdpSocket::bind((f.pod, PORT)).expect("the port is free"));
            let client = wires.friend.enter(|| UdpSocket::bind((f.friend, 0)).expect("a port is free"));
            client.connect((f.pod, PORT)).unwrap();
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            let (big, mut buffer) = ([7; 4000], [0; 8000]);
            let (length, caller) =
                hear(&server, &mut buffer, || assert_eq!(client.send(&big).unwrap(), big.len()));
            assert_eq!(&buffer[..length], &big);
            server.send_to(&big, caller).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), big.len());
            // Not a fragment of what is denied arrives.
            let rogue = wires.rogue.enter(|| UdpSocket::bind((f.rogue, 0)).expect("a port is free"));
            let before = pod.counters(Ingress);
            rogue.send_to(&big, (f.pod, PORT)).unwrap();
            let refused = |reason| pod.dropped(Ingress, reason);
            let fragments = before.dropped.get(&durward_bpf::Reason::Fragment).copied().unwrap_or(0);
            eventually("its fragments are dropped", || {
                let dropped = refused(durward_bpf::Reason::Fragment);
                (pod.counters(Ingress).denied > before.denied && dropped >= fragments + 2).then_some(())
            });
        }
    });
}
