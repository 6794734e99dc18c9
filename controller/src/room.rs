//! How much may be under way to all nodes together: what waits for them and what is being sent. Pure, but for waking.
//!
//! What one node is told is bounded by what it can hold, and what waits for it by its outlet. But a policy may concern the pods of
//! very many nodes, and mention all pods of the cluster: what that changes everywhere is more than there is memory for. So
//! nodes that ask for their view wait while there is no room. Where there is still more, as changes came on top, large
//! changes are dropped for the whole view, which is worked out when it is the node's turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// For how many entries there is room (see [`durward_proto::Patch::weight`]): each takes about 60 bytes with what it is
/// encoded to.
pub(crate) const MOST: usize = 2_000_000;

/// Entries of patches that are under way.
#[derive(Debug)]
pub(crate) struct Room {
    most: usize,
    taken: AtomicUsize,
    freed: Notify,
}

impl Room {
    /// Room for about so many entries: what is taken when there is some may be more.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Whether there is none for views.
    pub(crate) fn is_full(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.most
    }

    /// Whether there is none for large changes either: for them there is as much again, so that views that are under way
    /// do not make more views necessary.
    pub(crate) fn is_crowded(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= 2 * self.most
    }

    /// How many entries are under way.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Resolves when there was no room, and then some; or was said to be some.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Says that there is room.
    pub(crate) fn wake(&self) {
        self.freed.notify_one();
    }
}

/// What one node takes of the room, until this is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    room: Arc<Room>,
    entries: usize,
}

impl Load {
    /// Takes so many entries, whether or not there is room.
    pub(crate) fn of(room: &Arc<Room>, entries: usize) -> Self {
        let mut load = Self { room: room.clone(), entries: 0 };
        load.set(entries);
        load
    }

    /// Takes so many entries from now on.
    pub(crate) fn set(&mut self, entries: usize) {
        let Room { most, taken, .. } = &*self.room;
        let before = std::mem::replace(&mut self.entries, entries);
        if entries >= before {
            taken.fetch_add(entries - before, Ordering::Relaxed);
            return;
        }
        let was = taken.fetch_sub(before - entries, Ordering::Relaxed);
        if was >= *most && was - (before - entries) < *most {
            self.room.wake();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_waits_for_room_is_woken_when_there_is_some_again() {
        let room = Room::new(10);
        let is_freed = || room.freed().now_or_never().is_some();
        let (mut one, other) = (Load::of(&room, 9), Load::of(&room, 0));
        assert!(!room.is_full());
        one.set(19);
        assert!(room.is_full() && !room.is_crowded());
        one.set(30);
        assert!(room.is_crowded());
        let third = Load::of(&room, 5);
        drop((third, other));
        assert!(room.is_full() && !is_freed());
        one.set(9);
        assert!(!room.is_full() && is_freed() && !is_freed());
        one.set(10);
        drop(one);
        assert!(!room.is_full() && is_freed());
    }
}
