//! What is left of a million changes.

use std::collections::VecDeque;

use durward_engine::object::{Event, Pod};
use durward_engine::sample::labels;

use crate::ALLOCATOR;
use crate::figures::Figures;
use crate::scenario::{Scenario, with_port};

const EVENTS: usize = 1_000_000;
/// How many objects are other than they were at a time.
const AT_A_TIME: usize = 1_000;

/// Pods go and come back, pods and policies are changed and changed back, each at random; so that the
/// cluster stays as large as it was, and what memory grows by was not freed.
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
    let mut changed = VecDeque::new();
    for n in 0..EVENTS / 2 {
        let pod = scenario.pod(below(scenario.pods));
        let (change, back) = match n % 3 {
            0 => (Event::PodGone(pod.key.clone()), Event::Pod(pod)),
            1 => {
                let labels = labels(&format!("app=web,tier=t{}", below(2)));
                (Event::Pod(Pod { labels, ..pod.clone() }), Event::Pod(pod))
            }
            _ => {
                let policy = scenario.policy(below(scenario.policies));
                (Event::Policy(with_port(policy.clone(), below(100) as u16)), Event::Policy(policy))
            }
        };
        engine.apply([change]);
        changed.push_back(back);
        if changed.len() > AT_A_TIME {
            engine.apply(changed.pop_front());
        }
    }
    for back in changed {
        engine.apply([back]);
    }
    let end = ALLOCATOR.current_usage() - before;
    figures.note("churn_growth_percent", 100.0 * (end as f64 / start as f64 - 1.0), 2);
}
