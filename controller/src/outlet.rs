//! What one node is still to be told. Pure.
//!
//! There is no queue. While the node keeps up, each of the engine's patches goes to it as it is, so
//! that the work follows the change. A node that is slow, or away, is owed two patches at most: the
//! one that waited for it first, and whatever else leads from there to the newest view.

use std::time::Instant;

use durward_proto::{NodeView, Patch, PatchError};

/// A node's newest view, and what of it the node's stream has taken.
#[derive(Debug)]
pub(crate) struct Outlet {
    newest: NodeView,
    number: u64,
    /// The version that the stream was handed last; none before the first.
    taken: Option<u64>,
    next: Option<Next>,
    /// The version that brought the logging that is in force.
    logging_number: u64,
    acked: u64,
    /// The oldest version that is not acknowledged, and when its cause was heard of.
    oldest_unacked: Option<(u64, Instant)>,
}

/// The patch that waits for the stream.
#[derive(Debug)]
struct Next {
    patch: Patch,
    number: u64,
    /// The view that the patch leads to, where that is not the newest any more.
    leads_to: Option<NodeView>,
}

/// How a stream begins.
#[derive(Debug, PartialEq)]
pub(crate) enum Opening {
    /// The node has this version, and is told what changed since.
    Resume(u64),
    /// The node is told the whole view.
    Whole(NodeView, u64),
}

impl Outlet {
    /// The outlet of a node whose view is `view`, which is version `first`.
    pub(crate) fn new(view: NodeView, first: u64) -> Self {
        Self {
            newest: view,
            number: first,
            taken: None,
            next: None,
            logging_number: first,
            acked: 0,
            oldest_unacked: None,
        }
    }

    /// The view changes by `patch`, for a cause that was heard of at `heard`.
    ///
    /// # Errors
    ///
    /// [`PatchError`] if the patch was made for another view. The outlet must then be dropped.
    pub(crate) fn push(&mut self, patch: Patch, heard: Instant) -> Result<(), PatchError> {
        self.number += 1;
        if patch.logging.is_some() {
            self.logging_number = self.number;
        }
        self.oldest_unacked.get_or_insert((self.number, heard));
        if self.taken.is_none() {
            // Nobody was told anything yet: who comes is told the whole.
            return self.newest.patch(patch);
        }
        match &mut self.next {
            None => self.next = Some(Next { patch: patch.clone(), number: self.number, leads_to: None }),
            Some(Next { leads_to: leads_to @ None, .. }) => *leads_to = Some(self.newest.clone()),
            Some(_) => {}
        }
        self.newest.patch(patch)
    }

    /// The patch that the stream is to send now, and the version that it leads to.
    pub(crate) fn take(&mut self) -> Option<(u64, Patch)> {
        let Next { patch, number, leads_to } = self.next.take()?;
        self.next = leads_to.map(|view| Next {
            patch: Patch::between(&view, &self.newest),
            number: self.number,
            leads_to: None,
        });
        self.taken = Some(number);
        Some((number, patch))
    }

    /// A stream begins, of a node that has version `has`.
    pub(crate) fn open(&mut self, has: Option<u64>) -> Opening {
        match has {
            Some(has) if self.taken == Some(has) => {
                self.acked = has;
                Opening::Resume(has)
            }
            _ => {
                self.next = None;
                self.taken = Some(self.number);
                self.acked = 0;
                Opening::Whole(self.newest.clone(), self.number)
            }
        }
    }

    /// The stream cannot say what it took: the next one must say everything.
    pub(crate) fn forget(&mut self) {
        self.taken = None;
        self.next = None;
    }

    /// The node has `number` in its kernel. Gives since when that was under way.
    pub(crate) fn acknowledge(&mut self, number: u64) -> Option<Instant> {
        if number > self.number {
            // Not a version that there was.
            return None;
        }
        self.acked = self.acked.max(number);
        let (_, heard) = self.oldest_unacked.take_if(|(oldest, _)| *oldest <= number)?;
        Some(heard)
    }

    /// Whether the node has the logging that is in force.
    pub(crate) fn runs_logging(&self) -> bool {
        self.acked >= self.logging_number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_proto::{AtomId, Digest};
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn view(hosts: &[(u8, u8)]) -> NodeView {
        let address = |&(host, atom)| (IpAddr::from([10, 0, 0, host]), AtomId(Digest([atom; 16])));
        NodeView { addresses: hosts.iter().map(address).collect(), ..NodeView::default() }
    }

    /// A node that takes patches as it likes.
    struct Node {
        view: NodeView,
        has: Option<u64>,
    }

    impl Node {
        fn open(&mut self, outlet: &mut Outlet) {
            match outlet.open(self.has) {
                Opening::Resume(number) => assert_eq!(Some(number), self.has),
                Opening::Whole(view, number) => (self.view, self.has) = (view, Some(number)),
            }
        }

        fn take(&mut self, outlet: &mut Outlet) -> bool {
            let Some((number, patch)) = outlet.take() else { return false };
            self.view.patch(patch).unwrap();
            self.has = Some(number);
            true
        }
    }

    #[test]
    fn a_node_that_keeps_up_is_sent_the_engines_own_patches() {
        let (first, second) = (view(&[(1, 1)]), view(&[(1, 1), (2, 1)]));
        let mut outlet = Outlet::new(first.clone(), 1);
        outlet.open(None);
        let patch = Patch::between(&first, &second);
        outlet.push(patch.clone(), Instant::now()).unwrap();
        assert_eq!(outlet.take(), Some((2, patch)));
        assert_eq!(outlet.take(), None);
    }

    #[test]
    fn a_node_that_comes_back_with_what_it_took_is_not_sent_it_again() {
        let mut outlet = Outlet::new(view(&[(1, 1)]), 1);
        assert_eq!(outlet.open(None), Opening::Whole(view(&[(1, 1)]), 1));
        assert_eq!(outlet.open(Some(1)), Opening::Resume(1));
        assert_eq!(outlet.open(Some(7)), Opening::Whole(view(&[(1, 1)]), 1));
        outlet.forget();
        assert_eq!(outlet.open(Some(1)), Opening::Whole(view(&[(1, 1)]), 1));
    }

    #[test]
    fn a_node_runs_the_logging_once_it_acknowledged_the_version_that_brought_it() {
        let mut outlet = Outlet::new(view(&[]), 1);
        outlet.open(None);
        assert!(!outlet.runs_logging());
        outlet.acknowledge(1);
        assert!(outlet.runs_logging());
        let logging = durward_proto::Logging { generation: 2, ..Default::default() };
        outlet.push(Patch { logging: Some(logging), ..Patch::default() }, Instant::now()).unwrap();
        assert!(!outlet.runs_logging());
        outlet.push(Patch::between(&view(&[]), &view(&[(1, 1)])), Instant::now()).unwrap();
        assert!(outlet.acknowledge(99).is_none() && !outlet.runs_logging());
        assert!(outlet.acknowledge(2).is_some() && outlet.runs_logging());
    }

    proptest! {
        #[test]
        fn however_slow_a_node_is_it_ends_at_the_newest_view(
            views in proptest::collection::vec(proptest::collection::vec((0..5_u8, 0..3_u8), 0..5), 1..12),
            pace in proptest::collection::vec(0..4_u8, 12),
        ) {
            let mut current = view(&views[0]);
            let mut outlet = Outlet::new(current.clone(), 1);
            let mut node = Node { view: NodeView::default(), has: None };
            node.open(&mut outlet);
            for (hosts, pace) in views[1..].iter().zip(pace) {
                let next = view(hosts);
                outlet.push(Patch::between(&current, &next), Instant::now()).unwrap();
                current = next;
                match pace {
                    0 => drop(node.take(&mut outlet)),
                    1 => node.open(&mut outlet),
                    2 => { node.has = None; node.open(&mut outlet) }
                    _ => {}
                }
            }
            let mut patches = 0;
            while node.take(&mut outlet) { patches += 1 }
            prop_assert!(patches <= 2);
            prop_assert_eq!(&node.view, &current);
            prop_assert_eq!(node.has, Some(outlet.number));
        }
    }
}
