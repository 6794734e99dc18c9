//! Wires the tasks, and runs them until the process is told to stop. IO.

use std::sync::Arc;
use std::time::Duration;

use durward_bpf::{DataPath, LoadError, Options, Services};
use durward_plan::Access;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

use crate::apply::{Applier, ApplyError, StepError, Wires};
use crate::book::Book;
use crate::config::{Run, UnknownPods};
use crate::endpoints::{FindError, Finder};
use crate::metrics::{KernelTotals, Metrics};
use crate::observe::{self, Limits, Observe};
use crate::services::{Decider, Judging};
use crate::state::{State, StateError};
use crate::status::{Problem, Status};
use crate::subscribe::Subscriber;
use crate::{dump, report, serve};

/// How long the log has for its last lines.
const LAST_LINES: Duration = Duration::from_secs(10);

/// Why the enforcer does not run. What the kernel enforces goes on.
#[derive(Debug, Error)]
pub enum RunError {
    /// Nobody said where the controller is.
    #[error(
        "no controller: give --controller http://ADDRESS:9443, or run where the Service durward-controller is in the \
         environment"
    )]
    NoController,
    /// What was said is no address.
    #[error("--controller {url}: {source}")]
    Controller {
        /// What was given.
        url: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The state cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// What an earlier run left cannot be taken over.
    #[error(transparent)]
    TakeOver(#[from] ApplyError),
    /// Pods cannot be looked for.
    #[error(transparent)]
    Find(#[from] FindError),
    /// No runtime, no signals.
    #[error("the system refuses what every process needs: {0}")]
    System(std::io::Error),
    /// A task ended that never should.
    #[error("a task has ended: {0}; what the kernel enforces goes on")]
    Task(String),
}

/// Enforces until told to stop by SIGTERM or SIGINT.
///
/// # Errors
///
/// [`RunError`] says what is missing.
pub fn run(config: Run) -> Result<(), RunError> {
    // Two workers: one may be busy writing to the kernel while the other hears.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).max_blocking_threads(8).enable_all().build();
    runtime.map_err(RunError::System)?.block_on(run_tasks(config))
}

async fn run_tasks(config: Run) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::System)?;
    let url = config.controller_url(|name| std::env::var(name).ok()).ok_or(RunError::NoController)?;
    let endpoint = Endpoint::from_shared(url.clone());
    let channel = endpoint.map_err(|source| RunError::Controller { url, source })?;
    // A controller that is gone without a word is noticed within 15 seconds.
    let channel = channel
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_lazy();

    let path = Arc::new(DataPath::open(&config.places.bpffs, Options::default())?);
    let state = State::open(&config.places.state_dir)?;
    let status = Arc::new(Status::default());
    status.raise(Problem::Controller, "the controller has not answered yet");
    let metrics = Arc::new(Metrics::default());
    let totals = Arc::new(KernelTotals::new(path.clone()));
    let mut registry = Registry::with_prefix("durward_enforcer");
    metrics.register(&mut registry);
    let log_metrics = Arc::new(observe::Metrics::default());
    log_metrics.register(&mut registry);
    registry.register_collector(Box::new(totals.clone()));

    let (views_to, views) = watch::channel(None);
    let (applied_to, applied) = watch::channel(None);
    let (findings_to, findings) = watch::channel(None);
    let (judging_to, judging) = watch::channel(None);
    let (book_to, book) = watch::channel(Arc::new(Book::default()));
    let unknown = match config.unknown_pods {
        UnknownPods::Deny => Access::Closed,
        UnknownPods::Allow => Access::Open,
    };
    let applier = Applier::take_over(path.clone(), state, status.clone(), metrics.clone(), totals, unknown)?;
    let finder = Finder::new(config.netns_dir, config.proc, status.clone())?;
    let node: Arc<str> = config.node_name.as_str().into();
    let kept = match path.services().map_err(StepError::from).map_err(ApplyError::from)? {
        Services::ByAddress => None,
        Services::Translated => Some(Judging::Translated),
        Services::ByFrontend => Some(Judging::Conservative),
    };
    let (setting, kube_proxy) = (config.services, config.kube_proxy);
    let decider = Decider { setting, kube_proxy, path: path.clone(), status: status.clone(), kept };
    let reports = report::run(channel.clone(), node.clone(), status.clone(), log_metrics.clone());
    let observe = Observe {
        path,
        book,
        status: status.clone(),
        channel: channel.clone(),
        node,
        log_dir: config.log_dir,
        limits: Limits { lines_per_s: config.log_lines_per_second, rotation: config.log_files.rotation() },
        metrics: log_metrics,
    };
    let subscriber = Subscriber {
        channel,
        node: config.node_name,
        views: views_to,
        applied,
        judging: judging.clone(),
        status: status.clone(),
        metrics,
    };
    let told = dump::serve(config.places.state_dir.clone(), views.clone(), findings.clone());

    let mut tasks = JoinSet::new();
    tasks.spawn(async move { failed("dump", told.await) });
    let served = serve::run(config.metrics_listen, Arc::new(registry), status);
    tasks.spawn(async move { failed("serve", served.await) });
    tasks.spawn(ended("endpoints", finder.run(findings_to)));
    tasks.spawn(ended("services", decider.run(judging_to)));
    tasks.spawn(ended("subscribe", subscriber.run()));
    let wires = Wires { views, findings, judging, applied: applied_to, book: book_to };
    tasks.spawn(ended("apply", applier.run(wires)));
    tasks.spawn(ended("report", reports));
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let mut observing = tokio::spawn(observe::run(observe, stopped));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = tasks.join_next() => {
            return Err(ended.unwrap_or_else(|panic| RunError::Task(panic.to_string())));
        }
        _ = &mut observing => return Err(RunError::Task("observe".to_owned())),
    }
    tracing::info!("stopping; what the kernel enforces goes on");
    drop(stop);
    if tokio::time::timeout(LAST_LINES, observing).await.is_err() {
        tracing::warn!(
            "the log's last lines are not written; what is denied will be told after the next start"
        );
    }
    Ok(())
}

async fn ended(name: &'static str, task: impl Future<Output = ()>) -> RunError {
    task.await;
    RunError::Task(name.to_owned())
}

fn failed(name: &'static str, result: std::io::Result<()>) -> RunError {
    match result {
        Ok(()) => RunError::Task(name.to_owned()),
        Err(error) => RunError::Task(format!("{name}: {error}")),
    }
}
