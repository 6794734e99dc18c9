//! What is told over HTTP: metrics, health and readiness. IO.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use nix::errno::Errno;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::status::{Problem, Status};

/// How often it is tried to listen.
const RETRY_AFTER: Duration = Duration::from_secs(3);

/// Serves until the process ends. An address that cannot be listened at is tried again and again: enforcement
/// does not depend on it.
///
/// # Errors
///
/// If the server ends.
pub async fn run(at: SocketAddr, registry: Arc<Registry>, status: Arc<Status>) -> io::Result<()> {
    let listener = listen(at, &status).await;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || std::future::ready(ready(&status))))
        .route("/metrics", get(move || std::future::ready(metrics(&registry))));
    axum::serve(listener, router).await
}

async fn listen(at: SocketAddr, status: &Status) -> TcpListener {
    loop {
        let bound = match TcpListener::bind(at).await {
            Err(error) => match without_ipv6(at, &error) {
                Some(at) => TcpListener::bind(at).await,
                None => Err(error),
            },
            bound => bound,
        };
        match bound {
            Ok(listener) => {
                status.clear(&Problem::Listen);
                return listener;
            }
            Err(error) => {
                let text = format!("cannot listen at {at} for metrics and health: {error}; trying again");
                status.raise(Problem::Listen, text);
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// All addresses of a host that has no IPv6 (`ipv6.disable=1`), if that is why `at` failed.
fn without_ipv6(at: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let unsupported = error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32);
    let all = at.ip().is_unspecified() && at.is_ipv6();
    (unsupported && all).then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), at.port()))
}

/// Ready: in sync with the controller, and the kernel has it.
fn ready(status: &Status) -> (StatusCode, String) {
    match status.unready() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

fn metrics(registry: &Registry) -> axum::response::Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_ipv6_listens_on_ipv4() {
        let all: SocketAddr = "[::]:9445".parse().unwrap();
        let unsupported = io::Error::from(Errno::EAFNOSUPPORT);
        assert_eq!(without_ipv6(all, &unsupported), Some("0.0.0.0:9445".parse().unwrap()));
        assert_eq!(without_ipv6(all, &io::Error::from(Errno::EADDRINUSE)), None);
        assert_eq!(without_ipv6("[::1]:9445".parse().unwrap(), &unsupported), None);
    }

    #[tokio::test]
    async fn an_address_in_use_is_waited_for() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = other.local_addr().unwrap();
        let status = Arc::new(Status::default());
        let waiting = tokio::spawn({
            let status = status.clone();
            async move { listen(at, &status).await }
        });
        let all = async {
            while status.problems().is_empty() {
                tokio::task::yield_now().await;
            }
            drop(other);
            waiting.await.unwrap()
        };
        let listener = tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
        assert_eq!(listener.local_addr().unwrap(), at);
        assert_eq!(status.problems(), Vec::<String>::new());
    }
}
