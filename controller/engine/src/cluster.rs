//! Who is where, and which groups of pods they belong to. Pure.
//!
//! Every change marks what it concerns on the nodes that must hear of it (their own pods, and remote
//! addresses in groups that they use). What it means is worked out later, from the state at the end
//! of the batch; so the order of events cannot matter.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use durward_proto::{Direction, PodUid};
use hashbrown::{Equivalent, HashMap};
use smallvec::SmallVec;

use crate::list::Isolating;
use crate::object::NamedPort;
use crate::owner::Owners;
use crate::selector::{Files, SelectorIndex};
use crate::sorted::{Few, insert, leave};
use crate::spread::Spread;
use crate::table::{
    Belongs, ClassId, GroupId, Id, LabelsId, NamespaceId, NodeId, PodId, PortsId, ScopeId, SelectorId, Table,
    TermId, WordId,
};
use crate::words::Words;

/// A pod's namespace and name.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodKey {
    pub(crate) namespace: NamespaceId,
    pub(crate) name: Arc<str>,
}

impl Belongs for PodKey {
    fn owner(&self) -> Option<usize> {
        Some(self.namespace.index())
    }
}

/// To look for a [`PodKey`].
#[derive(Hash)]
pub(crate) struct PodNamed<'a>(pub(crate) NamespaceId, pub(crate) &'a str);

impl Equivalent<PodKey> for PodNamed<'_> {
    fn equivalent(&self, key: &PodKey) -> bool {
        self.0 == key.namespace && *self.1 == *key.name
    }
}

impl Belongs for PodNamed<'_> {
    fn owner(&self) -> Option<usize> {
        Some(self.0.index())
    }
}

/// A pod that is there; pods that policies do not see are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) uid: PodUid,
    pub(crate) class: ClassId,
    /// Where it is in its class's `members`.
    pub(crate) slot: u32,
    /// Boxed, because only static pods have one.
    pub(crate) config_hash: Option<Box<Arc<str>>>,
}

/// Sorted addresses of a pod. Nearly all pods have one, so that it has no box of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    One(IpAddr),
    Other(Box<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Other(addresses) => addresses,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        match addresses[..] {
            [address] => Self::One(address),
            _ => Self::Other(addresses.into()),
        }
    }
}

/// The classes of the pods that have an address: mostly one pod.
pub(crate) type Classes = SmallVec<[ClassId; 2]>;

/// A pod as one of its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pod: PodId,
    pub(crate) node: Option<NodeId>,
    pub(crate) addresses: Addresses,
}

/// A pod as it was before the batch.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) live: Live,
    pub(crate) addresses: Addresses,
}

/// Pods that no selector and no named port can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClassKey {
    pub(crate) namespace: NamespaceId,
    pub(crate) labels: LabelsId,
    pub(crate) ports: PortsId,
}

impl Belongs for ClassKey {
    fn owner(&self) -> Option<usize> {
        Some(self.namespace.index())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Class {
    pub(crate) members: SmallVec<[Member; 1]>,
    /// The groups that its pods belong to, sorted.
    pub(crate) groups: Few<GroupId>,
}

#[derive(Debug, Default)]
pub(crate) struct Namespace {
    /// None while there is no such object: then no namespace selector matches it.
    pub(crate) labels: Option<LabelsId>,
    pub(crate) denies_logged: bool,
    /// Sorted.
    pub(crate) classes: Few<ClassId>,
    pub(crate) scopes: Few<ScopeId>,
}

/// Where a selector of pods looks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Everywhere, also in namespaces that are not known (yet).
    All,
    /// In one namespace.
    One(NamespaceId),
    /// In namespaces with these labels.
    Selected(SelectorId),
}

impl Belongs for Scope {
    fn owner(&self) -> Option<usize> {
        match self {
            Self::One(namespace) => Some(namespace.index()),
            Self::All | Self::Selected(_) => None,
        }
    }
}

impl Belongs for (ScopeId, SelectorId) {
    fn owner(&self) -> Option<usize> {
        Some(self.0.index())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Sorted.
    pub(crate) classes: Few<ClassId>,
    /// Policies that select it as their subjects, by direction.
    pub(crate) isolating: [Option<Isolating>; 2],
    /// Terms of rules that mention it as a peer.
    pub(crate) terms: Few<TermId>,
    /// Subscribed nodes whose pods' rules use one of those terms, and how many of them.
    /// Sorted.
    pub(crate) nodes: SmallVec<[(NodeId, u32); 2]>,
}

/// What may have changed for a node in this batch; with repeats.
#[derive(Debug, Default)]
pub(crate) struct Dirt {
    /// Pods of its own that came, went or changed.
    pub(crate) pods: Vec<PodId>,
    /// Classes whose pods may be judged differently.
    pub(crate) classes: Vec<ClassId>,
    /// Classes whose pods may match something else.
    pub(crate) peers: Vec<ClassId>,
    /// Addresses that may match something else.
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Node {
    /// Sorted.
    pub(crate) pods: Few<PodId>,
    pub(crate) subscribed: bool,
    /// None if nothing changed.
    pub(crate) dirt: Option<Dirt>,
}

/// Pods, namespaces, nodes, and groups of pods.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) words: Words,
    pub(crate) pods: Table<PodId, PodKey, Option<Live>>,
    pub(crate) nodes: Table<NodeId, Arc<str>, Node>,
    pub(crate) classes: Table<ClassId, ClassKey, Class>,
    pub(crate) spread: Spread,
    pub(crate) groups: Table<GroupId, (ScopeId, SelectorId), Group>,
    pub(crate) owners: Owners,
    /// How many nodes are subscribed. While none is, nothing of before a batch is remembered.
    pub(crate) watching: usize,
    /// Pods that were touched in the batch; none if they were not there before.
    pub(crate) pods_before: HashMap<PodId, Option<Before>>,
    /// The classes of the pods that had an address before the batch, where its pods were touched.
    pub(crate) before: HashMap<IpAddr, Classes>,
    /// The groups that a class was in before the batch, where its namespace was touched.
    pub(crate) groups_before: HashMap<ClassId, Few<GroupId>>,
    /// Nodes with dirt.
    pub(crate) dirty: Vec<NodeId>,
    pub(crate) namespaces: Table<NamespaceId, Arc<str>, Namespace>,
    /// Namespaces by their labels.
    pub(crate) labelled: Files<(WordId, WordId), NamespaceId>,
    /// The namespaces in each, sorted.
    pub(crate) scopes: Table<ScopeId, Scope, Few<NamespaceId>>,
    /// Groups, by the scopes that have more than a few.
    pub(crate) filed: SelectorIndex<ScopeId, GroupId>,
    /// Scopes that are selectors of namespaces.
    pub(crate) selected: SelectorIndex<(), ScopeId>,
}

impl Cluster {
    pub(crate) fn node(&mut self, name: &Arc<str>) -> NodeId {
        self.nodes.find(name).unwrap_or_else(|| self.nodes.insert(name.clone(), Node::default()))
    }

    /// What selects a class's pods in a direction.
    pub(crate) fn isolating(&self, class: ClassId, direction: Direction) -> SmallVec<[Isolating; 8]> {
        let groups = self.classes[class].groups.iter();
        groups.filter_map(|&group| self.groups[group].isolating[direction as usize]).collect()
    }

    pub(crate) fn denies_logged(&self, class: ClassId) -> bool {
        self.namespaces[self.classes.key(class).namespace].denies_logged
    }

    /// The named ports of a class's pods.
    pub(crate) fn ports(&self, class: ClassId) -> &[NamedPort] {
        self.words.ports.key(self.classes.key(class).ports)
    }

    /// A pod that is there, as one of its class.
    pub(crate) fn member(&self, live: &Live) -> &Member {
        &self.classes[live.class].members[live.slot as usize]
    }

    /// The node's rules use one more, or one less, term of the group.
    pub(crate) fn route(&mut self, group: GroupId, node: NodeId, more: bool) {
        let nodes = &mut self.groups[group].nodes;
        match (nodes.binary_search_by_key(&node, |(other, _)| *other), more) {
            (Ok(at), true) => nodes[at].1 += 1,
            (Ok(at), false) if nodes[at].1 > 1 => nodes[at].1 -= 1,
            (Ok(at), false) => drop(nodes.remove(at)),
            (Err(at), true) => insert(nodes, at, (node, 1)),
            (Err(_), false) => unreachable!("a term goes from where it came to"),
        }
    }

    /// Whether the node's rules use a term of the group.
    pub(crate) fn is_routed(&self, group: GroupId, node: NodeId) -> bool {
        self.groups[group].nodes.binary_search_by_key(&node, |(other, _)| *other).is_ok()
    }

    pub(crate) fn mark_pod(&mut self, pod: PodId, node: Option<NodeId>) {
        if let Some(node) = node.filter(|&node| self.nodes[node].subscribed) {
            dirt(&mut self.nodes, &mut self.dirty, node).pods.push(pod);
        }
    }

    /// The group's subjects may be judged differently.
    pub(crate) fn mark_subjects(&mut self, group: GroupId) {
        if self.watching > 0 {
            for at in 0..self.groups[group].classes.len() {
                self.mark_class(self.groups[group].classes[at]);
            }
        }
    }

    pub(crate) fn mark_class(&mut self, class: ClassId) {
        let Self { classes, nodes, dirty, spread, .. } = self;
        let mut mark = |node| {
            if nodes[node].subscribed {
                dirt(nodes, dirty, node).classes.push(class);
            }
        };
        match spread.nodes(class) {
            Some(on) => on.iter().for_each(|&(node, _)| mark(node)),
            None => classes[class].members.iter().filter_map(|member| member.node).for_each(mark),
        }
    }

    /// A class came into a group or left it, because its namespace has other labels. Its pods stay
    /// the subjects of the same policies: those look into their own namespace whatever its labels.
    pub(crate) fn mark_member(&mut self, group: GroupId, class: ClassId) {
        for &(node, _) in &self.groups[group].nodes {
            dirt(&mut self.nodes, &mut self.dirty, node).peers.push(class);
        }
    }

    /// The batch is over: frees what nobody holds any more.
    pub(crate) fn collect(&mut self) {
        self.pods_before = HashMap::new();
        self.before = HashMap::new();
        self.groups_before = HashMap::new();
        for (group, (scope, selector), content) in self.groups.collect() {
            self.filed.remove(&self.words, scope, selector, group);
            self.scopes.release(scope);
            self.words.selectors.release(selector);
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
            self.words.labels.release(key.labels);
            self.words.ports.release(key.ports);
        }
        for (scope, key, namespaces) in self.scopes.collect() {
            for namespace in namespaces {
                self.namespaces[namespace].scopes.retain(|other| *other != scope);
            }
            match key {
                Scope::All => {}
                Scope::One(namespace) => self.namespaces.release(namespace),
                Scope::Selected(selector) => {
                    self.selected.remove(&self.words, (), selector, scope);
                    self.words.selectors.release(selector);
                }
            }
        }
        for (namespace, _, content) in self.namespaces.collect() {
            for scope in content.scopes {
                leave(&mut self.scopes[scope], namespace);
            }
        }
        self.pods.collect();
        self.nodes.collect();
        self.words.collect();
    }
}

/// What changed for a node, to be added to.
pub(crate) fn dirt<'a>(
    nodes: &'a mut Table<NodeId, Arc<str>, Node>,
    dirty: &mut Vec<NodeId>,
    node: NodeId,
) -> &'a mut Dirt {
    nodes[node].dirt.get_or_insert_with(|| {
        dirty.push(node);
        Dirt::default()
    })
}
