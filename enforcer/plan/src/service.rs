//! Services where nobody sees packets after their translation: a frontend is an address of its own, allowed at a port
//! if every backend behind it is. Pure.
//!
//! It fails closed: a call may be refused whose backend the policies allow, since another one of the Service they do
//! not. The address that stands for NodePorts, on every address of the node, is `::`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use durward_proto::{
    Act, AtomId, Attribution, AttributionId, Digest, Direction, Frontend, NodeView, PolicyList, PortKey, Row,
    Service, Set, Verdict,
};

/// Stands for every address of the node in what is said of NodePorts.
pub const EVERY_ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// The view in which calls to Services are judged by where they may end.
pub fn conservative(view: &NodeView) -> NodeView {
    let mut judged = view.clone();
    let mut by_address = BTreeMap::<IpAddr, Vec<(PortKey, &Service)>>::new();
    for (&Frontend { address, port }, service) in &view.services {
        by_address.entry(address.unwrap_or(EVERY_ADDRESS)).or_default().push((port, service));
    }
    for (address, ports) in by_address {
        let before = view.atom(address);
        let atom = atom_of(address);
        for (id, set) in &view.sets {
            let mut row = said(set, before).clone();
            if set.direction == Direction::Egress {
                for &(port, service) in &ports {
                    row = row.with(port, judge(view, set, port, service, &mut judged.attributions));
                }
            }
            if let Some(set) = judged.sets.get_mut(id).filter(|set| set.base != row) {
                set.rows.insert(atom, row);
            }
        }
        judged.addresses.insert(address, atom);
    }
    judged
}

/// Another address is another atom: no two Services are the same to all sets for long.
fn atom_of(address: IpAddr) -> AtomId {
    AtomId(Digest::of("frontend", [durward_proto::view::mapped(address).octets()]))
}

fn said(set: &Set, atom: Option<AtomId>) -> &Row {
    atom.and_then(|atom| set.rows.get(&atom)).unwrap_or(&set.base)
}

/// What a set says of a call to a frontend's port: allowed by all that allow one of the backends, if each is.
fn judge(
    view: &NodeView,
    set: &Set,
    port: PortKey,
    service: &Service,
    attributions: &mut BTreeMap<AttributionId, PolicyList>,
) -> Act {
    let backends = service.backends.iter();
    let acts: BTreeSet<Act> = backends
        .map(|backend| said(set, view.atom(backend.address)).act(PortKey::new(port.protocol(), backend.port)))
        .collect();
    if let Some(&denial) = acts.iter().find(|act| act.verdict == Verdict::Deny) {
        return denial;
    }
    match acts.len() {
        // A set that denies nobody does not deny a Service without backends.
        0 => denial(set).unwrap_or_else(|| set.base.act(port)),
        1 => acts.into_iter().next().unwrap_or_else(|| set.base.act(port)),
        _ => {
            let lists: Vec<_> = acts.iter().filter_map(|act| view.attribution(act.attribution)).collect();
            let all = Attribution::new(lists.iter().flat_map(|list| list.0.iter().cloned()));
            let attribution = all.id();
            attributions.insert(attribution, all.into());
            Act { verdict: Verdict::Allow, attribution }
        }
    }
}

/// How a set denies, if there is anything that it denies.
fn denial(set: &Set) -> Option<Act> {
    let rows = std::iter::once(&set.base).chain(set.rows.values());
    rows.flat_map(Row::steps).map(|step| step.act).find(|act| act.verdict == Verdict::Deny)
}
