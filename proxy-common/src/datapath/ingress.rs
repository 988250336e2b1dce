//! What comes in from the client's side of a device.

use core::hint::black_box;

use super::conntrack::{is_over, remove_twin, touch};
use super::open::{Opened, open};
use super::parse::{self, Fragment, Headers, ICMP, ICMPV6, Signal};
use super::{Count, Packet, Tables, icmp, nat, reply};
use crate::abi::{
    Drop, Exit, Family, Flow, FlowRole, FlowState, FragmentKey, FragmentPorts, Pass, Protocol,
    Rewrite, Side, Verdict,
};

/// Decides about a packet from a client, and rewrites it if it is for a Service.
#[inline(always)]
pub fn from_client<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let verdict = decide(packet, tables);
    if verdict.is_returned() && reply::turn_ethernet(packet).is_none() {
        return Verdict::Drop(Drop::Write);
    }
    verdict
}

#[inline(always)]
fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut verdict = Verdict::Pass(Pass::NoService);
    let mut headers = Headers::seen_at(Side::Ingress as u8);
    match classify(packet, tables, &mut headers) {
        Class::Segment => {}
        Class::Icmp => {
            return if icmp::translate(packet, tables, &headers, &mut verdict) {
                verdict
            } else {
                Verdict::Pass(Pass::UnrelatedError)
            };
        }
        Class::Other(reason) => return Verdict::Pass(reason),
    }
    let hit = tables.with_flow(&headers.key, |flow| known(packet, tables, &headers, flow));
    match hit {
        Some(Hit::Done(verdict)) => return verdict,
        Some(Hit::Gone) => return reply::gone(packet, &headers),
        Some(Hit::Over) => {
            let _was_there = tables.remove_flow(&headers.key);
        }
        None if headers.fragment() == Fragment::Later => {
            return Verdict::Pass(Pass::UnknownFragment);
        }
        None => {}
    }
    let mut opened = open(packet, tables, &headers, &mut verdict);
    if opened == Opened::Replaced {
        opened = open(packet, tables, &headers, &mut verdict);
    }
    match opened {
        Opened::NoEndpoints => reply::no_endpoints(packet, &headers),
        Opened::Decided | Opened::Replaced => verdict,
    }
}

/// What a flow's record makes of a packet.
enum Hit {
    /// All is decided.
    Done(Verdict),
    /// The flow is over, or its backend gone, and the packet may open another.
    Over,
    /// The backend is gone, and the flow cannot move.
    Gone,
}

#[inline(always)]
fn known<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    flow: &mut Flow,
) -> Hit {
    let is_forward = flow.role == FlowRole::Forward as u8;
    if is_forward {
        if is_over_for(tables, headers, flow) {
            let _was_there = black_box(remove_twin(tables, flow, headers.key.protocol));
            return Hit::Over;
        }
        if is_stale(tables, flow) {
            return Hit::Gone;
        }
    }
    if let Err(drop) = nat::rewrite(packet, tables, headers, &flow.to) {
        return Hit::Done(Verdict::Drop(drop));
    }
    touch(tables, flow, headers.key.protocol, headers.signal());
    tables.count(flow.service, packet.len(), Count::Packet);
    Hit::Done(Verdict::Rewrite(
        match (is_forward, flow.exit != Exit::Stack as u8) {
            (true, false) => Rewrite::Forward,
            (false, false) => Rewrite::Reverse,
            (true, true) => Rewrite::HairpinForward,
            (false, true) => Rewrite::HairpinReverse,
        },
    ))
}

/// Whether the flow's backend is gone: its id has begun another life.
#[inline(always)]
fn is_stale<T: Tables>(tables: &T, flow: &Flow) -> bool {
    tables
        .backend(flow.backend)
        .is_none_or(|backend| backend.generation != flow.generation)
}

/// Whether this packet may open a flow in place of the one that is known.
#[inline(always)]
fn is_over_for<T: Tables>(tables: &T, headers: &Headers, flow: &Flow) -> bool {
    let opens = headers.signal() == Signal::Open;
    let was_closed = opens && FlowState::from_number(flow.state).is_none_or(is_over);
    was_closed || ((opens || headers.protocol() == Some(Protocol::Udp)) && is_stale(tables, flow))
}

/// What kind of packet this is to the datapath.
pub(super) enum Class {
    /// It may belong to a flow.
    Segment,
    /// ICMP or ICMPv6, perhaps an error that quotes a packet of a flow.
    Icmp,
    /// Neither.
    Other(Pass),
}

/// Parses a packet; one that is a later fragment gets the ports of the first.
#[inline(always)]
pub(super) fn classify<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &mut Headers,
) -> Class {
    if let Err(reason) = parse::ethernet(packet, headers) {
        return Class::Other(reason);
    }
    let Some(protocol) = headers.protocol() else {
        return if is_icmp(headers) {
            Class::Icmp
        } else {
            Class::Other(Pass::OtherProtocol)
        };
    };
    let parsed = match headers.fragment() {
        Fragment::Whole => parse::transport(packet, headers, protocol),
        Fragment::First => parse::transport(packet, headers, protocol)
            .and_then(|()| remember_fragment(tables, headers)),
        Fragment::Later => recall_fragment(tables, headers),
    };
    match parsed {
        Ok(()) => Class::Segment,
        Err(reason) => Class::Other(reason),
    }
}

#[inline(always)]
fn is_icmp(headers: &Headers) -> bool {
    let protocol = match headers.family() {
        Family::Ipv4 => ICMP,
        Family::Ipv6 => ICMPV6,
    };
    headers.key.protocol == protocol && headers.fragment() == Fragment::Whole
}

#[inline(always)]
const fn fragment_key(headers: &Headers) -> FragmentKey {
    FragmentKey {
        src: headers.key.tuple.src,
        dst: headers.key.tuple.dst,
        id: headers.fragment_id,
        protocol: headers.key.protocol,
        side: headers.key.side,
        _pad: 0,
    }
}

#[inline(never)]
fn recall_fragment<T: Tables>(tables: &T, headers: &mut Headers) -> Result<(), Pass> {
    let ports = tables
        .fragment(&fragment_key(headers))
        .ok_or(Pass::UnknownFragment)?;
    headers.key.tuple.src_port = ports.src_port;
    headers.key.tuple.dst_port = ports.dst_port;
    Ok(())
}

#[inline(never)]
fn remember_fragment<T: Tables>(tables: &T, headers: &Headers) -> Result<(), Pass> {
    let ports = FragmentPorts {
        src_port: headers.key.tuple.src_port,
        dst_port: headers.key.tuple.dst_port,
    };
    if tables.put_fragment(&fragment_key(headers), &ports) {
        Ok(())
    } else {
        Err(Pass::UnknownFragment)
    }
}
