//! Which interface is which pod, on any CNI: asked of the kernel alone. IO.
//!
//! ```text
//! netns folder (inotify) ─┐   name, inode ── /proc: cgroups → pod UID, addresses
//! rtnetlink events ───────┼→ scan
//! timer ──────────────────┘   netns id ───── links of the host that lead there → interface
//! ```
//!
//! A namespace is bound to its pod once, for as long as it is there. Until a process in it says whose it is,
//! it is asked again and again; one whose processes belong to no pod is left alone.

mod cgroup;
mod conntrack;
mod folder;
mod link;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durward_plan::Found;
use durward_proto::PodUid;
use futures::{FutureExt, StreamExt};
use inotify::{Inotify, WatchMask};
use rtnetlink::{Handle, MulticastGroup};
use thiserror::Error;
use tokio::sync::watch;

use crate::status::{Problem, Status};
use folder::{Listing, Name};

/// What was found on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The pods' interfaces.
    pub found: BTreeMap<u32, Found>,
    /// When the first process of each of them started, in clock ticks since the machine did.
    pub started_ticks: BTreeMap<u32, u64>,
    /// The host's own addresses.
    pub host: BTreeSet<IpAddr>,
    /// The UDP ports of the host's tunnel devices.
    pub tunnel_ports: BTreeSet<u16>,
}

/// Why pods could not be looked for.
#[derive(Debug, Error)]
pub enum FindError {
    /// The folder with the namespaces cannot be read.
    #[error("cannot read {path}, where the container runtime keeps network namespaces: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A namespace's file is there and cannot be opened.
    #[error(
        "cannot open {path}, a network namespace's file: {source}; if it is a new pod's, nothing is enforced for it"
    )]
    Namespace {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The processes cannot be listed.
    #[error("cannot list the processes in {path}, which say whose a network namespace is: {source}")]
    Processes {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel does not answer about interfaces.
    #[error("rtnetlink does not answer: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// No socket for rtnetlink.
    #[error("cannot open an rtnetlink socket: {0}")]
    Socket(std::io::Error),
}

/// How often a namespace is asked that just appeared, how often while it is young (an image may have to be
/// pulled first, and from the first process on the pod is open until it is attached), and how long it is that.
const ASK_EVERY: Duration = Duration::from_millis(20);
const ASK_YOUNG_EVERY: Duration = Duration::from_millis(100);
const YOUNG: Duration = Duration::from_secs(120);
/// How often everything is looked at anyway, and how soon again if that failed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Looks for pods.
pub struct Finder {
    netns_dir: PathBuf,
    proc: PathBuf,
    status: Arc<Status>,
    handle: Handle,
    events: futures::stream::BoxStream<'static, ()>,
    namespaces: BTreeMap<Name, Namespace>,
    first_scan_done: bool,
}

/// What is known of a namespace.
#[derive(Debug)]
struct Namespace {
    seen: Instant,
    /// Whether it appeared while we looked.
    new: bool,
    number: Option<i32>,
    pods: BTreeSet<PodUid>,
    addresses: Vec<IpAddr>,
    started_ticks: Option<u64>,
}

impl Namespace {
    /// Whether one pod, and no other, was named by its processes.
    fn bound(&self) -> bool {
        self.pods.len() == 1
    }
}

impl Finder {
    /// Looks below `netns_dir`, and at the processes in `proc`.
    ///
    /// # Errors
    ///
    /// [`FindError`] if the kernel gives no netlink socket.
    pub fn new(netns_dir: PathBuf, proc: PathBuf, status: Arc<Status>) -> Result<Self, FindError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, events) =
            rtnetlink::new_multicast_connection(&groups).map_err(FindError::Socket)?;
        tokio::spawn(connection);
        let (connection, handle, _) = rtnetlink::new_connection().map_err(FindError::Socket)?;
        tokio::spawn(connection);
        let events = events.map(drop).boxed();
        let namespaces = BTreeMap::new();
        Ok(Self { netns_dir, proc, status, handle, events, namespaces, first_scan_done: false })
    }

    /// Looks whenever something happens, and publishes what is found whenever it differs. Returns only if the
    /// kernel's events end.
    pub async fn run(mut self, findings: watch::Sender<Option<Arc<Findings>>>) {
        let mut folder = None;
        loop {
            if folder.is_none() {
                folder = self.watch_folder();
            }
            let failed = match self.scan().await {
                Ok((found, unopened)) => {
                    findings.send_if_modified(|last| {
                        let differs = last.as_deref() != Some(&found);
                        if differs {
                            *last = Some(Arc::new(found));
                        }
                        differs
                    });
                    unopened
                }
                Err(error) => {
                    // It may be another folder by now.
                    folder = None;
                    Some(error)
                }
            };
            let mut pause = self.pause();
            if let Some(error) = failed {
                pause = pause.min(RETRY_AFTER);
                self.status.raise(Problem::Endpoints, error);
            } else {
                self.status.clear(&Problem::Endpoints);
            }
            let changed = async {
                if let Some(changes) = &mut folder
                    && changes.next().await.is_some()
                {
                    return;
                }
                std::future::pending().await
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
                event = self.events.next() => {
                    if event.is_none() {
                        return;
                    }
                    // Interfaces come in bursts; one look serves them all.
                    while self.events.next().now_or_never().flatten().is_some() {}
                }
            }
        }
    }

    /// How long nothing needs to be looked at unless something happens.
    fn pause(&self) -> Duration {
        let unbound = self.namespaces.values().filter(|namespace| !namespace.bound());
        pause(unbound.map(|namespace| namespace.seen.elapsed()).min())
    }

    fn watch_folder(&self) -> Option<futures::stream::BoxStream<'static, ()>> {
        let inotify = Inotify::init().ok()?;
        inotify
            .watches()
            .add(&self.netns_dir, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE)
            .ok()?;
        Some(inotify.into_event_stream([0; 4096]).ok()?.map(drop).boxed())
    }

    /// One look at everything. What cannot be asked is no answer: an error leaves all as it was found last, and
    /// so does a file that cannot be opened for its namespace.
    async fn scan(&mut self) -> Result<(Findings, Option<FindError>), FindError> {
        // Addresses first: the link of each of them is known then.
        let addresses = link::addresses(&self.handle).await?;
        let link::Interfaces { to_namespace, tunnel_ports, services } =
            link::interfaces(&self.handle).await?;
        let unopened = self.list_namespaces().await?;
        self.ask_processes().await?;
        self.first_scan_done = true;
        let host = link::host_addresses(&addresses, services);
        let mut findings = Findings { host, tunnel_ports, ..Findings::default() };
        for (name, namespace) in &self.namespaces {
            let interface = namespace.number.and_then(|number| to_namespace.get(&number));
            let (Some(&interface), false) = (interface, namespace.pods.is_empty()) else { continue };
            let found = Found {
                namespace: name.identity(),
                nsid: namespace.number.unwrap_or(-1),
                pod: namespace.pods.first().filter(|_| namespace.bound()).cloned(),
                addresses: namespace.addresses.clone(),
            };
            findings.found.insert(interface, found);
            findings.started_ticks.extend(namespace.started_ticks.map(|ticks| (interface, ticks)));
        }
        Ok((findings, unopened))
    }

    /// Keeps `namespaces` as the folder is, and asks for the numbers that are not known yet. Says which file
    /// could not be opened.
    async fn list_namespaces(&mut self) -> Result<Option<FindError>, FindError> {
        let known = self.namespaces.keys().cloned().collect();
        let listing = folder::list(&self.netns_dir, &known)
            .map_err(|source| FindError::Folder { path: self.netns_dir.clone(), source })?;
        let Listing { namespaces: listed, unopened } = listing;
        self.namespaces.retain(|name, _| listed.contains_key(name));
        for (name, file) in listed {
            let known = self.namespaces.entry(name).or_insert_with(|| Namespace {
                seen: Instant::now(),
                new: self.first_scan_done,
                number: None,
                pods: BTreeSet::new(),
                addresses: Vec::new(),
                started_ticks: None,
            });
            if let (None, Some(file)) = (known.number, file) {
                known.number = link::number_of(&mut self.handle, &file).await?;
            }
        }
        Ok(unopened.map(|(path, source)| FindError::Namespace { path, source }))
    }

    /// Asks the processes of the namespaces that are not bound whose they are.
    async fn ask_processes(&mut self) -> Result<(), FindError> {
        let unbound = self.namespaces.iter().filter(|(_, namespace)| !namespace.bound());
        let wanted: BTreeSet<u64> = unbound.map(|(name, _)| name.inode).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let proc = self.proc.clone();
        let asked = tokio::task::spawn_blocking(move || process::inhabitants(&proc, &wanted)).await;
        let mut answers = asked
            .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .map_err(|source| FindError::Processes { path: self.proc.clone(), source })?;
        let mut inherited = BTreeSet::new();
        for (name, namespace) in self.namespaces.iter_mut().filter(|(_, namespace)| !namespace.bound()) {
            let answer = answers.remove(&name.inode).unwrap_or_default();
            if namespace.pods.is_empty() && !answer.pods.is_empty() {
                // As the runtime left them, before any container could change them.
                namespace.addresses = answer.addresses;
                namespace.addresses.retain(|address| !is_link_local(*address));
                if namespace.new {
                    inherited.extend(namespace.addresses.iter().copied());
                }
            }
            namespace.pods = answer.pods;
            namespace.started_ticks = answer.started_ticks;
        }
        if !inherited.is_empty() {
            forget_connections(inherited, &self.status).await;
        }
        Ok(())
    }
}

/// How long to wait, if the youngest namespace that is not bound has this age.
fn pause(youngest: Option<Duration>) -> Duration {
    match youngest {
        Some(age) if age < YOUNG => (age / 8).clamp(ASK_EVERY, ASK_YOUNG_EVERY),
        _ => LOOK_EVERY,
    }
}

/// Makes the host forget connections of addresses that had other owners.
async fn forget_connections(addresses: BTreeSet<IpAddr>, status: &Status) {
    let forgotten = tokio::task::spawn_blocking(move || conntrack::forget(&addresses)).await;
    match forgotten.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
        Ok(count) => {
            status.clear(&Problem::Conntrack);
            tracing::debug!(count, "the host forgot connections of inherited addresses");
        }
        Err(error) => status.raise(
            Problem::Conntrack,
            format!(
                "cannot delete the host's conntrack entries of a new pod's addresses: {error}; connections \
                 of their last owner may be taken for the pod's"
            ),
        ),
    }
}

/// Every interface has such an address; it is nobody's name.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_namespace_is_asked_often() {
        assert_eq!(pause(Some(Duration::ZERO)), ASK_EVERY);
        assert_eq!(pause(Some(YOUNG - Duration::from_millis(1))), ASK_YOUNG_EVERY);
        assert_eq!(pause(Some(YOUNG)), LOOK_EVERY);
        assert_eq!(pause(None), LOOK_EVERY);
    }
}
