//! The one task that writes to the kernel: views and findings in, steps out. IO.
//!
//! It knows what the maps hold, since nobody else writes to them; a pass plans from there to the newest view
//! and the newest findings, saves the numbers, and takes the steps. Nothing that an earlier run left is
//! removed before a whole view is there, and a node that never enforced is left alone until then.

mod kernel;
mod misfit;
mod recorder;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use durward_bpf::{DataPath, HostAddress, Services, Settings};
use durward_plan::{
    Access, Endpoint, Exhausted, Found, Kernel, Numbers, Step, Wanted, conservative, plan, rejudge,
};
use durward_proto::Version;
use thiserror::Error;
use tokio::sync::watch;

use crate::book::Book;
use crate::endpoints::Findings;
use crate::metrics::{KernelTotals, Metrics};
use crate::services::Judging;
use crate::state::{State, StateError};
use crate::status::{Problem, Status};
use crate::subscribe::Synced;
pub use kernel::StepError;
use misfit::{Known, Misfits};
use recorder::Recorder;

/// Why a pass did not come to its end.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The kernel refused a step.
    #[error("the kernel does not hold the newest rules: {step}: {source}", step = told(.step))]
    Step {
        /// What was tried.
        step: Box<Step>,
        /// What went wrong.
        source: StepError,
    },
    /// The kernel refused to take over, or to change what is no step.
    #[error(transparent)]
    Kernel(#[from] StepError),
    /// The numbers could not be saved.
    #[error(transparent)]
    State(#[from] StateError),
    /// There are no numbers left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// How long a failed pass waits for the next, if nothing happens before; and how long pods that did not fit do.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MISFITS: Duration = Duration::from_secs(10);
/// How often connections are swept.
const SWEEP: Duration = Duration::from_secs(15);

/// What the task hears and tells.
pub struct Wires {
    /// Whole views.
    pub views: watch::Receiver<Option<Synced>>,
    /// What was found on the node; none until the first look.
    pub findings: watch::Receiver<Option<Arc<Findings>>>,
    /// How calls to Services are judged; none until that is decided.
    pub judging: watch::Receiver<Option<Judging>>,
    /// The version that the kernel has.
    pub applied: watch::Sender<Option<Version>>,
    /// What the numbers in the kernel mean.
    pub book: watch::Sender<Arc<Book>>,
}

/// The task.
pub struct Applier {
    path: Arc<DataPath>,
    state: State,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    totals: Arc<KernelTotals>,
    unknown: Access,
    kernel: Kernel,
    numbers: Numbers,
    /// The host's addresses in the kernel.
    host: BTreeSet<IpAddr>,
    /// The ports of its tunnels there; none while that is not known.
    tunnel_ports: Option<BTreeSet<u16>>,
    /// How the kernel judges calls to Services.
    services: Services,
    misfits: Misfits,
    /// Whether it is not known that each word is younger than what it says.
    doubtful: bool,
    recorder: Recorder,
}

impl Applier {
    /// Takes over what an earlier run has left in the kernel.
    ///
    /// # Errors
    ///
    /// [`ApplyError`] if the kernel refuses.
    pub fn take_over(
        path: Arc<DataPath>,
        state: State,
        status: Arc<Status>,
        metrics: Arc<Metrics>,
        totals: Arc<KernelTotals>,
        unknown: Access,
    ) -> Result<Self, ApplyError> {
        let kernel = kernel::take_over(&path)?;
        let mut numbers = state.numbers().cloned().unwrap_or_default();
        if !numbers.cover(&kernel) {
            tracing::warn!("the numbers in the kernel are not those that were saved: they are stepped over");
            numbers.step_over(&kernel);
        }
        let host = path.host_addresses().map_err(StepError::from)?;
        let host = host.into_iter().filter(|(_, whose)| *whose == HostAddress::This);
        let host = host.map(|(address, _)| address).collect();
        let services = path.services().map_err(StepError::from)?;
        let (misfits, recorder) = (Misfits::default(), Recorder::default());
        let doubtful = true;
        Ok(Self {
            path,
            state,
            status,
            metrics,
            totals,
            unknown,
            kernel,
            numbers,
            host,
            tunnel_ports: None,
            services,
            misfits,
            doubtful,
            recorder,
        })
    }

    /// Brings the kernel to the newest view and findings, whenever there are newer ones.
    pub async fn run(mut self, mut wires: Wires) {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut retry = None;
        loop {
            tokio::select! {
                Ok(()) = wires.views.changed() => self.misfits = Misfits::default(),
                Ok(()) = wires.findings.changed() => {}
                Ok(()) = wires.judging.changed() => {}
                () = pause(retry) => {
                    if retry == Some(RETRY_MISFITS) {
                        self.misfits = Misfits::default();
                    }
                }
                _ = sweep.tick() => {
                    tokio::task::block_in_place(|| self.sweep());
                    continue;
                }
            }
            let view = wires.views.borrow_and_update().clone();
            let Some(findings) = wires.findings.borrow_and_update().clone() else { continue };
            let Some(judging) = *wires.judging.borrow_and_update() else { continue };
            let view = view.map(|synced| judged(synced, judging));
            let pass = || self.pass(view.as_ref(), &findings, judging, &wires.book);
            let passed = tokio::task::block_in_place(pass);
            retry = self.tell(passed, view.as_ref(), &findings, &wires);
        }
    }

    /// How the kernel judges calls to Services, when that changes.
    fn judge_services(&mut self, services: Services) -> Result<(), ApplyError> {
        if self.services != services {
            self.path.judge_services(services).map_err(StepError::from)?;
            self.services = services;
            // Connections go on as they were judged, until their words change.
            self.doubtful = true;
        }
        Ok(())
    }

    /// One pass: from what the kernel holds to what it should.
    fn pass(
        &mut self,
        view: Option<&Synced>,
        findings: &Findings,
        judging: Judging,
        book: &watch::Sender<Arc<Book>>,
    ) -> Result<(), ApplyError> {
        let Some(view) = view else { return self.pass_unsynced(findings) };
        self.write_host(findings)?;
        match judging {
            Judging::Translated => self.judge_services(Services::Translated)?,
            // From the forward hook back to the interface only once the rules speak of frontends.
            Judging::Conservative if self.services == Services::ByAddress => {
                self.judge_services(Services::ByFrontend)?;
            }
            Judging::Conservative => {}
        }
        self.pass_steps(view, findings, judging, book)?;
        match judging {
            Judging::Conservative if self.services == Services::Translated => {
                self.judge_services(Services::ByFrontend)?;
                self.pass_steps(view, findings, judging, book)
            }
            _ => Ok(()),
        }
    }

    fn pass_steps(
        &mut self,
        view: &Synced,
        findings: &Findings,
        judging: Judging,
        book: &watch::Sender<Arc<Book>>,
    ) -> Result<(), ApplyError> {
        self.adopt(&findings.found);
        loop {
            let fitting = self.misfits.fitting(&view.view);
            let wanted = Wanted {
                view: fitting.as_ref().unwrap_or(&view.view),
                found: &findings.found,
                unknown: self.unknown,
                misfits: &self.misfits.pods,
            };
            let mut steps = plan(wanted, &self.kernel, &mut self.numbers)?;
            if self.doubtful {
                // After the plan's own, so that no word is older than what it says.
                let kernel = steps.iter().fold(self.kernel.clone(), |mut kernel, step| {
                    kernel.apply(step);
                    kernel
                });
                steps.extend(rejudge(&kernel, &mut self.numbers)?);
            }
            // Before the words: whoever reads of a number must find it in the book.
            publish(book, self.recorder.book(&view.view, findings, &self.numbers, judging));
            match self.take(&steps, findings) {
                Err(ApplyError::Step { step, source }) => {
                    let known =
                        Known { kernel: &self.kernel, numbers: &self.numbers, found: &findings.found };
                    if self.misfits.add(&step, &view.view, &known) {
                        let step = told(&step);
                        tracing::warn!(%source, step, "no room: the pods that need it are closed");
                        continue;
                    }
                    return Err(ApplyError::Step { step, source });
                }
                done => {
                    done?;
                    self.doubtful = false;
                    return Ok(());
                }
            }
        }
    }

    /// Without a view: nothing that is there is touched; what is new is closed, if this node ever enforced.
    fn pass_unsynced(&mut self, findings: &Findings) -> Result<(), ApplyError> {
        if self.state.numbers().is_none() {
            return Ok(());
        }
        self.write_host(findings)?;
        self.adopt(&findings.found);
        let mut steps = Vec::new();
        for (&ifindex, found) in &findings.found {
            let held = self.kernel.endpoints.get(&ifindex).map(|endpoint| endpoint.namespace);
            if held == Some(found.namespace) {
                continue;
            }
            steps.extend(held.map(|_| Step::Unbind(ifindex)));
            let endpoint = Endpoint {
                namespace: found.namespace,
                nsid: found.nsid,
                access: self.unknown,
                addresses: found.addresses.clone(),
                ..Endpoint::default()
            };
            steps.push(Step::Bind(ifindex, endpoint));
        }
        self.take(&steps, findings)
    }

    /// The kernel does not say which namespace an endpoint's is: its interface has been there all along, so it
    /// is the one that is found there now.
    fn adopt(&mut self, found: &BTreeMap<u32, Found>) {
        for (ifindex, endpoint) in &mut self.kernel.endpoints {
            if endpoint.namespace == 0 {
                endpoint.namespace = found.get(ifindex).map_or(0, |found| found.namespace);
            }
        }
    }

    /// Saves the numbers, then takes the steps.
    fn take(&mut self, steps: &[Step], findings: &Findings) -> Result<(), ApplyError> {
        self.state.save(&self.numbers)?;
        for step in steps {
            if let Step::Unbind(ifindex) = step {
                self.totals.retire(*ifindex);
            }
            match kernel::take(&self.path, &self.kernel, step) {
                Ok(()) => {
                    self.kernel.apply(step);
                    if let Step::Bind(ifindex, _) = step {
                        self.recorder.bound(*ifindex, findings, &self.status, &self.metrics);
                    }
                }
                // It went while we were at it; the findings will say so.
                Err(error) if error.is_gone() => {
                    tracing::debug!(%error, "an interface went");
                    self.doubtful = true;
                }
                Err(source) => {
                    self.doubtful = true;
                    self.metrics.apply_errors.inc();
                    return Err(ApplyError::Step { step: Box::new(step.clone()), source });
                }
            }
        }
        Ok(())
    }

    /// Writes what the programs must know of the host: its addresses, and where its tunnels end.
    fn write_host(&mut self, findings: &Findings) -> Result<(), ApplyError> {
        let (path, wanted) = (&self.path, &findings.host);
        if self.tunnel_ports.as_ref() != Some(&findings.tunnel_ports) {
            let tunnel_ports = findings.tunnel_ports.iter().copied().collect();
            path.set(&Settings { tunnel_ports, ..Settings::default() }).map_err(StepError::from)?;
            self.tunnel_ports = Some(findings.tunnel_ports.clone());
        }
        let new = wanted.difference(&self.host);
        let put = new.map(|address| path.set_host_address(*address, HostAddress::This));
        put.collect::<Result<(), _>>().map_err(StepError::from)?;
        let gone = self.host.difference(wanted);
        let removed = gone.map(|address| path.remove_host_address(*address).map(drop));
        removed.collect::<Result<(), _>>().map_err(StepError::from)?;
        self.host.clone_from(wanted);
        Ok(())
    }

    /// Tells everyone how the pass went; when to try again if nothing happens.
    fn tell(
        &mut self,
        passed: Result<(), ApplyError>,
        view: Option<&Synced>,
        findings: &Findings,
        wires: &Wires,
    ) -> Option<Duration> {
        self.metrics.endpoints.set(i64::try_from(self.kernel.endpoints.len()).unwrap_or(i64::MAX));
        let closed = self.kernel.endpoints.values().filter(|endpoint| endpoint.access == Access::Closed);
        self.metrics.unknown_endpoints.set(i64::try_from(closed.count()).unwrap_or(i64::MAX));
        self.metrics.misfits.set(i64::try_from(self.misfits.pods.len()).unwrap_or(i64::MAX));
        if let Some(synced) = view {
            self.recorder.tell_problems(&synced.view, findings, &self.misfits.pods, &self.status);
        }
        match self.misfits.frontends.len() {
            0 => self.status.clear(&Problem::Frontends),
            left_out => {
                let text = format!(
                    "the kernel has no room for {left_out} of the addresses and ports at which Services are called: calls \
                     there are judged as calls to any address that is no Service's"
                );
                self.status.raise(Problem::Frontends, text);
            }
        }
        if let Err(error) = passed {
            self.status.raise(Problem::Apply, error);
            return Some(RETRY);
        }
        self.status.clear(&Problem::Apply);
        if let Some(synced) = view {
            self.status.set_applied(true);
            let version = synced.version;
            self.metrics.applied_version.set(i64::try_from(version.number).unwrap_or(i64::MAX));
            if wires.applied.send_replace(Some(version)) != Some(version) {
                self.metrics.propagation.observe(synced.arrived.elapsed().as_secs_f64());
            }
        }
        (!self.misfits.is_empty()).then_some(RETRY_MISFITS)
    }

    /// Frees the places of connections that are over, or whose endpoint is gone.
    fn sweep(&self) {
        let swept = self.path.sweep_connections(|ifindex| self.kernel.endpoints.contains_key(&ifindex));
        let left = self.path.connections().map(Iterator::count);
        match (swept, left) {
            (Ok(swept), Ok(left)) => {
                self.metrics.connections_swept.inc_by(swept as u64);
                self.metrics.connections.set(i64::try_from(left).unwrap_or(i64::MAX));
            }
            // Nothing depends on it: entries that are over are not matched, they only take room.
            (Err(error), _) | (_, Err(error)) => tracing::warn!(%error, "connections were not swept"),
        }
    }
}

/// The view as it is judged on this node.
fn judged(synced: Synced, judging: Judging) -> Synced {
    match judging {
        Judging::Translated => synced,
        Judging::Conservative => Synced { view: Arc::new(conservative(&synced.view)), ..synced },
    }
}

fn publish(to: &watch::Sender<Arc<Book>>, book: Book) {
    to.send_if_modified(|last| {
        let differs = **last != book;
        if differs {
            *last = Arc::new(book);
        }
        differs
    });
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// A step, short: rows are long.
fn told(step: &Step) -> String {
    match step {
        Step::PutRow(key, row) => {
            format!("row of set {} and atom {}, {} bounds", key.set, key.atom, row.len())
        }
        Step::Bind(ifindex, _) => format!("bind interface {ifindex}"),
        Step::Refresh(ifindex, _) => format!("refresh interface {ifindex}"),
        step => format!("{step:?}"),
    }
}
