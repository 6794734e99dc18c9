//! Starts things.

use std::process::ExitCode;

use clap::Parser;
use durward_enforcer::config::{Cli, Command};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Cli::parse().command {
        Command::Run(run) => durward_enforcer::run::run(*run).map_err(|error| error.to_string()),
        Command::Dump(dump) => match durward_enforcer::dump::dump(&dump.places) {
            Ok(told) => {
                println!("{told:#}");
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("durward-enforcer: {error}");
            ExitCode::FAILURE
        }
    }
}
