//! Services: where they are called, and where calls end. Pure.
//!
//! Rules speak of backends, and packets from a pod of frontends. A node that sees packets after their translation
//! needs to know the frontends only; one that cannot needs the backends, too. Either is told only while one of its pods
//! is isolated on egress, and only of as many as it has room for (see `share.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use durward_proto::{Backend, Delta, Directory, Frontend, PortKey, Service as Told, ServiceDelta};
use hashbrown::HashMap;
use litemap::LiteMap;

use crate::limit::LeftOut;
use crate::object::{EndpointSlice, Key, Service, ServicePort};
use crate::share::{Divided, Shares};
use crate::table::NodeId;

/// How much of Services a node needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Where they are called: it judges after translation.
    Frontends,
    /// Where calls may end, too: it judges before translation.
    Backends,
}

/// All Services, and what the nodes were told of them.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// How many frontends nodes have room for.
    room: usize,
    services: HashMap<Key, Service>,
    slices: HashMap<Key, EndpointSlice>,
    /// Slices by their Service.
    slices_of: HashMap<Key, BTreeSet<Key>>,
    /// Services by frontend. Of several with one frontend nobody can say which has it: the name is the first one's, the
    /// backends are all of theirs.
    claims: BTreeMap<Frontend, BTreeSet<Key>>,
    shares: Shares,
    told: BTreeMap<Frontend, Told>,
    /// All of that, by detail, as long as it does not change: for nodes that come to need it.
    directories: [Option<Arc<Directory>>; 2],
    dirty: BTreeSet<Frontend>,
    listeners: HashMap<NodeId, Listener>,
}

/// What a node needs to know, and what it does.
#[derive(Debug)]
struct Listener {
    detail: Detail,
    needs: bool,
    knows: bool,
}

/// More frontends that change at once, if they are more than a quarter of all, are told by the directory: it is
/// shared, while each node would hold a copy of those that change.
const MANY: usize = 1_024;

/// What a batch changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Each frontend with what was told of it before.
    before: BTreeMap<Frontend, Option<Told>>,
    /// What that means for a node that knows so much before and after, by detail.
    told: [Delta<Frontend, Told>; 2],
    /// Namespaces of which frontends are left out from now on, or are not any more.
    pub(crate) left_out: BTreeMap<Arc<str>, Option<LeftOut>>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.before.is_empty()
    }
}

impl Detail {
    const BOTH: [Self; 2] = [Self::Frontends, Self::Backends];
}

impl Services {
    pub(crate) fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    pub(crate) fn put_service(&mut self, service: Service) {
        let (key, new) = (service.key.clone(), frontends(&service));
        let old = self.services.insert(key.clone(), service);
        self.claim(&key, old, new);
    }

    pub(crate) fn remove_service(&mut self, key: &Key) {
        let old = self.services.remove(key);
        self.claim(key, old, BTreeSet::new());
    }

    fn claim(&mut self, key: &Key, old: Option<Service>, new: BTreeSet<Frontend>) {
        let old = old.as_ref().map(frontends).unwrap_or_default();
        let is_of = |other: &Key| other.namespace == key.namespace;
        for &frontend in old.difference(&new) {
            let Some(claims) = self.claims.get_mut(&frontend) else { continue };
            claims.remove(key);
            if !claims.iter().any(is_of) {
                self.shares.remove(&key.namespace, frontend);
            }
            if claims.is_empty() {
                self.claims.remove(&frontend);
            }
        }
        for &frontend in new.difference(&old) {
            self.claims.entry(frontend).or_default().insert(key.clone());
            self.shares.add(&key.namespace, frontend);
        }
        // Those that stay may have other backends now: a port's name can change.
        self.dirty.extend(old.into_iter().chain(new));
    }

    pub(crate) fn put_slice(&mut self, slice: EndpointSlice) {
        let key = slice.key.clone();
        let service = slice.service_key();
        if let Some(old) = self.slices.insert(key.clone(), slice) {
            self.unlink(&key, &old.service_key());
        }
        self.slices_of.entry(service.clone()).or_default().insert(key);
        self.mark(&service);
    }

    pub(crate) fn remove_slice(&mut self, key: &Key) {
        if let Some(old) = self.slices.remove(key) {
            self.unlink(key, &old.service_key());
        }
    }

    fn unlink(&mut self, slice: &Key, service: &Key) {
        if let Some(slices) = self.slices_of.get_mut(service) {
            slices.remove(slice);
            if slices.is_empty() {
                self.slices_of.remove(service);
            }
        }
        self.mark(service);
    }

    fn mark(&mut self, service: &Key) {
        self.dirty.extend(self.services.get(service).map(frontends).unwrap_or_default());
    }

    /// A node listens, from nothing.
    pub(crate) fn listen(&mut self, node: NodeId, detail: Detail) {
        self.listeners.insert(node, Listener { detail, needs: false, knows: false });
    }

    pub(crate) fn leave(&mut self, node: NodeId) {
        self.listeners.remove(&node);
    }

    /// Whether one of a node's pods is isolated on egress.
    pub(crate) fn need(&mut self, node: NodeId, needs: bool) {
        if let Some(listener) = self.listeners.get_mut(&node) {
            listener.needs = needs;
        }
    }

    /// What the batch changed.
    pub(crate) fn settle(&mut self) -> Changes {
        let Divided { frontends, namespaces } = self.shares.divide(self.room);
        self.dirty.extend(frontends);
        let first = |(namespace, comes): (Arc<str>, bool)| {
            let left_out = if comes { self.first_left_out(&namespace) } else { None };
            (namespace, left_out)
        };
        let left_out = namespaces.into_iter().map(first).collect();
        let mut before = BTreeMap::new();
        for frontend in std::mem::take(&mut self.dirty) {
            let new = self.resolve(frontend);
            if self.told.get(&frontend) != new.as_ref() {
                let old = match new {
                    Some(new) => self.told.insert(frontend, new),
                    None => self.told.remove(&frontend),
                };
                before.insert(frontend, old);
            }
        }
        let told = Detail::BOTH.map(|detail| self.changed(detail, &before));
        for (directory, _) in self.directories.iter_mut().zip(&told).filter(|(_, told)| !told.is_empty()) {
            *directory = None;
        }
        Changes { before, told, left_out }
    }

    fn first_left_out(&self, namespace: &Arc<str>) -> Option<LeftOut> {
        let mut left_out = self.shares.left_out(namespace);
        let first = left_out.next()?;
        let service = self.claims.get(&first)?.iter().find(|service| service.namespace == *namespace)?;
        let count = 1 + left_out.count();
        Some(LeftOut { service: service.name.clone(), first, count, limit: self.room })
    }

    /// What a node is to be told, after the batch whose changes these are: once.
    pub(crate) fn tell(&mut self, node: NodeId, changes: &Changes) -> ServiceDelta {
        let Some(listener) = self.listeners.get_mut(&node) else { return ServiceDelta::default() };
        let knew = std::mem::replace(&mut listener.knows, listener.needs);
        let (detail, knows) = (listener.detail, listener.knows);
        self.delta(detail, (knew, knows), changes)
    }

    /// What a node is told that knew of Services, and knows of them now, or did and does not.
    fn delta(
        &mut self,
        detail: Detail,
        (knew, knows): (bool, bool),
        Changes { before, told, .. }: &Changes,
    ) -> ServiceDelta {
        let was_new = |frontend: &Frontend| matches!(before.get(frontend), Some(None));
        let changed = &told[detail as usize];
        match (knew, knows) {
            (false, true) if !self.told.is_empty() => {
                ServiceDelta { all: Some(self.directory(detail)), some: Delta::default() }
            }
            (true, false) if before.values().any(Option::is_some) || !self.told.keys().all(was_new) => {
                ServiceDelta { all: Some(Arc::default()), some: Delta::default() }
            }
            (true, true) if changed.len() > MANY && changed.len() > self.told.len() / 4 => {
                ServiceDelta { all: Some(self.directory(detail)), some: Delta::default() }
            }
            (true, true) => ServiceDelta { all: None, some: changed.clone() },
            _ => ServiceDelta::default(),
        }
    }

    /// What changes for a node that knows so much, before and after.
    fn changed(&self, detail: Detail, before: &BTreeMap<Frontend, Option<Told>>) -> Delta<Frontend, Told> {
        let mut delta = Delta::default();
        for (&frontend, old) in before {
            match self.told.get(&frontend).map(|told| shown(told, detail)) {
                Some(new) if old.as_ref().map(|old| shown(old, detail)).as_ref() != Some(&new) => {
                    drop(delta.put.insert(frontend, new));
                }
                Some(_) => {}
                None => drop(delta.removed.insert(frontend)),
            }
        }
        delta
    }

    /// All frontends, as nodes know them that need so much.
    fn directory(&mut self, detail: Detail) -> Arc<Directory> {
        let Self { told, directories, .. } = self;
        let made = directories[detail as usize].get_or_insert_with(|| {
            let all = told.iter().map(|(&frontend, told)| (frontend, shown(told, detail)));
            Arc::new(Directory::new(LiteMap::from_sorted_store_unchecked(all.collect())))
        });
        made.clone()
    }

    /// What there is to tell of a frontend; nothing if there is no room for it.
    fn resolve(&self, frontend: Frontend) -> Option<Told> {
        let claims = self.claims.get(&frontend)?;
        if !claims.iter().any(|key| self.shares.has_room(&key.namespace, frontend)) {
            return None;
        }
        let Key { namespace, name } = claims.first()?.clone();
        let mut backends = BTreeSet::new();
        for key in claims {
            let ports = self.services.get(key).into_iter().flat_map(|service| &service.ports);
            for port in ports.filter(|port| port.serves(frontend)) {
                self.backends(key, port, frontend.address, &mut backends);
            }
        }
        Some(Told { namespace, name, backends: backends.into_iter().collect() })
    }

    /// Adds where calls to a port of a Service may end that come to an address of this family.
    fn backends(
        &self,
        service: &Key,
        port: &ServicePort,
        called: Option<IpAddr>,
        into: &mut BTreeSet<Backend>,
    ) {
        let slices = self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        for slice in slices {
            let fits = |address: &&IpAddr| called.is_none_or(|called| called.is_ipv4() == address.is_ipv4());
            let target = |other: &&crate::object::NamedPort| {
                (&other.name, other.protocol) == (&port.name, port.protocol)
            };
            for target in slice.ports.iter().filter(target) {
                let backend = |&address| Backend { address, port: target.number };
                into.extend(slice.addresses.iter().filter(fits).map(backend));
            }
        }
    }

    /// How many frontends there are, for how many of them there is no room, and how many slices there are.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.claims.len(), self.claims.len() - self.told.len(), self.slices.len())
    }
}

/// What a node hears of a frontend.
fn shown(told: &Told, detail: Detail) -> Told {
    match detail {
        Detail::Frontends => Told { backends: Arc::default(), ..told.clone() },
        Detail::Backends => told.clone(),
    }
}

impl ServicePort {
    fn serves(&self, frontend: Frontend) -> bool {
        let number = if frontend.address.is_some() { Some(self.number) } else { self.node_port };
        number.is_some_and(|number| PortKey::new(self.protocol.number(), number) == frontend.port)
    }
}

fn frontends(service: &Service) -> BTreeSet<Frontend> {
    let ports = service.ports.iter();
    let own = ports.clone().flat_map(|port| {
        let port = PortKey::new(port.protocol.number(), port.number);
        service.addresses.iter().map(move |&address| Frontend { address: Some(address), port })
    });
    let node_ports = ports.filter_map(|port| {
        let port = PortKey::new(port.protocol.number(), port.node_port?);
        Some(Frontend { address: None, port })
    });
    own.chain(node_ports).collect()
}
