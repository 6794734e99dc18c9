//! Who is where, and which groups of pods they belong to. Pure.
//!
//! Every change marks what it concerns on the nodes that must hear of it (their own pods, and remote
//! addresses in groups that they use). What it means is worked out later, from the state at the end
//! of the batch; so the order of events cannot matter.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{Direction, PodUid};
use hashbrown::{HashMap, HashSet};

use crate::object::{Key, Labels, NamedPort, Selector};
use crate::selector::SelectorIndex;
use crate::table::{BodyId, ClassId, GroupId, NamespaceId, NodeId, PodId, ScopeId, Table, TermId};

/// A pod that is there; pods that policies do not see are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) uid: PodUid,
    pub(crate) class: ClassId,
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) node: Option<NodeId>,
    pub(crate) config_hash: Option<Arc<str>>,
}

#[derive(Debug, Default)]
pub(crate) struct Pod {
    pub(crate) live: Option<Arc<Live>>,
    /// Where it is in its class's `pods`.
    pub(crate) slot: usize,
}

/// Pods that no selector and no named port can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClassKey {
    pub(crate) namespace: NamespaceId,
    pub(crate) labels: Labels,
    pub(crate) ports: Box<[NamedPort]>,
}

#[derive(Debug, Default)]
pub(crate) struct Class {
    pub(crate) pods: Vec<PodId>,
    /// The groups that its pods belong to, sorted.
    pub(crate) groups: Vec<GroupId>,
}

#[derive(Debug, Default)]
pub(crate) struct Namespace {
    /// None while there is no such object: then no namespace selector matches it.
    pub(crate) labels: Option<Labels>,
    pub(crate) denies_logged: bool,
    /// Sorted.
    pub(crate) classes: Vec<ClassId>,
    pub(crate) scopes: Vec<ScopeId>,
}

/// Where a selector of pods looks for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Everywhere, also in namespaces that are not known (yet).
    All,
    /// In one namespace.
    One(Arc<str>),
    /// In namespaces with these labels.
    Selected(Selector),
}

#[derive(Debug, Default)]
pub(crate) struct ScopeState {
    pub(crate) groups: SelectorIndex<GroupId>,
    /// Sorted.
    pub(crate) namespaces: Vec<NamespaceId>,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Sorted.
    pub(crate) classes: Vec<ClassId>,
    /// Policies that select it as their subjects, by direction.
    pub(crate) subjects: [Vec<BodyId>; 2],
    /// Terms of rules that mention it as a peer.
    pub(crate) terms: Vec<TermId>,
    /// Subscribed nodes whose pods' rules use one of those terms, and how many of them.
    /// Sorted.
    pub(crate) nodes: Vec<(NodeId, u32)>,
}

/// What may have changed for a node in this batch.
#[derive(Debug, Default)]
pub(crate) struct Dirt {
    pub(crate) pods: BTreeSet<PodId>,
    pub(crate) addresses: HashSet<IpAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) pods: HashSet<PodId>,
    pub(crate) subscribed: bool,
    pub(crate) dirt: Dirt,
}

/// Pods, namespaces, nodes, and groups of pods.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) pods: Table<PodId, Key, Pod>,
    pub(crate) nodes: Table<NodeId, Arc<str>, Node>,
    pub(crate) classes: Table<ClassId, ClassKey, Class>,
    pub(crate) groups: Table<GroupId, (ScopeId, Selector), Group>,
    pub(crate) owners: HashMap<IpAddr, Vec<PodId>>,
    /// Addresses that several pods have.
    pub(crate) shared: HashSet<IpAddr>,
    /// The classes of the pods that had an address before the batch, where its pods were touched.
    pub(crate) before: HashMap<IpAddr, Vec<ClassId>>,
    /// The groups that a class was in before the batch, where its namespace was touched.
    pub(crate) groups_before: HashMap<ClassId, Vec<GroupId>>,
    /// Nodes with dirt.
    pub(crate) dirty: BTreeSet<NodeId>,
    pub(crate) namespaces: Table<NamespaceId, Arc<str>, Namespace>,
    pub(crate) scopes: Table<ScopeId, Scope, ScopeState>,
    /// Scopes that are selectors of namespaces.
    pub(crate) selected: SelectorIndex<ScopeId>,
}

impl Cluster {
    pub(crate) fn node(&mut self, name: &Arc<str>) -> NodeId {
        self.nodes.find(name).unwrap_or_else(|| self.nodes.insert(name.clone(), Node::default()))
    }

    /// What selects a class's pods in a direction, sorted.
    pub(crate) fn isolating(&self, class: ClassId, direction: Direction) -> Vec<BodyId> {
        let groups = self.classes[class].groups.iter();
        let mut bodies: Vec<_> = groups
            .flat_map(|&group| self.groups[group].subjects[direction as usize].iter().copied())
            .collect();
        bodies.sort_unstable();
        bodies
    }

    pub(crate) fn denies_logged(&self, class: ClassId) -> bool {
        self.namespaces[self.classes.key(class).namespace].denies_logged
    }

    /// The node's rules use one more, or one less, term of the group.
    pub(crate) fn route(&mut self, group: GroupId, node: NodeId, more: bool) {
        let nodes = &mut self.groups[group].nodes;
        match (nodes.binary_search_by_key(&node, |(other, _)| *other), more) {
            (Ok(at), true) => nodes[at].1 += 1,
            (Ok(at), false) if nodes[at].1 > 1 => nodes[at].1 -= 1,
            (Ok(at), false) => drop(nodes.remove(at)),
            (Err(at), true) => nodes.insert(at, (node, 1)),
            (Err(_), false) => unreachable!("a term goes from where it came to"),
        }
    }

    pub(crate) fn mark_pod(&mut self, pod: PodId, node: Option<NodeId>) {
        if let Some(node) = node.filter(|&node| self.nodes[node].subscribed) {
            self.nodes[node].dirt.pods.insert(pod);
            self.dirty.insert(node);
        }
    }

    /// The group's subjects may be judged differently.
    pub(crate) fn mark_subjects(&mut self, group: GroupId) {
        for class in self.groups[group].classes.clone() {
            self.mark_class(class);
        }
    }

    pub(crate) fn mark_class(&mut self, class: ClassId) {
        for at in 0..self.classes[class].pods.len() {
            let pod = self.classes[class].pods[at];
            let node = self.pods[pod].live.as_ref().and_then(|live| live.node);
            self.mark_pod(pod, node);
        }
    }

    /// A class came into a group or left it, because its namespace has other labels. Its pods stay
    /// the subjects of the same policies: those look into their own namespace whatever its labels.
    pub(crate) fn mark_member(&mut self, group: GroupId, class: ClassId) {
        for pod in &self.classes[class].pods {
            if let Some(live) = &self.pods[*pod].live {
                mark(&self.groups[group], &mut self.nodes, &mut self.dirty, &live.addresses);
            }
        }
    }

    /// The batch is over: frees what nobody holds any more.
    pub(crate) fn collect(&mut self) {
        self.before = HashMap::new();
        self.groups_before = HashMap::new();
        for (group, key, content) in self.groups.collect() {
            let (scope, selector) = &key;
            self.scopes[*scope].groups.remove(group, selector);
            self.scopes.release(*scope);
            for class in content.classes {
                leave(&mut self.classes[class].groups, group);
            }
        }
        for (class, key, content) in self.classes.collect() {
            for group in content.groups {
                leave(&mut self.groups[group].classes, class);
            }
            leave(&mut self.namespaces[key.namespace].classes, class);
            self.namespaces.release(key.namespace);
        }
        for (scope, key, content) in self.scopes.collect() {
            if let Scope::Selected(selector) = &key {
                self.selected.remove(scope, selector);
            }
            for namespace in content.namespaces {
                self.namespaces[namespace].scopes.retain(|other| *other != scope);
            }
        }
        for (namespace, _, content) in self.namespaces.collect() {
            for scope in content.scopes {
                leave(&mut self.scopes[scope].namespaces, namespace);
            }
        }
        self.pods.collect();
        self.nodes.collect();
    }
}

pub(crate) fn mark(
    group: &Group,
    nodes: &mut Table<NodeId, Arc<str>, Node>,
    dirty: &mut BTreeSet<NodeId>,
    addresses: &[IpAddr],
) {
    for &(node, _) in &group.nodes {
        nodes[node].dirt.addresses.extend(addresses);
        dirty.insert(node);
    }
}

/// Puts a thing where it belongs in a sorted list, if it is not there.
pub(crate) fn enter<T: Ord>(sorted: &mut Vec<T>, thing: T) {
    if let Err(at) = sorted.binary_search(&thing) {
        sorted.insert(at, thing);
    }
}

pub(crate) fn leave<T: Ord>(sorted: &mut Vec<T>, thing: T) {
    if let Ok(at) = sorted.binary_search(&thing) {
        sorted.remove(at);
    }
}

pub(crate) fn sorted<T: Ord>(mut things: Vec<T>) -> Vec<T> {
    things.sort_unstable();
    things.dedup();
    things
}
