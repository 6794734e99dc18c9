//! Pods come, change and go. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::view;
use smallvec::SmallVec;

use crate::cluster::{
    Addresses, Before, Class, ClassKey, Classes, Cluster, Live, Member, PodKey, PodNamed, dirt,
};
use crate::object::{self, Key, NamedPort};
use crate::sorted::{Few, enter, insert, leave, sorted};
use crate::table::{ClassId, GroupId, Id, LabelsId, NodeId, PodId};

/// Lists of members up to this long have no room for more.
const FEW: usize = 8;

/// A pod as an event tells of it.
struct New {
    live: Live,
    node: Option<NodeId>,
    addresses: Addresses,
}

impl Cluster {
    pub(crate) fn put_pod(&mut self, pod: object::Pod) {
        let object::Pod { uid, key, labels, addresses, node, host_network, completed, config_hash, ports } =
            pod;
        if host_network || completed {
            return self.remove_pod(&key);
        }
        let labels = self.words.labels(&labels);
        let class = self.class(&key.namespace, labels, ports);
        let addresses = sorted(addresses.into_iter().map(view::canonical).collect()).into();
        let node = node.map(|name| self.node(&name));
        let namespace = self.classes.key(class).namespace;
        let found = self.pods.find(&PodNamed(namespace, &key.name));
        let id = found.unwrap_or_else(|| self.pods.insert(PodKey { namespace, name: key.name }, None));
        let slot = self.pods[id].as_ref().map_or(0, |live| live.slot);
        let new =
            New { live: Live { uid, class, slot, config_hash: config_hash.map(Box::new) }, node, addresses };
        if !self.is_so(id, &new) {
            self.replace(id, Some(new));
        }
    }

    fn is_so(&self, id: PodId, new: &New) -> bool {
        self.pods[id].as_ref().is_some_and(|live| {
            let Member { pod: _, node, addresses } = self.member(live);
            (live, node, addresses) == (&new.live, &new.node, &new.addresses)
        })
    }

    pub(crate) fn remove_pod(&mut self, key: &Key) {
        let Some(namespace) = self.namespaces.find(&key.namespace) else { return };
        if let Some(id) = self.pods.find(&PodNamed(namespace, &key.name)) {
            self.replace(id, None);
        }
    }

    fn replace(&mut self, id: PodId, new: Option<New>) {
        let old = self.pods[id].clone().map(|live| {
            let Member { node, addresses, .. } = self.member(&live).clone();
            New { live, node, addresses }
        });
        if self.watching > 0 {
            for pod in [&old, &new].into_iter().flatten() {
                self.mark_pod(id, pod.node);
                for &address in &*pod.addresses {
                    let classes = self.classes_of(address);
                    self.before.entry(address).or_insert(classes);
                }
            }
            self.mark_moved(old.as_ref(), new.as_ref());
        }
        if let Some(old) = &old {
            self.unlink(id, old);
        }
        if let Some(new) = new {
            self.link(id, new);
        }
        if self.watching > 0 {
            let before = old.map(|New { live, addresses, .. }| Before { live, addresses });
            self.pods_before.entry(id).or_insert(before);
        }
    }

    /// The classes of the pods that have an address.
    pub(crate) fn classes_of(&self, address: IpAddr) -> Classes {
        let owners = self.owners.of(address).filter_map(|owner| self.pods[owner].as_ref());
        owners.map(|live| live.class).collect()
    }

    /// The classes of the pods that had an address before the batch.
    pub(crate) fn classes_before(&self, address: IpAddr) -> Classes {
        self.before.get(&address).cloned().unwrap_or_else(|| self.classes_of(address))
    }

    /// Whether one pod has the address, and had it before the batch.
    pub(crate) fn is_only_its_pods(&self, address: IpAddr) -> bool {
        !self.owners.is_shared(address) && !self.before.contains_key(&address)
    }

    /// The groups that a class belonged to before the batch.
    pub(crate) fn groups_before(&self, class: ClassId) -> &[GroupId] {
        self.groups_before.get(&class).unwrap_or(&self.classes[class].groups)
    }

    /// Marks the addresses of a pod that changes on the nodes whose rules may see the difference.
    fn mark_moved(&mut self, old: Option<&New>, new: Option<&New>) {
        let mut concerned = vec![];
        match (old, new) {
            // What it still belongs to sees no difference.
            (Some(old), Some(new)) if self.differ_by_groups(old, new) => {
                let [old, new] = [old, new].map(|pod| &self.classes[pod.live.class].groups);
                concerned.extend(old.iter().filter(|group| new.binary_search(group).is_err()));
                concerned.extend(new.iter().filter(|group| old.binary_search(group).is_err()));
            }
            // Also by what it belonged to before the batch: it may not be of its class any more when that is looked at.
            _ => {
                for class in [old, new].into_iter().flatten().map(|pod| pod.live.class) {
                    concerned.extend(&self.classes[class].groups);
                    concerned.extend(self.groups_before.get(&class).into_iter().flatten());
                }
            }
        }
        for group in sorted(concerned) {
            for &(node, _) in &self.groups[group].nodes {
                let marked = &mut dirt(&mut self.nodes, &mut self.dirty, node).addresses;
                [old, new].into_iter().flatten().for_each(|pod| marked.extend(&*pod.addresses));
            }
        }
    }

    /// Whether the pod has the same addresses and named ports, and its classes are in the groups of before the batch.
    fn differ_by_groups(&self, old: &New, new: &New) -> bool {
        let [was, is] = [old, new].map(|pod| self.classes.key(pod.live.class));
        let changed = |pod: &New| self.groups_before.contains_key(&pod.live.class);
        old.addresses == new.addresses && was.ports == is.ports && !changed(old) && !changed(new)
    }

    fn link(&mut self, id: PodId, New { mut live, node, addresses }: New) {
        self.pods.hold(id);
        self.classes.hold(live.class);
        for &address in &*addresses {
            self.owners.add(address, id);
        }
        if let Some(node) = node {
            self.nodes.hold(node);
            enter(&mut self.nodes[node].pods, id);
        }
        let members = &mut self.classes[live.class].members;
        live.slot = members.len() as u32;
        insert(members, live.slot as usize, Member { pod: id, node, addresses });
        self.spread.come(live.class, members);
        self.pods[id] = Some(live);
    }

    fn unlink(&mut self, id: PodId, New { live, node, addresses }: &New) {
        let members = &mut self.classes[live.class].members;
        members.swap_remove(live.slot as usize);
        // Most classes have few pods: where one of them came and went, each would keep room for it.
        if members.len() <= FEW {
            members.shrink_to_fit();
        }
        self.spread.leave(live.class, *node, members.len());
        self.pods[id] = None;
        let moved = members.get(live.slot as usize).map(|member| member.pod);
        if let Some(moved) = moved.and_then(|moved| self.pods[moved].as_mut()) {
            moved.slot = live.slot;
        }
        for &address in &**addresses {
            self.owners.remove(address, id);
        }
        if let Some(node) = *node {
            leave(&mut self.nodes[node].pods, id);
            self.nodes.release(node);
        }
        self.classes.release(live.class);
        self.pods.release(id);
    }

    fn class(&mut self, namespace: &Arc<str>, labels: LabelsId, ports: Vec<NamedPort>) -> ClassId {
        let namespace = self.namespace(namespace);
        let key = ClassKey { namespace, labels, ports: self.words.ports(ports) };
        if let Some(class) = self.classes.find(&key) {
            return class;
        }
        let groups = self.groups_of(key);
        self.namespaces.hold(namespace);
        self.words.labels.hold(key.labels);
        self.words.ports.hold(key.ports);
        let class = self.classes.insert(key, Class { members: SmallVec::new(), groups: groups.clone() });
        enter(&mut self.namespaces[namespace].classes, class);
        for group in groups {
            enter(&mut self.groups[group].classes, class);
        }
        class
    }

    pub(crate) fn groups_of(&self, class: ClassKey) -> Few<GroupId> {
        let (mut groups, labels) = (Few::new(), &**self.words.labels.key(class.labels));
        let mut try_one = |group| {
            if self.words.selects(self.groups.key(group).1, labels) {
                groups.push(group);
            }
        };
        for &scope in &self.namespaces[class.namespace].scopes {
            match self.groups.few(scope.index()) {
                Some(few) => few.for_each(&mut try_one),
                None => self.filed.try_each(scope, labels, &mut try_one),
            }
        }
        groups.sort_unstable();
        groups.shrink_to_fit();
        groups
    }
}
