//! A node in namespaces of its own: pods with real interfaces and processes, the built enforcer, and a
//! controller that says what the test wants. IO; needs root.
//!
//! Everything is made below one temporary folder and one cgroup, and removed when the node is dropped.
//! What a killed run leaves is removed by the next.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part of it")]

pub mod controller;
pub mod node;
pub mod remains;
pub mod traffic;
pub mod views;

use std::time::{Duration, Instant};

/// How long anything may take. The machine may be slow, and no test is about time.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `done` gives something.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
