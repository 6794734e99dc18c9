//! Ports by their names, and very many of them (IO).

use durward_e2e::{Bed, Matrix, Protocol, Result, Server};
use serde_json::{Value, json};

use crate::common::{ALLOWED, DENIED, OTHER, PORT, app, delete_policy, listen, pods, policy};

pub(crate) fn named(bed: &Bed) -> Result<()> {
    let ns = "named";
    let [client] = pods(bed, ns, [("client", "n1")])?;
    // Two pods, one name, two numbers. The second's is a native sidecar's; the first's init container does not count.
    let container = |name: &str, port: u16| {
        let ports = [json!({"name": "web", "containerPort": port})];
        json!({"name": name, "image": "bed.local/pause:1", "imagePullPolicy": "Never", "ports": ports})
    };
    let (mut init, mut sidecar, mut idle) =
        (container("init", OTHER), container("sidecar", OTHER), container("idle", 1));
    init["command"] = json!(["/bin/busybox", "true"]);
    sidecar["restartPolicy"] = json!("Always");
    idle["ports"] = json!([]);
    for (name, init, container) in [("one", init, container("web", PORT)), ("two", sidecar, idle)] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": ns, "name": name, "labels": {"app": name, "tier": "web"}},
            "spec": {
                "nodeName": "n2", "terminationGracePeriodSeconds": 0,
                "initContainers": [init], "containers": [container],
            },
        });
        bed.apply(&pod.to_string())?;
    }
    let [one, two] = [listen(bed, ns, "one")?, listen(bed, ns, "two")?];
    let (client, one, two) = (&client.pod, &one.pod, &two.pod);
    let named = Matrix::new().tcp(client, one, PORT, ALLOWED).tcp(client, one, OTHER, DENIED);
    let named =
        named.tcp(client, two, PORT, DENIED).tcp(client, two, OTHER, ALLOWED).udp(client, one, PORT, DENIED);
    let web = json!({"matchLabels": {"tier": "web"}});
    // Nobody has the name for UDP.
    let web_ports = json!([{"port": "web"}, {"port": "web", "protocol": "UDP"}]);
    policy(bed, ns, "in", json!({"podSelector": web, "ingress": [{"ports": web_ports}]}))?;
    named.hold()?;
    delete_policy(bed, ns, "in")?;
    Matrix::new().tcp(client, one, OTHER, ALLOWED).hold()?;
    policy(
        bed,
        ns,
        "out",
        json!({"podSelector": app("client"), "policyTypes": ["Egress"], "egress": [
            {"to": [{"podSelector": web}], "ports": web_ports},
        ]}),
    )?;
    named.hold()
}

pub(crate) fn a_thousand(bed: &Bed) -> Result<()> {
    let ns = "thousand";
    let [a, b, c] = pods(bed, ns, [("a", "n1"), ("b", "n2"), ("c", "n2")])?;
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    // Every other port, up to the one that all listen on. Half of the peers are pods, of which there is one; half are blocks:
    // one holds all pods of this node but one, and one the control plane.
    let first = PORT - 2 * 999;
    let ports: Vec<_> = (first..=PORT).step_by(2).map(|port| json!({"port": port})).collect();
    let [x, y, z, _] = b.v4.octets();
    let block = |cidr: String, except: String| json!({"ipBlock": {"cidr": cidr, "except": [except]}});
    let unheard_of = (0..498).map(|n| {
        block(
            format!("192.168.{}.{}/30", n / 64, n % 64 * 4),
            format!("192.168.{}.{}/31", n / 64, n % 64 * 4),
        )
    });
    let blocks = unheard_of.chain([
        block(format!("{x}.{y}.{z}.0/24"), format!("{}/32", b.v4)),
        block("172.30.0.0/28".into(), "172.30.0.8/29".into()),
    ]);
    let named = (0..499).map(|n| format!("unheard-of-{n}")).chain(["a".to_owned()]);
    let peers: Vec<Value> = named.map(|name| json!({"podSelector": app(&name)})).chain(blocks).collect();
    assert_eq!((ports.len(), peers.len()), (1000, 1000));
    policy(
        bed,
        ns,
        "much",
        json!({
            "podSelector": app("c"), "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
        }),
    )?;
    let ends = [first, first + 1, PORT - 1000, PORT - 999];
    let servers: Result<Vec<_>> = ends.iter().map(|&port| Server::start(&c.network, port)).collect();
    let _servers = servers?;
    let plane = bed.host("cp")?;
    let mut matrix = Matrix::new().ping(a, c, DENIED).udp(a, c, PORT, DENIED);
    matrix = matrix.tcp(c, a, PORT, ALLOWED).tcp(c, a, OTHER, DENIED).tcp(c, b, PORT, DENIED);
    for port in [first, first + 1, PORT - 1000, PORT - 999, PORT, OTHER] {
        let expected = if port % 2 == 0 { ALLOWED } else { DENIED };
        matrix = matrix.tcp(a, c, port, expected.clone()).tcp(b, c, port, DENIED);
        matrix = matrix.probe("a block → c", &plane, Protocol::Tcp, c.sockets(port)[0], expected);
    }
    matrix.hold()
}
