//! Which namespaces' pods a node closes that would have to hold too much. Pure.
//!
//! What a node holds is not the sum of what each namespace needs: where policies of one tell addresses
//! apart, the rows of all others multiply. So namespaces are compared by what each would need alone, not by
//! what is there. Of those that need most the pods on that node are judged by closed sets: the same
//! policies, without rules.
//!
//! That there is no room is found as soon as there is too much of anything, and what that is depends on what came
//! first. So it says nothing of who is to be closed: that is worked out from what is there, limit by limit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::Block;

use crate::Fault;
use crate::answer::{ByTerm, matching};
use crate::block::{self, IpBlock};
use crate::cluster::Cluster;
use crate::limit::{Load, Need, NoRoom};
use crate::list::items;
use crate::object::Key;
use crate::own::Turns;
use crate::rules::Term;
use crate::set::Sets;
use crate::sorted::sorted;
use crate::table::{ClassId, GroupId, NamespaceId, PolicyId, SetIndex, TermId};
use crate::tally::Uses;
use crate::view::{Refresh, View};

/// A namespace whose pods on a node are closed, and what is said of that.
#[derive(Debug)]
pub(crate) struct Shed {
    namespace: NamespaceId,
    policy: Key,
    fault: Fault,
}

/// A namespace that is open on a node, with its sets there.
#[derive(Debug)]
pub(crate) struct Space {
    name: Arc<str>,
    namespace: NamespaceId,
    sets: Vec<SetIndex>,
}

/// Namespaces that are to be closed, and what there would be too much of.
pub(crate) type Closing = Vec<(Space, Need)>;

impl View {
    /// Whether the namespace's pods are closed here.
    pub(crate) fn sheds(&self, namespace: NamespaceId) -> bool {
        self.shed.iter().any(|shed| shed.namespace == namespace)
    }

    /// Closes no namespace any more. Gives the classes that were closed.
    pub(crate) fn open(&mut self, cluster: &mut Cluster, sets: &mut Sets) -> Vec<ClassId> {
        let shed = std::mem::take(&mut self.shed);
        let mut classes = vec![];
        for Shed { namespace, policy, fault } in shed {
            classes.extend(self.classes_of(cluster, namespace));
            sets.remove_overflow(policy, &fault);
            cluster.namespaces.release(namespace);
        }
        classes
    }

    fn classes_of(&self, cluster: &Cluster, namespace: NamespaceId) -> impl Iterator<Item = ClassId> {
        let classes = self.classes.iter().map(|(class, _)| *class);
        classes.filter(move |&class| cluster.classes.key(class).namespace == namespace)
    }
}

impl Refresh<'_> {
    /// The namespaces to close, so that there is room for these needs: all that by themselves need too much of
    /// something, and then as many of those that need most as it takes.
    pub(crate) fn choose(&mut self, needs: &[Need], atoms: &ByTerm) -> Closing {
        let spaces = self.spaces();
        // Where there is room for all of them, there is for each.
        let Some(first) = needs.iter().position(|&need| self.is_too_much(need, &spaces, atoms)) else {
            unreachable!("closed sets need nothing, so that somebody is left who needs what is too much");
        };
        let needs = &needs[first..];
        let (mut closing, mut open) = (vec![], vec![]);
        for space in spaces {
            let alone = std::slice::from_ref(&space);
            match needs.iter().copied().find(|&need| self.is_too_much(need, alone, atoms)) {
                Some(need) => closing.push((space, need)),
                None => open.push(space),
            }
        }
        for &need in needs {
            let most = self.take_most(need, &mut open, atoms);
            closing.extend(most.into_iter().map(|space| (space, need)));
        }
        closing
    }

    /// The namespaces that are not closed and whose pods here are isolated, by name.
    fn spaces(&self) -> Vec<Space> {
        let mut by_namespace = BTreeMap::<NamespaceId, Vec<SetIndex>>::new();
        for (class, told) in &self.view.classes {
            let namespace = self.cluster.classes.key(*class).namespace;
            if !self.view.sheds(namespace) {
                by_namespace.entry(namespace).or_default().extend(told.sets());
            }
        }
        by_namespace.retain(|_, sets| !sets.is_empty());
        let space = |(namespace, sets)| {
            let name = self.cluster.namespaces.key(namespace).clone();
            Space { name, namespace, sets: sorted(sets) }
        };
        let mut spaces: Vec<_> = by_namespace.into_iter().map(space).collect();
        spaces.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        spaces
    }

    /// Takes out those that need most of something, until there is room for what the others need of it. Each by
    /// itself needs no more than there is room for.
    fn take_most(&mut self, need: Need, open: &mut Vec<Space>, atoms: &ByTerm) -> Vec<Space> {
        if !self.is_too_much(need, open, atoms) {
            return vec![];
        }
        let mut alone = self.rank(need, open, atoms);
        let mut taken = vec![];
        if Need::OF_ROWS.contains(&need) {
            let limit = need.of(&self.sets.limits).1;
            let mut sum: usize = alone.iter().sum();
            let surely = alone.iter().take_while(|alone| {
                let over = sum > limit;
                sum -= **alone;
                over
            });
            taken.extend(open.drain(..surely.count()));
            // Each by itself they would fit, all of them: there is so much because of who tells so many addresses
            // apart, not because of whose rows that multiplies.
            alone = self.rank(Need::Atoms, open, atoms);
        }
        // The more are taken, the less do the others need.
        let (mut few, mut enough) = (0, alone.len());
        while few < enough {
            let middle = (few + enough) / 2;
            if self.is_too_much(need, &open[middle..], atoms) {
                few = middle + 1;
            } else {
                enough = middle;
            }
        }
        taken.extend(open.drain(..enough));
        taken
    }

    /// Puts those that need most first; of those that need the same, the first by name. Gives how much each needs.
    fn rank(&mut self, need: Need, open: &mut Vec<Space>, atoms: &ByTerm) -> Vec<usize> {
        let spaces = std::mem::take(open).into_iter();
        let mut ranked: Vec<_> =
            spaces.map(|space| (self.count(need, std::slice::from_ref(&space), atoms), space)).collect();
        ranked.sort_by(|(one, a), (other, b)| other.cmp(one).then_with(|| a.name.cmp(&b.name)));
        let alone;
        (alone, *open) = ranked.into_iter().unzip();
        alone
    }

    fn is_too_much(&mut self, need: Need, spaces: &[Space], atoms: &ByTerm) -> bool {
        self.count(need, spaces, atoms) > need.of(&self.sets.limits).1
    }

    /// How much these namespaces would need, if they were all; what is too much is not counted further.
    fn count(&mut self, need: Need, spaces: &[Space], atoms: &ByTerm) -> usize {
        let sets: Vec<_> = spaces.iter().flat_map(|space| &space.sets).copied().collect();
        let terms = sets.iter().flat_map(|&set| self.sets.sets[set].terms.iter().copied());
        let terms = sorted(terms.collect());
        match need {
            Need::BlockMatches | Need::Blocks => self.count_blocks(need, &terms),
            Need::Addresses => self.count_addresses(&terms),
            Need::AtomMatches => told_apart(&terms, atoms).0.len(),
            Need::Atoms => told_apart(&terms, atoms).1 + usize::from(self.are_holes_told_apart(&terms)),
            Need::Rows | Need::Pages | Need::Ports | Need::Mentions => {
                self.count_rows(need, &sets, &told_apart(&terms, atoms).0)
            }
        }
    }

    fn count_rows(&mut self, need: Need, sets: &[SetIndex], kinds: &ByTerm) -> usize {
        let limit = need.of(&self.sets.limits).1;
        let mut load = Load::default();
        for &set in sets {
            if load.of(need) > limit {
                break;
            }
            if need == Need::Rows {
                // There may be so many that none of them can be worked out.
                let matching = matching(&self.sets.sets[set].terms, kinds);
                load.rows += matching.chunk_by(|(one, _), (other, _)| one == other).count();
                continue;
            }
            load += self.base_load(set);
            let counted = self.told_rows(set, kinds, |row| {
                load += row;
                if load.of(need) > limit { Err(NoRoom) } else { Ok(()) }
            });
            if counted.is_err() {
                break;
            }
        }
        load.of(need)
    }

    /// How many addresses of pods match one of these terms.
    fn count_addresses(&self, terms: &[TermId]) -> usize {
        let (mut all, mut some) = (vec![], Vec::<(ClassId, &IpBlock)>::new());
        for &term in terms {
            let Term { group: Some(group), block, port } = self.rules.terms.key(term) else { continue };
            let has_port = |class: &ClassId| {
                port.as_ref().is_none_or(|(protocol, name)| {
                    let mut ports = self.cluster.ports(*class).iter();
                    ports.any(|port| port.protocol == *protocol && port.name == *name)
                })
            };
            let classes = self.cluster.groups[*group].classes.iter().copied().filter(has_port);
            match block {
                None => all.extend(classes),
                Some(block) => some.extend(classes.map(|class| (class, &**block))),
            }
        }
        let all = sorted(all);
        some.retain(|(class, _)| all.binary_search(class).is_err());
        some.sort_by_key(|&(class, _)| class);
        let (mut shared, mut count) = (HashSet::new(), 0);
        let mut add = |class: ClassId, holds: &dyn Fn(IpAddr) -> bool| {
            let members = self.cluster.classes[class].members.iter();
            let addresses = members.flat_map(|member| member.addresses.iter().copied());
            // What several pods have is one address.
            for address in addresses.filter(|&address| holds(address)) {
                count += usize::from(!self.cluster.owners.is_shared(address) || shared.insert(address));
            }
        };
        all.into_iter().for_each(|class| add(class, &|_| true));
        for same in some.chunk_by(|one, other| one.0 == other.0) {
            add(same[0].0, &|address| same.iter().any(|(_, block)| block.contains(address)));
        }
        count
    }

    /// How many prefixes these terms' blocks need, or how many of the terms those match.
    fn count_blocks(&self, need: Need, terms: &[TermId]) -> usize {
        let limit = need.of(&self.sets.limits).1;
        let mut found = 0;
        let counted = self.flat(terms, |prefixes, matches| {
            found = if need == Need::Blocks { prefixes } else { matches };
            if found > limit { Err(NoRoom) } else { Ok(()) }
        });
        drop(counted);
        found
    }

    /// Whether some prefix matches none of these terms within one that does: an atom of its own, which no row is of.
    fn are_holes_told_apart(&self, terms: &[TermId]) -> bool {
        let Ok(flat) = self.flat(terms, |_, _| Ok::<_, Infallible>(()));
        flat.values().any(Vec::is_empty)
    }

    fn flat<E>(
        &self,
        terms: &[TermId],
        count: impl FnMut(usize, usize) -> Result<(), E>,
    ) -> Result<BTreeMap<Block, Vec<TermId>>, E> {
        block::flatten(terms.iter().filter_map(|&term| Some((term, self.rules.block(term)?))), count)
    }

    /// Closes the pods of namespaces. Gives the sets that come into use and go out of it.
    pub(crate) fn close(&mut self, closing: Closing, turns: &mut Turns) -> Uses<SetIndex> {
        let mut classes = vec![];
        for (Space { namespace, sets, .. }, need) in closing {
            let (what, limit) = need.of(&self.sets.limits);
            let fault = Fault::TooManyOnNode { node: self.cluster.nodes.key(self.node).clone(), what, limit };
            let policy = self.loudest(&sets);
            self.sets.add_overflow(policy.clone(), fault.clone());
            self.cluster.namespaces.hold(namespace);
            self.view.shed.push(Shed { namespace, policy, fault });
            classes.extend(self.view.classes_of(self.cluster, namespace));
        }
        let (closed, uses) = self.turns(sorted(classes), &[]);
        for (class, (before, now)) in closed {
            match turns.binary_search_by_key(&class, |(class, _)| *class) {
                Ok(at) => turns[at].1.1 = now,
                Err(at) => turns.insert(at, (class, (before, now))),
            }
        }
        uses
    }

    /// Of these sets' policies the one that mentions most pods, blocks and ports; of several, the first by
    /// name.
    fn loudest(&self, sets: &[SetIndex]) -> Key {
        let lists = sorted(sets.iter().map(|&set| self.sets.sets.key(set).list).collect());
        let bodies = sorted(lists.into_iter().flat_map(|list| items(&self.rules.lists, list)).collect());
        let mut sizes = HashMap::<GroupId, usize>::new();
        let mut mentions = HashMap::<PolicyId, usize>::new();
        for body in bodies {
            let count = mentions.entry(self.rules.bodies.key(body).name.policy).or_default();
            for rule in &self.rules.bodies[body].rules {
                let terms = rule.peers.iter().flatten().chain(&rule.named);
                for &term in terms {
                    let Term { group, block, .. } = self.rules.terms.key(term);
                    *count += match (group, block) {
                        (Some(group), _) => *sizes.entry(*group).or_insert_with(|| self.pods_in(*group)),
                        (None, block) => block.as_ref().map_or(0, |block| 1 + block.except.len()),
                    };
                }
                *count += rule.ranges.len() + rule.names.len();
            }
        }
        let named = mentions.into_iter().map(|(policy, count)| (count, self.rules.named(policy)));
        match named.max_by_key(|&(count, policy)| (count, Reverse(policy))) {
            Some((_, policy)) => policy.clone(),
            None => unreachable!("only sets that need something are closed"),
        }
    }

    fn pods_in(&self, group: GroupId) -> usize {
        let classes = self.cluster.groups[group].classes.iter();
        classes.map(|&class| self.cluster.classes[class].members.len()).sum()
    }
}

/// Of the atoms that these terms (sorted) tell apart one of each kind, and how many kinds there are.
fn told_apart(terms: &[TermId], atoms: &ByTerm) -> (ByTerm, usize) {
    // Whose pods and policies they are must not know how to make two of them hash alike.
    let (mut kinds, mut seen, random) = (ByTerm::new(), HashSet::new(), RandomState::new());
    for same in matching(terms, atoms).chunk_by(|(one, _), (other, _)| one == other) {
        let mut hasher = random.build_hasher();
        same.iter().for_each(|(_, element)| element.hash(&mut hasher));
        if seen.insert(hasher.finish()) {
            kinds.extend(same.iter().map(|&(atom, element)| (element, atom)));
        }
    }
    kinds.sort_unstable();
    (kinds, seen.len())
}
