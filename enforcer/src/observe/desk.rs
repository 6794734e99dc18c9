//! Where verdicts wait for their names, and become lines. Pure: the clock comes with each call.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durward_log::{Budget, Disposition, End, Line, Service, Summary, Suppressed};
use durward_proto::{Direction, LogMode, LossPlace, PodName};

use super::seen::Seen;
use crate::book::{Book, Endpoint, ServiceName};
use crate::names::{Cache, Name};
use crate::services::Judging;

/// How long a line waits for what is not known yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many wait at most; more go out with what is known.
const MAX_WAITING: usize = 4096;

/// How many changes of the configuration are remembered.
const MAX_MODES: usize = 16;

/// The desk. With each verdict comes a token that is given back when its line is ready, or will never be.
pub(crate) struct Desk<T> {
    node: Arc<str>,
    book: Arc<Book>,
    /// How allowed connections were logged, and since when, in nanoseconds since 1970: what was recorded before
    /// a change is logged as it was then. Off is none of them: of what is recorded then, the end is on its way.
    allow_modes: VecDeque<(i64, LogMode)>,
    budgets: [Budget; 2],
    waiting: VecDeque<Waiting<T>>,
    summary: Summary,
}

struct Waiting<T> {
    seen: Seen,
    token: T,
    since: Instant,
}

/// What became of a verdict.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done<T> {
    /// Its line; none if it has none.
    pub(crate) line: Option<Line>,
    /// What the line lacks.
    pub(crate) losses: Vec<LossPlace>,
    /// What came with it.
    pub(crate) token: T,
}

/// A verdict's line, as far as it can be known.
struct Draft {
    line: Option<Line>,
    losses: Vec<LossPlace>,
    /// Whose names are not known yet.
    unknown: Vec<IpAddr>,
}

impl<T> Desk<T> {
    /// An empty desk.
    pub(crate) fn new(node: Arc<str>, lines_per_s: usize) -> Self {
        Self {
            node,
            book: Arc::default(),
            allow_modes: VecDeque::new(),
            budgets: [Budget::new(lines_per_s), Budget::new(lines_per_s)],
            waiting: VecDeque::new(),
            summary: Summary::default(),
        }
    }

    /// The book has changed.
    pub(crate) fn read(&mut self, book: Arc<Book>, now_ns: i64) {
        let mode = book.logging.allow;
        self.book = book;
        if mode != LogMode::Off && self.allow_modes.back().is_none_or(|(_, last)| *last != mode) {
            self.allow_modes.push_back((now_ns, mode));
            if self.allow_modes.len() > MAX_MODES {
                self.allow_modes.pop_front();
            }
        }
    }

    fn allow_mode(&self, at_ns: i64) -> LogMode {
        let then = self.allow_modes.iter().rev().find(|(since_ns, _)| *since_ns <= at_ns);
        then.or(self.allow_modes.front()).map_or(LogMode::All, |(_, mode)| *mode)
    }

    /// Takes a verdict in, if there is budget for its line; else counts it, and gives the token back.
    ///
    /// # Errors
    ///
    /// The token, if the budget is used up.
    pub(crate) fn take(&mut self, seen: Seen, token: T, now: Instant) -> Result<(), T> {
        if self.budgets[usize::from(seen.allowed)].take(now) {
            self.waiting.push_back(Waiting { seen, token, since: now });
            return Ok(());
        }
        let packets = if seen.allowed { 0 } else { seen.count };
        let direction = seen.connection.direction;
        self.suppressed(seen.allowed, direction, seen.ifindex, seen.attribution, (1, packets));
        Err(token)
    }

    /// Counts lines and packets that are not told of otherwise.
    pub(crate) fn suppressed(
        &mut self,
        allowed: bool,
        direction: Direction,
        ifindex: u32,
        attribution: u32,
        (lines, packets): (u64, u64),
    ) {
        let pod = self.book.endpoints.get(&ifindex).map(|pod| (pod.namespace.clone(), pod.name.clone()));
        let policies = self.book.attributions.get(&attribution).cloned();
        self.summary.add(Suppressed { allowed, direction, pod, policies }, lines, packets);
    }

    /// What was suppressed since it was forgotten last.
    pub(crate) fn summary(&mut self) -> &mut Summary {
        &mut self.summary
    }

    /// The verdicts whose lines are ready, or cannot wait longer (with `hurry`: all), and the addresses whose
    /// names the others wait for.
    pub(crate) fn settle(
        &mut self,
        names: &Cache,
        now: Instant,
        hurry: bool,
    ) -> (Vec<Done<T>>, HashSet<IpAddr>) {
        let (mut done, mut unknown) = (Vec::new(), HashSet::new());
        let mut excess = self.waiting.len().saturating_sub(MAX_WAITING);
        for Waiting { seen, token, since } in std::mem::take(&mut self.waiting) {
            let hurry = hurry || excess > 0 || now.duration_since(since) >= PATIENCE;
            excess = excess.saturating_sub(1);
            let draft = self.draft(&seen, names);
            if draft.unknown.is_empty() || hurry {
                let Draft { line, mut losses, unknown } = draft;
                losses.extend(unknown.iter().map(|_| LossPlace::Name));
                done.push(Done { line, losses, token });
            } else {
                unknown.extend(draft.unknown);
                self.waiting.push_back(Waiting { seen, token, since });
            }
        }
        (done, unknown)
    }

    /// Whether verdicts wait.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The interfaces of the book.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.book.endpoints.keys().copied()
    }

    fn draft(&self, seen: &Seen, names: &Cache) -> Draft {
        let (mut losses, mut unknown) = (Vec::new(), Vec::new());
        let at_ms = seen.at_ns / 1_000_000;
        let mut end = |address: IpAddr| match names.at(address, at_ms) {
            Name::Pod(pod) => End::Pod(pod),
            Name::Nobody => End::Instance(address),
            Name::Unknown => {
                unknown.push(address);
                End::Instance(address)
            }
        };
        let remote = end(seen.remote().ip());
        let address = seen.local().ip();
        let local = match self.book.endpoints.get(&seen.ifindex) {
            // Whose interface it is, is known for sure; its workload has to be asked for.
            Some(Endpoint { namespace, name, .. }) => {
                let workload = names.workload(address, namespace, name);
                if workload.is_none() {
                    unknown.push(address);
                }
                let (namespace, name) = (namespace.clone(), name.clone());
                End::Pod(PodName { namespace, name, workload: workload.flatten() })
            }
            None => {
                losses.push(LossPlace::Endpoint);
                end(address)
            }
        };
        let (src, dest) = match seen.connection.direction {
            Direction::Ingress => (remote, local),
            Direction::Egress => (local, remote),
        };
        let disposition = self.disposition(seen, &mut losses);
        let line = disposition.map(|disposition| Line {
            connection: seen.connection.clone(),
            disposition,
            src,
            dest,
            service: self.service(seen),
            count: seen.count,
            node: self.node.clone(),
            at_ns: seen.at_ns,
        });
        Draft { line, losses, unknown }
    }

    /// The Service that was called, as far as it is known: its name may have been forgotten.
    fn service(&self, seen: &Seen) -> Option<Service> {
        // Where nobody sees what calls are translated to, they are judged by where they went.
        let conservative = seen.called.is_none();
        let called = seen.called.or_else(|| {
            let by_frontend = self.book.judging == Judging::Conservative;
            (by_frontend && seen.connection.direction == Direction::Egress).then_some(seen.connection.dest)
        })?;
        let ServiceName { namespace, name } = self.book.service(called, seen.connection.protocol)?.clone();
        Some(Service { namespace, name, conservative })
    }

    fn disposition(&self, seen: &Seen, losses: &mut Vec<LossPlace>) -> Option<Disposition> {
        let attribution = self.book.attributions.get(&seen.attribution);
        if attribution.is_none() {
            losses.push(LossPlace::Policies);
        }
        let mode = self.allow_mode(seen.at_ns);
        match (seen.allowed, attribution) {
            (true, Some(attribution)) => durward_log::allow(mode, attribution).map(Disposition::Allow),
            // Which ones asked for the line, nobody knows any more.
            (true, None) if mode == LogMode::Delegated => None,
            (true, None) => Some(Disposition::Allow(Vec::new())),
            (false, attribution) => {
                let policies = attribution.map(|attribution| attribution.list().0.to_vec());
                Some(Disposition::Deny(policies.unwrap_or_default()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_log::Connection;
    use durward_proto::{Attribution, Frontend, Identity, Logging, Policy, Workload};

    const AT_MS: i64 = 1_000_000;

    fn address(host: u8) -> IpAddr {
        [10, 0, 0, host].into()
    }

    fn policy(name: &str, logged: bool) -> Policy {
        Policy { namespace: "shop".into(), name: name.into(), logged }
    }

    /// Pod `redis` behind interface 5 at 10.0.0.1; attribution 7 is one policy that asks and one that does not.
    fn book(allow: LogMode) -> Arc<Book> {
        let redis = Endpoint {
            uid: "uid-1".into(),
            namespace: "shop".into(),
            name: "redis".into(),
            addresses: vec![address(1)],
            denies_logged: false,
        };
        Arc::new(Book {
            attributions: [(7, Attribution::new([policy("asks", true), policy("silent", false)]).into())]
                .into(),
            endpoints: [(5, redis)].into(),
            services: [
                (frontend("6 10.96.0.1:6379"), service("cache")),
                (frontend("6 *:30000"), service("everywhere")),
            ]
            .into(),
            host: ["192.0.2.7".parse().unwrap()].into(),
            judging: Judging::Translated,
            logging: Logging { allow, ..Logging::default() },
        })
    }

    fn frontend(text: &str) -> Frontend {
        text.parse().unwrap()
    }

    fn service(name: &str) -> ServiceName {
        ServiceName { namespace: "shop".into(), name: name.into() }
    }

    fn desk(allow: LogMode, lines_per_s: usize) -> Desk<u32> {
        let mut desk = Desk::new("node-1".into(), lines_per_s);
        desk.read(book(allow), 0);
        desk
    }

    /// From `remote` to redis.
    fn seen(allowed: bool, remote: u8) -> Seen {
        Seen {
            allowed,
            connection: Connection {
                src: (address(remote), 4000).into(),
                dest: (address(1), 6379).into(),
                protocol: 6,
                direction: Direction::Ingress,
            },
            called: None,
            ifindex: 5,
            attribution: 7,
            count: if allowed { 1 } else { 3 },
            at_ns: AT_MS * 1_000_000,
        }
    }

    fn pod(name: &str, workload: Option<&str>) -> PodName {
        let workload = workload.map(|name| Workload { kind: "Deployment".into(), name: name.into() });
        PodName { namespace: "shop".into(), name: name.into(), workload }
    }

    /// redis and rogue (10.0.0.2) are known.
    fn names() -> Cache {
        let mut names = Cache::default();
        for (host, pod) in [(1, pod("redis", Some("cache"))), (2, pod("rogue", None))] {
            names.learn(address(host), Identity { pod: Some(pod), since_ms: 0 }, AT_MS + 10_000);
        }
        names
    }

    fn line(seen: Seen, disposition: Disposition, src: End, dest: End) -> Option<Line> {
        let Seen { connection, count, at_ns, .. } = seen;
        let (node, service) = ("node-1".into(), None);
        Some(Line { connection, disposition, src, dest, service, count, node, at_ns })
    }

    fn settle(desk: &mut Desk<u32>, names: &Cache, now: Instant) -> (Vec<Done<u32>>, Vec<IpAddr>) {
        let (done, unknown) = desk.settle(names, now, false);
        let mut unknown: Vec<_> = unknown.into_iter().collect();
        unknown.sort_unstable();
        (done, unknown)
    }

    #[test]
    fn a_denial_becomes_a_line_with_both_ends_and_those_that_isolate() {
        let (mut desk, now) = (desk(LogMode::Off, 9), Instant::now());
        desk.take(seen(false, 2), 1, now).unwrap();
        let isolated_by = Disposition::Deny(vec![policy("asks", true), policy("silent", false)]);
        let (src, dest) = (End::Pod(pod("rogue", None)), End::Pod(pod("redis", Some("cache"))));
        let expected = line(seen(false, 2), isolated_by, src, dest);
        let done = Done { line: expected, losses: vec![], token: 1 };
        assert_eq!(settle(&mut desk, &names(), now), (vec![done], vec![]));
        assert!(!desk.is_waiting());
    }

    #[test]
    fn the_service_that_was_called_stands_beside_the_backend() {
        let (mut desk, now) = (desk(LogMode::Off, 99), Instant::now());
        let called = |at: &str| Seen { called: Some(at.parse().unwrap()), ..seen(false, 2) };
        for at in ["10.96.0.1:6379", "192.0.2.7:30000", "192.0.2.8:30000"] {
            desk.take(called(at), 1, now).unwrap();
        }
        // Judged by the frontend itself; and what is no call to a Service.
        let mut direct = seen(false, 2);
        direct.connection.direction = Direction::Egress;
        direct.connection.dest = "10.96.0.1:6379".parse().unwrap();
        desk.take(direct.clone(), 1, now).unwrap();
        let services = |desk: &mut Desk<u32>| -> Vec<Option<(String, bool)>> {
            let (done, _) = desk.settle(&names(), now, true);
            let service = |done: &Done<u32>| done.line.as_ref()?.service.clone();
            let services = done.iter().map(service);
            services.map(|service| service.map(|it| (it.name.to_string(), it.conservative))).collect()
        };
        let exact = |name: &str| Some((name.to_owned(), false));
        assert_eq!(services(&mut desk), [exact("cache"), exact("everywhere"), None, None]);
        desk.read(Arc::new(Book { judging: Judging::Conservative, ..(*book(LogMode::Off)).clone() }), 1);
        desk.take(direct, 1, now).unwrap();
        desk.take(seen(false, 2), 1, now).unwrap();
        assert_eq!(services(&mut desk), [Some(("cache".to_owned(), true)), None]);
    }

    #[test]
    fn a_line_waits_for_names_and_then_goes_without() {
        let (mut desk, now) = (desk(LogMode::All, 9), Instant::now());
        desk.take(seen(true, 3), 1, now).unwrap();
        let nobody = Cache::default();
        assert_eq!(settle(&mut desk, &nobody, now), (vec![], vec![address(1), address(3)]));
        let (mut done, unknown) = settle(&mut desk, &nobody, now + PATIENCE);
        assert!(unknown.is_empty());
        let Done { line, losses, token } = done.remove(0);
        let line = line.unwrap();
        assert_eq!((line.src, line.dest), (End::Instance(address(3)), End::Pod(pod("redis", None))));
        assert_eq!((losses, token), (vec![LossPlace::Name; 2], 1));
    }

    #[test]
    fn an_answer_lets_a_line_go() {
        let (mut desk, now) = (desk(LogMode::All, 9), Instant::now());
        let mut names = names();
        desk.take(seen(true, 3), 1, now).unwrap();
        assert_eq!(settle(&mut desk, &names, now), (vec![], vec![address(3)]));
        names.learn(address(3), Identity { pod: None, since_ms: 0 }, AT_MS + 10_000);
        let (done, _) = settle(&mut desk, &names, now);
        assert_eq!(done[0].line.as_ref().map(|line| &line.src), Some(&End::Instance(address(3))));
        assert_eq!(done[0].losses, []);
    }

    #[test]
    fn delegation_lists_those_that_ask_also_of_records_from_before_logging_ended() {
        let (mut desk, now) = (desk(LogMode::Delegated, 9), Instant::now());
        desk.read(book(LogMode::Off), 1);
        desk.take(seen(true, 2), 1, now).unwrap();
        let (done, _) = settle(&mut desk, &names(), now);
        let disposition = done[0].line.as_ref().map(|line| line.disposition.clone());
        assert_eq!(disposition, Some(Disposition::Allow(vec![policy("asks", true)])));
    }

    #[test]
    fn what_was_recorded_before_a_change_is_logged_as_it_was_then() {
        let (mut desk, now) = (desk(LogMode::All, 9), Instant::now());
        let both = Disposition::Allow(vec![policy("asks", true), policy("silent", false)]);
        desk.take(seen(true, 2), 1, now).unwrap();
        desk.read(book(LogMode::Delegated), AT_MS * 1_000_000 + 1);
        let (done, _) = settle(&mut desk, &names(), now);
        assert_eq!(done[0].line.as_ref().map(|line| &line.disposition), Some(&both));
    }

    #[test]
    fn what_nobody_knows_is_left_out_and_counted() {
        let (mut desk, now) = (desk(LogMode::All, 9), Instant::now());
        let strange = Seen { ifindex: 6, attribution: 8, ..seen(false, 2) };
        desk.take(strange.clone(), 1, now).unwrap();
        let (src, dest) = (End::Pod(pod("rogue", None)), End::Pod(pod("redis", Some("cache"))));
        let expected = line(strange, Disposition::Deny(vec![]), src, dest);
        let losses = vec![LossPlace::Endpoint, LossPlace::Policies];
        assert_eq!(settle(&mut desk, &names(), now).0, [Done { line: expected, losses, token: 1 }]);
        // Nobody knows whether it was asked for.
        desk.read(book(LogMode::Delegated), 1);
        desk.take(Seen { attribution: 8, ..seen(true, 2) }, 2, now).unwrap();
        let done = Done { line: None, losses: vec![LossPlace::Policies], token: 2 };
        assert_eq!(settle(&mut desk, &names(), now).0, [done]);
    }

    #[test]
    fn each_disposition_has_its_own_budget_and_what_exceeds_it_is_told() {
        let (mut desk, now) = (desk(LogMode::All, 2), Instant::now());
        let taken: Vec<_> = (0..4).map(|token| desk.take(seen(false, 2), token, now)).collect();
        assert_eq!(taken, [Ok(()), Ok(()), Err(2), Err(3)]);
        assert_eq!(desk.take(seen(true, 2), 4, now), Ok(()));
        assert_eq!(desk.take(seen(false, 2), 5, now + Duration::from_secs(1)), Ok(()));
        let told = desk.summary().json("node-1", 0);
        let expected = concat!(
            r#"{"suppressed":[{"disposition":"deny","direction":"ingress","pod_name":"redis","#,
            r#""pod_namespace":"shop","isolated_by":[{"kind":"NetworkPolicy","name":"asks","namespace":"shop"},"#,
            r#"{"kind":"NetworkPolicy","name":"silent","namespace":"shop"}],"lines":2,"packets":6}],"#,
            r#""node_name":"node-1","timestamp":"1970-01-01T00:00:00.000000000Z"}"#,
            "\n"
        );
        assert_eq!(told, expected);
    }

    #[test]
    fn too_many_never_wait() {
        let (mut desk, now) = (desk(LogMode::All, usize::MAX), Instant::now());
        for _ in 0..MAX_WAITING + 10 {
            desk.take(seen(true, 3), 0, now).unwrap();
        }
        assert_eq!(settle(&mut desk, &names(), now).0.len(), 10);
    }
}
