//! What the engine costs, in time and memory, on clusters of the sizes that it is built for.
//!
//! Time runs from decoded objects to all nodes' views computed. Memory is counted by the allocator,
//! from before the first object to the highest point, in a run of its own in which objects are made
//! one by one, as they arrive. The last line is one JSON object. `DURWARD_BENCH` is a comma-separated
//! list of scenarios, if not all are wanted.

mod change;
mod scenario;

use std::collections::BTreeMap;
use std::time::Instant;

use durward_engine::object::Event;
use durward_engine::{Engine, Limits};
use peak_alloc::PeakAlloc;

use scenario::Scenario;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Results by name.
type Figures = BTreeMap<String, f64>;

fn main() {
    let wanted = std::env::var("DURWARD_BENCH").ok();
    let is_wanted =
        |name: &str| wanted.as_deref().is_none_or(|wanted| wanted.split(',').any(|one| one == name));
    let mut figures = Figures::new();
    for (name, scenario) in [
        ("small", scenario::small(25_000)),
        ("large", scenario::large()),
        ("one", scenario::one()),
        ("per_pod", scenario::per_pod()),
        ("huge", scenario::huge()),
    ] {
        if is_wanted(name) {
            whole(name, &scenario, &mut figures);
        }
    }
    if is_wanted("growth") {
        growth(&mut figures);
    }
    if is_wanted("events") {
        change::events(&scenario::huge(), &mut figures);
    }
    if is_wanted("one_policy") {
        change::one_policy(&scenario::one(), &mut figures);
    }
    if is_wanted("node_view") {
        change::node_view(&mut figures);
    }
    if is_wanted("churn") {
        change::churn(&scenario::huge(), &mut figures);
    }
    let fields: Vec<_> = figures.iter().map(|(name, figure)| format!("\"{name}\":{figure}")).collect();
    println!("{{{}}}", fields.join(","));
}

fn note(figures: &mut Figures, name: &str, figure: f64, digits: i32) {
    let scale = 10_f64.powi(digits);
    let figure = (figure * scale).round() / scale;
    println!("{name:<32} {figure}");
    figures.insert(name.to_owned(), figure);
}

/// All views of a scenario, from nothing: the best of three times, and the memory.
fn whole(name: &str, scenario: &Scenario, figures: &mut Figures) {
    let seconds = (0..3).map(|_| time(scenario)).fold(f64::INFINITY, f64::min);
    note(figures, &format!("{name}_s"), seconds, 3);
    note(figures, &format!("{name}_mb"), peak(scenario) as f64 / 1e6, 1);
}

fn time(scenario: &Scenario) -> f64 {
    let events: Vec<Event> = scenario.events().collect();
    let start = Instant::now();
    let engine = fill(scenario, events);
    let seconds = start.elapsed().as_secs_f64();
    drop(engine);
    seconds
}

fn peak(scenario: &Scenario) -> usize {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let engine = fill(scenario, scenario.events());
    let peak = ALLOCATOR.peak_usage() - before;
    let (pods, policies) = (engine.sizes().pods, engine.sizes().policies);
    println!("  {pods} pods and {policies} policies, {} bytes for each", peak / (pods + policies));
    peak
}

fn fill(scenario: &Scenario, events: impl IntoIterator<Item = Event>) -> Engine {
    let mut engine = Engine::new(Limits::default());
    engine.apply(events);
    for node in 0..scenario.nodes {
        engine.subscribe(&scenario::node(node));
    }
    engine
}

/// How time and memory grow with the first scenario's size, against linear.
fn growth(figures: &mut Figures) {
    let sizes = [25_000 / 16, 25_000 / 4, 25_000, 50_000];
    let measured = sizes.map(|namespaces| {
        let scenario = scenario::small(namespaces);
        let seconds = (0..3).map(|_| time(&scenario)).fold(f64::INFINITY, f64::min);
        (seconds / namespaces as f64, peak(&scenario) as f64 / namespaces as f64)
    });
    let spread = |each: [f64; 4]| {
        each.iter().copied().fold(0.0, f64::max) / each.iter().copied().fold(f64::INFINITY, f64::min)
    };
    note(figures, "growth_time", spread(measured.map(|(seconds, _)| seconds)), 2);
    note(figures, "growth_memory", spread(measured.map(|(_, bytes)| bytes)), 2);
}
