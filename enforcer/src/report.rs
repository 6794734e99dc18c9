//! Tells the controller what the node has to say of itself: at every change, and every 30 seconds. IO.

use std::sync::Arc;
use std::time::Duration;

use durward_proto::wire::control_client::ControlClient;
use durward_proto::{LateAttach, LossPlace, NodeReport, wire};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::transport::Channel;

use crate::observe::Metrics;
use crate::status::Status;

/// How often it is looked whether something changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a report is sent in any case.
const SEND_EVERY: Duration = Duration::from_secs(30);
/// How long a report may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many late pods are told of at once; more are in the metrics only.
const MAX_LATE: usize = 1000;

/// Reports, for ever. What could not be told is told with the next report.
pub async fn run(channel: Channel, node: Arc<str>, status: Arc<Status>, metrics: Arc<Metrics>) {
    let mut client = ControlClient::new(channel);
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut late: Vec<LateAttach> = Vec::new();
    let mut told: Option<(Vec<String>, Instant)> = None;
    loop {
        look.tick().await;
        late.extend(status.take_late());
        late.truncate(MAX_LATE);
        let problems = status.problems();
        let same = told.as_ref().is_some_and(|(before, at)| *before == problems && at.elapsed() < SEND_EVERY);
        if same && late.is_empty() {
            continue;
        }
        let losses: Vec<(LossPlace, u64)> = metrics.losses();
        let report = NodeReport { node: node.to_string(), losses, late: late.clone(), problems };
        let sent = tokio::time::timeout(TIMEOUT, client.report(wire::NodeReport::from(&report))).await;
        match sent {
            Ok(Ok(_)) => {
                late.clear();
                told = Some((report.problems, Instant::now()));
            }
            Ok(Err(status)) => tracing::debug!(%status, "the report was not heard"),
            Err(_) => tracing::debug!("the report was not heard within {TIMEOUT:?}"),
        }
    }
}
