//! What is counted on the way from a packet to its line. Pure.

use durward_proto::LossPlace;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Disposition {
    disposition: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    place: &'static str,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    lines: Family<Disposition, Counter>,
    lost: Family<Place, Counter>,
}

impl Metrics {
    /// Lines were given to the writer.
    pub fn line(&self, allowed: bool) {
        let disposition = if allowed { "allow" } else { "deny" };
        self.lines.get_or_create(&Disposition { disposition }).inc();
    }

    /// Something was lost.
    pub fn lost(&self, place: LossPlace, count: u64) {
        if count > 0 {
            self.lost.get_or_create(&Place { place: place.name() }).inc_by(count);
        }
    }

    /// Something is lost that is counted elsewhere: the count is at least this now.
    pub fn lost_in_all(&self, place: LossPlace, total: u64) {
        let told = self.lost.get_or_create(&Place { place: place.name() }).get();
        self.lost(place, total.saturating_sub(told));
    }

    /// What was lost since the start, by place.
    pub fn losses(&self) -> Vec<(LossPlace, u64)> {
        let count = |place: LossPlace| self.lost.get_or_create(&Place { place: place.name() }).get();
        LossPlace::ALL
            .into_iter()
            .map(|place| (place, count(place)))
            .filter(|&(_, count)| count > 0)
            .collect()
    }

    /// Shows everything in a registry.
    pub fn register(&self, registry: &mut Registry) {
        let Self { lines, lost } = self;
        for place in LossPlace::ALL {
            // From the first scrape on: a rate needs the 0 before the first loss.
            let _ = lost.get_or_create(&Place { place: place.name() });
        }
        registry.register("log_lines", "Verdicts written to the log, by disposition", lines.clone());
        let help = "What was lost between a packet and its line in the log, by place";
        registry.register("log_lost", help, lost.clone());
    }
}
