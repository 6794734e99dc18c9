//! Pods come, change and go. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::view;

use crate::cluster::{Class, ClassKey, Cluster, Live, Pod, enter, mark, sorted};
use crate::object::{self, Key, Labels, NamedPort};
use crate::table::{ClassId, GroupId, PodId};

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
        let id = self.pods.find(&key).unwrap_or_else(|| {
            let namespace = self.namespaces.key(self.classes.key(class).namespace).clone();
            self.pods.insert(Key { namespace, ..key }, Pod::default())
        });
        if self.pods[id].live.as_deref() != Some(&live) {
            self.replace(id, Some(Arc::new(live)));
        }
    }

    pub(crate) fn remove_pod(&mut self, key: &Key) {
        if let Some(id) = self.pods.find(key) {
            self.replace(id, None);
        }
    }

    fn replace(&mut self, id: PodId, new: Option<Arc<Live>>) {
        let old = self.pods[id].live.clone();
        for live in [&old, &new].into_iter().flatten() {
            self.mark_pod(id, live.node);
            for &address in &live.addresses {
                let classes = self.classes_of(address);
                self.before.entry(address).or_insert(classes);
            }
        }
        self.mark_moved(old.as_deref(), new.as_deref());
        if let Some(old) = old {
            self.unlink(id, &old);
        }
        if let Some(new) = new {
            self.link(id, new);
        }
    }

    /// The classes of the pods that have an address.
    pub(crate) fn classes_of(&self, address: IpAddr) -> Vec<ClassId> {
        let owners = self.owners.get(&address).into_iter().flatten();
        owners.filter_map(|&owner| self.pods[owner].live.as_ref()).map(|live| live.class).collect()
    }

    /// The classes of the pods that had an address before the batch.
    pub(crate) fn classes_before(&self, address: IpAddr) -> Vec<ClassId> {
        self.before.get(&address).cloned().unwrap_or_else(|| self.classes_of(address))
    }

    /// Whether one pod has the address, and had it before the batch.
    pub(crate) fn is_only_its_pods(&self, address: IpAddr) -> bool {
        !self.shared.contains(&address) && !self.before.contains_key(&address)
    }

    /// The groups that a class belonged to before the batch.
    pub(crate) fn groups_before(&self, class: ClassId) -> &[GroupId] {
        self.groups_before.get(&class).unwrap_or(&self.classes[class].groups)
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

    fn link(&mut self, id: PodId, live: Arc<Live>) {
        self.pods.hold(id);
        self.classes.hold(live.class);
        let pods = &mut self.classes[live.class].pods;
        let slot = pods.len();
        pods.push(id);
        for &address in &live.addresses {
            self.owners.entry(address).or_default().push(id);
            if self.owners[&address].len() > 1 {
                self.shared.insert(address);
            }
        }
        if let Some(node) = live.node {
            self.nodes.hold(node);
            self.nodes[node].pods.insert(id);
        }
        self.pods[id] = Pod { live: Some(live), slot };
    }

    fn unlink(&mut self, id: PodId, live: &Live) {
        let Pod { slot, .. } = std::mem::take(&mut self.pods[id]);
        let pods = &mut self.classes[live.class].pods;
        pods.swap_remove(slot);
        if let Some(&moved) = pods.get(slot) {
            self.pods[moved].slot = slot;
        }
        for address in &live.addresses {
            if let Some(owners) = self.owners.get_mut(address) {
                owners.retain(|owner| *owner != id);
                if owners.len() < 2 {
                    self.shared.remove(address);
                }
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

    pub(crate) fn groups_of(&self, class: &ClassKey) -> Vec<GroupId> {
        let mut groups = vec![];
        for &scope in &self.namespaces[class.namespace].scopes {
            self.scopes[scope].groups.selecting(&class.labels, &mut groups);
        }
        groups.sort_unstable();
        groups
    }
}
