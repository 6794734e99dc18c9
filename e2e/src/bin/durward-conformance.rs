//! Kubernetes' own NetworkPolicy suite against Durward, on throwaway clusters (IO).

use std::process::ExitCode;

use clap::Parser;
use durward_e2e::{Cni, Proxy, conformance};

/// Runs Kubernetes' own NetworkPolicy suite against Durward, on a cluster for each CNI plugin, one after the other.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The CNI plugins.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Cni::Ptp, Cni::Bridge])]
    cni: Vec<Cni>,
    /// The mode of kube-proxy.
    #[arg(long, value_enum, default_value_t)]
    proxy: Proxy,
}

fn main() -> ExitCode {
    let Arguments { cni, proxy } = Arguments::parse();
    match conformance::run(&cni, proxy) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("durward-conformance: {error}");
            ExitCode::FAILURE
        }
    }
}
