//! The target: what the view says, in the node's own numbers. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use durward_proto::{AtomId, AttributionId, Frontend, LogMode, NodeView, Pod, PodUid, PolicyList, SetId};

use crate::kernel::{Access, Act, Bound, Endpoint, Found, LogFlags, Row, Word};
use crate::plan::Wanted;
use crate::{Exhausted, Numbers};

/// A set's rows by atom number; only those that differ from the base row.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    base: Row,
    rows: BTreeMap<u32, Row>,
}

impl Content {
    /// What the set says of an atom.
    pub(crate) fn row(&self, atom: u32) -> &Row {
        self.rows.get(&atom).unwrap_or(&self.base)
    }

    /// Whether it has a row of its own for the atom.
    pub(crate) fn holds(&self, atom: u32) -> bool {
        atom == 0 || self.rows.contains_key(&atom)
    }
}

/// An endpoint before its words are known.
#[derive(Clone, Debug)]
pub(crate) struct WantedEndpoint {
    pub(crate) namespace: u64,
    pub(crate) access: Access,
    pub(crate) sets: [Option<SetId>; 2],
    nsid: i32,
    addresses: Vec<IpAddr>,
    log: LogFlags,
}

impl WantedEndpoint {
    /// The endpoint with these words.
    pub(crate) fn endpoint(&self, words: [Word; 2]) -> Endpoint {
        Endpoint {
            namespace: self.namespace,
            nsid: self.nsid,
            access: self.access,
            words,
            addresses: self.addresses.clone(),
            log: self.log,
        }
    }
}

/// What is wanted, in numbers. Sets have theirs later: those depend on what the kernel holds.
pub(crate) struct Target<'a> {
    pub(crate) atoms: BTreeMap<AtomId, u32>,
    pub(crate) numbers: BTreeSet<u32>,
    pub(crate) sets: BTreeMap<SetId, Content>,
    pub(crate) endpoints: BTreeMap<u32, WantedEndpoint>,
    logged: Logged,
    wanted: Wanted<'a>,
}

impl<'a> Target<'a> {
    pub(crate) fn of(wanted: Wanted<'a>, numbers: &mut Numbers) -> Result<Self, Exhausted> {
        let view = wanted.view;
        let mut atoms = BTreeMap::new();
        for &id in view.addresses.values().chain(view.blocks.values()) {
            if let std::collections::btree_map::Entry::Vacant(entry) = atoms.entry(id) {
                entry.insert(numbers.atom(id)?);
            }
        }
        let mut target = Self {
            logged: Logged::of(view),
            numbers: atoms.values().copied().chain([0]).collect(),
            atoms,
            sets: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            wanted,
        };
        let fitting = view.pods.iter().filter(|(uid, _)| !wanted.misfits.contains(uid));
        let used: BTreeSet<SetId> =
            fitting.flat_map(|(_, pod)| [pod.ingress, pod.egress]).flatten().collect();
        for id in used {
            let Some(set) = view.sets.get(&id) else { continue };
            let base = target.row(&set.base, numbers)?;
            let mut rows = BTreeMap::new();
            for (atom, row) in &set.rows {
                let Some(&atom) = target.atoms.get(atom) else { continue };
                let row = target.row(row, numbers)?;
                if row != base {
                    rows.insert(atom, row);
                }
            }
            target.sets.insert(id, Content { base, rows });
        }
        target.find_endpoints();
        Ok(target)
    }

    /// Where Services are called.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.wanted.view.services.keys().copied()
    }

    /// Whether an atom is some address's in the view. 0 always is.
    pub(crate) fn has_atom(&self, atom: u32) -> bool {
        self.numbers.contains(&atom)
    }

    fn row(&self, row: &durward_proto::Row, numbers: &mut Numbers) -> Result<Row, Exhausted> {
        let bound = |step: &durward_proto::Step| {
            let id = step.act.attribution;
            let (logged, attribution) = (self.logged.has(id), numbers.give_attribution(id)?);
            let act = Act { verdict: step.act.verdict, logged, attribution };
            Ok(Bound { start: step.start.bits(), act })
        };
        row.steps().iter().map(bound).collect()
    }

    fn find_endpoints(&mut self) {
        let pods = &self.wanted.view.pods;
        let by_hash: BTreeMap<PodUid, (&PodUid, &Pod)> =
            pods.iter().filter_map(|(uid, pod)| Some((pod.config_name()?, (uid, pod)))).collect();
        for (&ifindex, found) in self.wanted.found {
            let known = found.pod.as_ref().and_then(|name| {
                // A static pod's cgroup is named by its configuration, not by its mirror's UID.
                pods.get_key_value(name).or_else(|| by_hash.get(name).copied())
            });
            self.endpoints.insert(ifindex, self.endpoint(found, known));
        }
    }

    fn endpoint(&self, found: &Found, known: Option<(&PodUid, &Pod)>) -> WantedEndpoint {
        let Found { namespace, nsid, pod: _, addresses } = found.clone();
        let log = |denies_logged| {
            let logging = self.wanted.view.logging;
            LogFlags {
                allowed: logging.allow == LogMode::All,
                delegated: logging.allow == LogMode::Delegated,
                denied: logging.deny == LogMode::All || (logging.deny == LogMode::Delegated && denies_logged),
            }
        };
        let (access, sets, pod) = match known {
            None => (self.wanted.unknown, [None; 2], None),
            Some((uid, pod)) if self.wanted.misfits.contains(uid) => (Access::Closed, [None; 2], Some(pod)),
            Some((_, pod)) => (Access::Judged, [pod.ingress, pod.egress], Some(pod)),
        };
        let told = pod.map(|pod| &pod.addresses).filter(|told| !told.is_empty());
        WantedEndpoint {
            namespace,
            nsid,
            access,
            sets,
            addresses: told.cloned().unwrap_or(addresses),
            log: log(pod.is_some_and(|pod| pod.denies_logged)),
        }
    }
}

/// Which attributions have a policy that asks to be logged.
#[derive(Default)]
struct Logged(BTreeMap<AttributionId, bool>);

impl Logged {
    fn of(view: &NodeView) -> Self {
        let mut logged = Self::default();
        for &id in view.attributions.keys() {
            logged.look(view, id);
        }
        logged
    }

    fn has(&self, id: AttributionId) -> bool {
        self.0.get(&id).copied().unwrap_or(false)
    }

    /// Looks at each list once, of however many others it is a part. Names are digests of what is named, so that no
    /// list is a part of itself.
    fn look(&mut self, view: &NodeView, id: AttributionId) -> bool {
        if let Some(&known) = self.0.get(&id) {
            return known;
        }
        let logged = match view.attributions.get(&id) {
            Some(PolicyList::Policies(policies)) => policies.0.iter().any(|policy| policy.logged),
            Some(PolicyList::Parts(parts)) => parts.iter().any(|&part| self.look(view, part)),
            None => false,
        };
        self.0.insert(id, logged);
        logged
    }
}
