//! The controller: watches the cluster's objects and tells every node its rules.
//!
//! ```text
//! API server → watch → translate, policy, service → task (owns the engine) → mailbox → stream → enforcers
//!                      keeper, logging   ⇄
//! ```
//!
//! Everything is received cheaply and applied in batches by one task; every node's stream takes from
//! its mailbox what it has not been told. `main.rs` only starts [`run`].

mod event;
mod files;
mod health;
mod identity;
mod initial;
mod keeper;
mod logging;
mod mailbox;
mod metrics;
mod outlet;
mod policy;
mod room;
mod run;
mod serve;
mod service;
mod stream;
mod task;
mod translate;
mod watch;

pub mod config;

pub use config::Config;
pub use files::raise_open_files;
pub use run::{Listeners, RunError, run};
