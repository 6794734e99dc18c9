//! The engine: events in, patches out. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use durward_proto::{Direction, Logging, NodeView, Patch};
use hashbrown::HashMap;

use crate::alike::Alike;
use crate::cluster::{Cluster, Dirt, dirt};
use crate::limit::LeftOut;
use crate::object::{Event, Key, Policy};
use crate::own::Pairs;
use crate::rules::{Enforced, Rules};
use crate::service::{Changes, Detail, Services};
use crate::set::Sets;
use crate::sorted::sorted;
use crate::table::{BodyId, GroupId, NodeId};
use crate::tally::Uses;
use crate::view::{Refresh, View};
use crate::{Fault, Limits};

/// What a batch of events changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What changes in the views of subscribed nodes. Nodes without a change are not in it.
    pub patches: HashMap<Arc<str>, Patch>,
    /// What is to be said of objects.
    pub news: News,
}

/// What is new of what is wrong with objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Policies that now fail closed for a new reason, and those that no longer do (none), because
    /// they were mended or are gone.
    pub faults: BTreeMap<Key, Option<Fault>>,
    /// Namespaces that now have more frontends of Services than there is room for, and those that no longer do
    /// (none).
    pub left_out: BTreeMap<Arc<str>, Option<LeftOut>>,
}

/// How much there is of everything: with no object and no subscription, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Policies.
    pub policies: usize,
    /// Pods that policies see.
    pub pods: usize,
    /// Namespaces that are there or that a pod is in.
    pub namespaces: usize,
    /// Nodes that have pods or a subscription.
    pub nodes: usize,
    /// Classes of pods that no selector and no named port can tell apart.
    pub classes: usize,
    /// Groups of pods that policies select, or that their rules mention.
    pub groups: usize,
    /// Policy sets in use.
    pub sets: usize,
    /// Atoms in use.
    pub atoms: usize,
    /// Rows in use, those of all nodes that say the same of the same counted once.
    pub rows: usize,
    /// Attributions in use.
    pub attributions: usize,
    /// Addresses and ports at which Services are called.
    pub frontends: usize,
    /// Those of them for which nodes have no room.
    pub frontends_left_out: usize,
    /// EndpointSlices.
    pub slices: usize,
    /// Namespaces that nodes close, those of each node counted.
    pub closed: usize,
}

/// All objects of the cluster, and the views of the nodes that somebody subscribed to.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    logging: Logging,
    /// What outcomes have said of policies.
    reported: HashMap<Key, Fault>,
    cluster: Cluster,
    rules: Rules,
    sets: Sets,
    services: Services,
    views: HashMap<NodeId, View>,
    /// Sets of classes, worked out once in a batch, or for several nodes that subscribe.
    pairs: Pairs,
    /// Addresses of nodes whose rules mention the same, likewise.
    alike: Alike,
    /// Policies that isolate groups from now on, or no longer, in the order of events. Both are held.
    edits: Vec<(GroupId, Direction, BodyId, bool)>,
    /// How many events there were that can change for whom a node has room.
    generation: u64,
    /// The node that `reconsider` tried last.
    reconsidered: Option<NodeId>,
}

impl Engine {
    /// An engine that knows of no object.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            logging: Logging::default(),
            reported: HashMap::new(),
            cluster: Cluster::default(),
            rules: Rules::new(&limits),
            sets: Sets::new(limits),
            services: Services::new(limits.frontends_per_node),
            views: HashMap::new(),
            pairs: Pairs::default(),
            alike: Alike::default(),
            edits: vec![],
            generation: 0,
            reconsidered: None,
        }
    }

    /// Takes what happened, all at once: no state between the events is ever seen in a view.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Outcome {
        let mut patches = HashMap::new();
        let news = self.apply_each(events, |node, patch| drop(patches.insert(node.clone(), patch)));
        Outcome { patches, news }
    }

    /// [`Engine::apply`] where the patches of all nodes together may be too many to be held: each is told as it is
    /// worked out, and each node's once.
    pub fn apply_each(
        &mut self,
        events: impl IntoIterator<Item = Event>,
        tell: impl FnMut(&Arc<str>, Patch),
    ) -> News {
        let logging = self.logging;
        // A policy may be in it twice; it is reported once.
        let mut policies = vec![];
        for (number, event) in (1..).zip(events) {
            self.take(event, &mut policies);
            // Where nobody is told anything, nothing of before the batch need stay.
            if self.views.is_empty() && number % self.limits.events_per_piece == 0 {
                self.collect();
            }
        }
        self.settle_subjects();
        let left_out = self.publish_dirty((self.logging != logging).then_some(self.logging), tell);
        News { faults: self.conclude(policies), left_out }
    }

    /// A node that cannot hold what all of its pods' policies need closes the pods of those namespaces that
    /// need most, and holds them closed: to find out whether that must be so still may cost as much
    /// as they need. So that it costs no more than its caller wants to spend, each call tries the next such
    /// node since whose last try there was an event of a pod, a namespace or a policy; without one, it would end as
    /// that did. Also says what is new of policies since the last outcome because nodes subscribed or left. None if
    /// there is nothing to try and nothing to say.
    pub fn reconsider(&mut self) -> Option<Outcome> {
        let waits = |view: &View| !view.shed.is_empty() && view.tried != self.generation;
        let waiting = self.views.iter().filter(|(_, view)| waits(view)).map(|(&node, _)| node);
        let next = waiting.min_by_key(|&node| (self.reconsidered >= Some(node), node));
        if let Some(node) = next
            && let Some(view) = self.views.get_mut(&node)
        {
            view.tried = self.generation;
            let classes = view.open(&mut self.cluster, &mut self.sets);
            dirt(&mut self.cluster.nodes, &mut self.cluster.dirty, node).classes = classes;
            self.reconsidered = next;
        } else if !self.sets.is_touched() {
            return None;
        }
        let mut patches = HashMap::new();
        let left_out = self.publish_dirty(None, |node, patch| drop(patches.insert(node.clone(), patch)));
        Some(Outcome { patches, news: News { faults: self.conclude(vec![]), left_out } })
    }

    /// Brings all that is marked up to date, and tells all nodes what is logged, if that is new. Gives the namespaces of
    /// which frontends are left out from now on, or are not any more.
    fn publish_dirty(
        &mut self,
        logging: Option<Logging>,
        mut tell: impl FnMut(&Arc<str>, Patch),
    ) -> BTreeMap<Arc<str>, Option<LeftOut>> {
        self.pairs.clear();
        self.alike.clear();
        let mut nodes = std::mem::take(&mut self.cluster.dirty);
        let changes = self.services.settle();
        if logging.is_some() || !changes.is_empty() {
            nodes.extend(self.views.keys());
        }
        for node in sorted(nodes) {
            let patch = Patch { logging, ..self.publish(node, &changes) };
            if !patch.is_empty() && self.views.contains_key(&node) {
                tell(self.cluster.nodes.key(node), patch);
            }
        }
        changes.left_out
    }

    /// Lets go of what was needed in the batch only, and says what is new of policies; also of these.
    fn conclude(&mut self, mut policies: Vec<Key>) -> BTreeMap<Key, Option<Fault>> {
        self.collect();
        policies.extend(self.sets.take_touched());
        policies.into_iter().filter_map(|key| self.report(key)).collect()
    }

    /// What is to be said of a policy, if it was not said before.
    fn report(&mut self, key: Key) -> Option<(Key, Option<Fault>)> {
        let policy =
            self.rules.find(&self.cluster, &key).and_then(|id| self.rules.policies[id].enforced.as_ref());
        let fault = |policy: &Enforced| policy.fault.as_deref().or_else(|| self.sets.overflow(&key)).cloned();
        let now = policy.and_then(fault);
        let before = match &now {
            Some(fault) => self.reported.insert(key.clone(), fault.clone()),
            None => self.reported.remove(&key),
        };
        (now != before).then_some((key, now))
    }

    /// What changes for a node.
    fn publish(&mut self, node: NodeId, changes: &Changes) -> Patch {
        let mut patch = match self.cluster.nodes[node].dirt.take() {
            Some(dirt) => self.refresh(node, dirt),
            None => Patch::default(),
        };
        patch.services = self.services.tell(node, changes);
        patch
    }

    fn refresh(&mut self, node: NodeId, dirt: Dirt) -> Patch {
        let Some(view) = self.views.get_mut(&node) else { return Patch::default() };
        let Self { cluster, rules, sets, pairs, alike, .. } = self;
        let (atoms, attributions) = <(Uses<_>, Uses<_>)>::default();
        let refresh = Refresh { cluster, rules, sets, pairs, alike, node, view, atoms, attributions };
        let patch = refresh.run(dirt);
        if !patch.sets.is_empty() {
            self.services.need(node, view.judges_egress(&self.sets));
        }
        patch
    }

    /// Takes one event; policies that it is about are added.
    fn take(&mut self, event: Event, policies: &mut Vec<Key>) {
        use Event::{EndpointSlice, EndpointSliceGone, Logging, Service, ServiceGone};
        if !matches!(
            event,
            Service(_) | ServiceGone(_) | EndpointSlice(_) | EndpointSliceGone(_) | Logging(_)
        ) {
            self.generation += 1;
        }
        match event {
            Event::Pod(pod) => self.cluster.put_pod(pod),
            Event::PodGone(key) => self.cluster.remove_pod(&key),
            Event::Namespace(namespace) => self.cluster.put_namespace(namespace),
            Event::NamespaceGone(name) => self.cluster.remove_namespace(&name),
            Event::Policy(policy) => {
                policies.push(policy.key.clone());
                self.change_policy(policy.key.clone(), Some(policy));
            }
            Event::PolicyGone(key) => {
                policies.push(key.clone());
                self.change_policy(key, None);
            }
            Event::Service(service) => self.services.put_service(service),
            Event::ServiceGone(key) => self.services.remove_service(&key),
            Event::EndpointSlice(slice) => self.services.put_slice(slice),
            Event::EndpointSliceGone(key) => self.services.remove_slice(&key),
            Event::Logging(logging) => self.logging = logging,
        }
    }

    fn change_policy(&mut self, key: Key, new: Option<Policy>) {
        let id = match &new {
            Some(_) => self.rules.policy(&mut self.cluster, key),
            None => match self.rules.find(&self.cluster, &key) {
                Some(id) => id,
                None => return,
            },
        };
        let new = new.map(|policy| self.rules.compile(&mut self.cluster, &self.limits, id, policy));
        if let Some(new) = &new {
            self.hold(new);
        }
        let old = self.rules.policies[id].enforced.take();
        let same = |a: &Enforced, b: &Enforced| (a.subject, a.bodies) == (b.subject, b.bodies);
        let unchanged = matches!((&old, &new), (Some(old), Some(new)) if same(old, new));
        if !unchanged {
            old.iter().for_each(|old| self.edit(old, false));
            new.iter().for_each(|new| self.edit(new, true));
            let subject = |policy: &Option<Enforced>| policy.as_ref().map(|policy| policy.subject);
            let subjects = sorted([&old, &new].into_iter().filter_map(subject).collect());
            subjects.into_iter().for_each(|subject| self.cluster.mark_subjects(subject));
        }
        match (old.is_some(), new.is_some()) {
            (false, true) => self.rules.policies.hold(id),
            (true, false) => self.rules.policies.release(id),
            _ => {}
        }
        if let Some(old) = old {
            self.cluster.groups.release(old.subject);
            old.bodies.into_iter().flatten().for_each(|body| self.rules.bodies.release(body));
        }
        self.rules.policies[id].enforced = new;
    }

    fn hold(&mut self, policy: &Enforced) {
        self.cluster.groups.hold(policy.subject);
        policy.bodies.into_iter().flatten().for_each(|body| self.rules.bodies.hold(body));
    }

    /// The policy isolates its subjects from now on, or no longer.
    fn edit(&mut self, policy: &Enforced, comes: bool) {
        for direction in Direction::BOTH {
            if let Some(body) = policy.bodies[direction as usize] {
                self.cluster.groups.hold(policy.subject);
                self.rules.bodies.hold(body);
                self.edits.push((policy.subject, direction, body, comes));
            }
        }
    }

    /// Brings the lists of what isolates groups up to date.
    fn settle_subjects(&mut self) {
        let mut edits = std::mem::take(&mut self.edits);
        // Stable: of what was said of one body, the last holds.
        edits.sort_by_key(|&(group, direction, body, _)| (group, direction, body));
        for edits in edits.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1)) {
            let (group, direction, ..) = edits[0];
            let last = edits.chunk_by(|one, other| one.2 == other.2).filter_map(<[_]>::last);
            let last: Vec<_> = last.map(|&(.., body, comes)| (body, comes)).collect();
            let old = self.cluster.groups[group].isolating[direction as usize];
            let new = self.rules.isolating(old, &last);
            new.into_iter().for_each(|by| self.rules.hold(by));
            old.into_iter().for_each(|by| self.rules.release(by));
            self.cluster.groups[group].isolating[direction as usize] = new;
            for &(group, _, body, _) in edits {
                self.cluster.groups.release(group);
                self.rules.bodies.release(body);
            }
        }
    }

    /// [`Engine::subscribe_with`] of a node that judges after translation: the view itself.
    pub fn subscribe(&mut self, node: &str) -> NodeView {
        match NodeView::default().patched(self.subscribe_with(node, Detail::Frontends)) {
            Ok(view) => view,
            Err(error) => unreachable!("a patch to an empty view removes nothing: {error}"),
        }
    }

    /// From now on `apply` says what changes in this node's view. This leads from an empty view to the one that the
    /// first patch applies to. Asking again gives the view as it is now.
    pub fn subscribe_with(&mut self, node: &str, detail: Detail) -> Patch {
        self.unsubscribe(node);
        let node = self.cluster.node(&node.into());
        self.cluster.nodes.hold(node);
        self.cluster.nodes[node].subscribed = true;
        self.cluster.watching += 1;
        let pods = self.cluster.nodes[node].pods.to_vec();
        self.cluster.nodes[node].dirt = Some(Dirt { pods, ..Dirt::default() });
        self.views.entry(node).or_default().tried = self.generation;
        self.services.listen(node, detail);
        let whole = self.publish(node, &Changes::default());
        self.collect();
        debug_assert!(NodeView::default().patched(whole.clone()).is_ok(), "nothing was there to be removed");
        Patch { logging: Some(self.logging), ..whole }
    }

    /// The node's changes are of no interest any more.
    pub fn unsubscribe(&mut self, node: &str) {
        let Some(node) = self.cluster.nodes.find(node) else { return };
        let Some(mut view) = self.views.remove(&node) else { return };
        let Self { cluster, rules, sets, pairs, alike, .. } = self;
        let (atoms, attributions, view) = (Uses::default(), Uses::default(), &mut view);
        Refresh { cluster, rules, sets, pairs, alike, node, view, atoms, attributions }.clear();
        self.cluster.watching -= 1;
        self.cluster.nodes[node].subscribed = false;
        self.services.leave(node);
        self.cluster.nodes.release(node);
        self.collect();
    }

    /// How much there is of everything.
    pub fn sizes(&self) -> Sizes {
        let (frontends, frontends_left_out, slices) = self.services.sizes();
        Sizes {
            frontends,
            frontends_left_out,
            slices,
            policies: self.rules.policies.len(),
            pods: self.cluster.pods.len(),
            namespaces: self.cluster.namespaces.len(),
            nodes: self.cluster.nodes.len(),
            classes: self.cluster.classes.len(),
            groups: self.cluster.groups.len(),
            sets: self.sets.sets.len(),
            atoms: self.sets.atoms.len(),
            rows: self.sets.rows.len(),
            attributions: self.sets.attributions.len(),
            closed: self.views.values().map(|view| view.shed.len()).sum(),
        }
    }

    fn collect(&mut self) {
        let count = |this: &Self| (this.sets.sets.len(), this.sets.atoms.len() + this.rules.terms.len());
        let before = count(self);
        self.sets.collect(&mut self.rules);
        self.rules.collect(&mut self.cluster);
        self.cluster.collect();
        let now = count(self);
        // From now on numbers may mean something else.
        if now.0 < before.0 {
            self.pairs.clear();
        }
        if now.1 < before.1 {
            self.alike.clear();
        }
    }
}
