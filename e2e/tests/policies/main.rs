//! Policies on a whole cluster: real pods on two nodes, real sockets, real log files. Needs root.
//!
//! | file | what it is |
//! |---|---|
//! | `main` | isolation, both ends, changes, the log, the daemons |
//! | `peers` | blocks, nodes, pods of the host's network |
//! | `ports` | named ports, and very many |
//! | `phases` | pods that end |
#![allow(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

#[path = "../common/mod.rs"]
mod common;
mod peers;
mod phases;
mod ports;

use std::process::ExitCode;

use common::{
    ALLOWED, DENIED, Listening, OTHER, PORT, annotated_policy, app, delete_policy, line, lines, log, pods,
    policy,
};
use durward_e2e::{Bed, Config, Matrix, Protocol, Result, Stream, Test, install, run};
use serde_json::{Value, json};

const SYSTEM: &str = "durward-system";
const CONTROLLER: &str = "app.kubernetes.io/name=durward-controller";

fn main() -> ExitCode {
    let tests = [
        Test { name: "a_policy_isolates_what_it_selects_and_nothing_else", run: a_policy_isolates },
        Test { name: "both_ends_decide", run: both_ends_decide },
        Test { name: "a_relabelled_namespace_is_judged_anew", run: a_relabelled_namespace },
        Test { name: "blocks_match_pods_and_except_takes_out", run: peers::blocks_match_pods },
        Test { name: "blocks_match_what_is_no_pod_and_except_takes_out", run: peers::blocks_match_hosts },
        Test { name: "a_pod_talks_with_its_own_node_and_not_with_another", run: peers::the_own_node },
        Test { name: "pods_of_the_hosts_network_are_their_node", run: peers::the_hosts_network },
        Test { name: "named_ports_are_those_of_each_pod", run: ports::named },
        Test { name: "a_policy_of_a_thousand_peers_and_a_thousand_ports", run: ports::a_thousand },
        Test { name: "terminating_pods_count_until_they_are_gone", run: phases::terminating },
        Test {
            name: "completed_pods_neither_match_nor_isolate_and_their_address_is_free",
            run: phases::completed,
        },
        Test { name: "what_is_not_understood_fails_closed_alone_and_says_so", run: not_understood },
        Test { name: "what_is_no_longer_allowed_is_cut_and_the_rest_goes_on", run: established },
        Test { name: "the_log_names_policies_pods_and_workloads", run: the_log },
        Test {
            name: "the_controller_comes_back_under_policies_that_deny_all",
            run: the_controller_comes_back,
        },
    ];
    run(Config::new("policies").nodes(2), |bed| install(bed, &[]), &tests)
}

pub(crate) fn ingress_from(subject: &str, peer: &str) -> Value {
    json!({"podSelector": app(subject), "ingress": [
        {"from": [{"podSelector": app(peer)}], "ports": [{"port": PORT}]},
    ]})
}

fn a_policy_isolates(bed: &Bed) -> Result<()> {
    let ns = "isolates";
    let [a, b, c] = pods(bed, ns, [("a", "n1"), ("b", "n1"), ("c", "n2")])?;
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    let open = [(a, b), (a, c), (b, a), (b, c), (c, a), (c, b)].into_iter().fold(
        Matrix::new(),
        |all, (from, to)| {
            all.tcp(from, to, PORT, ALLOWED).tcp(from, to, OTHER, ALLOWED).udp(from, to, PORT, ALLOWED)
        },
    );
    open.hold()?;
    policy(bed, ns, "to-c", ingress_from("c", "a"))?;
    Matrix::new()
        .tcp(a, c, PORT, ALLOWED)
        .tcp(a, c, OTHER, DENIED)
        .udp(a, c, PORT, DENIED)
        .tcp(b, c, PORT, DENIED)
        .tcp(c, a, PORT, ALLOWED)
        .udp(c, b, PORT, ALLOWED)
        .tcp(a, b, OTHER, ALLOWED)
        .hold()?;
    delete_policy(bed, ns, "to-c")?;
    open.hold()
}

fn both_ends_decide(bed: &Bed) -> Result<()> {
    let ns = "both-ends";
    let [a, b, c] = pods(bed, ns, [("a", "n1"), ("b", "n2"), ("c", "n2")])?;
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    policy(
        bed,
        ns,
        "from-a",
        json!({"podSelector": app("a"), "policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": app("b")}]},
        ]}),
    )?;
    // What a may send is for a's node to say; replies to what was sent to it are not held up by that.
    let matrix = Matrix::new().tcp(a, b, PORT, ALLOWED).udp(a, b, OTHER, ALLOWED).tcp(a, c, PORT, DENIED);
    matrix.udp(a, c, PORT, DENIED).tcp(c, a, PORT, ALLOWED).udp(c, a, PORT, ALLOWED).hold()?;
    policy(bed, ns, "to-b", ingress_from("b", "c"))?;
    Matrix::new().tcp(a, b, PORT, DENIED).tcp(c, b, PORT, ALLOWED).udp(c, b, PORT, DENIED).hold()
}

fn a_relabelled_namespace(bed: &Bed) -> Result<()> {
    let ([near], [far]) = (pods(bed, "relabel", [("near", "n1")])?, pods(bed, "elsewhere", [("far", "n2")])?);
    let (near, far) = (&near.pod, &far.pod);
    policy(
        bed,
        "relabel",
        "from-friends",
        json!({"podSelector": {}, "ingress": [
            {"from": [{"namespaceSelector": {"matchLabels": {"friend": "yes"}}, "podSelector": app("far")}]},
        ]}),
    )?;
    Matrix::new().tcp(far, near, PORT, DENIED).udp(far, near, PORT, DENIED).hold()?;
    bed.kubectl(&["label", "namespace", "elsewhere", "friend=yes"])?;
    Matrix::new().tcp(far, near, PORT, ALLOWED).udp(far, near, PORT, ALLOWED).hold()?;
    bed.kubectl(&["-n", "elsewhere", "label", "pod", "far", "app=other", "--overwrite"])?;
    Matrix::new().tcp(far, near, PORT, DENIED).hold()
}

fn established(bed: &Bed) -> Result<()> {
    let ns = "established";
    let [a, b, c] = pods(bed, ns, [("a", "n1"), ("b", "n2"), ("c", "n2")])?;
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    let streams = |from: &durward_e2e::Pod| -> Result<Vec<Stream>> {
        c.sockets(PORT).into_iter().map(|to| Stream::open(&from.network, to)).collect()
    };
    let (from_a, from_b) = (streams(a)?, streams(b)?);
    from_a.iter().chain(&from_b).try_for_each(Stream::flows)?;
    // From before the pod was isolated at all,
    policy(bed, ns, "only", ingress_from("c", "a"))?;
    from_b.iter().try_for_each(Stream::is_cut)?;
    from_a.iter().try_for_each(Stream::flows)?;
    // and from when it was.
    policy(bed, ns, "only", ingress_from("c", "b"))?;
    from_a.iter().try_for_each(Stream::is_cut)?;
    let from_b = streams(b)?;
    policy(bed, ns, "more", json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": app("b")}]}]}))?;
    Matrix::new().tcp(b, c, OTHER, ALLOWED).hold()?;
    from_b.iter().try_for_each(Stream::flows)
}

fn the_log(bed: &Bed) -> Result<()> {
    let ns = "logged";
    let [client, rogue] = pods(bed, ns, [("client", "n1"), ("rogue", "n1")])?;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": ns, "name": "web"},
        "spec": {"selector": app("web"), "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
            "nodeName": "n2", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "bed.local/pause:1", "imagePullPolicy": "Never"}],
        }}},
    });
    bed.apply(&deployment.to_string())?;
    let web = bed.wait("the deployment has a pod", || {
        let list = bed.json(&["-n", ns, "get", "pods", "-l", "app=web"])?;
        Ok(list["items"][0]["metadata"]["name"].as_str().map(str::to_owned))
    })?;
    let web = common::listen(bed, ns, &web)?;
    let (client, rogue, web) = (&client.pod, &rogue.pod, &web.pod);
    annotated_policy(
        bed,
        ns,
        "web",
        json!({"policy.network.gke.io/enable-logging": "true"}),
        ingress_from("web", "client"),
    )?;
    Matrix::new().tcp(client, web, PORT, ALLOWED).tcp(rogue, web, PORT, DENIED).hold()?;

    log(bed, json!({"allow": {"log": true, "delegate": true}, "deny": {"log": true}}))?;
    Matrix::new().tcp(client, web, PORT, ALLOWED).tcp(rogue, web, PORT, DENIED).hold()?;
    let policies = json!([{"kind": "NetworkPolicy", "name": "web", "namespace": ns}]);
    let dest = json!({
        "pod_name": web.name.rsplit_once('/').unwrap().1, "pod_namespace": ns, "namespace": ns,
        "workload_kind": "Deployment", "workload_name": "web",
    });
    let end = |name: &str| json!({"pod_name": name, "pod_namespace": ns, "namespace": ns});
    for address in [web.v4.to_string(), web.v6.to_string()] {
        let of = |line: &Value, disposition: &str| {
            line["disposition"] == disposition && line["connection"]["dest_ip"] == address.as_str()
        };
        let denied = line(bed, "n2", "the denied connection is in the log", |line| of(line, "deny"))?;
        assert_eq!(denied["isolated_by"], policies, "{denied}");
        assert_eq!((&denied["src"], &denied["dest"]), (&end("rogue"), &dest), "{denied}");
        assert_eq!(denied["connection"]["direction"], "ingress", "{denied}");
        // A SYN that gets no answer is sent again after a second.
        assert!(denied["count"].as_u64() >= Some(2), "{denied}");
        let allowed = line(bed, "n2", "the allowed connection is in the log", |line| of(line, "allow"))?;
        assert_eq!(allowed["policies"], policies, "{allowed}");
        assert_eq!((&allowed["src"], &allowed["dest"]), (&end("client"), &dest), "{allowed}");
        assert_eq!((&allowed["count"], &allowed["node_name"]), (&json!(1), &json!("n2")), "{allowed}");
    }
    // Nothing isolates what is on the other node, so there is nothing to say of it.
    let strangers = lines(bed, "n1")?.into_iter().filter(|line| line["dest"]["namespace"] == ns);
    assert_eq!(strangers.collect::<Vec<_>>(), Vec::<Value>::new());
    log(bed, json!({}))
}

fn not_understood(bed: &Bed) -> Result<()> {
    let ns = "not-understood";
    let [a, b, c] = pods(bed, ns, [("a", "n1"), ("b", "n1"), ("c", "n2")])?;
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    // API servers before 1.36 let it in. It would hold all pods, if the zero did not count.
    let from =
        |cidr: &str| json!({"podSelector": app("c"), "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]});
    policy(bed, ns, "odd", from("010.244.0.0/16"))?;
    policy(bed, ns, "good", ingress_from("c", "b"))?;
    Matrix::new()
        .tcp(a, c, PORT, DENIED)
        .tcp(b, c, PORT, ALLOWED)
        .tcp(b, c, OTHER, DENIED)
        .tcp(c, a, PORT, ALLOWED)
        .hold()?;
    let event = bed.wait("there is an Event", || {
        let events = bed.json(&["-n", ns, "get", "events.events.k8s.io"])?;
        let of =
            |event: &&Value| event["reason"] == "PolicyFailsClosed" && event["regarding"]["name"] == "odd";
        Ok(events["items"].as_array().into_iter().flatten().find(of).cloned())
    })?;
    let note = r#"NetworkPolicy not-understood/odd: spec.ingress[0].from[0].ipBlock.cidr: "010.244.0.0/16" is no CIDR"#;
    assert_eq!(event["type"], "Warning", "{event}");
    assert!(event["note"].as_str().unwrap_or_default().starts_with(note), "{event}");
    let log = bed.kubectl(&["-n", SYSTEM, "logs", "deployment/durward-controller"])?;
    let line = log.lines().find(|line| line.contains(note));
    assert!(line.is_some_and(|line| line.contains(" WARN ")), "{log}");
    failing_closed(bed, 1)?;

    policy(bed, ns, "odd", from("10.244.0.0/16"))?;
    Matrix::new().probe("a → c", &a.network, Protocol::Tcp, c.sockets(PORT)[0], ALLOWED).hold()?;
    failing_closed(bed, 0)
}

/// Waits until the controller's metric says so.
fn failing_closed(bed: &Bed, number: usize) -> Result<()> {
    let list = bed.json(&["-n", SYSTEM, "get", "pods", "-l", CONTROLLER])?;
    let pod = &list["items"][0];
    let ports = pod["spec"]["containers"][0]["ports"].as_array().into_iter().flatten();
    let port = ports.into_iter().find(|port| port["name"] == "metrics").unwrap();
    let (name, port) = (pod["metadata"]["name"].as_str().unwrap(), &port["containerPort"]);
    let page = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}:{port}/proxy/metrics");
    let line = format!("durward_controller_policies_failing_closed {number}");
    bed.wait(&line, || {
        Ok(bed.kubectl(&["get", "--raw", &page])?.lines().any(|one| one == line).then_some(()))
    })
}

fn the_controller_comes_back(bed: &Bed) -> Result<()> {
    policy(bed, SYSTEM, "nothing", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    let name = || -> Result<Option<String>> {
        let running = "--field-selector=status.phase=Running";
        let list = bed.json(&["-n", SYSTEM, "get", "pods", "-l", CONTROLLER, running])?;
        Ok(list["items"][0]["metadata"]["name"].as_str().map(str::to_owned))
    };
    let before = bed.wait("there is a controller", name)?;
    bed.kubectl(&["-n", SYSTEM, "delete", "pod", &before, "--wait=true"])?;
    let after = bed.wait("there is another controller", || Ok(name()?.filter(|after| *after != before)))?;
    bed.kubectl(&["-n", SYSTEM, "wait", "--for=condition=Ready", "--timeout=120s", &format!("pod/{after}")])?;
    // It is not only up: it is heard.
    let [a, b] = pods(bed, "after", [("a", "n1"), ("b", "n2")])?;
    let Listening { pod: a, .. } = &a;
    policy(bed, "after", "nothing", json!({"podSelector": app("b")}))?;
    Matrix::new().tcp(a, &b.pod, PORT, DENIED).tcp(&b.pod, a, PORT, ALLOWED).hold()?;
    delete_policy(bed, SYSTEM, "nothing")
}
