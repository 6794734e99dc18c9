//! What a change costs: in time, in nodes that hear of it, and in bytes for each of them.

use std::time::Instant;

use durward_engine::object::Event;
use durward_engine::sample::*;
use durward_engine::{Detail, Engine, Limits, Outcome};
use durward_proto::{NodeView, encode};

use crate::figures::Figures;
use crate::scenario::{Scenario, node, plain, space, with_port};

/// Microseconds, nodes, bytes for each node.
#[derive(Default)]
struct Samples {
    micros: Vec<f64>,
    nodes: Vec<f64>,
    bytes: Vec<f64>,
}

impl Samples {
    fn take(&mut self, engine: &mut Engine, events: impl IntoIterator<Item = Event>) {
        let events: Vec<_> = events.into_iter().collect();
        let start = Instant::now();
        let outcome = engine.apply(events);
        self.micros.push(start.elapsed().as_secs_f64() * 1e6);
        self.nodes.push(outcome.patches.len() as f64);
        self.bytes.extend(sizes(&outcome));
    }

    fn print(&self, name: &str) {
        let pair = |values: &[f64]| format!("{:.0} / {:.0}", quantile(values, 0.5), quantile(values, 0.99));
        let [micros, nodes, bytes] = [&self.micros, &self.nodes, &self.bytes].map(|values| pair(values));
        println!("  {name:<28} {micros:>14} µs {nodes:>10} nodes {bytes:>14} bytes (p50 / p99)");
    }
}

fn sizes(outcome: &Outcome) -> impl Iterator<Item = f64> + '_ {
    outcome.patches.values().map(|patch| encode::parts(patch).size() as f64)
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(0.0)
}

/// Single changes in the huge cluster, all nodes subscribed.
pub(crate) fn events(scenario: &Scenario, figures: &mut Figures) {
    let mut engine = scenario.filled(scenario.events());
    let mut all = Samples::default();
    let mut run = |name, change: &dyn Fn(usize) -> Event| {
        let mut samples = Samples::default();
        for n in 0..1_000 {
            samples.take(&mut engine, [change(n)]);
        }
        samples.print(name);
        all.micros.extend(samples.micros);
        all.bytes.extend(samples.bytes);
    };
    // Away from the namespaces that all others mention.
    let pod = |n: usize| scenario.pod(199 * (n + 1));
    run("pod deleted", &|n| Event::PodGone(pod(n).key));
    run("pod created", &|n| Event::Pod(pod(n)));
    let relabelled =
        |n, with: &str| Event::Pod(durward_engine::object::Pod { labels: labels(with), ..pod(n) });
    run("pod relabelled, selected", &|n| relabelled(n, "app=other,tier=t0"));
    run("pod relabelled, no effect", &|n| relabelled(n, "app=other,tier=t0,colour=blue"));
    run("policy: a port changed", &|n| Event::Policy(with_port(scenario.policy(4 * n + 41), 7)));
    run("namespace relabelled", &|n| Event::Namespace(namespace(&space(20 * n + 20), "team=t1")));
    figures.note("huge_event_p99_ms", quantile(&all.micros, 0.99) / 1e3, 3);
    figures.note("huge_event_bytes_per_node", quantile(&all.bytes, 0.99), 0);
    let batch = (0..1_000).map(|n| Event::Pod(plain(n + 50, 300_000 + n, 7_500, "app=web,tier=t0")));
    let mut samples = Samples::default();
    samples.take(&mut engine, batch);
    samples.print("1,000 pods created at once");
}

/// A policy of those that all concern the same pods changes.
pub(crate) fn one_policy(scenario: &Scenario, figures: &mut Figures) {
    let mut engine = scenario.filled(scenario.events());
    let mut samples = Samples::default();
    for n in 0..1_000 {
        samples.take(&mut engine, [Event::Policy(with_port(scenario.policy(n), 80))]);
    }
    samples.print("policy of one changed");
    figures.note("one_policy_ms", quantile(&samples.micros, 0.5) / 1e3, 3);
    figures.note("one_policy_bytes", quantile(&samples.bytes, 0.5), 0);
}

/// One node of 200 pods in a cluster of 250,000, and 10,000 policies with selectors over 100 labels.
pub(crate) fn node_view(figures: &mut Figures) {
    // Two labels of a hundred and one of four zones each: 20,000 kinds of pods.
    let with = |n: usize| format!("l{}=x,l{}=y,zone=z{}", n % 100, n / 100 % 100, n / 10_000 % 4);
    let pod = |n: usize| {
        let on = if n.is_multiple_of(1_250) { "here".to_owned() } else { node(n % 1_000) };
        durward_engine::object::Pod { node: Some(on.into()), ..plain(0, n, 1_000, &with(n)) }
    };
    let policies = (0..10_000).map(|n| {
        let peer = pods(&format!("l{},zone=z{}", n * 7 % 100, n / 100 % 4));
        let subjects = format!("l{}", n % 100);
        Event::Policy(ingress(&format!("n0/policy-{n}"), &subjects, [rule([peer], [tcp(n as u16 % 97)])]))
    });
    let mut engine = Engine::new(Limits::default());
    engine.apply([Event::Namespace(namespace("n0", ""))]);
    engine.apply(policies);
    engine.apply((0..250_000).map(|n| Event::Pod(pod(n))));
    let start = Instant::now();
    let whole = engine.subscribe_with("here", Detail::Frontends);
    figures.note("node_view_s", start.elapsed().as_secs_f64(), 3);
    let view = NodeView::default().patched(whole).unwrap_or_default();
    let rows: usize = view.sets.values().map(|set| set.rows.len()).sum();
    let atoms: std::collections::BTreeSet<_> = view.addresses.values().collect();
    println!(
        "  {} addresses, {} atoms, {} sets, {rows} rows",
        view.addresses.len(),
        atoms.len(),
        view.sets.len()
    );
    let mut samples = Samples::default();
    for n in 0..1_000 {
        let other = labels(&with(13 * n + 5));
        samples
            .take(&mut engine, [Event::Pod(durward_engine::object::Pod { labels: other, ..pod(7 * n + 1) })]);
    }
    samples.print("pod relabelled");
    figures.note("node_change_ms", quantile(&samples.micros, 0.99) / 1e3, 3);
}
