//! The engine: events in, patches out. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use durward_proto::{NodeView, Patch};

use crate::object::{Event, Key};
use crate::{Fault, Limits};

/// What a batch of events changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What changes in the views of subscribed nodes. Nodes without a change are not in it.
    pub patches: BTreeMap<Arc<str>, Patch>,
    /// Policies that now fail closed for a new reason, and those that no longer do (none), because
    /// they were mended or are gone.
    pub faults: BTreeMap<Key, Option<Fault>>,
}

/// All objects of the cluster, and the views of the nodes that somebody subscribed to.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
}

impl Engine {
    /// An engine that knows of no object.
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// Takes what happened, all at once: no state between the events is ever seen in a view.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Outcome {
        let _ = (events.into_iter().count(), self.limits);
        Outcome::default()
    }

    /// From now on `apply` says what changes in this node's view. This is the view that the first
    /// patch applies to. Asking again gives the view as it is now.
    pub fn subscribe(&mut self, node: &str) -> NodeView {
        let _ = node;
        NodeView::default()
    }

    /// The node's changes are of no interest any more.
    pub fn unsubscribe(&mut self, node: &str) {
        let _ = node;
    }
}
