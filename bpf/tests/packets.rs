//! The loaded programs, a packet at a time: connections and what becomes of them.

#![allow(clippy::unwrap_used)]

mod lab;

use durward_bpf::{Act, Bound, EventKind, Fate, Flags};
use lab::frame::*;
use lab::pod::*;

const PASSED: Fate = Fate::Passed;
const DROPPED: Fate = Fate::Dropped;

fn kinds(pod: &Pod) -> Vec<EventKind> {
    pod.events().into_iter().map(|event| event.kind).collect()
}

#[test]
fn a_connection_is_judged_by_its_opener_and_passes_both_ways() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            // The friend calls the pod: judged by what may come in, though the pod may not call that port.
            assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, SYN), PASSED);
            assert_eq!(pod.tcp(Egress, f, f.friend, PORT, 5000, SYN_ACK), PASSED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, ACK), PASSED);
            assert_eq!(pod.tcp(Egress, f, f.friend, PORT, 5000, ACK), PASSED);
            // The pod calls its friend.
            assert_eq!(pod.tcp(Egress, f, f.friend, 5001, PORT, SYN), PASSED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, 5001, PORT, SYN_ACK), PASSED);
            // The same by UDP.
            assert_eq!(pod.udp(Egress, f, f.friend, 5002, PORT), PASSED);
            assert_eq!(pod.udp(Ingress, f, f.friend, 5002, PORT), PASSED);
            let events = pod.events();
            let said: Vec<_> =
                events.iter().map(|e| (e.kind, e.direction, e.protocol, e.act.attribution)).collect();
            let new = EventKind::Allow;
            assert_eq!(said, [(new, Ingress, TCP, 211), (new, Egress, TCP, 212), (new, Egress, UDP, 212)]);
            assert_eq!((events[0].local, events[0].remote), ((f.pod, PORT).into(), (f.friend, 5000).into()));
            assert_eq!(events[0].ifindex, pod.ifindex);
        }
    });
}

#[test]
fn what_no_rule_allows_is_denied() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            assert_eq!(pod.tcp(Ingress, f, f.rogue, PORT, 5000, SYN), DROPPED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, 81, 5000, SYN), DROPPED);
            assert_eq!(pod.tcp(Egress, f, f.rogue, 5000, PORT, SYN), DROPPED);
            assert_eq!(pod.udp(Egress, f, f.friend, 5000, 53), DROPPED);
            assert_eq!(pod.ping(Ingress, f, f.friend, f.echo, 7), DROPPED);
            assert_eq!(pod.tcp(Ingress, f, f.other_node, PORT, 5000, SYN), DROPPED);
            assert!(pod.connections().is_empty());
        }
        assert_eq!((pod.counters(Ingress).denied, pod.counters(Egress).denied), (8, 4));
        let all_denied = kinds(&pod).into_iter().all(|kind| kind == EventKind::Deny);
        assert!(all_denied);
    });
}

#[test]
fn a_direction_that_nothing_isolates_is_open_and_its_replies_come_back() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        pod.judge_by(Egress, 0);
        for f in families() {
            assert_eq!(pod.tcp(Egress, f, f.rogue, 5000, 443, SYN), PASSED);
            assert_eq!(pod.tcp(Ingress, f, f.rogue, 5000, 443, SYN_ACK), PASSED);
            assert_eq!(pod.udp(Egress, f, f.rogue, 5001, 53), PASSED);
            assert_eq!(pod.udp(Ingress, f, f.rogue, 5001, 53), PASSED);
            assert_eq!(pod.udp(Ingress, f, f.rogue, 5002, 53), DROPPED);
            assert_eq!(pod.ping(Egress, f, f.rogue, f.echo, 9), PASSED);
            assert_eq!(pod.ping(Ingress, f, f.rogue, f.echo_reply, 9), PASSED);
            // Another's ping with the same id is another connection, and denied.
            assert_eq!(pod.ping(Ingress, f, f.rogue, f.echo, 9), DROPPED);
        }
        // What nothing isolates is not logged.
        assert!(!kinds(&pod).contains(&EventKind::Allow));
        pod.judge_by(Ingress, 0);
        assert_eq!(pod.tcp(Ingress, v4(), v4().rogue, 1, 1, SYN), PASSED);
    });
}

#[test]
fn an_established_connection_follows_the_rules() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            let packet = |direction, flags| pod.tcp(direction, f, f.friend, PORT, 5000, flags);
            pod.path.set_row(IN_SET, FRIEND, &Pod::web(IN_SET)).unwrap();
            pod.judge_by(Ingress, IN_SET);
            assert_eq!([packet(Ingress, SYN), packet(Egress, SYN_ACK), packet(Ingress, ACK)], [PASSED; 3]);
            assert_eq!(kinds(&pod), [EventKind::Allow]);
            // New rules that still allow it: not a packet is lost, nothing is logged again.
            pod.judge_by(Ingress, IN_SET);
            assert_eq!([packet(Egress, ACK), packet(Ingress, ACK)], [PASSED; 2]);
            assert_eq!(kinds(&pod), []);
            // The other direction's rules are nothing to it.
            pod.path.set_row(OUT_SET, FRIEND, &all(deny(1))).unwrap();
            pod.judge_by(Egress, OUT_SET);
            assert_eq!([packet(Egress, ACK), packet(Ingress, ACK)], [PASSED; 2]);
            // Rules that no longer allow it cut it, whoever speaks first, with one record.
            let cut = pod.counters(Ingress).cut;
            pod.path.set_row(IN_SET, FRIEND, &all(deny(9))).unwrap();
            pod.judge_by(Ingress, IN_SET);
            assert_eq!([packet(Egress, ACK), packet(Ingress, ACK), packet(Ingress, FIN)], [DROPPED; 3]);
            let events = pod.events();
            assert_eq!(events.len(), 1, "{events:?}");
            assert_eq!((events[0].kind, events[0].act.attribution), (EventKind::Cut, 9));
            assert_eq!(pod.counters(Ingress).cut, cut + 3);
            let denials = pod.path.denials();
            let window = denials.iter().find(|denial| denial.local.ip() == f.pod).unwrap();
            assert_eq!((window.count, window.act), (3, deny(9)), "every packet counts in the log's window");
            assert!(pod.connections().iter().any(|connection| connection.cut()));
            // Rules that still forbid it say so no second time; rules that allow it again let it go on.
            pod.judge_by(Ingress, IN_SET);
            assert_eq!(packet(Ingress, ACK), DROPPED);
            pod.path.set_row(IN_SET, FRIEND, &Pod::web(IN_SET)).unwrap();
            pod.judge_by(Ingress, IN_SET);
            assert_eq!([packet(Egress, ACK), packet(Ingress, ACK)], [PASSED; 2]);
            assert_eq!(kinds(&pod), []);
        }
    });
}

#[test]
fn a_set_that_comes_back_does_not_revive_what_was_judged_under_it() {
    lab::run(|lab| {
        let (pod, f) = (Pod::new(lab), v4());
        assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, SYN), PASSED);
        let old = pod.path.endpoints().unwrap()[0].words[0];
        pod.path.set_row(IN_SET, FRIEND, &all(deny(9))).unwrap();
        pod.judge_by(Ingress, IN_SET);
        assert_eq!(old.set, pod.path.endpoints().unwrap()[0].words[0].set);
        assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, ACK), DROPPED);
    });
}

#[test]
fn a_connection_is_logged_once() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            let syn = || pod.tcp(Ingress, f, f.friend, PORT, 5000, SYN);
            // The SYN comes again, also after an answer that was lost.
            assert_eq!([syn(), syn()], [PASSED; 2]);
            assert_eq!(pod.tcp(Egress, f, f.friend, PORT, 5000, SYN_ACK), PASSED);
            assert_eq!(syn(), PASSED);
            assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 5000, ACK), PASSED);
            assert_eq!(kinds(&pod), [EventKind::Allow]);
            // The ports are used again: another connection, after an orderly end or without one.
            assert_eq!(syn(), PASSED);
            assert_eq!(kinds(&pod), [EventKind::Allow]);
            for direction in [Ingress, Egress] {
                assert_eq!(pod.tcp(direction, f, f.friend, PORT, 5000, ACK), PASSED);
                assert_eq!(pod.tcp(direction, f, f.friend, PORT, 5000, FIN), PASSED);
            }
            assert_eq!(syn(), PASSED);
            assert_eq!(kinds(&pod), [EventKind::Allow]);
            for _ in 0..3 {
                assert_eq!(pod.udp(Ingress, f, f.friend, PORT, 6000), PASSED);
                assert_eq!(pod.udp(Egress, f, f.friend, PORT, 6000), PASSED);
            }
            assert_eq!(kinds(&pod), [EventKind::Allow]);
        }
    });
}

#[test]
fn what_is_logged_is_chosen_without_judging_again() {
    lab::run(|lab| {
        let (pod, f) = (Pod::new(lab), v4());
        let connect = |port| pod.tcp(Ingress, f, f.friend, PORT, port, SYN);
        let set = |log_allow, log_allow_loggable_only, log_deny| {
            let flags = Flags { log_allow, log_allow_loggable_only, log_deny, ..Flags::default() };
            pod.path.set_flags(pod.ifindex, flags).unwrap();
        };
        let words = pod.path.endpoints().unwrap()[0].words;
        set(false, false, false);
        assert_eq!((connect(1), pod.tcp(Ingress, f, f.rogue, PORT, 1, SYN)), (PASSED, DROPPED));
        assert_eq!(kinds(&pod), []);
        assert!(pod.path.denials().is_empty());
        set(true, true, true);
        assert_eq!(connect(2), PASSED);
        assert_eq!(kinds(&pod), []);
        let loggable = Act { loggable: true, ..allow(5) };
        pod.path.set_row(IN_SET, FRIEND, &all(loggable)).unwrap();
        assert_eq!(connect(3), PASSED);
        assert_eq!(pod.events().iter().map(|event| event.act).collect::<Vec<_>>(), [loggable]);
        assert_eq!(pod.path.endpoints().unwrap()[0].words, words);
    });
}

#[test]
fn a_row_says_the_same_of_every_port_as_its_bounds() {
    lab::run(|lab| {
        let (pod, f) = (Pod::new(lab), v4());
        for count in [1_u32, 2, 15, 16, 17, 127, 128, 129, 1000, 16_384] {
            // Every other bound allows; the last are beyond TCP, where nobody looks.
            let bound = |n: u32| Bound {
                start: if n == 0 { 0 } else { (6 << 16) + n * 3 },
                act: if n % 2 == 1 { allow(1 + n) } else { deny(1 + n) },
            };
            let bounds: Vec<_> = (0..count).map(bound).collect();
            pod.path.set_row(IN_SET, FRIEND, &bounds).unwrap();
            assert_eq!(pod.path.row(IN_SET, FRIEND).unwrap().as_deref(), Some(&bounds[..]));
            let ports =
                (0..40).chain((count * 3).saturating_sub(8)..count * 3 + 8).filter(|&port| port < 65536);
            for port in ports {
                pod.events();
                let expected = bounds.iter().rev().find(|bound| bound.start <= (6 << 16) + port).unwrap().act;
                let fate = pod.tcp(Ingress, f, f.friend, port as u16, 5000, SYN);
                assert_eq!(
                    fate,
                    if expected.allow { PASSED } else { DROPPED },
                    "{count} bounds, port {port}"
                );
                let said = pod.events().first().map(|event| event.act);
                assert!(said.is_none_or(|said| said == expected), "{count} bounds, port {port}: {said:?}");
            }
        }
        assert!(pod.path.set_row(IN_SET, FRIEND, &[]).is_err());
        assert!(pod.path.set_row(IN_SET, FRIEND, &[Bound { start: 1, act: allow(1) }]).is_err());
    });
}

#[test]
fn an_address_goes_before_a_block_and_no_block_of_one_family_covers_the_other() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for set in [IN_SET, OUT_SET] {
            pod.path.set_row(set, BLOCK, &Pod::web(set)).unwrap();
        }
        let open = |f: Family, remote| {
            pod.forget();
            pod.tcp(Ingress, f, remote, PORT, 5000, SYN)
        };
        pod.path.set_cidr_atom("::".parse().unwrap(), 0, BLOCK).unwrap();
        assert_eq!((open(v4(), v4().rogue), open(v6(), v6().rogue)), (DROPPED, PASSED));
        pod.path.remove_cidr_atom("::".parse().unwrap(), 0).unwrap();
        pod.path.set_cidr_atom([0, 0, 0, 0].into(), 0, BLOCK).unwrap();
        assert_eq!((open(v4(), v4().rogue), open(v6(), v6().rogue)), (PASSED, DROPPED));
        assert_eq!(pod.path.cidr_atoms().unwrap(), [(([0, 0, 0, 0].into(), 0), BLOCK)]);
        // The longest block counts, and before it the address.
        pod.path.set_cidr_atom([10, 1, 0, 0].into(), 24, 99).unwrap();
        assert_eq!((open(v4(), v4().rogue), open(v4(), v4().friend)), (DROPPED, PASSED));
        pod.path.remove_cidr_atom([10, 1, 0, 0].into(), 24).unwrap();
        assert_eq!(open(v4(), v4().rogue), PASSED);
        pod.path.set_ip_atom(v4().rogue, 98).unwrap();
        assert_eq!(open(v4(), v4().rogue), DROPPED);
        assert!(pod.path.remove_ip_atom(v4().rogue).unwrap());
        pod.path.remove_cidr_atom([0, 0, 0, 0].into(), 0).unwrap();
        assert_eq!((open(v4(), v4().rogue), pod.path.cidr_atoms().unwrap().len()), (DROPPED, 0));
        assert!(pod.path.set_cidr_atom("::ffff:10.0.0.0".parse().unwrap(), 104, 1).is_err());
    });
}

#[test]
fn a_host_that_is_full_of_others_packets_is_no_host() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            let frame = |remote, flags| ip(remote, f.pod, TCP, 0, &tcp_header(4000, 9, flags));
            // The node's own probe passes whatever the rules, and so do its answers.
            assert_eq!(pod.frame_from(Ingress, 0, &frame(f.node, SYN)), PASSED);
            assert_eq!(pod.tcp(Egress, f, f.node, 9, 4000, SYN_ACK), PASSED);
            assert_eq!(pod.frame_from(Ingress, 0, &frame(f.node, ACK)), PASSED);
            // A packet that was forwarded, masqueraded as the node, even in the same connection, is not its own.
            assert_eq!(pod.frame(Ingress, &frame(f.node, ACK)), DROPPED);
            assert_eq!(pod.frame(Ingress, &ip(f.node, f.pod, TCP, 0, &tcp_header(4001, 9, SYN))), DROPPED);
            // The pod may call its node, but no other.
            assert_eq!(pod.tcp(Egress, f, f.node, 6000, 22, SYN), PASSED);
            assert_eq!(pod.udp(Egress, f, f.node, 6000, 53), PASSED);
            assert_eq!(pod.tcp(Egress, f, f.other_node, 6000, 22, SYN), DROPPED);
            // Nothing of this is a policy's doing.
            assert!(!kinds(&pod).contains(&EventKind::Allow));
            // A caller that hides behind the node's address is judged, and his connection is cut with it.
            pod.path.set_ip_atom(f.node, FRIEND).unwrap();
            assert_eq!(pod.tcp(Ingress, f, f.node, PORT, 4100, SYN), PASSED);
            assert_eq!(pod.tcp(Egress, f, f.node, PORT, 4100, SYN_ACK), PASSED);
            pod.path.remove_ip_atom(f.node).unwrap();
            pod.judge_by(Ingress, IN_SET);
            assert_eq!(pod.tcp(Egress, f, f.node, PORT, 4100, ACK), DROPPED);
            assert_eq!(pod.tcp(Ingress, f, f.node, PORT, 4100, ACK), DROPPED);
            pod.events();
        }
    });
}

#[test]
fn other_protocols_are_judged_without_ports() {
    lab::run(|lab| {
        let pod = Pod::new(lab);
        for f in families() {
            let gre = |direction, remote| {
                let (src, dst) = ends(direction, f.pod, remote);
                pod.frame(direction, &ip(src, dst, 50, 0, &[1; 20]))
            };
            assert_eq!(gre(Ingress, f.friend), DROPPED);
            pod.path.set_row(IN_SET, FRIEND, &only(50, 0, allow(1), deny(2))).unwrap();
            assert_eq!(gre(Ingress, f.friend), PASSED);
            assert_eq!(gre(Egress, f.friend), PASSED);
            assert_eq!(gre(Ingress, f.rogue), DROPPED);
            // SCTP has ports; its INIT opens.
            pod.path.set_row(IN_SET, FRIEND, &Pod::web(IN_SET)).unwrap();
            pod.judge_by(Ingress, IN_SET);
            let sctp = |direction, port: u16, chunk: u8| {
                let (src, dst) = ends(direction, f.pod, f.friend);
                let (sport, dport) = ends(direction, port, 7000);
                let mut header = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
                header.extend([0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 20, 0, 0, 0, 0]);
                pod.frame(direction, &ip(src, dst, SCTP, 0, &header))
            };
            assert_eq!([sctp(Ingress, PORT, 1), sctp(Egress, PORT, 2), sctp(Ingress, PORT, 10)], [PASSED; 3]);
            assert_eq!(sctp(Ingress, 81, 1), DROPPED);
            // An echo passes where all ports do.
            pod.path.set_row(IN_SET, FRIEND, &all(allow(3))).unwrap();
            pod.judge_by(Ingress, IN_SET);
            assert_eq!(pod.ping(Ingress, f, f.friend, f.echo, 3), PASSED);
            assert_eq!(pod.ping(Egress, f, f.friend, f.echo_reply, 3), PASSED);
            assert_eq!(pod.ping(Egress, f, f.friend, f.echo_reply, 4), DROPPED);
            assert_eq!(pod.ping(Egress, f, f.friend, f.echo, 3), DROPPED);
            pod.path.set_row(IN_SET, FRIEND, &Pod::web(IN_SET)).unwrap();
        }
    });
}

#[test]
fn every_connection_is_listed_once() {
    lab::run(|lab| {
        let (pod, f) = (Pod::new(lab), v4());
        pod.path.set_flags(pod.ifindex, Flags::default()).unwrap();
        // So many that a listing takes several batches, in a table so small that buckets hold several.
        for port in 0..30_000 {
            assert_eq!(pod.tcp(Ingress, f, f.friend, PORT, 1000 + port, SYN), PASSED);
        }
        let keys: std::collections::HashSet<_> =
            pod.connections().iter().map(|connection| connection.key).collect();
        assert_eq!((keys.len(), pod.connections().len()), (30_000, 30_000));
        assert_eq!(pod.path.sweep_connections(|_| false).unwrap(), 30_000);
    });
}

#[test]
fn the_programs_are_small_to_the_verifier() {
    lab::run(|lab| {
        let path = lab.open();
        for (program, instructions) in path.verified_instructions().unwrap() {
            println!("{program}: {instructions} instructions verified");
            assert!(instructions < 100_000, "{program} takes the verifier {instructions} steps");
        }
    });
}
