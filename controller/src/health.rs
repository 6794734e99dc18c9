//! Whether the daemon lives, is ready, and what it counts. Does IO: serves HTTP.
//!
//! Ready means: everything was listed and the nodes can subscribe. It stays ready when a watch fails
//! later, since what it knows still holds and nodes that come back must find it; what fails is in the
//! answer's text, in the metrics and in the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::metrics::Kind;

/// A failure is shown for so long: a watch that still fails has failed again by then.
const SHOW_FAILURE: Duration = Duration::from_secs(60);

/// What readiness is made of.
#[derive(Debug, Default)]
pub(crate) struct Health {
    in_sync: AtomicBool,
    failures: Mutex<BTreeMap<Kind, (Instant, String)>>,
}

impl Health {
    /// Everything was listed, and nodes are served.
    pub(crate) fn synced(&self) {
        self.in_sync.store(true, Ordering::Release);
    }

    /// A watch failed.
    pub(crate) fn failed(&self, kind: Kind, problem: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.insert(kind, (Instant::now(), problem));
    }

    /// Whether the daemon is ready, and what to know about it.
    pub(crate) fn ready(&self) -> (bool, String) {
        let in_sync = self.in_sync.load(Ordering::Acquire);
        let first = if in_sync { "in sync" } else { "not in sync: some kind of objects is not listed yet" };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (at, _)| at.elapsed() < SHOW_FAILURE);
        let lines = failures.iter().map(|(kind, (_, problem))| format!("{kind:?}: {problem}\n"));
        (in_sync, format!("{first}\n{}", lines.collect::<String>()))
    }
}

#[derive(Clone)]
struct Shown {
    health: Arc<Health>,
    registry: Arc<Registry>,
}

/// Serves `/healthz`, `/readyz` and `/metrics` until `stop` resolves.
///
/// # Errors
///
/// The listener's.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    registry: Registry,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shown { health, registry: Arc::new(registry) });
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let (ready, text) = shown.health.ready();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shown.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(CONTENT_TYPE, kind)], text)
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_in_sync_and_failures_are_said() {
        let health = Health::default();
        assert!(!health.ready().0);
        health.synced();
        assert_eq!(health.ready(), (true, "in sync\n".to_owned()));
        health.failed(Kind::Pod, "connection refused".to_owned());
        assert_eq!(health.ready(), (true, "in sync\nPod: connection refused\n".to_owned()));
    }
}
