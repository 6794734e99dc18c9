use durward_engine::object::{Protocol, Service, ServicePort};
use durward_engine::sample::{ingress, key, pod, pods, rule};
use futures::FutureExt;

use super::*;
use crate::event::Notice;

/// A task with nodes on which there is room for few atoms and frontends, and what is told of policies and Services.
fn task(nodes: &[&str]) -> (Task, mpsc::Receiver<Notice>) {
    let metrics = Arc::new(Metrics::default());
    let (notices, told) = Notices::new(metrics.clone());
    let (progress, backends) = (watch::Sender::default(), watch::Sender::new(false));
    let mut task = Task::new(Room::new(1), progress, backends, notices, Arc::default(), metrics);
    task.engine = Engine::new(Limits { atoms_per_node: 1, frontends_per_node: 2, ..Limits::default() });
    nodes.iter().for_each(|node| drop(task.engine.subscribe(node)));
    (task, told)
}

/// A pod on a node, which is an atom of its own, and a policy that tells them apart.
fn pod_on(node: &str, n: usize) -> Change {
    let (key, labels) = (format!("shop/{node}"), format!("n{n}=x"));
    Change::Engine(Event::Pod(pod(&key, node, &labels, &[&format!("10.0.0.{n}")])))
}

fn policy(n: usize) -> Change {
    let policy = ingress(&format!("shop/policy-{n}"), "", [rule([pods(&format!("n{n}"))], [])]);
    Change::Policy(policy, format!("uid-{n}").into())
}

fn policy_gone(n: usize) -> Change {
    Change::Engine(Event::PolicyGone(Key::new("shop", format!("policy-{n}"))))
}

fn notes(told: &mut mpsc::Receiver<Notice>) -> Vec<String> {
    std::iter::from_fn(|| told.try_recv().ok()).map(|notice| notice.note).collect()
}

fn closed(task: &Task) -> usize {
    task.engine.sizes().closed
}

#[test]
fn nodes_are_tried_as_long_as_there_is_time_and_one_in_any_case() {
    let nodes = ["a", "b", "c", "d"];
    let (mut task, _told) = task(&nodes);
    let pods = nodes.iter().enumerate().map(|(n, node)| pod_on(node, n));
    task.apply(pods.chain([policy(0), policy(1)]), Instant::now());
    assert_eq!(closed(&task), 4);
    task.apply([policy_gone(1)].into_iter(), Instant::now());
    assert_eq!(closed(&task), 4);
    task.reconsider(Duration::ZERO);
    assert_eq!(closed(&task), 3);
    task.reconsider(Duration::MAX);
    assert_eq!(closed(&task), 0);
    assert_eq!(task.metrics.policies_failing_closed.get(), 0);
}

fn subscribe(task: &mut Task, node: &str) -> oneshot::Receiver<Result<Subscription, UnknownNode>> {
    let (reply, answer) = oneshot::channel();
    task.answer(Ask::Subscribe { node: node.into(), has: None, detail: Detail::Frontends, reply });
    answer
}

#[test]
fn a_node_that_goes_while_it_subscribes_is_not_connected() {
    let (mut task, _told) = task(&[]);
    task.nodes.insert("a".into());
    task.unlisted.clear();
    let connected = |task: &mut Task| {
        task.count();
        task.metrics.nodes_connected.get()
    };
    let answer = subscribe(&mut task, "a");
    assert_eq!(connected(&mut task), 1);
    drop(answer);
    assert_eq!(connected(&mut task), 0);
}

#[test]
fn who_asks_for_its_view_waits_while_there_is_no_room() {
    let (mut task, _told) = task(&[]);
    task.unlisted.clear();
    for node in ["a", "b", "gone", "c"] {
        task.apply([Change::Node(node.into(), true), pod_on(node, 1)].into_iter(), Instant::now());
    }
    let first = subscribe(&mut task, "a").try_recv().unwrap().unwrap();
    let (mut second, gone) = (subscribe(&mut task, "b"), subscribe(&mut task, "gone"));
    let mut third = subscribe(&mut task, "c");
    assert!(subscribe(&mut task, "unknown").try_recv().unwrap().is_err());
    task.serve_waiting(Duration::MAX);
    task.count();
    assert!(second.try_recv().is_err() && task.metrics.nodes_waiting.get() == 3);
    // Who is gone takes no room, and who was there first is served first.
    drop(gone);
    first.mailbox.sent(first.stream, true);
    task.serve_waiting(Duration::MAX);
    task.count();
    let second = second.try_recv().unwrap().unwrap();
    assert!(third.try_recv().is_err() && task.metrics.nodes_waiting.get() == 1);
    // A node that comes back with what it has is told no whole view.
    let Opening::Whole(_, number) = first.opening else { panic!("it had nothing") };
    let (reply, mut again) = oneshot::channel();
    task.answer(Ask::Subscribe { node: "a".into(), has: Some(number), detail: Detail::Frontends, reply });
    assert_eq!(again.try_recv().unwrap().unwrap().opening, Opening::Resume(number));
    // A node that hangs keeps room for a while only.
    second.mailbox.expire(Instant::now() + Duration::from_secs(31));
    task.serve_waiting(Duration::MAX);
    assert!(third.try_recv().unwrap().is_ok());
}

#[test]
fn those_who_wait_are_served_as_long_as_there_is_time_and_one_in_any_case() {
    let (mut task, _told) = task(&[]);
    task.room = Room::new(1_000);
    let nodes = ["a", "b", "c"].map(|node| Change::Node(node.into(), true));
    task.apply(nodes.into_iter(), Instant::now());
    let mut answers = ["a", "b", "c"].map(|node| subscribe(&mut task, node));
    let mut served = || answers.iter_mut().filter_map(|answer| answer.try_recv().ok()).count();
    assert_eq!(served(), 0);
    task.unlisted.clear();
    let is_woken = |task: &Task| task.room.freed().now_or_never().is_some();
    task.serve_waiting(Duration::ZERO);
    assert!(served() == 1 && is_woken(&task));
    task.serve_waiting(Duration::MAX);
    assert!(served() == 2 && !is_woken(&task));
}

#[test]
fn the_rest_is_in_proportion_to_the_time_that_it_took() {
    assert_eq!(rest_after(Duration::from_millis(3)), Duration::from_secs(1));
    assert_eq!(rest_after(Duration::from_millis(150)), Duration::from_millis(1_500));
    assert_eq!(rest_after(Duration::from_secs(7)), Duration::from_secs(70));
}

#[test]
fn one_event_says_of_a_policy_that_nodes_have_no_room_and_which_limit_they_meet() {
    let (mut task, mut told) = task(&["a", "b", "c"]);
    task.apply([pod_on("b", 1), pod_on("c", 2), policy(1), policy(2)].into_iter(), Instant::now());
    let first = notes(&mut told);
    assert!(
        matches!(&first[..], [note] if note.starts_with("node b would need more than 1 kinds")),
        "{first:?}"
    );
    // Another node comes to it, and then those leave one by one of which it was said.
    task.apply([pod_on("a", 3)].into_iter(), Instant::now());
    assert_eq!(closed(&task), 3);
    for node in ["a", "b", "c"] {
        task.apply([Change::Engine(Event::PodGone(Key::new("shop", node)))].into_iter(), Instant::now());
        task.reconsider(Duration::MAX);
    }
    assert_eq!(notes(&mut told), Vec::<String>::new());
    assert_eq!(task.metrics.policies_failing_closed.get(), 0);
    // It was over, and is news when it happens again.
    task.apply([pod_on("a", 1), pod_on("c", 2)].into_iter(), Instant::now());
    assert_eq!(notes(&mut told).len(), 1);
}

#[test]
fn a_namespace_whose_services_are_left_out_is_told_so_once() {
    let (mut task, mut told) = task(&["a"]);
    let mut apply = |service| {
        task.apply([Change::Service(service, "uid".into())].into_iter(), Instant::now());
        task.count();
        let told = told.try_recv().ok().map(|Notice { regarding, note, .. }| (regarding, note));
        (told, task.metrics.frontends_left_out.get())
    };
    let service = |ports: u16| {
        let port = |number| ServicePort { name: "".into(), protocol: Protocol::Tcp, number, node_port: None };
        let addresses = vec!["10.96.0.1".parse().unwrap()];
        Service { key: key("shop/web"), addresses, ports: (1..=ports).map(port).collect() }
    };
    assert_eq!(apply(service(2)), (None, 0));
    let (first, left_out) = apply(service(3));
    let (regarding, note) = first.unwrap();
    let of = |text: &Option<String>| text.clone().unwrap();
    assert_eq!((of(&regarding.name), of(&regarding.uid), left_out), ("web".into(), "uid".into(), 1));
    assert!(note.contains("1 are left out, from 6 10.96.0.1:3 on"), "{note:?}");
    assert_eq!(apply(service(4)), (None, 2));
    assert_eq!(apply(service(1)), (None, 0));
}
