//! The host's interfaces and addresses, and the numbers that it has for network namespaces. IO.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoGeneve, InfoVxlan, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Error, Handle};

/// The host's interfaces, as far as they matter here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interfaces {
    /// The one to each namespace that one leads to, by the host's number of the namespace: of several, the one
    /// whose other end was made first.
    pub(crate) to_namespace: BTreeMap<i32, u32>,
    /// The UDP ports of tunnel devices.
    pub(crate) tunnel_ports: BTreeSet<u16>,
}

pub(crate) async fn interfaces(handle: &Handle) -> Result<Interfaces, Error> {
    let mut tunnel_ports = BTreeSet::new();
    let mut ends = BTreeMap::<i32, (u32, u32)>::new();
    let mut links = Box::pin(handle.link().get().execute());
    while let Some(link) = links.try_next().await? {
        let (mut namespace, mut peer) = (None, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
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
    Ok(Interfaces { to_namespace, tunnel_ports })
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

/// The addresses of this host, but for those of its loopback device.
pub(crate) async fn host_addresses(handle: &Handle) -> Result<BTreeSet<IpAddr>, Error> {
    let mut found = BTreeSet::new();
    let mut messages = Box::pin(handle.address().get().execute());
    while let Some(message) = messages.try_next().await? {
        // On a point-to-point link `Address` is the other end, and `Local` this one.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        found.extend(local.or(address).filter(|address| !address.is_loopback()));
    }
    Ok(found)
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
