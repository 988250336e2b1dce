//! ICMP errors that quote a packet of a translated flow.
//!
//! The sender of an error saw the packet as it was after translation, and the receiver knows only
//! what it sent itself. So the quoted packet is translated back, at the edge where the packets
//! of the flow are translated. Without it path-MTU discovery does not work through a Service.
//!
//! One rule serves both sides. The quoted packet `q` went the other way than the error, so its
//! answer would match the record at `swapped(q)`, and what that record would make of the answer
//! is the swapped original.

use super::checksum::Sum;
use super::exit::{self, Stuck};
use super::nat::{TCP_CHECKSUM, UDP_CHECKSUM};
use super::parse::{self, Fragment, Headers, ICMP_LEN, IPV4_LEN, IPV6_LEN};
use super::{Hook, Packet, Tables, nat};
use crate::abi::{Drop, Exit, Family, Flow, FlowKey, Protocol, Rewrite, Verdict};

/// Offset of the checksum in an ICMP or ICMPv6 header.
const CHECKSUM: u32 = 2;

/// Translates the error if it quotes a packet of a flow that is known at this side; `false` if
/// it does not, and nothing is decided.
#[inline(never)]
pub(super) fn translate<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    outer: &Headers,
    verdict: &mut Verdict,
) -> bool {
    // The answer to the quoted packet would be seen where the error is.
    let mut quoted = Headers::seen_at(outer.key.side);
    if parse_quoted(packet, outer, &mut quoted).is_none() {
        return false;
    }
    let translated = tables.with_draft(|draft| {
        turn(&quoted.key, &mut draft.answer);
        tables.with_flow(&draft.answer, |flow| {
            *verdict = match translate_by(packet, tables, hook, outer, &quoted, flow) {
                Ok(()) => Verdict::Rewrite(Rewrite::IcmpError),
                Err(reason) => Verdict::Drop(reason),
            };
        })
    });
    translated.flatten().is_some()
}

/// Makes `answer` the key of what answers `asked`.
#[inline(always)]
fn turn(asked: &FlowKey, answer: &mut FlowKey) {
    answer.tuple.src = asked.tuple.dst;
    answer.tuple.dst = asked.tuple.src;
    answer.tuple.src_port = asked.tuple.dst_port;
    answer.tuple.dst_port = asked.tuple.src_port;
    answer.protocol = asked.protocol;
    answer.side = asked.side;
    answer._pad = 0;
}

/// Rewrites the error and sends it where the packets go that it would be among. `flow` is the
/// record of the quoted packet's answer.
#[inline(always)]
fn translate_by<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    outer: &Headers,
    quoted: &Headers,
    flow: &Flow,
) -> Result<(), Drop> {
    if hook == Hook::PodEgress {
        return rewrite(packet, outer, quoted, flow).ok_or(Drop::Write);
    }
    let exit = Exit::from_number(flow.exit);
    if let Err(Stuck::Drop(reason)) = exit::prepare(packet, tables, hook, exit, &flow.to) {
        return Err(reason);
    }
    rewrite(packet, outer, quoted, flow).ok_or(Drop::Write)?;
    exit::leave(packet, tables, exit, flow.device)
}

/// Whether an ICMP message asks for an answer: only those are refused.
#[inline(always)]
pub(super) fn is_question<P: Packet>(packet: &mut P, headers: &Headers) -> bool {
    const ECHO: u8 = 8;
    const ECHO_V6: u8 = 128;
    packet.pull(headers.l4 + ICMP_LEN);
    let kind = packet.load(headers.l4).map(|[kind, _]: [u8; 2]| kind);
    match headers.family() {
        Family::Ipv4 => kind == Some(ECHO),
        Family::Ipv6 => kind == Some(ECHO_V6),
    }
}

/// Reads the headers of the packet that an error quotes.
#[inline(always)]
fn parse_quoted<P: Packet>(
    packet: &mut P,
    outer: &Headers,
    quoted: &mut Headers,
) -> Option<Protocol> {
    let l3 = outer.l4 + ICMP_LEN;
    packet.pull(l3 + IPV4_LEN);
    let [kind, _]: [u8; 2] = packet.load(outer.l4)?;
    match outer.family() {
        Family::Ipv4 if is_error_v4(kind) => parse::ipv4(packet, l3, quoted).ok()?,
        Family::Ipv6 if is_error_v6(kind) => {
            packet.pull(l3 + IPV6_LEN);
            parse::ipv6(packet, l3, quoted).ok()?;
        }
        Family::Ipv4 | Family::Ipv6 => return None,
    }
    if quoted.fragment() == Fragment::Later {
        return None;
    }
    // An error quotes at least eight bytes of the transport header (RFC 792), mostly more.
    packet.pull(quoted.l4 + 8);
    let _eight: [u32; 2] = packet.load(quoted.l4)?;
    packet.pull(quoted.l4 + TCP_CHECKSUM + 2);
    parse::ports(packet, quoted).ok()?;
    Protocol::from_number(quoted.key.protocol)
}

/// Destination unreachable, source quench, time exceeded, parameter problem (RFC 792).
#[inline(always)]
const fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 11 | 12)
}

/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
#[inline(always)]
const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// `flow` is the record of the quoted packet's answer.
#[inline(always)]
fn rewrite<P: Packet>(
    packet: &mut P,
    outer: &Headers,
    quoted: &Headers,
    flow: &Flow,
) -> Option<()> {
    let inside = rewrite_quoted(packet, quoted, flow)?;
    let (from, error) = (&quoted.key.tuple, &outer.key.tuple);
    // A router on the way keeps its name where the stack forwards the error. Past the stack the
    // error may come to that very router again, or in by a device that does not lead there: both
    // would refuse it.
    let keeps_sender = Exit::from_number(flow.exit) == Exit::Stack && error.src != from.dst;
    let src = if keeps_sender {
        &error.src
    } else {
        &flow.to.src
    };
    let dst = if error.dst == from.src {
        &flow.to.dst
    } else {
        &error.dst
    };
    let pseudo = nat::addresses(packet, outer, src, dst)?;
    // ICMPv6 checksums cover the addresses (RFC 4443, 2.3), ICMP ones do not.
    let change = match outer.family() {
        Family::Ipv4 => inside,
        Family::Ipv6 => inside.plus(pseudo),
    };
    let checksum: u16 = packet.load(outer.l4 + CHECKSUM)?;
    packet.store(outer.l4 + CHECKSUM, change.applied_to(checksum))
}

/// Rewrites the quoted packet. Returns the difference of all its words.
#[inline(always)]
fn rewrite_quoted<P: Packet>(packet: &mut P, quoted: &Headers, flow: &Flow) -> Option<Sum> {
    let addresses = nat::addresses(packet, quoted, &flow.to.dst, &flow.to.src)?;
    let from = &quoted.key.tuple;
    let from_ports = bytemuck::cast([from.src_port, from.dst_port]);
    let to_ports: u32 = bytemuck::cast([flow.to.dst_port, flow.to.src_port]);
    packet.store(quoted.l4, to_ports)?;
    let ports = Sum::ZERO.change32(from_ports, to_ports);
    let checksum = rewrite_checksum(packet, quoted, addresses.plus(ports));
    // The words of an IPv4 header and its checksum cancel out.
    let header = match quoted.family() {
        Family::Ipv4 => Sum::ZERO,
        Family::Ipv6 => addresses,
    };
    Some(header.plus(ports).plus(checksum))
}

/// Rewrites the quoted transport checksum if it is there. Returns its difference.
///
/// Nobody verifies it, but the quote should be what the client sent. An SCTP checksum covers what
/// is not quoted and has to stay.
#[inline(always)]
fn rewrite_checksum<P: Packet>(packet: &mut P, quoted: &Headers, change: Sum) -> Sum {
    let is_udp = quoted.key.protocol == Protocol::Udp.number();
    let at = match Protocol::from_number(quoted.key.protocol) {
        Some(Protocol::Tcp) => quoted.l4 + TCP_CHECKSUM,
        Some(Protocol::Udp) => quoted.l4 + UDP_CHECKSUM,
        Some(Protocol::Sctp) | None => return Sum::ZERO,
    };
    let Some(from) = packet.load::<u16>(at) else {
        return Sum::ZERO;
    };
    if from == 0 && is_udp {
        return Sum::ZERO;
    }
    let to = match change.applied_to(from) {
        // UDP's other zero (RFC 768).
        0 if is_udp => 0xffff,
        to => to,
    };
    match packet.store(at, to) {
        Some(()) => Sum::ZERO.change16(from, to),
        None => Sum::ZERO,
    }
}
