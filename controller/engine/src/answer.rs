//! What a node's sets say of its atoms: rows come and go. Pure.
//!
//! First it is worked out which rows come and go, and stopped as soon as the node could not hold them.
//! Only then are they taken, dropped and told.

use std::collections::BTreeSet;
use std::convert::Infallible;

use durward_proto::{AtomId, Delta, NewSet, Patch, Row, SetDelta};
use litemap::LiteMap;
use smallvec::SmallVec;

use crate::elements::Element;
use crate::limit::{Load, Need, NoRoom};
use crate::set::{Sets, Whole};
use crate::shed::Closing;
use crate::sorted::sorted;
use crate::table::{AtomIndex, RowIndex, SetIndex, TermId};
use crate::tally::Turnover;
use crate::view::Refresh;

/// Atoms by the terms that their addresses match, sorted.
pub(crate) type ByTerm = Vec<(Element, AtomIndex)>;

/// A set's rows that are told, with their atoms: mostly few.
type Told = SmallVec<[(AtomIndex, RowIndex); 4]>;

/// What atoms match of a set's terms, sorted.
pub(crate) type Matching = SmallVec<[(AtomIndex, Element); 16]>;

/// What changes of the rows of sets.
#[derive(Default)]
struct Answers {
    went: Vec<(SetIndex, Told)>,
    /// Of sets that stay: rows that come, and rows that go.
    stay: Vec<(SetIndex, Told, Told)>,
    came: Vec<(SetIndex, Told)>,
    /// What the node's rows take then.
    load: Load,
}

impl Refresh<'_> {
    /// Brings the rows up to date, if the node can hold them. Otherwise nothing has happened, and what is to
    /// be closed comes out of it.
    pub(crate) fn rows(&mut self, sets: &Turnover<SetIndex>, patch: &mut Patch) -> Result<(), Closing> {
        if sets.is_empty() && self.atoms.is_empty() {
            return Ok(());
        }
        let before = self.by_terms_of(&sets.went);
        let mut uses = std::mem::take(&mut self.atoms);
        let atoms = self.view.atoms.settle(&mut uses);
        let entries = self.view.entries.saturating_add_signed(uses.sum());
        let [came, went] = [&atoms.came, &atoms.went].map(|atoms| self.matches_of(atoms));
        let matches = self.view.matches + came - went;
        let answers = self.fits(entries, matches).and_then(|()| self.answers(sets, &atoms, &before));
        match answers {
            Ok(answers) => {
                (self.view.entries, self.view.matches) = (entries, matches);
                self.view.load = answers.load;
                atoms.came.iter().for_each(|&atom| self.sets.atoms.hold(atom));
                self.tell_rows(answers, patch);
                atoms.went.iter().for_each(|&atom| self.sets.atoms.release(atom));
                Ok(())
            }
            Err(NoRoom) => {
                let all = self.by_term(self.view.atoms.things());
                let closing = self.choose(&Need::ALL, &all);
                uses.reverse();
                self.view.atoms.settle(&mut uses);
                Err(closing)
            }
        }
    }

    /// Whether the node can hold what its rules match.
    fn fits(&self, entries: usize, matches: usize) -> Result<(), NoRoom> {
        self.sets.limits.hold_all([
            (Need::Addresses, entries - self.view.blocks.atoms().len()),
            (Need::Atoms, self.view.atoms.len()),
            (Need::AtomMatches, matches),
        ])
    }

    fn matches_of(&self, atoms: &[AtomIndex]) -> usize {
        atoms.iter().map(|&atom| self.sets.atoms.key(atom).len()).sum()
    }

    fn answers(
        &mut self,
        sets: &Turnover<SetIndex>,
        atoms: &Turnover<AtomIndex>,
        before: &ByTerm,
    ) -> Result<Answers, NoRoom> {
        let mut answers = Answers { load: self.view.load, ..Answers::default() };
        for &set in &sets.went {
            answers.load -= self.base_load(set);
            let went = self.known_rows(set, before, &mut answers.load);
            answers.went.push((set, went));
        }
        if !atoms.is_empty() {
            let [came, went] = [&atoms.came, &atoms.went].map(|atoms| self.by_term(atoms.iter().copied()));
            let terms = came.iter().chain(&went).map(|((term, _), _)| *term);
            let mut stay = sorted(terms.flat_map(|term| self.view.terms.users(term)).collect());
            stay.retain(|set| sets.came.binary_search(set).is_err());
            // What goes makes room for what comes.
            for set in stay {
                let went = self.known_rows(set, &went, &mut answers.load);
                answers.stay.push((set, Told::new(), went));
            }
            for (set, told, _) in &mut answers.stay {
                *told = self.new_rows(*set, &came, &mut answers.load)?;
            }
        }
        let all = self.by_terms_of(&sets.came);
        for &set in &sets.came {
            answers.load += self.base_load(set);
            let came = self.new_rows(set, &all, &mut answers.load)?;
            answers.came.push((set, came));
        }
        self.sets.limits.hold(&answers.load).map(|()| answers)
    }

    pub(crate) fn base_load(&self, set: SetIndex) -> Load {
        let base = self.sets.whole(set).base;
        Load { rows: 0, ..self.sets.load(set, base) }
    }

    /// A set's rows for these atoms, which are there; what they take is taken from the load.
    fn known_rows(&mut self, set: SetIndex, atoms: &ByTerm, load: &mut Load) -> Told {
        let take = |row| {
            *load -= row;
            Ok::<_, Infallible>(())
        };
        let Ok(told) = self.told_rows(set, atoms, take);
        told
    }

    /// A set's rows for these atoms, as long as the load is not too much.
    fn new_rows(&mut self, set: SetIndex, atoms: &ByTerm, load: &mut Load) -> Result<Told, NoRoom> {
        let limits = self.sets.limits;
        let add = |row| {
            *load += row;
            limits.hold(load)
        };
        self.told_rows(set, atoms, add)
    }

    /// A set's rows for these atoms, where they say something else than its base row. What each takes is
    /// counted: also of those that say the same, for there might be very many to find that out of.
    pub(crate) fn told_rows<E>(
        &mut self,
        set: SetIndex,
        atoms: &ByTerm,
        mut count: impl FnMut(Load) -> Result<(), E>,
    ) -> Result<Told, E> {
        let (mut told, mut elements) = (Told::new(), SmallVec::<[Element; 16]>::new());
        let matching = matching(&self.sets.sets[set].terms, atoms);
        for same in matching.chunk_by(|(one, _), (other, _)| one == other) {
            elements.clear();
            elements.extend(same.iter().map(|&(_, element)| element));
            let row = self.sets.row(self.rules, set, &elements);
            count(self.sets.load(set, row))?;
            if self.sets.is_told(set, row) {
                told.push((same[0].0, row));
            }
        }
        Ok(told)
    }

    fn tell_rows(&mut self, answers: Answers, patch: &mut Patch) {
        let Answers { went, stay, came, load: _ } = answers;
        let mut sets = Vec::with_capacity(went.len() + stay.len() + came.len());
        for (set, rows) in went {
            let Whole { id, base, .. } = self.sets.whole(set);
            rows.into_iter().map(|(_, row)| row).chain([base]).for_each(|row| self.drop_row(row));
            sets.push((id, SetDelta::Removed));
        }
        for (set, came, went) in stay {
            let delta = self.change_rows(came, went);
            if !delta.is_empty() {
                sets.push((self.sets.whole(set).id, SetDelta::Rows(delta)));
            }
        }
        for (set, rows) in came {
            let Whole { id, direction, base } = self.sets.whole(set);
            self.take_row(base);
            let base = self.sets.said(base).clone();
            let rows = self.take_rows(&rows);
            sets.push((id, SetDelta::New(NewSet { direction, base, rows })));
        }
        patch.sets = sets.into_iter().collect();
    }

    /// Adds rows for atoms that came, and removes those for atoms that went.
    fn change_rows(&mut self, came: Told, went: Told) -> Delta<AtomId, Row> {
        let mut removed = BTreeSet::new();
        for (atom, row) in went {
            self.drop_row(row);
            removed.insert(self.sets.atoms[atom]);
        }
        Delta { put: self.take_rows(&came), removed }
    }

    fn take_rows(&mut self, rows: &Told) -> LiteMap<AtomId, Row> {
        rows.iter().for_each(|&(_, row)| self.take_row(row));
        let said = rows.iter().map(|&(atom, row)| (self.sets.atoms[atom], self.sets.said(row).clone()));
        let mut rows: Vec<_> = said.collect();
        rows.sort_unstable_by_key(|&(atom, _)| atom);
        LiteMap::from_sorted_store_unchecked(rows)
    }

    fn take_row(&mut self, row: RowIndex) {
        self.sets.rows.hold(row);
        self.sets.named(row).iter().for_each(|&attribution| self.attributions.add(attribution));
    }

    fn drop_row(&mut self, row: RowIndex) {
        self.sets.named(row).iter().for_each(|&attribution| self.attributions.sub(attribution));
        self.sets.rows.release(row);
    }

    /// All atoms by the terms of these sets: others may be very many, and one set comes or goes whenever a pod does.
    fn by_terms_of(&self, sets: &[SetIndex]) -> ByTerm {
        if sets.is_empty() {
            return vec![];
        }
        let terms = sets.iter().flat_map(|&set| self.sets.sets[set].terms.iter().copied());
        let terms = sorted(terms.collect());
        by_terms(self.sets, self.view.atoms.things(), |term| terms.binary_search(&term).is_ok())
    }

    pub(crate) fn by_term(&self, atoms: impl Iterator<Item = AtomIndex>) -> ByTerm {
        by_terms(self.sets, atoms, |_| true)
    }

    /// Nobody is interested in the node any more: lets go of its sets and of their rows.
    pub(crate) fn release_rows(&mut self) {
        let (atoms, mut load) = (self.by_term(self.view.atoms.things()), self.view.load);
        for set in self.view.sets.things().collect::<Vec<_>>() {
            let base = self.sets.whole(set).base;
            let rows = self.known_rows(set, &atoms, &mut load);
            rows.into_iter().map(|(_, row)| row).chain([base]).for_each(|row| self.sets.rows.release(row));
            self.sets.sets.release(set);
        }
    }
}

/// Atoms by those of the terms that they match that are wanted.
fn by_terms(
    sets: &Sets,
    atoms: impl Iterator<Item = AtomIndex>,
    is_wanted: impl Fn(TermId) -> bool,
) -> ByTerm {
    let mut by_terms = vec![];
    for atom in atoms {
        let elements = sets.atoms.key(atom).iter();
        let wanted = elements.filter(|(term, _)| is_wanted(*term));
        by_terms.extend(wanted.map(|&element| (element, atom)));
    }
    by_terms.sort_unstable();
    by_terms
}

/// What of these terms (sorted) the atoms match.
pub(crate) fn matching(terms: &[TermId], atoms: &ByTerm) -> Matching {
    let mut matching = Matching::new();
    if terms.len() < atoms.len() {
        for term in terms {
            let first = atoms.partition_point(|((other, _), _)| other < term);
            let same = atoms[first..].iter().take_while(|((other, _), _)| other == term);
            matching.extend(same.map(|&(element, atom)| (atom, element)));
        }
    } else {
        let used = atoms.iter().filter(|((term, _), _)| terms.binary_search(term).is_ok());
        matching.extend(used.map(|&(element, atom)| (atom, element)));
    }
    matching.sort_unstable();
    matching
}

#[cfg(test)]
mod tests;
