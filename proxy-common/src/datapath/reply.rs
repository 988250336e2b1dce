//! Answers to packets that cannot be forwarded: the packet itself is made into its answer.
//!
//! A packet whose checksum the device was to complete (`CHECKSUM_PARTIAL`) stays so in the
//! kernel's books whatever is written into it, and nothing tells a program about it. The
//! checksum field does: it holds the sum of the pseudo-header alone. A reset and an ABORT have
//! their checksum in the same place as the packet they answer and are left to the device too.
//! In an ICMP message that place holds the lower half of the unused word, as long as the IP
//! header has no options; completing it there makes it 0xffff, one's complement's other zero, in
//! a message whose sum is right either way. The sum of an ICMPv6 message includes a pseudo-header
//! that the device leaves out: there it would store that one's sum, which is stored beforehand.

use super::checksum::{Sum, pseudo_header};
use super::nat::{TCP_CHECKSUM, UDP_CHECKSUM};
use super::parse::{
    ETHERNET_LEN, Fragment, Headers, ICMP, ICMP_LEN, ICMPV6, IPV4_LEN, Ipv4Header, Ipv6Header,
    Signal, TCP_ACK, TCP_LEN, TCP_RST, ip_header_len,
};
use super::{Hook, Packet, Tables, crc32c, exit};
use crate::abi::{Addr, Drop, Family, Protocol, Reply, Verdict};

/// Time to live of an answer.
const TTL: u8 = 64;

/// Answers the first packet of a flow to a Service without endpoints (rules R65, R67).
#[inline(always)]
pub(super) fn no_endpoints<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
) -> Verdict {
    let reasons = (Reply::NoEndpointReset, Reply::NoEndpointUnreachable);
    refuse(packet, tables, headers, hook, reasons)
}

/// Answers a packet to a cluster IP that does not have its port or protocol (rule R15).
#[inline(always)]
pub(super) fn unused_port<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
) -> Verdict {
    let reasons = (Reply::UnusedPortReset, Reply::UnusedPortUnreachable);
    refuse(packet, tables, headers, hook, reasons)
}

#[inline(always)]
fn refuse<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    (reset, other): (Reply, Reply),
) -> Verdict {
    if is_last(headers) || headers.fragment() == Fragment::Later {
        return Verdict::Drop(Drop::NoAnswer);
    }
    match headers.protocol() {
        Some(Protocol::Tcp) => send(packet, tables, hook, tcp_reset, headers, reset),
        Some(Protocol::Udp | Protocol::Sctp) | None => {
            send(packet, tables, hook, port_unreachable, headers, other)
        }
    }
}

/// Answers a packet of a flow whose backend is gone.
#[inline(always)]
pub(super) fn gone<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
) -> Verdict {
    if is_last(headers) || headers.fragment() != Fragment::Whole {
        return Verdict::Drop(Drop::NoAnswer);
    }
    match headers.protocol() {
        Some(Protocol::Tcp) => send(packet, tables, hook, tcp_reset, headers, Reply::GoneReset),
        Some(Protocol::Sctp) => send(packet, tables, hook, sctp_abort, headers, Reply::GoneAbort),
        // A UDP flow moves to another backend, and is never gone.
        Some(Protocol::Udp) | None => Verdict::Drop(Drop::NoAnswer),
    }
}

/// Answers a packet that is too long for the device that leads to where it should go (RFC 1191;
/// RFC 4443, 3.2).
///
/// The device that the answer goes to may still complete the packet's checksum, in a place where
/// the length would stand (see above); such a packet is dropped. An answer to this node itself
/// meets no device.
#[inline(always)]
pub(super) fn too_long<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    mtu: u32,
) -> Verdict {
    let is_completed = hook != Hook::NodeEgress && is_partial(packet, headers);
    if headers.fragment() == Fragment::Later || is_completed {
        return Verdict::Drop(Drop::TooLong);
    }
    let kind = match headers.family() {
        Family::Ipv4 => [3, 4],
        Family::Ipv6 => [2, 0],
    };
    let build = |packet: &mut P, headers: &Headers| error(packet, headers, kind, mtu.to_be());
    send(packet, tables, hook, build, headers, Reply::TooLong)
}

#[inline(always)]
fn send<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    build: impl FnOnce(&mut P, &Headers) -> Option<()>,
    headers: &Headers,
    reply: Reply,
) -> Verdict {
    if build(packet, headers).is_none() {
        return Verdict::Drop(Drop::NoAnswer);
    }
    match exit::answer(packet, tables, hook) {
        Ok(()) => Verdict::Reply(reply),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Whether the packet is a sender's last, to which an answer would be for nobody.
#[inline(always)]
const fn is_last(headers: &Headers) -> bool {
    matches!(headers.signal(), Signal::Abort | Signal::Closed)
}

/// The start of a TCP header (RFC 9293, 3.1), without options.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct TcpHeader {
    src_port: u16,
    dst_port: u16,
    seq: u32,
    ack: u32,
    data_offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// Makes the packet the reset that a host without a listener would send (RFC 9293, 3.5.2).
#[inline(never)]
fn tcp_reset<P: Packet>(packet: &mut P, headers: &Headers) -> Option<()> {
    let asked: TcpHeader = packet.load(headers.l4)?;
    let is_partial =
        asked.checksum == pseudo_header(headers, headers.key.protocol, headers.l4_len).fold();
    let has_ack = asked.flags & TCP_ACK != 0;
    let mut reset = TcpHeader {
        src_port: asked.dst_port,
        dst_port: asked.src_port,
        seq: if has_ack { asked.ack } else { 0 },
        ack: if has_ack {
            0
        } else {
            acknowledged(&asked, headers.l4_len).to_be()
        },
        data_offset: (TCP_LEN as u8 / 4) << 4,
        flags: if has_ack { TCP_RST } else { TCP_RST | TCP_ACK },
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let sum = pseudo_header(headers, headers.key.protocol, TCP_LEN);
    reset.checksum = if is_partial {
        sum.fold()
    } else {
        add_tcp(sum, &reset).checksum()
    };
    let l4 = reframe(packet, headers, headers.key.protocol, TCP_LEN)?;
    packet.store(l4, reset)
}

/// The sequence number behind all that a SYN occupies.
#[inline(always)]
fn acknowledged(syn: &TcpHeader, l4_len: u32) -> u32 {
    let data = l4_len.wrapping_sub(u32::from(syn.data_offset >> 4) * 4);
    u32::from_be(syn.seq).wrapping_add(1).wrapping_add(data)
}

#[inline(always)]
fn add_tcp(sum: Sum, header: &TcpHeader) -> Sum {
    let words: [u32; 5] = bytemuck::cast(*header);
    words.iter().fold(sum, |sum, &word| sum.add32(word))
}

/// An SCTP packet with nothing but an ABORT (RFC 9260, 3.3.7).
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SctpAbort {
    src_port: u16,
    dst_port: u16,
    verification_tag: u32,
    checksum: u32,
    kind: u8,
    flags: u8,
    length: u16,
}

/// Makes the packet an ABORT with the tag reflected (RFC 9260, 8.4, rule 8).
#[inline(never)]
fn sctp_abort<P: Packet>(packet: &mut P, headers: &Headers) -> Option<()> {
    const ABORT: u8 = 6;
    const TAG_REFLECTED: u8 = 1;
    let [ports, verification_tag, checksum]: [u32; 3] = packet.load(headers.l4)?;
    let [src_port, dst_port]: [u16; 2] = bytemuck::cast(ports);
    let mut abort = SctpAbort {
        src_port: dst_port,
        dst_port: src_port,
        verification_tag,
        checksum: 0,
        kind: ABORT,
        flags: TAG_REFLECTED,
        length: 4_u16.to_be(),
    };
    if checksum != 0 {
        let words: [u32; 4] = bytemuck::cast(abort);
        abort.checksum = crc32c::finish(
            words
                .iter()
                .fold(crc32c::START, |crc, &word| crc32c::update(crc, word)),
        );
    }
    let len = size_of::<SctpAbort>() as u32;
    let l4 = reframe(packet, headers, headers.key.protocol, len)?;
    packet.store(l4, abort)
}

/// Words of the client's packet that an ICMP error quotes at most: an IPv4 header with all
/// options and the eight bytes of RFC 792, or an IPv6 header and 32 bytes.
const QUOTE_WORDS: u32 = 18;

/// Makes the packet an ICMP port unreachable (RFC 792; RFC 4443, 3.1) about itself.
#[inline(always)]
fn port_unreachable<P: Packet>(packet: &mut P, headers: &Headers) -> Option<()> {
    let kind = match headers.family() {
        Family::Ipv4 => [3, 3],
        Family::Ipv6 => [1, 4],
    };
    error(packet, headers, kind, 0)
}

/// Makes the packet an ICMP error about itself, with the second word of its header as given,
/// network order.
#[inline(never)]
fn error<P: Packet>(packet: &mut P, headers: &Headers, kind: [u8; 2], word: u32) -> Option<()> {
    let l3_len = headers.l4 - headers.l3 + headers.l4_len;
    let available = l3_len.min(packet.len().checked_sub(headers.l3)?) / 4;
    let words = available.min(QUOTE_WORDS);
    packet.pull(headers.l3 + words * 4);
    let protocol = match headers.family() {
        Family::Ipv4 => ICMP,
        Family::Ipv6 => ICMPV6,
    };
    let len = ICMP_LEN + words * 4;
    let mut quote = [0_u32; QUOTE_WORDS as usize];
    let pseudo = match headers.family() {
        Family::Ipv4 => Sum::ZERO,
        Family::Ipv6 => pseudo_header(headers, protocol, len),
    };
    let [upper, mut lower]: [u16; 2] = bytemuck::cast(word);
    let is_udp = headers.key.protocol == Protocol::Udp.number();
    // A word that says something is for this node alone, and met by no device: see `too_long`.
    if word == 0 && is_udp && is_partial(packet, headers) {
        lower = pseudo.fold();
    }
    let kind: u16 = bytemuck::cast(kind);
    let mut sum = pseudo.add16(kind).add16(upper).add16(lower);
    for (at, word) in (0..words).zip(quote.iter_mut()) {
        *word = packet.load(headers.l3 + at * 4)?;
        sum = sum.add32(*word);
    }
    let l4 = reframe(packet, headers, protocol, len)?;
    packet.store(l4, [kind, sum.checksum(), upper, lower])?;
    for (at, word) in (0..words).zip(quote) {
        packet.store(l4 + ICMP_LEN + at * 4, word)?;
    }
    Some(())
}

/// Whether the device was to complete the checksum of a TCP segment or a datagram.
#[inline(always)]
fn is_partial<P: Packet>(packet: &P, headers: &Headers) -> bool {
    let at = match headers.protocol() {
        Some(Protocol::Tcp) => TCP_CHECKSUM,
        Some(Protocol::Udp) => UDP_CHECKSUM,
        Some(Protocol::Sctp) | None => return false,
    };
    packet.load(headers.l4 + at)
        == Some(pseudo_header(headers, headers.key.protocol, headers.l4_len).fold())
}

/// Turns the IP header round for a payload of `len` bytes. Returns where it begins.
#[inline(always)]
fn reframe<P: Packet>(packet: &mut P, headers: &Headers, protocol: u8, len: u32) -> Option<u32> {
    let l4 = ETHERNET_LEN + ip_header_len(headers.family());
    packet.resize(l4 + len)?;
    packet.pull(l4 + len);
    let (src, dst) = (headers.key.tuple.dst, headers.key.tuple.src);
    match headers.family() {
        Family::Ipv4 => packet.store(ETHERNET_LEN, ipv4_header(src, dst, protocol, len))?,
        Family::Ipv6 => packet.store(ETHERNET_LEN, ipv6_header(src, dst, protocol, len))?,
    }
    Some(l4)
}

/// Swaps the link-layer addresses.
#[inline(always)]
pub(super) fn turn_ethernet<P: Packet>(packet: &mut P) -> Option<()> {
    let [a, b, c, d, e, f]: [u16; 6] = packet.load(0)?;
    packet.store(0, [d, e, f, a, b, c])
}

#[inline(always)]
fn ipv4_header(src: Addr, dst: Addr, protocol: u8, len: u32) -> Ipv4Header {
    const DONT_FRAGMENT: u16 = 0x4000;
    let mut header = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_len: ((IPV4_LEN + len) as u16).to_be(),
        id: 0,
        fragment: DONT_FRAGMENT.to_be(),
        ttl: TTL,
        protocol,
        checksum: 0,
        src: src.v4_word(),
        dst: dst.v4_word(),
    };
    let words: [u32; 5] = bytemuck::cast(header);
    header.checksum = words
        .iter()
        .fold(Sum::ZERO, |sum, &word| sum.add32(word))
        .checksum();
    header
}

#[inline(always)]
fn ipv6_header(src: Addr, dst: Addr, protocol: u8, len: u32) -> Ipv6Header {
    Ipv6Header {
        version_class_flow: (6_u32 << 28).to_be(),
        payload_len: (len as u16).to_be(),
        next_header: protocol,
        hop_limit: TTL,
        src: src.words(),
        dst: dst.words(),
    }
}
