//! What is asked of a bed's cluster: kubectl, helm, waiting for a state, and a diagnosis when it does not come (IO).

use serde_json::Value;

use crate::{Bed, Error, Result, config::CONTROL_PLANE, error::Named, process, programs, wait};

impl Bed {
    /// Runs kubectl as administrator and gives what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.client("kubectl", args, None)
    }

    /// Applies a manifest.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.client("kubectl", &["apply", "-f", "-"], Some(yaml))
    }

    /// Runs helm as administrator and gives what it printed.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        self.client("helm", args, None)
    }

    /// Runs kubectl with `-o json`, and reads what it printed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).named(format!("reading what `kubectl {}` printed", args.join(" ")))
    }

    /// Runs a command in a pod, called `namespace/name`, and gives what it printed.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let (namespace, name) = split(pod)?;
        self.kubectl(&[&["-n", namespace, "exec", name, "--"], command].concat())
    }

    /// Makes a namespace with these labels, and waits until pods can be made in it.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: serde_json::Map<_, _> = labels.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        let namespace = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        self.apply(&namespace.to_string())?;
        if self.config.nodes == 0 { Ok(()) } else { self.wait_service_account(name) }
    }

    pub(crate) fn wait_service_account(&self, namespace: &str) -> Result<()> {
        self.wait(&format!("namespace {namespace} has its ServiceAccount"), || {
            self.kubectl(&["-n", namespace, "get", "serviceaccount", "default"]).map(Some)
        })
        .map(drop)
    }

    /// Polls until `condition` gives a value; errors count as "not yet". When it does not come within [`crate::PATIENCE`], the
    /// error tells the state of the cluster.
    pub fn wait<T>(&self, what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let result = wait(what, || match condition() {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(String::new()),
            Err(error) => Err(error.to_string()),
        });
        result.map_err(|error| match error {
            Error::Deadline { what, after, state } => {
                Error::Deadline { what, after, state: format!("{state}\n{}", self.diagnosis()) }
            }
            other => other,
        })
    }

    /// The state of the cluster for a human: nodes, pods, the latest events, the ends of the daemons' logs.
    pub fn diagnosis(&self) -> String {
        let ask = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| error.to_string());
        let events = ask(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let events: Vec<_> = events.lines().collect();
        let mut text = format!(
            "--- nodes and pods:\n{}{}--- latest events:\n{}\n",
            ask(&["get", "nodes", "-o", "wide"]),
            ask(&["get", "pods", "-A", "-o", "wide"]),
            events[events.len().saturating_sub(20)..].join("\n"),
        );
        if ask(&["get", "namespace", "durward-system"]).contains("Active") {
            for daemon in ["deployment/durward-controller", "daemonset/durward-enforcer"] {
                let logs = ["-n", "durward-system", "logs", "--all-pods", "--prefix", "--tail=20", daemon];
                text += &format!("--- {daemon}:\n{}\n", ask(&logs));
            }
        }
        for node in self.nodes() {
            for daemon in ["containerd", "kubelet", "kube-proxy"] {
                text += &format!("{node} {}\n", process::state(&self.folder().join(&node), daemon));
            }
        }
        text
    }

    fn client(&self, program: &str, args: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = programs::command(program)?;
        command.env("KUBECONFIG", self.kubeconfig()).args(args);
        self.on(CONTROL_PLANE, || match input {
            Some(input) => process::feed(&mut command, input),
            None => process::output(&mut command),
        })?
    }
}

/// `namespace/name`, apart.
pub(crate) fn split(pod: &str) -> Result<(&str, &str)> {
    pod.split_once('/').ok_or_else(|| Error::unfit(format!("a pod is named namespace/name, not {pod}")))
}
