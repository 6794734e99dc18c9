//! From the cluster's objects to every node's view.
//!
//! Pure: no kernel, no network, no clock. [`Engine`] takes [`object::Event`]s, in any order, and says
//! for each node that somebody subscribed to what changes in its [`durward_proto::NodeView`]. Views
//! are a function of the objects that are there, whatever the order they came in. [`oracle`] answers
//! the same questions slowly and plainly; tests hold the two together.
//!
//! ```text
//! Event → Engine::apply → Outcome { Patch for each node, Fault for each policy }
//! ```

mod address;
mod alike;
mod answer;
mod attribution;
mod block;
mod cluster;
mod elements;
pub mod engine;
mod group;
pub mod limit;
mod list;
pub mod object;
pub mod oracle;
mod own;
mod owner;
mod pod;
mod row;
mod rules;
pub mod sample;
mod selector;
mod service;
mod set;
mod share;
mod shed;
mod sorted;
mod spread;
mod table;
mod tally;
mod terms;
mod view;
mod words;

pub use engine::{Engine, News, Outcome, Sizes};
pub use limit::{Fault, LeftOut, Limits};
pub use service::Detail;
