//! Who a peer is: blocks, nodes, pods of the host's network (IO).

use durward_e2e::{Bed, Matrix, Protocol, Result, Server};
use serde_json::{Value, json};

use crate::common::{ALLOWED, DENIED, OTHER, PORT, app, listen, pods, policy};

pub(crate) fn blocks_match_pods(bed: &Bed) -> Result<()> {
    let ns = "blocks";
    let [a, b, c] = pods(bed, ns, [("a", "n1"), ("b", "n1"), ("c", "n2")])?;
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    policy(
        bed,
        ns,
        "v4-but-b",
        json!({"podSelector": app("c"), "ingress": [
            {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("{}/32", b.v4)]}}]},
        ]}),
    )?;
    let ([c4, c6], tcp) = (c.sockets(PORT), Protocol::Tcp);
    Matrix::new()
        .probe("a → c", &a.network, tcp, c4, ALLOWED)
        .probe("b → c, excepted", &b.network, tcp, c4, DENIED)
        .probe("a → c, which no IPv4 block holds", &a.network, tcp, c6, DENIED)
        .hold()
}

pub(crate) fn blocks_match_hosts(bed: &Bed) -> Result<()> {
    let ns = "outside";
    let [a, c] = pods(bed, ns, [("a", "n1"), ("c", "n2")])?;
    let (a, c) = (&a.pod, &c.pod);
    let (one, other) = (bed.host("n1")?, bed.host("cp")?);
    let _servers = [Server::start(&one, PORT)?, Server::start(&other, PORT)?];
    // All hosts but this one.
    let hosts = |except: &str| -> Vec<Value> {
        let (v4, v6) = bed.addresses(except);
        let block = |cidr: &str, except: String| json!({"ipBlock": {"cidr": cidr, "except": [except]}});
        vec![block("172.30.0.0/24", format!("{v4}/32")), block("fd00:30::/64", format!("{v6}/128"))]
    };
    policy(
        bed,
        ns,
        "hosts",
        json!({
            "podSelector": app("c"), "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": hosts("cp")}], "egress": [{"to": hosts("n1")}],
        }),
    )?;
    let mut matrix = Matrix::new().tcp(a, c, PORT, DENIED).tcp(c, a, PORT, DENIED);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        for to in c.sockets(PORT) {
            matrix = matrix.probe("a host → c", &one, protocol, to, ALLOWED);
            matrix = matrix.probe("the excepted host → c", &other, protocol, to, DENIED);
        }
        for address in bed.host_addresses("cp") {
            matrix = matrix.probe("c → a host", &c.network, protocol, (address, PORT).into(), ALLOWED);
        }
        for address in bed.host_addresses("n1") {
            matrix =
                matrix.probe("c → the excepted host", &c.network, protocol, (address, PORT).into(), DENIED);
        }
    }
    matrix.hold()
}

pub(crate) fn the_own_node(bed: &Bed) -> Result<()> {
    let ns = "own-node";
    let [pod] = pods(bed, ns, [("pod", "n2")])?;
    let pod = &pod.pod;
    policy(bed, ns, "nothing", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    let mut matrix = Matrix::new();
    let hosts = [("n2", ALLOWED), ("n1", DENIED)].map(|(name, expected)| (name, bed.host(name), expected));
    let hosts = hosts.map(|(name, host, expected)| Ok((name, host?, expected)));
    let hosts = hosts.into_iter().collect::<Result<Vec<_>>>()?;
    let servers: Result<Vec<_>> = hosts.iter().map(|(_, host, _)| Server::start(host, PORT)).collect();
    let _servers = servers?;
    for (name, host, expected) in &hosts {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            for to in pod.sockets(PORT) {
                matrix = matrix.probe(format!("{name} → pod"), host, protocol, to, expected.clone());
            }
        }
        // Not by UDP: a server on the pod's own node answers from the address that its route to the pod names.
        for protocol in [Protocol::Tcp, Protocol::Icmp] {
            for address in bed.host_addresses(name) {
                let (what, to) = (format!("pod → {name}"), (address, PORT).into());
                matrix = matrix.probe(what, &pod.network, protocol, to, expected.clone());
            }
        }
    }
    matrix.hold()
}

pub(crate) fn the_hosts_network(bed: &Bed) -> Result<()> {
    let ns = "host-network";
    let [c] = pods(bed, ns, [("c", "n2")])?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": ns, "name": "host", "labels": {"app": "host"}},
        "spec": {
            "nodeName": "n1", "hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "bed.local/pause:1", "imagePullPolicy": "Never"}],
        },
    });
    bed.apply(&pod.to_string())?;
    let host = listen(bed, ns, "host")?;
    let (c, host) = (&c.pod, &host.pod);
    // It is no subject, though it has the label; and no peer, though it has the label.
    policy(bed, ns, "in", json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": app("host")}]}]}))?;
    let matrix = Matrix::new().tcp(host, c, PORT, DENIED).udp(host, c, PORT, DENIED).ping(host, c, DENIED);
    matrix.tcp(c, host, PORT, ALLOWED).udp(c, host, PORT, ALLOWED).ping(c, host, ALLOWED).hold()?;
    let to_host = json!([{"to": [{"podSelector": app("host")}]}]);
    policy(bed, ns, "out", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": to_host}))?;
    Matrix::new().tcp(c, host, PORT, DENIED).udp(c, host, PORT, DENIED).hold()?;
    // What matches it is its node's address.
    let peers = [format!("{}/32", host.v4), format!("{}/128", host.v6)];
    let peers: Vec<_> = peers.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
    let ports = json!([{"port": PORT}]);
    policy(
        bed,
        ns,
        "node",
        json!({
            "podSelector": app("c"), "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
        }),
    )?;
    let matrix = Matrix::new().tcp(host, c, PORT, ALLOWED).tcp(host, c, OTHER, DENIED);
    matrix.tcp(c, host, PORT, ALLOWED).tcp(c, host, OTHER, DENIED).hold()
}
