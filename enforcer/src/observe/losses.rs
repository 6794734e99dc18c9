//! What the kernel lost on the way to us: from its totals, what is new. IO: reads counters.

use std::collections::HashMap;

use durward_bpf::{DataPath, Direction};

/// What was lost when it was asked last, by endpoint and direction.
#[derive(Debug, Default)]
pub(crate) struct KernelLosses {
    /// None before the first look: what was lost before we started is not ours to tell.
    before: Option<HashMap<(u32, Direction), [u64; 2]>>,
}

impl KernelLosses {
    /// What was lost since it was asked last: records that found the ring full, and what was over a budget.
    pub(crate) fn read(&mut self, path: &DataPath, interfaces: impl Iterator<Item = u32>) -> [u64; 2] {
        let mut now = HashMap::new();
        for ifindex in interfaces {
            for direction in Direction::BOTH {
                // An endpoint that is not in the kernel yet, or any more, has lost nothing.
                if let Ok(counters) = path.counters(ifindex, direction) {
                    now.insert((ifindex, direction), [counters.unwritten, counters.suppressed]);
                }
            }
        }
        let new = self.before.as_ref().map_or([0; 2], |before| increase(before, &now));
        self.before = Some(now);
        new
    }
}

fn increase<K: Eq + std::hash::Hash>(before: &HashMap<K, [u64; 2]>, now: &HashMap<K, [u64; 2]>) -> [u64; 2] {
    let mut sum = [0; 2];
    for (key, totals) in now {
        let old = before.get(key).copied().unwrap_or_default();
        for place in 0..2 {
            // A total that is smaller than before began anew, with a new endpoint.
            sum[place] += totals[place].checked_sub(old[place]).unwrap_or(totals[place]);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_told_also_of_endpoints_that_are_new_or_began_anew() {
        let before = HashMap::from([("old", [5, 7]), ("gone", [100, 100]), ("again", [50, 50])]);
        let now = HashMap::from([("old", [6, 7]), ("new", [10, 20]), ("again", [2, 3])]);
        assert_eq!(increase(&before, &now), [13, 23]);
    }
}
