//! Namespaces, and the groups that look for pods in them. Pure.

use std::sync::Arc;

use crate::cluster::{Cluster, Group, Namespace, Scope};
use crate::object::{self, NAMESPACE_NAME_LABEL, Selector};
use crate::selector::smallest;
use crate::sorted::{Few, enter, insert, leave, sorted};
use crate::table::{ClassId, GroupId, Id, LabelsId, NamespaceId, ScopeId, SelectorId, Table, WordId};

impl Cluster {
    pub(crate) fn namespace(&mut self, name: &Arc<str>) -> NamespaceId {
        if let Some(namespace) = self.namespaces.find(name) {
            return namespace;
        }
        let namespace = self.namespaces.insert(name.clone(), Namespace::default());
        if let Some(all) = self.scopes.find(&Scope::All) {
            enter(&mut self.scopes[all], namespace);
            self.namespaces[namespace].scopes.push(all);
        }
        namespace
    }

    pub(crate) fn put_namespace(&mut self, namespace: object::Namespace) {
        let object::Namespace { name, labels, denies_logged } = namespace;
        let mut labels = (*labels).clone();
        labels.insert(NAMESPACE_NAME_LABEL.into(), name.clone());
        let labels = self.words.labels(&Arc::new(labels));
        self.change_namespace(&name, Some(labels), denies_logged);
    }

    pub(crate) fn remove_namespace(&mut self, name: &Arc<str>) {
        if self.namespaces.find(name).is_some() {
            self.change_namespace(name, None, false);
        }
    }

    fn change_namespace(&mut self, name: &Arc<str>, labels: Option<LabelsId>, denies_logged: bool) {
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
        if let Some(before) = self.namespaces[id].labels.take() {
            for &label in self.words.labels.key(before) {
                self.labelled.remove(label, id);
            }
            self.words.labels.release(before);
        }
        let mut selecting = vec![];
        if let Some(labels) = labels {
            self.words.labels.hold(labels);
            let list = self.words.labels.key(labels);
            list.iter().for_each(|&label| self.labelled.insert(label, id));
            self.selected.try_each((), list, |scope| {
                if self.is_selected_by(list, scope) {
                    selecting.push(scope);
                }
            });
        }
        self.namespaces[id].labels = labels;
        self.change_scopes(id, selecting);
    }

    fn is_selected_by(&self, labels: &[(WordId, WordId)], scope: ScopeId) -> bool {
        match *self.scopes.key(scope) {
            Scope::Selected(selector) => self.words.selects(selector, labels),
            Scope::All | Scope::One(_) => false,
        }
    }

    /// The namespace is now in these selected scopes, and no longer in others.
    fn change_scopes(&mut self, id: NamespaceId, selecting: Vec<ScopeId>) {
        let is_selected =
            |scopes: &Table<ScopeId, Scope, _>, scope| matches!(scopes.key(scope), Scope::Selected(_));
        let (before, mut now): (Few<_>, Few<_>) =
            self.namespaces[id].scopes.iter().copied().partition(|&scope| is_selected(&self.scopes, scope));
        for scope in before.iter().filter(|scope| !selecting.contains(scope)) {
            leave(&mut self.scopes[*scope], id);
        }
        for &scope in selecting.iter().filter(|scope| !before.contains(scope)) {
            enter(&mut self.scopes[scope], id);
        }
        now.extend(selecting);
        self.namespaces[id].scopes = now;
        for class in self.namespaces[id].classes.clone() {
            self.reclassify(class);
        }
    }

    /// Works out anew which groups a class belongs to, and marks the difference.
    fn reclassify(&mut self, class: ClassId) {
        let now = self.groups_of(*self.classes.key(class));
        let before = std::mem::replace(&mut self.classes[class].groups, now.clone());
        if before == now {
            return;
        }
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
        let key = (self.scope(scope), self.words.selector(selector));
        if let Some(group) = self.groups.find(&key) {
            return group;
        }
        let (scope, selector) = key;
        let others: Option<Few<_>> = self.groups.few(scope.index()).map(Iterator::collect);
        let group = self.groups.insert(key, Group::default());
        self.scopes.hold(scope);
        self.words.selectors.hold(selector);
        if self.groups.few(scope.index()).is_none() {
            for group in others.into_iter().flatten().chain([group]) {
                self.filed.insert(&self.words, scope, self.groups.key(group).1, group);
            }
        }
        for namespace in &self.scopes[scope] {
            for &class in &self.namespaces[*namespace].classes {
                let labels = self.words.labels.key(self.classes.key(class).labels);
                if self.words.selects(selector, labels) {
                    enter(&mut self.classes[class].groups, group);
                    enter(&mut self.groups[group].classes, class);
                }
            }
        }
        group
    }

    /// The scope of namespaces with these labels.
    pub(crate) fn selected(&mut self, selector: &Selector) -> Scope {
        Scope::Selected(self.words.selector(selector))
    }

    /// What a group is, for digests.
    pub(crate) fn group_content(&self, group: GroupId) -> (Scope, SelectorId) {
        let (scope, selector) = *self.groups.key(group);
        (*self.scopes.key(scope), selector)
    }

    fn scope(&mut self, key: Scope) -> ScopeId {
        if let Some(scope) = self.scopes.find(&key) {
            return scope;
        }
        let scope = self.scopes.insert(key, Few::new());
        let holds: Vec<NamespaceId> = match key {
            Scope::All => self.namespaces.ids().collect(),
            Scope::One(namespace) => {
                self.namespaces.hold(namespace);
                vec![namespace]
            }
            Scope::Selected(selector) => {
                self.words.selectors.hold(selector);
                self.selected.insert(&self.words, (), selector, scope);
                self.selected_by(selector)
            }
        };
        for &namespace in &holds {
            let scopes = &mut self.namespaces[namespace].scopes;
            insert(scopes, scopes.len(), scope);
        }
        self.scopes[scope] = sorted(holds).into();
        scope
    }

    fn selected_by(&self, selector: SelectorId) -> Vec<NamespaceId> {
        let selects = |id: &NamespaceId| {
            let labels = self.namespaces[*id].labels;
            labels.is_some_and(|labels| self.words.selects(selector, self.words.labels.key(labels)))
        };
        match smallest(self.words.selectors.key(selector)) {
            Some((key, values)) => {
                let any = values.iter().flat_map(|&value| self.labelled.get((key, value)));
                any.copied().filter(selects).collect()
            }
            None => self.namespaces.ids().filter(selects).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{pod, selector};

    /// Whether each class is in just the groups of its scopes that select it.
    fn classes_are_in_their_groups(cluster: &Cluster) -> bool {
        cluster.classes.ids().all(|class| {
            let key = cluster.classes.key(class);
            let (scopes, labels) =
                (&cluster.namespaces[key.namespace].scopes, cluster.words.labels.key(key.labels));
            let selects = |group: &GroupId| {
                let (scope, selector) = cluster.groups.key(*group);
                scopes.contains(scope) && cluster.words.selects(*selector, labels)
            };
            let groups: Vec<_> = cluster.groups.ids().filter(selects).collect();
            let back = groups.iter().all(|&group| cluster.groups[group].classes.contains(&class));
            back && sorted(groups) == cluster.classes[class].groups.to_vec()
        })
    }

    #[test]
    fn classes_find_their_groups_whether_a_scope_has_few_or_many() {
        let mut cluster = Cluster::default();
        let namespace = cluster.namespace(&"n".into());
        let mut groups = vec![];
        let come = |cluster: &mut Cluster, n: usize| {
            cluster.put_pod(pod(&format!("n/pod-{n}"), "north", &format!("l{}=v{n}", n % 5), &[]));
        };
        for n in 0..20 {
            come(&mut cluster, 2 * n);
            let text = [format!("l{}", n % 5), format!("l{}=v{}", n % 5, n), format!("!l{n}")][n % 3].clone();
            let group = cluster.group(Scope::One(namespace), &selector(&text));
            cluster.groups.hold(group);
            groups.push(group);
            come(&mut cluster, 2 * n + 1);
            assert!(classes_are_in_their_groups(&cluster), "with {} groups", groups.len());
        }
        assert_eq!(sorted(groups.clone()).len(), cluster.groups.len());
        assert!(cluster.groups.len() > 8, "more than are looked at one by one");
        while let Some(group) = groups.pop() {
            cluster.groups.release(group);
            cluster.collect();
            come(&mut cluster, 40 + groups.len());
            assert!(classes_are_in_their_groups(&cluster), "with {} groups", groups.len());
        }
    }
}
