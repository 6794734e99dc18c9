//! The loaded programs, a packet at a time: what holds whatever the policies say, and every reason of a drop.

#![allow(clippy::unwrap_used)]

mod lab;

use durward_bpf::{Act, DataPath, EventKind, Fate, Flags, Reason, Settings, Trial};
use lab::frame::*;
use lab::pod::*;

const PASSED: Fate = Fate::Passed;
const DROPPED: Fate = Fate::Dropped;

fn arp(sender: [u8; 4]) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([2, 0, 0, 0, 0, 2]);
    arp.extend(sender);
    arp.extend([0; 6]);
    arp.extend([10, 1, 0, 1]);
    ethernet(0x0806, &arp)
}

#[test]
fn frames_that_are_no_plain_ip() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let f = v4();
        let tcp = ip(f.pod, f.friend, TCP, 0, &tcp_header(1, PORT, SYN));
        let mut tagged = tcp[..12].to_vec();
        tagged.extend([0x81, 0, 0, 5]);
        tagged.extend(&tcp[12..]);
        pod.assert_dropped(Egress, &tagged, Reason::Vlan);
        assert_eq!(pod.frame(Egress, &arp([10, 1, 0, 2])), PASSED);
        assert_eq!(pod.frame(Egress, &arp([0; 4])), PASSED);
        assert_eq!(pod.frame(Ingress, &arp([10, 1, 0, 1])), PASSED);
        pod.assert_dropped(Egress, &arp([10, 1, 0, 1]), Reason::Arp);
        pod.assert_dropped(Egress, &ethernet(0x0806, &[0; 4]), Reason::Malformed);
        pod.assert_dropped(Egress, &ethernet(0x88cc, &[0; 40]), Reason::NotIp);
        pod.assert_dropped(Ingress, &ethernet(0x88cc, &[0; 40]), Reason::NotIp);
        // Nobody isolates it: then other protocols pass, but tags and claims do not.
        pod.judge_by(Ingress, 0);
        pod.judge_by(Egress, 0);
        assert_eq!(pod.frame(Egress, &ethernet(0x88cc, &[0; 40])), PASSED);
        pod.assert_dropped(Egress, &tagged, Reason::Vlan);
        pod.assert_dropped(Egress, &arp([10, 1, 0, 1]), Reason::Arp);
    });
}

#[test]
fn headers_that_lie() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let (f, g) = (v4(), v6());
        let whole = ip(f.pod, f.friend, TCP, 0, &tcp_header(1, PORT, SYN));
        for length in [34, 40, 47] {
            pod.assert_dropped(Egress, &whole[..length], Reason::Malformed);
        }
        let mut short = whole.clone();
        short[14] = 0x44;
        pod.assert_dropped(Egress, &short, Reason::Malformed);
        let six = ip(g.pod, g.friend, TCP, 0, &tcp_header(1, PORT, SYN));
        for length in [54, 60] {
            pod.assert_dropped(Egress, &six[..length], Reason::Malformed);
        }
        // IPv4 options are stepped over.
        let mut options = whole.clone();
        options[14] = 0x46;
        options[17] += 4;
        options.splice(34..34, [1, 1, 1, 1]);
        assert_eq!(pod.frame(Egress, &options), PASSED);
        // An IPv4-mapped address in an IPv6 header would meet IPv4's rules.
        for direction in [Ingress, Egress] {
            let (src, dst) = ends(direction, g.pod, "::ffff:10.1.0.3".parse().unwrap());
            pod.assert_dropped(
                direction,
                &ip6(src, dst, TCP, 64, &tcp_header(PORT, PORT, SYN)),
                Reason::Mapped,
            );
        }
        // Extension headers are stepped over, but not too many, and no route that is still to be walked.
        let with = |headers: &[u8], count: usize| {
            let mut payload: Vec<u8> = (0..count).flat_map(|_| [60, 0, 0, 0, 0, 0, 0, 0]).collect();
            if count > 0 {
                payload[8 * (count - 1)] = TCP;
            }
            payload.extend(headers);
            payload.extend(tcp_header(1, PORT, SYN));
            ip6(g.pod, g.friend, if count > 0 { 60 } else { TCP }, 64, &payload)
        };
        assert_eq!([pod.frame(Egress, &with(&[], 1)), pod.frame(Egress, &with(&[], 6))], [PASSED; 2]);
        pod.assert_dropped(Egress, &with(&[], 7), Reason::Extension);
        let routed = |left| {
            let mut payload = vec![TCP, 0, 0, left, 0, 0, 0, 0];
            payload.extend(tcp_header(2, PORT, SYN));
            ip6(g.pod, g.friend, 43, 64, &payload)
        };
        assert_eq!(pod.frame(Egress, &routed(0)), PASSED);
        pod.assert_dropped(Egress, &routed(1), Reason::Extension);
    });
}

#[test]
fn nobody_speaks_from_anothers_address_or_is_sent_anothers_packets() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for isolated in [true, false] {
            if !isolated {
                pod.judge_by(Ingress, 0);
                pod.judge_by(Egress, 0);
            }
            for f in families() {
                let syn = tcp_header(PORT, PORT, SYN);
                pod.assert_dropped(Egress, &ip(f.rogue, f.friend, TCP, 0, &syn), Reason::Source);
                pod.assert_dropped(Egress, &ip(f.node, f.friend, TCP, 0, &syn), Reason::Source);
                pod.assert_dropped(Ingress, &ip(f.friend, f.rogue, TCP, 0, &syn), Reason::Destination);
                // Not even to the node itself, and not by UDP with a live connection beside it.
                pod.assert_dropped(Egress, &ip(f.friend, f.node, UDP, 0, &udp_header(1, 2)), Reason::Source);
            }
            let link_local = ip("fe80::5".parse().unwrap(), v6().friend, TCP, 0, &tcp_header(1, PORT, SYN));
            pod.assert_dropped(Egress, &link_local, Reason::Source);
            let any = ip([0; 4].into(), [255; 4].into(), UDP, 0, &udp_header(68, 67));
            pod.assert_dropped(Egress, &any, Reason::Source);
        }
        pod.path.set_flags(pod.ifindex, Flags { dhcp: true, ..pod.flags() }).unwrap();
        let any = ip([0; 4].into(), [255; 4].into(), UDP, 0, &udp_header(68, 67));
        assert_eq!(pod.frame(Egress, &any), PASSED);
        // Further addresses of the pod's are its own, and one that it loses is not.
        let third = [10, 1, 0, 77].into();
        let frame = ip(third, v4().friend, TCP, 0, &tcp_header(3, PORT, SYN));
        pod.put(pod.flags(), &[v4().pod, v6().pod, third]);
        assert_eq!(pod.frame(Egress, &frame), PASSED);
        pod.put(pod.flags(), &[v4().pod, v6().pod]);
        pod.forget();
        pod.assert_dropped(Egress, &frame, Reason::Source);
        // A pod that routes for others may.
        pod.path.set_flags(pod.ifindex, Flags { gateway: true, ..pod.flags() }).unwrap();
        assert_eq!(pod.frame(Egress, &frame), PASSED);
    });
}

#[test]
fn no_tunnel_reaches_a_node() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        pod.path.set(&Settings { tunnel_ports: vec![8472], ..Settings::default() }).unwrap();
        for isolated in [true, false] {
            if !isolated {
                pod.judge_by(Ingress, 0);
                pod.judge_by(Egress, 0);
            }
            for f in families() {
                for node in [f.node, f.other_node, f.rogue] {
                    for protocol in [4, 41, 47] {
                        pod.assert_dropped(Egress, &ip(f.pod, node, protocol, 0, &[0; 40]), Reason::Tunnel);
                    }
                    pod.assert_dropped(
                        Egress,
                        &ip(f.pod, node, UDP, 0, &udp_header(9, 8472)),
                        Reason::Tunnel,
                    );
                }
                assert_eq!(pod.udp(Egress, f, f.node, 9, 8473), PASSED);
            }
        }
    });
}

#[test]
fn neighbour_discovery_is_never_blocked_and_never_abused() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let f = v6();
        let local: std::net::IpAddr = "fe80::5".parse().unwrap();
        let gateway: std::net::IpAddr = "fe80::1".parse().unwrap();
        let all_nodes: std::net::IpAddr = "ff02::1".parse().unwrap();
        let octets = |address| match address {
            std::net::IpAddr::V6(v6) => v6.octets(),
            std::net::IpAddr::V4(_) => unreachable!("of IPv6"),
        };
        let message = |kind, src, dst, hops, target| {
            let mut payload = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            payload.extend(octets(target));
            payload.extend([1, 1, 2, 0, 0, 0, 0, 2]);
            ip6(src, dst, ICMPV6, hops, &payload)
        };
        pod.path.set_host_address(gateway, durward_bpf::HostAddress::This).unwrap();
        for isolated in [true, false] {
            if !isolated {
                pod.judge_by(Ingress, 0);
                pod.judge_by(Egress, 0);
            }
            let fine = [
                message(135, f.pod, "ff02::1:ff00:1".parse().unwrap(), 255, f.node),
                message(135, local, gateway, 255, gateway),
                message(135, f.pod, f.friend, 255, f.friend),
                message(136, f.pod, f.friend, 255, f.pod),
                message(136, local, all_nodes, 255, local),
            ];
            for frame in &fine {
                assert_eq!(pod.frame(Egress, frame), PASSED);
            }
            assert_eq!(pod.frame(Ingress, &message(134, gateway, all_nodes, 255, gateway)), PASSED);
            assert_eq!(pod.frame(Ingress, &message(135, gateway, f.pod, 255, f.pod)), PASSED);
            let mut long = message(135, f.pod, all_nodes, 255, f.node);
            long.extend([0; 64]);
            let length = (long.len() - 54) as u16;
            long[18..20].copy_from_slice(&length.to_be_bytes());
            let abuses = [
                message(134, local, all_nodes, 255, local),
                message(137, local, f.friend, 255, f.rogue),
                message(136, f.pod, all_nodes, 255, f.rogue),
                message(136, gateway, all_nodes, 255, gateway),
                message(136, local, all_nodes, 255, gateway),
                message(135, f.rogue, all_nodes, 255, f.node),
                message(135, f.pod, "2001:db8::1".parse().unwrap(), 255, f.node),
                message(135, f.pod, f.rogue, 255, f.friend),
                long,
                // Behind destination options it is discovery all the same.
                ip6(
                    f.pod,
                    all_nodes,
                    60,
                    255,
                    &[
                        &[58, 0, 1, 4, 0, 0, 0, 0][..],
                        packet_of(&message(136, f.pod, all_nodes, 255, f.rogue)).split_at(40).1,
                    ]
                    .concat(),
                ),
            ];
            for frame in &abuses {
                pod.assert_dropped(Egress, frame, Reason::Neighbour);
            }
        }
        pod.judge_by(Egress, OUT_SET);
        // From further than the link it is no discovery but data, and judged.
        assert_eq!(pod.frame(Egress, &message(135, f.pod, f.rogue, 64, f.rogue)), DROPPED);
        // Listener reports stay on the link.
        let report = |dst| {
            let payload = [&[0x3a, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
            ip6(local, dst, 0, 1, &payload)
        };
        assert_eq!(pod.frame(Egress, &report("ff02::16".parse().unwrap())), PASSED);
        pod.assert_dropped(Egress, &report(f.rogue), Reason::Source);
        let redirect = ip(v4().pod, v4().friend, ICMP, 0, &icmp_header(5, 0, &[0; 28]));
        pod.assert_dropped(Egress, &redirect, Reason::Neighbour);
    });
}

#[test]
fn interfaces_that_nobody_knows() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let f = v4();
        pod.path.set_flags(pod.ifindex, Flags { unknown: true, ..pod.flags() }).unwrap();
        pod.judge_by(Ingress, 0);
        pod.judge_by(Egress, 0);
        let syn = |src, dst| ip(src, dst, TCP, 0, &tcp_header(PORT, PORT, SYN));
        pod.assert_dropped(Egress, &syn(f.pod, f.friend), Reason::UnknownPod);
        pod.assert_dropped(Ingress, &syn(f.friend, f.pod), Reason::UnknownPod);
        assert_eq!(pod.frame_from(Ingress, 0, &syn(f.node, f.pod)), PASSED);
        assert_eq!(pod.frame(Egress, &syn(f.pod, f.node)), PASSED);
        pod.path.remove_endpoint(pod.ifindex).unwrap();
        assert_eq!(pod.frame(Egress, &syn(f.pod, f.node)), DROPPED);
        assert_eq!(pod.frame_from(Ingress, 0, &syn(f.node, f.pod)), DROPPED);
        let counted = |direction| pod.path.counters(0, direction).unwrap().dropped[&Reason::NoEndpoint];
        assert_eq!((counted(Ingress), counted(Egress)), (1, 1));
        assert!(pod.path.counters(pod.ifindex, Ingress).is_err());
    });
}

#[test]
fn a_set_without_rows_denies_and_says_so() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        pod.judge_by(Egress, 99);
        let syn = ip(v4().pod, v4().friend, TCP, 0, &tcp_header(1, PORT, SYN));
        pod.assert_dropped(Egress, &syn, Reason::NoRow);
        pod.path.set_row(99, 0, &all(allow(1))).unwrap();
        assert_eq!(pod.frame(Egress, &syn), PASSED);
    });
}

#[test]
fn fragments_follow_their_first() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        const MORE: u16 = 0x2000;
        for f in families() {
            let first = |remote, length: usize| {
                let mut payload = tcp_header(5000, PORT, SYN);
                payload.extend([0; 44]);
                ip(f.pod, remote, TCP, MORE, &payload[..length])
            };
            let later = |remote, offset| ip(f.pod, remote, TCP, offset, &[0; 64]);
            pod.assert_dropped(Egress, &later(f.friend, 8), Reason::Fragment);
            assert_eq!(pod.frame(Egress, &first(f.friend, 64)), PASSED);
            assert_eq!(pod.frame(Egress, &later(f.friend, 8)), PASSED);
            assert_eq!(pod.frame(Egress, &later(f.friend, 16)), PASSED);
            // Of others', nothing is known.
            pod.assert_dropped(Egress, &later(f.rogue, 8), Reason::Fragment);
            assert_eq!(pod.frame(Egress, &first(f.rogue, 64)), DROPPED);
            pod.assert_dropped(Egress, &later(f.rogue, 8), Reason::Fragment);
            // A first one without its flags, or one that would overwrite them.
            pod.assert_dropped(Egress, &first(f.friend, 8), Reason::ShortFragment);
            pod.assert_dropped(Egress, &later(f.friend, 1), Reason::ShortFragment);
            // Padding is not part of the packet.
            let mut padded = first(f.friend, 8);
            padded.extend([0; 40]);
            pod.assert_dropped(Egress, &padded, Reason::ShortFragment);
            // New rules: what was said of the first holds no more.
            pod.judge_by(Egress, OUT_SET);
            pod.assert_dropped(Egress, &later(f.friend, 24), Reason::Fragment);
            // The node's own need none.
            let from_node = |offset| ip(f.node, f.pod, UDP, offset, &udp_header(1, 2));
            assert_eq!(pod.frame_from(Ingress, 0, &from_node(8 | MORE)), PASSED);
            assert_eq!(pod.frame(Ingress, &from_node(8 | MORE)), DROPPED);
        }
    });
}

#[test]
fn icmp_errors_pass_for_what_is_alive() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            let unreachable = if f.icmp == ICMP { 3 } else { 1 };
            let router = f.rogue;
            let error_of = |direction, other, inner: &[u8]| {
                let (src, dst) = ends(direction, f.pod, other);
                ip(src, dst, f.icmp, 0, &icmp_header(unreachable, 0, packet_of(inner)))
            };
            let error = |direction, inner: &[u8]| error_of(direction, router, inner);
            let sent = |dport| ip(f.pod, f.friend, TCP, 0, &tcp_header(5000, dport, ACK));
            let received = ip(f.friend, f.pod, UDP, 0, &udp_header(6000, PORT));
            pod.assert_dropped(Ingress, &error(Ingress, &sent(PORT)), Reason::IcmpError);
            assert_eq!(pod.tcp(Egress, f, f.friend, 5000, PORT, SYN), PASSED);
            assert_eq!(pod.udp(Ingress, f, f.friend, PORT, 6000), PASSED);
            assert_eq!(pod.frame(Ingress, &error(Ingress, &sent(PORT))), PASSED);
            // The pod tells the one whose packet it quotes; to others it would be a way out.
            assert_eq!(pod.frame(Egress, &error_of(Egress, f.friend, &received)), PASSED);
            pod.assert_dropped(Egress, &error(Egress, &received), Reason::IcmpError);
            // About another connection, about one of another's, the wrong way round, or cut short.
            pod.assert_dropped(Ingress, &error(Ingress, &sent(81)), Reason::IcmpError);
            let others = ip(f.rogue, f.friend, TCP, 0, &tcp_header(5000, PORT, ACK));
            pod.assert_dropped(Ingress, &error(Ingress, &others), Reason::IcmpError);
            pod.assert_dropped(Egress, &error(Egress, &sent(PORT)), Reason::IcmpError);
            let cut_short = error(Ingress, &sent(PORT));
            pod.assert_dropped(Ingress, &cut_short[..cut_short.len() - 16], Reason::IcmpError);
            // The connection is cut: nothing passes about it.
            pod.judge_by(Egress, OUT_SET);
            pod.assert_dropped(Ingress, &error(Ingress, &sent(PORT)), Reason::IcmpError);
        }
        // A ping's error is about its id.
        let f = v4();
        pod.path.set_row(OUT_SET, FRIEND, &all(allow(1))).unwrap();
        assert_eq!(pod.ping(Egress, f, f.friend, f.echo, 5), PASSED);
        let about = |id| {
            let echo = ip(f.pod, f.friend, ICMP, 0, &icmp_header(8, id, b"data"));
            ip(f.rogue, f.pod, ICMP, 0, &icmp_header(11, 0, packet_of(&echo)))
        };
        assert_eq!(pod.frame(Ingress, &about(5)), PASSED);
        pod.assert_dropped(Ingress, &about(6), Reason::IcmpError);
    });
}

#[test]
fn what_is_in_mid_flow_is_judged_by_its_sender_where_nobody_knows_better() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            // The pod says that it goes on with what its rules forbid, and to what others' rules would allow.
            assert_eq!(pod.tcp(Egress, f, f.rogue, 5000, PORT, ACK), DROPPED);
            assert_eq!(pod.tcp(Egress, f, f.friend, PORT, 5000, ACK), DROPPED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, 5000, PORT, SYN_ACK), DROPPED);
            assert_eq!(pod.udp(Ingress, f, f.friend, 5000, PORT), DROPPED);
            // What its sender's rules allow goes on, and is not logged as new.
            pod.events();
            assert_eq!(pod.tcp(Egress, f, f.friend, 5001, PORT, ACK), PASSED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, 5001, PORT, ACK), PASSED);
            assert!(pod.events().is_empty());
            assert!(pod.connections().iter().any(|connection| connection.adopted()));
            // A reset of what there is not is nobody's policy action.
            let reset = ip(f.pod, f.rogue, TCP, 0, &tcp_header(1, 2, RST));
            pod.assert_dropped(Egress, &reset, Reason::StrayReset);
        }
        assert_eq!(pod.counters(Egress).adopted, 2);
    });
}

#[test]
fn denials_fold_into_windows() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            for sport in 1000..1010 {
                assert_eq!(pod.tcp(Ingress, f, f.rogue, PORT, sport, SYN), DROPPED);
            }
            assert_eq!(pod.tcp(Ingress, f, f.rogue, 81, 1000, SYN), DROPPED);
            assert_eq!(pod.udp(Ingress, f, f.rogue, PORT, 1000), DROPPED);
            assert_eq!(pod.tcp(Egress, f, f.rogue, PORT, 1000, SYN), DROPPED);
        }
        // One provisional record for each window, at once.
        let events = pod.events();
        assert_eq!(events.len(), 8);
        assert!(events.iter().all(|event| event.kind == EventKind::Deny));
        let ports: Vec<_> =
            pod.path.denials().iter().map(|denial| (denial.remote.port(), denial.count)).collect();
        assert_eq!(
            ports.iter().filter(|&&(port, count)| (port, count) == (1000, 10)).count(),
            2,
            "{ports:?}"
        );
        // Nothing is given before its time; then all is, once; a packet between goes to a new window.
        let mut closed = Vec::new();
        lab::eventually("the windows are over", || {
            // What was closed and is not freed yet is given again.
            closed = pod.path.close_denials(false).unwrap();
            (closed.len() >= 8).then_some(())
        });
        let ten: Vec<_> = closed.iter().filter(|closed| closed.denial.count == 10).collect();
        assert_eq!(ten.len(), 2);
        assert_eq!(ten[0].denial.local.port(), PORT);
        assert_eq!(ten[0].denial.act, Act { allow: false, loggable: false, attribution: 111 });
        assert!(events.iter().any(|event| event.at_ns.abs_diff(ten[0].denial.at_ns) < 1_000_000_000));
        assert_eq!(pod.tcp(Ingress, v4(), v4().rogue, PORT, 1011, SYN), DROPPED);
        assert_eq!(pod.path.denials().len(), 9);
        pod.path.free_denials(closed);
        let left = pod.path.denials();
        assert_eq!(
            left.iter().map(|denial| (denial.remote.port(), denial.count)).collect::<Vec<_>>(),
            [(1011, 1)]
        );
        let early = pod.path.close_denials(true).unwrap();
        assert_eq!(early.len(), 1);
        // What was closed and not freed, as by an agent that died, is given again.
        drop(early);
        assert_eq!(pod.path.close_denials(false).unwrap().len(), 1);
    });
}

#[test]
fn what_exceeds_the_budget_is_counted_not_lost() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let f = v4();
        pod.path.set(&Settings { log_rate: 0, log_burst: 0, ..Settings::default() }).unwrap();
        for port in 0..10 {
            assert_eq!(pod.tcp(Ingress, f, f.rogue, 1000 + port, 5000, SYN), DROPPED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000 + port, SYN), PASSED);
        }
        assert!(pod.events().is_empty());
        assert_eq!(pod.counters(Ingress).suppressed, 20);
        let (mut packets, mut connections) = (0, 0);
        lab::eventually("the epoch is over", || {
            for suppressed in pod.path.take_suppressed().unwrap() {
                assert_eq!((suppressed.ifindex, suppressed.direction), (pod.ifindex, Ingress));
                let attribution = if suppressed.packets > 0 { 111 } else { 211 };
                assert_eq!(suppressed.act.attribution, attribution);
                packets += suppressed.packets;
                connections += suppressed.connections;
            }
            (packets + connections >= 20).then_some(())
        });
        assert_eq!((packets, connections), (10, 10));
    });
}

#[test]
fn a_record_that_found_no_room_is_written_later() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        pod.path
            .set(&Settings { log_rate: 10_000_000, log_burst: 10_000_000, ..Settings::default() })
            .unwrap();
        // Nobody reads: the ring of 8 MiB takes fewer than 100,000 records.
        let f = v4();
        let mut connected = 0;
        while pod.counters(Ingress).unwritten == 0 {
            for _ in 0..1000 {
                let (port, remote) = (connected % 50_000, [10, 2, 0, (connected / 50_000) as u8]);
                pod.path.set_ip_atom(remote.into(), FRIEND).unwrap();
                assert_eq!(pod.tcp(Ingress, f, remote.into(), PORT, 1000 + port as u16, SYN), PASSED);
                connected += 1;
                assert!(connected < 150_000, "the ring never fills");
            }
        }
        let owing = pod.connections().iter().filter(|connection| connection.owes_record()).count();
        assert!(owing > 0);
        let before = pod.events().len();
        pod.path.sweep_connections(|_| true).unwrap();
        let after = pod.events().len();
        assert_eq!(after, owing);
        assert!(before + after <= connected);
        assert!(!pod.connections().iter().any(|connection| connection.owes_record()));
    });
}

#[test]
fn what_is_gone_is_swept() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let f = v4();
        assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, SYN), PASSED);
        assert_eq!(pod.path.sweep_connections(|_| true).unwrap(), 0);
        let frame = ip(f.friend, f.pod, TCP, 0, &tcp_header(5000, PORT, RST));
        assert_eq!(pod.frame(Ingress, &frame), PASSED);
        // A closed connection expires by itself, in the programs, whether or not anybody sweeps.
        let listed = lab::eventually("it expires", || {
            let now = pod.path.connections().unwrap();
            pod.connections().into_iter().find(|connection| now.expired(connection))
        });
        assert_eq!(listed.key.remote(), (f.friend, 5000).into());
        assert_eq!(pod.tcp(Egress, f, f.friend, PORT, 5000, ACK), DROPPED);
        assert_eq!(pod.path.sweep_connections(|_| true).unwrap(), 1);
        assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, SYN), PASSED);
        assert_eq!(pod.path.sweep_connections(|ifindex| ifindex != pod.ifindex).unwrap(), 1);
    });
}

#[test]
fn endpoints_whose_indices_clash_are_told_apart() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        let name = lab::unique("clash");
        let far = pod.ifindex + 65536;
        lab::ip(&format!("link add {name} index {far} type veth peer name {name}x"));
        let f = v4();
        let mut endpoint = pod.path.endpoints().unwrap().remove(0);
        endpoint.ifindex = far;
        endpoint.words = [pod.next_word(0), pod.next_word(OUT_SET)];
        pod.path.set_endpoint(&endpoint).unwrap();
        let syn = ip(f.rogue, f.pod, TCP, 0, &tcp_header(1, 9, SYN));
        let fate = |path: &DataPath, ifindex| {
            let trial = Trial { direction: Ingress, ifindex, came_in_by: pod.uplink, frame: &syn, repeat: 1 };
            path.try_packet(trial).unwrap().0
        };
        assert_eq!((fate(&pod.path, pod.ifindex), fate(&pod.path, far)), (DROPPED, PASSED));
        pod.path.set_word(far, Ingress, pod.next_word(IN_SET)).unwrap();
        assert_eq!(fate(&pod.path, far), DROPPED);
        assert_eq!(pod.path.endpoints().unwrap().len(), 2);
        pod.path.remove_endpoint(far).unwrap();
        assert_eq!(pod.path.endpoints().unwrap().len(), 1);
    });
}
