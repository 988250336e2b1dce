//! From bytes to [`Headers`]: the only place that knows how long a header is.

use bytemuck::{Pod, Zeroable};

use super::Packet;
use crate::abi::{Addr, Family, FlowKey, Pass, Port, Protocol, Tuple};

/// Length of an Ethernet header (IEEE 802.3), bytes.
pub const ETHERNET_LEN: u32 = 14;
/// Length of an IPv4 header without options, bytes.
pub const IPV4_LEN: u32 = 20;
/// Length of an IPv6 header without extensions, bytes.
pub const IPV6_LEN: u32 = 40;
/// Length of an IP header without options or extensions, bytes.
pub const fn ip_header_len(family: Family) -> u32 {
    match family {
        Family::Ipv4 => IPV4_LEN,
        Family::Ipv6 => IPV6_LEN,
    }
}
/// Length of a TCP header without options, bytes.
pub const TCP_LEN: u32 = 20;
/// Length of an SCTP common header, bytes.
pub const SCTP_LEN: u32 = 12;
/// Length of an ICMP or ICMPv6 header with its four bytes of parameters.
pub const ICMP_LEN: u32 = 8;
/// IANA number of ICMP.
pub const ICMP: u8 = 1;
/// IANA number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// EtherType of IPv4, network order.
pub const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, network order.
pub const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();

/// An IPv4 header without options (RFC 791), network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version 4 and header length in words.
    pub version_ihl: u8,
    /// Differentiated services.
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_len: u16,
    /// Identification of a datagram in pieces.
    pub id: u16,
    /// Three flags and the fragment offset in units of 8 bytes.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: u16,
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
}

/// An IPv6 header (RFC 8200), network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version 6, traffic class, flow label.
    pub version_class_flow: u32,
    /// Length of all that follows this header, bytes.
    pub payload_len: u16,
    /// What follows this header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
}

/// An IPv6 fragment header (RFC 8200, 4.5), network order.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Ipv6Fragment {
    next_header: u8,
    reserved: u8,
    offset_flags: u16,
    id: u32,
}

/// Whether a packet is a piece of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// It is whole.
    Whole,
    /// The first piece, with the transport header.
    First,
    /// Another piece.
    Later,
}

/// What the headers of a packet say.
///
/// Filled in place from the outside inwards: the kernel gives a program 512 bytes of stack, too
/// few to pass descriptions around.
///
/// What there is to tell apart is kept as it stands in the packet, and told apart only where it
/// matters. A verifier that knows that this is, say, the first fragment of a TCP segment over
/// IPv4 follows it alone through all that comes after; a dozen such kinds take it past its limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// First byte of the IP header.
    version: u8,
    /// TCP flags, or the type of the first SCTP chunk.
    mark: u8,
    /// Offset in units of 8 bytes and flag of a piece of a datagram, as in IPv4.
    piece: u16,
    /// Identification of the datagram in pieces, network order; IPv4's 16 bits as a number.
    pub fragment_id: u32,
    /// Offset of the IP header in the packet, bytes.
    pub l3: u32,
    /// Offset of the transport header in the packet, bytes.
    pub l4: u32,
    /// Bytes from the transport header to the end of the IP packet, by the IP header's account.
    pub l4_len: u32,
    /// Addresses, protocol and, where there are any, ports: the key of the flow's record.
    pub key: FlowKey,
}

impl Headers {
    /// Nothing known yet but where the packet is seen: a [`Side`](crate::abi::Side).
    #[inline(always)]
    pub const fn seen_at(side: u8) -> Self {
        let tuple = Tuple {
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            src_port: Port::ZERO,
            dst_port: Port::ZERO,
        };
        Self {
            version: 0,
            mark: 0,
            piece: 0,
            fragment_id: 0,
            l3: ETHERNET_LEN,
            l4: 0,
            l4_len: 0,
            key: FlowKey {
                tuple,
                protocol: 0,
                side,
                _pad: 0,
            },
        }
    }
}

impl Headers {
    /// Which of the two IP headers it is.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.version >> 4 == 6 {
            Family::Ipv6
        } else {
            Family::Ipv4
        }
    }

    /// The transport protocol, if it is one that Services can use.
    #[inline(always)]
    pub const fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.key.protocol)
    }

    /// Whether the datagram is in pieces.
    #[inline(always)]
    pub const fn fragment(&self) -> Fragment {
        match self.piece {
            0 => Fragment::Whole,
            MORE => Fragment::First,
            _ => Fragment::Later,
        }
    }

    /// What the packet means to the flow.
    #[inline(always)]
    pub const fn signal(&self) -> Signal {
        match self.protocol() {
            Some(Protocol::Tcp) => tcp_signal(self.mark),
            Some(Protocol::Sctp) => sctp_signal(self.mark),
            Some(Protocol::Udp) | None => Signal::Data,
        }
    }
}

/// Flag of a piece that is not the last.
const MORE: u16 = 0x2000;
/// Flag and offset.
const PIECE: u16 = 0x3fff;

/// Reads the link-layer and IP headers of an Ethernet frame.
///
/// # Errors
///
/// Not IP, tagged, or malformed.
#[inline(always)]
pub fn ethernet<P: Packet>(packet: &mut P, headers: &mut Headers) -> Result<(), Pass> {
    if packet.is_tagged() {
        return Err(Pass::Tagged);
    }
    packet.pull(ETHERNET_LEN + IPV4_LEN);
    let ethertype: u16 = packet.load(12).ok_or(Pass::Malformed)?;
    if ethertype == ETHERTYPE_IPV4 {
        ipv4(packet, ETHERNET_LEN, headers)
    } else if ethertype == ETHERTYPE_IPV6 {
        packet.pull(ETHERNET_LEN + IPV6_LEN);
        ipv6(packet, ETHERNET_LEN, headers)
    } else {
        Err(Pass::NotIp)
    }
}

/// Reads an IPv4 header at `l3`, which has been pulled.
///
/// # Errors
///
/// Malformed: cut short, another version, or lengths that contradict each other.
#[inline(always)]
pub fn ipv4<P: Packet>(packet: &P, l3: u32, headers: &mut Headers) -> Result<(), Pass> {
    let header: Ipv4Header = packet.load(l3).ok_or(Pass::Malformed)?;
    let header_len = u32::from(header.version_ihl & 0xf) * 4;
    let total_len = ip_len(packet, l3, header.total_len, 0);
    if header.version_ihl >> 4 != 4 || header_len < IPV4_LEN || total_len < header_len {
        return Err(Pass::Malformed);
    }
    headers.version = header.version_ihl;
    headers.piece = u16::from_be(header.fragment) & PIECE;
    headers.key.protocol = header.protocol;
    headers.fragment_id = u32::from(header.id);
    headers.l3 = l3;
    headers.l4 = l3 + header_len;
    headers.l4_len = total_len - header_len;
    headers.key.tuple.src = Addr::from_v4_word(header.src);
    headers.key.tuple.dst = Addr::from_v4_word(header.dst);
    Ok(())
}

/// Length of a packet that begins at `l3`, less `header`, by its own account. Several segments in
/// one of over 64 KiB together (BIG TCP) have 0 there, and what there is counts.
#[inline(always)]
fn ip_len<P: Packet>(packet: &P, l3: u32, field: u16, header: u32) -> u32 {
    let there = packet.len().saturating_sub(l3);
    if field == 0 && there > u32::from(u16::MAX) {
        there.saturating_sub(header)
    } else {
        u32::from(u16::from_be(field))
    }
}

/// Reads an IPv6 header at `l3`, which has been pulled, and the extensions behind it.
///
/// # Errors
///
/// Malformed: cut short, another version, or more extensions than any honest packet has.
#[inline(always)]
pub fn ipv6<P: Packet>(packet: &mut P, l3: u32, headers: &mut Headers) -> Result<(), Pass> {
    let header: Ipv6Header = packet.load(l3).ok_or(Pass::Malformed)?;
    let [version, ..]: [u8; 4] = bytemuck::cast(header.version_class_flow);
    if version >> 4 != 6 {
        return Err(Pass::Malformed);
    }
    headers.version = version;
    headers.piece = 0;
    headers.key.protocol = header.next_header;
    headers.fragment_id = 0;
    headers.l3 = l3;
    headers.l4 = l3 + IPV6_LEN;
    headers.l4_len = ip_len(packet, l3, header.payload_len, IPV6_LEN);
    headers.key.tuple.src = Addr::from_words(header.src);
    headers.key.tuple.dst = Addr::from_words(header.dst);
    if is_extension(headers.key.protocol) {
        walk_extensions(packet, headers)
    } else {
        Ok(())
    }
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Extension headers that are followed at most; RFC 8200, 4.1 knows no packet with more kinds.
const MAX_EXTENSIONS: u32 = 6;

/// Out of line: rare, and a loop that the hot path should not carry.
#[inline(never)]
fn walk_extensions<P: Packet>(packet: &mut P, headers: &mut Headers) -> Result<(), Pass> {
    for _ in 0..MAX_EXTENSIONS {
        let at = headers.l4;
        packet.pull(at + 8);
        let [next_header, len, ..]: [u8; 8] = packet.load(at).ok_or(Pass::Malformed)?;
        let bytes = match headers.key.protocol {
            FRAGMENT => {
                let piece: Ipv6Fragment = packet.load(at).ok_or(Pass::Malformed)?;
                let offset_flags = u16::from_be(piece.offset_flags);
                headers.piece = (offset_flags >> 3) | ((offset_flags & 1) << 13);
                headers.fragment_id = piece.id;
                8
            }
            AUTHENTICATION => (u32::from(len) + 2) * 4,
            _ => (u32::from(len) + 1) * 8,
        };
        headers.key.protocol = next_header;
        headers.l4 = at + bytes;
        headers.l4_len = headers.l4_len.checked_sub(bytes).ok_or(Pass::Malformed)?;
        // Behind the fragment header of a later piece stands payload.
        if headers.fragment() == Fragment::Later || !is_extension(next_header) {
            return Ok(());
        }
    }
    Err(Pass::Malformed)
}

/// What a packet means to the state of its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// TCP SYN, or SCTP INIT: opens a flow.
    Open,
    /// TCP SYN and ACK.
    OpenAnswer,
    /// SCTP COOKIE ECHO.
    CookieEcho,
    /// SCTP COOKIE ACK.
    CookieAck,
    /// Anything else that carries a flow on.
    Data,
    /// TCP FIN, or SCTP SHUTDOWN or SHUTDOWN ACK.
    Close,
    /// SCTP SHUTDOWN COMPLETE.
    Closed,
    /// TCP RST, or SCTP ABORT.
    Abort,
}

/// TCP flag FIN.
pub const TCP_FIN: u8 = 0x01;
/// TCP flag SYN.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag RST.
pub const TCP_RST: u8 = 0x04;
/// TCP flag ACK.
pub const TCP_ACK: u8 = 0x10;

/// Reads the transport header of a packet that has one, which is every one but a later fragment.
///
/// # Errors
///
/// Malformed: cut short, or the IP header ends the packet before, or behind its last byte.
#[inline(always)]
pub fn transport<P: Packet>(
    packet: &mut P,
    headers: &mut Headers,
    protocol: Protocol,
) -> Result<(), Pass> {
    let header = header_len(protocol);
    let is_cut = headers.l4_len < header + chunk_len(protocol);
    if is_cut || headers.l4 + headers.l4_len > packet.len() {
        return Err(Pass::Malformed);
    }
    packet.pull(headers.l4 + header);
    ports(packet, headers)?;
    match protocol {
        Protocol::Udp => {}
        Protocol::Tcp => {
            let [_, flags]: [u8; 2] = packet.load(headers.l4 + 12).ok_or(Pass::Malformed)?;
            headers.mark = flags;
        }
        Protocol::Sctp => {
            let [chunk, _]: [u8; 2] = packet.peek(headers.l4 + SCTP_LEN).ok_or(Pass::Malformed)?;
            headers.mark = chunk;
        }
    }
    Ok(())
}

/// Reads both ports, which have been pulled.
///
/// # Errors
///
/// Malformed: cut short.
#[inline(always)]
pub fn ports<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Pass> {
    let [src_port, dst_port]: [u16; 2] = packet.load(headers.l4).ok_or(Pass::Malformed)?;
    headers.key.tuple.src_port = Port::from_network(src_port);
    headers.key.tuple.dst_port = Port::from_network(dst_port);
    Ok(())
}

/// Bytes of the transport header that are read in place, and the most that may be pulled.
///
/// Several SCTP packets in one (GSO) have one common header in front of a list of buffers with
/// the chunks. Pulling a byte more would take it from the first buffer and leave that without the
/// start of its chunk: the receiving kernel panics (5.10 to 6.12, BUG in `skb_pull`).
#[inline(always)]
const fn header_len(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => TCP_LEN,
        Protocol::Udp => 8,
        Protocol::Sctp => SCTP_LEN,
    }
}

/// Bytes behind the header that are looked at: type and flags of the first SCTP chunk.
#[inline(always)]
const fn chunk_len(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp | Protocol::Udp => 0,
        Protocol::Sctp => 2,
    }
}

#[inline(always)]
const fn tcp_signal(flags: u8) -> Signal {
    if flags & TCP_RST != 0 {
        Signal::Abort
    } else if flags & TCP_SYN != 0 {
        if flags & TCP_ACK != 0 {
            Signal::OpenAnswer
        } else {
            Signal::Open
        }
    } else if flags & TCP_FIN != 0 {
        Signal::Close
    } else {
        Signal::Data
    }
}

/// By the type of the first chunk (RFC 9260, 3.2).
#[inline(always)]
const fn sctp_signal(chunk: u8) -> Signal {
    match chunk {
        1 => Signal::Open,
        6 => Signal::Abort,
        7 | 8 => Signal::Close,
        10 => Signal::CookieEcho,
        11 => Signal::CookieAck,
        14 => Signal::Closed,
        _ => Signal::Data,
    }
}
