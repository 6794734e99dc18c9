//! What the controller and the enforcers say to each other.
//!
//! Pure: no kernel, no network, no clock. [`wire`] is what protobuf carries; everything else is the
//! domain that both sides work with. The only way from the one to the other is [`decode`], which
//! refuses what it does not understand by name, and [`encode`], which cannot fail.
//!
//! ```text
//! engine → Patch → encode → gRPC → decode → Patch → NodeView → plan
//! ```

/// The messages and the service as protobuf has them: see `proto/durward.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod wire {
    tonic::include_proto!("durward.v1");
}

pub mod decode;
pub mod encode;
pub mod names;
pub mod patch;
pub mod report;
pub mod row;
pub mod service;
pub mod view;

pub use decode::{DecodeError, Problem};
pub use names::{AtomId, AttributionId, Digest, Digester, PodUid, SetId};
pub use patch::{Delta, NewSet, Patch, PatchError, ServiceDelta, SetDelta};
pub use report::{
    IdentifyRequest, Identity, LateAttach, LossPlace, NodeReport, PodName, ToNode, Version, Workload,
};
pub use row::{Act, PortKey, Row, RowError, Step, Verdict};
pub use service::{Backend, Directory, Frontend, FrontendError, Service};
pub use view::{
    Attribution, Block, BlockError, Direction, Leaves, LogMode, Logging, NodeView, Pod, Policy, PolicyList,
    Set, ViewError,
};
