//! Starts the controller. Does IO.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use durward_controller::{Config, Listeners, raise_open_files, run};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Very many small things come and go: several times faster than the C library's there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .init();
    match start(Config::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn start(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    raise_open_files()?;
    let client = Client::try_default().await?;
    let listeners = Listeners::bind(&config).await?;
    let (grpc, metrics) = listeners.addresses()?;
    info!(%grpc, %metrics, "serving");
    let stop = async {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    };
    Ok(run(client, listeners, stop).await?)
}
