//! Lists of policies as trees: where one of very many changes, only its branch does. Pure.
//!
//! Up to [`LEAF`] policies are a leaf. More are divided by the digests of their names, three bits for
//! each level; so that a list has one form, whatever led to it, and in every engine the same. Lists of
//! bodies are what isolates pods; lists of names are what verdicts are attributed to, and divided
//! likewise: a branch of the one is a branch of the other.

use std::sync::Arc;

use durward_proto::{Digest, view};

use crate::cluster::sorted;
use crate::object::Protocol;
use crate::rules::Rules;
use crate::table::{BodyId, Id, ListId};

/// How many policies a list may have that is not divided.
pub(crate) const LEAF: usize = 32;
/// Into how many a list is divided.
pub(crate) const FAN: usize = 8;
/// Beyond this many levels a list is not divided any more.
const DEEPEST: u32 = 21;

/// A list, by its content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Branch<I, T> {
    /// Sorted, never empty.
    Leaf(Box<[T]>),
    /// By the next three bits of the policies' digests.
    Inner(Box<[Option<I>; FAN]>),
}

impl<I: Id, T> Branch<I, T> {
    /// The lists that it is divided into.
    pub(crate) fn children(&self) -> impl Iterator<Item = I> + '_ {
        let inner = match self {
            Self::Leaf(_) => None,
            Self::Inner(children) => Some(children),
        };
        inner.into_iter().flat_map(|children| children.iter().copied().flatten())
    }
}

/// Where a policy is in long lists: three bits for each level, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path(u64);

impl Path {
    fn of(policy: &view::Policy) -> Self {
        let digest = Digest::of("path", [policy.namespace.as_bytes(), policy.name.as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.0[..8]);
        Self(u64::from_be_bytes(first))
    }

    fn at(self, depth: u32) -> usize {
        (self.0 >> (3 * depth)) as usize % FAN
    }
}

/// A body that comes into a list or leaves it.
type Edit = (Path, BodyId, bool);

impl Rules {
    /// The list with these bodies put in or taken out; none if it is empty. What is put in may be there,
    /// what is taken out may not be.
    pub(crate) fn edited(
        &mut self,
        list: Option<ListId>,
        edits: impl IntoIterator<Item = (BodyId, bool)>,
    ) -> Option<ListId> {
        let edits: Vec<Edit> = edits.into_iter().map(|(body, comes)| (Path(0), body, comes)).collect();
        let small = list.is_none_or(|list| self.lists[list].count <= LEAF as u32);
        if small && edits.len() <= LEAF {
            return self.edit(list, &edits, 0);
        }
        let edits: Vec<Edit> =
            edits.into_iter().map(|(_, body, comes)| (self.path(body), body, comes)).collect();
        self.edit(list, &edits, 0)
    }

    fn path(&self, body: BodyId) -> Path {
        Path::of(self.names.key(self.bodies[body].name))
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
            let here: Vec<_> = edits.iter().filter(|(path, ..)| path.at(depth) == at).copied().collect();
            *child = self.edit(*child, &here, depth + 1);
        }
        let count: u32 = children.iter().flatten().map(|&child| self.lists[child].count).sum();
        if count as usize <= LEAF {
            let items = children.into_iter().flatten().flat_map(|child| self.bodies_of(child)).collect();
            return self.build(items, depth);
        }
        Some(self.list(Branch::Inner(Box::new(children))))
    }

    fn build(&mut self, bodies: Vec<BodyId>, depth: u32) -> Option<ListId> {
        if bodies.is_empty() {
            return None;
        }
        if bodies.len() <= LEAF || depth == DEEPEST {
            return Some(self.list(Branch::Leaf(sorted(bodies).into())));
        }
        let with_paths = bodies.into_iter().map(|body| (self.path(body), body)).collect();
        Some(self.divide(with_paths, depth))
    }

    fn divide(&mut self, bodies: Vec<(Path, BodyId)>, depth: u32) -> ListId {
        if bodies.len() <= LEAF || depth == DEEPEST {
            return self
                .list(Branch::Leaf(sorted(bodies.into_iter().map(|(_, body)| body).collect()).into()));
        }
        let mut parts = [const { vec![] }; FAN];
        for (path, body) in bodies {
            parts[path.at(depth)].push((path, body));
        }
        let mut children = [None; FAN];
        for (child, part) in children.iter_mut().zip(parts) {
            if !part.is_empty() {
                *child = Some(self.divide(part, depth + 1));
            }
        }
        self.list(Branch::Inner(Box::new(children)))
    }

    fn list(&mut self, branch: Branch<ListId, BodyId>) -> ListId {
        if let Some(list) = self.lists.find(&branch) {
            return list;
        }
        let mut digests: Vec<Digest> = vec![];
        let count = match &branch {
            Branch::Leaf(bodies) => {
                digests.extend(bodies.iter().map(|&body| *self.bodies.key(body)));
                digests.sort_unstable();
                bodies.iter().for_each(|&body| self.bodies.hold(body));
                bodies.len() as u32
            }
            Branch::Inner(children) => {
                digests.extend(children.iter().flatten().map(|&child| self.lists[child].digest));
                children.iter().flatten().for_each(|&child| self.lists.hold(child));
                children.iter().flatten().map(|&child| self.lists[child].count).sum()
            }
        };
        let mut names = match &branch {
            Branch::Leaf(bodies) => bodies
                .iter()
                .flat_map(|&body| &self.bodies[body].rules)
                .flat_map(|rule| rule.names.iter().cloned())
                .collect(),
            Branch::Inner(children) => {
                let names = children.iter().flatten().flat_map(|&child| self.lists[child].names.iter());
                names.cloned().collect::<Vec<_>>()
            }
        };
        names.sort_unstable();
        names.dedup();
        let kind = if matches!(branch, Branch::Leaf(_)) { "policies" } else { "lists" };
        let digest = Digest::of(kind, digests.iter().map(|digest| digest.0));
        self.lists.insert(branch, ListState { count, digest, names: names.into() })
    }

    /// All bodies of a list.
    pub(crate) fn bodies_of(&self, list: ListId) -> Vec<BodyId> {
        let (mut bodies, mut left) = (vec![], vec![list]);
        while let Some(list) = left.pop() {
            match self.lists.key(list) {
                Branch::Leaf(leaf) => bodies.extend(leaf),
                Branch::Inner(children) => left.extend(children.iter().copied().flatten()),
            }
        }
        bodies
    }

    /// The list of all bodies of some lists, no two of which have one in common.
    pub(crate) fn union(&mut self, lists: &[ListId]) -> Option<ListId> {
        let largest = *lists.iter().max_by_key(|&&list| self.lists[list].count)?;
        let others = lists.iter().filter(|&&list| list != largest);
        let others: Vec<_> = others.flat_map(|&list| self.bodies_of(list)).collect();
        self.edited(Some(largest), others.into_iter().map(|body| (body, true)))
    }

    pub(crate) fn collect_lists(&mut self) {
        loop {
            let gone = self.lists.collect();
            if gone.is_empty() {
                return;
            }
            for (_, branch, _) in gone {
                match branch {
                    Branch::Leaf(bodies) => bodies.iter().for_each(|&body| self.bodies.release(body)),
                    Branch::Inner(children) => {
                        children.iter().flatten().for_each(|&child| self.lists.release(child));
                    }
                }
            }
        }
    }
}

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
    let gone: Vec<_> = sorted(edits.iter().filter(|(.., comes)| !comes).map(|&(_, body, _)| body).collect());
    items.retain(|body| gone.binary_search(body).is_err());
    items.extend(edits.iter().filter(|(.., comes)| *comes).map(|&(_, body, _)| body));
    sorted(items)
}
