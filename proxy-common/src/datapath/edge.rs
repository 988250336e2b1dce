//! What comes in from clients, and what leaves this node.

use core::hint::black_box;

use super::conntrack::{remove_twin, touch};
use super::exit::{self, Stuck};
use super::fate::{self, Fate};
use super::find::{self, Found};
use super::open::{Opened, open};
use super::parse::{self, Fragment, Headers, ICMP, ICMPV6, Signal};
use super::{Count, Hook, Packet, Tables, icmp, nat, policy, reply};
use crate::abi::{
    Drop, Exit, Family, Flow, FlowRole, FragmentKey, FragmentPorts, Pass, Protocol, Rewrite,
    SettingsFlags, Verdict,
};

/// Decides about a packet at any hook but a pod's egress.
#[inline(always)]
pub(super) fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T, hook: Hook) -> Verdict {
    let mut verdict = Verdict::Pass(Pass::NoService);
    let mut headers = Headers::seen_at(hook.side() as u8);
    match classify(packet, tables, &mut headers) {
        Class::Segment => segment(packet, tables, &headers, hook, &mut verdict),
        Class::Icmp => {
            if icmp::translate(packet, tables, hook, &headers, &mut verdict) {
                return verdict;
            }
            stray(packet, tables, &headers, hook, Pass::UnrelatedError)
        }
        Class::Other(Pass::OtherProtocol) => {
            stray(packet, tables, &headers, hook, Pass::OtherProtocol)
        }
        Class::Other(reason) => Verdict::Pass(reason),
    }
}

/// A packet that may belong to a flow.
#[inline(always)]
fn segment<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    verdict: &mut Verdict,
) -> Verdict {
    if hook == Hook::PodIngress
        && headers.fragment() != Fragment::Later
        && !tables.has_flows(&headers.key.tuple.src)
        && let Some(reason) = why_no_flow(tables, headers)
    {
        return Verdict::Pass(reason);
    }
    match look_up(packet, tables, headers, hook) {
        Some(Hit::Done(verdict)) => return verdict,
        Some(Hit::Gone) => return reply::gone(packet, tables, headers, hook),
        Some(Hit::TooLong(mtu)) => return too_long(packet, tables, headers, hook, mtu),
        Some(Hit::Over) => {
            let _was_there = tables.remove_flow(&headers.key);
        }
        None if headers.fragment() == Fragment::Later => {
            return if ports(headers) == FragmentPorts::REFUSED {
                Verdict::Drop(Drop::TooLong)
            } else {
                Verdict::Pass(Pass::UnknownFragment)
            };
        }
        None if !may_open(tables, headers) => return Verdict::Pass(mid_flow(tables, headers)),
        None => {}
    }
    let mut opened = open(packet, tables, headers, hook, verdict);
    if opened == Opened::Replaced {
        opened = open(packet, tables, headers, hook, verdict);
    }
    match opened {
        Opened::Ready => {}
        Opened::Decided | Opened::Replaced => return *verdict,
        Opened::NoEndpoints => return reply::no_endpoints(packet, tables, headers, hook),
        Opened::UnusedPort => return reply::unused_port(packet, tables, headers, hook),
    }
    match look_up(packet, tables, headers, hook) {
        Some(Hit::Done(Verdict::Rewrite(Rewrite::Forward))) => Verdict::Rewrite(Rewrite::NewFlow),
        Some(Hit::Done(verdict)) => verdict,
        Some(Hit::TooLong(mtu)) => too_long(packet, tables, headers, hook, mtu),
        Some(Hit::Gone | Hit::Over) | None => Verdict::Drop(Drop::FlowTable),
    }
}

/// Why a packet of a pod without flows opens none, as most packets do not: then it is not looked for
/// among all flows. `None`: it may open one, or be refused.
#[inline(always)]
fn why_no_flow<T: Tables>(tables: &T, headers: &Headers) -> Option<Pass> {
    if !may_open(tables, headers) {
        Some(mid_flow(tables, headers))
    } else if find::is_surely_elsewhere(tables, &headers.key.tuple.dst) {
        Some(Pass::NoService)
    } else {
        None
    }
}

/// Whether a packet without a record may get one. In mid-flow it may not, unless it is adopted.
#[inline(always)]
fn may_open<T: Tables>(tables: &T, headers: &Headers) -> bool {
    headers.protocol() == Some(Protocol::Udp)
        || headers.signal() == Signal::Open
        || tables
            .settings()
            .flags
            .contains(SettingsFlags::ADOPT_MID_FLOW)
}

/// Why a packet in mid-flow passes: most belong to no Service.
#[inline(always)]
fn mid_flow<T: Tables>(tables: &T, headers: &Headers) -> Pass {
    if tables.address(&headers.key.tuple.dst).is_empty() {
        Pass::NoService
    } else {
        Pass::MidFlow
    }
}

/// Refuses a packet that does not fit, and all later pieces of the same datagram: those that fit
/// would wait for the others in the backend's memory, until there is no room for any datagram.
#[inline(always)]
fn too_long<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    mtu: u32,
) -> Verdict {
    if headers.fragment() == Fragment::First {
        let _kept = black_box(refuse_fragments(tables, headers));
    }
    reply::too_long(packet, tables, headers, hook, mtu)
}

/// Lets the packet's flow record decide, if there is one.
#[inline(always)]
fn look_up<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
) -> Option<Hit> {
    tables.with_flow(&headers.key, |flow| {
        known(packet, tables, headers, hook, flow)
    })
}

/// A packet of a protocol without ports, or an ICMP message that is no error about a flow: cluster
/// IPs have nobody to take it (rules R15, R16).
#[inline(always)]
fn stray<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    otherwise: Pass,
) -> Verdict {
    let found = find::address(tables, &headers.key.tuple.dst);
    if found == Found::Nothing
        || (hook == Hook::NodeEgress && !policy::is_own(tables, &headers.key.tuple.src))
    {
        return Verdict::Pass(otherwise);
    }
    let flags = tables.settings().flags;
    if flags.contains(SettingsFlags::HANDED_BACK) {
        return Verdict::Pass(Pass::HandedBack);
    }
    if found == Found::Unallocated {
        return Verdict::Drop(Drop::Unallocated);
    }
    if is_icmp(headers) && !icmp::is_question(packet, headers) {
        return Verdict::Drop(Drop::NoAnswer);
    }
    reply::unused_port(packet, tables, headers, hook)
}

/// What a flow's record makes of a packet.
enum Hit {
    /// All is decided.
    Done(Verdict),
    /// The flow is over, or has to move, and the packet may open another.
    Over,
    /// The backend is gone, and the flow cannot move.
    Gone,
    /// Too long for the device, which takes so many bytes.
    TooLong(u32),
}

#[inline(always)]
fn known<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    flow: &mut Flow,
) -> Hit {
    let is_forward = flow.role == FlowRole::Forward as u8;
    if is_forward {
        let opens = headers.signal() == Signal::Open;
        match fate::of_flow(tables, &headers.key, flow, opens) {
            Fate::Lives => {}
            Fate::Gone => return Hit::Gone,
            Fate::Over => {
                let _was_there = black_box(remove_twin(tables, flow, headers.key.protocol));
                return Hit::Over;
            }
        }
    }
    let exit = Exit::from_number(flow.exit);
    match exit::prepare(packet, tables, hook, exit, &flow.to) {
        Ok(()) => {}
        Err(Stuck::TooLong(mtu)) => return Hit::TooLong(mtu),
        Err(Stuck::Drop(reason)) => return Hit::Done(Verdict::Drop(reason)),
    }
    if let Err(drop) = nat::rewrite(packet, tables, headers, &flow.to)
        .and_then(|()| exit::leave(packet, tables, exit, flow.device))
    {
        return Hit::Done(Verdict::Drop(drop));
    }
    touch(tables, flow, headers.key.protocol, headers.signal());
    tables.count(flow.service, packet.len(), Count::Packet);
    Hit::Done(Verdict::Rewrite(match (is_forward, exit) {
        (true, Exit::Back) => Rewrite::HairpinForward,
        (false, Exit::Back) => Rewrite::HairpinReverse,
        (true, Exit::Stack | Exit::Route | Exit::Host) => Rewrite::Forward,
        (false, Exit::Stack | Exit::Route | Exit::Host) => Rewrite::Reverse,
    }))
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
    if tables.put_fragment(&fragment_key(headers), &ports(headers)) {
        Ok(())
    } else {
        Err(Pass::UnknownFragment)
    }
}

#[inline(never)]
fn refuse_fragments<T: Tables>(tables: &T, headers: &Headers) -> bool {
    tables.put_fragment(&fragment_key(headers), &FragmentPorts::REFUSED)
}

#[inline(always)]
const fn ports(headers: &Headers) -> FragmentPorts {
    FragmentPorts {
        src_port: headers.key.tuple.src_port,
        dst_port: headers.key.tuple.dst_port,
    }
}
