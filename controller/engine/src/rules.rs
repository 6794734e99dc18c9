//! Policies, compiled: what their rules match and permit, in numbers. Pure.

use std::sync::Arc;

use durward_proto::{Digest, Digester, Direction, PortKey, view};
use hashbrown::{Equivalent, HashMap};

use crate::block::IpBlock;
use crate::cluster::{Cluster, Scope};
use crate::list::{self, Bodies, Isolating, ListState, Path};
use crate::object::{Key, Peer, Policy, Port, Ports, Protocol, Rule, Selector, Spec};
use crate::sorted::sorted;
use crate::table::{Belongs, BodyId, GroupId, Id, ListId, NamespaceId, PolicyId, Table, TermId};
use crate::{Fault, Limits};

/// Something that a remote address can match: all that is there must hold for one and the same pod,
/// or for the address by itself if only a block is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) group: Option<GroupId>,
    pub(crate) block: Option<Arc<IpBlock>>,
    /// A port by name, which the pod must have; then its number is part of the match.
    pub(crate) port: Option<(Protocol, Arc<str>)>,
}

/// A rule, ready to be matched.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// Its peers, without regard to named ports of theirs; none if it is for everybody.
    pub(crate) peers: Option<Box<[TermId]>>,
    /// What it permits by number, the first and the last key each.
    pub(crate) ranges: Box<[(PortKey, PortKey)]>,
    /// What it permits by the subject's names (ingress).
    pub(crate) names: Box<[(Protocol, Arc<str>)]>,
    /// Its peers with named ports of theirs (egress).
    pub(crate) named: Box<[TermId]>,
}

/// A policy as attributions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) policy: PolicyId,
    /// Whether its verdicts may be logged.
    pub(crate) logged: bool,
}

/// A policy's key, and its namespace.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct PolicyKey {
    namespace: NamespaceId,
    pub(crate) key: Key,
}

/// To look for a [`PolicyKey`].
#[derive(Hash)]
struct PolicyOf<'a>(NamespaceId, &'a Key);

impl Equivalent<PolicyKey> for PolicyOf<'_> {
    fn equivalent(&self, of: &PolicyKey) -> bool {
        (self.0, self.1) == (of.namespace, &of.key)
    }
}

impl Belongs for PolicyOf<'_> {
    fn owner(&self) -> Option<usize> {
        Some(self.0.index())
    }
}

impl Belongs for PolicyKey {
    fn owner(&self) -> Option<usize> {
        Some(self.namespace.index())
    }
}

impl Belongs for Name {
    fn owner(&self) -> Option<usize> {
        Some(self.policy.index())
    }
}

/// What a body says, by the digest of that, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BodyKey {
    pub(crate) name: Name,
    pub(crate) digest: Digest,
}

impl Belongs for BodyKey {
    fn owner(&self) -> Option<usize> {
        self.name.owner()
    }
}

/// A policy's rules for one direction. The rules of one that fails closed are none.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) rules: Box<[Compiled]>,
}

/// A policy as the engine keeps it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Enforced {
    pub(crate) subject: GroupId,
    pub(crate) bodies: [Option<BodyId>; 2],
    pub(crate) fault: Option<Box<Fault>>,
}

/// A policy that is there, or that attributions still name.
#[derive(Debug)]
pub(crate) struct PolicyState {
    /// None if it is gone.
    pub(crate) enforced: Option<Enforced>,
    /// Where it is in long lists.
    pub(crate) path: Path,
}

/// Everything that policies are compiled to.
#[derive(Debug)]
pub(crate) struct Rules {
    /// How many policies a list may have that is not divided.
    pub(crate) leaf: usize,
    pub(crate) terms: Table<TermId, Term, Digest>,
    pub(crate) policies: Table<PolicyId, PolicyKey, PolicyState>,
    /// By policy and the digest of their content.
    pub(crate) bodies: Table<BodyId, BodyKey, Body>,
    /// Lists of them: what isolates pods.
    pub(crate) lists: Table<ListId, Bodies, ListState>,
    /// Long unions that were asked for in the batch: many classes are of the same groups.
    pub(crate) unions: HashMap<Box<[Isolating]>, ListId>,
}

impl Rules {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            leaf: limits.policies_per_leaf,
            terms: Table::default(),
            policies: Table::default(),
            bodies: Table::default(),
            lists: Table::default(),
            unions: HashMap::new(),
        }
    }

    /// The policy with this key; it is not there until somebody says so.
    pub(crate) fn policy(&mut self, cluster: &mut Cluster, key: Key) -> PolicyId {
        let namespace = cluster.namespace(&key.namespace);
        self.policies.find(&PolicyOf(namespace, &key)).unwrap_or_else(|| {
            let path = Path::of(&key);
            let key = Key { namespace: cluster.namespaces.key(namespace).clone(), ..key };
            cluster.namespaces.hold(namespace);
            self.policies.insert(PolicyKey { namespace, key }, PolicyState { enforced: None, path })
        })
    }

    /// The policy with this key, if there is one.
    pub(crate) fn find(&self, cluster: &Cluster, key: &Key) -> Option<PolicyId> {
        self.policies.find(&PolicyOf(cluster.namespaces.find(&key.namespace)?, key))
    }

    /// A policy's namespace and name.
    pub(crate) fn named(&self, policy: PolicyId) -> &Key {
        &self.policies.key(policy).key
    }

    /// What a name says.
    pub(crate) fn said(&self, Name { policy, logged }: Name) -> view::Policy {
        let Key { namespace, name } = self.named(policy).clone();
        view::Policy { namespace, name, logged }
    }

    /// Compiles a policy. The caller holds what comes out of it.
    pub(crate) fn compile(
        &mut self,
        cluster: &mut Cluster,
        limits: &Limits,
        id: PolicyId,
        policy: Policy,
    ) -> Enforced {
        let Policy { key, logged, spec } = policy;
        let fault = limits.check(&spec).map(Box::new);
        let (selector, mut rules) = by_direction(spec);
        if fault.is_some() {
            rules = rules.map(|rules| rules.map(|_| vec![]));
        }
        let namespace = cluster.namespace(&key.namespace);
        let subject = cluster.group(Scope::One(namespace), &selector);
        let name = Name { policy: id, logged };
        let mut bodies = [None, None];
        for (direction, rules) in Direction::BOTH.into_iter().zip(rules) {
            bodies[direction as usize] =
                rules.map(|rules| self.body(cluster, name, namespace, direction, &rules));
        }
        Enforced { subject, bodies, fault }
    }

    fn body(
        &mut self,
        cluster: &mut Cluster,
        name: Name,
        namespace: NamespaceId,
        direction: Direction,
        rules: &[Rule],
    ) -> BodyId {
        let rules: Box<[_]> =
            rules.iter().map(|rule| self.rule(cluster, namespace, direction, rule)).collect();
        let digest = self.digest(name, direction, &rules);
        let key = BodyKey { name, digest };
        if let Some(body) = self.bodies.find(&key) {
            return body;
        }
        self.policies.hold(name.policy);
        rules.iter().flat_map(terms_of).for_each(|term| self.terms.hold(term));
        self.bodies.insert(key, Body { rules })
    }

    fn rule(
        &mut self,
        cluster: &mut Cluster,
        namespace: NamespaceId,
        direction: Direction,
        rule: &Rule,
    ) -> Compiled {
        let mut compiled = (vec![], vec![], vec![]);
        let (ranges, names, named) = (&mut compiled.0, &mut compiled.1, &mut compiled.2);
        if rule.ports.is_empty() {
            ranges.push((PortKey::MIN, PortKey::MAX));
        }
        for Port { protocol, ports } in &rule.ports {
            let key = |port| PortKey::new(protocol.number(), port);
            match ports {
                Ports::All => ranges.push((key(0), key(u16::MAX))),
                Ports::Range { first, last } if first <= last => ranges.push((key(*first), key(*last))),
                Ports::Range { .. } => {}
                Ports::Named(name) if direction == Direction::Ingress => {
                    names.push((*protocol, name.clone()))
                }
                Ports::Named(name) => {
                    let port = Some((*protocol, name.clone()));
                    named.extend(
                        rule.peers.iter().map(|peer| self.peer(cluster, namespace, peer, port.clone())),
                    );
                    if rule.peers.is_empty() {
                        named.push(self.anybody(cluster, port));
                    }
                }
            }
        }
        let plain = |peer| self.peer(cluster, namespace, peer, None);
        // Peers that only matter by their named ports are no terms of their own.
        let matter = !(ranges.is_empty() && names.is_empty());
        let peers = (!rule.peers.is_empty())
            .then(|| if matter { rule.peers.iter().map(plain).collect() } else { Box::default() });
        let (ranges, names, named) = compiled;
        Compiled { peers, ranges: ranges.into(), names: names.into(), named: named.into() }
    }

    fn peer(
        &mut self,
        cluster: &mut Cluster,
        namespace: NamespaceId,
        peer: &Peer,
        port: Option<(Protocol, Arc<str>)>,
    ) -> TermId {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let scope = match namespaces {
                    None => Scope::One(namespace),
                    Some(selector) => cluster.selected(selector),
                };
                let group = Some(cluster.group(scope, pods));
                self.term(cluster, Term { group, block: None, port })
            }
            Peer::Block { block, except } => {
                let mut except = except.clone();
                except.sort_unstable();
                except.dedup();
                let group = port.is_some().then(|| cluster.group(Scope::All, &Selector::default()));
                let block = Some(Arc::new(IpBlock { block: *block, except }));
                self.term(cluster, Term { group, block, port })
            }
        }
    }

    /// Any pod that has the named port.
    fn anybody(&mut self, cluster: &mut Cluster, port: Option<(Protocol, Arc<str>)>) -> TermId {
        let group = Some(cluster.group(Scope::All, &Selector::default()));
        self.term(cluster, Term { group, block: None, port })
    }

    fn term(&mut self, cluster: &mut Cluster, term: Term) -> TermId {
        if let Some(found) = self.terms.find(&term) {
            return found;
        }
        let digest = term.digest(cluster);
        let group = term.group;
        let id = self.terms.insert(term, digest);
        if let Some(group) = group {
            cluster.groups.hold(group);
            cluster.groups[group].terms.push(id);
        }
        id
    }

    /// A term's block, if it is for addresses by themselves.
    pub(crate) fn block(&self, term: TermId) -> Option<&IpBlock> {
        match self.terms.key(term) {
            Term { group: None, block, .. } => block.as_deref(),
            Term { .. } => None,
        }
    }

    fn digest(&self, Name { policy, logged }: Name, direction: Direction, rules: &[Compiled]) -> Digest {
        let Key { namespace, name } = self.named(policy);
        let mut digester = Digester::new("policy");
        digester.field(namespace.as_bytes());
        digester.field(name.as_bytes());
        digester.field(&[u8::from(logged), direction as u8]);
        for Compiled { peers, ranges, names, named } in rules {
            digester.field(&[u8::from(peers.is_some())]);
            for terms in [peers.as_deref().unwrap_or_default(), named] {
                digester.field(&(terms.len() as u64).to_be_bytes());
                terms.iter().for_each(|&term| digester.field(&self.terms[term].0));
            }
            digester.field(&(ranges.len() as u64).to_be_bytes());
            for (first, last) in ranges {
                digester.field(&first.bits().to_be_bytes());
                digester.field(&last.bits().to_be_bytes());
            }
            digester.field(&(names.len() as u64).to_be_bytes());
            for (protocol, name) in names {
                digester.field(&[protocol.number()]);
                digester.field(name.as_bytes());
            }
        }
        digester.digest()
    }

    /// Frees what nobody holds any more, and lets go of what that held.
    pub(crate) fn collect(&mut self, cluster: &mut Cluster) {
        self.unions = HashMap::new();
        list::collect(&mut self.lists, |body| self.bodies.release(body), drop);
        for (_, key, body) in self.bodies.collect() {
            body.rules.iter().flat_map(terms_of).for_each(|term| self.terms.release(term));
            self.policies.release(key.name.policy);
        }
        let terms = self.terms.collect();
        let gone = sorted(terms.iter().map(|&(id, ..)| id).collect());
        let groups = || terms.iter().filter_map(|(_, term, _)| term.group);
        // Each group once: it may have very many terms, and lose as many.
        for group in sorted(groups().collect()) {
            cluster.groups[group].terms.retain(|term| gone.binary_search(term).is_err());
        }
        groups().for_each(|group| cluster.groups.release(group));
        for (_, key, _) in self.policies.collect() {
            cluster.namespaces.release(key.namespace);
        }
    }
}

fn terms_of(rule: &Compiled) -> impl Iterator<Item = TermId> + '_ {
    rule.peers.iter().flatten().chain(&rule.named).copied()
}

/// Whom a policy isolates, and the rules of each direction in which it does.
fn by_direction(spec: Spec) -> (Selector, [Option<Vec<Rule>>; 2]) {
    match spec {
        Spec::Unreadable { selector, directions, .. } => {
            (selector, Direction::BOTH.map(|direction| directions.contains(&direction).then(Vec::new)))
        }
        Spec::Readable(rules) => {
            let egress =
                rules.types.contains(&Direction::Egress) || rules.types.is_empty() && rules.egress.is_some();
            let ingress = rules.types.contains(&Direction::Ingress) || rules.types.is_empty();
            let ingress = ingress.then(|| rules.ingress.unwrap_or_default());
            let egress = egress.then(|| rules.egress.unwrap_or_default());
            (rules.selector, [ingress, egress])
        }
    }
}

impl Belongs for Term {
    fn owner(&self) -> Option<usize> {
        Some(self.group?.index())
    }
}

impl Term {
    fn digest(&self, cluster: &Cluster) -> Digest {
        let mut digester = Digester::new("term");
        if let Some(group) = self.group {
            let (scope, selector) = cluster.group_content(group);
            match scope {
                Scope::All => digester.field(b"all"),
                Scope::One(namespace) => {
                    digester.field(b"one");
                    digester.field(cluster.namespaces.key(namespace).as_bytes());
                }
                Scope::Selected(namespaces) => {
                    digester.field(b"selected");
                    cluster.words.digest(namespaces, &mut digester);
                }
            }
            cluster.words.digest(selector, &mut digester);
        }
        if let Some(IpBlock { block, except }) = self.block.as_deref() {
            digester.field(b"block");
            for block in [block].into_iter().chain(except) {
                digester.field(block.to_string().as_bytes());
            }
        }
        if let Some((protocol, name)) = &self.port {
            digester.field(b"port");
            digester.field(&[protocol.number()]);
            digester.field(name.as_bytes());
        }
        digester.digest()
    }
}
