//! Which namespaces' pods a node closes that would have to hold too much. Pure.
//!
//! What a node holds is not the sum of what each namespace needs: where policies of one tell addresses
//! apart, the rows of all others multiply. So namespaces are compared by what each would need alone, not by
//! what is there. Of those that need most the pods on that node are judged by closed sets: the same
//! policies, without rules.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::Fault;
use crate::answer::{ByTerm, matching};
use crate::block::{self, IpBlock};
use crate::cluster::{Cluster, sorted};
use crate::limit::{Load, Need};
use crate::list::items;
use crate::object::Key;
use crate::own::Turns;
use crate::rules::Term;
use crate::set::Sets;
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

/// Namespaces that are to be closed, with their sets, because there is too much of something.
#[derive(Debug)]
pub(crate) struct Closing {
    need: Need,
    namespaces: Vec<(NamespaceId, Vec<SetIndex>)>,
}

/// How much a namespace would need alone, and its sets.
type Needing = (Reverse<usize>, Arc<str>, NamespaceId, Vec<SetIndex>);

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
    /// The namespaces to close: all that by themselves need too much, else the one that needs most.
    pub(crate) fn choose(&mut self, need: Need) -> Closing {
        let limit = need.of(&self.sets.limits).1;
        let mut needs = self.needs(need);
        let all = needs.iter().fold(0, |sum: usize, (Reverse(alone), ..)| sum.saturating_add(*alone));
        let of_rows = matches!(need, Need::Rows | Need::Pages | Need::Ports | Need::Mentions);
        if of_rows && all <= limit {
            // Each by itself they would fit, all of them: there is so much because of who tells so many
            // addresses apart, not because of whose rows that multiplies.
            needs = self.needs(Need::Atoms);
        }
        let too_much = needs.iter().take_while(|(Reverse(alone), ..)| all > limit && *alone > limit).count();
        needs.truncate(too_much.max(1));
        let namespaces: Vec<_> = needs.into_iter().map(|(.., namespace, sets)| (namespace, sets)).collect();
        if namespaces.is_empty() {
            unreachable!("closed sets need nothing, so that somebody is left who needs what is too much");
        }
        Closing { need, namespaces }
    }

    /// How much each namespace that is not closed would need alone, and its sets; those that need most first.
    fn needs(&mut self, need: Need) -> Vec<Needing> {
        let mut by_namespace = BTreeMap::<NamespaceId, Vec<SetIndex>>::new();
        for (class, told) in &self.view.classes {
            let namespace = self.cluster.classes.key(*class).namespace;
            if !self.view.sheds(namespace) {
                by_namespace.entry(namespace).or_default().extend(told.sets());
            }
        }
        by_namespace.retain(|_, sets| !sets.is_empty());
        let atoms = match need {
            Need::Addresses | Need::Blocks => vec![],
            _ => self.by_term(self.view.atoms.things()),
        };
        let mut needs = vec![];
        for (namespace, sets) in by_namespace {
            let sets = sorted(sets);
            let alone = self.alone(need, &sets, &atoms);
            needs.push((Reverse(alone), self.cluster.namespaces.key(namespace).clone(), namespace, sets));
        }
        needs.sort_unstable();
        needs
    }

    /// How much these sets would need alone.
    fn alone(&mut self, need: Need, sets: &[SetIndex], atoms: &ByTerm) -> usize {
        let terms = sets.iter().flat_map(|&set| self.sets.sets[set].terms.iter().copied());
        let terms = sorted(terms.collect());
        match need {
            Need::Addresses => self.count_addresses(&terms),
            Need::Blocks => self.prefixes(&terms).map_or(usize::MAX, |(prefixes, _)| prefixes),
            Need::Matches => {
                let of_blocks = self.prefixes(&terms).map_or(usize::MAX, |(_, matches)| matches);
                of_blocks.max(told_apart(&terms, atoms).0.len())
            }
            Need::Atoms => told_apart(&terms, atoms).1,
            Need::Rows | Need::Pages | Need::Ports | Need::Mentions => {
                let (kinds, _) = told_apart(&terms, atoms);
                let mut load = Load::default();
                for &set in sets {
                    load += self.base_load(set);
                    // What is too much need not be counted further.
                    if self.new_rows(set, &kinds, &mut load).is_err() {
                        break;
                    }
                }
                load.of(need)
            }
        }
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
        let addresses = |class: ClassId| {
            self.cluster.classes[class].members.iter().flat_map(|member| member.addresses.iter().copied())
        };
        let all = sorted(all);
        some.retain(|(class, _)| all.binary_search(class).is_err());
        some.sort_by_key(|&(class, _)| class);
        let inside = some.chunk_by(|one, other| one.0 == other.0).map(|same| {
            let holds = |address: &IpAddr| same.iter().any(|(_, block)| block.contains(*address));
            addresses(same[0].0).filter(holds).count()
        });
        all.iter().map(|&class| addresses(class).count()).chain(inside).sum()
    }

    /// How many prefixes these terms' blocks need, and how many terms those match; none if too much.
    fn prefixes(&self, terms: &[TermId]) -> Option<(usize, usize)> {
        let blocks = terms.iter().filter_map(|&term| Some((term, self.rules.block(term)?)));
        let flat = block::flatten(blocks, &self.sets.limits).ok()?;
        Some((flat.len(), flat.values().map(Vec::len).sum()))
    }

    /// Closes the pods of namespaces. Gives the sets that come into use and go out of it.
    pub(crate) fn close(&mut self, closing: Closing, turns: &mut Turns) -> Uses<SetIndex> {
        let Closing { need, namespaces } = closing;
        let (what, limit) = need.of(&self.sets.limits);
        let mut classes = vec![];
        for (namespace, sets) in namespaces {
            let fault = Fault::TooManyOnNode { node: self.cluster.nodes.key(self.node).clone(), what, limit };
            let policy = self.loudest(&sets);
            self.sets.add_overflow(policy.clone(), fault.clone());
            self.cluster.namespaces.hold(namespace);
            self.view.shed.push(Shed { namespace, policy, fault });
            classes.extend(self.view.classes_of(self.cluster, namespace));
        }
        let (closed, uses) = self.turns(sorted(classes), &[]);
        for (class, (before, now)) in closed {
            turns.entry(class).or_insert((before, now)).1 = now;
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
            let body = &self.rules.bodies[body];
            let count = mentions.entry(body.name.policy).or_default();
            for rule in &body.rules {
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
        let named = mentions.into_iter().map(|(policy, count)| (count, self.rules.policies.key(policy)));
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
    let (mut kinds, mut seen) = (ByTerm::new(), HashSet::new());
    for same in matching(terms, atoms).chunk_by(|(one, _), (other, _)| one == other) {
        let mut hasher = DefaultHasher::new();
        same.iter().for_each(|(_, element)| element.hash(&mut hasher));
        if seen.insert(hasher.finish()) {
            kinds.extend(same.iter().map(|&(atom, element)| (element, atom)));
        }
    }
    kinds.sort_unstable();
    (kinds, seen.len())
}
