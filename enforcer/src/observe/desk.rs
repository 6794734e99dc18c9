//! Where verdicts wait for their names, and become lines. Pure: the clock comes with each call.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durward_log::{Budget, Disposition, End, Line, Summary, Suppressed};
use durward_proto::{Direction, LogMode, LossPlace, PodName};

use super::seen::Seen;
use crate::book::{Book, Endpoint};
use crate::names::{Cache, Name};

/// How long a line waits for what is not known yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many wait at most; more go out with what is known.
const MAX_WAITING: usize = 4096;
/// How long an endpoint is remembered that is gone: its windows end later than it.
const REMEMBER: Duration = Duration::from_secs(60);

/// The desk. With each verdict comes a token that is given back when its line is ready, or will never be.
pub struct Desk<T> {
    node: Arc<str>,
    book: Arc<Book>,
    /// How allowed connections are or were logged: records can arrive after logging was switched off.
    allow_mode: LogMode,
    gone: HashMap<u32, (Endpoint, Instant)>,
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
pub struct Done<T> {
    /// Its line; none if it has none.
    pub line: Option<Line>,
    /// What the line lacks.
    pub losses: Vec<LossPlace>,
    /// What came with it.
    pub token: T,
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
    pub fn new(node: Arc<str>, lines_per_s: usize) -> Self {
        Self {
            node,
            book: Arc::default(),
            allow_mode: LogMode::All,
            gone: HashMap::new(),
            budgets: [Budget::new(lines_per_s), Budget::new(lines_per_s)],
            waiting: VecDeque::new(),
            summary: Summary::default(),
        }
    }

    /// The book has changed.
    pub fn read(&mut self, book: Arc<Book>, now: Instant) {
        let before = std::mem::replace(&mut self.book, book);
        let left = before.endpoints.iter().filter(|(ifindex, _)| !self.book.endpoints.contains_key(ifindex));
        self.gone.extend(left.map(|(&ifindex, endpoint)| (ifindex, (endpoint.clone(), now))));
        self.gone.retain(|_, (_, since)| now.duration_since(*since) < REMEMBER);
        if self.book.logging.allow != LogMode::Off {
            self.allow_mode = self.book.logging.allow;
        }
    }

    /// Takes a verdict in, if there is budget for its line; else counts it, and gives the token back.
    ///
    /// # Errors
    ///
    /// The token, if the budget is used up.
    pub fn take(&mut self, seen: Seen, token: T, clock_ns: u64, now: Instant) -> Result<(), T> {
        if self.budgets[usize::from(seen.allowed)].take(clock_ns) {
            self.waiting.push_back(Waiting { seen, token, since: now });
            return Ok(());
        }
        let packets = if seen.allowed { 0 } else { seen.count };
        let direction = seen.connection.direction;
        self.suppressed(seen.allowed, direction, seen.ifindex, seen.attribution, (1, packets));
        Err(token)
    }

    /// Counts lines and packets that are not told of otherwise.
    pub fn suppressed(
        &mut self,
        allowed: bool,
        direction: Direction,
        ifindex: u32,
        attribution: u32,
        (lines, packets): (u64, u64),
    ) {
        let pod = self.endpoint(ifindex).map(|pod| (pod.namespace.clone(), pod.name.clone()));
        let policies = self.book.attributions.get(&attribution).cloned();
        self.summary.add(Suppressed { allowed, direction, pod, policies }, lines, packets);
    }

    /// What was suppressed since it was forgotten last.
    pub fn summary(&mut self) -> &mut Summary {
        &mut self.summary
    }

    /// The verdicts whose lines are ready, or cannot wait longer (with `hurry`: all), and the addresses whose
    /// names the others wait for.
    pub fn settle(&mut self, names: &Cache, now: Instant, hurry: bool) -> (Vec<Done<T>>, HashSet<IpAddr>) {
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

    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        let here = self.book.endpoints.get(&ifindex);
        here.or_else(|| self.gone.get(&ifindex).map(|(endpoint, _)| endpoint))
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
        let local = match self.endpoint(seen.ifindex) {
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
            count: seen.count,
            node: self.node.clone(),
            at_ns: seen.at_ns,
        });
        Draft { line, losses, unknown }
    }

    fn disposition(&self, seen: &Seen, losses: &mut Vec<LossPlace>) -> Option<Disposition> {
        let attribution = self.book.attributions.get(&seen.attribution);
        if attribution.is_none() {
            losses.push(LossPlace::Policies);
        }
        match (seen.allowed, attribution) {
            (true, Some(attribution)) => {
                durward_log::allow(self.allow_mode, attribution).map(Disposition::Allow)
            }
            // Which ones asked for the line, nobody knows any more.
            (true, None) if self.allow_mode == LogMode::Delegated => None,
            (true, None) => Some(Disposition::Allow(Vec::new())),
            (false, attribution) => {
                let policies = attribution.map(|attribution| attribution.0.to_vec());
                Some(Disposition::Deny(policies.unwrap_or_default()))
            }
        }
    }
}
