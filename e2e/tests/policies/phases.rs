//! Pods that end: while they terminate, and once they are completed (IO).

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use durward_e2e::{Bed, Matrix, Result};
use serde_json::{Value, json};

use crate::common::{ALLOWED, DENIED, OTHER, PORT, app, listen, pods, policy};
use crate::ingress_from;

/// Where a node's CNI plugin keeps who has which address.
const ADDRESSES: &str = "/run/ipam/bed";

pub(crate) fn terminating(bed: &Bed) -> Result<()> {
    let ns = "terminating";
    let [b] = pods(bed, ns, [("b", "n1")])?;
    for (name, node) in [("a", "n1"), ("c", "n2")] {
        // Its only process is the first one, which does not hear that it should end.
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": ns, "name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 3600,
                "containers": [{"name": "pause", "image": "bed.local/pause:1", "imagePullPolicy": "Never"}],
            },
        });
        bed.apply(&pod.to_string())?;
    }
    let [a, c] = [listen(bed, ns, "a")?, listen(bed, ns, "c")?];
    let (a, b, c) = (&a.pod, &b.pod, &c.pod);
    bed.kubectl(&["-n", ns, "delete", "pod", "a", "c", "--wait=false"])?;
    // Both as peers and as subjects.
    policy(bed, ns, "to-c", ingress_from("c", "a"))?;
    let matrix = Matrix::new().tcp(a, c, PORT, ALLOWED).tcp(a, c, OTHER, DENIED).tcp(b, c, PORT, DENIED);
    matrix.tcp(c, b, PORT, ALLOWED).hold()?;
    policy(bed, ns, "to-c", ingress_from("c", "b"))?;
    Matrix::new().tcp(a, c, PORT, DENIED).tcp(b, c, PORT, ALLOWED).hold()?;
    let still = bed.json(&["-n", ns, "get", "pods", "a", "c"])?;
    for pod in still["items"].as_array().into_iter().flatten() {
        assert!(pod["metadata"]["deletionTimestamp"].is_string(), "{pod}");
        assert_eq!(pod["status"]["phase"], "Running", "{pod}");
    }
    bed.kubectl(&["-n", ns, "delete", "pod", "a", "c", "--grace-period=0", "--force"]).map(drop)
}

pub(crate) fn completed(bed: &Bed) -> Result<()> {
    let ns = "completed";
    let [c, d] = pods(bed, ns, [("c", "n1"), ("d", "n1")])?;
    let until_told = "until [ -e /tmp/end ]; do /bin/busybox sleep 0.1; done";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": ns, "name": "job", "labels": {"app": "job"}},
        "spec": {
            "nodeName": "n2", "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "job", "image": "bed.local/pause:1", "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "sh", "-c", until_told],
            }],
        },
    });
    bed.apply(&pod.to_string())?;
    let job = listen(bed, ns, "job")?;
    let (c, d) = (&c.pod, &d.pod);
    // It isolates the job's pod, and mentions it on ingress and on egress.
    policy(
        bed,
        ns,
        "job",
        json!({"podSelector": app("job"), "ingress": [{"from": [{"podSelector": app("d")}]}]}),
    )?;
    policy(
        bed,
        ns,
        "in",
        json!({"podSelector": app("c"), "ingress": [{"from": [{"podSelector": app("job")}]}]}),
    )?;
    let to_job = json!([{"to": [{"podSelector": app("job")}]}]);
    policy(bed, ns, "out", json!({"podSelector": app("d"), "policyTypes": ["Egress"], "egress": to_job}))?;
    let matrix = Matrix::new().tcp(c, &job.pod, PORT, DENIED).tcp(d, &job.pod, PORT, ALLOWED);
    matrix.tcp(&job.pod, c, PORT, ALLOWED).tcp(d, c, PORT, DENIED).hold()?;

    let (v4, v6) = (job.pod.v4, job.pod.v6);
    drop(job);
    bed.exec(&format!("{ns}/job"), &["/bin/busybox", "touch", "/tmp/end"])?;
    bed.wait("the job's pod has succeeded", || Ok((phase(bed, ns)? == "Succeeded").then_some(())))?;
    bed.wait("its address is free", || {
        let file = Path::new(ADDRESSES).join(v4.to_string());
        Ok(bed.on("n2", || !file.exists())?.then_some(()))
    })?;
    next_address(bed, v4, v6)?;
    bed.run_pod(&format!("{ns}/next"), "n2", &[("app", "next")])?;
    let next = listen(bed, ns, "next")?;
    assert_eq!((next.pod.v4, next.pod.v6), (v4, v6), "the next pod has the same addresses");
    let matrix = Matrix::new().tcp(c, &next.pod, PORT, ALLOWED).tcp(d, &next.pod, PORT, DENIED);
    matrix.tcp(&next.pod, c, PORT, DENIED).tcp(&next.pod, d, PORT, ALLOWED).hold()?;
    assert_eq!(phase(bed, ns)?, "Succeeded", "the job's pod is still there");
    Ok(())
}

fn phase(bed: &Bed, namespace: &str) -> Result<Value> {
    Ok(bed.json(&["-n", namespace, "get", "pod", "job"])?["status"]["phase"].clone())
}

/// Lets the CNI plugin of the second node give these addresses next: it goes on after the last ones that it gave.
fn next_address(bed: &Bed, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    let before = [
        Ipv4Addr::from_bits(v4.to_bits() - 1).to_string(),
        Ipv6Addr::from_bits(v6.to_bits() - 1).to_string(),
    ];
    bed.on("n2", || {
        for (range, address) in before.iter().enumerate() {
            fs::write(Path::new(ADDRESSES).join(format!("last_reserved_ip.{range}")), address).unwrap();
        }
    })
}
