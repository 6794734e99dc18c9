//! What became of the specs of a Ginkgo suite (pure).

use std::time::Duration;

use serde::Deserialize;

use crate::{Result, error::Named};

/// The first lines of a table of [`Report::row`]s.
pub(super) const HEAD: &str = "\
| CNI plugin and kube-proxy | passed | failed | skipped | minutes |
|---|---|---|---|---|
";

/// What became of each spec.
#[derive(Debug)]
pub(super) struct Report {
    passed: Vec<String>,
    failed: Vec<String>,
    skipped: Vec<String>,
    took: Duration,
}

/// What is of interest in Ginkgo's report.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    suite_succeeded: bool,
    special_suite_failure_reasons: Option<Vec<String>>,
    /// In nanoseconds.
    run_time: u64,
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
}

impl Report {
    /// Reads what `--ginkgo.json-report` writes.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(text).named("reading the suite's report")?;
        let mut report =
            Self { passed: Vec::new(), failed: Vec::new(), skipped: Vec::new(), took: Duration::ZERO };
        for suite in suites {
            report.add(suite);
        }
        Ok(report)
    }

    fn add(&mut self, suite: Suite) {
        self.took += Duration::from_nanos(suite.run_time);
        let failed_before = self.failed.len();
        for spec in suite.spec_reports.into_iter().flatten() {
            let (is_spec, name) = (spec.leaf_node_type == "It", spec.name());
            match spec.state.as_str() {
                "passed" if is_spec => self.passed.push(name),
                "skipped" | "pending" if is_spec => self.skipped.push(name),
                // What goes before or after all of them.
                "passed" | "skipped" => {}
                state => self.failed.push(format!("{name} ({state})")),
            }
        }
        if !suite.suite_succeeded && self.failed.len() == failed_before {
            let reasons = suite.special_suite_failure_reasons.unwrap_or_default().join("; ");
            self.failed.push(format!("the suite as a whole ({reasons})"));
        }
    }

    /// Whether all passed but those whose name has `exempt` in it.
    pub(super) fn conforms(&self, exempt: &str) -> bool {
        !self.passed.is_empty()
            && self.failed.is_empty()
            && self.skipped.iter().all(|spec| spec.contains(exempt))
    }

    /// A line of a table.
    pub(super) fn row(&self, run: &str) -> String {
        let [passed, failed, skipped] = [&self.passed, &self.failed, &self.skipped].map(Vec::len);
        let minutes = self.took.as_secs_f64() / 60.0;
        format!("| {run} | {passed} | {failed} | {skipped} | {minutes:.0} |\n")
    }

    /// What did not pass, by name.
    pub(super) fn details(&self, run: &str) -> String {
        let line = |what, spec| format!("{run}: {what}: {spec}\n");
        let failed = self.failed.iter().map(|spec| line("failed", spec));
        failed.chain(self.skipped.iter().map(|spec| line("skipped", spec))).collect()
    }
}

impl Spec {
    fn name(&self) -> String {
        let containers = self.container_hierarchy_texts.iter().flatten().map(String::as_str);
        containers.chain([self.leaf_node_text.as_str()]).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(text: &str, state: &str) -> Value {
        json!({"ContainerHierarchyTexts": ["Netpol"], "LeafNodeType": "It", "LeafNodeText": text, "State": state})
    }

    fn report(succeeded: bool, specs: &[Value]) -> Report {
        let suite = json!([{
            "SuiteSucceeded": succeeded, "SpecialSuiteFailureReasons": null, "RunTime": 90_000_000_000_u64, "SpecReports": specs,
        }]);
        Report::parse(suite.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn it_conforms_if_all_passed_but_the_exempt() {
        let all = report(true, &[spec("a", "passed"), spec("b [SCTP]", "skipped")]);
        assert!(all.conforms("[SCTP]"));
        assert!(!all.conforms("[UDP]"), "skipped for no known reason");
        assert_eq!(all.row("ptp"), "| ptp | 1 | 0 | 1 | 2 |\n");
        assert_eq!(all.details("ptp"), "ptp: skipped: Netpol b [SCTP]\n");
    }

    #[test]
    fn whatever_did_not_pass_has_failed() {
        for state in ["failed", "panicked", "timedout", "interrupted", "aborted", "of a newer version"] {
            let one = report(false, &[spec("a", "passed"), spec("b", state)]);
            assert!(!one.conforms(""), "{state}");
            assert_eq!(one.details("ptp"), format!("ptp: failed: Netpol b ({state})\n"));
        }
    }

    #[test]
    fn nothing_run_and_a_suite_that_failed_do_not_conform() {
        assert!(!report(true, &[]).conforms(""));
        assert!(!report(false, &[spec("a", "passed")]).conforms(""));
        let cleanup = json!({
            "ContainerHierarchyTexts": null, "LeafNodeType": "AfterSuite", "LeafNodeText": "", "State": "failed",
        });
        assert!(!report(false, &[spec("a", "passed"), cleanup]).conforms(""));
    }
}
