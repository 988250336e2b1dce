//! How far a flow has come, after Linux' `net/netfilter/nf_conntrack_proto_{tcp,udp,sctp}.c`.

use core::hint::black_box;

use super::Tables;
use super::parse::Signal;
use crate::abi::{Flow, FlowKey, FlowRole, FlowState, Protocol};

/// Without a change of state, records are brought up to date when this many ticks have passed: a
/// quarter of a second to two and a half, as the kernel was built.
pub const REFRESH: u32 = 250;

/// Datagrams both ways for this long make a stream: nanoseconds.
const STREAM_AFTER: u64 = 2_000_000_000;

/// The state of a flow that this packet opens.
#[inline(always)]
pub const fn first_state(protocol: Option<Protocol>, signal: Signal) -> FlowState {
    match (protocol, signal) {
        (Some(Protocol::Udp) | None, _) => FlowState::UdpUnreplied,
        (Some(Protocol::Tcp), Signal::Open) => FlowState::TcpSynSent,
        (Some(Protocol::Tcp), _) => FlowState::TcpEstablished,
        (Some(Protocol::Sctp), Signal::Open) => FlowState::SctpCookieWait,
        (Some(Protocol::Sctp), _) => FlowState::SctpEstablished,
    }
}

/// The state after a packet with `signal` from the side that `role` speaks for.
#[inline(always)]
pub const fn next_state(state: FlowState, role: FlowRole, signal: Signal) -> FlowState {
    use FlowRole::{Forward, Reverse};
    use FlowState::{
        SctpClosed, SctpCookieEchoed, SctpCookieWait, SctpEstablished, SctpShutdown, TcpClose,
        TcpCloseWait, TcpEstablished, TcpFinWait, TcpSynRecv, TcpSynSent, TcpTimeWait, UdpReplied,
        UdpStream, UdpUnreplied,
    };
    match (state, signal, role) {
        (UdpUnreplied, _, Reverse) => UdpReplied,
        (UdpUnreplied | UdpReplied | UdpStream, _, _) => state,

        (SctpClosed, _, _) | (_, Signal::Closed, _) => SctpClosed,
        (SctpCookieWait | SctpCookieEchoed | SctpEstablished | SctpShutdown, Signal::Abort, _) => {
            SctpClosed
        }
        (SctpCookieWait, Signal::CookieEcho, _) => SctpCookieEchoed,
        (SctpCookieWait | SctpCookieEchoed, Signal::CookieAck, _) => SctpEstablished,
        (SctpEstablished, Signal::Close, _) => SctpShutdown,
        (SctpCookieWait | SctpCookieEchoed | SctpEstablished | SctpShutdown, _, _) => state,

        (_, Signal::Abort, _) => TcpClose,
        (TcpSynSent, Signal::OpenAnswer, Reverse) => TcpSynRecv,
        (TcpSynRecv, Signal::Data, Forward) => TcpEstablished,
        (TcpSynRecv | TcpEstablished, Signal::Close, Forward) => TcpFinWait,
        (TcpSynRecv | TcpEstablished, Signal::Close, Reverse) => TcpCloseWait,
        (TcpFinWait, Signal::Close, Reverse) | (TcpCloseWait, Signal::Close, Forward) => {
            TcpTimeWait
        }
        _ => state,
    }
}

/// Whether a packet that opens a flow may do so although there is a record: the old one is over.
#[inline(always)]
pub const fn is_over(state: FlowState) -> bool {
    matches!(
        state,
        FlowState::TcpTimeWait | FlowState::TcpClose | FlowState::SctpClosed
    )
}

/// The key of the other record of the conversation.
#[inline(always)]
pub const fn twin_key(flow: &Flow, protocol: u8) -> FlowKey {
    FlowKey {
        tuple: flow.to.swapped(),
        protocol,
        side: flow.twin_side,
        _pad: 0,
    }
}

/// Takes note of a packet in its record.
///
/// Most packets change nothing and write nothing, so that the record can stay in the caches of
/// all CPUs.
#[inline(always)]
pub fn touch<T: Tables>(tables: &T, flow: &mut Flow, protocol: u8, signal: Signal) {
    let (Some(role), Some(state)) = (
        FlowRole::from_number(flow.role),
        FlowState::from_number(flow.state),
    ) else {
        return;
    };
    let tick = tables.tick();
    let next = next_state(state, role, signal);
    if next != state || tick.wrapping_sub(flow.tick) >= REFRESH {
        flow.tick = tick;
        let _told = black_box(refresh(tables, flow, protocol, next as u8));
    }
}

/// Brings both records up to date, with the state `next`: then neither of the two grows old, or is
/// evicted, alone. Returns whether the twin was there; one that was evicted is made anew by the
/// next packet that opens the flow.
#[inline(never)]
fn refresh<T: Tables>(tables: &T, flow: &mut Flow, protocol: u8, next: u8) -> bool {
    let now = tables.now();
    let was_replied = flow.state == FlowState::UdpReplied as u8;
    let is_stream = was_replied && now.wrapping_sub(flow.created) > STREAM_AFTER;
    flow.state = if is_stream {
        FlowState::UdpStream as u8
    } else {
        next
    };
    flow.last_seen = now;
    let told = tables.with_flow(&twin_key(flow, protocol), |twin| {
        twin.state = flow.state;
        twin.last_seen = now;
    });
    told.is_some()
}

/// Forgets the other record of the conversation. Returns whether it was there.
#[inline(never)]
pub fn remove_twin<T: Tables>(tables: &T, flow: &Flow, protocol: u8) -> bool {
    tables.remove_flow(&twin_key(flow, protocol))
}
