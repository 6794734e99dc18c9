//! The log of verdicts as its readers see it: a node's `policy_action.log`, and a table of its lines. Reading does IO.

use std::{
    fmt::Write,
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{Bed, Error, Result, error::Named};

/// One verdict.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// What was judged.
    pub connection: Connection,
    /// `allow` or `deny`.
    pub disposition: String,
    /// The policies that allowed it.
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// The policies that isolate the pod which denied it.
    #[serde(default)]
    pub isolated_by: Vec<Policy>,
    /// Where it came from.
    pub src: End,
    /// Where it went.
    pub dest: End,
    /// How many packets the line stands for.
    pub count: u64,
    /// Where it was judged.
    pub node_name: String,
    /// When, in RFC 3339 with nanoseconds: in the order of time when sorted as text.
    pub timestamp: String,
}

/// What was judged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the log's own names")]
pub struct Connection {
    pub src_ip: IpAddr,
    pub src_port: Option<u16>,
    pub dest_ip: IpAddr,
    pub dest_port: Option<u16>,
    pub protocol: String,
    pub direction: String,
}

/// The name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the log's own names")]
pub struct Policy {
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

/// One end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the log's own names")]
pub struct End {
    pub pod_name: Option<String>,
    pub pod_namespace: Option<String>,
    pub namespace: Option<String>,
    pub workload_kind: Option<String>,
    pub workload_name: Option<String>,
    pub instance: Option<IpAddr>,
}

impl Line {
    /// The names of the policies behind it, whatever the verdict.
    pub fn names(&self) -> Vec<&str> {
        self.policies.iter().chain(&self.isolated_by).map(|policy| policy.name.as_str()).collect()
    }

    /// Where it came from; none where the protocol has no ports.
    pub fn source(&self) -> Option<SocketAddr> {
        Some((self.connection.src_ip, self.connection.src_port?).into())
    }
}

impl End {
    /// Whether it is this pod, written `namespace/name`.
    pub fn is(&self, pod: &str) -> bool {
        pod.split_once('/') == self.pod_namespace.as_deref().zip(self.pod_name.as_deref())
    }

    fn describe(&self) -> String {
        let instance = self.instance.map(|address| address.to_string());
        let pod = self.pod_name.clone().or(instance).unwrap_or_default();
        match &self.workload_kind {
            Some(kind) => format!("{pod} ({kind})"),
            None => pod,
        }
    }
}

/// The verdicts in the log of a node, oldest first. What is no verdict (the summary of suppressed lines) is left out.
pub fn lines(bed: &Bed, node: &str) -> Result<Vec<Line>> {
    let file = bed.folder().join(node).join("log/network/policy_action.log");
    let text = match fs::read_to_string(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.at("reading", &file)?,
    };
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let verdicts = whole.lines().filter_map(|line| parse(line).transpose());
    verdicts.collect()
}

fn parse(line: &str) -> Result<Option<Line>> {
    let bad = |error| Error::Unfit(format!("line of the log `{line}`: {error}"));
    let value: Value = serde_json::from_str(line).map_err(bad)?;
    if value.get("connection").is_none() {
        return Ok(None);
    }
    serde_json::from_value(value).map(Some).map_err(bad)
}

/// The lines for people.
pub fn table(lines: &[Line]) -> String {
    let head = ["TIME", "VERDICT", "FROM", "TO", "PORT", "COUNT", "POLICIES", "NODE"];
    let mut rows = vec![head.map(String::from)];
    rows.extend(lines.iter().map(|line| {
        let time = line.timestamp.get(11..23).unwrap_or(&line.timestamp);
        let connection = &line.connection;
        let port = connection.dest_port.map_or(String::new(), |port| format!("/{port}"));
        [
            time.to_owned(),
            format!("{} {}", line.disposition, connection.direction),
            line.src.describe(),
            line.dest.describe(),
            format!("{}{port}", connection.protocol),
            line.count.to_string(),
            line.names().join(","),
            line.node_name.clone(),
        ]
    }));
    let widths: [usize; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str = r#"{"connection":{"src_ip":"10.8.1.8","src_port":45084,"dest_ip":"10.8.0.11","dest_port":6379,
        "protocol":"tcp","direction":"ingress"},"disposition":"deny","isolated_by":[{"kind":"NetworkPolicy","name":"p",
        "namespace":"default"}],"src":{"pod_name":"rogue","pod_namespace":"default","namespace":"default"},
        "dest":{"instance":"10.8.0.11"},"count":3,"node_name":"n1","timestamp":"2026-01-05T21:30:22.292379064Z"}"#;

    #[test]
    fn a_verdict_is_read_and_shown() {
        let line = parse(DENIED).unwrap().unwrap();
        assert!(line.src.is("default/rogue") && !line.dest.is("default/rogue"));
        assert_eq!(line.names(), ["p"]);
        let expected = "TIME          VERDICT       FROM   TO         PORT      COUNT  POLICIES  NODE\n\
                        21:30:22.292  deny ingress  rogue  10.8.0.11  tcp/6379  3      p         n1\n";
        assert_eq!(table(&[line]), expected);
    }

    #[test]
    fn a_field_that_nobody_specified_is_an_error_and_a_summary_is_left_out() {
        assert!(parse(&DENIED.replace("count", "counts")).unwrap_err().to_string().contains("counts"));
        assert_eq!(parse(r#"{"suppressed":{"allow":3}}"#).unwrap(), None);
    }
}
