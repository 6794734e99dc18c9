//! The service as a node sees it, over a real connection on loopback. Does IO.

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use durward_engine::object::{Event, Key, Pod, Protocol, Service as Called, ServicePort};
use durward_engine::sample::{block, egress, ingress, pods, rule};
use durward_engine::{Detail, Limits};
use durward_proto::wire::control_client::ControlClient;
use durward_proto::wire::{FromNode, Hello, from_node};
use durward_proto::{Direction, Identity, LateAttach, LogMode, Logging, NodeView, PodName, PortKey, ToNode};
use durward_proto::{Verdict, Version};
use futures::StreamExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::event::{Notice, Notices, Severity};
use crate::health::Health;
use crate::identity::PodIdentity;
use crate::logging::Progress;
use crate::metrics::Kind;
use crate::room::{self, Room};
use crate::task::{Change, Task};

/// No wait here should take a second; a machine that is busy may take long.
const DEADLINE: Duration = Duration::from_secs(90);
const EPOCH: u64 = 7;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it did not happen in time")
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < DEADLINE, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A controller without an API server.
struct Controller {
    changes: mpsc::Sender<Change>,
    notices: mpsc::Receiver<Notice>,
    progress: watch::Receiver<Progress>,
    metrics: Arc<Metrics>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl Controller {
    /// One that has listed everything, and found the node.
    async fn start() -> Self {
        Self::with_room(room::MOST).await
    }

    /// One with room for so many entries on their way.
    async fn with_room(most: usize) -> Self {
        let metrics = Arc::new(Metrics::default());
        let (notices, told) = Notices::new(metrics.clone());
        let ((changes, changed), (asks, asked)) = (mpsc::channel(16), mpsc::channel(16));
        let (progress, progressed) = watch::channel(Progress::default());
        let (stop, stopped) = oneshot::channel();
        let backends = watch::Sender::new(false);
        let task = Task::new(Room::new(most), progress, backends, notices, Arc::default(), metrics.clone());
        tokio::spawn(task.run(changed, asked, async { drop(stopped.await) }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service { asks, epoch: EPOCH, metrics: metrics.clone() };
        let server = tokio::spawn(async { serve(service, listener, pending()).await.unwrap() });
        let stop = Some(stop);
        let this = Self { changes, notices: told, progress: progressed, metrics, address, stop, server };
        this.tell([Change::Node("node-1".into(), true)]).await;
        this.tell(Kind::NEEDED.map(Change::Listed)).await;
        this
    }

    async fn tell(&self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            soon(self.changes.send(change)).await.unwrap();
        }
    }

    async fn log(&self, generation: i64) {
        self.tell([Change::logging(logging(generation))]).await;
    }

    async fn client(&self) -> ControlClient<Channel> {
        // Small windows, so that a node that does not read is felt.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        ControlClient::new(soon(endpoint.connect()).await.unwrap())
    }

    async fn node(&self, has: Option<Version>) -> Node {
        self.named("node-1", has).await
    }

    async fn named(&self, name: &str, has: Option<Version>) -> Node {
        let (node, has) = (name.to_owned(), has.map(wire::Version::from));
        self.say(from_node::Message::Hello(Hello { node, has, backends: false })).await
    }

    async fn say(&self, first: from_node::Message) -> Node {
        self.send(FromNode { message: Some(first) }).await
    }

    async fn send(&self, first: FromNode) -> Node {
        let (outbound, messages) = mpsc::channel(4);
        outbound.send(first).await.unwrap();
        let mut client = self.client().await;
        let inbound = soon(client.subscribe(ReceiverStream::new(messages))).await.unwrap().into_inner();
        Node { outbound, inbound, heard: NodeView::default(), view: NodeView::default(), has: None }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A node that applies what it hears.
struct Node {
    outbound: mpsc::Sender<FromNode>,
    inbound: Streaming<wire::ToNode>,
    /// The view with the parts that were heard of the next one.
    heard: NodeView,
    view: NodeView,
    has: Option<Version>,
}

impl Node {
    /// Hears one message.
    async fn hear(&mut self) -> Result<ToNode, Status> {
        let message = soon(self.inbound.message()).await?.expect("a stream ends with a reason");
        let message = ToNode::try_from(message).unwrap();
        match message.clone() {
            ToNode::Part(patch) => self.heard.patch(patch).unwrap(),
            ToNode::InSync(version) => self.is_whole(version),
            ToNode::Change { to, patch } => {
                self.heard.patch(patch).unwrap();
                self.is_whole(to);
            }
        }
        Ok(message)
    }

    fn is_whole(&mut self, version: Version) {
        self.view.clone_from(&self.heard);
        self.has = Some(version);
    }

    /// Hears the opening, up to the mark that the view is whole. Gives how many parts came before it.
    async fn open(&mut self) -> usize {
        for parts in 0.. {
            if let ToNode::InSync(_) = self.hear().await.unwrap() {
                return parts;
            }
        }
        unreachable!("the loop has no end")
    }

    async fn refused(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }

    async fn say(&self, message: from_node::Message) {
        soon(self.outbound.send(FromNode { message: Some(message) })).await.unwrap();
    }

    async fn acknowledge(&self) {
        self.say(from_node::Message::Acked(self.has.unwrap().into())).await;
    }
}

fn logging(generation: i64) -> Logging {
    Logging { allow: LogMode::Off, deny: LogMode::All, generation }
}

fn pod(number: usize, round: usize) -> Pod {
    Pod {
        uid: (&*format!("uid-{number}")).into(),
        key: Key::new("shop", format!("pod-{number}-{}", "x".repeat(200))),
        labels: Arc::default(),
        addresses: vec![std::net::IpAddr::from([10, round as u8, (number >> 8) as u8, number as u8])],
        node: Some("node-1".into()),
        host_network: false,
        completed: false,
        config_hash: None,
        ports: vec![],
    }
}

#[tokio::test]
async fn a_node_hears_its_view_then_what_changes_and_says_what_it_has() {
    let controller = Controller::start().await;
    controller.log(1).await;
    let mut node = controller.node(None).await;
    assert!(node.open().await > 0);
    let mut progress = controller.progress.clone();
    let reaches = |applied| move |now: &Progress| *now == Progress { generation: 2, applied, total: 1 };
    controller.log(2).await;
    while node.view.logging != logging(2) {
        node.hear().await.unwrap();
    }
    soon(progress.wait_for(reaches(0))).await.unwrap();
    node.acknowledge().await;
    soon(progress.wait_for(reaches(1))).await.unwrap();
}

#[tokio::test]
async fn a_node_that_comes_back_is_told_only_what_it_lacks() {
    let controller = Controller::start().await;
    controller.log(1).await;
    let mut node = controller.node(None).await;
    node.open().await;
    while node.view.logging != logging(1) {
        node.hear().await.unwrap();
    }
    let Node { view, has, .. } = node;

    let mut again = controller.node(has).await;
    assert_eq!(again.open().await, 0);
    assert_eq!(again.has, has);
    again.view = view.clone();
    controller.log(2).await;
    again.hear().await.unwrap();
    assert_eq!(again.view.logging, logging(2));

    // What the controller does not know to be there is sent whole.
    let other = Version { epoch: EPOCH + 1, number: 1 };
    for has in [has, Some(other), None] {
        let mut stranger = controller.node(has).await;
        assert!(stranger.open().await > 0);
        assert_eq!(stranger.view.logging, logging(2));
    }
}

#[tokio::test]
async fn a_node_that_does_not_read_is_owed_the_newest_view_and_no_queue() {
    const ROUNDS: usize = 60;
    const PODS: usize = 500;
    let controller = Controller::start().await;
    let mut node = controller.node(None).await;
    node.open().await;
    let versions = controller.metrics.view_versions.get();
    for round in 1..=ROUNDS {
        // One patch of more than 100 KiB each: the next round begins when it is in the mailbox.
        let before = controller.metrics.view_versions.get();
        controller.tell((0..PODS).map(|number| Change::Engine(Event::Pod(pod(number, round))))).await;
        until("a new version", || controller.metrics.view_versions.get() > before).await;
    }
    controller.log(9).await;
    until("the last version", || controller.metrics.view_versions.get() > versions + ROUNDS as u64).await;
    let mut messages = 0;
    while node.view.logging != logging(9) {
        node.hear().await.unwrap();
        messages += 1;
    }
    let made = controller.metrics.view_versions.get() - versions;
    assert!(messages < made / 2, "{messages} messages for {made} versions: nothing was merged");
    assert_eq!(node.view.pods.len(), PODS);
    let last = |number| pod(number, ROUNDS).addresses;
    for (number, name) in (0..PODS).map(|number| (number, format!("uid-{number}"))) {
        assert_eq!(node.view.pods[&(&*name).into()].addresses, last(number));
    }
}

#[tokio::test]
async fn a_node_that_falls_too_far_behind_comes_back_for_the_whole_view() {
    const PODS: usize = 6_000;
    let controller = Controller::start().await;
    let mut node = controller.node(None).await;
    node.open().await;
    for round in 1..=3 {
        controller.tell((0..PODS).map(|number| Change::Engine(Event::Pod(pod(number, round))))).await;
    }
    until("it is behind", || controller.metrics.nodes_behind.get() == 1).await;
    assert_eq!(node.refused().await.code(), Code::Aborted);

    let mut again = controller.node(node.has).await;
    assert!(again.open().await > 0);
    while again.view.pods.len() < PODS {
        again.hear().await.unwrap();
    }
    controller.log(5).await;
    while again.view.logging != logging(5) {
        again.hear().await.unwrap();
    }
    assert!(again.view.pods.values().all(|pod| pod.addresses[0].to_string().starts_with("10.3.")));
}

#[tokio::test]
async fn a_change_does_not_wait_for_the_confirmation_of_the_one_before() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _node = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = soon(incoming(listener).next()).await;
    assert!(accepted.unwrap().unwrap().nodelay().unwrap());
}

#[tokio::test]
async fn what_is_too_much_for_all_nodes_at_once_they_are_told_one_after_the_other() {
    const PODS: usize = 5_000;
    let names = ["node-1", "node-2", "node-3"];
    let controller = Controller::with_room(1).await;
    for (number, name) in names.into_iter().enumerate() {
        let pod = Pod { node: Some(name.into()), ..pod(PODS + number, 2) };
        controller.tell([Change::Node(name.into(), true), Change::Engine(Event::Pod(pod))]).await;
    }
    let others = (0..PODS).map(|number| Pod { node: None, ..pod(number, 1) });
    controller.tell(others.map(|pod| Change::Engine(Event::Pod(pod)))).await;
    let mut nodes = vec![];
    for name in names {
        let mut node = controller.named(name, None).await;
        node.open().await;
        nodes.push(node);
    }
    let policy = ingress("shop/all", "", [rule([pods("")], [])]);
    controller.tell([Change::Policy(policy, "uid".into())]).await;
    let mut begun_anew = 0;
    for (mut node, name) in nodes.into_iter().zip(names) {
        while node.view.addresses.len() < PODS + names.len() {
            if let Err(status) = node.hear().await {
                assert_eq!(status.code(), Code::Aborted);
                begun_anew += 1;
                node = controller.named(name, node.has).await;
            }
        }
    }
    // The first had room, or what there was.
    assert!(begun_anew > 0 && begun_anew < names.len(), "{begun_anew} nodes began anew");
}

#[tokio::test]
async fn a_change_that_is_larger_than_any_message_comes_in_parts() {
    let controller = Controller::start().await;
    let mut node = controller.node(None).await;
    node.open().await;
    let port = |number| ServicePort { name: "".into(), protocol: Protocol::Tcp, number, node_port: None };
    let service = Called {
        key: Key::new("s".repeat(63), "w".repeat(63)),
        addresses: (1..=10).map(|n| IpAddr::from([10, 96, 0, n])).collect(),
        ports: (1..=10_000).map(port).collect(),
    };
    controller.tell([Change::Service(service, "uid".into()), Change::Engine(Event::Pod(pod(0, 1)))]).await;
    let isolating = Event::Policy(egress("shop/closed", "", []));
    controller.tell([Change::Engine(isolating)]).await;
    let mut parts = 0;
    while node.view.services.is_empty() {
        parts += usize::from(matches!(node.hear().await.unwrap(), ToNode::Part(_)));
    }
    // A tonic client takes 4 MiB at once.
    assert!(parts * durward_proto::encode::MAX_PART_BYTES > 4 << 20, "{parts} parts");
    assert_eq!(node.view.services.len(), Limits::default().frontends_per_node);
    controller.log(5).await;
    while node.view.logging != logging(5) {
        node.hear().await.unwrap();
    }
}

#[tokio::test]
async fn a_newer_stream_of_a_node_replaces_the_older() {
    let controller = Controller::start().await;
    let mut older = controller.node(None).await;
    older.open().await;
    let mut newer = controller.node(None).await;
    newer.open().await;
    assert_eq!(older.refused().await.code(), Code::Aborted);
    // The old one's end does not touch the new one.
    controller.log(3).await;
    newer.hear().await.unwrap();
    assert_eq!(newer.view.logging, logging(3));
}

#[tokio::test]
async fn what_is_not_understood_is_refused_by_name_and_nothing_else_stops() {
    let controller = Controller::start().await;
    let mut good = controller.node(None).await;
    good.open().await;
    let hello =
        |node: &str| from_node::Message::Hello(Hello { node: node.to_owned(), has: None, backends: false });
    let version = |epoch| from_node::Message::Acked(wire::Version { epoch, number: 1 });
    for (first, code, text) in [
        // What a newer peer's arm looks like here.
        (None, Code::InvalidArgument, "FromNode.message: missing, or one that this controller does not know"),
        (Some(version(EPOCH)), Code::InvalidArgument, "FromNode.acked: a stream begins with hello"),
        (Some(hello("")), Code::InvalidArgument, "Hello.node: it is empty"),
        (Some(hello("node-9")), Code::NotFound, "the cluster has no Node \"node-9\""),
    ] {
        let refused = controller.send(FromNode { message: first }).await.refused().await;
        assert_eq!(refused.code(), code);
        assert!(refused.message().contains(text), "{refused}");
    }
    controller.tell([Change::Node("node-2".into(), true)]).await;
    for (next, text) in [(hello("node-2"), "there was one already"), (version(EPOCH + 1), "Version.epoch: 8")]
    {
        let mut node = controller.say(hello("node-2")).await;
        node.open().await;
        node.say(next).await;
        let refused = node.refused().await;
        assert!(refused.message().contains(text), "{refused}");
    }
    let request = wire::IdentifyRequest { addresses: vec![vec![1, 2, 3]] };
    let refused = soon(controller.client().await.identify(request)).await.unwrap_err();
    assert!(refused.message().contains("IdentifyRequest.addresses: 3 bytes"), "{refused}");
    assert!(controller.metrics.requests_refused.get() >= 5);

    controller.log(4).await;
    good.hear().await.unwrap();
    assert_eq!(good.view.logging, logging(4));
}

#[tokio::test]
async fn addresses_are_named_and_reports_are_heard() {
    let mut controller = Controller::start().await;
    let address = "10.0.0.1".parse().unwrap();
    let identity = PodIdentity { uid: "u".into(), addresses: vec![address], owner: None, started_ms: 5 };
    let pod = PodName { namespace: "shop".into(), name: "web".into(), workload: None };
    controller.tell([Change::Identity(Key::new("shop", "web"), Some(identity))]).await;
    let mut client = controller.client().await;
    let begin = Instant::now();
    let expected = Identity { pod: Some(pod), since_ms: 5 };
    loop {
        let request =
            wire::IdentifyRequest::from(&IdentifyRequest(vec![address, "fd00::1".parse().unwrap()]));
        let answer = soon(client.identify(request)).await.unwrap().into_inner();
        let mut named = answer.identities.into_iter().map(|identity| Identity::try_from(identity).unwrap());
        let (first, second) = (named.next().unwrap(), named.next().unwrap());
        assert_eq!((second.pod, named.next()), (None, None));
        if first == expected {
            break;
        }
        assert!(begin.elapsed() < DEADLINE, "the pod is not named: {first:?}");
    }

    let report = NodeReport {
        node: "node-1".to_owned(),
        late: vec![LateAttach { pod: "u".into(), open_ms: 3 }],
        problems: vec!["the log folder cannot be written".to_owned()],
        ..NodeReport::default()
    };
    soon(client.report(wire::NodeReport::from(&report))).await.unwrap();
    let notice = soon(controller.notices.recv()).await.unwrap();
    assert_eq!((notice.regarding.kind.as_deref(), &*notice.note), (Some("Node"), &*report.problems[0]));
    assert_eq!(controller.metrics.pods_attached_late.get(), 1);
    let unknown = NodeReport { node: "node-9".to_owned(), ..NodeReport::default() };
    let refused = soon(client.report(wire::NodeReport::from(&unknown))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn streams_end_when_the_controller_does_and_when_the_node_is_gone() {
    let mut controller = Controller::start().await;
    controller.tell([Change::Node("node-2".into(), true)]).await;
    let mut first = controller.node(None).await;
    first.open().await;
    let hello = Hello { node: "node-2".to_owned(), has: None, backends: false };
    let mut second = controller.say(from_node::Message::Hello(hello)).await;
    second.open().await;
    controller.tell([Change::Node("node-2".into(), false)]).await;
    assert_eq!(second.refused().await.code(), Code::Unavailable);
    controller.stop.take().unwrap().send(()).unwrap();
    assert_eq!(first.refused().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_event_names_the_policy_for_which_a_node_has_no_room_until_it_has() {
    let mut controller = Controller::start().await;
    let mut node = controller.node(None).await;
    node.open().await;
    controller.tell([Change::Engine(Event::Pod(pod(1, 0)))]).await;
    let remote = |n: u32, i: u32| IpAddr::from((0x0b00_0000 + n * 0x1_0000 + i).to_be_bytes());
    let policies = (0..14).map(|n| {
        let peers = (0..5_000).map(|i| block(&format!("{}/32", remote(n, i)), &[]));
        ingress(&format!("shop/blocks-{n:02}"), "", [rule(peers, [])])
    });
    let changes = policies.map(|policy| {
        let uid = format!("uid of {}", policy.key).into();
        Change::Policy(policy, uid)
    });
    controller.tell(changes).await;
    let notice = soon(controller.notices.recv()).await.unwrap();
    assert_eq!((notice.severity, notice.reason), (Severity::Warning, "PolicyFailsClosed"));
    assert_eq!(notice.regarding.uid.as_deref(), Some("uid of shop/blocks-00"));
    assert!(notice.note.contains("node node-1 would need more than 65536 prefixes"), "{}", notice.note);
    assert_eq!(controller.metrics.policies_failing_closed.get(), 1);
    // What is left fits; nothing but time tells the controller to try it.
    let others = (1..14).map(|n| Event::PolicyGone(Key::new("shop", format!("blocks-{n:02}"))));
    controller.tell(others.map(Change::Engine)).await;
    let allows = |node: &Node| {
        let act = node.view.act(&"uid-1".into(), Direction::Ingress, remote(0, 7), PortKey::new(6, 80));
        act.is_some_and(|act| act.verdict == Verdict::Allow && node.view.blocks.len() == 5_000)
    };
    while !allows(&node) {
        // It did not read while its blocks came and went: on a busy machine it is too far behind by now.
        if let Err(status) = node.hear().await {
            assert_eq!(status.code(), Code::Aborted, "{status}");
            node = controller.node(None).await;
            node.open().await;
        }
    }
    until("the fault is withdrawn", || controller.metrics.policies_failing_closed.get() == 0).await;
}

#[test]
fn nothing_is_published_before_every_kind_was_listed() {
    let metrics = Arc::new(Metrics::default());
    let (notices, _told) = Notices::new(metrics.clone());
    let (progress, _progressed) = watch::channel(Progress::default());
    let health = Arc::new(Health::default());
    let (backends, wanted) = watch::channel(false);
    let room = Room::new(room::MOST);
    let mut task = Task::new(room, progress, backends, notices, health.clone(), metrics);
    let nodes = ["node-1", "node-2"].map(|node| Change::Node(node.into(), true));
    task.apply(nodes.into_iter(), Instant::now());
    let (reply, mut answer) = oneshot::channel();
    task.answer(Ask::Subscribe { node: "node-1".into(), has: None, detail: Detail::Frontends, reply });
    assert!(!*wanted.borrow(), "nobody needs slices");
    let (reply, mut conservative) = oneshot::channel();
    task.answer(Ask::Subscribe { node: "node-2".into(), has: None, detail: Detail::Backends, reply });
    assert!(*wanted.borrow());
    for kind in Kind::NEEDED {
        assert!(!health.ready().0 && answer.try_recv().is_err(), "{kind:?} is not listed yet");
        task.apply([Change::Listed(kind)].into_iter(), Instant::now());
    }
    assert!(health.ready().0 && answer.try_recv().unwrap().is_ok());
    // Without its slices a Service's calls would all be denied there.
    assert!(conservative.try_recv().is_err());
    task.apply([Change::Listed(Kind::EndpointSlice)].into_iter(), Instant::now());
    assert!(conservative.try_recv().unwrap().is_ok());
}
