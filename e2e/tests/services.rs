//! Egress through Services on a whole cluster: kube-proxy as it is, by nftables on n1 and by iptables on n2. Needs root.
#![allow(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use common::{ALLOWED, DENIED, Listening, OTHER, PORT, app, line, lines, log, policy};
use durward_e2e::{
    Bed, Config, Error, Matrix, Outcome, Pod, Protocol, Proxy, Result, Server, Stream, Test, install, run,
};
use serde_json::{Value, json};

const NS: &str = "services";
/// What Services are called at.
const CALLED: u16 = 80;
/// Addresses outside of the cluster.
const EXTERNAL: [(&str, &str); 2] = [("ok", "198.51.100.1"), ("bad", "198.51.100.2")];

fn main() -> ExitCode {
    let tests = [
        Test { name: "a_call_is_judged_by_the_backend_that_it_reaches", run: by_backend },
        Test { name: "of_a_service_with_both_only_the_allowed_backends_are_reached", run: by_each_backend },
        Test { name: "a_call_that_lives_is_judged_anew_when_policies_change", run: established },
        Test { name: "the_log_shows_the_backend_and_the_service_beside_it", run: the_log },
        Test { name: "without_translation_in_sight_all_backends_must_be_allowed", run: conservative },
    ];
    run(Config::new("services").nodes(2).proxy(Proxy::Both), set_up, &tests)
}

/// Clients that may reach only `ok`'s port, on both nodes; `ok` and `bad` on both, too.
fn set_up(bed: &Bed) -> Result<()> {
    install(bed, &[])?;
    bed.namespace(NS, &[])?;
    for (name, node) in PODS {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": NS, "name": name, "labels": {"app": kind(name), "name": name, "all": "yes"}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "pause", "image": "bed.local/pause:1", "imagePullPolicy": "Never",
                "ports": [{"name": "web", "containerPort": PORT}],
            }]},
        });
        bed.apply(&pod.to_string())?;
    }
    let target = |name: &str, selector: Value, port: Value| service(name, "ClusterIP", Some(selector), port);
    let mut services = vec![
        target("wrong-port", json!({"app": "ok"}), json!(OTHER)),
        target("named", json!({"app": "ok"}), json!("web")),
        target("both", json!({"all": "yes"}), json!(PORT)),
        target("nobody", json!({"app": "nobody"}), json!(PORT)),
        target("itself-1", json!({"name": "client-1"}), json!(PORT)),
        target("itself-2", json!({"name": "client-2"}), json!(PORT)),
        service("host", "ClusterIP", None, json!(PORT)),
    ];
    for (name, address) in EXTERNAL {
        let mut one = service(name, "NodePort", Some(json!({"app": name})), json!(PORT));
        one["spec"]["externalIPs"] = json!([address]);
        services.push(one);
    }
    let host = node_addresses(bed, "n2")?.into_iter().find(IpAddr::is_ipv4).unwrap();
    services.push(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": NS, "name": "host-4", "labels": {"kubernetes.io/service-name": "host"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [host.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "tcp", "port": PORT, "protocol": "TCP"}],
    }));
    bed.apply(&json!({"apiVersion": "v1", "kind": "List", "items": services}).to_string())?;
    may_reach(bed, "ok")
}

const PODS: [(&str, &str); 6] = [
    ("client-1", "n1"),
    ("client-2", "n2"),
    ("ok-1", "n1"),
    ("ok-2", "n2"),
    ("bad-1", "n1"),
    ("bad-2", "n2"),
];

fn kind(name: &str) -> &str {
    name.split_once('-').unwrap().0
}

fn service(name: &str, kind: &str, selector: Option<Value>, target: Value) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": CALLED, "targetPort": target});
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NS, "name": name},
        "spec": {
            "type": kind, "ipFamilyPolicy": "RequireDualStack", "selector": selector,
            "ports": [port("tcp", "TCP"), port("udp", "UDP")],
        },
    })
}

/// The clients' policy: port `PORT` of these pods, TCP and UDP.
fn may_reach(bed: &Bed, kind: &str) -> Result<()> {
    let ports = json!([{"port": PORT}, {"port": PORT, "protocol": "UDP"}]);
    let egress = json!([{"to": [{"podSelector": app(kind)}], "ports": ports}]);
    policy(bed, NS, "out", json!({"podSelector": app("client"), "policyTypes": ["Egress"], "egress": egress}))
}

fn node_addresses(bed: &Bed, node: &str) -> Result<Vec<IpAddr>> {
    let object = bed.json(&["get", "node", node])?;
    let addresses = object["status"]["addresses"].as_array().unwrap().iter();
    let internal = addresses.filter(|address| address["type"] == "InternalIP");
    Ok(internal.map(|address| address["address"].as_str().unwrap().parse().unwrap()).collect())
}

/// A Service's own addresses, and its port at every node for TCP.
struct Called {
    addresses: Vec<IpAddr>,
    node_port: Option<u16>,
}

fn called(bed: &Bed, name: &str) -> Result<Called> {
    let object = bed.json(&["-n", NS, "get", "service", name])?;
    let addresses = object["spec"]["clusterIPs"].as_array().unwrap().iter();
    let port =
        object["spec"]["ports"].as_array().unwrap().iter().find(|port| port["protocol"] == "TCP").unwrap();
    Ok(Called {
        addresses: addresses.map(|address| address.as_str().unwrap().parse().unwrap()).collect(),
        node_port: port["nodePort"].as_u64().map(|port| port as u16),
    })
}

fn listening(bed: &Bed) -> Result<Vec<Listening>> {
    PODS.iter().map(|(name, _)| common::listen(bed, NS, name)).collect()
}

/// What both clients are to get from Services, by both protocols and families, and by NodePorts and external addresses.
struct Expected {
    nobody: Outcome,
    itself: Outcome,
    /// From the other node and from its own.
    host: [Outcome; 2],
}

fn assert_reached(bed: &Bed, pods: &[Listening], expected: &Expected) -> Result<()> {
    let clients: [&Pod; 2] = [&pods[0].pod, &pods[1].pod];
    let mut matrix = Matrix::new();
    for (n, client) in clients.into_iter().enumerate() {
        let itself = format!("itself-{}", n + 1);
        let services = [
            ("ok", ALLOWED),
            ("named", ALLOWED),
            ("bad", DENIED),
            ("wrong-port", DENIED),
            ("nobody", expected.nobody.clone()),
            (itself.as_str(), expected.itself.clone()),
        ];
        for (name, outcome) in services {
            for address in called(bed, name)?.addresses {
                let (what, at) =
                    (format!("{} → Service {name}", client.name), SocketAddr::from((address, CALLED)));
                // The port by that name is TCP's, and no other.
                let named = if name == "named" { expected.nobody.clone() } else { outcome.clone() };
                for (protocol, outcome) in [(Protocol::Tcp, outcome.clone()), (Protocol::Udp, named)] {
                    matrix = matrix.probe(&what, &client.network, protocol, at, outcome);
                }
            }
        }
        for ((name, external), outcome) in EXTERNAL.into_iter().zip([ALLOWED, DENIED]) {
            let Called { node_port, .. } = called(bed, name)?;
            let external = SocketAddr::new(external.parse().unwrap(), CALLED);
            let at_node = node_addresses(bed, &client.node)?.into_iter();
            for at in at_node.map(|address| SocketAddr::from((address, node_port.unwrap()))).chain([external])
            {
                let what = format!("{} → {name} from outside", client.name);
                matrix = matrix.probe(what, &client.network, Protocol::Tcp, at, outcome.clone());
            }
        }
        let host = called(bed, "host")?.addresses.into_iter().find(IpAddr::is_ipv4).unwrap();
        let (what, outcome) = (format!("{} → Service host", client.name), expected.host[n].clone());
        matrix = matrix.probe(what, &client.network, Protocol::Tcp, (host, CALLED).into(), outcome);
        for Listening { pod, .. } in &pods[2..] {
            let outcome = if kind(pod.name.split_once('/').unwrap().1) == "ok" { ALLOWED } else { DENIED };
            matrix = matrix.tcp(client, pod, PORT, outcome);
        }
    }
    matrix.hold()
}

fn by_backend(bed: &Bed) -> Result<()> {
    let (pods, _host) = (listening(bed)?, Server::start(&bed.host("n2")?, PORT)?);
    // A client's own node is always reached; kube-proxy refuses what nobody serves.
    let expected = Expected { nobody: Outcome::Refused, itself: ALLOWED, host: [DENIED, ALLOWED] };
    assert_reached(bed, &pods, &expected)
}

fn by_each_backend(bed: &Bed) -> Result<()> {
    let pods = listening(bed)?;
    let clients = [&pods[0].pod, &pods[1].pod];
    // Six backends, of which two may be reached, and each client itself.
    bed.wait("some calls are allowed and some denied", || {
        let outcomes = calls(bed, &clients)?;
        let both = [ALLOWED, DENIED].into_iter().all(|outcome| outcomes.contains(&outcome));
        let others: Vec<_> = outcomes.iter().filter(|outcome| ![ALLOWED, DENIED].contains(outcome)).collect();
        assert!(others.is_empty(), "{others:?}");
        Ok(both.then_some(()))
    })
}

/// The outcomes of a dozen calls of each client to Service `both`.
fn calls(bed: &Bed, clients: &[&Pod]) -> Result<Vec<Outcome>> {
    let addresses = called(bed, "both")?.addresses;
    let mut matrix = Matrix::new();
    for client in clients {
        for (at, _) in addresses.iter().flat_map(|at| (0..6).map(move |n| (at, n))) {
            matrix = matrix.probe("both", &client.network, Protocol::Tcp, (*at, CALLED).into(), ALLOWED);
        }
    }
    matrix.round()
}

fn established(bed: &Bed) -> Result<()> {
    let pods = listening(bed)?;
    let addresses = called(bed, "ok")?.addresses;
    let mut streams = Vec::new();
    for client in [&pods[0].pod, &pods[1].pod] {
        for &address in &addresses {
            streams.push(Stream::open(&client.network, (address, CALLED).into())?);
        }
    }
    streams.iter().try_for_each(Stream::flows)?;
    // Other rules that still allow it,
    let more = json!({"podSelector": app("client"), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": app("ok")}]}]});
    policy(bed, NS, "more", more)?;
    streams.iter().try_for_each(Stream::flows)?;
    common::delete_policy(bed, NS, "more")?;
    streams.iter().try_for_each(Stream::flows)?;
    // and rules that do not.
    may_reach(bed, "bad")?;
    streams.iter().try_for_each(Stream::is_cut)?;
    may_reach(bed, "ok")
}

fn the_log(bed: &Bed) -> Result<()> {
    let pods = listening(bed)?;
    log(bed, json!({"allow": {"log": true}, "deny": {"log": true}}))?;
    let mut matrix = Matrix::new();
    for client in [&pods[0].pod, &pods[1].pod] {
        for (name, outcome) in [("ok", ALLOWED), ("bad", DENIED)] {
            for address in called(bed, name)?.addresses {
                let at = SocketAddr::from((address, CALLED));
                matrix = matrix.probe(name, &client.network, Protocol::Tcp, at, outcome.clone());
            }
        }
    }
    matrix.hold()?;
    for (client, node) in &PODS[..2] {
        for (name, disposition) in [("ok", "allow"), ("bad", "deny")] {
            let is = |line: &Value| {
                line["src"]["pod_name"] == *client
                    && line["disposition"] == disposition
                    && line["service"]["name"] == name
            };
            let line = line(bed, node, &format!("{client}'s call to {name} is in the log"), is)?;
            assert_eq!(line["service"], json!({"name": name, "namespace": NS}), "{line}");
            assert_eq!(line["connection"]["direction"], "egress", "{line}");
            assert_eq!(line["connection"]["dest_port"], PORT, "{line}");
            let dest = &line["dest"]["pod_name"];
            let backend =
                pods.iter().find(|Listening { pod, .. }| *dest == pod.name.split_once('/').unwrap().1);
            let Some(Listening { pod, .. }) = backend else { panic!("no backend: {line}") };
            assert_eq!(kind(dest.as_str().unwrap()), name, "{line}");
            let ip: IpAddr = line["connection"]["dest_ip"].as_str().unwrap().parse().unwrap();
            assert!(pod.sockets(PORT).iter().any(|at| at.ip() == ip), "{line}");
        }
    }
    // No line speaks of a Service's own address.
    let services = ["ok", "bad"].map(|name| called(bed, name).map(|called| called.addresses));
    let services: BTreeSet<IpAddr> =
        services.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    for (_, node) in &PODS[..2] {
        let to_service = |line: &Value| {
            let ip = line["connection"]["dest_ip"].as_str().and_then(|ip| ip.parse().ok());
            ip.is_some_and(|ip: IpAddr| services.contains(&ip))
        };
        assert_eq!(lines(bed, node)?.into_iter().filter(to_service).collect::<Vec<_>>(), Vec::<Value>::new());
    }
    log(bed, json!({}))
}

fn conservative(bed: &Bed) -> Result<()> {
    install(bed, &["enforcer.services=conservative"])?;
    let (pods, _host) = (listening(bed)?, Server::start(&bed.host("n2")?, PORT)?);
    // Nobody sees which backend is meant, not even that it is the client or its node.
    let expected = Expected { nobody: DENIED, itself: DENIED, host: [DENIED, DENIED] };
    assert_reached(bed, &pods, &expected)?;
    let clients = [&pods[0].pod, &pods[1].pod];
    let outcomes = calls(bed, &clients)?;
    assert!(outcomes.iter().all(|outcome| *outcome == DENIED), "{outcomes:?}");
    // The line says so, and that it is the Service that was judged.
    log(bed, json!({"deny": {"log": true}}))?;
    let denied = calls(bed, &clients[..1])?;
    assert!(denied.contains(&DENIED), "{denied:?}");
    let of_both = |line: &Value| line["service"]["name"] == "both" && line["service"]["conservative"] == true;
    let line = line(bed, "n1", "the denied call to Service both is in the log", of_both)?;
    let at: IpAddr = line["connection"]["dest_ip"].as_str().unwrap().parse().unwrap();
    assert!(called(bed, "both")?.addresses.contains(&at), "{line}");
    log(bed, json!({}))?;
    // Once all backends are allowed, so is the call; and back to judging each.
    let all = json!({"podSelector": app("client"), "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]});
    policy(bed, NS, "all", all)?;
    bed.wait("all calls are allowed", || {
        let outcomes = calls(bed, &clients)?;
        let wrong: Vec<_> = outcomes.into_iter().filter(|outcome| *outcome != ALLOWED).collect();
        if wrong.is_empty() { Ok(Some(())) } else { Err(Error::Unfit(format!("{wrong:?}"))) }
    })?;
    common::delete_policy(bed, NS, "all")?;
    install(bed, &["enforcer.services=auto"])?;
    drop(pods);
    by_each_backend(bed)
}
