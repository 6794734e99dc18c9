//! Policy sets, their rows, and the policies behind each verdict. Pure.

use std::collections::{BTreeMap, BTreeSet};

use durward_proto::{
    Act, AtomId, Attribution, AttributionId, Digest, Direction, PortKey, Row, SetId, Step, Verdict, view,
};

use crate::cluster::sorted;
use crate::elements::{Asked, Element, Elements, Of};
use crate::object::{Key, NamedPort};
use crate::rules::Rules;
use crate::table::{
    AtomIndex, AttributionIndex, BodyId, ContentId, Id, NameId, RowIndex, SetIndex, Table, TermId,
};
use crate::{Fault, Limits};

/// What judges pods in one direction, by content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetKey {
    pub(crate) direction: Direction,
    /// Sorted; never empty.
    pub(crate) bodies: Box<[BodyId]>,
    /// Those of the pod's named ports that its ingress rules name.
    pub(crate) bindings: Box<[NamedPort]>,
}

#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) id: SetId,
    /// Its rules by the terms that they need, sorted: which of `bodies`, which rule of it.
    grants: Box<[(TermId, u32, u32)]>,
    /// All terms that its rows can depend on, sorted.
    pub(crate) terms: Box<[TermId]>,
    /// What its rules permit everybody: for which keys, which of `bodies`.
    open: Box<[Grant]>,
    pub(crate) base: RowIndex,
}

/// From the first key to the last, one of the set's bodies permits.
type Grant = (PortKey, PortKey, u32);

/// What a set says of addresses that match certain of its terms.
#[derive(Debug)]
pub(crate) struct RowState {
    content: ContentId,
    /// Where it denies because it would be too large: the policy that says most, and what of.
    overflow: Option<Box<(Key, Fault)>>,
}

/// Sets, atoms, rows and attributions.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    limits: Limits,
    /// What is wrong with policies because rows are too large, and with how many rows.
    overflows: BTreeMap<Key, BTreeMap<Fault, u32>>,
    /// Policies of which that may have changed since `take_touched`.
    touched: BTreeSet<Key>,
    pub(crate) sets: Table<SetIndex, SetKey, Set>,
    pub(crate) atoms: Table<AtomIndex, Elements, AtomId>,
    /// The base row is the one without elements.
    pub(crate) rows: Table<RowIndex, Of<SetIndex>, RowState>,
    /// What rows say, with the attributions in it, each once.
    contents: Table<ContentId, Row, Box<[AttributionIndex]>>,
    pub(crate) attributions: Table<AttributionIndex, Box<[NameId]>, (AttributionId, Attribution)>,
}

impl Sets {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The set of these policies for pods with these named ports.
    pub(crate) fn set(
        &mut self,
        rules: &mut Rules,
        direction: Direction,
        bodies: Vec<BodyId>,
        ports: &[NamedPort],
    ) -> SetIndex {
        let is_named = |port: &&NamedPort| {
            let mut compiled = bodies.iter().flat_map(|&body| &rules.bodies[body].rules);
            compiled.any(|rule| rule.names.iter().any(|name| *name == (port.protocol, port.name.clone())))
        };
        let bindings = ports.iter().filter(is_named).cloned().collect();
        let key = SetKey { direction, bodies: bodies.into(), bindings };
        if let Some(set) = self.sets.find(&key) {
            return set;
        }
        let mut grants = vec![];
        let mut open = vec![];
        for (at, &body) in (0..).zip(&key.bodies) {
            rules.bodies.hold(body);
            for (number, rule) in (0..).zip(&rules.bodies[body].rules) {
                match &rule.peers {
                    Some(peers) => grants.extend(peers.iter().map(|&term| (term, at, number))),
                    None => self.grant(&mut open, permitted(rules, &key, at, number), at),
                }
                grants.extend(rule.named.iter().map(|&term| (term, at, number)));
            }
        }
        grants.sort_unstable();
        grants.dedup();
        let mut terms: Vec<_> = grants.iter().map(|&(term, ..)| term).collect();
        terms.dedup();
        let id = key.id(rules);
        let base = self.row_of(rules, &key, &open);
        let (grants, terms, open) = (grants.into(), terms.into(), open.into());
        // The base row's key needs the set's number, which the set gets with its base row.
        let set = self.sets.insert(key, Set { id, grants, terms, open, base: RowIndex::new(0) });
        let base = self.insert_row(Of(set, Elements::from(&[][..])), base);
        self.rows.hold(base);
        self.sets[set].base = base;
        set
    }

    /// What a set says of addresses that match these elements, all of terms of the set; none if it says
    /// what it says to all.
    pub(crate) fn row(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> Option<RowIndex> {
        let row = match self.rows.find(&Asked(set, elements)) {
            Some(row) => row,
            None => {
                let grants = self.matched(rules, set, elements);
                let set_key = self.sets.key(set).clone();
                let row = self.row_of(rules, &set_key, &grants);
                self.insert_row(Of(set, elements.into()), row)
            }
        };
        let RowState { content, overflow } = &self.rows[row];
        // A row that is too large is kept in any case, and with it what is reported of it.
        (*content != self.rows[self.sets[set].base].content || overflow.is_some()).then_some(row)
    }

    /// What a row says.
    pub(crate) fn said(&self, row: RowIndex) -> &Row {
        self.contents.key(self.rows[row].content)
    }

    /// The attributions that a row names, each once.
    pub(crate) fn named(&self, row: RowIndex) -> &[AttributionIndex] {
        &self.contents[self.rows[row].content]
    }

    /// What the set's rules permit to addresses that match these elements.
    fn matched(&self, rules: &Rules, set: SetIndex, elements: &[Element]) -> Vec<Grant> {
        let (key, content) = (self.sets.key(set), &self.sets[set]);
        let mut by_number = vec![];
        let mut grants = content.open.to_vec();
        for &(term, number) in elements {
            let first = content.grants.partition_point(|(other, ..)| *other < term);
            let matching = content.grants[first..].iter().take_while(|(other, ..)| *other == term);
            match &rules.terms.key(term).port {
                None => by_number.extend(matching.map(|&(_, at, rule)| (at, rule))),
                Some((protocol, _)) => {
                    let port = PortKey::new(protocol.number(), number);
                    grants.extend(matching.map(|&(_, at, _)| (port, port, at)));
                }
            }
        }
        // A rule that matches by several of its peers permits no more than by one.
        by_number.sort_unstable();
        by_number.dedup();
        for (at, rule) in by_number {
            self.grant(&mut grants, permitted(rules, key, at, rule), at);
        }
        grants
    }

    /// Adds what one of a set's bodies permits, up to one more than can be judged.
    fn grant(&self, to: &mut Vec<Grant>, ranges: impl Iterator<Item = (PortKey, PortKey)>, at: u32) {
        let room = (self.limits.mentions_per_row + 1).saturating_sub(to.len());
        to.extend(ranges.take(room).map(|(first, last)| (first, last, at)));
    }

    fn insert_row(&mut self, key: Of<SetIndex>, row: RowState) -> RowIndex {
        if let Some((policy, fault)) = row.overflow.as_deref() {
            self.touched.insert(policy.clone());
            *self.overflows.entry(policy.clone()).or_default().entry(fault.clone()).or_default() += 1;
        }
        self.rows.insert(key, row)
    }

    fn remove_overflow(&mut self, policy: Key, fault: &Fault) {
        if let Some(faults) = self.overflows.get_mut(&policy) {
            if let Some(rows) = faults.get_mut(fault) {
                *rows -= 1;
            }
            faults.retain(|_, rows| *rows > 0);
            if faults.is_empty() {
                self.overflows.remove(&policy);
            }
            self.touched.insert(policy);
        }
    }

    /// What is wrong with a policy because rows are too large.
    pub(crate) fn overflow(&self, policy: &Key) -> Option<&Fault> {
        self.overflows.get(policy)?.keys().next()
    }

    /// Policies of which that may have changed since the last time.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.touched)
    }

    /// The row in which each grant permits, and where none does, all of the set's policies deny. What
    /// is too large to be judged is denied whole.
    fn row_of(&mut self, rules: &mut Rules, set: &SetKey, grants: &[Grant]) -> RowState {
        let (steps, overflow) = match self.steps(rules, set, grants) {
            Ok(steps) => (steps, None),
            Err(fault) => {
                let denied = (PortKey::MIN, Verdict::Deny, self.attribution(rules, &set.bodies));
                (vec![denied], Some(Box::new((set.heaviest(rules, grants), fault))))
            }
        };
        let content = self.content(steps);
        self.contents.hold(content);
        RowState { content, overflow }
    }

    fn content(&mut self, steps: Vec<(PortKey, Verdict, AttributionIndex)>) -> ContentId {
        let step = |&(start, verdict, attribution): &_| {
            let attribution: &(AttributionId, _) = &self.attributions[attribution];
            Step { start, act: Act { verdict, attribution: attribution.0 } }
        };
        let row = match Row::new(steps.iter().map(step).collect()) {
            Ok(row) => row,
            Err(error) => unreachable!("the edges are sorted and begin at the first key: {error}"),
        };
        if let Some(content) = self.contents.find(&row) {
            return content;
        }
        let attributions = sorted(steps.iter().map(|&(.., attribution)| attribution).collect());
        attributions.iter().for_each(|&attribution| self.attributions.hold(attribution));
        self.contents.insert(row, attributions.into())
    }

    fn steps(
        &mut self,
        rules: &mut Rules,
        set: &SetKey,
        grants: &[Grant],
    ) -> Result<Vec<(PortKey, Verdict, AttributionIndex)>, Fault> {
        let Limits { steps_per_row, mentions_per_row, .. } = self.limits;
        let too_many = |what, limit| Err(Fault::TooManyTogether { what, limit });
        if grants.len() > mentions_per_row {
            return too_many("ports of rules", mentions_per_row);
        }
        let mut edges: BTreeMap<PortKey, Vec<(u32, bool)>> = BTreeMap::from([(PortKey::MIN, vec![])]);
        for &(first, last, at) in grants {
            edges.entry(first).or_default().push((at, true));
            if let Some(after) = last.next() {
                edges.entry(after).or_default().push((at, false));
            }
        }
        let mut permitting = BTreeMap::<u32, u32>::new();
        let mut steps: Vec<(PortKey, Verdict, AttributionIndex)> = vec![];
        let mut mentions = 0;
        for (start, mut here) in edges {
            // Begins first, so that what stops where it also begins does not leave the map between.
            here.sort_unstable_by_key(|&(_, begins)| !begins);
            for (at, begins) in here {
                let count = permitting.entry(at).or_default();
                *count = if begins { *count + 1 } else { *count - 1 };
                if *count == 0 {
                    permitting.remove(&at);
                }
            }
            let (verdict, bodies): (_, Vec<BodyId>) = match permitting.is_empty() {
                true => (Verdict::Deny, set.bodies.to_vec()),
                false => (Verdict::Allow, permitting.keys().map(|&at| set.bodies[at as usize]).collect()),
            };
            let attribution = self.attribution(rules, &bodies);
            if steps.last().is_none_or(|&(_, said, by)| (said, by) != (verdict, attribution)) {
                steps.push((start, verdict, attribution));
                mentions += bodies.len();
            }
            if steps.len() > steps_per_row {
                return too_many("ranges of ports", steps_per_row);
            }
            if mentions > mentions_per_row {
                return too_many("mentions of policies", mentions_per_row);
            }
        }
        Ok(steps)
    }

    fn attribution(&mut self, rules: &mut Rules, bodies: &[BodyId]) -> AttributionIndex {
        let mut names: Vec<_> = bodies.iter().map(|&body| rules.bodies[body].name).collect();
        names.sort_unstable();
        let names: Box<[NameId]> = names.into();
        if let Some(attribution) = self.attributions.find(&names) {
            return attribution;
        }
        names.iter().for_each(|&name| rules.names.hold(name));
        let content = Attribution::new(names.iter().map(|&name| rules.names.key(name).clone()));
        self.attributions.insert(names, (content.id(), content))
    }

    /// The atom of addresses that match these elements, sorted and each once.
    pub(crate) fn atom(&mut self, rules: &mut Rules, elements: &[Element]) -> AtomIndex {
        if let Some(atom) = self.atoms.find(elements) {
            return atom;
        }
        let mut fields: Vec<_> =
            elements.iter().map(|&(term, number)| (rules.terms[term].0, number)).collect();
        fields.sort_unstable();
        let fields = fields.iter().map(|(digest, number)| {
            let mut field = [0; 18];
            field[..16].copy_from_slice(digest);
            field[16..].copy_from_slice(&number.to_be_bytes());
            field
        });
        let id = AtomId(Digest::of("atom", fields));
        elements.iter().for_each(|&(term, _)| rules.terms.hold(term));
        self.atoms.insert(elements.into(), id)
    }

    /// Frees what nobody holds any more, and lets go of what that held.
    pub(crate) fn collect(&mut self, rules: &mut Rules) {
        for (_, key, set) in self.sets.collect() {
            key.bodies.iter().for_each(|&body| rules.bodies.release(body));
            self.rows.release(set.base);
        }
        for (_, _, row) in self.rows.collect() {
            if let Some(overflow) = row.overflow {
                self.remove_overflow(overflow.0, &overflow.1);
            }
            self.contents.release(row.content);
        }
        for (_, _, attributions) in self.contents.collect() {
            attributions.iter().for_each(|&attribution| self.attributions.release(attribution));
        }
        for (_, names, _) in self.attributions.collect() {
            names.iter().for_each(|&name| rules.names.release(name));
        }
        for (_, elements, _) in self.atoms.collect() {
            elements.iter().for_each(|&(term, _)| rules.terms.release(term));
        }
    }
}

/// What one of a set's rules permits by number, and by names that the set binds.
fn permitted<'a>(
    rules: &'a Rules,
    set: &'a SetKey,
    at: u32,
    rule: u32,
) -> impl Iterator<Item = (PortKey, PortKey)> + 'a {
    let rule = &rules.bodies[set.bodies[at as usize]].rules[rule as usize];
    let bound = rule.names.iter().flat_map(|(protocol, name)| {
        let bound = set.bindings.iter().filter(move |port| port.protocol == *protocol && port.name == *name);
        bound.map(|port| PortKey::new(port.protocol.number(), port.number)).map(|key| (key, key))
    });
    rule.ranges.iter().copied().chain(bound)
}

impl SetKey {
    /// The policy that says most; of several, the first by name.
    fn heaviest(&self, rules: &Rules, grants: &[Grant]) -> Key {
        let mut weights = vec![0_usize; self.bodies.len()];
        grants.iter().for_each(|&(.., at)| weights[at as usize] += 1);
        let names = self.bodies.iter().map(|&body| rules.names.key(rules.bodies[body].name));
        let heaviest =
            weights.into_iter().zip(names).max_by_key(|&(weight, name)| (weight, std::cmp::Reverse(name)));
        match heaviest {
            Some((_, view::Policy { namespace, name, .. })) => Key::new(namespace.clone(), name.clone()),
            None => unreachable!("a set has policies"),
        }
    }

    fn id(&self, rules: &Rules) -> SetId {
        let mut digests: Vec<_> = self.bodies.iter().map(|&body| rules.bodies.key(body).0).collect();
        digests.sort_unstable();
        let bindings = self.bindings.iter().flat_map(|NamedPort { name, protocol, number }| {
            let [high, low] = number.to_be_bytes();
            [name.as_bytes().to_vec(), vec![protocol.number(), high, low]]
        });
        let policies = std::iter::once(digests.concat());
        SetId(Digest::of("set", std::iter::once(vec![self.direction as u8]).chain(policies).chain(bindings)))
    }
}
