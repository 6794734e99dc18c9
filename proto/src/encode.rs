//! From the domain to the wire. Pure; cannot fail.

use std::net::IpAddr;

use litemap::LiteMap;
use prost::Message as _;
use prost::bytes::Bytes;

use crate::{
    AtomId, AttributionId, Backend, Block, Delta, Digest, Direction, Directory, Frontend, IdentifyRequest,
    LogMode, Logging, NewSet, NodeReport, Patch, Pod, PodUid, PolicyList, Row, Service, ServiceDelta,
    SetDelta, SetId, Verdict, Version, wire,
};

/// How large a part becomes; a single row of more than about 280 steps, or a Service of more than about 600
/// backends, is larger, and goes alone, as do moves.
/// So small because each connection keeps a buffer for as long as it lives that once held its largest message:
/// tonic's has 8 KiB at first, and does not grow for these.
pub const MAX_PART_BYTES: usize = 8_000;

/// How many addresses of one atom are told together: as many IPv6 ones fit into a part.
const ADDRESSES_AT_ONCE: usize = 480;

/// What a field adds to the message that holds it, besides its content: key and length.
const FIELD_BYTES: usize = 4;

/// A patch as several, which lead in turn to where it does. A short one without a directory is only
/// the last.
#[derive(Debug, Default)]
pub struct Parts {
    /// All but the last, encoded.
    pub first: Vec<Bytes>,
    /// The last.
    pub last: wire::Patch,
    /// How long the last is, about.
    bytes: usize,
}

/// A patch in parts.
pub fn parts(patch: &Patch) -> Parts {
    let Patch { moved, pods, sets, attributions, addresses, blocks, services, logging, merged } = patch;
    let mut parts = Parts::default();
    parts.last.merged = *merged;
    if let Some(logging) = logging {
        let logging = wire::Logging::from(*logging);
        parts.room(logging.encoded_len()).logging = Some(logging);
    }
    // Before all else, and in one part: a pod moves only once.
    let moves: Vec<_> = moved.iter().map(wire::SetMove::from).collect();
    let bytes = moves.iter().map(|set| set.encoded_len() + FIELD_BYTES).sum();
    if bytes > 0 {
        parts.room(bytes).moved_sets = moves;
    }
    for uid in pods.removed.iter().map(PodUid::to_string) {
        parts.room(uid.len()).removed_pods.push(uid);
    }
    for &AttributionId(id) in &attributions.removed {
        parts.room(id.0.len()).removed_attributions.push(bytes_of(id));
    }
    for &address in &addresses.removed {
        let address = address_bytes(address);
        parts.room(address.len()).removed_addresses.push(address);
    }
    for &block in &blocks.removed {
        let block = block_of(block, Vec::new());
        parts.room(block.encoded_len()).removed_blocks.push(block);
    }
    for attribution in attributions.put.values().map(wire::Attribution::from) {
        parts.room(attribution.encoded_len()).put_attributions.push(attribution);
    }
    for (&id, delta) in sets {
        match delta {
            SetDelta::New(set) => parts.set(id, set),
            SetDelta::Rows(rows) => parts.rows(id, rows),
            SetDelta::Removed => parts.room(id.0.0.len()).removed_sets.push(bytes_of(id.0)),
        }
    }
    let mut put: Vec<_> = addresses.put.iter().collect();
    put.sort_by_key(|&(_, atom)| atom);
    for alike in put.chunk_by(|(_, one), (_, other)| one == other) {
        for some in alike.chunks(ADDRESSES_AT_ONCE) {
            let atom = atom(*some[0].1, some.iter().map(|&(&address, _)| address));
            parts.room(atom.encoded_len()).put_addresses.push(atom);
        }
    }
    for block in blocks.put.iter().map(wire::Block::from) {
        parts.room(block.encoded_len()).put_blocks.push(block);
    }
    parts.services(services);
    for pod in pods.put.iter().map(wire::Pod::from) {
        parts.room(pod.encoded_len()).put_pods.push(pod);
    }
    parts
}

impl Parts {
    /// All of them, encoded.
    pub fn encoded(mut self) -> Vec<Bytes> {
        self.first.push(self.last.encode_to_vec().into());
        self.first
    }

    /// How many bytes there are in all.
    pub fn size(&self) -> usize {
        self.first.iter().map(Bytes::len).sum::<usize>() + self.last.encoded_len()
    }

    /// The part that has room for a field of this length, or is new.
    fn room(&mut self, bytes: usize) -> &mut wire::Patch {
        if self.bytes > 0 && self.bytes + bytes + FIELD_BYTES > MAX_PART_BYTES {
            self.next();
        }
        self.bytes += bytes + FIELD_BYTES;
        &mut self.last
    }

    /// What follows goes into a new part.
    fn next(&mut self) {
        let next = wire::Patch { merged: self.last.merged, ..wire::Patch::default() };
        self.first.push(std::mem::replace(&mut self.last, next).encode_to_vec().into());
        self.bytes = 0;
    }

    /// A set and its rows; those that do not fit follow in the next parts.
    fn set(&mut self, id: SetId, set: &NewSet) {
        let NewSet { direction, base, rows } = set;
        let id = bytes_of(id.0);
        let base = Some(base.into());
        let head = wire::Set { id: id.clone(), direction: direction_of(*direction), base, rows: vec![] };
        self.room(head.encoded_len()).new_sets.push(head);
        for row in rows.iter().map(wire::AtomRow::from) {
            // The set's id may have to be said again, in the next part.
            let part = self.room(row.encoded_len() + id.len() + 2 * FIELD_BYTES);
            match part.new_sets.last_mut().filter(|set| set.id == id) {
                Some(set) => set.rows.push(row),
                None => changed_set(part, &id).put_rows.push(row),
            }
        }
    }

    /// Rows that change of a set that is there.
    fn rows(&mut self, id: SetId, rows: &Delta<AtomId, Row>) {
        let id = bytes_of(id.0);
        for &AtomId(atom) in &rows.removed {
            let part = self.room(atom.0.len() + id.len() + 2 * FIELD_BYTES);
            changed_set(part, &id).removed_rows.push(bytes_of(atom));
        }
        for row in rows.put.iter().map(wire::AtomRow::from) {
            let part = self.room(row.encoded_len() + id.len() + 2 * FIELD_BYTES);
            changed_set(part, &id).put_rows.push(row);
        }
    }

    fn services(&mut self, services: &ServiceDelta) {
        let ServiceDelta { all, some } = services;
        if let Some(directory) = all {
            self.room(0).forgotten_services = true;
            if !directory.services().is_empty() {
                self.next();
                self.first.extend_from_slice(encoded(directory));
            }
        }
        for frontend in some.removed.iter().map(wire::Frontend::from) {
            self.room(frontend.encoded_len()).removed_services.push(frontend);
        }
        self.put_services(&some.put);
    }

    fn put_services(&mut self, services: &LiteMap<Frontend, Service>) {
        for service in services.iter().map(wire::Service::from) {
            self.room(service.encoded_len()).put_services.push(service);
        }
    }
}

/// What a part says of the rows of a set that is there.
fn changed_set<'a>(part: &'a mut wire::Patch, id: &[u8]) -> &'a mut wire::SetRows {
    let changed = &mut part.changed_sets;
    if changed.last().is_none_or(|set| set.id != id) {
        changed.push(wire::SetRows { id: id.to_vec(), ..wire::SetRows::default() });
    }
    let last = changed.len() - 1;
    &mut changed[last]
}

/// A directory's parts: encoded for the first node that is told it.
fn encoded(directory: &Directory) -> &[Bytes] {
    directory.encoded.get_or_init(|| {
        let mut parts = Parts::default();
        parts.put_services(directory.services());
        parts.encoded().into()
    })
}

impl From<(&SetId, &SetId)> for wire::SetMove {
    fn from((from, to): (&SetId, &SetId)) -> Self {
        Self { from: bytes_of(from.0), to: bytes_of(to.0) }
    }
}

impl From<(&PodUid, &Pod)> for wire::Pod {
    fn from((uid, pod): (&PodUid, &Pod)) -> Self {
        let Pod { namespace, name, addresses, config_hash, ingress, egress, denies_logged } = pod;
        let set = |set: &Option<SetId>| set.map(|id| bytes_of(id.0)).unwrap_or_default();
        Self {
            uid: uid.to_string(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            addresses: addresses.iter().map(|&address| address_bytes(address)).collect(),
            config_hash: config_hash.as_deref().unwrap_or_default().to_owned(),
            ingress_set: set(ingress),
            egress_set: set(egress),
            denies_logged: *denies_logged,
        }
    }
}

impl From<(&AtomId, &Row)> for wire::AtomRow {
    fn from((atom, row): (&AtomId, &Row)) -> Self {
        Self { atom: bytes_of(atom.0), row: Some(row.into()) }
    }
}

impl From<&Row> for wire::Row {
    fn from(row: &Row) -> Self {
        let step = |step: &crate::Step| wire::Step {
            start: step.start.bits(),
            verdict: match step.act.verdict {
                Verdict::Allow => wire::Verdict::Allow,
                Verdict::Deny => wire::Verdict::Deny,
            }
            .into(),
            attribution: bytes_of(step.act.attribution.0),
        };
        Self { steps: row.steps().iter().map(step).collect() }
    }
}

impl From<&PolicyList> for wire::Attribution {
    fn from(list: &PolicyList) -> Self {
        let policy = |policy: &crate::Policy| {
            let crate::Policy { namespace, name, logged } = policy;
            wire::Policy { namespace: namespace.to_string(), name: name.to_string(), logged: *logged }
        };
        let policies = match list {
            PolicyList::Policies(attribution) => attribution.0.iter().map(policy).collect(),
            PolicyList::Parts(_) => vec![],
        };
        Self { policies, parts: list.parts().iter().map(|part| bytes_of(part.0)).collect() }
    }
}

/// Addresses that have this atom.
fn atom(id: AtomId, addresses: impl Iterator<Item = IpAddr>) -> wire::Atom {
    let mut atom = wire::Atom { id: bytes_of(id.0), v4: vec![], v6: vec![] };
    for address in addresses {
        match address {
            IpAddr::V4(v4) => atom.v4.push(v4.to_bits()),
            IpAddr::V6(v6) => atom.v6.extend(v6.octets()),
        }
    }
    atom
}

impl From<(&Block, &AtomId)> for wire::Block {
    fn from((&block, atom): (&Block, &AtomId)) -> Self {
        block_of(block, bytes_of(atom.0))
    }
}

impl From<(&Frontend, &Service)> for wire::Service {
    fn from((frontend, service): (&Frontend, &Service)) -> Self {
        let Service { namespace, name, backends } = service;
        let backend = |&Backend { address, port }: &Backend| wire::Backend {
            address: address_bytes(address),
            port: port.into(),
        };
        Self {
            frontend: Some(frontend.into()),
            namespace: namespace.to_string(),
            name: name.to_string(),
            backends: backends.iter().map(backend).collect(),
        }
    }
}

impl From<&Frontend> for wire::Frontend {
    fn from(&Frontend { address, port }: &Frontend) -> Self {
        Self { address: address.map(address_bytes).unwrap_or_default(), port: port.bits() }
    }
}

impl From<Logging> for wire::Logging {
    fn from(Logging { allow, deny, generation }: Logging) -> Self {
        let mode = |mode| match mode {
            LogMode::Off => wire::LogMode::Off,
            LogMode::All => wire::LogMode::All,
            LogMode::Delegated => wire::LogMode::Delegated,
        };
        Self { allow: mode(allow).into(), deny: mode(deny).into(), generation }
    }
}

impl From<Version> for wire::Version {
    fn from(Version { epoch, number }: Version) -> Self {
        Self { epoch, number }
    }
}

impl From<&IdentifyRequest> for wire::IdentifyRequest {
    fn from(request: &IdentifyRequest) -> Self {
        Self { addresses: request.0.iter().map(|&address| address_bytes(address)).collect() }
    }
}

impl From<&crate::Identity> for wire::Identity {
    fn from(identity: &crate::Identity) -> Self {
        let crate::Identity { pod, since_ms } = identity;
        let text = |text: Option<&std::sync::Arc<str>>| text.map(ToString::to_string).unwrap_or_default();
        let workload = pod.as_ref().and_then(|pod| pod.workload.as_ref());
        Self {
            namespace: text(pod.as_ref().map(|pod| &pod.namespace)),
            name: text(pod.as_ref().map(|pod| &pod.name)),
            workload_kind: text(workload.map(|workload| &workload.kind)),
            workload_name: text(workload.map(|workload| &workload.name)),
            since_ms: *since_ms,
        }
    }
}

impl From<&NodeReport> for wire::NodeReport {
    fn from(report: &NodeReport) -> Self {
        let NodeReport { node, losses, late, problems } = report;
        let loss =
            |&(place, count): &(crate::LossPlace, u64)| wire::Loss { place: place.name().to_owned(), count };
        let late_attach = |late: &crate::LateAttach| wire::LateAttach {
            pod_uid: late.pod.to_string(),
            open_ms: late.open_ms,
        };
        Self {
            node: node.clone(),
            losses: losses.iter().map(loss).collect(),
            late: late.iter().map(late_attach).collect(),
            problems: problems.clone(),
        }
    }
}

fn bytes_of(digest: Digest) -> Vec<u8> {
    digest.0.to_vec()
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn block_of(block: Block, atom: Vec<u8>) -> wire::Block {
    wire::Block { address: address_bytes(block.address()), length: block.length().into(), atom }
}

fn direction_of(direction: Direction) -> i32 {
    match direction {
        Direction::Ingress => wire::Direction::Ingress,
        Direction::Egress => wire::Direction::Egress,
    }
    .into()
}
