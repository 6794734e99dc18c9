//! Which writes turn what the kernel holds into what the view says, and in which order. Pure.
//!
//! A packet is judged by three values that it reads one after the other: the word of its pod, the atom
//! of its remote address, the row of both. So while a plan is carried out it can meet an old word with a
//! new atom, or the reverse, and must find the complete old or the complete new answer there:
//!
//! ```text
//! rows            of every pair of set and atom that can be met from now on
//! early moves     addresses whose new atom says, under every word that is left, what the old one said
//! words           one store each; with new and refreshed endpoints
//! late moves      the other addresses, after a grace period: only entered words are read by now
//! bumps           words again, where a move has changed what they say: old connections are judged again
//! removals        after a grace period
//! ```
//!
//! Frontends of Services come before all of that and go after it: what is called there is judged by where it ends.
//!
//! A set whose answers for the atoms in use stay as they are keeps its number and only gains rows;
//! otherwise it is written anew under another number and the words flip to it. A move that fits neither
//! before nor after the words goes by way of a passing atom, which says the old before and the new after.

use std::collections::{BTreeMap, BTreeSet};

use durward_proto::{Direction, NodeView, PodUid, SetId};

use crate::kernel::{Access, Found, Kernel, Row, RowKey};
use crate::region::{Region, regions};
use crate::target::{Content, Target};
use crate::{Exhausted, Numbers, Step, Word};

/// What the kernel should come to hold.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What the controller says.
    pub view: &'a NodeView,
    /// The interfaces that were found to be pods'.
    pub found: &'a BTreeMap<u32, Found>,
    /// What a pod may do that the view does not have.
    pub unknown: Access,
    /// Pods whose rules do not fit in the kernel: they are closed.
    pub misfits: &'a BTreeSet<PodUid>,
}

/// The steps from what the kernel holds to what is wanted; none if it is there.
///
/// New numbers are given on the way: `numbers` must be saved before the first step is taken.
///
/// # Errors
///
/// [`Exhausted`] if a number is needed and none is left.
pub fn plan(wanted: Wanted<'_>, kernel: &Kernel, numbers: &mut Numbers) -> Result<Vec<Step>, Exhausted> {
    let target = Target::of(wanted, numbers)?;
    let regions = regions(kernel, wanted.view, &target.atoms);
    let mut plan = Plan::new(kernel, &target, &regions);
    let sets = plan.number_sets(numbers)?;
    plan.sets = sets;
    plan.find_flips();
    for id in plan.entangled() {
        let number = numbers.renumber_set(id)?;
        plan.sets.insert(id, number);
    }
    plan.find_flips();
    let routes = plan.routes(numbers)?;
    plan.add_frontends();
    plan.write_rows(&routes);
    plan.move_early(&routes);
    plan.flip_words(numbers)?;
    plan.move_late(&routes);
    plan.bump_words(numbers)?;
    plan.remove();
    plan.remove_frontends();
    numbers.retain(wanted.view, &target.atoms);
    Ok(plan.steps)
}

/// Stores every word anew, so that each connection is judged again: for when it is not known whether a
/// plan before was carried out to its end.
///
/// # Errors
///
/// [`Exhausted`] if no generation is left.
pub fn rejudge(kernel: &Kernel, numbers: &mut Numbers) -> Result<Vec<Step>, Exhausted> {
    let mut steps = Vec::new();
    for (&ifindex, endpoint) in &kernel.endpoints {
        for direction in Direction::BOTH {
            let word = numbers.word(endpoint.word(direction).set)?;
            steps.push(Step::SetWord(ifindex, direction, word));
        }
    }
    Ok(steps)
}

/// An atom and the one that a region moves to.
type Move = (u32, u32);

/// When a move is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Before the words.
    Early,
    /// After them.
    Late,
    /// Before them to a passing atom, after them from there.
    Through(u32),
}

struct Plan<'a> {
    kernel: &'a Kernel,
    target: &'a Target<'a>,
    regions: &'a [Region],
    /// For each move, in order.
    moves: BTreeSet<Move>,
    /// Atoms that some address has now. 0 is always one.
    live: BTreeSet<u32>,
    /// Sets that some word names now.
    linked: BTreeSet<u32>,
    /// The numbers of the wanted sets.
    sets: BTreeMap<SetId, u32>,
    /// The wanted sets by number.
    contents: BTreeMap<u32, &'a Content>,
    /// Sets that a word leaves, and that a word enters.
    left: BTreeSet<u32>,
    entered: BTreeSet<u32>,
    /// Rows that are written by the steps so far.
    written: BTreeMap<RowKey, Row>,
    steps: Vec<Step>,
}

impl<'a> Plan<'a> {
    fn new(kernel: &'a Kernel, target: &'a Target<'a>, regions: &'a [Region]) -> Self {
        let moving = regions.iter().filter(|region| region.now != region.new);
        let remotes = kernel.addresses.values().chain(kernel.blocks.values()).copied();
        Self {
            kernel,
            target,
            regions,
            moves: moving.map(|region| (region.now, region.new)).collect(),
            live: remotes.chain([0]).collect(),
            linked: kernel.linked(),
            sets: BTreeMap::new(),
            contents: BTreeMap::new(),
            left: BTreeSet::new(),
            entered: BTreeSet::new(),
            written: BTreeMap::new(),
            steps: Vec::new(),
        }
    }

    /// Numbers for the wanted sets: another one where answers would change under a word that is read.
    fn number_sets(&self, numbers: &mut Numbers) -> Result<BTreeMap<SetId, u32>, Exhausted> {
        let mut sets = BTreeMap::new();
        for (&id, content) in &self.target.sets {
            let mut number = numbers.set(id)?;
            let mut in_use = self.live.iter().filter(|atom| self.target.has_atom(**atom));
            let stays = |atom: &u32| self.kernel.row(number, *atom) == Some(content.row(*atom));
            if self.linked.contains(&number) && !in_use.all(stays) {
                number = numbers.renumber_set(id)?;
            }
            sets.insert(id, number);
        }
        Ok(sets)
    }

    /// Which sets the words leave and enter, under the numbers that the wanted sets have.
    fn find_flips(&mut self) {
        let content = |(id, number): (&SetId, &u32)| Some((*number, self.target.sets.get(id)?));
        self.contents = self.sets.iter().filter_map(content).collect();
        let (mut left, mut entered) = (BTreeSet::new(), BTreeSet::new());
        for (ifindex, endpoint) in &self.target.endpoints {
            let before = self.kernel.endpoints.get(ifindex);
            // Words of an endpoint that is not judged by them judge nothing: there is none to leave.
            let read = |before: &&crate::Endpoint| {
                before.namespace == endpoint.namespace && before.access == Access::Judged
            };
            let before = before.filter(read);
            for direction in Direction::BOTH {
                let old = before.map_or(0, |before| before.word(direction).set);
                let new = self.number(endpoint.sets[direction as usize]);
                if old != new {
                    left.extend(Some(old).filter(|&set| set != 0));
                    entered.extend(Some(new).filter(|&set| set != 0));
                }
            }
        }
        (self.left, self.entered) = (left, entered);
    }

    fn number(&self, set: Option<SetId>) -> u32 {
        set.and_then(|id| self.sets.get(&id).copied()).unwrap_or(0)
    }

    /// Sets that words leave and others enter while a move changes what they say: what is still the old
    /// answer for the one is not yet the new one for the other.
    fn entangled(&self) -> Vec<SetId> {
        let tangled = |number: &u32| {
            let content = self.contents.get(number);
            self.left.contains(number)
                && self.entered.contains(number)
                && self.moves.iter().any(|&(now, new)| {
                    self.kernel.row(*number, now) != content.map(|content| content.row(new))
                })
        };
        self.sets.iter().filter(|(_, number)| tangled(number)).map(|(&id, _)| id).collect()
    }

    /// What the kernel answers for a set and an atom from when the rows are written until rows go.
    fn answer(&self, set: u32, atom: u32) -> Option<&Row> {
        let content = self.contents.get(&set).copied();
        let live = self.live.contains(&atom);
        match (self.target.has_atom(atom), content) {
            (true, Some(content)) => Some(content.row(atom)),
            // Nobody has the atom yet: under a set that goes, it says what its first comers had.
            (true, None) if !live => self.kernel.row(set, self.comer(atom)?),
            // Nobody will have the atom: under a set that comes, it says what its first leavers get.
            (false, Some(content)) if !self.linked.contains(&set) => Some(content.row(self.goal(atom)?)),
            _ => self.kernel.row(set, atom),
        }
    }

    fn comer(&self, atom: u32) -> Option<u32> {
        self.moves.iter().find(|(_, new)| *new == atom).map(|(now, _)| *now)
    }

    fn goal(&self, atom: u32) -> Option<u32> {
        self.moves.iter().find(|(now, _)| *now == atom).map(|(_, new)| *new)
    }

    fn routes(&self, numbers: &mut Numbers) -> Result<BTreeMap<Move, Route>, Exhausted> {
        let mut routes = BTreeMap::new();
        for &(now, new) in &self.moves {
            let early = |&set: &u32| self.answer(set, new) == self.kernel.row(set, now);
            let late = |set: &u32| self.answer(*set, now) == self.contents.get(set).map(|c| c.row(new));
            let route = if self.left.iter().all(early) {
                Route::Early
            } else if self.entered.iter().all(late) {
                Route::Late
            } else {
                Route::Through(numbers.passing_atom()?)
            };
            routes.insert((now, new), route);
        }
        Ok(routes)
    }

    fn add_frontends(&mut self) {
        let new = self.target.frontends().filter(|frontend| !self.kernel.frontends.contains(frontend));
        self.steps.extend(new.map(Step::PutFrontend));
    }

    fn remove_frontends(&mut self) {
        let wanted: BTreeSet<_> = self.target.frontends().collect();
        self.steps.extend(self.kernel.frontends.difference(&wanted).copied().map(Step::RemoveFrontend));
    }

    fn write_rows(&mut self, routes: &BTreeMap<Move, Route>) {
        let sets: BTreeSet<u32> = self.contents.keys().chain(&self.left).copied().collect();
        let atoms: BTreeSet<u32> = self.live.union(&self.target.numbers).copied().collect();
        for set in sets {
            // In rising order, so that the base row comes first: what equals it needs no row.
            for &atom in &atoms {
                if let Some(row) = self.answer(set, atom).cloned() {
                    self.write(RowKey { set, atom }, row);
                }
            }
            for (&(now, new), &route) in routes {
                let Route::Through(atom) = route else { continue };
                let old = self.left.contains(&set) || !self.contents.contains_key(&set);
                let row = if old { self.kernel.row(set, now) } else { self.answer(set, new) };
                if let Some(row) = row.cloned() {
                    self.write(RowKey { set, atom }, row);
                }
            }
        }
    }

    fn write(&mut self, key: RowKey, row: Row) {
        let base = RowKey { atom: 0, ..key };
        let at = |key| self.written.get(key).or_else(|| self.kernel.rows.get(key));
        if at(&key).or_else(|| at(&base)) != Some(&row) {
            self.written.insert(key, row.clone());
            self.steps.push(Step::PutRow(key, row));
        }
    }

    fn move_early(&mut self, routes: &BTreeMap<Move, Route>) {
        for region in self.regions {
            let atom = match routes.get(&(region.now, region.new)) {
                Some(Route::Early) => region.new,
                Some(Route::Through(atom)) => *atom,
                // It moves later, or not at all; but what is around it may move now.
                Some(Route::Late) | None if !region.held => region.now,
                Some(Route::Late) | None => continue,
            };
            self.steps.push(region.key.put(atom));
        }
    }

    fn move_late(&mut self, routes: &BTreeMap<Move, Route>) {
        let late = |region: &&Region| {
            matches!(routes.get(&(region.now, region.new)), Some(Route::Late | Route::Through(_)))
        };
        let steps: Vec<_> =
            self.regions.iter().filter(late).map(|region| region.key.put(region.new)).collect();
        if !steps.is_empty() {
            // A packet may still hold a word that was left: it must not read the new atom.
            self.steps.push(Step::Grace);
            self.steps.extend(steps);
        }
    }

    fn flip_words(&mut self, numbers: &mut Numbers) -> Result<(), Exhausted> {
        let gone = |(ifindex, endpoint): &(&u32, &crate::Endpoint)| {
            self.target.endpoints.get(ifindex).is_none_or(|new| new.namespace != endpoint.namespace)
        };
        let gone: BTreeSet<u32> = self.kernel.endpoints.iter().filter(gone).map(|(i, _)| *i).collect();
        self.steps.extend(gone.iter().map(|&ifindex| Step::Unbind(ifindex)));
        for (&ifindex, wanted) in &self.target.endpoints {
            let sets = wanted.sets.map(|set| self.number(set));
            let Some(before) = self.kernel.endpoints.get(&ifindex).filter(|_| !gone.contains(&ifindex))
            else {
                let words = [numbers.word(sets[0])?, numbers.word(sets[1])?];
                self.steps.push(Step::Bind(ifindex, wanted.endpoint(words)));
                continue;
            };
            let mut words = before.words;
            let mut stores = Vec::new();
            for direction in Direction::BOTH {
                let word: &mut Word = &mut words[direction as usize];
                if word.set != sets[direction as usize] {
                    *word = numbers.word(sets[direction as usize])?;
                    stores.push(Step::SetWord(ifindex, direction, *word));
                }
            }
            let endpoint = wanted.endpoint(words);
            let refreshed = endpoint != crate::Endpoint { words, ..before.clone() };
            let refresh = refreshed.then_some(Step::Refresh(ifindex, endpoint));
            // What opens an endpoint comes after the words that judge it, what closes it before.
            if wanted.access == Access::Judged {
                self.steps.extend(stores.into_iter().chain(refresh));
            } else {
                self.steps.extend(refresh.into_iter().chain(stores));
            }
        }
        Ok(())
    }

    /// Another generation for each word that stays while a move changes what it says.
    fn bump_words(&mut self, numbers: &mut Numbers) -> Result<(), Exhausted> {
        let changed = |set: &u32, content: &Content| {
            self.moves.iter().any(|&(now, new)| self.kernel.row(*set, now) != Some(content.row(new)))
        };
        let stale: BTreeSet<u32> = self
            .contents
            .iter()
            .filter(|(set, content)| changed(set, content))
            .map(|(set, _)| *set)
            .collect();
        for (&ifindex, wanted) in &self.target.endpoints {
            let Some(before) = self.kernel.endpoints.get(&ifindex) else { continue };
            for direction in Direction::BOTH {
                let set = self.number(wanted.sets[direction as usize]);
                if before.namespace == wanted.namespace
                    && before.word(direction).set == set
                    && stale.contains(&set)
                {
                    self.steps.push(Step::SetWord(ifindex, direction, numbers.word(set)?));
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self) {
        let unwanted = self.regions.iter().filter(|region| !region.wanted);
        let mut steps: Vec<_> = unwanted.map(|region| region.key.remove()).collect();
        for &key in self.kernel.rows.keys().chain(self.written.keys()).collect::<BTreeSet<_>>() {
            let content = self.contents.get(&key.set).filter(|_| self.target.has_atom(key.atom));
            // The base row says the same of an atom without a row.
            if !content.is_some_and(|content| content.holds(key.atom)) {
                steps.push(Step::RemoveRow(key));
            }
        }
        if !steps.is_empty() {
            self.steps.push(Step::Grace);
            self.steps.extend(steps);
        }
    }
}
