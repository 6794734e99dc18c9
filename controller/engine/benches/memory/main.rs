//! What the engine holds, on clusters of the sizes that it is built for.
//!
//! Memory is counted by the allocator, from before the first object to the highest point, while objects
//! are made one by one, as they arrive. The last line is one JSON object.

mod churn;
#[path = "../engine/figures.rs"]
mod figures;
#[path = "../engine/scenario.rs"]
mod scenario;

use figures::Figures;
use peak_alloc::PeakAlloc;
use scenario::Scenario;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

fn main() {
    let mut figures = Figures::new();
    for (name, scenario) in scenario::all() {
        if figures.is_wanted(name) {
            figures.note(&format!("{name}_mb"), peak(&scenario) as f64 / 1e6, 1);
        }
    }
    if figures.is_wanted("growth") {
        // How memory grows with the first scenario's size, against linear.
        let each =
            scenario::GROWING.map(|namespaces| peak(&scenario::small(namespaces)) as f64 / namespaces as f64);
        figures.note("growth_memory", Figures::spread(each), 2);
    }
    if figures.is_wanted("churn") {
        churn::growth(&scenario::huge(), &mut figures);
    }
    figures.print();
}

fn peak(scenario: &Scenario) -> usize {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let engine = scenario.filled(scenario.events());
    let peak = ALLOCATOR.peak_usage() - before;
    let (pods, policies) = (engine.sizes().pods, engine.sizes().policies);
    println!("  {pods} pods and {policies} policies, {} bytes for each", peak / (pods + policies));
    peak
}
