//! At most so many lines a second. Pure: the clock comes with each call.

use std::collections::VecDeque;

const SECOND_NS: u64 = 1_000_000_000;

/// A budget of lines: never more than so many within any one second.
#[derive(Debug)]
pub struct Budget {
    lines_per_s: usize,
    /// When the last lines were granted, oldest first; at most `lines_per_s`.
    granted_ns: VecDeque<u64>,
}

impl Budget {
    /// A budget of which nothing is used.
    pub const fn new(lines_per_s: usize) -> Self {
        Self { lines_per_s, granted_ns: VecDeque::new() }
    }

    /// Takes a line from the budget, if there is one left. The clock must not go back.
    pub fn take(&mut self, now_ns: u64) -> bool {
        while self.granted_ns.front().is_some_and(|&granted| now_ns.saturating_sub(granted) >= SECOND_NS) {
            self.granted_ns.pop_front();
        }
        let left = self.granted_ns.len() < self.lines_per_s;
        if left {
            self.granted_ns.push_back(now_ns);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_its_lines() {
        let mut budget = Budget::new(3);
        let at = |ms: u64| ms * 1_000_000;
        // Two late in one second, one early in the next: none is left until the first two are a second old.
        let taken = [800, 900, 1000, 1001, 1799, 1800, 1850, 1900, 5000].map(|ms| budget.take(at(ms)));
        assert_eq!(taken, [true, true, true, false, false, true, false, true, true]);
    }

    #[test]
    fn a_budget_of_nothing_grants_nothing() {
        assert!(!Budget::new(0).take(7));
    }
}
