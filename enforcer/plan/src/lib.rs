//! From a node's view and what its kernel holds to the steps between them. Pure: no kernel, no clock.
//!
//! ```text
//! NodeView × endpoints found × Kernel × Numbers → plan → steps → (durward-bpf) → maps
//!                                                          └→ Kernel::apply, the model of the same
//! ```
//!
//! [`kernel`] is what the maps hold, as plain data; [`step`] is one write to them; [`mod@plan`] says which
//! writes, in which order; [`mod@service`] how Services are judged before translation; [`model`] applies a step and judges a packet as the kernel would, so that
//! tests can ask after every single step.

pub mod kernel;
pub mod model;
pub mod numbers;
pub mod plan;
mod region;
pub mod service;
pub mod step;
mod target;

pub use kernel::{Access, Act, Bound, Endpoint, Found, Kernel, LogFlags, Row, RowKey, Word};
pub use model::Judgement;
pub use numbers::{Exhausted, Numbers};
pub use plan::{Wanted, plan, rejudge};
pub use service::conservative;
pub use step::Step;
