//! What one node is still to be told. Pure.
//!
//! There is no queue, and no copy of the view. What waits is one patch: while the node keeps up, the
//! engine's own, so that the work follows the change; else all that came since, in one. When that
//! grows over a limit it is dropped, and the node is told the whole view, which the engine makes anew.

use std::time::Instant;

use durward_proto::{Patch, PatchError};

/// The weight that a patch may have that was merged; by then the whole view is about as cheap.
const MAX_MERGED: usize = 4096;
/// The weight that a patch may have that comes while there is no room, or waits for a node without a stream: a few events'.
const MAX_CROWDED: usize = 256;

/// What of a node's view its stream has not taken.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// The newest version.
    number: u64,
    /// The version that the stream was handed last; none if it must be told the whole view.
    taken: Option<u64>,
    /// What leads from there to the newest version.
    waiting: Option<Patch>,
    /// The version that brought the logging that is in force.
    logging_number: u64,
    acked: u64,
    /// The oldest version that is not acknowledged, and when its cause was heard of.
    oldest_unacked: Option<(u64, Instant)>,
}

/// How a stream begins.
#[derive(Debug, PartialEq)]
pub(crate) enum Opening {
    /// The node has this version, and is told what changed since.
    Resume(u64),
    /// The node is told the whole view: what leads to it from an empty one.
    Whole(Box<Patch>, u64),
}

/// Why a node must be told the whole view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lost {
    /// It takes too little.
    #[error("more than {MAX_MERGED} changes wait for the node")]
    Behind,
    /// It is one of very many that are told very much.
    #[error("too much is under way to all nodes together")]
    Crowded,
    /// The patches do not follow each other. Cannot be, unless the engine is wrong.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

impl Outlet {
    /// The outlet of a node whose view is version `first`, and which was told nothing.
    pub(crate) fn new(first: u64) -> Self {
        Self {
            number: first,
            taken: None,
            waiting: None,
            logging_number: first,
            acked: 0,
            oldest_unacked: None,
        }
    }

    /// The view changes by `patch`, for a cause that was heard of at `heard`. Where there is no `room`, only a
    /// little is added.
    ///
    /// # Errors
    ///
    /// [`Lost`], when the node becomes so.
    pub(crate) fn push(&mut self, patch: Patch, heard: Instant, room: bool) -> Result<(), Lost> {
        self.number += 1;
        if patch.logging.is_some() {
            self.logging_number = self.number;
        }
        self.oldest_unacked.get_or_insert((self.number, heard));
        if self.is_lost() {
            return Ok(());
        }
        let fits = room || patch.weight() <= MAX_CROWDED;
        let waits = if fits { self.wait(patch) } else { Err(Lost::Crowded) };
        waits.inspect_err(|_| self.forget())
    }

    /// The weight of what waits.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.as_ref().map_or(0, Patch::weight)
    }

    /// Whether a node that has this version need not be told the whole view.
    pub(crate) fn resumes(&self, has: Option<u64>) -> bool {
        has.is_some() && self.taken == has
    }

    /// Nobody takes what waits: it is dropped, unless it is little.
    pub(crate) fn give_up(&mut self) {
        if self.waiting() > MAX_CROWDED {
            self.forget();
        }
    }

    fn wait(&mut self, patch: Patch) -> Result<(), Lost> {
        match &mut self.waiting {
            None => self.waiting = Some(patch),
            Some(waiting) => {
                waiting.merge(patch)?;
                if waiting.weight() > MAX_MERGED {
                    return Err(Lost::Behind);
                }
            }
        }
        Ok(())
    }

    /// The patch that the stream is to send now, and the version that it leads to.
    pub(crate) fn take(&mut self) -> Option<(u64, Patch)> {
        let patch = self.waiting.take()?;
        self.taken = Some(self.number);
        Some((self.number, patch))
    }

    /// A stream begins, of a node that has version `has`; `whole` leads to the newest view from an empty one.
    pub(crate) fn open(&mut self, has: Option<u64>, whole: impl FnOnce() -> Patch) -> Opening {
        match has {
            Some(has) if self.taken == Some(has) => {
                self.acked = has;
                Opening::Resume(has)
            }
            _ => {
                self.waiting = None;
                self.taken = Some(self.number);
                self.acked = 0;
                Opening::Whole(whole().into(), self.number)
            }
        }
    }

    /// Whether no patch leads to the newest view: the stream must begin anew.
    pub(crate) fn is_lost(&self) -> bool {
        self.taken.is_none()
    }

    /// The stream cannot say what it took: the next one must say everything.
    fn forget(&mut self) {
        self.taken = None;
        self.waiting = None;
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
    use durward_proto::{AtomId, Delta, Digest, NodeView, SetDelta, SetId};
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn view(hosts: &[(u8, u8)]) -> NodeView {
        let address = |&(host, atom)| (IpAddr::from([10, 0, 0, host]), AtomId(Digest([atom; 16])));
        NodeView { addresses: hosts.iter().map(address).collect(), ..NodeView::default() }
    }

    /// What leads to the view from an empty one.
    fn whole(view: &NodeView) -> Patch {
        Patch::between(&NodeView::default(), view)
    }

    /// The outlet of a node that was told that it has nothing.
    fn opened() -> Outlet {
        let mut outlet = Outlet::new(1);
        outlet.open(None, Patch::default);
        outlet
    }

    /// A node that takes patches as it likes.
    struct Node {
        view: NodeView,
        has: Option<u64>,
    }

    impl Node {
        fn open(&mut self, outlet: &mut Outlet, newest: &NodeView) {
            match outlet.open(self.has, || whole(newest)) {
                Opening::Resume(number) => assert_eq!(Some(number), self.has),
                Opening::Whole(patch, number) => {
                    self.view = NodeView::default().patched(*patch).unwrap();
                    self.has = Some(number);
                }
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
        let mut outlet = Outlet::new(1);
        outlet.open(None, || whole(&first));
        let patch = Patch::between(&first, &second);
        outlet.push(patch.clone(), Instant::now(), true).unwrap();
        assert_eq!(outlet.take(), Some((2, patch)));
        assert_eq!(outlet.take(), None);
    }

    #[test]
    fn a_node_that_comes_back_with_what_it_took_is_not_sent_it_again() {
        let whole = || whole(&view(&[(1, 1)]));
        let mut outlet = Outlet::new(1);
        assert_eq!(outlet.open(None, whole), Opening::Whole(whole().into(), 1));
        assert_eq!(outlet.open(Some(1), whole), Opening::Resume(1));
        assert_eq!(outlet.open(Some(7), whole), Opening::Whole(whole().into(), 1));
        outlet.forget();
        assert_eq!(outlet.open(Some(1), whole), Opening::Whole(whole().into(), 1));
    }

    fn addresses(hosts: std::ops::Range<u32>) -> Patch {
        let address = |host: u32| (IpAddr::V4(host.into()), AtomId(Digest([1; 16])));
        let mut patch = Patch::default();
        patch.addresses.put = hosts.map(address).collect();
        patch
    }

    #[test]
    fn a_node_that_falls_too_far_behind_is_told_the_whole_view() {
        let (now, limit) = (Instant::now(), MAX_MERGED as u32);
        let mut outlet = opened();
        // One patch of the engine goes as it is, however large.
        outlet.push(addresses(0..2 * limit), now, true).unwrap();
        assert_eq!(outlet.take().map(|(_, patch)| patch.weight()), Some(2 * MAX_MERGED));
        outlet.push(addresses(0..limit), now, true).unwrap();
        outlet.push(addresses(0..limit), now, true).unwrap();
        assert_eq!(outlet.push(addresses(limit..limit + 1), now, true), Err(Lost::Behind));
        assert!(outlet.is_lost());
        assert_eq!(outlet.push(addresses(0..1), now, true), Ok(()));
        assert_eq!((outlet.take(), outlet.waiting.as_ref()), (None, None));
        assert_eq!(outlet.open(Some(2), Patch::default), Opening::Whole(Box::default(), 6));
        assert!(!outlet.is_lost());
    }

    #[test]
    fn where_there_is_no_room_only_little_waits() {
        let (now, limit) = (Instant::now(), MAX_CROWDED as u32);
        let mut outlet = opened();
        // What had room is not given up for a little more.
        outlet.push(addresses(0..4 * limit), now, true).unwrap();
        outlet.push(addresses(4 * limit..5 * limit), now, false).unwrap();
        assert_eq!((outlet.waiting(), outlet.take().is_some(), outlet.waiting()), (5 * MAX_CROWDED, true, 0));
        assert_eq!(outlet.push(addresses(0..limit + 1), now, false), Err(Lost::Crowded));
        assert!(outlet.is_lost() && outlet.waiting() == 0);
    }

    #[test]
    fn a_node_whose_patches_do_not_follow_each_other_is_told_the_whole_view() {
        let id = SetId(Digest([1; 16]));
        let set = |delta| Patch { sets: [(id, delta)].into_iter().collect(), ..Patch::default() };
        let mut outlet = opened();
        outlet.push(set(SetDelta::Removed), Instant::now(), true).unwrap();
        let wrong = outlet.push(set(SetDelta::Rows(Delta::default())), Instant::now(), true);
        assert_eq!(wrong, Err(Lost::Patch(PatchError { what: "a set" })));
        assert!(outlet.is_lost());
    }

    #[test]
    fn a_node_runs_the_logging_once_it_acknowledged_the_version_that_brought_it() {
        let mut outlet = opened();
        assert!(!outlet.runs_logging());
        outlet.acknowledge(1);
        assert!(outlet.runs_logging());
        let logging = durward_proto::Logging { generation: 2, ..Default::default() };
        outlet.push(Patch { logging: Some(logging), ..Patch::default() }, Instant::now(), true).unwrap();
        assert!(!outlet.runs_logging());
        outlet.push(Patch::between(&view(&[]), &view(&[(1, 1)])), Instant::now(), true).unwrap();
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
            let mut outlet = Outlet::new(1);
            let mut node = Node { view: NodeView::default(), has: None };
            node.open(&mut outlet, &current);
            for (hosts, pace) in views[1..].iter().zip(pace) {
                let next = view(hosts);
                outlet.push(Patch::between(&current, &next), Instant::now(), true).unwrap();
                current = next;
                match pace {
                    0 => drop(node.take(&mut outlet)),
                    1 => node.open(&mut outlet, &current),
                    2 => { node.has = None; node.open(&mut outlet, &current) }
                    _ => {}
                }
            }
            let mut patches = 0;
            while node.take(&mut outlet) { patches += 1 }
            prop_assert!(patches <= 1);
            prop_assert_eq!(&node.view, &current);
            prop_assert_eq!(node.has, Some(outlet.number));
        }
    }
}
