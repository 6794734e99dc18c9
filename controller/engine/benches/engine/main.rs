//! How long the engine takes, on clusters of the sizes that it is built for.
//!
//! Time runs from decoded objects to all nodes' views computed. Memory is in a benchmark of its own
//! (`memory`): to count it takes time. The last line is one JSON object.

mod change;
mod figures;
mod scenario;

use std::time::Instant;

use durward_engine::object::Event;
use figures::Figures;
use scenario::Scenario;

/// The daemon's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut figures = Figures::new();
    for (name, scenario) in scenario::all() {
        if figures.is_wanted(name) {
            figures.note(&format!("{name}_s"), best_time(&scenario), 3);
        }
    }
    if figures.is_wanted("growth") {
        // How time grows with the first scenario's size, against linear.
        let each =
            scenario::GROWING.map(|namespaces| best_time(&scenario::small(namespaces)) / namespaces as f64);
        figures.note("growth_time", Figures::spread(each), 2);
    }
    if figures.is_wanted("events") {
        change::events(&scenario::huge(), &mut figures);
    }
    if figures.is_wanted("one_policy") {
        change::one_policy(&scenario::one(), &mut figures);
    }
    if figures.is_wanted("node_view") {
        change::node_view(&mut figures);
    }
    figures.print();
}

/// Of three times.
fn best_time(scenario: &Scenario) -> f64 {
    (0..3).map(|_| time(scenario)).fold(f64::INFINITY, f64::min)
}

fn time(scenario: &Scenario) -> f64 {
    let events: Vec<Event> = scenario.events().collect();
    let start = Instant::now();
    let engine = scenario.filled(events);
    let seconds = start.elapsed().as_secs_f64();
    drop(engine);
    seconds
}
