//! Which terms a node's sets use, and which sets use each. Pure.

use crate::sorted::{exchange, sorted};
use crate::table::{SetIndex, TermId};
use crate::tally::Turnover;

/// Each term with each set that uses it, sorted.
#[derive(Debug, Default)]
pub(crate) struct Terms(Vec<(TermId, SetIndex)>);

impl Terms {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All terms, sorted, each once.
    pub(crate) fn iter(&self) -> impl Iterator<Item = TermId> + '_ {
        self.0.chunk_by(|(one, _), (other, _)| one == other).map(|same| same[0].0)
    }

    pub(crate) fn contains(&self, term: TermId) -> bool {
        self.0.get(self.first(term)).is_some_and(|&(other, _)| other == term)
    }

    /// The sets that use a term, sorted.
    pub(crate) fn users(&self, term: TermId) -> impl Iterator<Item = SetIndex> + '_ {
        let users = self.0[self.first(term)..].iter().take_while(move |(other, _)| *other == term);
        users.map(|&(_, set)| set)
    }

    fn first(&self, term: TermId) -> usize {
        self.0.partition_point(|(other, _)| *other < term)
    }

    /// Sets come with what they use, others go.
    pub(crate) fn settle(
        &mut self,
        come: Vec<(TermId, SetIndex)>,
        go: Vec<(TermId, SetIndex)>,
    ) -> Turnover<TermId> {
        let mut turnover = Turnover::default();
        if come.is_empty() && go.is_empty() {
            return turnover;
        }
        let go = sorted(go);
        let touched: Vec<_> = sorted(come.iter().chain(&go).map(|&(term, _)| term).collect());
        let before: Vec<_> = touched.iter().map(|&term| self.contains(term)).collect();
        exchange(&mut self.0, &go, come, |&user| user);
        for (term, before) in touched.into_iter().zip(before) {
            match (before, self.contains(term)) {
                (false, true) => turnover.came.push(term),
                (true, false) => turnover.went.push(term),
                _ => {}
            }
        }
        turnover
    }
}
