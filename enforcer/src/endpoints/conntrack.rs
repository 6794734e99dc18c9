//! The host's own connection tracking: what it remembers of an address is the last owner's. IO.
//!
//! The programs ask it who opened a connection that they do not know. An address is inherited, its
//! connections are not: so they are forgotten before a new pod's first packet is judged.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

/// Deletes the entries of connections from or to these addresses; how many. Blocks.
pub(crate) fn forget(addresses: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut deleted = 0;
    for (family, v4) in [(NetfilterProtoFamily::IPv4, true), (NetfilterProtoFamily::IPv6, false)] {
        if !addresses.iter().any(|address| address.is_ipv4() == v4) {
            continue;
        }
        let mut stale = Vec::new();
        ask(&socket, family, NLM_F_DUMP, ConntrackMessage::Get(vec![]), |entry| {
            if let ConntrackMessage::New(attributes) = entry
                && attributes.iter().any(|attribute| concerns(attribute, addresses))
            {
                stale.push(attributes);
            }
        })?;
        for mut attributes in stale {
            attributes.retain(|attribute| matches!(attribute, ConntrackAttribute::CtaTupleOrig(_)));
            match ask(&socket, family, NLM_F_ACK, ConntrackMessage::Delete(attributes), |_| ()) {
                Ok(()) => deleted += 1,
                // It went by itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(deleted)
}

/// Whether one of an entry's two tuples has one of the addresses.
fn concerns(attribute: &ConntrackAttribute, addresses: &BTreeSet<IpAddr>) -> bool {
    let (ConntrackAttribute::CtaTupleOrig(tuples) | ConntrackAttribute::CtaTupleReply(tuples)) = attribute
    else {
        return false;
    };
    let ends = tuples.iter().filter_map(|tuple| match tuple {
        Tuple::Ip(ends) => Some(ends),
        _ => None,
    });
    ends.flatten().any(|end| match end {
        IPTuple::SourceAddress(address) | IPTuple::DestinationAddress(address) => addresses.contains(address),
        _ => false,
    })
}

/// Sends one request, and hears its answers to the end.
fn ask(
    socket: &Socket,
    family: NetfilterProtoFamily,
    flags: u16,
    question: ConntrackMessage,
    mut hear: impl FnMut(ConntrackMessage),
) -> io::Result<()> {
    let content = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), question);
    let mut request = NetlinkMessage::from(content);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            // Messages are aligned to 4 bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(answer) if answer.code.is_none() => return Ok(()),
                NetlinkPayload::Error(answer) => return Err(answer.to_io()),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(entry),
                    ..
                }) => hear(entry),
                _ => {}
            }
        }
    }
}
