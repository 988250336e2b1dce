//! The first packet of a flow.

use super::conntrack::first_state;
use super::parse::{Headers, Signal};
use super::select::{Chosen, Refusal, finish, select_backend};
use super::{Claim, Count, Packet, Tables, nat};
use crate::abi::{
    Addr, Drop, Exit, Flow, FlowKey, FlowRole, FrontendKey, Pass, Port, Protocol, Rewrite,
    Settings, SettingsFlags, Side, Tuple, Verdict,
};

/// How far [`open`] came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// The verdict is given.
    Decided,
    /// The Service has no endpoints, which is for the caller to answer: its stack has room for it.
    NoEndpoints,
    /// The frontend was replaced while it was read, and had better be read again.
    Replaced,
}

/// Looks for the frontend that the packet is for, chooses a backend, records the flow in both
/// directions and rewrites the packet.
#[inline(never)]
pub(super) fn open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    verdict: &mut Verdict,
) -> Opened {
    let Some(frontend) = tables.frontend(&FrontendKey::of(&headers.key)) else {
        return Opened::Decided;
    };
    let settings = tables.settings();
    let is_udp = headers.protocol() == Some(Protocol::Udp);
    let may_open = is_udp || headers.signal() == Signal::Open;
    if !may_open && !settings.flags.contains(SettingsFlags::ADOPT_MID_FLOW) {
        *verdict = Verdict::Pass(Pass::MidFlow);
        return Opened::Decided;
    }
    let now = tables.now();
    *verdict = match select_backend(tables, frontend, &headers.key, now) {
        Ok(chosen) => {
            let mut flow = record(headers, frontend.service, &chosen, (now, tables.tick()));
            let mut answer = answer_key(headers, settings, &chosen);
            establish(packet, tables, headers, &mut flow, &mut answer)
                .map_or_else(Verdict::Drop, Verdict::Rewrite)
        }
        Err(refusal) => {
            tables.count(frontend.service, packet.len(), Count::Refused);
            match refusal {
                Refusal::NoEndpoints => return Opened::NoEndpoints,
                Refusal::NoLocalEndpoint => Verdict::Drop(Drop::NoLocalEndpoint),
                Refusal::Inconsistent => {
                    *verdict = Verdict::Drop(Drop::Inconsistent);
                    return Opened::Replaced;
                }
            }
        }
    };
    Opened::Decided
}

/// Enters both records and rewrites the packet.
///
/// `flow` is the record of the answers that come with the key `answer`, and is made into that of
/// the packet: the kernel's stack has no room for two.
#[inline(always)]
fn establish<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    flow: &mut Flow,
    answer: &mut FlowKey,
) -> Result<Rewrite, Drop> {
    claim_answer(tables, headers, flow, answer)?;
    flow.to = answer.tuple.swapped();
    flow.role = FlowRole::Forward as u8;
    flow.twin_side = answer.side;
    if !tables.put_flow(&headers.key, flow) {
        return Err(Drop::FlowTable);
    }
    nat::rewrite(packet, tables, headers, &flow.to)?;
    tables.count(flow.service, packet.len(), Count::Flow);
    Ok(if flow.exit == Exit::Stack as u8 {
        Rewrite::NewFlow
    } else {
        Rewrite::HairpinForward
    })
}

/// The record of the direction from backend to client.
#[inline(always)]
fn record(headers: &Headers, service: u32, chosen: &Chosen<'_>, (now, tick): (u64, u32)) -> Flow {
    Flow {
        to: headers.key.tuple.swapped(),
        backend: chosen.id,
        generation: chosen.backend.generation,
        service,
        state: first_state(headers.protocol(), headers.signal()) as u8,
        role: FlowRole::Reverse as u8,
        twin_side: Side::Ingress as u8,
        device: 0,
        exit: if is_hairpin(headers, chosen) {
            Exit::Back
        } else {
            Exit::Stack
        } as u8,
        tick,
        _pad: 0,
        created: now,
        last_seen: now,
    }
}

/// What an answer of the backend looks like, and where it is seen.
///
/// A pod that reaches itself gets an address of the node as client: it would answer itself
/// directly, and never see the Service's address (rule R77). Its answer comes in where its
/// question did.
#[inline(always)]
fn answer_key(headers: &Headers, settings: &Settings, chosen: &Chosen<'_>) -> FlowKey {
    let from = &headers.key.tuple;
    let (client, side) = if is_hairpin(headers, chosen) {
        (hairpin_source(settings, from.dst), Side::Ingress)
    } else {
        (from.src, Side::Egress)
    };
    let tuple = Tuple {
        src: chosen.backend.addr,
        dst: client,
        src_port: chosen.backend.port,
        dst_port: from.src_port,
    };
    FlowKey {
        tuple,
        protocol: headers.key.protocol,
        side: side as u8,
        _pad: 0,
    }
}

#[inline(always)]
fn is_hairpin(headers: &Headers, chosen: &Chosen<'_>) -> bool {
    headers.key.tuple.src == chosen.backend.addr
}

#[inline(always)]
fn hairpin_source(settings: &Settings, frontend: Addr) -> Addr {
    let node = if frontend.is_v4() {
        settings.node_v4
    } else {
        settings.node_v6
    };
    if node.is_unspecified() {
        frontend
    } else {
        node
    }
}

/// Ports that are tried before giving up.
const ATTEMPTS: u32 = 8;

/// Inserts the record of the answers. If another flow owns the tuple that the backend would
/// answer to, the client's port is mapped to another one instead of crossing two streams.
#[inline(always)]
fn claim_answer<T: Tables>(
    tables: &T,
    headers: &Headers,
    flow: &Flow,
    answer: &mut FlowKey,
) -> Result<(), Drop> {
    for attempt in 1..=ATTEMPTS {
        match tables.claim_flow(answer, flow) {
            Claim::Ours => return Ok(()),
            Claim::Failed => return Err(Drop::FlowTable),
            Claim::Taken if is_own(tables, answer, flow) => return Ok(()),
            Claim::Taken => answer.tuple.dst_port = other_port(tables.settings(), headers, attempt),
        }
    }
    Err(Drop::PortsExhausted)
}

/// Whether the record there is this flow's own, left from before or made by another CPU just now.
/// Then it is brought up to date.
#[inline(always)]
fn is_own<T: Tables>(tables: &T, key: &FlowKey, reverse: &Flow) -> bool {
    let is_own = tables.with_flow(key, |other| {
        let is_own = other.to == reverse.to;
        if is_own {
            *other = *reverse;
        }
        is_own
    });
    is_own.unwrap_or(false)
}

/// A port of the range that is set aside for this, another one at each attempt.
#[inline(always)]
fn other_port(settings: &Settings, headers: &Headers, attempt: u32) -> Port {
    let first = u32::from(settings.first_port.number());
    let count = u32::from(settings.last_port.number())
        .wrapping_sub(first)
        .wrapping_add(1);
    let seed = u32::from(headers.key.tuple.src_port.number()).wrapping_add(attempt << 16);
    let offset = (u64::from(finish(seed)) * u64::from(count)) >> 32;
    Port::new(first.wrapping_add(offset as u32) as u16)
}
