//! The writer: one thread that waits for the disk, and a bounded queue before it. IO.
//!
//! A line that cannot be written is tried again until it can; meanwhile the queue fills, and what finds it full
//! is counted. When lines go through again, a line of its own says how many were lost.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::file::{LogFile, Rotation};
use crate::line::line_of;
use crate::time;

/// How many lines wait for the disk at most,
const MAX_QUEUED_LINES: usize = 8192;
/// and how many bytes of them.
pub(crate) const MAX_QUEUED_BYTES: usize = 2 << 20;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the file says what was lost, at most.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The queue is full: the line is lost, and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the log's queue is full: its disk is slow, full or refuses; the line is counted as lost")]
pub struct Full;

/// How many lines were lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    /// While the disk was too slow.
    pub queue: u64,
    /// While the file could not be written.
    pub file: u64,
}

#[derive(Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    settled: AtomicU64,
    lost_to_queue: AtomicU64,
    lost_to_file: AtomicU64,
    closing: AtomicBool,
    problem: Mutex<Option<String>>,
}

impl Shared {
    fn problem(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn losses(&self) -> Losses {
        Losses {
            queue: self.lost_to_queue.load(Ordering::Relaxed),
            file: self.lost_to_file.load(Ordering::Relaxed),
        }
    }
}

/// The log. Dropped, its thread writes what waits and ends, unless the file cannot be written.
pub struct Log {
    queue: SyncSender<String>,
    pushed: u64,
    shared: Arc<Shared>,
    thread: Thread,
    ended: Receiver<()>,
}

impl Log {
    /// Starts the writer of the file in this folder. A folder that cannot be written is no error: see
    /// [`Log::problem`].
    ///
    /// # Errors
    ///
    /// The system's, if it has no thread for us.
    pub fn start(folder: PathBuf, rotation: Rotation, node: Arc<str>) -> io::Result<Self> {
        let (queue, lines) = sync_channel(MAX_QUEUED_LINES);
        let (end, ended) = channel();
        let shared = Arc::new(Shared::default());
        let file = LogFile::new(folder, rotation);
        let writer = Writer { file, node, shared: shared.clone(), told: Losses::default(), told_at: None };
        let thread = thread::Builder::new().name("log".into()).spawn(move || {
            writer.run(&lines);
            // Nobody may be waiting.
            let _ = end.send(());
        })?;
        Ok(Self { queue, pushed: 0, shared, thread: thread.thread().clone(), ended })
    }

    /// Hands over a line (with its newline), without waiting; gives its number.
    ///
    /// # Errors
    ///
    /// [`Full`] if too many wait already; the loss is counted.
    pub fn push(&mut self, line: String) -> Result<u64, Full> {
        let bytes = line.len();
        let room = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_QUEUED_BYTES;
        if room && self.queue.try_send(line).is_ok() {
            self.pushed += 1;
            return Ok(self.pushed);
        }
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let failing = self.shared.problem().is_some();
        let lost = if failing { &self.shared.lost_to_file } else { &self.shared.lost_to_queue };
        lost.fetch_add(1, Ordering::Relaxed);
        Err(Full)
    }

    /// The number of the last line that is in the file, with all before it.
    pub fn settled(&self) -> u64 {
        self.shared.settled.load(Ordering::Acquire)
    }

    /// How many lines were lost since the start.
    pub fn losses(&self) -> Losses {
        self.shared.losses()
    }

    /// Why the file cannot be written, while it cannot.
    pub fn problem(&self) -> Option<String> {
        self.shared.problem().clone()
    }

    /// Writes what waits, as long as patience lasts; gives [`Log::settled`] as it is at last.
    pub fn close(self, patience: Duration) -> u64 {
        let Self { queue, thread, ended, shared, .. } = self;
        shared.closing.store(true, Ordering::Release);
        drop(queue);
        thread.unpark();
        // A thread that hangs in the kernel is left there.
        let _ = ended.recv_timeout(patience);
        shared.settled.load(Ordering::Acquire)
    }
}

struct Writer {
    file: LogFile,
    node: Arc<str>,
    shared: Arc<Shared>,
    told: Losses,
    told_at: Option<Instant>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<String>) {
        self.look();
        loop {
            match lines.recv_timeout(TELL_EVERY) {
                Ok(line) => {
                    if !self.write(&line) {
                        return;
                    }
                    self.shared.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    self.shared.settled.fetch_add(1, Ordering::Release);
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tell_losses();
        }
    }

    /// Whether the file can be written is known before its next line.
    fn look(&mut self) {
        let error = self.file.open().err();
        *self.shared.problem() = error.map(|error| error.to_string());
    }

    /// Writes a line, however long it takes; gives up only if the log is being closed.
    fn write(&mut self, line: &str) -> bool {
        loop {
            match self.file.append(line) {
                Ok(()) => {
                    *self.shared.problem() = None;
                    return true;
                }
                Err(error) => *self.shared.problem() = Some(error.to_string()),
            }
            if self.shared.closing.load(Ordering::Acquire) {
                return false;
            }
            thread::park_timeout(RETRY);
        }
    }

    fn tell_losses(&mut self) {
        #[derive(Serialize)]
        struct LostJson<'a> {
            lost: Losses,
            node_name: &'a str,
            timestamp: String,
        }
        let losses = self.shared.losses();
        let early = self.told_at.is_some_and(|told_at| told_at.elapsed() < TELL_EVERY);
        if losses == self.told || early {
            return;
        }
        let Losses { queue, file } = losses;
        let lost = Losses { queue: queue - self.told.queue, file: file - self.told.file };
        let timestamp = time::rfc3339(time::now_ns());
        if self.write(&line_of(&LostJson { lost, node_name: &self.node, timestamp })) {
            (self.told, self.told_at) = (losses, Some(Instant::now()));
        }
    }
}
