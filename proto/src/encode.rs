//! From the domain to the wire. Pure; cannot fail.

use std::net::IpAddr;

use prost::Message as _;

use crate::{
    AtomId, Backend, Block, Digest, Direction, Frontend, IdentifyRequest, LogMode, Logging, NodeReport,
    Patch, Pod, PodUid, PolicyList, Row, Service, Set, SetDelta, SetId, Verdict, Version, wire,
};

/// How large a part of a snapshot becomes; a single row of more than about 280 steps is larger, and goes alone.
/// So small because each connection keeps a buffer for as long as it lives that once held its largest message:
/// tonic's has 8 KiB at first, and does not grow for these.
pub const MAX_PART_BYTES: usize = 8_000;

/// What a field adds to the message that holds it, besides its content: key and length.
const FIELD_BYTES: usize = 4;

/// What leads from an empty view to this one, as several patches, in order; at least one.
pub fn snapshot(whole: &Patch) -> Vec<wire::Patch> {
    // What is not there cannot be removed, nor move.
    let Patch { moved: _, pods, sets, attributions, addresses, blocks, services, logging, merged: _ } = whole;
    let first = wire::Patch { logging: logging.map(wire::Logging::from), ..wire::Patch::default() };
    let mut parts = Parts { bytes: first.encoded_len(), full: Vec::new(), last: first };
    for attribution in attributions.put.values().map(wire::Attribution::from) {
        parts.room(attribution.encoded_len()).put_attributions.push(attribution);
    }
    for (&id, delta) in sets {
        if let SetDelta::New(set) = delta {
            parts.set(id, set);
        }
    }
    for address in addresses.put.iter().map(wire::Address::from) {
        parts.room(address.encoded_len()).put_addresses.push(address);
    }
    for block in blocks.put.iter().map(wire::Block::from) {
        parts.room(block.encoded_len()).put_blocks.push(block);
    }
    for service in services.put.iter().map(wire::Service::from) {
        parts.room(service.encoded_len()).put_services.push(service);
    }
    for pod in pods.put.iter().map(wire::Pod::from) {
        parts.room(pod.encoded_len()).put_pods.push(pod);
    }
    parts.full.push(parts.last);
    parts.full
}

struct Parts {
    full: Vec<wire::Patch>,
    last: wire::Patch,
    bytes: usize,
}

impl Parts {
    /// The part that has room for a field of this length, or is new.
    fn room(&mut self, bytes: usize) -> &mut wire::Patch {
        if self.bytes > 0 && self.bytes + bytes + FIELD_BYTES > MAX_PART_BYTES {
            self.full.push(std::mem::take(&mut self.last));
            self.bytes = 0;
        }
        self.bytes += bytes + FIELD_BYTES;
        &mut self.last
    }

    /// A set and its rows; those that do not fit follow in the next parts.
    fn set(&mut self, id: SetId, set: &Set) {
        let Set { direction, base, rows } = set;
        let id = bytes(id.0);
        let base = Some(base.into());
        let head = wire::Set { id: id.clone(), direction: direction_of(*direction), base, rows: vec![] };
        self.room(head.encoded_len()).new_sets.push(head);
        for row in rows.iter().map(wire::AtomRow::from) {
            // The set's id may have to be said again, in the next part.
            let part = self.room(row.encoded_len() + id.len() + 2 * FIELD_BYTES);
            let begun = part.new_sets.last_mut().filter(|set| set.id == id).map(|set| &mut set.rows);
            let rows = match begun {
                Some(rows) => rows,
                None => {
                    if part.changed_sets.last().is_none_or(|set| set.id != id) {
                        part.changed_sets.push(wire::SetRows { id: id.clone(), ..wire::SetRows::default() });
                    }
                    let Some(last) = part.changed_sets.last_mut() else { continue };
                    &mut last.put_rows
                }
            };
            rows.push(row);
        }
    }
}

impl From<&Patch> for wire::Patch {
    fn from(patch: &Patch) -> Self {
        let Patch { moved, pods, sets, attributions, addresses, blocks, services, logging, merged } = patch;
        let (mut new_sets, mut changed_sets, mut removed_sets) = (vec![], vec![], vec![]);
        for (id, delta) in sets {
            let id = bytes(id.0);
            match delta {
                SetDelta::New(Set { direction, base, rows }) => new_sets.push(wire::Set {
                    id,
                    direction: direction_of(*direction),
                    base: Some(base.into()),
                    rows: rows.iter().map(wire::AtomRow::from).collect(),
                }),
                SetDelta::Rows(rows) => changed_sets.push(wire::SetRows {
                    id,
                    put_rows: rows.put.iter().map(wire::AtomRow::from).collect(),
                    removed_rows: rows.removed.iter().map(|atom| bytes(atom.0)).collect(),
                }),
                SetDelta::Removed => removed_sets.push(id),
            }
        }
        Self {
            moved_sets: moved
                .iter()
                .map(|(from, to)| wire::SetMove { from: bytes(from.0), to: bytes(to.0) })
                .collect(),
            put_pods: pods.put.iter().map(wire::Pod::from).collect(),
            removed_pods: pods.removed.iter().map(ToString::to_string).collect(),
            new_sets,
            changed_sets,
            removed_sets,
            put_attributions: attributions.put.values().map(wire::Attribution::from).collect(),
            removed_attributions: attributions.removed.iter().map(|id| bytes(id.0)).collect(),
            put_addresses: addresses.put.iter().map(wire::Address::from).collect(),
            removed_addresses: addresses.removed.iter().map(|&address| address_bytes(address)).collect(),
            put_blocks: blocks.put.iter().map(wire::Block::from).collect(),
            removed_blocks: blocks.removed.iter().map(|&block| block_of(block, Vec::new())).collect(),
            logging: logging.map(wire::Logging::from),
            put_services: services.put.iter().map(wire::Service::from).collect(),
            removed_services: services.removed.iter().map(wire::Frontend::from).collect(),
            merged: *merged,
        }
    }
}

impl From<(&PodUid, &Pod)> for wire::Pod {
    fn from((uid, pod): (&PodUid, &Pod)) -> Self {
        let Pod { namespace, name, addresses, config_hash, ingress, egress, denies_logged } = pod;
        let set = |set: &Option<SetId>| set.map(|id| bytes(id.0)).unwrap_or_default();
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
        Self { atom: bytes(atom.0), row: Some(row.into()) }
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
            attribution: bytes(step.act.attribution.0),
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
        Self { policies, parts: list.parts().iter().map(|part| bytes(part.0)).collect() }
    }
}

impl From<(&IpAddr, &AtomId)> for wire::Address {
    fn from((&address, atom): (&IpAddr, &AtomId)) -> Self {
        Self { address: address_bytes(address), atom: bytes(atom.0) }
    }
}

impl From<(&Block, &AtomId)> for wire::Block {
    fn from((&block, atom): (&Block, &AtomId)) -> Self {
        block_of(block, bytes(atom.0))
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

fn bytes(digest: Digest) -> Vec<u8> {
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
