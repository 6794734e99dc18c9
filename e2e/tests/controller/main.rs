//! The controller on a real API server, without nodes' daemons: the tests are the nodes. Needs root.
//!
//! They share one cluster, and in it the one NetworkLogging object: they run one after the other.

#![expect(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

mod fixture;
mod future;
mod node;

use std::process::ExitCode;

use durward_e2e::{Config, Result, Test, run};
use durward_proto::{Direction, LogMode, Logging, PortKey, Verdict};
use fixture::{CRD, Cluster, Daemon, on_cluster};
use future::Lists;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let tests = [
        Test {
            name: "the_object_is_made_when_it_is_missing_and_a_users_edit_stays",
            run: |bed| on_cluster(bed, the_object_is_made_and_an_edit_stays),
        },
        Test {
            name: "an_invalid_object_is_ignored_whole",
            run: |bed| on_cluster(bed, an_invalid_object_is_ignored_whole),
        },
        Test {
            name: "what_is_not_understood_fails_closed_and_nothing_else_does",
            run: |bed| on_cluster(bed, what_is_not_understood_fails_closed),
        },
        Test {
            name: "where_lists_are_not_streamed_each_kind_is_listed_once",
            run: |bed| on_cluster(bed, where_lists_are_not_streamed),
        },
    ];
    run(Config::new("controller"), |_| Ok(()), &tests)
}

fn deny(deny: LogMode, generation: i64) -> Logging {
    Logging { allow: LogMode::Off, deny, generation }
}

fn set_deny(cluster: &Cluster<'_>, log: Value, delegate: Value) -> Result<String> {
    let patch = json!({ "spec": { "cluster": { "deny": { "log": log, "delegate": delegate } } } });
    cluster.bed.kubectl(&["patch", "nl", "default", "--type=merge", "-p", &patch.to_string()])
}

/// The status of a condition of the object.
fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).map_or(&Value::Null, |c| &c["status"])
}

async fn the_object_is_made_and_an_edit_stays(cluster: Cluster<'_>) -> Result<()> {
    cluster.bed.kubectl(&["delete", "crd", "--ignore-not-found", "networkloggings.networking.gke.io"])?;
    cluster.add_nodes(&["node-1", "node-2"])?;
    // The CRD may well come after the controller.
    let daemon = Daemon::start(&cluster).await;
    daemon.reads("/readyz", 503, "NetworkLogging: ").await;
    cluster.bed.apply(CRD)?;
    daemon.reads("/readyz", 200, "in sync").await;
    let made =
        cluster.bed.wait("the object is made", || cluster.bed.json(&["get", "nl", "default"]).map(Some))?;
    let off = json!({ "log": false, "delegate": false });
    assert_eq!(made["spec"], json!({ "cluster": { "allow": off, "deny": off } }));

    let (mut one, mut two) = (daemon.node("node-1").await, daemon.node("node-2").await);
    one.sees("logging is off", |view| view.logging == deny(LogMode::Off, 1)).await;
    two.sees("logging is off", |view| view.logging == deny(LogMode::Off, 1)).await;

    set_deny(&cluster, json!(true), json!(false))?;
    one.sees("the user's edit", |view| view.logging == deny(LogMode::All, 2)).await;
    two.sees("the user's edit", |view| view.logging == deny(LogMode::All, 2)).await;
    one.acknowledge().await;
    let at = |progress: &'static str| {
        move |object: &Value| {
            object["status"]["progress"] == progress && object["status"]["observedGeneration"] == 2
        }
    };
    let object = cluster.object("one of two nodes has it", at("1/2"))?;
    assert_eq!(
        (condition(&object, "Valid"), condition(&object, "Applied")),
        (&json!("True"), &json!("False"))
    );
    two.acknowledge().await;
    let object = cluster.object("both nodes have it", at("2/2"))?;
    assert_eq!(condition(&object, "Applied"), "True");
    assert_eq!(object["status"]["nodesApplied"], 2);
    assert_eq!(object["status"]["lastValid"]["cluster"]["deny"]["log"], true);
    cluster.events("UpdateNetworkLogging", 1)?;

    // Another controller finds everything as it should be, and changes nothing.
    daemon.stop().await;
    assert!(one.is_told_to_come_back().await);
    let daemon = Daemon::start(&cluster).await;
    let mut one = daemon.node("node-1").await;
    one.sees("the user's edit", |view| view.logging == deny(LogMode::All, 2)).await;
    one.acknowledge().await;
    let object = cluster.object("the new controller counts", at("1/2"))?;
    assert_eq!(object["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(
        (&object["metadata"]["generation"], &object["spec"]["cluster"]["deny"]["log"]),
        (&json!(2), &json!(true))
    );
    // What is settled is not written again and again: the next write is the next change's.
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    two = daemon.node("node-2").await;
    two.sees("the user's edit", |view| view.logging == deny(LogMode::All, 2)).await;
    two.acknowledge().await;
    let settled = version(&cluster.object("both nodes have it", at("2/2"))?);
    daemon.sees_a_new_namespace(&cluster, "quiet").await;
    assert_eq!(version(&cluster.object("both nodes have it", at("2/2"))?), settled);

    // Deleted, the object is made anew, all false.
    cluster.bed.kubectl(&["delete", "nl", "default"])?;
    one.sees("logging is off", |view| view.logging.deny == LogMode::Off).await;
    let again =
        cluster.object("it is made anew", |object| object["metadata"]["uid"] != made["metadata"]["uid"])?;
    assert_eq!(again["spec"], json!({ "cluster": { "allow": off, "deny": off } }));
    one.sees("the new object", |view| view.logging == deny(LogMode::Off, 1)).await;
    daemon.stop().await;
    Ok(())
}

async fn an_invalid_object_is_ignored_whole(cluster: Cluster<'_>) -> Result<()> {
    // All nodes are to have what was valid last, and only one of them takes part.
    cluster.bed.kubectl(&["delete", "node", "--ignore-not-found", "node-2"])?;
    cluster.add_nodes(&["node-1"])?;
    cluster.install()?;
    let daemon = Daemon::start(&cluster).await;
    let mut node = daemon.node("node-1").await;
    cluster.object("the object is made", |_| true)?;
    set_deny(&cluster, json!(true), json!(true))?;
    node.sees("a valid edit", |view| view.logging.deny == LogMode::Delegated).await;
    let in_force = node.view.logging;
    cluster.object("it is kept as the last valid", |object| {
        object["status"]["lastValid"]["cluster"]["deny"]["delegate"] == true
    })?;

    // An older CRD lets anything in.
    cluster.install_without_rules()?;
    set_deny(&cluster, json!(false), json!(true))?;
    cluster.object("it is called invalid", |object| condition(object, "Valid") == "False")?;
    let [event] = &cluster.events("InvalidNetworkLogging", 1)?[..] else { unreachable!("one was asked for") };
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&json!("Warning"), &json!("NetworkLogging")));
    let note = event["note"].as_str().unwrap_or_default();
    assert!(note.contains("spec.cluster.deny: delegate is true and log is not"), "{note}");
    set_deny(&cluster, json!("yes"), json!(true))?;
    cluster.events("InvalidNetworkLogging", 2)?;

    // A controller that starts now finds the last valid configuration in the status.
    daemon.stop().await;
    let daemon = Daemon::start(&cluster).await;
    let mut node = daemon.node("node-1").await;
    node.sees("the last valid configuration", |view| view.logging == in_force).await;
    node.acknowledge().await;
    let object = cluster.object("its nodes are counted", |object| condition(object, "Applied") == "True")?;
    assert_eq!(condition(&object, "Valid"), "False");
    cluster.events("InvalidNetworkLogging", 2)?;

    // Corrected, it takes effect.
    cluster.install()?;
    set_deny(&cluster, json!(true), json!(false))?;
    node.sees("the correction", |view| view.logging.deny == LogMode::All).await;
    cluster.object("it is called valid", |object| condition(object, "Valid") == "True")?;
    daemon.stop().await;
    Ok(())
}

/// What today's API server refuses or drops: the name of a policy and of the one pod that it selects, the fields of its
/// spec that are stored instead, and what is said of them.
fn not_understood() -> Vec<(&'static str, Value, &'static str)> {
    let from = |peer: Value| json!({ "ingress": [{ "from": [peer] }] });
    let newer = json!([{ "key": "app", "operator": "Gt", "values": ["1"] }]);
    vec![
        ("field", json!({ "tier": 7 }), "spec.tier: unknown field"),
        ("inner", json!({ "ingress": [{ "action": "Deny" }] }), "spec.ingress[0].action: unknown field"),
        (
            "peer",
            from(json!({ "serviceSelector": {} })),
            "spec.ingress[0].from[0].serviceSelector: unknown field",
        ),
        (
            "type",
            json!({ "policyTypes": ["Ingress", "Sideways"] }),
            "spec.policyTypes[1]: \"Sideways\" is unknown",
        ),
        (
            "block",
            from(json!({ "ipBlock": { "cidr": "10.0.0.0/33" } })),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            "hole",
            from(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"] } })),
            "spec.ingress[0].from[0].ipBlock.except[0]: \"11.0.0.0/9\" is not within",
        ),
        (
            "operator",
            from(json!({ "podSelector": { "matchExpressions": newer } })),
            "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator: \"Gt\" is unknown",
        ),
    ]
}

async fn what_is_not_understood_fails_closed(cluster: Cluster<'_>) -> Result<()> {
    cluster.add_nodes(&["node-1"])?;
    cluster.install()?;
    cluster.bed.namespace("shop", &[])?;
    let named = |name: String| json!([{ "name": "c", "ports": [{ "name": name, "containerPort": 80 }] }]);
    let long = json!({ future::ANNOTATION: json!({ "containers": named("x".repeat(300)) }).to_string() });
    cluster.add_pod("shop", "db", "node-1", "10.0.0.1", long)?;
    cluster.add_pod("shop", "free", "node-1", "10.0.0.2", json!({}))?;
    let odd = not_understood();
    for (number, (name, ..)) in odd.iter().enumerate() {
        cluster.add_pod("shop", name, "node-1", &format!("10.0.1.{number}"), json!({}))?;
    }
    let daemon = Daemon::start(&cluster).await;
    let mut node = daemon.node("node-1").await;
    // What the view says of a connection from `free` to a pod's port 80.
    let verdict = |view: &durward_proto::NodeView, name: &str| {
        let (uid, _) = view.pods.iter().find(|(_, pod)| &*pod.name == name)?;
        let free = "10.0.0.2".parse().ok()?;
        Some(view.act(uid, Direction::Ingress, free, PortKey::new(6, 80)).map(|act| act.verdict))
    };
    node.sees("all pods", |view| view.pods.len() == 2 + odd.len()).await;
    let [event] = &cluster.events("PodNotUnderstood", 1)?[..] else { unreachable!("one was asked for") };
    assert!(event["note"].as_str().unwrap_or_default().contains("a name of 300 bytes"), "{event}");

    // All policies say that everybody may come, as far as the API server knows. That to `db` is all that it seems.
    let policy = |name: &str, annotations: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "shop", "name": name, "annotations": annotations },
            "spec": {
                "podSelector": { "matchLabels": { "app": name } },
                "ingress": [{ "from": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] }],
            },
        })
    };
    cluster.bed.apply(&policy("db", json!({})).to_string())?;
    for (name, fields, _) in &odd {
        cluster.bed.apply(&policy(name, json!({ future::ANNOTATION: fields.to_string() })).to_string())?;
    }
    node.sees("the odd ones' pods closed, one open, one not isolated", |view| {
        odd.iter().all(|(name, ..)| verdict(view, name) == Some(Some(Verdict::Deny)))
            && verdict(view, "db") == Some(Some(Verdict::Allow))
            && verdict(view, "free") == Some(None)
    })
    .await;
    let events = cluster.events("PolicyFailsClosed", odd.len())?;
    for (name, _, text) in &odd {
        let event = events.iter().find(|event| event["regarding"]["name"] == *name);
        let event = event.unwrap_or_else(|| panic!("no Event on {name}: {events:?}"));
        assert_eq!((&event["type"], &event["metadata"]["namespace"]), (&json!("Warning"), &json!("shop")));
        assert!(event["note"].as_str().unwrap_or_default().contains(text), "{event}");
        assert!(event["regarding"]["uid"].is_string(), "kubectl describe finds it by the policy's uid");
    }
    let failing = |number: usize| format!("durward_controller_policies_failing_closed {number}\n");
    daemon.reads("/metrics", 200, &failing(odd.len())).await;

    // Corrected, it opens; deleted, it is forgotten.
    let mend = format!("{}-", future::ANNOTATION);
    cluster.bed.kubectl(&["-n", "shop", "annotate", "networkpolicy", "field", &mend])?;
    node.sees("the corrected policy", |view| verdict(view, "field") == Some(Some(Verdict::Allow))).await;
    daemon.reads("/metrics", 200, &failing(odd.len() - 1)).await;
    cluster.bed.kubectl(&["-n", "shop", "delete", "networkpolicy", "hole"])?;
    node.sees("no policy", |view| verdict(view, "hole") == Some(None)).await;
    daemon.reads("/metrics", 200, &failing(odd.len() - 2)).await;
    daemon.requests.asked_for_each_kind_once();
    daemon.stop().await;
    Ok(())
}

async fn where_lists_are_not_streamed(cluster: Cluster<'_>) -> Result<()> {
    cluster.add_nodes(&["node-1"])?;
    cluster.install()?;
    cluster.bed.namespace("paged", &[])?;
    cluster.add_pod("paged", "first", "node-1", "10.9.0.1", json!({}))?;
    let daemon = Daemon::start_with(&cluster, Lists::Refused).await;
    let mut node = daemon.node("node-1").await;
    let has = |view: &durward_proto::NodeView, name: &str| view.pods.values().any(|pod| &*pod.name == name);
    node.sees("the pod of the list", |view| has(view, "first")).await;
    cluster.add_pod("paged", "second", "node-1", "10.9.0.2", json!({}))?;
    node.sees("the pod of the watch", |view| has(view, "second")).await;
    daemon.requests.listed_and_watched_each_kind_once();
    daemon.stop().await;
    Ok(())
}
