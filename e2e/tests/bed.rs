//! The test bed itself: what comes up works, and what goes down is gone. Needs root.

#![expect(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::{Command, ExitCode},
};

use durward_e2e::{
    Bed, Cni, Config, Matrix, Outcome, Protocol, Proxy, Result, Server, Stream, Test, run, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn main() -> ExitCode {
    let tests = [
        Test { name: "pods_on_two_nodes_talk", run: pods_on_two_nodes_talk },
        Test { name: "a_service_is_translated_and_its_name_resolved", run: a_service_is_translated },
        Test { name: "the_other_plugin_and_proxy_work_beside_it", run: the_other_plugin_and_proxy_work },
        Test { name: "down_leaves_nothing", run: |_| down_leaves_nothing() },
        Test { name: "an_interrupted_run_leaves_nothing", run: |_| an_interrupted_run_leaves_nothing() },
        Test { name: "a_killed_run_is_cleaned_by_the_next", run: |_| a_killed_run_is_cleaned_by_the_next() },
    ];
    run(Config::new("bed").nodes(2), |_| Ok(()), &tests)
}

fn pods_on_two_nodes_talk(bed: &Bed) -> Result<()> {
    talk(bed, "talk")
}

/// Two pods on two nodes and one beside the first, every way, both families; then what a filter on the way does to them.
fn talk(bed: &Bed, namespace: &str) -> Result<()> {
    bed.namespace(namespace, &[])?;
    let names =
        [("a", "n1"), ("b", "n1"), ("c", "n2")].map(|(name, node)| (format!("{namespace}/{name}"), node));
    for (name, node) in &names {
        bed.run_pod(name, node, &[("app", "talk")])?;
    }
    let [a, b, c] = names.map(|(name, _)| bed.pod(&name).unwrap());
    let _servers = [&a, &b, &c].map(|pod| Server::start(&pod.network, 7000).unwrap());
    let mut matrix = Matrix::new();
    for (from, to) in [(&a, &b), (&a, &c), (&b, &a), (&c, &a), (&c, &b)] {
        matrix = matrix.tcp(from, to, 7000, Outcome::Allowed).udp(from, to, 7000, Outcome::Allowed);
        matrix = matrix.tcp(from, to, 7001, Outcome::Refused).udp(from, to, 7001, Outcome::Refused);
    }
    matrix.hold()?;

    // A bed whose probes could not fail would show nothing.
    let stream = Stream::open(&a.network, c.sockets(7000)[0])?;
    stream.flows()?;
    let filter = "add table inet t; add chain inet t c { type filter hook input priority 0; }; \
                  add rule inet t c meta l4proto { tcp, udp } th dport 7000 drop";
    c.network.command("nft", &[filter])?;
    let (denied, allowed) = (Outcome::Denied, Outcome::Allowed);
    Matrix::new()
        .tcp(&a, &c, 7000, denied.clone())
        .udp(&b, &c, 7000, denied)
        .tcp(&c, &b, 7000, allowed.clone())
        .hold()?;
    stream.is_cut()?;
    c.network.command("nft", &["delete table inet t"])?;
    Matrix::new().tcp(&a, &c, 7000, allowed.clone()).udp(&b, &c, 7000, allowed).hold()?;
    stream.flows()
}

fn a_service_is_translated(bed: &Bed) -> Result<()> {
    service(bed, "services")
}

/// A pod reaches pods of both nodes through a ClusterIP, and finds it by name.
fn service(bed: &Bed, namespace: &str) -> Result<()> {
    bed.namespace(namespace, &[])?;
    for (name, node) in [("near", "n1"), ("far", "n2")] {
        bed.run_pod(&format!("{namespace}/{name}"), node, &[("app", name)])?;
        bed.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  ipFamilyPolicy: RequireDualStack\n  selector: {{app: {name}}}\n  \
             ports: [{{name: t, port: 80, targetPort: 7000}}, {{name: u, port: 80, targetPort: 7000, protocol: UDP}}]\n"
        ))?;
    }
    bed.kubectl(&[
        "-n",
        namespace,
        "run",
        "client",
        "--image=docker.io/library/busybox:latest",
        "--image-pull-policy=Never",
        "--overrides",
        r#"{"spec": {"nodeName": "n1", "terminationGracePeriodSeconds": 0}}"#,
        "--",
        "sleep",
        "infinity",
    ])?;
    let client = format!("{namespace}/client");
    let [near, far] = ["near", "far"].map(|name| bed.pod(&format!("{namespace}/{name}")).unwrap());
    let _servers = [&near, &far].map(|pod| Server::start(&pod.network, 7000).unwrap());
    let from = bed.pod(&client)?;
    let mut matrix = Matrix::new();
    for name in ["near", "far"] {
        let service = bed.json(&["-n", namespace, "get", "service", name])?;
        for address in service["spec"]["clusterIPs"].as_array().unwrap() {
            let address: IpAddr = address.as_str().unwrap().parse().unwrap();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let target = SocketAddr::new(address, 80);
                matrix = matrix.probe(
                    format!("client → service {name}"),
                    &from.network,
                    protocol,
                    target,
                    Outcome::Allowed,
                );
            }
        }
        let resolved = bed.wait("the service's name is resolved", || {
            bed.exec(&client, &["nslookup", &format!("{name}.{namespace}.svc.cluster.local")]).map(Some)
        })?;
        let address = service["spec"]["clusterIP"].as_str().unwrap();
        assert!(resolved.contains(address), "{address} in {resolved}");
    }
    matrix.hold()
}

fn the_other_plugin_and_proxy_work(_: &Bed) -> Result<()> {
    let bed = Bed::up(Config::new("bed-bridge").nodes(2).cni(Cni::Bridge).proxy(Proxy::Iptables))?;
    talk(&bed, "talk")?;
    service(&bed, "services")
}

fn down_leaves_nothing() -> Result<()> {
    let bed = Bed::up(Config::new("bed-gone").nodes(1))?;
    bed.run_pod("default/a", "n1", &[])?;
    bed.pod("default/a")?;
    assert!(!remains("bed-gone").is_empty(), "the test sees what there is while it is up");
    drop(bed);
    is_gone("bed-gone")
}

fn an_interrupted_run_leaves_nothing() -> Result<()> {
    let mut run = start_run("bed-interrupted");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGTERM).unwrap();
    run.wait().unwrap();
    is_gone("bed-interrupted")
}

fn a_killed_run_is_cleaned_by_the_next() -> Result<()> {
    for next in ["bed-killed", "bed-next"] {
        let mut run = start_run("bed-killed");
        run.kill().unwrap();
        run.wait().unwrap();
        assert!(!remains("bed-killed").is_empty(), "a killed run cannot clean up");
        let next = Bed::up(Config::new(next))?;
        next.kubectl(&["get", "namespaces"])?;
        drop(next);
        is_gone("bed-killed")?;
    }
    is_gone("bed-next")
}

/// A program that brings up a bed, at the moment when there is something to clean up but it is not done.
fn start_run(name: &str) -> std::process::Child {
    let run = Command::new(env!("CARGO_BIN_EXE_durward-bed"))
        .args(["--name", name, "up", "--nodes", "1"])
        .spawn()
        .unwrap();
    wait("the run has a node", || {
        let holder = format!("/var/tmp/durward-bed/{name}/n1/containerd.pid");
        fs::metadata(&holder).map(drop).map_err(|error| format!("{holder}: {error}"))
    })
    .unwrap();
    run
}

/// Polls only because dead processes stay listed until the machine's first process has seen to them.
fn is_gone(bed: &str) -> Result<()> {
    wait(&format!("nothing of bed {bed} remains"), || match remains(bed) {
        remains if remains.is_empty() => Ok(()),
        remains => Err(remains.join("\n")),
    })
}

/// Everything on the machine that has to do with the bed: what it knows of, and processes, mounts and links.
fn remains(bed: &str) -> Vec<String> {
    let mut found = Bed::belongings(bed).unwrap();
    let mark = format!("durward-bed/{bed}/");
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let ours = command.contains(&mark) || cgroup.contains(&format!("/bed-{bed}-"));
        ours.then(|| format!("process {}: {command}", entry.path().display()))
    });
    found.extend(processes);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&mark) || line.contains(&format!("bed-{bed}-")))
            .map(Into::into),
    );
    found
}
