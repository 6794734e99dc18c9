//! The windows of denials that are in hand: from the kernel's table until their lines are in the file. IO.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use durward_bpf::{Act, Closed, DataPath, Denial};
use durward_log::Fingerprint;

use super::clock::Clock;
use super::seen::Seen;

/// The windows in hand.
pub(crate) struct Windows {
    path: Arc<DataPath>,
    log_dir: PathBuf,
    known: HashSet<Id>,
    /// Those whose lines wait for the disk, by the lines' numbers.
    pushed: VecDeque<(u64, Closed)>,
    /// Whether the table may hold windows that somebody before us closed, and perhaps wrote.
    inherited: bool,
}

/// What tells a window from any other.
type Id = (u64, u32, Act, SocketAddr, SocketAddr);

fn id(denial: &Denial) -> Id {
    (denial.at_ns, denial.ifindex, denial.act, denial.local, denial.remote)
}

impl Windows {
    /// None in hand yet; the log in this folder may hold lines of those that somebody before us closed.
    pub(crate) fn new(path: Arc<DataPath>, log_dir: PathBuf) -> Self {
        Self { path, log_dir, known: HashSet::new(), pushed: VecDeque::new(), inherited: true }
    }

    /// Takes in hand the windows that are over.
    ///
    /// # Errors
    ///
    /// What went wrong, for people; those windows come again.
    pub(crate) async fn close(&mut self, clock: Clock) -> Result<Vec<Closed>, String> {
        let (path, log_dir, inherited) = (self.path.clone(), self.log_dir.clone(), self.inherited);
        let close = move || {
            let closed = path.close_denials(false).map_err(|error| error.to_string())?;
            let mut written = vec![false; closed.len()];
            if inherited {
                let lines: Vec<_> = closed.iter().map(|closed| fingerprint(&closed.denial, clock)).collect();
                match durward_log::written(&log_dir, &lines) {
                    Ok(found) => written = found,
                    // Better a line twice than none.
                    Err(error) => {
                        let folder = log_dir.display();
                        tracing::warn!(%folder, %error, "cannot read the log; what was denied before the start may be told twice");
                    }
                }
            }
            Ok::<_, String>((closed, written))
        };
        // It waits for a grace period of the kernel's, and perhaps reads files.
        let (closed, written) =
            tokio::task::spawn_blocking(close).await.map_err(|error| error.to_string())??;
        self.inherited = false;
        let (mut over, mut told) = (Vec::new(), Vec::new());
        for (closed, written) in closed.into_iter().zip(written) {
            match written {
                true => told.push(closed),
                // The table shows it until it is free.
                false if self.known.insert(id(&closed.denial)) => over.push(closed),
                false => {}
            }
        }
        self.free(told);
        Ok(over)
    }

    /// The window's line has this number: it is kept until that one is in the file.
    pub(crate) fn keep_until(&mut self, number: u64, closed: Closed) {
        self.pushed.push_back((number, closed));
    }

    /// Frees the windows whose lines are in the file.
    pub(crate) fn free_settled(&mut self, settled: u64) {
        let count = self.pushed.iter().take_while(|(number, _)| *number <= settled).count();
        let closed = self.pushed.drain(..count).map(|(_, closed)| closed).collect();
        self.free(closed);
    }

    /// Frees windows that will have no line any more, or have it.
    pub(crate) fn free(&mut self, closed: Vec<Closed>) {
        for closed in &closed {
            self.known.remove(&id(&closed.denial));
        }
        self.path.free_denials(closed);
    }
}

fn fingerprint(denial: &Denial, clock: Clock) -> Fingerprint {
    let Seen { connection, at_ns, .. } = Seen::denial(denial, clock);
    Fingerprint { connection, at_ns }
}
