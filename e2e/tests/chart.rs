//! The chart: what it asks for, what it refuses, and what stays when it goes. Needs root for the API server.
#![allow(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use durward_e2e::{Bed, Config, Result, Test, programs, run};
use serde_json::Value;

fn main() -> ExitCode {
    let tests = [
        Test { name: "helm_finds_nothing_to_mend", run: lint },
        Test { name: "the_enforcer_has_four_capabilities_and_no_token", run: enforcer },
        Test { name: "the_controller_reads_and_writes_only_its_own", run: controller },
        Test { name: "wrong_values_are_refused_by_name", run: wrong_values },
        Test { name: "the_definition_is_the_generated_one_and_outlives_the_release", run: outlives },
    ];
    run(Config::new("chart"), |_| Ok(()), &tests)
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/durward")
}

/// Helm's output, or what it complained of.
fn helm(args: &[&str]) -> std::result::Result<String, String> {
    let output = programs::command("helm").unwrap().args(args).arg(chart()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The rendered objects of one kind.
fn rendered(kind: &str) -> Vec<Value> {
    let text = helm(&["template", "durward", "--namespace", "durward-system"]).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text);
    let values = documents.map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap());
    values.filter(|value| value["kind"] == kind).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn lint(_: &Bed) -> Result<()> {
    let said = helm(&["lint", "--strict"]).unwrap();
    assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
    Ok(())
}

fn enforcer(_: &Bed) -> Result<()> {
    let [set] = &rendered("DaemonSet")[..] else { panic!("one DaemonSet") };
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(strings(&security["capabilities"]["add"]), ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE"]);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert!(security["privileged"].is_null());
    // Their default profiles would forbid what the capabilities are for.
    assert_eq!(security["appArmorProfile"]["type"], "Unconfined");
    assert_eq!(security["seLinuxOptions"]["type"], "spc_t");
    // By the Service's address in its environment; a name would have to be resolved by pods behind its policies.
    assert!(!strings(&container["args"]).iter().any(|arg| arg.starts_with("--controller")));
    assert_eq!(pod["enableServiceLinks"], true);
    assert_eq!(pod["tolerations"], serde_json::json!([{"operator": "Exists"}]));
    Ok(())
}

fn controller(_: &Bed) -> Result<()> {
    let [role] = &rendered("ClusterRole")[..] else { panic!("one ClusterRole") };
    for rule in role["rules"].as_array().unwrap() {
        let (resources, verbs) = (strings(&rule["resources"]), strings(&rule["verbs"]));
        let writes: Vec<_> = verbs.iter().filter(|verb| !["get", "list", "watch"].contains(verb)).collect();
        match resources[..] {
            ["networkloggings"] => assert_eq!(writes, [&"create"]),
            ["networkloggings/status"] => assert_eq!(writes, [&"patch"]),
            ["events"] => assert_eq!(writes, [&"create"]),
            _ => assert_eq!(writes, Vec::<&&str>::new(), "{resources:?}"),
        }
        assert!(!verbs.contains(&"*") && !resources.contains(&"*"));
    }
    let [deployment] = &rendered("Deployment")[..] else { panic!("one Deployment") };
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true, "it must never wait for the pod network that it configures");
    assert_eq!(pod["containers"][0]["securityContext"]["runAsNonRoot"], true);
    Ok(())
}

fn wrong_values(_: &Bed) -> Result<()> {
    for (value, named) in [
        ("enforcer.unknownPods=maybe", "unknownPods"),
        ("enforcer.services=maybe", "services"),
        ("controller.grpcPort=70000", "grpcPort"),
        ("enforcer.controllerAddress=controller", "controllerAddress"),
        ("enforcers.metricsPort=1", "enforcers"),
    ] {
        let refusal = helm(&["template", "durward", "--set", value]).unwrap_err();
        assert!(refusal.contains(named), "{value}: {refusal}");
    }
    Ok(())
}

fn outlives(bed: &Bed) -> Result<()> {
    let generated = chart().join("../../crds/networkloggings.yaml");
    let generated: Value = serde_norway::from_str(&std::fs::read_to_string(generated).unwrap()).unwrap();
    let [shipped] = &rendered("CustomResourceDefinition")[..] else { panic!("one definition") };
    assert_eq!(shipped["spec"], generated["spec"]);

    let chart = chart();
    let place = ["--namespace", "durward-system"];
    let install = ["upgrade", "--install", "durward", chart.to_str().unwrap(), "--create-namespace"];
    bed.helm(&[&install[..], &place].concat())?;
    let object = serde_json::json!({
        "apiVersion": "networking.gke.io/v1alpha1", "kind": "NetworkLogging",
        "metadata": {"name": "default"}, "spec": {"cluster": {"deny": {"log": true}}},
    });
    bed.wait("the definition is served", || bed.apply(&object.to_string()).map(Some))?;
    bed.helm(&[&install[..], &place, &["--set", "logFilter=debug"]].concat())?;
    bed.helm(&[&["uninstall", "durward"], &place[..]].concat())?;
    let kept = bed.json(&["get", "networklogging", "default"])?;
    assert_eq!(kept["spec"]["cluster"]["deny"]["log"], true, "{kept}");
    // And a second installation takes it over.
    bed.helm(&[&install[..], &place].concat()).map(drop)
}
