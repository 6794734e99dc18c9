//! From the kernel's clock to the wall's. IO: reads clocks.

use nix::time::{ClockId, clock_gettime};

/// Now, in nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> i64 {
    // Both clocks are always there; without them lines would have the time of the epoch, and not be lost.
    let now = clock_gettime(clock).map(std::time::Duration::from).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// What the wall's clock is ahead of `CLOCK_MONOTONIC`, which records are stamped with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset_ns: i64,
}

impl Clock {
    /// The clocks as they are now.
    pub(crate) fn read() -> Self {
        // Read on both sides of the other: whatever interrupts us in between counts half.
        let before = read(ClockId::CLOCK_MONOTONIC);
        let wall = read(ClockId::CLOCK_REALTIME);
        let after = read(ClockId::CLOCK_MONOTONIC);
        Self { offset_ns: wall - (before + (after - before) / 2) }
    }

    /// The wall's time of a record, in nanoseconds since 1970.
    pub(crate) fn wall_ns(self, monotonic_ns: u64) -> i64 {
        i64::try_from(monotonic_ns).unwrap_or(i64::MAX).saturating_add(self.offset_ns)
    }
}
