//! Egress through a Service is judged by its backend, with nftables translating as kube-proxy does.

#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use durward_bpf::{EventKind, Fate, Frontend, HostAddress, Reason, Services};
use lab::eventually;
use lab::frame::*;
use lab::pod::*;
use lab::wire::{Wires, nft};

const PATIENCE: Duration = Duration::from_secs(120);
const TRY: Duration = Duration::from_secs(2);
const VIP_PORT: u16 = 8000;

fn vip(f: Family) -> IpAddr {
    if f.pod.is_ipv4() { IpAddr::from([10, 96, 0, 1]) } else { "fd00:96::1".parse().unwrap() }
}

/// Translates the frontend to a backend's port 80, and masquerades what comes back to where it came from.
fn translate(f: Family, backend: IpAddr) {
    let (family, table, address) = if f.pod.is_ipv4() {
        ("ip", "four", backend.to_string())
    } else {
        ("ip6", "six", format!("[{backend}]"))
    };
    let (vip, pod) = (vip(f), f.pod);
    nft(&format!(
        "add table {family} {table}; delete table {family} {table}; table {family} {table} {{ \
         chain pre {{ type nat hook prerouting priority -100; \
           meta l4proto {{ tcp, udp }} {family} daddr {vip} th dport {VIP_PORT} dnat to {address}:{PORT}; }}; \
         chain post {{ type nat hook postrouting priority 100; \
           {family} saddr {pod} {family} daddr {pod} masquerade; }}; }}"
    ));
}

fn frontend(f: Family, protocol: u8) -> Frontend {
    Frontend { address: Some(vip(f)), protocol, port: VIP_PORT }
}

fn start(lab: &lab::Lab) -> (Wires, Pod) {
    let wires = Wires::new(families());
    let pod = Pod::on(lab.open());
    pod.path.attach(pod.ifindex).unwrap();
    pod.path.attach_forward().unwrap();
    for f in families() {
        for protocol in [TCP, UDP] {
            pod.path.set_frontend(frontend(f, protocol)).unwrap();
        }
    }
    assert_eq!(pod.path.frontends().len(), 4);
    pod.path.judge_services(Services::Translated).unwrap();
    (wires, pod)
}

fn listen(at: &lab::wire::Netns, address: IpAddr) -> TcpListener {
    at.enter(|| TcpListener::bind((address, PORT)).expect("the port is free"))
}

/// A connection of the pod to the frontend, and the backend's end of it.
fn call(wires: &Wires, f: Family, backend: &TcpListener) -> (TcpStream, TcpStream) {
    let address = SocketAddr::from((vip(f), VIP_PORT));
    let client =
        eventually("a connection", || wires.pod.enter(|| TcpStream::connect_timeout(&address, TRY).ok()));
    let (server, _) = backend.accept().unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (client, server)
}

fn talk((client, server): &mut (TcpStream, TcpStream)) {
    let mut byte = [0];
    client.write_all(b"?").unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut byte).unwrap();
}

/// The pod's call is refused, and the refusal is a denial by its egress rules, of the backend.
fn assert_refused(wires: &Wires, pod: &Pod, f: Family, backend: IpAddr) {
    let before = pod.counters(Egress).denied;
    let address = SocketAddr::from((vip(f), VIP_PORT));
    let refused = wires.pod.enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)));
    assert!(refused.is_err(), "the call went through");
    eventually("the denial is counted", || (pod.counters(Egress).denied > before).then_some(()));
    let denials = pod.path.denials();
    let of_backend =
        denials.iter().find(|denial| denial.remote == (backend, PORT).into()).expect("it is in the table");
    assert_eq!(of_backend.service, Some(address));
    assert_eq!((of_backend.act, of_backend.direction), (deny(112), Egress));
}

#[test]
fn a_call_is_judged_by_its_backend() {
    lab::run(|lab| {
        let (wires, pod) = start(lab);
        for f in families() {
            let (friend, rogue) = (listen(&wires.friend, f.friend), listen(&wires.rogue, f.rogue));
            translate(f, f.friend);
            pod.events();
            let mut pair = call(&wires, f, &friend);
            talk(&mut pair);
            let caller = pair.0.local_addr().unwrap();
            let mut allowed = pod.events();
            allowed.retain(|event| event.kind == EventKind::Allow && event.local == caller);
            assert_eq!(allowed.len(), 1, "{allowed:?}");
            assert_eq!(allowed[0].remote, (f.friend, PORT).into());
            assert_eq!(allowed[0].service, Some((vip(f), VIP_PORT).into()));
            assert_eq!(allowed[0].act, allow(212));
            // Backends that the rules do not name are refused; a connection to another one lives on.
            translate(f, f.rogue);
            assert_refused(&wires, &pod, f, f.rogue);
            talk(&mut pair);
            drop(rogue);
            // Rules that still allow it.
            pod.judge_by(Egress, OUT_SET);
            talk(&mut pair);
            // A taking over of the program.
            pod.path.attach_forward().unwrap();
            talk(&mut pair);
            // A Service that is deleted ends no connection.
            pod.path.remove_frontend(frontend(f, TCP)).unwrap();
            pod.judge_by(Egress, OUT_SET);
            talk(&mut pair);
            pod.path.set_frontend(frontend(f, TCP)).unwrap();
            // Rules that no longer do.
            pod.path.set_row(OUT_SET, FRIEND, &all(deny(7))).unwrap();
            pod.judge_by(Egress, OUT_SET);
            let (mut client, mut server) = pair;
            let before = pod.counters(Egress);
            server.write_all(b"x").unwrap();
            client.write_all(b"x").unwrap();
            eventually("both are dropped", || {
                let now = pod.counters(Egress);
                (now.cut + now.denied >= before.cut + before.denied + 2).then_some(())
            });
            for end in [&mut client, &mut server] {
                end.set_nonblocking(true).unwrap();
                assert_eq!(end.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
            pod.path.set_row(OUT_SET, FRIEND, &Pod::web(OUT_SET)).unwrap();
            pod.judge_by(Egress, OUT_SET);
        }
    });
}

#[test]
fn a_call_that_nobody_knows_of_is_judged_by_its_backend_also_if_the_backend_speaks_next() {
    lab::run(|lab| {
        let (wires, pod) = start(lab);
        for f in families() {
            let (friend, rogue) = (listen(&wires.friend, f.friend), listen(&wires.rogue, f.rogue));
            pod.judge_by(Egress, 0);
            translate(f, f.friend);
            let (mut client, mut server) = call(&wires, f, &friend);
            translate(f, f.rogue);
            let (denied, mut stranger) = call(&wires, f, &rogue);
            // As when the pod is isolated for the first time, or entries were evicted.
            pod.forget();
            let before = pod.counters(Egress);
            pod.judge_by(Egress, OUT_SET);
            let mut byte = [0];
            server.write_all(b"x").unwrap();
            client.read_exact(&mut byte).unwrap();
            assert_eq!(pod.counters(Egress).adopted, before.adopted + 1);
            stranger.write_all(b"x").unwrap();
            eventually("it is denied", || (pod.counters(Egress).denied > before.denied).then_some(()));
            let denials = pod.path.denials();
            let told =
                denials.iter().find(|denial| denial.remote == (f.rogue, PORT).into()).expect("it is told");
            assert_eq!((told.service, told.direction), (Some((vip(f), VIP_PORT).into()), Egress));
            denied.set_nonblocking(true).unwrap();
            assert_eq!((&denied).read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock);
            talk(&mut (client, server));
        }
    });
}

#[test]
fn udp_calls_are_judged_by_their_backend() {
    lab::run(|lab| {
        let (wires, pod) = start(lab);
        for f in families() {
            let server = wires.friend.enter(|| UdpSocket::bind((f.friend, PORT)).unwrap());
            let client = wires.pod.enter(|| UdpSocket::bind((f.pod, 0)).unwrap());
            client.connect((vip(f), VIP_PORT)).unwrap();
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            translate(f, f.friend);
            // In fragments too: they are judged as one where they are whole again.
            let (big, mut buffer) = ([7; 4000], [0; 8000]);
            server.set_read_timeout(Some(TRY)).unwrap();
            for message in [&big[..1], &big[..]] {
                // The neighbours may have to be found first.
                let (length, caller) = eventually("the server hears", || {
                    client.send(message).unwrap();
                    server.recv_from(&mut buffer).ok()
                });
                assert_eq!((length, caller.ip()), (message.len(), f.pod));
                server.send_to(message, caller).unwrap();
                assert_eq!(client.recv(&mut buffer).unwrap(), message.len());
            }
            translate(f, f.rogue);
            let other = wires.pod.enter(|| UdpSocket::bind((f.pod, 0)).unwrap());
            let before = pod.counters(Egress).denied;
            eventually("it is denied", || {
                other.send_to(b"?", (vip(f), VIP_PORT)).unwrap();
                (pod.counters(Egress).denied > before).then_some(())
            });
        }
    });
}

#[test]
fn what_nobody_translates_is_judged_by_the_address_that_it_shows() {
    lab::run(|lab| {
        let (wires, pod) = start(lab);
        for f in families() {
            // A frontend that kube-proxy does not know, while the address leads to a rogue: no hole.
            let table = if f.pod.is_ipv4() { "" } else { "-6 " };
            lab::ip(&format!("{table}route add {} via {}", vip(f), f.rogue).replace("  ", " "));
            let before = pod.counters(Egress).denied;
            let refused = wires
                .pod
                .enter(|| TcpStream::connect_timeout(&(vip(f), VIP_PORT).into(), Duration::from_millis(200)));
            assert!(refused.is_err());
            eventually("it is denied", || (pod.counters(Egress).denied > before).then_some(()));
            let table = pod.path.denials();
            assert!(table.iter().any(|denial| denial.remote == (vip(f), VIP_PORT).into()), "{table:?}");
        }
    });
}

#[test]
fn a_pod_may_call_itself_through_a_service() {
    lab::run(|lab| {
        let (wires, pod) = start(lab);
        for f in families() {
            let itself = listen(&wires.pod, f.pod);
            translate(f, f.pod);
            talk(&mut call(&wires, f, &itself));
        }
        assert_eq!(pod.counters(Ingress).denied, 0);
    });
}

#[test]
fn replies_wait_for_the_judgement_and_nothing_else_passes_the_interface() {
    lab::run(|lab| {
        let (_wires, pod) = start(lab);
        for f in families() {
            let packet = |direction, flags| pod.tcp(direction, f, vip(f), 5000, VIP_PORT, flags);
            assert_eq!(packet(Egress, SYN), Fate::Passed);
            let (src, dst) = ends(Ingress, f.pod, vip(f));
            let reply = ip(src, dst, TCP, 0, &tcp_header(VIP_PORT, 5000, SYN_ACK));
            pod.assert_dropped(Ingress, &reply, Reason::Deferred);
            // Another port of the address is no frontend; nor is any once nothing is deferred.
            assert_eq!(pod.tcp(Egress, f, vip(f), 5000, 81, SYN), Fate::Dropped);
            pod.path.judge_services(Services::ByAddress).unwrap();
            assert_eq!(pod.tcp(Egress, f, vip(f), 5001, VIP_PORT, SYN), Fate::Dropped);
            pod.path.judge_services(Services::Translated).unwrap();
            // A NodePort is on every address of the node, and judged like any frontend, unlike the node itself.
            pod.path.set_frontend(Frontend { address: None, protocol: TCP, port: 30000 }).unwrap();
            assert_eq!(pod.tcp(Egress, f, f.node, 5002, 30000, SYN), Fate::Passed);
            let (src, dst) = ends(Ingress, f.pod, f.node);
            let reply = ip(src, dst, TCP, 0, &tcp_header(30000, 5002, SYN_ACK));
            pod.assert_dropped(Ingress, &reply, Reason::Deferred);
            // Where nothing isolates what goes out, replies pass at once.
            pod.judge_by(Egress, 0);
            assert_eq!(packet(Egress, SYN), Fate::Passed);
            assert_eq!(packet(Ingress, SYN_ACK), Fate::Passed);
            pod.judge_by(Egress, OUT_SET);
        }
    });
}

#[test]
fn without_the_forward_hook_a_frontend_is_judged_by_its_own_atom_also_where_the_node_has_its_address() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        pod.path.judge_services(Services::ByFrontend).unwrap();
        for f in families() {
            let node_port = Frontend { address: None, protocol: TCP, port: 30000 };
            pod.path.set_frontend(node_port).unwrap();
            pod.path.set_frontend(frontend(f, TCP)).unwrap();
            // Each call from a port of its own: none is judged by what was said of the one before.
            let from = std::cell::Cell::new(5000);
            let call_at = |remote, port| {
                from.set(from.get() + 1);
                pod.tcp(Egress, f, remote, from.get(), port, SYN)
            };
            let (node, call) = (|port| call_at(f.node, port), || call_at(vip(f), VIP_PORT));
            assert_eq!((node(30000), node(30001), call()), (Fate::Dropped, Fate::Passed, Fate::Dropped));
            // In IPVS mode, the node has the frontends' addresses.
            pod.path.set_host_address(vip(f), HostAddress::This).unwrap();
            assert_eq!(call(), Fate::Dropped);
            pod.path.set_ip_atom(vip(f), FRIEND).unwrap();
            pod.path.set_row(OUT_SET, FRIEND, &all(allow(1))).unwrap();
            pod.path.set_ip_atom("::".parse().unwrap(), FRIEND).unwrap();
            assert_eq!((node(30000), call()), (Fate::Passed, Fate::Passed));
            // Of NodePorts the rules speak by `::` alone, not by the node's address.
            pod.path.remove_ip_atom("::".parse().unwrap()).unwrap();
            pod.path.set_ip_atom(f.node, FRIEND).unwrap();
            assert_eq!(node(30000), Fate::Dropped);
            pod.path.remove_ip_atom(f.node).unwrap();
        }
    });
}

#[test]
fn an_answer_to_the_node_that_is_for_somebody_behind_it_is_judged_by_its_real_end() {
    lab::run(|lab| {
        let (wires, pod) = start(lab);
        let f = v4();
        // The rogue calls the pod's port 80 through the node, which masquerades it: the call is denied, but leaves an
        // entry in conntrack, by which the pod could answer.
        nft(&format!(
            "table ip hide {{ chain post {{ type nat hook postrouting priority 100; \
             ip saddr {} ip daddr {} snat to {}; }}; }}",
            f.rogue, f.pod, f.node
        ));
        let caller = wires.rogue.enter(|| UdpSocket::bind((f.rogue, 4000)).unwrap());
        let callee = wires.pod.enter(|| UdpSocket::bind((f.pod, PORT)).unwrap());
        let before = pod.counters(Ingress).denied;
        caller.send_to(b"?", (f.pod, PORT)).unwrap();
        eventually("the call is denied", || (pod.counters(Ingress).denied > before).then_some(()));
        let denied = pod.counters(Egress).denied;
        callee.send_to(b"secret", (f.node, 4000)).unwrap();
        eventually("the answer is denied", || (pod.counters(Egress).denied > denied).then_some(()));
        caller.set_nonblocking(true).unwrap();
        assert_eq!(caller.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        // A caller that the rules let in is answered.
        pod.path.set_ip_atom(f.node, FRIEND).unwrap();
        caller.set_nonblocking(false).unwrap();
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        let other = wires.rogue.enter(|| UdpSocket::bind((f.rogue, 4001)).unwrap());
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        other.send_to(b"?", (f.pod, PORT)).unwrap();
        let mut buffer = [0; 8];
        callee.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, from) = callee.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip(), f.node);
        callee.send_to(b"!", from).unwrap();
        assert_eq!(other.recv(&mut buffer).unwrap(), 1);
    });
}
