//! Who is where, and which groups of pods they belong to. Pure.
//!
//! Every change marks what it concerns on the nodes that must hear of it (their own pods, and remote
//! addresses in groups that they use). What it means is worked out later, from the state at the end
//! of the batch; so the order of events cannot matter.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{Direction, PodUid, view};
use hashbrown::{HashMap, HashSet};

use crate::object::{self, Key, Labels, NAMESPACE_NAME_LABEL, NamedPort, Selector};
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
    pub(crate) live: Option<Live>,
    /// Where it is in its class's `pods`.
    slot: usize,
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
    classes: Vec<ClassId>,
    scopes: Vec<ScopeId>,
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
struct ScopeState {
    groups: SelectorIndex<GroupId>,
    /// Sorted.
    namespaces: Vec<NamespaceId>,
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
    /// Nodes with dirt.
    pub(crate) dirty: BTreeSet<NodeId>,
    pub(crate) namespaces: Table<NamespaceId, Arc<str>, Namespace>,
    scopes: Table<ScopeId, Scope, ScopeState>,
    /// Scopes that are selectors of namespaces.
    selected: SelectorIndex<ScopeId>,
}

impl Cluster {
    pub(crate) fn put_pod(&mut self, pod: object::Pod) {
        let object::Pod { uid, key, labels, addresses, node, host_network, completed, config_hash, ports } =
            pod;
        if host_network || completed {
            return self.remove_pod(&key);
        }
        let class = self.class(&key.namespace, labels, sorted(ports).into());
        let addresses = sorted(addresses.into_iter().map(view::canonical).collect()).into();
        let node = node.map(|name| self.node(&name));
        let live = Live { uid, class, addresses, node, config_hash };
        let id = self.pods.find(&key).unwrap_or_else(|| self.pods.insert(key, Pod::default()));
        if self.pods[id].live.as_ref() != Some(&live) {
            self.replace(id, Some(live));
        }
    }

    pub(crate) fn remove_pod(&mut self, key: &Key) {
        if let Some(id) = self.pods.find(key) {
            self.replace(id, None);
        }
    }

    fn replace(&mut self, id: PodId, new: Option<Live>) {
        let old = self.pods[id].live.take();
        for live in [old.as_ref(), new.as_ref()].into_iter().flatten() {
            self.mark_pod(id, live.node);
        }
        self.mark_moved(old.as_ref(), new.as_ref());
        if let Some(old) = old {
            self.unlink(id, &old);
        }
        if let Some(new) = new {
            self.link(id, new);
        }
    }

    /// Marks the addresses of a pod that changes on the nodes whose rules may see the difference.
    fn mark_moved(&mut self, old: Option<&Live>, new: Option<&Live>) {
        let mut concerned = BTreeSet::new();
        match (old, new) {
            // With the same addresses and named ports, what it still belongs to sees no difference.
            (Some(old), Some(new)) if old.addresses == new.addresses && self.same_ports(old, new) => {
                let [old, new] = [old, new].map(|live| &self.classes[live.class].groups);
                concerned.extend(old.iter().filter(|group| !new.contains(group)));
                concerned.extend(new.iter().filter(|group| !old.contains(group)));
            }
            _ => {
                let both = [old, new].into_iter().flatten();
                concerned.extend(both.flat_map(|live| &self.classes[live.class].groups));
            }
        }
        for live in [old, new].into_iter().flatten() {
            for &group in &concerned {
                mark(&self.groups[group], &mut self.nodes, &mut self.dirty, &live.addresses);
            }
        }
    }

    fn same_ports(&self, old: &Live, new: &Live) -> bool {
        self.classes.key(old.class).ports == self.classes.key(new.class).ports
    }

    fn link(&mut self, id: PodId, live: Live) {
        self.pods.hold(id);
        self.classes.hold(live.class);
        let pods = &mut self.classes[live.class].pods;
        let slot = pods.len();
        pods.push(id);
        for &address in &live.addresses {
            self.owners.entry(address).or_default().push(id);
        }
        if let Some(node) = live.node {
            self.nodes.hold(node);
            self.nodes[node].pods.insert(id);
        }
        self.pods[id] = Pod { live: Some(live), slot };
    }

    fn unlink(&mut self, id: PodId, live: &Live) {
        let slot = self.pods[id].slot;
        let pods = &mut self.classes[live.class].pods;
        pods.swap_remove(slot);
        if let Some(&moved) = pods.get(slot) {
            self.pods[moved].slot = slot;
        }
        for address in &live.addresses {
            if let Some(owners) = self.owners.get_mut(address) {
                owners.retain(|owner| *owner != id);
                if owners.is_empty() {
                    self.owners.remove(address);
                }
            }
        }
        if let Some(node) = live.node {
            self.nodes[node].pods.remove(&id);
            self.nodes.release(node);
        }
        self.classes.release(live.class);
        self.pods.release(id);
    }

    fn class(&mut self, namespace: &Arc<str>, labels: Labels, ports: Box<[NamedPort]>) -> ClassId {
        let namespace = self.namespace(namespace);
        let key = ClassKey { namespace, labels, ports };
        if let Some(class) = self.classes.find(&key) {
            return class;
        }
        let groups = self.groups_of(&key);
        self.namespaces.hold(namespace);
        let class = self.classes.insert(key, Class { pods: vec![], groups: groups.clone() });
        enter(&mut self.namespaces[namespace].classes, class);
        for group in groups {
            enter(&mut self.groups[group].classes, class);
        }
        class
    }

    fn groups_of(&self, class: &ClassKey) -> Vec<GroupId> {
        let mut groups = vec![];
        for &scope in &self.namespaces[class.namespace].scopes {
            self.scopes[scope].groups.selecting(&class.labels, &mut groups);
        }
        groups.sort_unstable();
        groups
    }

    pub(crate) fn node(&mut self, name: &Arc<str>) -> NodeId {
        self.nodes.find(name).unwrap_or_else(|| self.nodes.insert(name.clone(), Node::default()))
    }

    fn namespace(&mut self, name: &Arc<str>) -> NamespaceId {
        if let Some(namespace) = self.namespaces.find(name) {
            return namespace;
        }
        let namespace = self.namespaces.insert(name.clone(), Namespace::default());
        let scopes: Vec<_> = [Scope::All, Scope::One(name.clone())]
            .iter()
            .filter_map(|scope| self.scopes.find(scope))
            .collect();
        for &scope in &scopes {
            enter(&mut self.scopes[scope].namespaces, namespace);
        }
        self.namespaces[namespace].scopes = scopes;
        namespace
    }

    pub(crate) fn put_namespace(&mut self, namespace: object::Namespace) {
        let object::Namespace { name, labels, denies_logged } = namespace;
        let mut labels = (*labels).clone();
        labels.insert(NAMESPACE_NAME_LABEL.into(), name.clone());
        self.change_namespace(&name, Some(Arc::new(labels)), denies_logged);
    }

    pub(crate) fn remove_namespace(&mut self, name: &Arc<str>) {
        if self.namespaces.find(name).is_some() {
            self.change_namespace(name, None, false);
        }
    }

    fn change_namespace(&mut self, name: &Arc<str>, labels: Option<Labels>, denies_logged: bool) {
        let id = self.namespace(name);
        match (self.namespaces[id].labels.is_some(), labels.is_some()) {
            (false, true) => self.namespaces.hold(id),
            (true, false) => self.namespaces.release(id),
            _ => {}
        }
        if self.namespaces[id].denies_logged != denies_logged {
            self.namespaces[id].denies_logged = denies_logged;
            for class in self.namespaces[id].classes.clone() {
                self.mark_class(class);
            }
        }
        if self.namespaces[id].labels == labels {
            return;
        }
        let mut selecting = vec![];
        if let Some(labels) = &labels {
            self.selected.selecting(labels, &mut selecting);
        }
        self.namespaces[id].labels = labels;
        self.change_scopes(id, selecting);
    }

    /// The namespace is now in these selected scopes, and no longer in others.
    fn change_scopes(&mut self, id: NamespaceId, selecting: Vec<ScopeId>) {
        let is_selected =
            |scopes: &Table<ScopeId, Scope, _>, scope| matches!(scopes.key(scope), Scope::Selected(_));
        let (before, mut now): (Vec<_>, Vec<_>) =
            self.namespaces[id].scopes.iter().copied().partition(|&scope| is_selected(&self.scopes, scope));
        for scope in before.iter().filter(|scope| !selecting.contains(scope)) {
            leave(&mut self.scopes[*scope].namespaces, id);
        }
        for &scope in selecting.iter().filter(|scope| !before.contains(scope)) {
            enter(&mut self.scopes[scope].namespaces, id);
        }
        now.extend(selecting);
        self.namespaces[id].scopes = now;
        for class in self.namespaces[id].classes.clone() {
            self.reclassify(class);
        }
    }

    /// Works out anew which groups a class belongs to, and marks the difference.
    fn reclassify(&mut self, class: ClassId) {
        let now = self.groups_of(self.classes.key(class));
        let before = std::mem::replace(&mut self.classes[class].groups, now.clone());
        for group in before.iter().filter(|group| !now.contains(group)) {
            leave(&mut self.groups[*group].classes, class);
            self.mark_member(*group, class);
        }
        for group in now.iter().filter(|group| !before.contains(group)) {
            enter(&mut self.groups[*group].classes, class);
            self.mark_member(*group, class);
        }
    }

    /// The group of these pods; it is empty of meaning until somebody holds it.
    pub(crate) fn group(&mut self, scope: Scope, selector: &Selector) -> GroupId {
        let scope = self.scope(scope);
        let key = (scope, selector.canonical());
        if let Some(group) = self.groups.find(&key) {
            return group;
        }
        let selector = key.1.clone();
        let group = self.groups.insert(key, Group::default());
        self.scopes.hold(scope);
        self.scopes[scope].groups.insert(group, &selector);
        for namespace in &self.scopes[scope].namespaces {
            for &class in &self.namespaces[*namespace].classes {
                if selector.selects(&self.classes.key(class).labels) {
                    enter(&mut self.classes[class].groups, group);
                    enter(&mut self.groups[group].classes, class);
                }
            }
        }
        group
    }

    /// What a group is, for people and digests.
    pub(crate) fn group_content(&self, group: GroupId) -> (&Scope, &Selector) {
        let (scope, selector) = self.groups.key(group);
        (self.scopes.key(*scope), selector)
    }

    fn scope(&mut self, key: Scope) -> ScopeId {
        if let Some(scope) = self.scopes.find(&key) {
            return scope;
        }
        let scope = self.scopes.insert(key.clone(), ScopeState::default());
        let holds: Vec<NamespaceId> = match &key {
            Scope::All => self.namespaces.ids().collect(),
            Scope::One(name) => self.namespaces.find(name).into_iter().collect(),
            Scope::Selected(selector) => {
                self.selected.insert(scope, selector);
                let selects = |id: &NamespaceId| {
                    self.namespaces[*id].labels.as_ref().is_some_and(|labels| selector.selects(labels))
                };
                self.namespaces.ids().filter(selects).collect()
            }
        };
        for &namespace in &holds {
            self.namespaces[namespace].scopes.push(scope);
        }
        self.scopes[scope].namespaces = sorted(holds);
        scope
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

    /// The object behind one of a node's own pods, as views hold it, without its sets.
    pub(crate) fn view_of(&self, id: PodId, live: &Live) -> view::Pod {
        let Key { namespace, name } = self.pods.key(id).clone();
        view::Pod {
            namespace,
            name,
            addresses: live.addresses.to_vec(),
            config_hash: live.config_hash.clone(),
            ingress: None,
            egress: None,
            denies_logged: self.namespaces[self.classes.key(live.class).namespace].denies_logged,
        }
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

    fn mark_pod(&mut self, pod: PodId, node: Option<NodeId>) {
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

    fn mark_class(&mut self, class: ClassId) {
        for at in 0..self.classes[class].pods.len() {
            let pod = self.classes[class].pods[at];
            let node = self.pods[pod].live.as_ref().and_then(|live| live.node);
            self.mark_pod(pod, node);
        }
    }

    /// A class came into a group or left it, because its namespace has other labels. Its pods stay
    /// the subjects of the same policies: those look into their own namespace whatever its labels.
    fn mark_member(&mut self, group: GroupId, class: ClassId) {
        for pod in &self.classes[class].pods {
            if let Some(live) = &self.pods[*pod].live {
                mark(&self.groups[group], &mut self.nodes, &mut self.dirty, &live.addresses);
            }
        }
    }

    /// Frees what nobody holds any more.
    pub(crate) fn collect(&mut self) {
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

fn mark(
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
fn enter<T: Ord>(sorted: &mut Vec<T>, thing: T) {
    if let Err(at) = sorted.binary_search(&thing) {
        sorted.insert(at, thing);
    }
}

fn leave<T: Ord>(sorted: &mut Vec<T>, thing: T) {
    if let Ok(at) = sorted.binary_search(&thing) {
        sorted.remove(at);
    }
}

fn sorted<T: Ord>(mut things: Vec<T>) -> Vec<T> {
    things.sort_unstable();
    things.dedup();
    things
}
