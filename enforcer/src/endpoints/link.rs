//! The host's interfaces and addresses, and the numbers that it has for network namespaces. IO.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoGeneve, InfoVxlan, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Error, Handle};

/// The link on which kube-proxy puts the addresses of all Services, in IPVS mode.
pub(crate) const SERVICES: &str = "kube-ipvs0";

/// The host's interfaces, as far as they matter here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interfaces {
    /// The one to each namespace that one leads to, by the host's number of the namespace: of several, the one
    /// whose other end was made first.
    pub(crate) to_namespace: BTreeMap<i32, u32>,
    /// The UDP ports of tunnel devices.
    pub(crate) tunnel_ports: BTreeSet<u16>,
    /// The link [`SERVICES`], if there is one.
    pub(crate) services: Option<u32>,
}

pub(crate) async fn interfaces(handle: &Handle) -> Result<Interfaces, Error> {
    let mut tunnel_ports = BTreeSet::new();
    let mut services = None;
    let mut ends = BTreeMap::<i32, (u32, u32)>::new();
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await? {
        let (mut namespace, mut peer) = (None, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
                LinkAttribute::IfName(name) if name == SERVICES => services = Some(link.header.index),
                LinkAttribute::Link(index) => peer = Some(*index),
                LinkAttribute::LinkInfo(parts) => tunnel_ports.extend(parts.iter().filter_map(tunnel_port)),
                _ => {}
            }
        }
        let (Some(namespace), Some(peer)) = (namespace, peer) else { continue };
        let end = (peer, link.header.index);
        ends.entry(namespace).and_modify(|first| *first = end.min(*first)).or_insert(end);
    }
    let to_namespace = ends.into_iter().map(|(namespace, (_, index))| (namespace, index)).collect();
    Ok(Interfaces { to_namespace, tunnel_ports, services })
}

fn tunnel_port(part: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(data) = part else { return None };
    match data {
        InfoData::Vxlan(parts) => parts.iter().find_map(|part| match part {
            InfoVxlan::Port(port) => Some(*port),
            _ => None,
        }),
        InfoData::Geneve(parts) => parts.iter().find_map(|part| match part {
            InfoGeneve::Port(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    }
}

/// All addresses of all links.
pub(crate) async fn addresses(handle: &Handle) -> Result<Vec<AddressMessage>, Error> {
    handle.address().get().execute().try_collect().await
}

/// The host's own addresses among them: not its loopback device's, and not those of Services, whose traffic
/// goes on to pods.
pub(crate) fn host_addresses(all: &[AddressMessage], services: Option<u32>) -> BTreeSet<IpAddr> {
    let own = all.iter().filter(|message| services != Some(message.header.index));
    let address = |message: &AddressMessage| {
        // On a point-to-point link `Address` is the other end, and `Local` this one.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        local.or(address)
    };
    own.filter_map(address).filter(|address| !address.is_loopback()).collect()
}

/// The host's number for a namespace; none while no interface leads there.
pub(crate) async fn number_of(handle: &mut Handle, namespace: &File) -> Result<Option<i32>, Error> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = Box::pin(handle.request(request)?);
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                let id = |attribute: &NsidAttribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                };
                return Ok(answer.attributes.iter().find_map(id));
            }
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            _ => {}
        }
    }
    Err(Error::RequestFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(link: u32, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = link;
        message.attributes = attributes;
        message
    }

    #[test]
    fn addresses_of_services_are_not_the_hosts() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let of = |text: &str| AddressAttribute::Address(address(text));
        let local = |text: &str| AddressAttribute::Local(address(text));
        let all = [
            message(1, vec![of("127.0.0.1"), local("127.0.0.1")]),
            message(2, vec![of("192.0.2.1"), local("192.0.2.1")]),
            message(2, vec![of("2001:db8::1")]),
            message(3, vec![of("192.0.2.99"), local("192.0.2.3")]),
            message(4, vec![of("10.96.0.1"), local("10.96.0.1")]),
            // A Service's external address may be the node's.
            message(4, vec![of("192.0.2.1"), local("192.0.2.1")]),
        ];
        let own = ["192.0.2.1", "192.0.2.3", "2001:db8::1"].map(address);
        assert_eq!(host_addresses(&all, Some(4)), own.into());
        assert_eq!(host_addresses(&all, None), own.into_iter().chain([address("10.96.0.1")]).collect());
    }
}
