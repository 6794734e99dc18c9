//! Namespaces, and the groups that look for pods in them. Pure.

use std::sync::Arc;

use crate::cluster::{Cluster, Group, Namespace, Scope, ScopeState, enter, leave, sorted};
use crate::object::{self, Labels, NAMESPACE_NAME_LABEL, Selector};
use crate::table::{ClassId, GroupId, NamespaceId, ScopeId, Table};

impl Cluster {
    pub(crate) fn namespace(&mut self, name: &Arc<str>) -> NamespaceId {
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
        self.groups_before.entry(class).or_insert_with(|| before.clone());
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
}
