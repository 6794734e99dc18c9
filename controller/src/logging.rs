//! What the NetworkLogging object comes to. Pure: facts in, decisions out; `keeper` carries them out.

use std::fmt::Write as _;

use durward_crds::{
    ClusterLogging, Condition, LastValid, NetworkLoggingSpec, NetworkLoggingStatus, VerdictLogging,
};
use durward_proto::{LogMode, Logging};
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why an object's configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidLogging {
    /// A field is not what it should be.
    #[error(
        "NetworkLogging \"default\": spec.{field}: {problem}; put it right, what was valid last stays in force"
    )]
    Field { field: String, problem: String },
    /// `delegate` without `log`.
    #[error(
        "NetworkLogging \"default\": spec.cluster.{0}: delegate is true and log is not; set log to true, or \
         delegate to false, what was valid last stays in force"
    )]
    DelegateWithoutLog(&'static str),
}

/// The object as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) cluster: Result<ClusterLogging, InvalidLogging>,
    /// What can be read of it.
    pub(crate) status: NetworkLoggingStatus,
}

/// Reads the stored object: an older CRD can have let anything in.
pub(crate) fn read(object: &DynamicObject) -> Seen {
    let part = |name| object.data.get(name).filter(|value| !value.is_null());
    let status = part("status").and_then(|status| decode(status).ok()).unwrap_or_default();
    Seen {
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        cluster: read_spec(part("spec")),
        status,
    }
}

fn read_spec(spec: Option<&Value>) -> Result<ClusterLogging, InvalidLogging> {
    let spec: NetworkLoggingSpec = spec.map(decode).transpose()?.unwrap_or_default();
    check(spec.cluster)
}

fn check(cluster: ClusterLogging) -> Result<ClusterLogging, InvalidLogging> {
    for (name, VerdictLogging { log, delegate }) in [("allow", cluster.allow), ("deny", cluster.deny)] {
        if delegate && !log {
            return Err(InvalidLogging::DelegateWithoutLog(name));
        }
    }
    Ok(cluster)
}

fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, InvalidLogging> {
    serde_path_to_error::deserialize(value).map_err(|error| InvalidLogging::Field {
        field: error.path().to_string(),
        problem: error.inner().to_string(),
    })
}

/// What the nodes are told of a valid configuration.
fn logging(valid: LastValid) -> Logging {
    let mode = |verdict: VerdictLogging| match (verdict.log, verdict.delegate) {
        (false, _) => LogMode::Off,
        (true, false) => LogMode::All,
        (true, true) => LogMode::Delegated,
    };
    let LastValid { generation, cluster: ClusterLogging { allow, deny } } = valid;
    Logging { allow: mode(allow), deny: mode(deny), generation }
}

/// How many nodes run the logging of `generation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) generation: i64,
    pub(crate) applied: usize,
    pub(crate) total: usize,
}

/// What is to be told to people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tell {
    /// A change takes effect.
    Updated(String),
    /// The object is ignored.
    Invalid(String),
}

/// What is known of the object, and what of it is in force.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    seen: Option<Seen>,
    valid: Option<LastValid>,
    /// The configuration that people know to be in force.
    announced: Option<ClusterLogging>,
    /// The invalid generation that people were told of.
    refused: Option<(String, i64)>,
}

impl Decision {
    /// The object is as `seen`, or is missing. Gives what is to be told.
    pub(crate) fn hear(&mut self, seen: Option<Seen>) -> Option<Tell> {
        let before = self.seen.take();
        let Some(seen) = seen else {
            self.valid = None;
            return None;
        };
        if before.as_ref().is_none_or(|before| before.uid != seen.uid) {
            // Another object, or the first sight of it: what counts is what it says itself.
            self.valid = seen.status.last_valid.filter(|valid| check(valid.cluster).is_ok());
            self.announced = self.announced.or(self.valid.map(|valid| valid.cluster));
        }
        let tell = match &seen.cluster {
            Ok(cluster) => {
                self.refused = None;
                self.valid = Some(LastValid { generation: seen.generation, cluster: *cluster });
                let announced = self.announced.replace(*cluster).unwrap_or_default();
                (announced != *cluster).then(|| Tell::Updated(describe(*cluster)))
            }
            Err(invalid) => {
                let refused = Some((seen.uid.clone(), seen.generation));
                let told = self.refused == refused || said_to_be_invalid(&seen);
                self.refused = refused;
                (!told).then(|| Tell::Invalid(invalid.to_string()))
            }
        };
        self.seen = Some(seen);
        tell
    }

    /// What is in force.
    pub(crate) fn logging(&self) -> Logging {
        self.valid.map(logging).unwrap_or_default()
    }

    /// The object, if there is one.
    pub(crate) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// The status that the object should have, after `before`.
    pub(crate) fn status(
        &self,
        progress: Progress,
        before: &NetworkLoggingStatus,
        now: &str,
    ) -> Option<NetworkLoggingStatus> {
        let seen = self.seen.as_ref()?;
        let in_force = self.logging().generation;
        let applied = if progress.generation == in_force { progress.applied } else { 0 };
        let counts = format!("{applied}/{}", progress.total);
        let valid = match &seen.cluster {
            Ok(_) => ("True", "Valid", "the configuration is in force".to_owned()),
            Err(invalid) => ("False", "InvalidNetworkLogging", invalid.to_string()),
        };
        let what = match &seen.cluster {
            Ok(_) => "it".to_owned(),
            Err(_) => format!("what was valid last (generation {in_force})"),
        };
        let applied_to = if applied == progress.total {
            ("True", "AllNodes", format!("all nodes run {what}"))
        } else {
            ("False", "Progressing", format!("{counts} nodes run {what}"))
        };
        let condition = |type_: &str, (status, reason, message): (&str, &str, String)| {
            let same = |old: &&Condition| old.type_ == type_ && old.status == status;
            let since = before.conditions.iter().find(same).map(|old| &*old.last_transition_time);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                observed_generation: Some(seen.generation),
                last_transition_time: since.unwrap_or(now).to_owned(),
                reason: reason.to_owned(),
                message,
            }
        };
        let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        Some(NetworkLoggingStatus {
            observed_generation: Some(seen.generation),
            nodes_applied: Some(number(applied)),
            nodes_total: Some(number(progress.total)),
            progress: Some(counts),
            last_valid: self.valid,
            conditions: vec![condition("Valid", valid), condition("Applied", applied_to)],
        })
    }
}

/// Whether the object's status says already that this generation is invalid.
fn said_to_be_invalid(seen: &Seen) -> bool {
    let says = |condition: &Condition| {
        let Condition { type_, status, observed_generation, .. } = condition;
        (type_ == "Valid") && (status == "False") && (*observed_generation == Some(seen.generation))
    };
    seen.status.conditions.iter().any(says)
}

fn describe(cluster: ClusterLogging) -> String {
    let mut text = "now in force:".to_owned();
    for (name, VerdictLogging { log, delegate }) in [("allow", cluster.allow), ("deny", cluster.deny)] {
        // Writing to a String cannot fail.
        let _ = write!(text, " {name}.log={log} {name}.delegate={delegate}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(generation: i64, spec: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "networking.gke.io/v1alpha1", "kind": "NetworkLogging",
            "metadata": { "name": "default", "uid": "uid-1", "generation": generation },
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn seen(generation: i64, deny_log: bool, deny_delegate: bool) -> Seen {
        let deny = json!({ "log": deny_log, "delegate": deny_delegate });
        read(&object(generation, json!({ "cluster": { "deny": deny } }), Value::Null))
    }

    fn deny(generation: i64, deny: LogMode) -> Logging {
        Logging { allow: LogMode::Off, deny, generation }
    }

    #[test]
    fn what_is_stored_is_read_or_refused_by_field() {
        let cluster = |spec| read(&object(1, spec, Value::Null)).cluster;
        let off = Ok(ClusterLogging::default());
        for nothing in [Value::Null, json!({}), json!({"cluster": {}}), json!({"cluster": {"deny": {}}})] {
            assert_eq!(cluster(nothing), off);
        }
        let text = cluster(json!({"cluster": {"deny": {"log": "yes"}}})).unwrap_err().to_string();
        assert!(
            text.contains("spec.cluster.deny.log: invalid type: string \"yes\", expected a boolean"),
            "{text}"
        );
        let delegate = cluster(json!({"cluster": {"allow": {"delegate": true}}}));
        assert_eq!(delegate, Err(InvalidLogging::DelegateWithoutLog("allow")));
    }

    #[test]
    fn a_change_is_told_once_and_all_false_at_first_is_none() {
        let mut decision = Decision::default();
        assert_eq!(decision.hear(Some(seen(1, false, false))), None);
        assert_eq!(decision.logging(), deny(1, LogMode::Off));
        let told = decision.hear(Some(seen(2, true, false)));
        let text = "now in force: allow.log=false allow.delegate=false deny.log=true deny.delegate=false";
        assert_eq!(told, Some(Tell::Updated(text.to_owned())));
        assert_eq!(decision.hear(Some(seen(2, true, false))), None);
        assert_eq!(decision.logging(), deny(2, LogMode::All));
        decision.hear(Some(seen(3, true, true)));
        assert_eq!(decision.logging(), deny(3, LogMode::Delegated));
    }

    #[test]
    fn an_object_that_is_deleted_turns_logging_off() {
        let mut decision = Decision::default();
        decision.hear(Some(seen(2, true, false)));
        assert_eq!(decision.hear(None), None);
        assert_eq!(decision.logging(), Logging::default());
        // The one that the controller makes in its place.
        let mut made = seen(1, false, false);
        made.uid = "uid-2".to_owned();
        assert!(matches!(decision.hear(Some(made)), Some(Tell::Updated(_))));
        assert_eq!(decision.logging(), deny(1, LogMode::Off));
    }

    #[test]
    fn an_invalid_object_is_ignored_whole_and_told_once() {
        let mut decision = Decision::default();
        decision.hear(Some(seen(2, true, false)));
        let invalid = seen(3, false, true);
        assert!(matches!(decision.hear(Some(invalid.clone())), Some(Tell::Invalid(_))));
        assert_eq!(decision.hear(Some(invalid.clone())), None);
        assert_eq!(decision.logging(), deny(2, LogMode::All));
        let status = decision
            .status(Progress { generation: 2, applied: 1, total: 1 }, &Default::default(), "now")
            .unwrap();
        let conditions: Vec<_> = status.conditions.iter().map(|c| (&*c.type_, &*c.status)).collect();
        assert_eq!(conditions, [("Valid", "False"), ("Applied", "True")]);

        // A controller that starts later finds all of that in the status, and tells it no second time.
        let mut later = Decision::default();
        let stored = Seen { status, ..invalid };
        assert_eq!(later.hear(Some(stored)), None);
        assert_eq!(later.logging(), deny(2, LogMode::All));
        // Back to what was in force all the time: no change takes effect.
        assert_eq!(later.hear(Some(seen(4, true, false))), None);
    }

    #[test]
    fn a_status_counts_the_nodes_that_run_what_is_in_force() {
        let mut decision = Decision::default();
        decision.hear(Some(seen(2, true, false)));
        let progress = |generation, applied| {
            let status =
                decision.status(Progress { generation, applied, total: 2 }, &Default::default(), "now");
            let status = status.unwrap();
            (status.progress.unwrap(), status.conditions[1].status.clone())
        };
        assert_eq!(progress(1, 2), ("0/2".to_owned(), "False".to_owned()));
        assert_eq!(progress(2, 1), ("1/2".to_owned(), "False".to_owned()));
        assert_eq!(progress(2, 2), ("2/2".to_owned(), "True".to_owned()));
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_is_so() {
        let mut decision = Decision::default();
        decision.hear(Some(seen(1, false, false)));
        let progress = Progress { generation: 1, applied: 1, total: 1 };
        let first = decision.status(progress, &Default::default(), "first").unwrap();
        assert_eq!(decision.status(progress, &first, "later"), Some(first));
    }
}
