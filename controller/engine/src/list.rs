//! Lists of policies as trees: where one of very many changes, only its branch does. Pure.
//!
//! Up to [`LEAF`] policies are a leaf. More are divided by the digests of their names, three bits for
//! each level; so that a list has one form, whatever led to it, and in every engine the same. Lists of
//! bodies are what isolates pods; lists of names are what verdicts are attributed to, and divided
//! likewise: a branch of the one is a branch of the other.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use durward_proto::Digest;
use hashbrown::Equivalent;
use smallvec::SmallVec;

use crate::object::{Key, Protocol};
use crate::rules::Rules;
use crate::sorted::{few_sorted, sorted};
use crate::table::{Belongs, BodyId, Id, ListId, Table};

/// How many policies a list may have that is not divided, but for tests.
pub(crate) const LEAF: usize = 32;
/// Into how many a list is divided.
pub(crate) const FAN: usize = 8;
/// Beyond this many levels a list is not divided any more.
const DEEPEST: u32 = 21;

/// A list, by its content. One of a few items, as most are, has no box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Branch<I, T, const FEW: usize> {
    /// Each once, and never empty: bodies sorted, names in the order in which they are told.
    Leaf(SmallVec<[T; FEW]>),
    /// By the next three bits of the policies' digests.
    Inner(Box<[Option<I>; FAN]>),
}

impl<I: Hash, T: Clone + Ord + Hash, const FEW: usize> Hash for Branch<I, T, FEW> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Leaf(items) => LeafOf(&few_sorted(items.clone())).hash(state),
            Self::Inner(children) => (false, children).hash(state),
        }
    }
}

impl<I, T: Ord + Belongs, const FEW: usize> Belongs for Branch<I, T, FEW> {
    fn owner(&self) -> Option<usize> {
        match self {
            Self::Leaf(items) => items.iter().min()?.owner(),
            Self::Inner(_) => None,
        }
    }
}

/// To look for a leaf of these items, sorted.
pub(crate) struct LeafOf<'a, T>(pub(crate) &'a [T]);

impl<T: Belongs> Belongs for LeafOf<'_, T> {
    fn owner(&self) -> Option<usize> {
        self.0.first()?.owner()
    }
}

impl<T: Hash> Hash for LeafOf<'_, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (true, self.0).hash(state);
    }
}

impl<I, T: Ord, const FEW: usize> Equivalent<Branch<I, T, FEW>> for LeafOf<'_, T> {
    fn equivalent(&self, branch: &Branch<I, T, FEW>) -> bool {
        let Branch::Leaf(items) = branch else { return false };
        items.len() == self.0.len() && items.iter().all(|item| self.0.binary_search(item).is_ok())
    }
}

impl<I: Id, T, const FEW: usize> Branch<I, T, FEW> {
    /// Its items, if it is not divided.
    pub(crate) fn leaf(&self) -> &[T] {
        match self {
            Self::Leaf(items) => items,
            Self::Inner(_) => &[],
        }
    }

    /// The lists that it is divided into, each in its place.
    pub(crate) fn parts(&self) -> Option<&[Option<I>; FAN]> {
        match self {
            Self::Leaf(_) => None,
            Self::Inner(children) => Some(children),
        }
    }

    /// The lists that it is divided into.
    pub(crate) fn children(&self) -> impl Iterator<Item = I> + '_ {
        self.parts().into_iter().flatten().copied().flatten()
    }
}

/// All items of a list.
pub(crate) fn items<I: Id, T: Copy + Ord + Hash + Belongs, V, const FEW: usize>(
    lists: &Table<I, Branch<I, T, FEW>, V>,
    list: I,
) -> Vec<T> {
    let (mut items, mut left) = (vec![], vec![list]);
    while let Some(list) = left.pop() {
        match lists.key(list) {
            Branch::Leaf(leaf) => items.extend_from_slice(leaf),
            inner => left.extend(inner.children()),
        }
    }
    items
}

impl Belongs for BodyId {
    fn owner(&self) -> Option<usize> {
        Some(self.index())
    }
}

/// Frees the lists that nobody holds any more, and lets go of their items. `forget` gets what was kept of each.
pub(crate) fn collect<I: Id, T: Clone + Ord + Hash + Belongs, V, const FEW: usize>(
    lists: &mut Table<I, Branch<I, T, FEW>, V>,
    mut release: impl FnMut(T),
    mut forget: impl FnMut(V),
) {
    lists.collect_all(|lists, branch, kept| {
        match branch {
            Branch::Leaf(items) => items.into_iter().for_each(&mut release),
            inner => inner.children().for_each(|child| lists.release(child)),
        }
        forget(kept);
    });
}

/// Where a policy is in long lists: three bits for each level, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path(u64);

impl Path {
    pub(crate) fn of(policy: &Key) -> Self {
        let digest = Digest::of("path", [policy.namespace.as_bytes(), policy.name.as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.0[..8]);
        Self(u64::from_be_bytes(first))
    }

    fn at(self, depth: u32) -> usize {
        (self.0 >> (3 * depth)) as usize % FAN
    }
}

/// A body that comes into a list (true) or leaves it.
type Edit = (BodyId, bool);

/// What isolates a group's pods in a direction. Most groups have one policy, so that it needs no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Isolating {
    One(BodyId),
    More(ListId),
}

impl Rules {
    /// What isolates with these bodies put in or taken out; none if nothing does.
    pub(crate) fn isolating(&mut self, by: Option<Isolating>, edits: &[Edit]) -> Option<Isolating> {
        let list = match by {
            Some(Isolating::More(list)) => self.edited(Some(list), edits)?,
            one => match edit_all(one.into_iter().flat_map(|one| self.bodies_of(one)).collect(), edits) {
                bodies if bodies.len() > 1 => self.build(bodies, 0)?,
                bodies => return bodies.first().copied().map(Isolating::One),
            },
        };
        match self.lists.key(list) {
            Branch::Leaf(bodies) if bodies.len() == 1 => Some(Isolating::One(bodies[0])),
            _ => Some(Isolating::More(list)),
        }
    }

    pub(crate) fn hold(&mut self, by: Isolating) {
        match by {
            Isolating::One(body) => self.bodies.hold(body),
            Isolating::More(list) => self.lists.hold(list),
        }
    }

    pub(crate) fn release(&mut self, by: Isolating) {
        match by {
            Isolating::One(body) => self.bodies.release(body),
            Isolating::More(list) => self.lists.release(list),
        }
    }

    fn bodies_of(&self, by: Isolating) -> Vec<BodyId> {
        match by {
            Isolating::One(body) => vec![body],
            Isolating::More(list) => items(&self.lists, list),
        }
    }

    /// The list with these bodies put in or taken out; none if it is empty. What is put in may be there,
    /// what is taken out may not be.
    fn edited(&mut self, list: Option<ListId>, edits: &[Edit]) -> Option<ListId> {
        self.edit(list, edits, 0)
    }

    /// Into which of the lists that one is divided into a body belongs.
    fn place(&self, body: BodyId, depth: u32) -> usize {
        self.policies[self.bodies.key(body).name.policy].path.at(depth)
    }

    fn edit(&mut self, list: Option<ListId>, edits: &[Edit], depth: u32) -> Option<ListId> {
        if edits.is_empty() {
            return list;
        }
        let mut children = match list.map(|list| self.lists.key(list)) {
            Some(Branch::Inner(children)) => **children,
            leaf => {
                let items = match leaf {
                    Some(Branch::Leaf(bodies)) => bodies.to_vec(),
                    _ => vec![],
                };
                return self.build(edit_all(items, edits), depth);
            }
        };
        for (at, child) in children.iter_mut().enumerate() {
            let here: Vec<_> =
                edits.iter().filter(|(body, _)| self.place(*body, depth) == at).copied().collect();
            *child = self.edit(*child, &here, depth + 1);
        }
        let count: u32 = children.iter().flatten().map(|&child| self.lists[child].count).sum();
        if count as usize <= self.leaf {
            let bodies = children.into_iter().flatten().flat_map(|child| items(&self.lists, child)).collect();
            return self.build(bodies, depth);
        }
        Some(self.list(Branch::Inner(Box::new(children))))
    }

    fn build(&mut self, bodies: Vec<BodyId>, depth: u32) -> Option<ListId> {
        if bodies.is_empty() {
            return None;
        }
        if bodies.len() <= self.leaf || depth == DEEPEST {
            return Some(self.leaf_list(&sorted(bodies)));
        }
        let mut parts = [const { vec![] }; FAN];
        for body in bodies {
            parts[self.place(body, depth)].push(body);
        }
        let children = parts.map(|part| self.build(part, depth + 1));
        Some(self.list(Branch::Inner(Box::new(children))))
    }

    fn list(&mut self, branch: Bodies) -> ListId {
        self.lists.find(&branch).unwrap_or_else(|| self.insert_list(branch))
    }

    /// The list of these bodies, sorted and each once.
    fn leaf_list(&mut self, bodies: &[BodyId]) -> ListId {
        let found = self.lists.find(&LeafOf(bodies));
        found.unwrap_or_else(|| self.insert_list(Branch::Leaf(SmallVec::from_slice(bodies))))
    }

    fn insert_list(&mut self, branch: Bodies) -> ListId {
        let (mut digests, mut names, mut count) = (SmallVec::<[Digest; 8]>::new(), vec![], 0);
        let kind = match &branch {
            Branch::Leaf(bodies) => {
                count = bodies.len() as u32;
                for &body in bodies {
                    self.bodies.hold(body);
                    digests.push(self.bodies.key(body).digest);
                    names.extend(self.bodies[body].rules.iter().flat_map(|rule| rule.names.iter().cloned()));
                }
                digests.sort_unstable();
                "policies"
            }
            inner => {
                for child in inner.children() {
                    self.lists.hold(child);
                    let of = &self.lists[child];
                    count += of.count;
                    digests.push(of.digest);
                    names.extend(of.names.iter().cloned());
                }
                "lists"
            }
        };
        let digest = Digest::of(kind, digests.iter().map(|digest| digest.0));
        self.lists.insert(branch, ListState { count, digest, names: sorted(names).into() })
    }

    /// The list of all bodies that isolate some groups' pods, no two of which have one in common.
    pub(crate) fn union(&mut self, of: &[Isolating]) -> Option<ListId> {
        let count = |by: Isolating| match by {
            Isolating::One(_) => 1,
            Isolating::More(list) => self.lists[list].count as usize,
        };
        if of.iter().copied().map(count).sum::<usize>() <= self.leaf {
            // A leaf, as its parts are: nearly all are, and need no box on the way.
            let parts = of.iter().flat_map(|by| match by {
                Isolating::One(body) => std::slice::from_ref(body),
                Isolating::More(list) => self.lists.key(*list).leaf(),
            });
            let bodies = few_sorted(parts.copied().collect::<SmallVec<[_; 16]>>());
            return (!bodies.is_empty()).then(|| self.leaf_list(&bodies));
        }
        let lists = of.iter().filter_map(|by| match by {
            Isolating::More(list) => Some(*list),
            Isolating::One(_) => None,
        });
        let largest = lists.max_by_key(|&list| self.lists[list].count);
        let others = of.iter().copied().filter(|&by| Some(by) != largest.map(Isolating::More));
        let added: usize = others.clone().map(count).sum();
        // Where little is added, the union is made sooner than it is found.
        if added > self.leaf
            && let Some(&union) = self.unions.get(of)
        {
            return Some(union);
        }
        let others: Vec<_> = others.flat_map(|by| self.bodies_of(by)).map(|body| (body, true)).collect();
        let union = self.edited(largest, &others)?;
        if added > self.leaf {
            self.unions.insert(of.into(), union);
        }
        Some(union)
    }
}

/// A list of bodies.
pub(crate) type Bodies = Branch<ListId, BodyId, 4>;

/// What is kept of a list.
#[derive(Debug)]
pub(crate) struct ListState {
    /// How many policies it has.
    pub(crate) count: u32,
    pub(crate) digest: Digest,
    /// The subject's named ports that its rules mention.
    pub(crate) names: Box<[(Protocol, Arc<str>)]>,
}

fn edit_all(mut items: Vec<BodyId>, edits: &[Edit]) -> Vec<BodyId> {
    let gone = sorted(edits.iter().filter(|(_, comes)| !comes).map(|&(body, _)| body).collect());
    items.retain(|body| gone.binary_search(body).is_err());
    items.extend(edits.iter().filter(|(_, comes)| *comes).map(|&(body, _)| body));
    sorted(items)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Limits;
    use crate::cluster::Cluster;
    use crate::sample::ingress;

    #[test]
    fn unions_are_made_once_in_a_batch() {
        let (mut cluster, mut rules) = (Cluster::default(), Rules::new(&Limits::default()));
        let many = |rules: &mut Rules, cluster: &mut Cluster, name: &str| -> Vec<_> {
            let names = (0..=LEAF).map(|n| format!("a/{name}-{n:02}"));
            let policies = names.map(|name| ingress(&name, "", []));
            let bodies = policies.map(|policy| {
                let id = rules.policy(cluster, policy.key.clone());
                rules.compile(cluster, &Limits::default(), id, policy).bodies[0]
            });
            bodies.map(|body| Isolating::One(body.expect("it isolates on ingress"))).collect()
        };
        let names = |rules: &Rules, list| -> BTreeSet<_> {
            let bodies = items(&rules.lists, list).into_iter();
            bodies.map(|body| rules.said(rules.bodies.key(body).name).name.to_string()).collect()
        };
        let bodies = many(&mut rules, &mut cluster, "one");
        let union = rules.union(&bodies).expect("it is not empty");
        assert_eq!(rules.union(&bodies), Some(union));
        assert_eq!((rules.unions.len(), rules.union(&[])), (1, None));
        // Nobody holds them: after the batch the same numbers mean something else.
        rules.collect(&mut cluster);
        let bodies = many(&mut rules, &mut cluster, "other");
        let union = rules.union(&bodies).expect("it is not empty");
        assert_eq!(names(&rules, union), (0..=LEAF).map(|n| format!("other-{n:02}")).collect());
    }
}
