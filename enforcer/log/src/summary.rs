//! What was suppressed, as a line. Pure.
//!
//! A summary has none of the keys of a verdict's line but `node_name` and `timestamp`, so that no reader takes
//! it for one.

use std::collections::BTreeMap;
use std::sync::Arc;

use durward_proto::{Direction, Leaves};
use serde::Serialize;

use crate::line::{Policies, line_of};
use crate::time;

/// How many different things one summary tells apart; what exceeds it is told in one sum a disposition.
const MAX_ENTRIES: usize = 64;

/// What lines were suppressed of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suppressed {
    /// Whether the connections were allowed.
    pub allowed: bool,
    /// The direction, seen from the pod.
    pub direction: Direction,
    /// Namespace and name of the pod whose policies spoke, if it is known.
    pub pod: Option<(Arc<str>, Arc<str>)>,
    /// The policies, if they are known.
    pub policies: Option<Leaves>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    lines: u64,
    packets: u64,
}

/// Counts what is suppressed between two summary lines.
#[derive(Debug, Default)]
pub struct Summary {
    entries: BTreeMap<Suppressed, Counts>,
    /// What there was no entry for: denied, allowed.
    others: [Counts; 2],
}

impl Summary {
    /// Counts lines that were not written, and denied packets that no line tells of.
    pub fn add(&mut self, what: Suppressed, lines: u64, packets: u64) {
        let full = self.entries.len() >= MAX_ENTRIES;
        let counts = match self.entries.get_mut(&what) {
            Some(counts) => counts,
            None if full => &mut self.others[usize::from(what.allowed)],
            None => self.entries.entry(what).or_default(),
        };
        counts.lines += lines;
        counts.packets += packets;
    }

    /// Whether nothing was suppressed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The summary as a line of the file, with its newline.
    pub fn json(&self, node: &str, now_ns: i64) -> String {
        let lists = |what: &Suppressed| what.policies.as_ref().map(Leaves::list);
        let lists: Vec<_> = self.entries.keys().map(lists).collect();
        let entries = self.entries.iter().zip(&lists).map(|((what, &counts), list)| {
            let Suppressed { allowed, direction, pod, policies: _ } = what;
            let policies = list.as_ref().map(|list| Policies(&list.0));
            let (policies, isolated_by) = if *allowed { (policies, None) } else { (None, policies) };
            EntryJson {
                disposition: disposition(*allowed),
                direction: Some(*direction),
                pod_name: pod.as_ref().map(|(_, name)| &**name),
                pod_namespace: pod.as_ref().map(|(namespace, _)| &**namespace),
                policies,
                isolated_by,
                lines: counts.lines,
                packets: counts.packets,
            }
        });
        let others = [false, true].into_iter().filter_map(|allowed| {
            let counts = self.others[usize::from(allowed)];
            (counts != Counts::default()).then(|| EntryJson {
                disposition: disposition(allowed),
                direction: None,
                pod_name: None,
                pod_namespace: None,
                policies: None,
                isolated_by: None,
                lines: counts.lines,
                packets: counts.packets,
            })
        });
        line_of(&SummaryJson {
            suppressed: entries.chain(others).collect(),
            node_name: node,
            timestamp: time::rfc3339(now_ns),
        })
    }
}

fn disposition(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

#[derive(Serialize)]
struct SummaryJson<'a> {
    suppressed: Vec<EntryJson<'a>>,
    node_name: &'a str,
    timestamp: String,
}

#[derive(Serialize)]
struct EntryJson<'a> {
    disposition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<Direction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Policies<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated_by: Option<Policies<'a>>,
    lines: u64,
    packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_proto::{Attribution, Policy};

    fn what(pod: &str, allowed: bool) -> Suppressed {
        let policy = Policy { namespace: "shop".into(), name: "p".into(), logged: false };
        Suppressed {
            allowed,
            direction: Direction::Ingress,
            pod: Some(("shop".into(), pod.into())),
            policies: Some(Attribution::new([policy]).into()),
        }
    }

    #[test]
    fn a_summary_says_how_many_of_what() {
        let mut summary = Summary::default();
        assert!(summary.is_empty());
        summary.add(what("a", false), 1, 7);
        summary.add(what("a", false), 2, 5);
        summary.add(what("b", true), 4, 0);
        let expected = concat!(
            r#"{"suppressed":[{"disposition":"deny","direction":"ingress","pod_name":"a","pod_namespace":"shop","#,
            r#""isolated_by":[{"kind":"NetworkPolicy","name":"p","namespace":"shop"}],"lines":3,"packets":12},"#,
            r#"{"disposition":"allow","direction":"ingress","pod_name":"b","pod_namespace":"shop","#,
            r#""policies":[{"kind":"NetworkPolicy","name":"p","namespace":"shop"}],"lines":4,"packets":0}],"#,
            r#""node_name":"node-1","timestamp":"1970-01-01T00:00:00.000000005Z"}"#,
            "\n"
        );
        assert_eq!(summary.json("node-1", 5), expected);
    }

    #[test]
    fn a_summary_of_very_many_things_stays_short_and_counts_all() {
        let mut summary = Summary::default();
        for number in 0..1000 {
            summary.add(what(&format!("pod-{number}"), number % 2 == 0), 1, 0);
        }
        let json: serde_json::Value = serde_json::from_str(&summary.json("n", 0)).unwrap();
        let entries = json["suppressed"].as_array().unwrap();
        assert_eq!(entries.len(), MAX_ENTRIES + 2);
        assert_eq!(entries.iter().map(|entry| entry["lines"].as_u64().unwrap()).sum::<u64>(), 1000);
    }
}
