//! The log, with the built enforcer, real packets and a real file. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use common::controller::Controller;
use common::eventually;
use common::node::{Node, Pod};
use common::traffic::inside;
use common::views::{isolate, isolate_by_all, isolate_logged, view};
use durward_proto::{LogMode, NodeView};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PORT: u16 = 8080;
/// The source port of every datagram: its line shows it.
const FROM: u16 = 4321;

/// A node with pods 2, 3 and 4; pod 2 serves.
fn three_pods() -> (Node, [usize; 3]) {
    let mut node = Node::new();
    let pods = [2, 3, 4].map(|n| node.add_pod(n));
    node.pod(pods[0]).listen(PORT);
    (node, pods)
}

/// Pod 2 is reached by pod 4 only; this is logged.
fn friends_only(allow: LogMode, deny: LogMode) -> NodeView {
    let mut view = view(&[2, 3, 4]);
    isolate(&mut view, 2, "only-friend", &[[10, 77, 0, 4]]);
    (view.logging.allow, view.logging.deny) = (allow, deny);
    view
}

/// Sends datagrams, all from the same port.
fn send(from: &Pod, to: IpAddr, port: u16, count: usize) {
    let socket = inside(&from.namespace, || UdpSocket::bind(("0.0.0.0", FROM)).unwrap());
    for _ in 0..count {
        socket.send_to(b"x", (to, port)).unwrap();
    }
}

/// The files of the log, oldest first: "policy_action-…" sorts before "policy_action.log", the newest.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// All lines of all files, oldest first; each whole.
fn lines(folder: &Path) -> Vec<Value> {
    let text = eventually("the log is read while no file is rotated", || {
        let files_before = files(folder);
        let text: std::io::Result<String> = files_before.iter().map(std::fs::read_to_string).collect();
        match text {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            text => (files(folder) == files_before).then(|| text.unwrap()),
        }
    });
    // What follows the last newline is still being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn verdicts(node: &Node, disposition: &str) -> Vec<Value> {
    let mut lines = lines(&node.path("log"));
    lines.retain(|line| line["disposition"] == disposition);
    lines
}

/// How many denied packets the log tells of, by destination port.
fn denied(node: &Node) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for line in verdicts(node, "deny") {
        *counts.entry(line["connection"]["dest_port"].as_u64().unwrap()).or_default() +=
            line["count"].as_u64().unwrap();
    }
    counts
}

fn wait_denied(node: &Node, port: u16) {
    eventually("the denial is in the log", || denied(node).contains_key(&port.into()).then_some(()));
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn denials_are_folded_named_and_attributed_and_delegation_is_heeded() {
    let (node, [server, rogue, _]) = three_pods();
    let (server, rogue) = (node.pod(server), node.pod(rogue));
    let controller = Controller::start(&node, friends_only(LogMode::Off, LogMode::Off));
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();
    send(rogue, server.address, 1, 1);
    // Delegated, and the namespace does not ask.
    controller.say(friends_only(LogMode::Off, LogMode::Delegated));
    send(rogue, server.address, 2, 1);

    let mut asked = friends_only(LogMode::Off, LogMode::Delegated);
    asked.pods.values_mut().for_each(|pod| pod.denies_logged = true);
    controller.say(asked);
    let before = now_s();
    send(rogue, server.address, 3, 5);
    wait_denied(&node, 3);
    controller.say(friends_only(LogMode::Off, LogMode::All));
    assert!(!rogue.connects(server.address, 4));
    wait_denied(&node, 4);
    eventually("all packets are told of", || (denied(&node)[&3] == 5).then_some(()));
    // Windows end in the order in which they began: those of ports 1 and 2 would be there by now.
    assert_eq!(denied(&node).into_keys().collect::<Vec<_>>(), [3, 4]);

    let mut line = verdicts(&node, "deny").remove(0);
    let timestamp = line["timestamp"].take();
    let timestamp = timestamp.as_str().unwrap();
    assert_eq!((timestamp.len(), timestamp.ends_with('Z')), (30, true), "{timestamp}");
    assert!(timestamp[..4].parse::<u64>().unwrap() >= 1970 + before / (366 * 86400), "{timestamp}");
    let expected = json!({
        "connection": {"src_ip": "10.77.0.3", "src_port": FROM, "dest_ip": "10.77.0.2", "dest_port": 3,
                       "protocol": "udp", "direction": "ingress"},
        "disposition": "deny",
        "isolated_by": [{"kind": "NetworkPolicy", "name": "only-friend", "namespace": "default"}],
        "src": {"pod_name": "pod-3", "pod_namespace": "default", "namespace": "default",
                "workload_kind": "Deployment", "workload_name": "pod-3s"},
        "dest": {"pod_name": "pod-2", "pod_namespace": "default", "namespace": "default",
                 "workload_kind": "Deployment", "workload_name": "pod-2s"},
        "count": 5, "node_name": "node-1", "timestamp": null,
    });
    assert_eq!(line, expected);
}

#[test]
fn an_allowed_connection_is_one_line_across_rotations_and_delegation_lists_who_asks() {
    let (node, [server, _, friend]) = three_pods();
    let (server, friend) = (node.pod(server), node.pod(friend));
    let controller = Controller::start(&node, friends_only(LogMode::Delegated, LogMode::Off));
    let options = ["--log-file-bytes", "2000", "--log-files-kept", "1000"];
    let enforcer = node.start_with(controller.address, &options);
    enforcer.wait_ready();
    controller.wait_acked();
    // Nobody asks for this one.
    friend.must_connect(server.address, PORT);
    controller.say(friends_only(LogMode::All, LogMode::Off));
    for _ in 0..20 {
        let mut connection = friend.must_connect(server.address, PORT);
        (0..10).for_each(|_| connection.must_echo());
    }
    let mut asking = view(&[2, 3, 4]);
    isolate_logged(&mut asking, 2, "asks", &[[10, 77, 0, 4]], true);
    asking.logging.allow = LogMode::Delegated;
    controller.say(asking);
    friend.must_connect(server.address, PORT);

    let last = eventually("the last connection is in the log", || {
        verdicts(&node, "allow").pop().filter(|line| line["policies"][0]["name"] == "asks")
    });
    assert_eq!(last["policies"], json!([{"kind": "NetworkPolicy", "name": "asks", "namespace": "default"}]));
    let all = verdicts(&node, "allow");
    assert_eq!(all.len(), 21, "{all:#?}");
    let mut ports: Vec<_> = all.iter().map(|line| line["connection"]["src_port"].as_u64().unwrap()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 21, "one line each");
    assert!(all.iter().all(|line| line["count"] == 1 && line["src"]["pod_name"] == "pod-4"), "{all:#?}");
    assert!(std::fs::read_dir(node.path("log")).unwrap().count() > 3, "the file was rotated");
}

#[test]
fn a_denial_by_very_many_policies_names_each_of_them_in_order() {
    let (node, [server, rogue, _]) = three_pods();
    let mut many = view(&[2, 3, 4]);
    isolate_by_all(&mut many, 2, [&["d", "b"], &["a", "c"]]);
    many.logging.deny = LogMode::All;
    let controller = Controller::start(&node, many);
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();
    send(node.pod(rogue), node.pod(server).address, 1, 1);
    wait_denied(&node, 1);
    let line = verdicts(&node, "deny").remove(0);
    let names: Vec<_> =
        line["isolated_by"].as_array().unwrap().iter().map(|policy| &policy["name"]).collect();
    assert_eq!(names, ["a", "b", "c", "d"], "{line}");
}

#[test]
fn a_restart_loses_no_window_and_repeats_no_line() {
    let (node, [server, rogue, _]) = three_pods();
    let (server, rogue) = (node.pod(server), node.pod(rogue));
    let controller = Controller::start(&node, friends_only(LogMode::Off, LogMode::All));
    let mut enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();
    let mut port = 0;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for in_the_middle in [true, false] {
            port += 1;
            send(rogue, server.address, port, 3);
            if !in_the_middle {
                wait_denied(&node, port);
            }
            enforcer.stop(signal);
            // Nobody watches, but the kernel counts.
            send(rogue, server.address, 100 + port, 2);
            enforcer = node.start(controller.address);
            enforcer.wait_ready();
        }
    }
    send(rogue, server.address, 999, 1);
    wait_denied(&node, 999);
    let sent = (1..=4).map(|port| (port, 3)).chain((101..=104).map(|port| (port, 2)));
    let expected: BTreeMap<u64, u64> = sent.chain([(999, 1)]).collect();
    eventually("every packet is told of", || (denied(&node) == expected).then_some(()));
    drop(enforcer);
    assert_eq!(denied(&node), expected, "{:#?}", lines(&node.path("log")));
}

#[test]
fn what_exceeds_the_budget_is_counted_in_the_log_and_in_a_metric() {
    let (node, [server, _, friend]) = three_pods();
    let (server, friend) = (node.pod(server), node.pod(friend));
    let controller = Controller::start(&node, friends_only(LogMode::All, LogMode::Off));
    let enforcer = node.start_with(controller.address, &["--log-lines-per-second", "1"]);
    enforcer.wait_ready();
    controller.wait_acked();
    for _ in 0..30 {
        friend.must_connect(server.address, PORT);
    }
    let suppressed = |entry: &Value| {
        assert_eq!(
            (&entry["disposition"], &entry["pod_name"]),
            (&json!("allow"), &json!("pod-2")),
            "{entry}"
        );
        entry["lines"].as_u64().unwrap()
    };
    eventually("every connection is told of", || {
        let lines = lines(&node.path("log"));
        let summaries = lines.iter().filter_map(|line| line["suppressed"].as_array());
        let told: u64 = summaries.flatten().map(suppressed).sum();
        let metric = enforcer.metric(r#"durward_enforcer_log_lost_total{place="line_budget"}"#);
        let written = verdicts(&node, "allow").len() as u64;
        (told > 0 && told + written == 30 && metric == Some(told as f64)).then_some(())
    });
}

#[test]
fn without_names_or_a_file_lines_wait_and_what_is_missing_is_counted() {
    let (node, [server, rogue, _]) = three_pods();
    let (server, rogue) = (node.pod(server), node.pod(rogue));
    // A file where the folder should be: not even root can write a log there.
    std::fs::remove_dir(node.path("log")).unwrap();
    std::fs::write(node.path("log"), "").unwrap();
    let controller = Controller::start(&node, friends_only(LogMode::Off, LogMode::All));
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();
    let problem = format!("cannot create {}", node.path("log").display());
    eventually("the controller hears of it", || {
        let last = controller.reports().pop()?;
        last.problems.iter().any(|text| text.starts_with(&problem)).then_some(())
    });
    drop(controller);
    send(rogue, server.address, 1, 2);
    let unnamed = r#"durward_enforcer_log_lost_total{place="name"}"#;
    eventually("the line goes without names", || enforcer.metric(unnamed).filter(|count| *count > 0.0));
    std::fs::remove_file(node.path("log")).unwrap();
    std::fs::create_dir(node.path("log")).unwrap();
    wait_denied(&node, 1);
    let line = verdicts(&node, "deny").remove(0);
    assert_eq!(line["src"], json!({"instance": "10.77.0.3"}));
    let pod = json!({"pod_name": "pod-2", "pod_namespace": "default", "namespace": "default"});
    assert_eq!((&line["dest"], &line["count"]), (&pod, &json!(2)));
}
