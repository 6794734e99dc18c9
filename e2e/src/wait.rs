//! Waiting for a condition: polled often, given up late (IO: only the clock).

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How long anything is waited for before it counts as failed. Generous: a test machine may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

const INTERVAL: Duration = Duration::from_millis(50);

/// Polls `condition` until it gives a value; after `PATIENCE` it fails with `what` and the last thing that `condition` said.
pub fn wait<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> Result<T> {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(state) if start.elapsed() > PATIENCE => {
                return Err(Error::Deadline { what: what.to_owned(), after: PATIENCE, state });
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
