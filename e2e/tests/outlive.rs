//! What outlives what: connections and verdicts, when daemons come, go and are away. On the bridge plugin. Needs root.
#![allow(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

mod common;

use std::process::ExitCode;

use common::{ALLOWED, DENIED, OTHER, PORT, app, pods, policy};
use durward_e2e::{Bed, Cni, Config, Matrix, Result, Stream, Test, install, run};
use serde_json::{Value, json};

const SYSTEM: &str = "durward-system";

fn main() -> ExitCode {
    let tests = [
        Test { name: "an_enforcer_that_comes_late_cuts_what_is_refused_and_nothing_else", run: comes_late },
        Test {
            name: "an_enforcer_that_restarts_cuts_nothing_and_lets_nothing_through",
            run: enforcer_restarts,
        },
        Test { name: "while_the_controller_is_away_the_last_rules_stay", run: controller_away },
    ];
    // Durward comes in the first test, on nodes with running connections; each test can also be run alone.
    run(Config::new("outlive").nodes(2).cni(Cni::Bridge), |_| Ok(()), &tests)
}

fn from(peer: &str) -> Value {
    json!({"podSelector": app("server"), "ingress": [{"from": [{"podSelector": app(peer)}], "ports": [{"port": PORT}]}]})
}

fn comes_late(bed: &Bed) -> Result<()> {
    let ns = "late";
    let [friend, rogue, server] = pods(bed, ns, [("friend", "n1"), ("rogue", "n2"), ("server", "n2")])?;
    let (friend, rogue, server) = (&friend.pod, &rogue.pod, &server.pod);
    policy(bed, ns, "from-friend", from("friend"))?;
    let streams = |pod: &durward_e2e::Pod| -> Result<Vec<Stream>> {
        server.sockets(PORT).into_iter().map(|to| Stream::open(&pod.network, to)).collect()
    };
    let (wanted, unwanted) = (streams(friend)?, streams(rogue)?);
    wanted.iter().chain(&unwanted).try_for_each(Stream::flows)?;
    install(bed, &[])?;
    unwanted.iter().try_for_each(Stream::is_cut)?;
    wanted.iter().try_for_each(Stream::flows)?;
    Matrix::new().tcp(friend, server, PORT, ALLOWED).tcp(rogue, server, PORT, DENIED).hold()
}

fn enforcer_restarts(bed: &Bed) -> Result<()> {
    install(bed, &[])?;
    let ns = "restart";
    let [friend, rogue, server] = pods(bed, ns, [("friend", "n1"), ("rogue", "n1"), ("server", "n2")])?;
    let (friend, rogue, server) = (&friend.pod, &rogue.pod, &server.pod);
    policy(bed, ns, "from-friend", from("friend"))?;
    let judged = Matrix::new().tcp(friend, server, PORT, ALLOWED).tcp(rogue, server, PORT, DENIED);
    judged.hold()?;
    let stream = Stream::open(&friend.network, server.sockets(PORT)[0])?;
    let enforcers = ["-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/name=durward-enforcer"];
    bed.kubectl(&[&enforcers[..], &["--wait=true"]].concat())?;
    // Nobody is there, or somebody who has just come: neither differs from before.
    judged.hold()?;
    stream.flows()?;
    ready(bed, "daemonset/durward-enforcer")?;
    stream.flows()?;
    policy(bed, ns, "from-friend", from("rogue"))?;
    stream.is_cut()?;
    Matrix::new().tcp(rogue, server, PORT, ALLOWED).tcp(friend, server, PORT, DENIED).hold()
}

fn controller_away(bed: &Bed) -> Result<()> {
    install(bed, &[])?;
    let ns = "away";
    let [friend, rogue, server] = pods(bed, ns, [("friend", "n1"), ("rogue", "n1"), ("server", "n2")])?;
    let (friend, rogue, server) = (&friend.pod, &rogue.pod, &server.pod);
    policy(bed, ns, "from-friend", from("friend"))?;
    let judged = Matrix::new().tcp(friend, server, PORT, ALLOWED).tcp(rogue, server, PORT, DENIED);
    judged.hold()?;
    let stream = Stream::open(&friend.network, server.sockets(PORT)[0])?;
    let scale =
        |to: &str| bed.kubectl(&["-n", SYSTEM, "scale", "deployment/durward-controller", "--replicas", to]);
    scale("0")?;
    bed.wait("the controller is gone", || {
        let list =
            bed.json(&["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=durward-controller"])?;
        Ok(list["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    bed.wait("the enforcers say so", || {
        let set = bed.json(&["-n", SYSTEM, "get", "daemonset", "durward-enforcer"])?;
        Ok((set["status"]["numberReady"] == 0).then_some(()))
    })?;
    policy(bed, ns, "from-friend", from("rogue"))?;
    judged.hold()?;
    stream.flows()?;
    scale("1")?;
    // What happened meanwhile is in force as soon as it is back.
    stream.is_cut()?;
    Matrix::new().tcp(rogue, server, PORT, ALLOWED).tcp(friend, server, OTHER, DENIED).hold()?;
    ready(bed, "daemonset/durward-enforcer")
}

fn ready(bed: &Bed, daemon: &str) -> Result<()> {
    bed.kubectl(&["-n", SYSTEM, "rollout", "status", daemon, "--timeout=120s"]).map(drop)
}
