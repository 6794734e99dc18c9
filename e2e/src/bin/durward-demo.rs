//! The guided tour on a throwaway Kubernetes (IO).

use std::process::ExitCode;

fn main() -> ExitCode {
    match durward_e2e::demo::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("durward-demo: {error}");
            ExitCode::FAILURE
        }
    }
}
