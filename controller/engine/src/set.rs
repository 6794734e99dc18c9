//! Policy sets: what judges pods, and its rows. Pure.

use std::collections::{BTreeMap, BTreeSet};

use durward_proto::{AtomId, Digest, Digester, Direction, PortKey, Row, SetId};
use smallvec::SmallVec;

use crate::attribution::AttributionState;
use crate::elements::{Asked, Element, Elements, Of};
use crate::limit::{Load, pages};
use crate::list::{self, Branch, FAN};
use crate::object::{Key, NamedPort};
use crate::row::{Content, Grant, Grants, Part, RowState};
use crate::rules::{Name, Rules};
use crate::sorted::{few_sorted, sorted};
use crate::table::{
    AtomIndex, AttributionIndex, Belongs, BodyId, ContentId, Id, ListId, PartId, RowIndex, SetIndex, Table,
    TermId,
};
use crate::{Fault, Limits};

/// What judges pods in one direction, or a branch of it; by content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetKey {
    pub(crate) list: ListId,
    /// Those of the pod's named ports that its ingress rules name; none if it is closed: then it permits
    /// nothing, whatever its rules.
    pub(crate) bindings: Option<Box<[NamedPort]>>,
}

impl Belongs for SetKey {
    fn owner(&self) -> Option<usize> {
        Some(self.list.index())
    }
}

#[derive(Debug)]
pub(crate) struct Set {
    /// All terms that its rows can depend on, sorted.
    pub(crate) terms: Box<[TermId]>,
    pub(crate) kind: Kind,
    /// The attribution to all of its policies, once it was asked for.
    denied: Option<AttributionIndex>,
    /// None while it is only a branch of others.
    whole: Option<Whole>,
}

/// A set of few policies, or of many.
#[derive(Debug)]
pub(crate) enum Kind {
    Leaf {
        /// Its rules by the terms that they need, sorted: which of its list's bodies, which rule of it.
        grants: Box<[(TermId, u32, u32)]>,
        /// What its rules permit everybody: for which keys, which of the bodies.
        open: Box<[Grant]>,
    },
    Inner(Box<[Option<SetIndex>; FAN]>),
}

/// What a set has that judges pods itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    pub(crate) id: SetId,
    pub(crate) direction: Direction,
    pub(crate) base: RowIndex,
}

/// Sets, atoms, rows and attributions.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) limits: Limits,
    /// What is wrong with policies because they are too much together, and with how many rows or nodes.
    overflows: BTreeMap<Key, BTreeMap<Fault, u32>>,
    /// Policies of which that may have changed since `take_touched`.
    touched: BTreeSet<Key>,
    pub(crate) sets: Table<SetIndex, SetKey, Set>,
    pub(crate) atoms: Table<AtomIndex, Elements, AtomId>,
    /// The base row is the one without elements.
    pub(crate) rows: Table<RowIndex, Of<SetIndex>, RowState>,
    /// What branches add to rows.
    pub(crate) parts: Table<PartId, Of<SetIndex>, Part>,
    pub(crate) contents: Table<ContentId, Content, ()>,
    pub(crate) attributions: Table<AttributionIndex, Branch<AttributionIndex, Name, 2>, AttributionState>,
    /// How many attributions are kept because they are told often.
    pub(crate) often_told: usize,
}

impl Sets {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The set of these policies for pods with these named ports; closed if none are given.
    pub(crate) fn set(
        &mut self,
        rules: &mut Rules,
        direction: Direction,
        list: ListId,
        ports: Option<&[NamedPort]>,
    ) -> SetIndex {
        let set = self.branch(rules, list, ports);
        if self.sets[set].whole.is_none() {
            let id = self.sets.key(set).id(rules, direction);
            let base = self.insert_row(rules, set, &[]);
            self.rows.hold(base);
            self.sets[set].whole = Some(Whole { id, direction, base });
        }
        set
    }

    /// What a set has that judges pods.
    pub(crate) fn whole(&self, set: SetIndex) -> Whole {
        match self.sets[set].whole {
            Some(whole) => whole,
            None => unreachable!("only whole sets judge pods"),
        }
    }

    /// The set as a branch of others.
    fn branch(&mut self, rules: &mut Rules, list: ListId, ports: Option<&[NamedPort]>) -> SetIndex {
        let named = &rules.lists[list].names;
        let is_named = |port: &&NamedPort| {
            named.iter().any(|(protocol, name)| (*protocol, name) == (port.protocol, &port.name))
        };
        let bindings = ports.map(|ports| ports.iter().filter(is_named).cloned().collect());
        let key = SetKey { list, bindings };
        if let Some(set) = self.sets.find(&key) {
            return set;
        }
        let (terms, kind) = match rules.lists.key(list) {
            Branch::Leaf(_) => self.leaf_kind(rules, &key),
            Branch::Inner(children) => {
                let children = **children;
                self.inner_kind(rules, children, ports)
            }
        };
        rules.lists.hold(list);
        self.sets.insert(key, Set { terms, kind, denied: None, whole: None })
    }

    fn leaf_kind(&self, rules: &Rules, key: &SetKey) -> (Box<[TermId]>, Kind) {
        let (mut grants, mut open) = (vec![], Grants::new());
        let bodies = if key.bindings.is_some() { key.bodies(rules) } else { &[] };
        for (at, &body) in (0..).zip(bodies) {
            for (number, rule) in (0..).zip(&rules.bodies[body].rules) {
                match &rule.peers {
                    Some(peers) => grants.extend(peers.iter().map(|&term| (term, at, number))),
                    None => self.grant(&mut open, key.permitted(rules, at, number), at),
                }
                grants.extend(rule.named.iter().map(|&term| (term, at, number)));
            }
        }
        let grants = sorted(grants);
        let mut terms: SmallVec<[TermId; 16]> = grants.iter().map(|&(term, ..)| term).collect();
        terms.dedup();
        ((*terms).into(), Kind::Leaf { grants: grants.into(), open: (*open).into() })
    }

    fn inner_kind(
        &mut self,
        rules: &mut Rules,
        children: [Option<ListId>; FAN],
        ports: Option<&[NamedPort]>,
    ) -> (Box<[TermId]>, Kind) {
        let children = children.map(|child| {
            let child = self.branch(rules, child?, ports);
            self.sets.hold(child);
            Some(child)
        });
        let terms = children.iter().flatten().flat_map(|&child| self.sets[child].terms.iter().copied());
        (sorted(terms.collect()).into(), Kind::Inner(Box::new(children)))
    }

    /// The attribution to all of a set's policies.
    pub(crate) fn denied(&mut self, rules: &mut Rules, set: SetIndex) -> AttributionIndex {
        if let Some(denied) = self.sets[set].denied {
            return denied;
        }
        let denied = match &self.sets[set].kind {
            Kind::Leaf { .. } => {
                let bodies = SmallVec::<[BodyId; 8]>::from_slice(self.sets.key(set).bodies(rules));
                Some(self.attribution(rules, bodies))
            }
            Kind::Inner(children) => {
                let children = (**children).map(|child| Some(self.denied(rules, child?)));
                self.joined(rules, children)
            }
        };
        let Some(denied) = denied else { unreachable!("a set has policies") };
        self.attributions.hold(denied);
        self.sets[set].denied = Some(denied);
        denied
    }

    /// What a set says of addresses that match these elements, all of terms of the set.
    pub(crate) fn row(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> RowIndex {
        let found = self.rows.find(&Asked(set, elements));
        found.unwrap_or_else(|| self.insert_row(rules, set, elements))
    }

    /// Whether a row says something else than its set says to all.
    pub(crate) fn is_told(&self, set: SetIndex, row: RowIndex) -> bool {
        let RowState { content, rest, .. } = &self.rows[row];
        let overflows = rest.as_ref().is_some_and(|rest| rest.overflow.is_some());
        // A row that is too large is kept in any case, and with it what is reported of it.
        *content != self.rows[self.whole(set).base].content || overflows
    }

    /// What a row says.
    pub(crate) fn said(&self, row: RowIndex) -> &Row {
        &self.contents.key(self.rows[row].content).row
    }

    /// The attributions that a row names, each once.
    pub(crate) fn named(&self, row: RowIndex) -> &[AttributionIndex] {
        &self.contents.key(self.rows[row].content).named
    }

    /// What a set's row takes.
    pub(crate) fn load(&self, set: SetIndex, row: RowIndex) -> Load {
        let all = self.sets[set].denied;
        let named = self.named(row).iter().filter(|&&by| Some(by) != all);
        Load {
            rows: 1,
            pages: pages(self.said(row).steps().len()),
            ports: self.rows[row].ports as usize,
            mentions: named.map(|&by| self.attributions[by].count as usize).sum(),
        }
    }

    fn insert_row(&mut self, rules: &mut Rules, set: SetIndex, elements: &[Element]) -> RowIndex {
        let row = self.row_state(rules, set, elements);
        if let Some((policy, fault)) = row.rest.as_ref().and_then(|rest| rest.overflow.as_ref()) {
            self.add_overflow(policy.clone(), fault.clone());
        }
        self.rows.insert(Of(set, elements.into()), row)
    }

    pub(crate) fn add_overflow(&mut self, policy: Key, fault: Fault) {
        self.touched.insert(policy.clone());
        *self.overflows.entry(policy).or_default().entry(fault).or_default() += 1;
    }

    pub(crate) fn remove_overflow(&mut self, policy: Key, fault: &Fault) {
        if let Some(faults) = self.overflows.get_mut(&policy) {
            if let Some(times) = faults.get_mut(fault) {
                *times -= 1;
            }
            faults.retain(|_, times| *times > 0);
            if faults.is_empty() {
                self.overflows.remove(&policy);
            }
            self.touched.insert(policy);
        }
    }

    /// What is wrong with a policy because it is too much with others.
    pub(crate) fn overflow(&self, policy: &Key) -> Option<&Fault> {
        self.overflows.get(policy)?.keys().next()
    }

    /// Whether there are policies of which that may have changed since `take_touched`.
    pub(crate) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Policies of which that may have changed since the last time.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.touched)
    }

    /// The atom of addresses that match these elements, sorted and each once, and what this block does.
    pub(crate) fn atom_within(
        &mut self,
        rules: &mut Rules,
        elements: &[Element],
        block: Option<AtomIndex>,
    ) -> AtomIndex {
        let Some(block) = block else { return self.atom(rules, elements) };
        let mut all = SmallVec::<[Element; 16]>::from_slice(elements);
        all.extend_from_slice(self.atoms.key(block));
        self.atom(rules, &few_sorted(all))
    }

    /// The atom of addresses that match these elements, sorted and each once.
    pub(crate) fn atom(&mut self, rules: &mut Rules, elements: &[Element]) -> AtomIndex {
        if let Some(atom) = self.atoms.find(elements) {
            return atom;
        }
        let mut fields: SmallVec<[_; 8]> = elements
            .iter()
            .map(|&(term, number)| {
                let mut field = [0; 18];
                field[..16].copy_from_slice(&rules.terms[term].0);
                field[16..].copy_from_slice(&number.to_be_bytes());
                field
            })
            .collect();
        fields.sort_unstable();
        let id = AtomId(Digest::of("atom", fields));
        elements.iter().for_each(|&(term, _)| rules.terms.hold(term));
        self.atoms.insert(elements.into(), id)
    }

    /// Frees what nobody holds any more, and lets go of what that held.
    pub(crate) fn collect(&mut self, rules: &mut Rules) {
        self.sets.collect_all(|sets, key, set| {
            rules.lists.release(key.list);
            set.denied.into_iter().for_each(|denied| self.attributions.release(denied));
            set.whole.into_iter().for_each(|whole| self.rows.release(whole.base));
            if let Kind::Inner(children) = set.kind {
                children.into_iter().flatten().for_each(|child| sets.release(child));
            }
        });
        for (_, _, row) in self.rows.collect() {
            self.contents.release(row.content);
            let Some(rest) = row.rest else { continue };
            rest.parts.into_iter().for_each(|part| self.parts.release(part));
            if let Some((policy, fault)) = rest.overflow {
                self.remove_overflow(policy, &fault);
            }
        }
        for (_, content, ()) in self.contents.collect() {
            content.named.iter().for_each(|&attribution| self.attributions.release(attribution));
        }
        self.collect_parts(rules);
        for (_, elements, _) in self.atoms.collect() {
            elements.iter().for_each(|&(term, _)| rules.terms.release(term));
        }
    }

    /// Frees the parts and the attributions that nobody holds any more.
    pub(crate) fn collect_parts(&mut self, rules: &mut Rules) {
        self.parts.collect_all(|parts, _, part| {
            part.parts.iter().for_each(|&part| parts.release(part));
            part.steps.iter().filter_map(|&(_, by)| by).for_each(|by| self.attributions.release(by));
        });
        let forget = |state: AttributionState| self.often_told -= usize::from(state.is_often_told());
        list::collect(&mut self.attributions, |name| rules.policies.release(name.policy), forget);
        debug_assert!(self.often_told <= self.attributions.len(), "those that are kept are there");
    }
}

impl SetKey {
    /// The bodies of a leaf.
    pub(crate) fn bodies<'a>(&self, rules: &'a Rules) -> &'a [BodyId] {
        rules.lists.key(self.list).leaf()
    }

    /// What one of a leaf's rules permits by number, and by names that the set binds.
    pub(crate) fn permitted<'a>(
        &'a self,
        rules: &'a Rules,
        at: u32,
        rule: u32,
    ) -> impl Iterator<Item = (PortKey, PortKey)> + 'a {
        let rule = &rules.bodies[self.bodies(rules)[at as usize]].rules[rule as usize];
        let bound = rule.names.iter().flat_map(|(protocol, name)| {
            let is_it = move |port: &&NamedPort| port.protocol == *protocol && port.name == *name;
            let bound = self.bindings.iter().flatten().filter(is_it);
            bound.map(|port| PortKey::new(port.protocol.number(), port.number)).map(|key| (key, key))
        });
        rule.ranges.iter().copied().chain(bound)
    }

    fn id(&self, rules: &Rules, direction: Direction) -> SetId {
        let mut digester = Digester::new(if self.bindings.is_some() { "set" } else { "closed" });
        digester.field(&[direction as u8]);
        digester.field(&rules.lists[self.list].digest.0);
        for NamedPort { name, protocol, number } in self.bindings.iter().flatten() {
            let [high, low] = number.to_be_bytes();
            digester.field(name.as_bytes());
            digester.field(&[protocol.number(), high, low]);
        }
        SetId(digester.digest())
    }
}
