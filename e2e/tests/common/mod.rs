//! What the tests on a whole cluster share: pods that listen, policies in one line, the log of verdicts (IO).
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::fs;

use durward_e2e::{Bed, Outcome, Pod, Result, Server};
use serde_json::{Value, json};

/// The port that policies of these tests speak of.
pub(crate) const PORT: u16 = 7000;
/// Another one, on which every pod listens as well.
pub(crate) const OTHER: u16 = 7001;

pub(crate) const ALLOWED: Outcome = Outcome::Allowed;
pub(crate) const DENIED: Outcome = Outcome::Denied;

/// A pod whose two ports echo, TCP and UDP.
pub(crate) struct Listening {
    pub(crate) pod: Pod,
    _servers: [Server; 2],
}

/// Makes pods in a namespace of their own, each labelled `app=<name>`, and starts their servers.
pub(crate) fn pods<const N: usize>(
    bed: &Bed,
    namespace: &str,
    names: [(&str, &str); N],
) -> Result<[Listening; N]> {
    bed.namespace(namespace, &[("team", namespace)])?;
    for (name, node) in names {
        bed.run_pod(&format!("{namespace}/{name}"), node, &[("app", name)])?;
    }
    let listening: Result<Vec<_>> = names.iter().map(|(name, _)| listen(bed, namespace, name)).collect();
    Ok(listening?.try_into().unwrap_or_else(|_| unreachable!("as many as names")))
}

/// Starts the servers of a pod that was made elsewhere.
pub(crate) fn listen(bed: &Bed, namespace: &str, name: &str) -> Result<Listening> {
    let pod = bed.pod(&format!("{namespace}/{name}"))?;
    let servers = [Server::start(&pod.network, PORT)?, Server::start(&pod.network, OTHER)?];
    Ok(Listening { pod, _servers: servers })
}

/// Applies a NetworkPolicy with this spec.
pub(crate) fn policy(bed: &Bed, namespace: &str, name: &str, spec: Value) -> Result<()> {
    annotated_policy(bed, namespace, name, json!({}), spec)
}

/// The same, with annotations.
pub(crate) fn annotated_policy(
    bed: &Bed,
    namespace: &str,
    name: &str,
    notes: Value,
    spec: Value,
) -> Result<()> {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name, "annotations": notes}, "spec": spec,
    });
    bed.apply(&policy.to_string()).map(drop)
}

pub(crate) fn delete_policy(bed: &Bed, namespace: &str, name: &str) -> Result<()> {
    bed.kubectl(&["-n", namespace, "delete", "networkpolicy", name]).map(drop)
}

/// A pod selector for the pods of one name.
pub(crate) fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// Sets what is logged, and waits until all nodes do so.
pub(crate) fn log(bed: &Bed, cluster: Value) -> Result<()> {
    let object = json!({
        "apiVersion": "networking.gke.io/v1alpha1", "kind": "NetworkLogging",
        "metadata": {"name": "default"}, "spec": {"cluster": cluster},
    });
    bed.apply(&object.to_string())?;
    bed.wait("all nodes log as they are told", || {
        let object = bed.json(&["get", "networklogging", "default"])?;
        let (status, generation) = (&object["status"], &object["metadata"]["generation"]);
        let total = status["nodesTotal"].as_i64();
        let everywhere = total == Some(bed.nodes().len() as i64) && status["nodesApplied"].as_i64() == total;
        Ok((everywhere && status["observedGeneration"] == *generation).then_some(()))
    })
}

/// The lines of a node's log of verdicts. No file is no line.
pub(crate) fn lines(bed: &Bed, node: &str) -> Result<Vec<Value>> {
    let file = bed.folder().join(node).join("log/network/policy_action.log");
    let text = fs::read_to_string(file).unwrap_or_default();
    // The last line may be in the middle of being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    Ok(whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect())
}

/// Waits for a line of the node's log that is as `is` wants it.
pub(crate) fn line(bed: &Bed, node: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    bed.wait(what, || Ok(lines(bed, node)?.into_iter().find(|line| is(line))))
}
