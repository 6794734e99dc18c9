//! Frames, as bytes.
use std::net::IpAddr;

use durward_bpf::Direction;

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const SYN_ACK: u8 = SYN | ACK;
pub const FIN: u8 = 1 | ACK;
pub const RST: u8 = 4;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

/// A frame of an Ethernet type.
pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP packet; `fragment` is IPv4's field: offset in 8 bytes, and 0x2000 for more.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut packet = vec![0x45, 0];
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0x12, 0x34]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            packet.extend(payload);
            ethernet(0x0800, &packet)
        }
        (IpAddr::V6(..), IpAddr::V6(..)) if fragment != 0 => {
            let mut header = vec![protocol, 0];
            let more = u16::from(fragment & 0x2000 != 0);
            header.extend(((fragment & 0x1fff) << 3 | more).to_be_bytes());
            header.extend([0, 0, 0x12, 0x34]);
            header.extend(payload);
            ip6(src, dst, 44, 64, &header)
        }
        _ => ip6(src, dst, protocol, 64, payload),
    }
}

/// An IPv6 packet with a hop limit of one's choice.
pub fn ip6(src: IpAddr, dst: IpAddr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    };
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, hop_limit]);
    packet.extend(octets(src));
    packet.extend(octets(dst));
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// A TCP header.
pub fn tcp_header(sport: u16, dport: u16, flags: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(sport.to_be_bytes());
    header.extend(dport.to_be_bytes());
    header.extend([0; 8]);
    header.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// A UDP header and 4 bytes.
pub fn udp_header(sport: u16, dport: u16) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(sport.to_be_bytes());
    header.extend(dport.to_be_bytes());
    header.extend([0, 12, 0, 0, b'd', b'a', b't', b'a']);
    header
}

/// An ICMP header, of either family, and what follows it.
pub fn icmp_header(kind: u8, id: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![kind, 0, 0, 0];
    header.extend(id.to_be_bytes());
    header.extend([0, 1]);
    header.extend(rest);
    header
}

/// The IP packet in a frame.
pub fn packet_of(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

/// Source and destination of a packet that goes a direction between the pod and another.
pub fn ends<T: Copy>(direction: Direction, local: T, remote: T) -> (T, T) {
    match direction {
        Direction::Ingress => (remote, local),
        Direction::Egress => (local, remote),
    }
}
