//! The first packet of a flow.

use core::hint::black_box;

use super::conntrack::{first_state, is_over, remove_twin};
use super::exit;
use super::find::{self, Found};
use super::parse::{Headers, Signal};
use super::policy::{self, Client};
use super::select::{self, Asker, Chosen, Refusal, finish, select_backend};
use super::{Claim, Count, Draft, Hook, Packet, Route, Tables};
use crate::abi::{
    Addr, Drop, Exit, Flow, FlowKey, FlowRole, FlowState, Frontend, FrontendFlags, Pass, Port,
    RefusalReason, SettingsFlags, Side, Verdict,
};

/// How far [`open`] came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// Both records are there.
    Ready,
    /// The frontend was replaced while it was read, and had better be read again.
    Replaced,
    /// The verdict is given.
    Decided,
    /// The Service has no endpoints, which is for the caller to answer: its stack has room for it.
    NoEndpoints,
    /// The Service has no such port, likewise.
    UnusedPort,
}

/// Looks for the frontend that the packet is for, chooses a backend and records the flow in both
/// directions.
#[inline(never)]
pub(super) fn open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    verdict: &mut Verdict,
) -> Opened {
    *verdict = Verdict::Pass(Pass::NoService);
    let found = find::frontend(tables, &headers.key);
    if found == Found::Nothing {
        let may_have_flows = hook != Hook::PodIngress || tables.has_flows(&headers.key.tuple.src);
        if headers.signal() == Signal::Open && may_have_flows {
            let _was_there = black_box(make_way(tables, &headers.key, hook));
        }
        return Opened::Decided;
    }
    if hook == Hook::NodeIngress && was_delivered(packet) {
        *verdict = Verdict::Pass(Pass::Delivered);
        return Opened::Decided;
    }
    if hook == Hook::NodeEgress && !policy::is_own(tables, &headers.key.tuple.src) {
        return Opened::Decided;
    }
    if tables.settings().flags.contains(SettingsFlags::HANDED_BACK) {
        *verdict = Verdict::Pass(Pass::HandedBack);
        return Opened::Decided;
    }
    match found {
        Found::Frontend(frontend) => begin(packet, tables, headers, hook, frontend, verdict),
        Found::UnusedPort => Opened::UnusedPort,
        Found::Unallocated | Found::Nothing => {
            *verdict = Verdict::Drop(Drop::Unallocated);
            Opened::Decided
        }
    }
}

/// Forgets a flow that is over if its answers would look like those to this packet, which goes to a
/// backend itself: they are nobody's but the backend's.
#[inline(never)]
fn make_way<T: Tables>(tables: &T, key: &FlowKey, hook: Hook) -> bool {
    let side = if hook == Hook::NodeEgress {
        Side::Ingress
    } else {
        Side::Egress
    };
    let answer = FlowKey {
        tuple: key.tuple.swapped(),
        side: side as u8,
        ..*key
    };
    let was_over = tables.with_flow(&answer, |flow| {
        let was_over = FlowState::from_number(flow.state).is_none_or(is_over);
        if was_over {
            let _was_there = black_box(remove_twin(tables, flow, answer.protocol));
        }
        was_over
    });
    was_over == Some(true) && tables.remove_flow(&answer)
}

/// Whether a packet that would open a flow now belongs to one that is translated already: Beeline
/// lets it come in once more, with one link-layer address for both ends.
#[inline(always)]
fn was_delivered<P: Packet>(packet: &P) -> bool {
    packet
        .load(0)
        .is_some_and(|[a, b, c, d, e, f]: [u16; 6]| [a, b, c] == [d, e, f])
}

/// Why a flow does not begin.
enum Refused {
    NoEndpoints,
    Drop(Drop),
}

impl Refused {
    /// What is counted for the Service.
    #[inline(always)]
    const fn reason(&self) -> RefusalReason {
        match self {
            Self::NoEndpoints => RefusalReason::NoEndpoint,
            Self::Drop(Drop::NoLocalEndpoint) => RefusalReason::NoLocalEndpoint,
            Self::Drop(Drop::SourceRange) => RefusalReason::SourceRange,
            Self::Drop(Drop::PortsExhausted) => RefusalReason::PortsExhausted,
            Self::Drop(Drop::FlowTable) => RefusalReason::FlowTable,
            Self::Drop(
                Drop::Inconsistent
                | Drop::SctpFragment
                | Drop::Write
                | Drop::NoAnswer
                | Drop::Unallocated
                | Drop::NoRoute
                | Drop::TooLong,
            ) => RefusalReason::Other,
        }
    }
}

#[inline(always)]
fn begin<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    frontend: &Frontend,
    verdict: &mut Verdict,
) -> Opened {
    let refused = judge(packet, tables, headers, hook, frontend).err();
    let what = match &refused {
        None => Count::Flow,
        Some(refused) => Count::Refused(refused.reason()),
    };
    tables.count(frontend.service, packet.len(), what);
    match refused {
        None => Opened::Ready,
        Some(Refused::NoEndpoints) => Opened::NoEndpoints,
        Some(Refused::Drop(reason)) => {
            *verdict = Verdict::Drop(reason);
            if reason == Drop::Inconsistent {
                Opened::Replaced
            } else {
                Opened::Decided
            }
        }
    }
}

#[inline(always)]
fn judge<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    hook: Hook,
    frontend: &Frontend,
) -> Result<(), Refused> {
    let src = &headers.key.tuple.src;
    if frontend.flags.contains(FrontendFlags::SOURCE_RANGES)
        && !tables.is_in_source_ranges(frontend.service, src)
    {
        return Err(Refused::Drop(Drop::SourceRange));
    }
    let client = policy::client(tables, hook, packet.device(), src);
    let local_only = policy::is_local_only(frontend, client);
    let now = tables.now();
    let asker = Asker {
        client: src,
        hash: select::hash(&headers.key, frontend.service),
    };
    let chosen =
        select_backend(tables, frontend, local_only, asker, now).map_err(
            |refusal| match refusal {
                Refusal::NoEndpoints => Refused::NoEndpoints,
                Refusal::NoLocalEndpoint => Refused::Drop(Drop::NoLocalEndpoint),
                Refusal::Inconsistent => Refused::Drop(Drop::Inconsistent),
            },
        )?;
    match hook {
        Hook::PodIngress => tables.note_flows(src),
        Hook::NodeEgress => tables.note_flows(&chosen.backend.addr),
        Hook::NodeIngress | Hook::PodEgress => {}
    }
    let recorded = tables.with_draft(|draft| {
        record(
            draft,
            headers,
            frontend.service,
            &chosen,
            (now, tables.tick()),
        );
        let plan = plan(packet, tables, hook, (frontend, client), &chosen, draft)?;
        draft.flow.exit = plan.back as u8;
        draft.flow.device = packet.device();
        enter(tables, headers, draft, &plan)
    });
    recorded
        .unwrap_or(Err(Drop::FlowTable))
        .map_err(Refused::Drop)
}

/// Enters the records of both directions.
#[inline(always)]
fn enter<T: Tables>(
    tables: &T,
    headers: &Headers,
    draft: &mut Draft,
    plan: &Plan,
) -> Result<(), Drop> {
    claim_answer(tables, headers, draft, plan.new_port)?;
    let Draft { flow, answer } = draft;
    flow.to.src = answer.tuple.dst;
    flow.to.dst = answer.tuple.src;
    flow.to.src_port = answer.tuple.dst_port;
    flow.to.dst_port = answer.tuple.src_port;
    flow.role = FlowRole::Forward as u8;
    flow.twin_side = answer.side;
    flow.exit = plan.out as u8;
    flow.device = LOOPBACK;
    if tables.put_flow(&headers.key, flow) {
        Ok(())
    } else {
        Err(Drop::FlowTable)
    }
}

/// Index of `lo`, in every network namespace. A packet that is delivered into this node on its way
/// forward comes in there: nothing else takes one whose source is local, too.
const LOOPBACK: u32 = 1;

/// Drafts the record of the answers, and its key for a client that keeps its address.
#[inline(always)]
fn record(
    draft: &mut Draft,
    headers: &Headers,
    service: u32,
    chosen: &Chosen<'_>,
    (now, tick): (u64, u32),
) {
    let asked = &headers.key;
    let Draft { flow, answer } = draft;
    flow.to.src = asked.tuple.dst;
    flow.to.dst = asked.tuple.src;
    flow.to.src_port = asked.tuple.dst_port;
    flow.to.dst_port = asked.tuple.src_port;
    flow.backend = chosen.id;
    flow.generation = chosen.backend.generation;
    flow.service = service;
    flow.state = first_state(headers.protocol(), headers.signal()) as u8;
    flow.role = FlowRole::Reverse as u8;
    flow.twin_side = asked.side;
    flow.tick = tick;
    flow._pad = 0;
    flow.created = now;
    flow.last_seen = now;
    answer.tuple.src = chosen.backend.addr;
    answer.tuple.dst = asked.tuple.src;
    answer.tuple.src_port = chosen.backend.port;
    answer.tuple.dst_port = asked.tuple.src_port;
    answer.protocol = asked.protocol;
    answer.side = Side::Egress as u8;
    answer._pad = 0;
}

/// Which way a flow's packets go.
struct Plan {
    /// Those of the client.
    out: Exit,
    /// Those of the backend.
    back: Exit,
    /// The client's port is replaced in any case.
    new_port: bool,
}

/// Plans a flow, and gives its answers the address that the backend is to answer to and the side
/// at which they will be seen.
#[inline(always)]
fn plan<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    (frontend, client): (&Frontend, Client),
    chosen: &Chosen<'_>,
    draft: &mut Draft,
) -> Result<Plan, Drop> {
    // The answers go to the client, from the address that it dialled.
    let dialled = draft.flow.to.src;
    let answer = &mut draft.answer;
    let keep = Plan {
        out: Exit::Stack,
        back: Exit::Stack,
        new_port: false,
    };
    let src = answer.tuple.dst;
    let is_here = policy::is_here(tables, &chosen.backend.addr);
    if hook == Hook::NodeEgress {
        if is_here {
            return Ok(Plan {
                out: Exit::Host,
                back: Exit::Host,
                ..keep
            });
        }
        answer.side = Side::Ingress as u8;
        let source = source_towards(packet, tables, hook, answer)?;
        answer.tuple.dst = source;
        return Ok(Plan {
            out: Exit::Route,
            back: Exit::Host,
            new_port: source != src,
        });
    }
    if is_here || !policy::hides_client(tables, hook, frontend, (client, &src), chosen.backend) {
        return Ok(keep);
    }
    answer.side = Side::Ingress as u8;
    tables.note_flows(&answer.tuple.src);
    if hook == Hook::PodIngress && src == chosen.backend.addr {
        // A pod that reaches itself would answer itself directly, and never see the Service's
        // address (rule R77). Its answer comes in where its question did.
        let node = node_address(tables, &src);
        answer.tuple.dst = if node.is_unspecified() { dialled } else { node };
        return Ok(Plan {
            out: Exit::Back,
            back: Exit::Back,
            new_port: false,
        });
    }
    answer.tuple.dst = source_towards(packet, tables, hook, answer)?;
    Ok(Plan {
        out: Exit::Route,
        back: Exit::Route,
        new_port: true,
    })
}

/// The source address of packets towards the backend that gives `answer`: that of the device by
/// which they leave (rule R79).
#[inline(always)]
fn source_towards<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    answer: &FlowKey,
) -> Result<Addr, Drop> {
    let origin = exit::origin(packet, tables, hook);
    // The kernel routes nothing from ::1, not even a question.
    let asked_from = if answer.tuple.dst.is_loopback() {
        &Addr::UNSPECIFIED
    } else {
        &answer.tuple.dst
    };
    let Route::Neighbour(device) = packet.route(asked_from, &answer.tuple.src, origin) else {
        return Err(Drop::NoRoute);
    };
    let of_device = tables.device(device).map_or(Addr::UNSPECIFIED, |device| {
        if answer.tuple.dst.is_v4() {
            device.v4
        } else {
            device.v6
        }
    });
    if !of_device.is_unspecified() {
        return Ok(of_device);
    }
    let source = node_address(tables, &answer.tuple.dst);
    if source.is_unspecified() {
        Err(Drop::NoRoute)
    } else {
        Ok(source)
    }
}

/// This node's address of the family of `like`.
#[inline(always)]
fn node_address<T: Tables>(tables: &T, like: &Addr) -> Addr {
    let settings = tables.settings();
    if like.is_v4() {
        settings.node_v4
    } else {
        settings.node_v6
    }
}

/// Ports that are tried before giving up.
const ATTEMPTS: u32 = 16;

/// Inserts the record of the answers. If another flow owns the tuple that the backend would
/// answer to, the client's port is mapped to another one instead of crossing two streams.
#[inline(always)]
fn claim_answer<T: Tables>(
    tables: &T,
    headers: &Headers,
    draft: &mut Draft,
    new_port: bool,
) -> Result<(), Drop> {
    let Draft { flow, answer } = draft;
    if new_port {
        answer.tuple.dst_port = other_port(tables, headers, 0);
    }
    for attempt in 1..=ATTEMPTS {
        match black_box(claim(tables, answer, flow)) {
            Claim::Ours => return Ok(()),
            Claim::Failed => return Err(Drop::FlowTable),
            Claim::Taken => answer.tuple.dst_port = other_port(tables, headers, attempt),
        }
    }
    Err(Drop::PortsExhausted)
}

/// Claims a tuple for a flow. It may be this flow's own record, left from before or made by another
/// CPU just now; that one is brought up to date. A record of a flow that is over gives way.
#[inline(never)]
fn claim<T: Tables>(tables: &T, key: &FlowKey, reverse: &Flow) -> Claim {
    let claimed = tables.claim_flow(key, reverse);
    if claimed != Claim::Taken {
        return claimed;
    }
    let holder = tables.with_flow(key, |other| {
        if other.to == reverse.to && other.twin_side == reverse.twin_side {
            *other = *reverse;
            Holder::This
        } else if FlowState::from_number(other.state).is_none_or(is_over) {
            let _was_there = black_box(remove_twin(tables, other, key.protocol));
            Holder::Nobody
        } else {
            Holder::Other
        }
    });
    match holder {
        Some(Holder::This) => Claim::Ours,
        Some(Holder::Other) => Claim::Taken,
        // Only one CPU removes it, and whoever comes first has the tuple.
        Some(Holder::Nobody) if !tables.remove_flow(key) => Claim::Taken,
        Some(Holder::Nobody) | None => tables.claim_flow(key, reverse),
    }
}

/// Whose record is in the way.
enum Holder {
    This,
    Other,
    Nobody,
}

/// A port of the range that is set aside for this, another one at each attempt.
#[inline(always)]
fn other_port<T: Tables>(tables: &T, headers: &Headers, attempt: u32) -> Port {
    let settings = tables.settings();
    let first = u32::from(settings.first_port.number());
    let count = u32::from(settings.last_port.number())
        .wrapping_sub(first)
        .wrapping_add(1);
    let tuple = &headers.key.tuple;
    let from = u32::from(tuple.src_port.number()).wrapping_add(attempt << 16);
    let seed = from ^ finish(tuple.src.v4_word());
    let offset = (u64::from(finish(seed)) * u64::from(count)) >> 32;
    Port::new(first.wrapping_add(offset as u32) as u16)
}
