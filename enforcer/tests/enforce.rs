//! The built enforcer on a node of its own: real namespaces, real sockets, a real gRPC stream. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use common::controller::Controller;
use common::eventually;
use common::node::{NODE, Node, uid};
use common::traffic::{Connection, serve};
use common::views::{isolate, scatter, view};
use durward_proto::wire::{self, to_node};
use nix::sys::signal::Signal;

const PORT: u16 = 8080;

/// A node with pods 2, 3 and 4; pod 2 serves.
fn three_pods() -> (Node, [usize; 3]) {
    let mut node = Node::new();
    let pods = [2, 3, 4].map(|n| node.add_pod(n));
    node.pod(pods[0]).listen(PORT);
    (node, pods)
}

fn cut(connection: &mut Connection) {
    eventually("the connection is cut", || (!connection.echoes()).then_some(()));
}

#[test]
fn a_policy_is_enforced_and_cuts_what_it_does_not_allow() {
    let (node, [server, rogue, friend]) = three_pods();
    let (server, rogue, friend) = (node.pod(server), node.pod(rogue), node.pod(friend));
    let controller = Controller::start(&node, view(&[2, 3, 4]));
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    // Nothing isolates the server.
    let [mut of_rogue, mut of_friend] = [rogue, friend].map(|pod| pod.must_connect(server.address, PORT));
    of_rogue.must_echo();
    of_friend.must_echo();

    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 2, "only-friend", &[[10, 77, 0, 4]]);
    controller.say(isolated);
    of_friend.must_echo();
    cut(&mut of_rogue);
    assert!(!rogue.connects(server.address, PORT), "the policy does not allow it");
    friend.must_connect(server.address, PORT);
    let denied = r#"durward_enforcer_verdicts_total{direction="ingress",disposition="denied"}"#;
    for metric in [denied, "durward_enforcer_propagation_seconds_count"] {
        eventually(metric, || enforcer.metric(metric).filter(|count| *count > 0.0));
    }
    enforcer.wait_metric("durward_enforcer_endpoints", 3.0);

    controller.say(view(&[2, 3, 4]));
    // Nothing isolates the server any more.
    rogue.must_connect(server.address, PORT);
}

#[test]
fn a_restart_cuts_no_connection_and_opens_nothing() {
    let (node, [server, rogue, friend]) = three_pods();
    let (server, rogue, friend) = (node.pod(server), node.pod(rogue), node.pod(friend));
    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 2, "only-friend", &[[10, 77, 0, 4]]);
    let mut controller = Controller::start(&node, isolated.clone());
    let at = controller.address;
    let mut enforcer = node.start(at);
    enforcer.wait_ready();
    let mut connection = friend.must_connect(server.address, PORT);

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let ended = enforcer.stop(signal);
        assert_eq!(ended.success(), signal == Signal::SIGTERM, "{ended}");
        let enforced = |connection: &mut Connection| {
            connection.must_echo();
            friend.must_connect(server.address, PORT);
            assert!(!rogue.connects(server.address, PORT), "the policy does not allow it");
        };
        enforced(&mut connection);

        // Back, but the controller is not: what is in the kernel stays as it is.
        drop(controller);
        enforcer = node.start(at);
        let why = |text: &str| {
            enforcer.get("/readyz").filter(|(status, body)| *status == 503 && body.contains(text))
        };
        eventually("not ready, for the controller is away", || why("controller"));
        eventually("the enforcer has tried", || {
            enforcer.metric(r#"durward_enforcer_stream_errors_total{reason="Broken"}"#)
        });
        enforced(&mut connection);

        controller = Controller::start_at(&node, at, isolated.clone());
        enforcer.wait_ready();
        enforced(&mut connection);
    }

    // And the one that took over changes what it took over.
    controller.say(view(&[2, 3, 4]));
    connection.must_echo();
    // Nothing isolates the server any more.
    rogue.must_connect(server.address, PORT);
}

#[test]
fn a_node_that_never_enforced_is_left_alone_until_there_is_a_view() {
    let (mut node, [server, rogue, _]) = three_pods();
    let controller = Controller::start(&node, view(&[2, 3]));
    let (at, view_of_two) = (controller.address, view(&[2, 3]));
    drop(controller);
    let enforcer = node.start(at);
    eventually("the enforcer has tried", || {
        enforcer.metric(r#"durward_enforcer_stream_errors_total{reason="Broken"}"#)
    });
    // Nobody has spoken yet.
    node.pod(rogue).must_connect(node.pod(server).address, PORT);
    assert_eq!(node.dump()["maps"]["endpoints"], serde_json::json!([]));

    // Of pod 4 the view does not tell: only its node may talk with it.
    let controller = Controller::start_at(&node, at, view_of_two);
    enforcer.wait_ready();
    controller.wait_acked();
    let stranger = 2;
    node.pod(stranger).listen(PORT);
    let (address, of_server) = (node.pod(stranger).address, node.pod(server).address);
    eventually("the stranger is closed", || (!node.pod(rogue).connects(address, PORT)).then_some(()));
    assert!(!node.pod(stranger).connects(of_server, PORT), "an unknown pod may not open connections");
    serve(&node.host(), PORT);
    // But for those to its node.
    node.pod(stranger).must_connect(NODE.parse().unwrap(), PORT);
    controller.say(view(&[2, 3, 4]));
    node.pod(rogue).must_connect(address, PORT);

    // The node has enforced: without a view, a new pod is closed.
    enforcer.stop(Signal::SIGKILL);
    drop(controller);
    let enforcer = node.start(at);
    let late = node.add_pod(5);
    node.pod(late).listen(PORT);
    enforcer.wait_metric("durward_enforcer_unknown_endpoints", 1.0);
    assert!(!node.pod(rogue).connects(node.pod(late).address, PORT), "nobody knows the new pod");
    // Those that are known go on.
    node.pod(rogue).must_connect(of_server, PORT);
}

#[test]
fn a_pod_gains_nothing_by_changing_its_own_addresses() {
    let (mut node, [server, rogue, friend]) = three_pods();
    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 2, "only-friend", &[[10, 77, 0, 4]]);
    let controller = Controller::start(&node, isolated);
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    let (of_server, of_friend) = (node.pod(server).address, node.pod(friend).address);
    node.pod(friend).must_connect(of_server, PORT);

    // It takes the friend's address, and the way back is bent to it, as by an ARP claim on a bridge.
    node.remove_pod(friend);
    node.pod(rogue).run(&["ip", "addr", "add", "10.77.0.4/32", "dev", "eth0"]);
    node.on_host(&["ip", "route", "replace", "10.77.0.4/32", "dev", "veth3"]);
    assert!(!node.pod(rogue).connects_from(of_friend, of_server, PORT), "the address is not its own");

    // Nor is it taken for the friend by an enforcer that meets it so.
    enforcer.stop(Signal::SIGKILL);
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    assert!(!node.pod(rogue).connects_from(of_friend, of_server, PORT), "the address is not its own");

    // A process of another pod in its namespace: nobody knows whose it is now, but the binding stays.
    node.add_process(rogue, &uid(4));
    controller.say(view(&[2, 3, 4]));
    node.pod(rogue).must_connect(of_server, PORT);
    enforcer.stop(Signal::SIGKILL);
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    eventually("a namespace whose processes disagree is closed", || {
        (!node.pod(rogue).connects(of_server, PORT)).then_some(())
    });
    enforcer.wait_metric("durward_enforcer_unknown_endpoints", 1.0);
}

#[test]
fn a_message_that_is_not_understood_changes_nothing_and_is_named() {
    let (node, [server, rogue, friend]) = three_pods();
    let (server, rogue, friend) = (node.pod(server), node.pod(rogue), node.pod(friend));
    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 2, "only-friend", &[[10, 77, 0, 4]]);
    let controller = Controller::start(&node, isolated.clone());
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();

    let logging = Some(wire::Logging { allow: 77, deny: 1, generation: 1 });
    let patch = Some(wire::Patch { logging, ..wire::Patch::default() });
    let to = Some(wire::Version { epoch: 1, number: 2 });
    let change = to_node::Message::Change(wire::Change { to, patch });
    controller.say_instead(isolated, wire::ToNode { message: Some(change) });
    controller.wait_acked();
    let refused = r#"durward_enforcer_stream_errors_total{reason="NotUnderstood"}"#;
    assert_eq!(enforcer.metric(refused), Some(1.0));
    assert!(node.words().contains("Logging.allow: 77"), "{}", node.words());
    assert_eq!(controller.streams(), (2, 2), "the second stream asks for a whole view");
    friend.must_connect(server.address, PORT);
    assert!(!rogue.connects(server.address, PORT), "the policy does not allow it");
}

#[test]
fn verdicts_go_on_where_the_log_cannot_be_written() {
    let (node, [server, rogue, friend]) = three_pods();
    let (server, rogue, friend) = (node.pod(server), node.pod(rogue), node.pod(friend));
    // A file where the folder should be: not even root can write a log there.
    std::fs::remove_dir(node.path("log")).unwrap();
    std::fs::write(node.path("log"), "").unwrap();
    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 2, "only-friend", &[[10, 77, 0, 4]]);
    isolated.logging.deny = durward_proto::LogMode::All;
    let controller = Controller::start(&node, isolated);
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    friend.must_connect(server.address, PORT);
    assert!(!rogue.connects(server.address, PORT), "the policy does not allow it");
}

#[test]
fn a_pod_whose_rules_do_not_fit_is_closed_and_nobody_else() {
    let (node, [big, other, friend]) = three_pods();
    node.pod(other).listen(PORT);
    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 3, "only-friend", &[[10, 77, 0, 4]]);
    let controller = Controller::start(&node, isolated.clone());
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();
    let (of_big, of_other) = (node.pod(big).address, node.pod(other).address);
    node.pod(friend).must_connect(of_big, PORT);

    let mut too_big = isolated.clone();
    isolate(&mut too_big, 2, "too-big", &[[10, 77, 0, 4]]);
    scatter(&mut too_big, "too-big", 20_000);
    controller.say(too_big);
    enforcer.wait_metric("durward_enforcer_misfits", 1.0);
    assert!(node.words().contains("pod default/pod-2: the kernel has no room"), "{}", node.words());
    assert!(!node.pod(friend).connects(of_big, PORT), "its rules are not in the kernel: nothing is allowed");
    node.pod(friend).must_connect(of_other, PORT);

    let mut fitting = isolated;
    isolate(&mut fitting, 2, "fitting", &[[10, 77, 0, 4]]);
    scatter(&mut fitting, "fitting", 2_001);
    controller.say(fitting);
    enforcer.wait_metric("durward_enforcer_misfits", 0.0);
    node.pod(friend).must_connect(of_big, PORT);
    node.pod(friend).must_connect(of_other, PORT);
}

#[test]
fn a_new_pod_inherits_an_address_but_not_its_connections() {
    let (mut node, [server, _, friend]) = three_pods();
    let controller = Controller::start(&node, view(&[2, 3, 4, 5]));
    // The host tracks connections only where somebody asks for it.
    let rule = "iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
    node.on_host(&rule.split(' ').collect::<Vec<_>>());
    // And remembers those that were closed for longer than this test runs.
    for state in ["close", "close_wait", "fin_wait", "last_ack", "time_wait"] {
        let timeout = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{state}");
        node.on_host(&["sh", "-c", &format!("echo 86400 > {timeout}")]);
    }
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    let address = node.pod(server).address;
    let endpoints = "durward_enforcer_endpoints";
    let leaver = node.add_pod(5);
    // What the host knew of a new pod's address is forgotten before the pod is attached.
    enforcer.wait_metric(endpoints, 4.0);
    node.pod(leaver).must_connect(address, PORT);
    node.pod(friend).must_connect(address, PORT);
    let tracked = |node: &Node, pod| !node_output(node, &["conntrack", "-L", "--orig-src", pod]).is_empty();
    assert!(tracked(&node, "10.77.0.5") && tracked(&node, "10.77.0.4"));
    node.remove_pod(leaver);
    enforcer.wait_metric(endpoints, 3.0);
    assert!(tracked(&node, "10.77.0.5"), "the host still remembers the leaver's connection");

    node.add_pod(5);
    enforcer.wait_metric(endpoints, 4.0);
    assert!(!tracked(&node, "10.77.0.5"), "the address has a new owner");
    assert!(tracked(&node, "10.77.0.4"), "the others' connections are theirs");
}

fn node_output(node: &Node, command: &[&str]) -> String {
    let enter = format!("--net={}", node.host().display());
    let output = std::process::Command::new("nsenter").arg(enter).args(command).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_dump_shows_view_maps_and_endpoints() {
    let (mut node, [server, ..]) = three_pods();
    assert_eq!(node.dump()["maps"], serde_json::Value::Null, "nothing is made by looking");
    let mut isolated = view(&[2, 3, 4]);
    isolate(&mut isolated, 2, "only-friend", &[[10, 77, 0, 4]]);
    let controller = Controller::start(&node, isolated);
    let enforcer = node.start(controller.address);
    enforcer.wait_ready();
    controller.wait_acked();
    let attached = |dump: &serde_json::Value| dump["maps"]["endpoints"].as_array().map(Vec::len);
    let dump = eventually("all three pods are attached", || {
        let dump = node.dump();
        (attached(&dump) == Some(3)).then_some(dump)
    });
    assert_eq!(dump["view"]["pods"][uid(2)]["name"], "pod-2", "{dump:#}");
    assert_eq!(dump["maps"]["addresses"][0][0], "10.77.0.4", "{dump:#}");
    assert_eq!(dump["endpoints"].as_object().map(serde_json::Map::len), Some(3), "{dump:#}");

    node.remove_pod(server);
    eventually("the endpoint of a pod that went is removed", || {
        (attached(&node.dump()) == Some(2)).then_some(())
    });
}

#[test]
fn without_a_bpf_file_system_it_refuses_to_start() {
    let node = Node::new();
    nix::mount::umount(&node.path("bpffs")).unwrap();
    let enforcer = node.start("127.0.0.1:1".parse().unwrap());
    let ended = enforcer.ends();
    assert_eq!(ended.code(), Some(1));
    assert!(node.words().contains("is no BPF file system: mount one there"), "{}", node.words());
    assert!(!node.words().contains("panicked"), "{}", node.words());
}
