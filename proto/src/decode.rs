//! From the wire to the domain: a message is understood whole, or refused by name. Pure.
//!
//! Nothing has a default: an unknown enum value, a missing field, a key that occurs twice are errors. Every
//! message is destructured in full, so that a new field breaks the build until somebody reads it.

mod field;

use std::net::IpAddr;
use std::sync::Arc;

use litemap::LiteMap;
use prost::Message as _;

use self::field::Field;
pub use self::field::{DecodeError, Problem};

use crate::wire::{self, to_node};
use crate::{
    Act, AtomId, Attribution, AttributionId, Backend, Block, Frontend, IdentifyRequest, Identity, LateAttach,
    Logging, LossPlace, NewSet, NodeReport, Patch, Pod, PodName, PodUid, Policy, PolicyList, PortKey, Row,
    Service, ServiceDelta, SetDelta, SetId, Step, ToNode, Version, Workload,
};

impl TryFrom<wire::Patch> for Patch {
    type Error = DecodeError;

    fn try_from(patch: wire::Patch) -> Result<Self, DecodeError> {
        let wire::Patch {
            put_pods,
            removed_pods,
            new_sets,
            changed_sets,
            removed_sets,
            put_attributions,
            removed_attributions,
            put_addresses,
            removed_addresses,
            put_blocks,
            removed_blocks,
            logging,
            put_services,
            removed_services,
            merged,
            moved_sets,
            forgotten_services,
        } = patch;
        let field = |name| Field("Patch", name);
        let put = field("put_pods").map(put_pods.into_iter().map(pod))?;
        let removed = field("removed_pods");
        let pods = removed.delta(put, removed_pods.iter().map(|uid| removed.uid(uid)))?;

        let put = field("put_attributions").map(put_attributions.into_iter().map(|wire| {
            let attribution = attribution(wire)?;
            Ok((attribution.id(), attribution))
        }))?;
        let removed = field("removed_attributions");
        let ids = removed_attributions.iter().map(|id| removed.digest(id).map(AttributionId));
        let attributions = removed.delta(put, ids)?;

        let put = put_addresses.iter().map(addresses).collect::<Result<Vec<_>, _>>()?;
        let put = field("put_addresses").map(put.into_iter().flatten().map(Ok))?;
        let removed = field("removed_addresses");
        let addresses = removed.delta(put, removed_addresses.iter().map(|bytes| removed.address(bytes)))?;

        let put = field("put_blocks").map(put_blocks.into_iter().map(put_block))?;
        let blocks = field("removed_blocks").delta(put, removed_blocks.into_iter().map(removed_block))?;

        let put = field("put_services").map(put_services.into_iter().map(put_service))?;
        let some = field("removed_services").delta(put, removed_services.into_iter().map(frontend))?;
        let services = ServiceDelta { all: forgotten_services.then(Arc::default), some };

        let sets = sets(new_sets, changed_sets, removed_sets)?;
        let logging = logging.map(Logging::try_from).transpose()?;
        let moved = field("moved_sets").map(moved_sets.into_iter().map(set_move))?;
        Ok(Self { moved, pods, sets, attributions, addresses, blocks, services, logging, merged })
    }
}

fn sets(
    new: Vec<wire::Set>,
    changed: Vec<wire::SetRows>,
    removed: Vec<Vec<u8>>,
) -> Result<LiteMap<SetId, SetDelta>, DecodeError> {
    let new = new.into_iter().map(|set| {
        let wire::Set { id, direction, base, rows } = set;
        let field = |name| Field("Set", name);
        let set = NewSet {
            direction: field("direction").direction(direction)?,
            base: row(field("base").required(base)?)?,
            rows: field("rows").map(rows.into_iter().map(atom_row))?,
        };
        Ok((SetId(field("id").digest(&id)?), SetDelta::New(set)))
    });
    let changed = changed.into_iter().map(|set| {
        let wire::SetRows { id, put_rows, removed_rows } = set;
        let field = |name| Field("SetRows", name);
        let put = field("put_rows").map(put_rows.into_iter().map(atom_row))?;
        let removed = field("removed_rows");
        let rows = removed.delta(put, removed_rows.iter().map(|atom| removed.digest(atom).map(AtomId)))?;
        Ok((SetId(field("id").digest(&id)?), SetDelta::Rows(rows)))
    });
    let gone = Field("Patch", "removed_sets");
    let removed = removed.iter().map(|id| Ok((SetId(gone.digest(id)?), SetDelta::Removed)));
    Field("Patch", "new_sets, changed_sets, removed_sets").map(new.chain(changed).chain(removed))
}

fn pod(pod: wire::Pod) -> Result<(PodUid, Pod), DecodeError> {
    let wire::Pod { uid, namespace, name, addresses, config_hash, ingress_set, egress_set, denies_logged } =
        pod;
    let field = |name| Field("Pod", name);
    let addresses: Vec<IpAddr> =
        addresses.iter().map(|bytes| field("addresses").address(bytes)).collect::<Result<_, _>>()?;
    field("addresses").rising(&addresses, |address| *address)?;
    let set = |name, id: Vec<u8>| {
        let id = (!id.is_empty()).then(|| field(name).digest(&id));
        id.transpose().map(|id| id.map(SetId))
    };
    let pod = Pod {
        namespace: field("namespace").text(namespace)?,
        name: field("name").text(name)?,
        addresses,
        config_hash: (!config_hash.is_empty()).then(|| config_hash.into()),
        ingress: set("ingress_set", ingress_set)?,
        egress: set("egress_set", egress_set)?,
        denies_logged,
    };
    Ok((field("uid").uid(&uid)?, pod))
}

fn atom_row(atom_row: wire::AtomRow) -> Result<(AtomId, Row), DecodeError> {
    let wire::AtomRow { atom, row: content } = atom_row;
    let content = Field("AtomRow", "row").required(content)?;
    Ok((AtomId(Field("AtomRow", "atom").digest(&atom)?), row(content)?))
}

fn row(row: wire::Row) -> Result<Row, DecodeError> {
    let wire::Row { steps } = row;
    let field = |name| Field("Step", name);
    let step = |step: wire::Step| {
        let wire::Step { start, verdict, attribution } = step;
        let port = || field("start").wrong(Problem::Port(start));
        let act = Act {
            verdict: field("verdict").verdict(verdict)?,
            attribution: AttributionId(field("attribution").digest(&attribution)?),
        };
        Ok(Step { start: PortKey::from_bits(start).ok_or_else(port)?, act })
    };
    let steps = steps.into_iter().map(step).collect::<Result<_, _>>()?;
    Row::new(steps).map_err(|error| Field("Row", "steps").wrong(error))
}

fn set_move(set_move: wire::SetMove) -> Result<(SetId, SetId), DecodeError> {
    let wire::SetMove { from, to } = set_move;
    let set = |name, id: &[u8]| Field("SetMove", name).digest(id).map(SetId);
    Ok((set("from", &from)?, set("to", &to)?))
}

fn attribution(attribution: wire::Attribution) -> Result<PolicyList, DecodeError> {
    let wire::Attribution { policies, parts } = attribution;
    if !parts.is_empty() {
        let field = Field("Attribution", "parts");
        if !policies.is_empty() {
            return Err(field.wrong(Problem::Unexpected));
        }
        let parts: Vec<_> =
            parts.iter().map(|id| field.digest(id).map(AttributionId)).collect::<Result<_, _>>()?;
        field.rising(&parts, |part| *part)?;
        return Ok(PolicyList::Parts(parts.into()));
    }
    let field = |name| Field("Policy", name);
    let policy = |policy: wire::Policy| {
        let wire::Policy { namespace, name, logged } = policy;
        Ok(Policy { namespace: field("namespace").text(namespace)?, name: field("name").text(name)?, logged })
    };
    let policies: Vec<_> = policies.into_iter().map(policy).collect::<Result<_, _>>()?;
    let list = Field("Attribution", "policies");
    list.required(policies.first())?;
    let keys: Vec<_> = policies.iter().map(|policy| (&policy.namespace, &policy.name)).collect();
    list.rising(&keys, |(namespace, name)| format!("{namespace}/{name}"))?;
    Ok(PolicyList::Policies(Attribution(policies.into())))
}

/// The addresses that have an atom, each with it.
fn addresses(atom: &wire::Atom) -> Result<Vec<(IpAddr, AtomId)>, DecodeError> {
    let wire::Atom { id, v4, v6 } = atom;
    let (id, field) = (AtomId(Field("Atom", "id").digest(id)?), Field("Atom", "v6"));
    let (v6, rest) = v6.as_chunks();
    if !rest.is_empty() {
        return Err(field.wrong(Problem::Length { expected: "16 for each address", found: rest.len() }));
    }
    let v4 = v4.iter().map(|&bits| Ok((IpAddr::V4(bits.into()), id)));
    v4.chain(v6.iter().map(|&octets| Ok((field.v6(octets)?, id)))).collect()
}

fn put_block(block: wire::Block) -> Result<(Block, AtomId), DecodeError> {
    let wire::Block { address, length, atom } = block;
    Ok((block_of(&address, length)?, AtomId(Field("Block", "atom").digest(&atom)?)))
}

fn removed_block(block: wire::Block) -> Result<Block, DecodeError> {
    let wire::Block { address, length, atom } = block;
    if !atom.is_empty() {
        return Err(Field("Block", "atom").wrong(Problem::Unexpected));
    }
    block_of(&address, length)
}

fn block_of(address: &[u8], length: u32) -> Result<Block, DecodeError> {
    let address = Field("Block", "address").address(address)?;
    let wrong = || Field("Block", "length").wrong(Problem::Block(format!("{address}/{length}")));
    let block = u8::try_from(length).ok().and_then(|length| Block::containing(address, length).ok());
    block.filter(|block| block.address() == address).ok_or_else(wrong)
}

fn put_service(service: wire::Service) -> Result<(Frontend, Service), DecodeError> {
    let wire::Service { frontend, namespace, name, backends } = service;
    let field = |name| Field("Service", name);
    let backends: Vec<_> = backends.into_iter().map(backend).collect::<Result<_, _>>()?;
    field("backends").rising(&backends, |backend| format!("{}:{}", backend.address, backend.port))?;
    let service = Service {
        namespace: field("namespace").text(namespace)?,
        name: field("name").text(name)?,
        backends: backends.into(),
    };
    Ok((self::frontend(field("frontend").required(frontend)?)?, service))
}

fn frontend(frontend: wire::Frontend) -> Result<Frontend, DecodeError> {
    let wire::Frontend { address, port } = frontend;
    let field = |name| Field("Frontend", name);
    let address = (!address.is_empty()).then(|| field("address").address(&address)).transpose()?;
    let wrong = || field("port").wrong(Problem::Port(port));
    let port = PortKey::from_bits(port).ok_or_else(wrong)?;
    field("port").required((port.port() != 0).then_some(Frontend { address, port }))
}

fn backend(backend: wire::Backend) -> Result<Backend, DecodeError> {
    let wire::Backend { address, port } = backend;
    let field = |name| Field("Backend", name);
    let port = u16::try_from(port).map_err(|_| field("port").wrong(Problem::PortNumber(port)))?;
    field("port").required((port != 0).then_some(()))?;
    Ok(Backend { address: field("address").address(&address)?, port })
}

impl TryFrom<wire::Logging> for Logging {
    type Error = DecodeError;

    fn try_from(logging: wire::Logging) -> Result<Self, DecodeError> {
        let wire::Logging { allow, deny, generation } = logging;
        let field = |name| Field("Logging", name);
        if generation < 0 {
            return Err(field("generation").wrong(Problem::Negative(generation)));
        }
        Ok(Self { allow: field("allow").mode(allow)?, deny: field("deny").mode(deny)?, generation })
    }
}

impl TryFrom<wire::Version> for Version {
    type Error = DecodeError;

    fn try_from(version: wire::Version) -> Result<Self, DecodeError> {
        let wire::Version { epoch, number } = version;
        Field("Version", "epoch").required((epoch != 0).then_some(()))?;
        Ok(Self { epoch, number })
    }
}

impl TryFrom<wire::ToNode> for ToNode {
    type Error = DecodeError;

    fn try_from(message: wire::ToNode) -> Result<Self, DecodeError> {
        let wire::ToNode { message } = message;
        // An arm that this version does not know arrives as none.
        Ok(match Field("ToNode", "message").required(message)? {
            to_node::Message::Part(bytes) => {
                let broken = |error| Field("ToNode", "part").wrong(Problem::Malformed(error));
                Self::Part(wire::Patch::decode(bytes).map_err(broken)?.try_into()?)
            }
            to_node::Message::InSync(version) => Self::InSync(version.try_into()?),
            to_node::Message::Change(wire::Change { to, patch }) => Self::Change {
                to: Field("Change", "to").required(to)?.try_into()?,
                patch: Field("Change", "patch").required(patch)?.try_into()?,
            },
        })
    }
}

impl TryFrom<wire::IdentifyRequest> for IdentifyRequest {
    type Error = DecodeError;

    fn try_from(request: wire::IdentifyRequest) -> Result<Self, DecodeError> {
        let wire::IdentifyRequest { addresses } = request;
        let field = Field("IdentifyRequest", "addresses");
        if addresses.len() > Self::MAX {
            return Err(field.wrong(Problem::TooMany { found: addresses.len(), most: Self::MAX }));
        }
        addresses.iter().map(|bytes| field.address(bytes)).collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<wire::Identity> for Identity {
    type Error = DecodeError;

    fn try_from(identity: wire::Identity) -> Result<Self, DecodeError> {
        let wire::Identity { namespace, name, workload_kind, workload_name, since_ms } = identity;
        let field = |name| Field("Identity", name);
        let workload = match (workload_kind.is_empty(), workload_name.is_empty()) {
            (true, true) => None,
            _ => Some(Workload {
                kind: field("workload_kind").text(workload_kind)?,
                name: field("workload_name").text(workload_name)?,
            }),
        };
        let pod = match (namespace.is_empty(), name.is_empty(), &workload) {
            (true, true, None) => None,
            _ => Some(PodName {
                namespace: field("namespace").text(namespace)?,
                name: field("name").text(name)?,
                workload,
            }),
        };
        Ok(Self { pod, since_ms })
    }
}

impl TryFrom<wire::NodeReport> for NodeReport {
    type Error = DecodeError;

    fn try_from(report: wire::NodeReport) -> Result<Self, DecodeError> {
        let wire::NodeReport { node, losses, late, problems } = report;
        let field = |name| Field("NodeReport", name);
        field("node").required((!node.is_empty()).then_some(()))?;
        let loss = |wire::Loss { place, count }| match LossPlace::of(&place) {
            Some(place) => Ok((place, count)),
            None => Err(Field("Loss", "place").wrong(Problem::Unknown(format!("{place:?}")))),
        };
        let late_attach = |wire::LateAttach { pod_uid, open_ms }| {
            Ok(LateAttach { pod: Field("LateAttach", "pod_uid").uid(&pod_uid)?, open_ms })
        };
        Ok(Self {
            node,
            losses: field("losses").map(losses.into_iter().map(loss))?.into_iter().collect(),
            late: late.into_iter().map(late_attach).collect::<Result<_, _>>()?,
            problems,
        })
    }
}
