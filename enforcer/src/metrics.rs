//! What the enforcer counts. Pure, but for the kernel's own totals, which are read when asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use durward_bpf::{Counters, DataPath, Direction, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::subscribe::StreamError;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: StreamEnd,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum StreamEnd {
    Broken,
    Ended,
    NotUnderstood,
}

/// What is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    stream_errors: Family<Why, Counter>,
    /// The number of the newest view heard.
    pub view_version: Gauge,
    /// The number of the view that the kernel has.
    pub applied_version: Gauge,
    /// From a change's arrival until the kernel has it.
    pub propagation: Histogram,
    /// How long pods ran before they were attached.
    pub attach_delay: Histogram,
    /// Endpoints that are attached.
    pub endpoints: Gauge,
    /// Endpoints that are closed since nobody knows whose they are.
    pub unknown_endpoints: Gauge,
    /// Pods that are closed since their rules do not fit in the kernel.
    pub misfits: Gauge,
    /// Writes to the kernel that failed.
    pub apply_errors: Counter,
    /// Connections in the kernel's table, at the last sweep.
    pub connections: Gauge,
    /// What the sweeps have removed from it.
    pub connections_swept: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0];
        Self {
            stream_errors: Family::default(),
            view_version: Gauge::default(),
            applied_version: Gauge::default(),
            propagation: Histogram::new(seconds),
            attach_delay: Histogram::new(seconds),
            endpoints: Gauge::default(),
            unknown_endpoints: Gauge::default(),
            misfits: Gauge::default(),
            apply_errors: Counter::default(),
            connections: Gauge::default(),
            connections_swept: Counter::default(),
        }
    }
}

impl Metrics {
    /// Counts how streams to the controller ended.
    pub fn stream_errors(&self, error: &StreamError) -> Counter {
        let reason = match error {
            StreamError::Broken(_) => StreamEnd::Broken,
            StreamError::Ended => StreamEnd::Ended,
            StreamError::Decode(_) | StreamError::Patch(_) | StreamError::View(_) | StreamError::Order(_) => {
                StreamEnd::NotUnderstood
            }
        };
        self.stream_errors.get_or_create_owned(&Why { reason })
    }

    /// Shows everything in a registry.
    pub fn register(&self, registry: &mut Registry) {
        // Destructured in full, so that nothing is counted and never shown.
        let Self {
            stream_errors,
            view_version,
            applied_version,
            propagation,
            attach_delay,
            endpoints,
            unknown_endpoints,
            misfits,
            apply_errors,
            connections,
            connections_swept,
        } = self.clone();
        registry.register("stream_errors", "Streams to the controller that ended, by reason", stream_errors);
        registry.register("view_version", "Number of the newest view heard", view_version);
        registry.register("applied_version", "Number of the view that the kernel has", applied_version);
        let help = "From the arrival of a change until the kernel has it";
        registry.register_with_unit("propagation", help, Unit::Seconds, propagation);
        let help = "How long pods ran before they were attached";
        registry.register_with_unit("attach_delay", help, Unit::Seconds, attach_delay);
        registry.register("endpoints", "Interfaces of pods that are attached", endpoints);
        let help = "Attached interfaces of pods that are not known: only their node's traffic passes";
        registry.register("unknown_endpoints", help, unknown_endpoints);
        let help = "Pods that are closed since their rules do not fit in the kernel";
        registry.register("misfits", help, misfits);
        registry.register("apply_errors", "Writes to the kernel that failed", apply_errors);
        registry.register("connections", "Connections in the kernel's table, at the last sweep", connections);
        let help = "Connections that sweeps removed from the kernel's table";
        registry.register("connections_swept", help, connections_swept);
    }
}

/// The kernel's totals, by direction: of the endpoints that are there, and of those that were.
pub struct KernelTotals {
    path: Arc<DataPath>,
    gone: Mutex<[Sum; 2]>,
}

#[derive(Clone, Debug, Default)]
struct Sum {
    verdicts: BTreeMap<&'static str, u64>,
    dropped: BTreeMap<Reason, u64>,
}

impl Sum {
    fn add(&mut self, counters: &Counters) {
        let Counters { allowed, denied, cut, adopted, untracked, suppressed: _, unwritten: _, dropped } =
            counters;
        let verdicts = [
            ("allowed", allowed),
            ("denied", denied),
            ("cut", cut),
            ("adopted", adopted),
            ("untracked", untracked),
        ];
        for (disposition, count) in verdicts {
            *self.verdicts.entry(disposition).or_default() += count;
        }
        for (reason, count) in dropped {
            *self.dropped.entry(*reason).or_default() += count;
        }
    }
}

impl KernelTotals {
    /// Reads from these maps.
    pub fn new(path: Arc<DataPath>) -> Self {
        Self { path, gone: Mutex::default() }
    }

    /// An endpoint is about to go: its totals are kept, so that none ever falls.
    pub fn retire(&self, ifindex: u32) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        self.add(ifindex, &mut gone);
    }

    fn add(&self, ifindex: u32, sums: &mut [Sum; 2]) {
        for (direction, sum) in Direction::BOTH.into_iter().zip(sums) {
            // What cannot be read is not shown; the next scrape reads again.
            if let Ok(counters) = self.path.counters(ifindex, direction) {
                sum.add(&counters);
            }
        }
    }
}

impl fmt::Debug for KernelTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelTotals").finish_non_exhaustive()
    }
}

impl Collector for KernelTotals {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut sums = self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.add(0, &mut sums);
        for endpoint in self.path.endpoints().unwrap_or_default() {
            self.add(endpoint.ifindex, &mut sums);
        }
        let directions = ["ingress", "egress"];
        let help = "Verdicts, by direction: connections allowed, adopted; packets denied, cut, not tracked";
        let mut verdicts = encoder.encode_descriptor("verdicts", help, None, MetricType::Counter)?;
        for (direction, sum) in directions.into_iter().zip(&sums) {
            for (disposition, count) in &sum.verdicts {
                let labels = [("direction", direction), ("disposition", disposition)];
                ConstCounter::new(*count).encode(verdicts.encode_family(&labels)?)?;
            }
        }
        let help = "Packets dropped of which no policy spoke, by direction and reason";
        let mut dropped = encoder.encode_descriptor("dropped", help, None, MetricType::Counter)?;
        for (direction, sum) in directions.into_iter().zip(&sums) {
            for (reason, count) in &sum.dropped {
                let reason = snake_case(&format!("{reason:?}"));
                let labels = [("direction", direction), ("reason", &reason)];
                ConstCounter::new(*count).encode(dropped.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn snake_case(camel: &str) -> String {
    let mut name = String::new();
    for letter in camel.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}
