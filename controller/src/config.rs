//! What the daemon is told when it starts. Pure.

use std::net::SocketAddr;

use clap::Parser;

/// Watches the cluster's objects and tells every node its rules.
///
/// The API server is the cluster's own, or KUBECONFIG's.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Where enforcers are served, by gRPC.
    #[arg(long, env = "LISTEN", default_value = "[::]:9443")]
    pub listen: SocketAddr,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "METRICS_LISTEN", default_value = "[::]:9444")]
    pub metrics_listen: SocketAddr,
}
