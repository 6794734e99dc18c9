//! The NetworkLogging resource on a real API server: what it takes, what it refuses, what people see. Needs root.

use std::process::ExitCode;

use durward_e2e::{Bed, Config, Error, Result, Test, run};
use serde_json::{Value, json};

const CRD: &str = include_str!("../../crds/networkloggings.yaml");

fn main() -> ExitCode {
    let tests = [
        Test { name: "what_is_absent_is_stored_as_false", run: what_is_absent_is_stored_as_false },
        Test { name: "what_cannot_be_meant_is_refused", run: what_cannot_be_meant_is_refused },
        Test { name: "people_see_settings_and_progress", run: people_see_settings_and_progress },
    ];
    run(Config::new("networklogging"), install, &tests)
}

fn install(bed: &Bed) -> Result<()> {
    bed.apply(CRD)?;
    bed.wait("NetworkLogging is served", || bed.kubectl(&["get", "nl"]).map(Some)).map(drop)
}

fn object(name: &str, spec: Value) -> String {
    let (kind, version) = ("NetworkLogging", "networking.gke.io/v1alpha1");
    json!({ "kind": kind, "apiVersion": version, "metadata": { "name": name }, "spec": spec }).to_string()
}

fn what_is_absent_is_stored_as_false(bed: &Bed) -> Result<()> {
    let off = json!({ "log": false, "delegate": false });
    for (spec, deny) in [
        (json!({}), off.clone()),
        (json!({ "cluster": { "deny": {} } }), off.clone()),
        (json!({ "cluster": { "deny": { "log": true } } }), json!({ "log": true, "delegate": false })),
        (
            json!({ "cluster": { "deny": { "log": true, "delegate": true } } }),
            json!({ "log": true, "delegate": true }),
        ),
    ] {
        bed.apply(&object("default", spec))?;
        let stored = bed.json(&["get", "networklogging", "default"])?;
        assert_eq!(stored["spec"], json!({ "cluster": { "allow": off, "deny": deny } }));
    }
    Ok(())
}

fn what_cannot_be_meant_is_refused(bed: &Bed) -> Result<()> {
    let cases = [
        ("other", json!({}), &["its name must be \"default\""][..]),
        (
            "default",
            json!({ "cluster": { "deny": { "delegate": true } } }),
            &["spec.cluster.deny", "delegate: true needs log: true beside it"][..],
        ),
        (
            "default",
            json!({ "cluster": { "allow": { "log": false, "delegate": true } } }),
            &["spec.cluster.allow", "delegate: true needs log: true beside it"][..],
        ),
        (
            "default",
            json!({ "cluster": { "deny": { "log": "true" } } }),
            &["spec.cluster.deny.log", "boolean"][..],
        ),
    ];
    bed.apply(&object("default", json!({})))?;
    for (name, spec, texts) in cases {
        match bed.apply(&object(name, spec)) {
            Err(Error::Command { output, .. }) => {
                for text in texts {
                    assert!(output.contains(text), "{output:?} does not say {text:?}");
                }
            }
            other => panic!("{name} was not refused: {other:?}"),
        }
    }
    let stored = bed.json(&["get", "nl", "default"])?;
    let off = json!({ "log": false, "delegate": false });
    assert_eq!(
        stored["spec"],
        json!({ "cluster": { "allow": off, "deny": off } }),
        "what was refused left no trace"
    );
    Ok(())
}

fn people_see_settings_and_progress(bed: &Bed) -> Result<()> {
    bed.apply(&object("default", json!({ "cluster": { "deny": { "log": true } } })))?;
    let status = json!({ "status": { "progress": "1/2", "conditions": [{
        "type": "Valid", "status": "True", "reason": "Valid", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }] } });
    let patch = ["patch", "nl", "default", "--subresource=status", "--type=merge", "-p"];
    bed.kubectl(&[&patch[..], &[&status.to_string()]].concat())?;
    let shown = bed.kubectl(&["get", "nl"])?;
    let rows: Vec<Vec<_>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["NAME", "ALLOW", "ALLOW-DELEGATE", "DENY", "DENY-DELEGATE", "VALID", "NODES", "AGE"]
    );
    assert_eq!(rows[1][..7], ["default", "false", "false", "true", "false", "True", "1/2"]);
    Ok(())
}
