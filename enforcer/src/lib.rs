//! The enforcer: one node's half of Durward.
//!
//! ```text
//! subscribe ── whole views ──┐
//!                            ├─→ apply (plan → steps → kernel) ── book ──→ observe → log lines
//! endpoints ── pods found ───┤       └─→ acks, metrics
//! services ─── how judged ───┘
//! ```
//!
//! Each arrow is a channel that holds the newest whole value; one task owns what is behind it.

pub mod apply;
pub mod book;
pub mod config;
pub mod dump;
pub mod endpoints;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod report;
pub mod run;
pub mod serve;
pub mod services;
pub mod state;
pub mod status;
pub mod subscribe;
