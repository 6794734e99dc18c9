//! The engine says what the oracle says, whatever the cluster and whatever led to it.

mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use durward_engine::object::{Event, Key, Pod, Policy, Rules, Spec};
use durward_engine::oracle::{Cluster, Packet};
use durward_engine::{Engine, Fault, Limits, Outcome, Sizes};
use durward_proto::{Attribution, Direction, NodeView, PortKey, Row, Verdict};
use proptest::prelude::*;

type Views = BTreeMap<Arc<str>, NodeView>;

const NODES: [&str; 3] = ["north", "south", "nobody's"];

/// Lists are short here: those of three policies are divided. So are the pieces in which a first batch is taken.
fn divided_soon() -> Limits {
    let events_per_piece = NonZeroUsize::new(3).expect("it is not zero");
    Limits { policies_per_leaf: 2, events_per_piece, ..Limits::default() }
}

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
            let mut engine = Engine::new(divided_soon());
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
    // Begins with a cluster to which some nodes are subscribed: what happens then concerns somebody.
    let begin = step().prop_flat_map(|first| {
        let events = prop::collection::vec(random::event(), 0..40);
        events.prop_map(move |events| Step { events, ..first.clone() })
    });
    let history = (begin, prop::collection::vec(step(), 1..10), any::<bool>());
    let history = history.prop_map(|(begin, mut steps, blocks)| {
        steps.insert(0, begin);
        if !blocks {
            let without = |events: Vec<_>| events.into_iter().map(random::without_blocks).collect();
            steps.iter_mut().for_each(|step| step.events = without(std::mem::take(&mut step.events)));
        }
        steps
    });
    random::check(
        10_000,
        history,
        |steps| print(steps),
        |steps| {
            let mut engine = Engine::new(divided_soon());
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
                prop_assert_eq!(engine.apply(repeated), Outcome::default(), "news of what is known");
                let (mut fresh, fresh_faults) = from_state(&cluster, divided_soon());
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

/// The event, of a pod for several: each node becomes as many, which have pods alike.
fn on_each_of_several_nodes(event: Event) -> Vec<Event> {
    let copy = |n: u8| {
        let key = |key: &Key| Key::new(key.namespace.clone(), format!("{}-{n}", key.name));
        match &event {
            Event::Pod(pod) => Event::Pod(Pod {
                uid: format!("{}-{n}", pod.uid).as_str().into(),
                key: key(&pod.key),
                node: pod.node.as_ref().map(|node| format!("{node}-{n}").into()),
                addresses: pod.addresses.iter().map(|&address| nth_after(address, 16 * n)).collect(),
                ..pod.clone()
            }),
            Event::PodGone(gone) => Event::PodGone(key(gone)),
            _ => event.clone(),
        }
    };
    match event {
        Event::Pod(_) | Event::PodGone(_) => (0..4).map(copy).collect(),
        _ => vec![event],
    }
}

fn nth_after(address: IpAddr, n: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + u32::from(n)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(n)).into()),
    }
}

#[test]
fn of_nodes_that_are_alike_each_is_told_what_it_would_be_alone() {
    let batches = (random::history(2..3, 4..30), prop::bool::weighted(0.2));
    random::check(
        2_000,
        batches,
        |(batches, _)| random::print::events(batches.iter().flatten()),
        |(batches, blocks)| {
            let mut engine = Engine::new(divided_soon());
            let (mut told, mut faults, mut so_far) = (Views::new(), BTreeMap::new(), vec![]);
            for events in batches {
                let events = events
                    .into_iter()
                    .map(|event| if blocks { event } else { random::without_blocks(event) });
                let events: Vec<_> = events.flat_map(on_each_of_several_nodes).collect();
                so_far.extend(events.clone());
                hear(&mut told, &mut faults, engine.apply(events))?;
                // Of each kind the first, then the second, and so on; and all of them again after the second batch.
                for node in (0..4).flat_map(|n| ["north", "south"].map(|node| format!("{node}-{n}"))) {
                    told.insert(node.as_str().into(), engine.subscribe(&node));
                }
                let cluster = cluster(&so_far);
                for (node, view) in &told {
                    let alone = from_state(&cluster, divided_soon()).0.subscribe(node);
                    prop_assert_eq!(view, &alone, "{}", node);
                }
            }
            Ok(())
        },
    );
}

/// So little of one thing or of two that most clusters need more.
fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        limit(),
        (limit(), limit()).prop_map(|(one, other)| Limits {
            addresses_per_node: one.addresses_per_node.min(other.addresses_per_node),
            blocks_per_node: one.blocks_per_node.min(other.blocks_per_node),
            atoms_per_node: one.atoms_per_node.min(other.atoms_per_node),
            matches_per_node: one.matches_per_node.min(other.matches_per_node),
            rows_per_node: one.rows_per_node.min(other.rows_per_node),
            pages_per_node: one.pages_per_node.min(other.pages_per_node),
            ports_per_node: one.ports_per_node.min(other.ports_per_node),
            mentions_per_node: one.mentions_per_node.min(other.mentions_per_node),
            ..one
        })
    ]
}

fn limit() -> impl Strategy<Value = Limits> {
    let all = divided_soon();
    prop_oneof![
        (0..8_usize).prop_map(move |addresses_per_node| Limits { addresses_per_node, ..all }),
        (0..6_usize).prop_map(move |blocks_per_node| Limits { blocks_per_node, ..all }),
        (0..8_usize).prop_map(move |atoms_per_node| Limits { atoms_per_node, ..all }),
        (0..12_usize).prop_map(move |matches_per_node| Limits { matches_per_node, ..all }),
        (0..8_usize).prop_map(move |rows_per_node| Limits { rows_per_node, ..all }),
        (0..2_usize).prop_map(move |pages_per_node| Limits { pages_per_node, ..all }),
        (0..8_usize).prop_map(move |ports_per_node| Limits { ports_per_node, ..all }),
        (0..8_usize).prop_map(move |mentions_per_node| Limits { mentions_per_node, ..all }),
    ]
}

#[test]
fn on_a_node_without_room_pods_are_judged_exactly_or_closed() {
    let history = (limits(), prop::collection::vec((step(), 0..3_usize), 1..8));
    random::check(
        2_000,
        history,
        |(limits, steps)| {
            let steps: Vec<_> = steps.iter().map(|(step, _)| step.clone()).collect();
            format!("# {limits:?}, some reconsidered\n{}", print(&steps))
        },
        |(limits, steps)| {
            let mut engine = Engine::new(limits);
            let (mut told, mut faults, mut so_far) = (Views::new(), BTreeMap::new(), vec![]);
            for (Step { node, events, .. }, reconsidered) in steps {
                if let Some(node) = node {
                    match told.remove(node) {
                        Some(_) => engine.unsubscribe(node),
                        None => drop(told.insert(node.into(), engine.subscribe(node))),
                    }
                }
                so_far.extend(events.clone());
                hear(&mut told, &mut faults, engine.apply(events))?;
                for outcome in (0..reconsidered).map_while(|_| engine.reconsider()).collect::<Vec<_>>() {
                    hear(&mut told, &mut faults, outcome)?;
                }
                let cluster = cluster(&so_far);
                for (node, view) in &told {
                    prop_assert_eq!(view.check(), Ok(()));
                    nothing_superfluous(view)?;
                    prop_assert!(fits(view, &limits), "{} holds more than {:?}", node, limits);
                    exact_or_closed(&cluster, node, view)?;
                }
            }
            // Once all nodes have been tried again, who is closed must be, and is told why; and it is whom a
            // controller closes that knows of nothing but what is there now.
            let all: Vec<_> = told.keys().cloned().collect();
            while let Some(outcome) = engine.reconsider() {
                hear(&mut told, &mut faults, outcome)?;
            }
            let cluster = cluster(&so_far);
            let (mut free, _) = from_state(&cluster, divided_soon());
            let (mut fresh, _) = from_state(&cluster, limits);
            for (node, view) in &told {
                let closed = exact_or_closed(&cluster, node, view)?;
                let named = |namespace: &&Arc<str>| faults.keys().any(|key| key.namespace == **namespace);
                prop_assert!(closed.iter().all(|namespace| named(&namespace)), "nothing says why");
                prop_assert_eq!(view, &fresh.subscribe(node), "{}", node);
                let free = free.subscribe(node);
                // How much there is of the others is not all seen in a view.
                let Limits { matches_per_node, rows_per_node, pages_per_node, .. } = limits;
                let Limits { ports_per_node, mentions_per_node, .. } = limits;
                let others =
                    [matches_per_node, rows_per_node, pages_per_node, ports_per_node, mentions_per_node];
                prop_assert!(
                    others.iter().any(|n| *n < 100) || closed.is_empty() || !fits(&free, &limits),
                    "{:?} closed on {}",
                    closed,
                    node
                );
            }
            hear(&mut told, &mut faults, engine.apply(cluster.pods.into_keys().map(Event::PodGone)))?;
            hear(&mut told, &mut faults, engine.apply(cluster.policies.into_keys().map(Event::PolicyGone)))?;
            prop_assert_eq!(&faults, &BTreeMap::new());
            all.iter().for_each(|node| engine.unsubscribe(node));
            engine.apply(cluster.namespaces.into_keys().map(Event::NamespaceGone));
            prop_assert_eq!(engine.sizes(), Sizes::default());
            Ok(())
        },
    );
}

/// Whether a view holds no more than it may, as far as it can be seen there.
fn fits(view: &NodeView, limits: &Limits) -> bool {
    let atoms: BTreeSet<_> = view.addresses.values().chain(view.blocks.values()).collect();
    let rows: usize = view.sets.values().map(|set| set.rows.len()).sum();
    let steps = |row: &Row| row.steps().len();
    let long = view
        .sets
        .values()
        .flat_map(|set| set.rows.values().chain([&set.base]))
        .map(steps)
        .filter(|n| *n > 16);
    let list = |row: &Row, verdict| -> BTreeSet<Attribution> {
        let steps = row.steps().iter().filter(|step| step.act.verdict == verdict);
        steps.map(|step| view.attribution(step.act.attribution).expect("a whole list")).collect()
    };
    let mentions = |set: &durward_proto::Set| -> usize {
        let rows = || set.rows.values().chain([&set.base]);
        // All policies of the set; if it denies nothing, that cannot be told.
        let Some(all) = rows().flat_map(|row| list(row, Verdict::Deny)).next() else { return 0 };
        let permitting = rows().flat_map(|row| list(row, Verdict::Allow));
        permitting.filter(|list| *list != all).map(|list| list.0.len()).sum()
    };
    view.addresses.len() <= limits.addresses_per_node
        && view.blocks.len() <= limits.blocks_per_node
        && atoms.len() <= limits.atoms_per_node
        && rows <= limits.rows_per_node
        && long.map(|steps| 1 + steps.div_ceil(128)).sum::<usize>() <= limits.pages_per_node
        && view.sets.values().map(mentions).sum::<usize>() <= limits.mentions_per_node
}

/// That each of the node's pods is judged as the policies say or, with all of its namespace's, as they
/// would say without rules. Gives the namespaces that are.
fn exact_or_closed(
    cluster: &Cluster,
    node: &str,
    view: &NodeView,
) -> Result<BTreeSet<Arc<str>>, TestCaseError> {
    let (remotes, keys) = (random::remotes(cluster), random::keys(cluster));
    let without_rules = without_rules(cluster.clone());
    let agrees = |subject: &Pod, with: &Cluster| {
        let ends = remotes.iter().flat_map(|&remote| Direction::BOTH.map(|direction| (remote, direction)));
        let packets = ends.flat_map(|(remote, direction)| {
            keys.iter().map(move |&(protocol, port)| Packet { direction, remote, protocol, port })
        });
        packets.into_iter().all(|packet| {
            let Packet { direction, remote, protocol, port } = packet;
            let said = view.act(&subject.uid, direction, remote, PortKey::new(protocol, port)).map(|act| {
                let list = view.attribution(act.attribution).expect("a whole list");
                (act.verdict, list.0.iter().cloned().collect())
            });
            said == with.judge(subject, &packet)
        })
    };
    let own = || cluster.pods.values().filter(|pod| pod.node.as_deref() == Some(node));
    let closed: BTreeSet<Arc<str>> =
        own().filter(|pod| !agrees(pod, cluster)).map(|pod| pod.key.namespace.clone()).collect();
    for pod in own().filter(|pod| closed.contains(&pod.key.namespace)) {
        prop_assert!(agrees(pod, &without_rules), "{} on {} is neither judged nor closed", pod.key, node);
    }
    Ok(closed)
}

/// All that isolates pods, and permits nothing.
fn without_rules(mut cluster: Cluster) -> Cluster {
    for Policy { spec, .. } in cluster.policies.values_mut() {
        if let Spec::Readable(Rules { ingress, egress, .. }) = spec {
            ingress.iter_mut().chain(egress).for_each(Vec::clear);
        }
    }
    cluster
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
    for (key, fault) in outcome.news.faults {
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
fn from_state(cluster: &Cluster, limits: Limits) -> (Engine, BTreeMap<Key, Fault>) {
    let mut engine = Engine::new(limits);
    let outcome = engine.apply(state(cluster));
    (engine, outcome.news.faults.into_iter().filter_map(|(key, fault)| Some((key, fault?))).collect())
}
