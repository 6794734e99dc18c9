//! Rows: what a set's rules permit to addresses that match certain of its terms. Pure.
//!
//! The row of a set of few policies is worked out from their rules; that of a set of many from the parts
//! that its branches add to it, which stay as they are where none of their policies changed.

use durward_proto::{Act, PortKey, Row, Step, Verdict};
use hashbrown::Equivalent;
use smallvec::SmallVec;

use crate::elements::{Asked, Element, Of};
use crate::list::FAN;
use crate::object::Key;
use crate::rules::Rules;
use crate::set::{Kind, Sets};
use crate::sorted::{Few, few_sorted, sorted};
use crate::table::{AttributionIndex, Belongs, BodyId, ContentId, Id, PartId, SetIndex};
use crate::{Fault, Limits};

/// From the first key to the last, one of a leaf's bodies permits.
pub(crate) type Grant = (PortKey, PortKey, u32);

/// Mostly few: many rows are of a policy or two with a port each.
pub(crate) type Grants = SmallVec<[Grant; 8]>;

/// From each key on, who permits; none if nobody does.
type Steps = SmallVec<[(PortKey, Option<AttributionIndex>); 8]>;

/// What rows say, and the attributions in it, each once and sorted.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    pub(crate) named: Few<AttributionIndex>,
    pub(crate) row: Row,
}

/// To look for a [`Content`].
#[derive(Hash)]
struct Saying<'a>(&'a [AttributionIndex], &'a [Step]);

impl Equivalent<Content> for Saying<'_> {
    fn equivalent(&self, content: &Content) -> bool {
        (self.0, self.1) == (&*content.named, content.row.steps())
    }
}

impl Belongs for Saying<'_> {
    fn owner(&self) -> Option<usize> {
        Some(self.0.first()?.index())
    }
}

impl Belongs for Content {
    fn owner(&self) -> Option<usize> {
        Saying(&self.named, self.row.steps()).owner()
    }
}

/// What there is too much of, and how much there may be.
type Over = (&'static str, usize);

/// What is kept of a row.
#[derive(Debug)]
pub(crate) struct RowState {
    pub(crate) content: ContentId,
    /// How many ports of rules it was worked out from.
    pub(crate) ports: u32,
    /// What few rows have.
    pub(crate) rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// Where the row denies because it would be too large: the policy that says most, and what of.
    pub(crate) overflow: Option<(Key, Fault)>,
    /// What it was made of.
    pub(crate) parts: Vec<PartId>,
}

/// What one branch of a set adds to rows.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) steps: Box<[(PortKey, Option<AttributionIndex>)]>,
    /// How many grants it was made of.
    weight: u32,
    /// How often its steps permit by a policy.
    mentions: u32,
    over: Option<Over>,
    pub(crate) parts: Box<[PartId]>,
}

/// A part before it is kept. If there is too much in it, there is nothing in it.
#[derive(Default)]
struct Draft {
    steps: Steps,
    weight: usize,
    /// How often its steps permit by a policy.
    mentions: usize,
    over: Option<Over>,
    parts: Vec<PartId>,
}

impl Sets {
    /// What a whole set says of addresses that match these elements, all of terms of the set.
    pub(crate) fn row_state(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> RowState {
        let Draft { steps, weight, over, parts, .. } = self.draft(rules, set, elements);
        let denied = (Verdict::Deny, self.denied(rules, set));
        let act = |by: Option<_>| by.map_or(denied, |by| (Verdict::Allow, by));
        let mut acts: SmallVec<[_; 8]> = steps.into_iter().map(|(start, by)| (start, act(by))).collect();
        let mentions = || acts.iter().map(|&(_, (_, by))| self.attributions[by].count as usize).sum();
        let over =
            over.or_else(|| too_many("mentions of policies", mentions(), self.limits.mentions_per_row));
        let overflow = over.map(|(what, limit)| {
            acts.clear();
            acts.push((PortKey::MIN, denied));
            (self.heaviest(rules, set, elements), Fault::TooManyTogether { what, limit })
        });
        let content = self.content(&acts);
        self.contents.hold(content);
        parts.iter().for_each(|&part| self.parts.hold(part));
        if overflow.is_some() {
            // A batch may make very many such rows: what each was too much of is gone before the next.
            self.collect_parts(rules);
        }
        let rest = (overflow.is_some() || !parts.is_empty()).then(|| Box::new(Rest { overflow, parts }));
        RowState { content, ports: weight as u32, rest }
    }

    fn content(&mut self, acts: &[(PortKey, (Verdict, AttributionIndex))]) -> ContentId {
        let step = |&(start, (verdict, by)): &_| {
            let by: AttributionIndex = by;
            Step { start, act: Act { verdict, attribution: self.attributions[by].id } }
        };
        let steps: Vec<_> = acts.iter().map(step).collect();
        let mut named: Few<_> = few_sorted(acts.iter().map(|&(_, (_, by))| by).collect());
        if let Some(content) = self.contents.find(&Saying(&named, &steps)) {
            return content;
        }
        let row = match Row::new(steps) {
            Ok(row) => row,
            Err(error) => unreachable!("the edges are sorted and begin at the first key: {error}"),
        };
        named.shrink_to_fit();
        named.iter().for_each(|&by| self.attributions.hold(by));
        self.contents.insert(Content { named, row }, ())
    }

    fn draft(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> Draft {
        let mut draft = match &self.sets[set].kind {
            Kind::Leaf { .. } => self.leaf(rules, set, elements),
            Kind::Inner(children) => {
                let children = **children;
                self.inner(rules, children, elements)
            }
        };
        if draft.over.is_some() {
            // What it is too much of would be kept with every row that is too large.
            (draft.steps, draft.parts) = (Steps::new(), vec![]);
        }
        draft
    }

    /// Adds a step, unless it says what the one before says.
    fn step(&self, draft: &mut Draft, start: PortKey, by: Option<AttributionIndex>) {
        if draft.steps.last().is_some_and(|&(_, before)| before == by) {
            return;
        }
        let Limits { steps_per_row, mentions_per_row, .. } = self.limits;
        draft.steps.push((start, by));
        draft.mentions += by.map_or(0, |by| self.attributions[by].count as usize);
        draft.over = too_many("ranges of ports", draft.steps.len(), steps_per_row)
            .or_else(|| too_many("mentions of policies", draft.mentions, mentions_per_row));
    }

    fn leaf(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> Draft {
        let grants = self.matched(rules, set, elements);
        let weight = grants.len();
        let mut draft = Draft { weight, ..Draft::default() };
        draft.over = too_many("ports of rules", weight, self.limits.mentions_per_row);
        if draft.over.is_some() {
            return draft;
        }
        let mut edges = SmallVec::<[_; 16]>::with_capacity(2 * weight);
        for (first, last, at) in grants {
            edges.push((first, at, 1));
            edges.extend(last.next().map(|after| (after, at, -1)));
        }
        edges.sort_unstable();
        let bodies = SmallVec::<[BodyId; 8]>::from_slice(self.sets.key(set).bodies(rules));
        let mut permitting = SmallVec::<[i32; 8]>::from_elem(0, bodies.len());
        let mut left = &edges[..];
        let mut start = PortKey::MIN;
        loop {
            while let [(key, at, change), rest @ ..] = left {
                if *key > start {
                    break;
                }
                permitting[*at as usize] += change;
                left = rest;
            }
            let permit = bodies.iter().zip(&permitting).filter(|(_, count)| **count > 0);
            let by: SmallVec<[BodyId; 8]> = permit.map(|(&body, _)| body).collect();
            let by = (!by.is_empty()).then(|| self.attribution(rules, by));
            self.step(&mut draft, start, by);
            let Some(&(next, ..)) = left.first().filter(|_| draft.over.is_none()) else { return draft };
            start = next;
        }
    }

    fn inner(&mut self, rules: &mut Rules, children: [Option<SetIndex>; FAN], elements: &[Element]) -> Draft {
        let (mut draft, mut mentions) = (Draft::default(), 0);
        let mut steps: [Box<[_]>; FAN] = Default::default();
        for (steps, child) in steps.iter_mut().zip(children) {
            let Some(child) = child else { continue };
            let id = self.part(rules, child, elements);
            let part = &self.parts[id];
            draft.parts.push(id);
            draft.weight += part.weight as usize;
            mentions += part.mentions as usize;
            // Where its parts are too much, so is the whole.
            let limit = self.limits.mentions_per_row;
            let ports = too_many("ports of rules", draft.weight, limit);
            draft.over = part.over.or(ports).or(too_many("mentions of policies", mentions, limit));
            if draft.over.is_some() {
                return draft;
            }
            *steps = part.steps.clone();
        }
        let starts = sorted(steps.iter().flat_map(|steps| steps.iter().map(|&(start, _)| start)).collect());
        let mut next = [0; FAN];
        for start in starts {
            if draft.over.is_some() {
                break;
            }
            let mut by = [None; FAN];
            for at in 0..FAN {
                while steps[at].get(next[at]).is_some_and(|&(first, _)| first <= start) {
                    next[at] += 1;
                }
                by[at] = next[at].checked_sub(1).and_then(|last| steps[at][last].1);
            }
            let by = self.joined(rules, by);
            self.step(&mut draft, start, by);
        }
        draft
    }

    /// What a branch adds for addresses that match these elements, of which some may be of other branches.
    fn part(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> PartId {
        let terms = &self.sets[set].terms;
        let own: Vec<_> =
            elements.iter().filter(|(term, _)| terms.binary_search(term).is_ok()).copied().collect();
        if let Some(part) = self.parts.find(&Asked(set, &own)) {
            return part;
        }
        let Draft { steps, weight, mentions, over, parts } = self.draft(rules, set, &own);
        steps.iter().filter_map(|&(_, by)| by).for_each(|by| self.attributions.hold(by));
        parts.iter().for_each(|&part| self.parts.hold(part));
        let (weight, mentions) = (weight as u32, mentions as u32);
        let part = Part { steps: (*steps).into(), weight, mentions, over, parts: parts.into() };
        self.parts.insert(Of(set, own[..].into()), part)
    }

    /// What a leaf's rules permit to addresses that match these elements.
    fn matched(&self, rules: &Rules, set: SetIndex, elements: &[Element]) -> Grants {
        let Kind::Leaf { grants: needing, open } = &self.sets[set].kind else { return Grants::new() };
        let mut by_number = SmallVec::<[_; 8]>::new();
        let mut grants = Grants::from_slice(open);
        for &(term, number) in elements {
            let first = needing.partition_point(|(other, ..)| *other < term);
            let matching = needing[first..].iter().take_while(|(other, ..)| *other == term);
            match &rules.terms.key(term).port {
                None => by_number.extend(matching.map(|&(_, at, rule)| (at, rule))),
                Some((protocol, _)) => {
                    let port = PortKey::new(protocol.number(), number);
                    grants.extend(matching.map(|&(_, at, _)| (port, port, at)));
                }
            }
        }
        // A rule that matches by several of its peers permits no more than by one.
        let key = self.sets.key(set);
        for (at, rule) in few_sorted(by_number) {
            self.grant(&mut grants, key.permitted(rules, at, rule), at);
        }
        grants
    }

    /// Adds what one of a leaf's bodies permits, up to one more than can be judged.
    pub(crate) fn grant(&self, to: &mut Grants, ranges: impl Iterator<Item = (PortKey, PortKey)>, at: u32) {
        let room = (self.limits.mentions_per_row + 1).saturating_sub(to.len());
        to.extend(ranges.take(room).map(|(first, last)| (first, last, at)));
    }

    /// The policy that says most in a row; of several, the first by name.
    fn heaviest(&self, rules: &Rules, set: SetIndex, elements: &[Element]) -> Key {
        let mut weights = vec![];
        let mut left = vec![set];
        while let Some(set) = left.pop() {
            if let Kind::Inner(children) = &self.sets[set].kind {
                left.extend(children.iter().copied().flatten());
                continue;
            }
            let bodies = self.sets.key(set).bodies(rules);
            let first = weights.len();
            weights.extend(
                bodies.iter().map(|&body| (0_usize, rules.named(rules.bodies.key(body).name.policy))),
            );
            for (.., at) in self.matched(rules, set, elements) {
                weights[first + at as usize].0 += 1;
            }
        }
        let heaviest = weights.into_iter().max_by_key(|&(weight, name)| (weight, std::cmp::Reverse(name)));
        match heaviest {
            Some((_, policy)) => policy.clone(),
            None => unreachable!("a set has policies"),
        }
    }
}

fn too_many(what: &'static str, found: usize, limit: usize) -> Option<Over> {
    (found > limit).then_some((what, limit))
}

#[cfg(test)]
mod tests;
