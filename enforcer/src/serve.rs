//! What is told over HTTP: metrics, health and readiness. IO.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;

use crate::status::Status;

/// Serves until the process ends.
///
/// # Errors
///
/// If the address cannot be listened at.
pub async fn run(listen: SocketAddr, registry: Arc<Registry>, status: Arc<Status>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || std::future::ready(ready(&status))))
        .route("/metrics", get(move || std::future::ready(metrics(&registry))));
    let listener = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(listener, router).await
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
