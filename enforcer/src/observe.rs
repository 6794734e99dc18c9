//! From the kernel's records and windows to lines in the log. IO.
//!
//! ```text
//! ring ─────────┐                      names (controller)
//! deny table ───┼─→ seen ─→ desk ─→ line ─→ durward-log's queue ─→ file
//! suppressed ───┘     (budget, waits for names)     └─ in the file: the window's place is free again
//! ```
//!
//! A window of denials stays in the kernel until its line is in the file. Who is killed in between leaves it
//! there; the next one asks the file whether it was written. So no window is lost, and no line repeated.

mod clock;
mod desk;
mod losses;
mod metrics;
mod seen;
mod windows;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durward_bpf::{Closed, DataPath, Event, EventKind, Events, MapError};
use durward_log::{Disposition, Log, Rotation, Summary};
use durward_proto::{IdentifyRequest, LossPlace};
use tokio::sync::watch;
use tonic::transport::Channel;

use self::clock::Clock;
use self::desk::{Desk, Done};
use self::losses::KernelLosses;
pub use self::metrics::Metrics;
use self::seen::{Seen, direction};
use self::windows::Windows;
use crate::book::Book;
use crate::names::{Name, Names};
use crate::status::{Problem, Status};

/// How soon the ring is looked at again that had something,
const BUSY: Duration = Duration::from_millis(10);
/// and one that had nothing, for long.
const IDLE: Duration = Duration::from_millis(100);
/// How often the table of denials and the kernel's counters are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether waiting lines are ready, if nothing happens.
const SETTLE_EVERY: Duration = Duration::from_millis(250);
/// How often the log says what was suppressed.
const SUMMARY_EVERY: Duration = Duration::from_secs(5);
/// How long names are waited for at the end,
const LAST_NAMES: Duration = Duration::from_secs(2);
/// and then the disk.
const LAST_LINES: Duration = Duration::from_secs(5);

/// The log's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lines a second, for allowed connections and for denials each.
    pub lines_per_s: usize,
    /// When the file is full, and how many are kept.
    pub rotation: Rotation,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lines_per_s: 500, rotation: Rotation::default() }
    }
}

/// What is needed to observe.
pub struct Observe {
    /// The kernel.
    pub path: Arc<DataPath>,
    /// What its numbers mean.
    pub book: watch::Receiver<Arc<Book>>,
    /// Where problems are told.
    pub status: Arc<Status>,
    /// To the controller, for names.
    pub channel: Channel,
    /// This node's name.
    pub node: Arc<str>,
    /// Where the log is.
    pub log_dir: PathBuf,
    /// Its limits.
    pub limits: Limits,
    /// Where losses are counted.
    pub metrics: Arc<Metrics>,
}

/// Observes until `stop`; then writes what can be written, and returns.
pub async fn run(observe: Observe, stop: impl Future<Output = ()>) {
    let Observe { path, mut book, status, channel, node, log_dir, limits, metrics } = observe;
    let mut stop = pin!(stop);
    let started = async {
        let start = || Ok((path.events()?, Log::start(log_dir.clone(), limits.rotation, node.clone())?));
        loop {
            match start() {
                Ok(started) => break started,
                Err(error) => status.raise(Problem::Log, StartError::to_string(&error)),
            }
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    };
    let (events, log) = tokio::select! {
        started = started => started,
        () = &mut stop => return,
    };
    // A book that knows of nobody is one that is not written yet. What the kernel has can wait for it.
    tokio::select! {
        known = book.wait_for(|book| !book.endpoints.is_empty()) => if known.is_err() { return },
        () = &mut stop => return,
    }
    let mut observer = Observer {
        desk: Desk::new(node.clone(), limits.lines_per_s),
        names: Names::new(channel),
        early: HashSet::new(),
        windows: Windows::new(path.clone(), log_dir),
        kernel_losses: KernelLosses::default(),
        summary_at: Instant::now(),
        settled_at: Instant::now(),
        path,
        status,
        node,
        metrics,
        events,
        log,
    };
    observer.observe(&mut book, stop).await;
    observer.end().await;
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}; no verdict is logged until the ring can be read")]
    Ring(#[from] MapError),
    #[error("no thread can be started for the log: {0}")]
    Thread(#[from] std::io::Error),
}

struct Observer {
    path: Arc<DataPath>,
    status: Arc<Status>,
    node: Arc<str>,
    metrics: Arc<Metrics>,
    events: Events,
    log: Log,
    desk: Desk<Option<Closed>>,
    names: Names,
    /// Whose names are asked for before their windows end: they may be gone by then.
    early: HashSet<IpAddr>,
    windows: Windows,
    kernel_losses: KernelLosses,
    summary_at: Instant,
    settled_at: Instant,
}

impl Observer {
    async fn observe(
        &mut self,
        book: &mut watch::Receiver<Arc<Book>>,
        mut stop: impl Future<Output = ()> + Unpin,
    ) {
        self.read_book(book);
        let (mut pause, mut swept_at) = (BUSY, None);
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = self.names.answered() => self.settle(false),
                changed = book.changed() => match changed {
                    Ok(()) => self.read_book(book),
                    Err(_) => return,
                },
                () = tokio::time::sleep(pause) => {
                    let busy = self.read_ring();
                    if swept_at.is_none_or(|at: Instant| at.elapsed() >= SWEEP_EVERY) {
                        swept_at = Some(Instant::now());
                        self.sweep().await;
                    }
                    if busy || self.settled_at.elapsed() >= SETTLE_EVERY {
                        self.settle(false);
                    }
                    pause = if busy { BUSY } else { IDLE.min(pause * 2) };
                }
            }
        }
    }

    fn read_book(&mut self, book: &mut watch::Receiver<Arc<Book>>) {
        let book = book.borrow_and_update().clone();
        self.desk.read(book, clock::now_ns());
    }

    /// Reads the ring; says whether there was anything.
    fn read_ring(&mut self) -> bool {
        let events = match self.events.take() {
            Ok(events) => events,
            Err(error) => {
                self.status.raise(Problem::Log, error);
                return false;
            }
        };
        let (clock, now, busy) = (Clock::read(), Instant::now(), !events.is_empty());
        for event in &events {
            let seen = Seen::event(event, clock);
            match event.kind {
                // Provisional: what is written comes from the window.
                EventKind::Deny | EventKind::Cut => self.ask_early(event, &seen),
                EventKind::Allow => {
                    if self.desk.take(seen, None, now).is_err() {
                        self.metrics.lost(LossPlace::LineBudget, 1);
                    }
                }
            }
        }
        busy
    }

    fn ask_early(&mut self, event: &Event, seen: &Seen) {
        let remote = event.remote.ip();
        let unknown = self.names.cache().at(remote, seen.at_ns / 1_000_000) == Name::Unknown;
        if unknown && self.early.len() < IdentifyRequest::MAX {
            self.early.insert(remote);
        }
    }

    /// Lines that are ready go to the writer, places whose lines are written are freed, names are asked for.
    fn settle(&mut self, hurry: bool) {
        self.settled_at = Instant::now();
        let (done, mut unknown) = self.desk.settle(self.names.cache(), Instant::now(), hurry);
        for Done { line, losses, token } in done {
            for place in losses {
                self.metrics.lost(place, 1);
            }
            let pushed = line.and_then(|line| {
                let number = self.log.push(line.json()).ok()?;
                self.metrics.line(matches!(line.disposition, Disposition::Allow(_)));
                Some(number)
            });
            match (pushed, token) {
                (Some(number), Some(closed)) => self.windows.keep_until(number, closed),
                (None, Some(closed)) => self.windows.free(vec![closed]),
                (_, None) => {}
            }
        }
        self.windows.free_settled(self.log.settled());
        unknown.extend(&self.early);
        if self.names.ask(&unknown, clock::now_ns() / 1_000_000) {
            self.early.clear();
        }
    }

    async fn sweep(&mut self) {
        let trouble = self.read_tables().await.err().or_else(|| self.log.problem());
        match trouble {
            Some(trouble) => self.status.raise(Problem::Log, trouble),
            None => self.status.clear(&Problem::Log),
        }
        let losses = self.log.losses();
        self.metrics.lost_in_all(LossPlace::Queue, losses.queue);
        self.metrics.lost_in_all(LossPlace::File, losses.file);
        self.summarise();
    }

    /// Reads what the kernel keeps for us: windows that are over, and what it suppressed.
    async fn read_tables(&mut self) -> Result<(), String> {
        let (clock, now) = (Clock::read(), Instant::now());
        for closed in self.windows.close(clock).await? {
            let seen = Seen::denial(&closed.denial, clock);
            if let Err(Some(closed)) = self.desk.take(seen, Some(closed), now) {
                self.metrics.lost(LossPlace::LineBudget, 1);
                self.windows.free(vec![closed]);
            }
        }
        for suppressed in self.path.take_suppressed().map_err(|error| error.to_string())? {
            let (direction, act) = (direction(suppressed.direction), suppressed.act);
            let counts = (suppressed.connections, suppressed.packets);
            self.desk.suppressed(act.allow, direction, suppressed.ifindex, act.attribution, counts);
        }
        let [ring, budget] = self.kernel_losses.read(&self.path, self.desk.interfaces());
        self.metrics.lost(LossPlace::Ring, ring);
        self.metrics.lost(LossPlace::KernelBudget, budget);
        Ok(())
    }

    fn summarise(&mut self) {
        if self.desk.summary().is_empty() || self.summary_at.elapsed() < SUMMARY_EVERY {
            return;
        }
        let line = self.desk.summary().json(&self.node, clock::now_ns());
        // What does not get through now is told by the next summary.
        if self.log.push(line).is_ok() {
            *self.desk.summary() = Summary::default();
            self.summary_at = Instant::now();
        }
    }

    /// Writes what can be written. Windows that are open stay so, in the kernel, for who comes next.
    async fn end(mut self) {
        self.read_ring();
        self.sweep().await;
        self.settle(false);
        let deadline = Instant::now() + LAST_NAMES;
        while self.desk.is_waiting() && Instant::now() < deadline {
            // Whichever comes first; both lead to another look.
            let _ = tokio::time::timeout(IDLE, self.names.answered()).await;
            self.settle(false);
        }
        self.settle(true);
        self.summary_at -= SUMMARY_EVERY;
        self.summarise();
        let Self { log, mut windows, .. } = self;
        if let Ok(settled) = tokio::task::spawn_blocking(move || log.close(LAST_LINES)).await {
            windows.free_settled(settled);
        }
    }
}
