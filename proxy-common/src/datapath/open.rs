//! The first packet of a flow.

use super::conntrack::first_state;
use super::parse::{Headers, Signal};
use super::select::{Chosen, Refusal, finish, select_backend};
use super::{Claim, Count, Packet, Tables, ingress, nat};
use crate::abi::{
    Addr, Drop, Flow, FlowKey, FlowRole, Frontend, FrontendKey, Pass, Port, Protocol, Rewrite,
    Settings, SettingsFlags, Side, Tuple, Verdict,
};

/// What became of a packet without a record.
pub(super) enum Opened {
    /// All is decided.
    Done(Verdict),
    /// The Service has no endpoints; the caller answers (its stack has room for that).
    NoEndpoints,
}

/// Looks for the frontend that the packet is for, chooses a backend, records the flow in both
/// directions and rewrites the packet.
#[inline(never)]
pub(super) fn open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    protocol: Protocol,
) -> Opened {
    let Some(frontend) = frontend(tables, headers, protocol) else {
        return Opened::Done(Verdict::Pass(Pass::NoService));
    };
    let settings = tables.settings();
    let may_open = protocol == Protocol::Udp || headers.signal == Signal::Open;
    if !may_open && !settings.flags.contains(SettingsFlags::ADOPT_MID_FLOW) {
        return Opened::Done(Verdict::Pass(Pass::MidFlow));
    }
    let now = tables.now();
    let chosen = match choose(tables, &frontend, headers, protocol, now) {
        Ok(chosen) => chosen,
        Err(refusal) => {
            tables.count(frontend.service, packet.len(), Count::Refused);
            return refuse(refusal);
        }
    };
    let mut flow = record(headers, protocol, &settings, &frontend, &chosen, now);
    Opened::Done(
        match establish(packet, tables, headers, protocol, &settings, &mut flow) {
            Ok(rewrite) => Verdict::Rewrite(rewrite),
            Err(drop) => Verdict::Drop(drop),
        },
    )
}

#[inline(always)]
fn frontend<T: Tables>(tables: &T, headers: &Headers, protocol: Protocol) -> Option<Frontend> {
    tables.frontend(&FrontendKey::exact(
        headers.tuple.dst,
        headers.tuple.dst_port,
        protocol,
    ))
}

/// Chooses a backend. Between reading the frontend and its slots the sync may have replaced both;
/// then the frontend that is in force now gives the answer.
#[inline(always)]
fn choose<T: Tables>(
    tables: &T,
    read: &Frontend,
    headers: &Headers,
    protocol: Protocol,
    now: u64,
) -> Result<Chosen, Refusal> {
    match select_backend(tables, read, &headers.tuple, protocol, now) {
        Err(Refusal::Inconsistent) => frontend(tables, headers, protocol)
            .ok_or(Refusal::Inconsistent)
            .and_then(|frontend| select_backend(tables, &frontend, &headers.tuple, protocol, now)),
        chosen => chosen,
    }
}

#[inline(always)]
const fn refuse(refusal: Refusal) -> Opened {
    match refusal {
        Refusal::NoEndpoints => Opened::NoEndpoints,
        Refusal::NoLocalEndpoint => Opened::Done(Verdict::Drop(Drop::NoLocalEndpoint)),
        Refusal::Inconsistent => Opened::Done(Verdict::Drop(Drop::Inconsistent)),
    }
}

/// Enters both records and rewrites the packet.
#[inline(always)]
fn establish<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    protocol: Protocol,
    settings: &Settings,
    flow: &mut Flow,
) -> Result<Rewrite, Drop> {
    claim_reverse(tables, headers, settings, flow)?;
    if !tables.put_flow(&ingress::key(headers, Side::Ingress), flow) {
        return Err(Drop::FlowTable);
    }
    nat::rewrite(packet, tables, headers, protocol, &flow.to)?;
    tables.count(flow.service, packet.len(), Count::Flow);
    Ok(if flow.turn_back == 0 {
        Rewrite::NewFlow
    } else {
        Rewrite::HairpinForward
    })
}

/// The record of the direction from client to backend.
///
/// A pod that reaches itself gets an address of the node as client: it would answer itself
/// directly, and never see the Service's address (rule R77).
#[inline(always)]
fn record(
    headers: &Headers,
    protocol: Protocol,
    settings: &Settings,
    frontend: &Frontend,
    chosen: &Chosen,
    now: u64,
) -> Flow {
    let from = &headers.tuple;
    let is_hairpin = from.src == chosen.backend.addr;
    let src = if is_hairpin {
        hairpin_source(settings, from.dst)
    } else {
        from.src
    };
    let to = Tuple {
        src,
        dst: chosen.backend.addr,
        src_port: from.src_port,
        dst_port: chosen.backend.port,
    };
    Flow {
        to,
        backend: chosen.id,
        generation: chosen.backend.generation,
        service: frontend.service,
        state: first_state(protocol, headers.signal) as u8,
        role: FlowRole::Forward as u8,
        twin_side: if is_hairpin {
            Side::Ingress
        } else {
            Side::Egress
        } as u8,
        turn_back: u8::from(is_hairpin),
        _pad: 0,
        created: now,
        last_seen: now,
    }
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

/// Inserts the reverse record. If another flow owns the tuple that the backend would answer to,
/// the client's port is mapped to another one instead of crossing two streams.
#[inline(always)]
fn claim_reverse<T: Tables>(
    tables: &T,
    headers: &Headers,
    settings: &Settings,
    forward: &mut Flow,
) -> Result<(), Drop> {
    let reverse = Flow {
        to: headers.tuple.swapped(),
        role: FlowRole::Reverse as u8,
        twin_side: Side::Ingress as u8,
        ..*forward
    };
    let mut key = FlowKey {
        tuple: forward.to.swapped(),
        protocol: headers.protocol,
        side: forward.twin_side,
        _pad: 0,
    };
    for attempt in 1..=ATTEMPTS {
        match tables.claim_flow(&key, &reverse) {
            Claim::Ours => return Ok(()),
            Claim::Failed => return Err(Drop::FlowTable),
            Claim::Taken if is_own(tables, &key, &reverse) => return Ok(()),
            Claim::Taken => {
                forward.to.src_port = other_port(settings, headers, attempt);
                key.tuple.dst_port = forward.to.src_port;
            }
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
    let seed = u32::from(headers.tuple.src_port.number()).wrapping_add(attempt << 16);
    let offset = (u64::from(finish(seed)) * u64::from(count)) >> 32;
    Port::new(first.wrapping_add(offset as u32) as u16)
}
