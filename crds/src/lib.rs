//! The NetworkLogging resource. Pure: types, and the CRD that is generated from them.
//!
//! `networkloggings.yaml` beside this crate's `Cargo.toml` is what a cluster is given; a test holds it
//! to these types. What the API server can refuse, it refuses: the rules are in the schema.

// The derive repeats the types in a private module, where the lint finds them.
#![allow(unreachable_pub)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The only name that a NetworkLogging object can have.
pub const DEFAULT_NAME: &str = "default";

/// What is logged, cluster-wide.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[kube(
    group = "networking.gke.io",
    version = "v1alpha1",
    kind = "NetworkLogging",
    plural = "networkloggings",
    singular = "networklogging",
    shortname = "nl",
    status = "NetworkLoggingStatus",
    derive = "PartialEq",
    doc = "NetworkLogging says which verdicts on connections of pods are logged. \
           There is one for the cluster, named \"default\".",
    validation = Rule::new("self.metadata.name == 'default'").message(
        "the cluster has one NetworkLogging object, and its name must be \"default\""
    ),
    printcolumn(name = "Allow", type_ = "boolean", json_path = ".spec.cluster.allow.log",
        description = "Whether allowed connections are logged"),
    printcolumn(name = "Allow-Delegate", type_ = "boolean", json_path = ".spec.cluster.allow.delegate",
        description = "Whether only those allowed by annotated policies are"),
    printcolumn(name = "Deny", type_ = "boolean", json_path = ".spec.cluster.deny.log",
        description = "Whether denied connections are logged"),
    printcolumn(name = "Deny-Delegate", type_ = "boolean", json_path = ".spec.cluster.deny.delegate",
        description = "Whether only those denied in annotated namespaces are"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type==\"Valid\")].status",
        description = "Whether this configuration can be used"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.progress",
        description = "How many nodes run this configuration, of how many"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NetworkLoggingSpec {
    /// What is logged in the whole cluster.
    #[serde(default)]
    pub cluster: ClusterLogging,
}

/// What is logged in the whole cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ClusterLogging {
    /// Connections that a policy allows.
    #[serde(default)]
    pub allow: VerdictLogging,
    /// Connections that policies deny.
    #[serde(default)]
    pub deny: VerdictLogging,
}

/// Whether connections of one verdict are logged.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = Rule::new("!self.delegate || self.log").message(
    "delegate: true needs log: true beside it: set log to true, or delegate to false"
))]
pub struct VerdictLogging {
    /// Whether they are logged.
    #[serde(default)]
    pub log: bool,
    /// Whether only those are logged that an annotation asks for: for allowed connections,
    /// policy.network.gke.io/enable-logging on a policy that allows them; for denied ones,
    /// policy.network.gke.io/enable-deny-logging on the namespace of the pod that is protected.
    #[serde(default)]
    pub delegate: bool,
}

/// How far the configuration has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkLoggingStatus {
    /// The metadata.generation that this status speaks of.
    pub observed_generation: Option<i64>,
    /// How many nodes run the configuration that is in force.
    pub nodes_applied: Option<i32>,
    /// How many nodes the cluster has.
    pub nodes_total: Option<i32>,
    /// Both numbers for people, as "applied/total".
    pub progress: Option<String>,
    /// The last valid configuration. It stays in force while the object's own is invalid.
    pub last_valid: Option<LastValid>,
    /// "Valid": the object's configuration can be used. "Applied": all nodes run it.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A configuration that was valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct LastValid {
    /// The metadata.generation that brought it.
    pub generation: i64,
    /// The configuration.
    pub cluster: ClusterLogging,
}

/// One thing that is so, or is not.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// True, False or Unknown.
    pub status: String,
    /// The metadata.generation that it was observed of.
    pub observed_generation: Option<i64>,
    /// Since when it is so, in RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

/// The CRD as the API server takes it.
pub fn definition() -> CustomResourceDefinition {
    NetworkLogging::crd()
}

/// The CRD as `networkloggings.yaml` has it.
///
/// # Errors
///
/// None in practice: the CRD is made of maps with string keys, which YAML can write.
pub fn yaml() -> Result<String, serde_norway::Error> {
    let body = serde_norway::to_string(&definition())?;
    Ok(format!("# Generated by `cargo run -p durward-crds` from crds/src/lib.rs.\n{body}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_agrees_with_the_types() {
        let file = include_str!("../networkloggings.yaml");
        assert!(
            file == yaml().unwrap(),
            "crds/networkloggings.yaml is not what the types say: run `cargo run -p durward-crds`"
        );
    }

    #[test]
    fn what_is_absent_is_false() {
        let spec: NetworkLoggingSpec = serde_json::from_str(r#"{"cluster":{"deny":{"log":true}}}"#).unwrap();
        let deny = VerdictLogging { log: true, delegate: false };
        let allow = VerdictLogging { log: false, delegate: false };
        assert_eq!(spec.cluster, ClusterLogging { allow, deny });
        assert_eq!(serde_json::from_str::<NetworkLoggingSpec>("{}").unwrap(), NetworkLoggingSpec::default());
    }
}
