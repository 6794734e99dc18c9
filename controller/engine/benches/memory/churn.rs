//! What is left of a million changes.

use durward_engine::object::Event;
use durward_engine::sample::labels;

use crate::ALLOCATOR;
use crate::figures::Figures;
use crate::scenario::{Scenario, with_port};

/// A million random changes that leave the cluster as large as it was.
pub(crate) fn growth(scenario: &Scenario, figures: &mut Figures) {
    let before = ALLOCATOR.current_usage();
    let mut engine = scenario.filled(scenario.events());
    let start = ALLOCATOR.current_usage() - before;
    let mut random = 1_u64;
    let mut below = |limit: usize| {
        // Knuth's linear congruential generator: the high bits are random enough to pick objects.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    for _ in 0..1_000_000 / 4 {
        let pod = scenario.pod(below(scenario.pods));
        let gone = Event::PodGone(pod.key.clone());
        let moved = durward_engine::object::Pod {
            labels: labels(&format!("app=web,tier=t{}", below(2))),
            ..scenario.pod(below(scenario.pods))
        };
        let policy = with_port(scenario.policy(below(scenario.policies)), below(100) as u16);
        engine.apply([gone, Event::Pod(moved)]);
        engine.apply([Event::Policy(policy)]);
        engine.apply([Event::Pod(pod)]);
    }
    // Back to the first state, so that what differs is what was not freed.
    for event in scenario.events() {
        engine.apply([event]);
    }
    let end = ALLOCATOR.current_usage() - before;
    figures.note("churn_growth_percent", 100.0 * (end as f64 / start as f64 - 1.0), 2);
}
