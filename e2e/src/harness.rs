//! A test program whose tests share one bed: `[[test]] harness = false`, and `main` calls [`run`] (IO).

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Bed, Config, Result, end_with_parent};

/// A test on a bed: fails by an error or a panic.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// What it shows.
    pub name: &'static str,
    /// How.
    pub run: fn(&Bed) -> Result<()>,
}

/// Runs the tests that the command line asks for, one after the other, on one bed. It goes up, and is prepared by `setup`,
/// for the first of them, and goes down after the last.
pub fn run(config: Config, setup: fn(&Bed) -> Result<()>, tests: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share a cluster; what one does to it would disturb another.
    arguments.test_threads = Some(1);
    let bed: Arc<OnceLock<Result<Bed, String>>> = Arc::default();
    let trials = tests.iter().map(|&Test { name, run }| {
        let (bed, config) = (bed.clone(), config.clone());
        Trial::test(name, move || {
            let up = || {
                Bed::up(config).and_then(|bed| setup(&bed).map(|()| bed)).map_err(|error| error.to_string())
            };
            let bed =
                bed.get_or_init(up).as_ref().map_err(|error| Failed::from(format!("no bed: {error}")))?;
            run(bed).map_err(|error| Failed::from(error.to_string()))
        })
    });
    if let Err(error) = end_with_parent() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(bed);
    conclusion.exit_code()
}
