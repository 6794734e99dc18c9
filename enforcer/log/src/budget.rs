//! At most so many lines a second. Pure: the clock comes with each call.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A budget of lines: never more than so many within any one second.
#[derive(Debug)]
pub struct Budget {
    lines_per_s: usize,
    /// When the last lines were granted, oldest first; at most `lines_per_s`.
    granted: VecDeque<Instant>,
}

impl Budget {
    /// A budget of which nothing is used.
    pub const fn new(lines_per_s: usize) -> Self {
        Self { lines_per_s, granted: VecDeque::new() }
    }

    /// Takes a line from the budget, if there is one left.
    pub fn take(&mut self, now: Instant) -> bool {
        while self.granted.front().is_some_and(|&granted| now.duration_since(granted) >= SECOND) {
            self.granted.pop_front();
        }
        let left = self.granted.len() < self.lines_per_s;
        if left {
            self.granted.push_back(now);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_than_its_lines() {
        let (mut budget, start) = (Budget::new(3), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        // Two late in one second, one early in the next: none is left until the first two are a second old.
        let taken = [800, 900, 1000, 1001, 1799, 1800, 1850, 1900, 5000].map(|ms| budget.take(at(ms)));
        assert_eq!(taken, [true, true, true, false, false, true, false, true, true]);
    }

    #[test]
    fn a_budget_of_nothing_grants_nothing() {
        assert!(!Budget::new(0).take(Instant::now()));
    }
}
