//! The engine says what the oracle says, whatever the cluster and whatever led to it.

mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use durward_engine::object::{Event, Key};
use durward_engine::oracle::{Cluster, Packet};
use durward_engine::{Engine, Fault, Limits, Outcome, Sizes};
use durward_proto::{Direction, NodeView, PortKey};
use proptest::prelude::*;

type Views = BTreeMap<Arc<str>, NodeView>;

const NODES: [&str; 3] = ["north", "south", "nobody's"];

#[test]
fn the_engine_agrees_with_the_oracle() {
    let history = random::history(1..2, 1..22);
    random::check(
        12_000,
        history,
        |events| random::print::events(events.iter().flatten()),
        |events| {
            let cluster = cluster(events.iter().flatten());
            let (remotes, keys) = (random::remotes(&cluster), random::keys(&cluster));
            let mut engine = Engine::new(Limits::default());
            engine.apply(events.into_iter().flatten());
            let views = views(&mut engine);
            for (subject, remote, direction) in questions(&cluster, &remotes) {
                let Some(node) = &subject.node else { continue };
                let view = &views[node];
                // As `NodeView::act` does, but once for all ports.
                let set = view
                    .pods
                    .get(&subject.uid)
                    .and_then(|pod| pod.set(direction))
                    .map(|set| &view.sets[&set]);
                let row = set
                    .map(|set| view.atom(remote).and_then(|atom| set.rows.get(&atom)).unwrap_or(&set.base));
                for &(protocol, port) in &keys {
                    let packet = Packet { direction, remote, protocol, port };
                    let said = row.map(|row| row.act(PortKey::new(protocol, port)));
                    let said = said.map(|act| {
                        (
                            act.verdict,
                            view.attribution(act.attribution)
                                .expect("a whole list")
                                .0
                                .iter()
                                .cloned()
                                .collect::<BTreeSet<_>>(),
                        )
                    });
                    let judged = cluster.judge(subject, &packet);
                    prop_assert_eq!(&said, &judged, "{} of {:?}", subject.key, packet);
                }
            }
            Ok(())
        },
    );
}

fn questions<'a>(
    cluster: &'a Cluster,
    remotes: &'a [std::net::IpAddr],
) -> impl Iterator<Item = (&'a durward_engine::object::Pod, std::net::IpAddr, Direction)> {
    let subjects = cluster.pods.values();
    let ends = subjects.flat_map(|pod| remotes.iter().map(move |&remote| (pod, remote)));
    ends.flat_map(|(pod, remote)| Direction::BOTH.map(|direction| (pod, remote, direction)))
}

/// One step of a history.
#[derive(Clone, Debug)]
struct Step {
    /// Before it, this node subscribes or, if it has, leaves.
    node: Option<&'static str>,
    events: Vec<Event>,
    /// After it, what was said is said again.
    again: Again,
}

#[derive(Clone, Copy, Debug)]
enum Again {
    Nothing,
    /// The same events: a watch may repeat itself.
    Events,
    /// All that there is: a watch that was lost lists anew.
    Everything,
}

fn step() -> impl Strategy<Value = Step> {
    let node = prop::option::weighted(0.3, prop::sample::select(&NODES[..]));
    let again =
        prop_oneof![4 => Just(Again::Nothing), 1 => Just(Again::Events), 1 => Just(Again::Everything)];
    (node, prop::collection::vec(random::event(), 0..6), again).prop_map(|(node, events, again)| Step {
        node,
        events,
        again,
    })
}

fn print(steps: &[Step]) -> String {
    let node = |node| format!("# {node} subscribes or leaves, and then\n");
    let step = |Step { node: name, events, again }: &Step| {
        let begin = name.map(node).unwrap_or_default();
        format!("{begin}{}# again: {again:?}\n", random::print::events(events))
    };
    steps.iter().map(step).collect()
}

#[test]
fn history_does_not_matter() {
    let history = prop::collection::vec(step(), 1..10);
    random::check(
        10_000,
        history,
        |steps| print(steps),
        |steps| {
            let mut engine = Engine::new(Limits::default());
            let mut told = Views::new();
            let mut faults = BTreeMap::new();
            let mut so_far = vec![];
            for Step { node, events, again } in steps {
                if let Some(node) = node {
                    match told.remove(node) {
                        Some(_) => engine.unsubscribe(node),
                        None => drop(told.insert(node.into(), engine.subscribe(node))),
                    }
                }
                so_far.extend(events.clone());
                let cluster = cluster(&so_far);
                hear(&mut told, &mut faults, engine.apply(events.clone()))?;
                let repeated = match again {
                    Again::Nothing => vec![],
                    Again::Events => events,
                    Again::Everything => state(&cluster).collect(),
                };
                let Outcome { patches, faults: again } = engine.apply(repeated);
                prop_assert!(
                    patches.is_empty() && again.is_empty(),
                    "news of what is known: {:?} {:?}",
                    patches,
                    again
                );
                let (mut fresh, fresh_faults) = from_state(&cluster);
                prop_assert_eq!(&faults, &fresh_faults);
                for (node, view) in &told {
                    prop_assert_eq!(view.check(), Ok(()));
                    nothing_superfluous(view)?;
                    prop_assert_eq!(view, &fresh.subscribe(node), "{}", node);
                }
            }
            let cluster = cluster(&so_far);
            told.keys().for_each(|node| engine.unsubscribe(node));
            engine.apply(cluster.pods.into_keys().map(Event::PodGone));
            engine.apply(cluster.policies.into_keys().map(Event::PolicyGone));
            engine.apply(cluster.namespaces.into_keys().map(Event::NamespaceGone));
            prop_assert_eq!(engine.sizes(), Sizes::default());
            Ok(())
        },
    );
}

/// Takes what came out of the engine; nothing of it may be superfluous.
fn hear(told: &mut Views, faults: &mut BTreeMap<Key, Fault>, outcome: Outcome) -> Result<(), TestCaseError> {
    for (node, patch) in outcome.patches {
        prop_assert!(told.contains_key(&node), "a patch for {}, which did not ask", node);
        prop_assert!(!patch.is_empty(), "an empty patch for {}", node);
        prop_assert!(patch.pods.put.keys().all(|uid| !patch.pods.removed.contains(uid)), "put and removed");
        let view = told[&node].patched(patch);
        told.insert(node, view.map_err(|error| TestCaseError::fail(error.to_string()))?);
    }
    for (key, fault) in outcome.faults {
        match fault {
            Some(fault) => prop_assert!(faults.insert(key, fault.clone()) != Some(fault), "the same fault"),
            None => prop_assert!(faults.remove(&key).is_some(), "{} had no fault", key),
        }
    }
    Ok(())
}

/// A view holds nothing that could be left out.
fn nothing_superfluous(view: &NodeView) -> Result<(), TestCaseError> {
    let sets: BTreeSet<_> = view.pods.values().flat_map(|pod| [pod.ingress, pod.egress]).flatten().collect();
    prop_assert!(sets.iter().eq(view.sets.keys()), "a set that judges no pod");
    let atoms: BTreeSet<_> = view.addresses.values().chain(view.blocks.values()).collect();
    let rows = || view.sets.values().flat_map(|set| &set.rows);
    prop_assert!(rows().all(|(atom, _)| atoms.contains(atom)), "a row of an atom that no address has");
    for set in view.sets.values() {
        prop_assert!(set.rows.values().all(|row| *row != set.base), "a row that says what the base row says");
    }
    let said = rows().map(|(_, row)| row).chain(view.sets.values().map(|set| &set.base));
    let mut named: BTreeSet<_> = said.flat_map(|row| row.steps()).map(|step| step.act.attribution).collect();
    let mut left: Vec<_> = named.iter().copied().collect();
    while let Some(list) = left.pop() {
        left.extend(view.attributions[&list].parts().iter().filter(|&&part| named.insert(part)));
    }
    prop_assert!(named.iter().eq(view.attributions.keys()), "an attribution that no row and no list names");
    Ok(())
}

fn cluster<'a>(events: impl IntoIterator<Item = &'a Event>) -> Cluster {
    let mut cluster = Cluster::default();
    events.into_iter().for_each(|event| cluster.apply(event.clone()));
    cluster
}

fn views(engine: &mut Engine) -> Views {
    NODES.into_iter().map(|node| (node.into(), engine.subscribe(node))).collect()
}

/// All that there is, policies first: they refer to what is not there yet.
fn state(cluster: &Cluster) -> impl Iterator<Item = Event> {
    let Cluster { pods, namespaces, policies, logging } = cluster.clone();
    let pods = pods.into_values().map(Event::Pod);
    let namespaces = namespaces.into_values().map(Event::Namespace);
    let policies = policies.into_values().map(Event::Policy);
    policies.chain(pods).chain(namespaces).chain([Event::Logging(logging)])
}

/// A fresh engine that hears of the state only.
fn from_state(cluster: &Cluster) -> (Engine, BTreeMap<Key, Fault>) {
    let mut engine = Engine::new(Limits::default());
    let outcome = engine.apply(state(cluster));
    (engine, outcome.faults.into_iter().filter_map(|(key, fault)| Some((key, fault?))).collect())
}
