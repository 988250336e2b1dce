//! Which sockets have to leave their backends. Pure.
//!
//! It is what becomes of flows that are translated packet by packet, with other means: a socket is
//! told where a flow would have moved, a TCP socket where its SYN would have opened a flow anew.

use proxy_common::abi::{Backend, Frontend, Protocol, SocketRecord};
use proxy_common::datapath::fate::{Fate as Flow, of_client};

use crate::node::GoneBackends;

/// How long Linux goes on with SYNs by default, and some: nanoseconds.
const CONNECTING: u64 = 140_000_000_000;

/// What becomes of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It goes on.
    Stays,
    /// It has to leave.
    Leaves,
    /// It has to leave if it has had no answer yet.
    LeavesIfConnecting,
}

/// Decides about a socket whose backend's entry is `backend`.
///
/// `may_move` says whether who dials the frontend now finds a backend, `now` is the time in
/// nanoseconds of `CLOCK_MONOTONIC`.
pub(super) fn fate(
    record: &SocketRecord,
    backend: &Backend,
    gone_backends: GoneBackends,
    now: u64,
    may_move: impl FnOnce() -> bool,
) -> Fate {
    let is_udp = record.protocol == Protocol::Udp.number();
    let keeps = || gone_backends == GoneBackends::Keep;
    let backend = Some(backend);
    let generation = record.generation;
    if of_client(backend, generation, is_udp, false, keeps, may_move) != Flow::Lives {
        return Fate::Leaves;
    }
    let may_be_connecting = !is_udp && now.saturating_sub(record.last_seen) < CONNECTING;
    if may_be_connecting
        && of_client(backend, generation, is_udp, true, keeps, || false) != Flow::Lives
    {
        Fate::LeavesIfConnecting
    } else {
        Fate::Stays
    }
}

/// Whether who dials this frontend finds a backend.
pub(super) fn has_backend(frontend: &Frontend) -> bool {
    frontend.n_cluster != 0 || frontend.n_local != 0
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::abi::{Addr, BackendFlags, BackendState, Peer, Port};

    use super::*;

    const DIALLED: u64 = 5_000_000_000;
    const SOON: u64 = DIALLED + 1_000_000_000;

    fn record(protocol: Protocol) -> SocketRecord {
        let peer = |last| Peer::new(Addr::from(Ipv4Addr::new(10, 0, 0, last)), Port::new(53));
        SocketRecord {
            frontend: peer(1),
            backend: peer(2),
            id: 3,
            generation: 4,
            service: 5,
            protocol: protocol.number(),
            _pad: [0; 3],
            netns: 6,
            last_seen: DIALLED,
        }
    }

    fn backend(state: BackendState, generation: u32, flags: BackendFlags) -> Backend {
        Backend {
            addr: record(Protocol::Udp).backend.addr,
            service: 5,
            generation,
            joined: 1,
            port: Port::new(53),
            state: state as u8,
            flags,
        }
    }

    /// Fates of a UDP and a TCP socket.
    fn fates(backend: &Backend, gone: GoneBackends, may_move: bool) -> [Fate; 2] {
        [Protocol::Udp, Protocol::Tcp]
            .map(|protocol| fate(&record(protocol), backend, gone, SOON, || may_move))
    }

    #[test]
    fn whoever_serves_keeps_its_sockets() {
        for state in [
            BackendState::Active,
            BackendState::Terminating,
            BackendState::NotReady,
        ] {
            let backend = backend(state, 4, BackendFlags::NONE);
            let fates = fates(&backend, GoneBackends::Reset, true);
            assert_eq!(fates, [Fate::Stays; 2], "{state:?}");
        }
    }

    #[test]
    fn udp_leaves_what_does_not_serve_if_somebody_else_does() {
        for state in [BackendState::NotServing, BackendState::Detached] {
            for gone in [GoneBackends::Reset, GoneBackends::Keep] {
                let backend = backend(state, 4, BackendFlags::NONE);
                let [udp, tcp] = fates(&backend, gone, true);
                assert_eq!((udp, tcp), (Fate::Leaves, Fate::Stays), "{state:?}");
                assert_eq!(fates(&backend, gone, false), [Fate::Stays; 2], "{state:?}");
            }
        }
    }

    #[test]
    fn all_are_told_that_a_backend_is_gone() {
        let gone = backend(BackendState::Gone, 5, BackendFlags::NONE);
        for may_move in [false, true] {
            let fates = fates(&gone, GoneBackends::Reset, may_move);
            assert_eq!(fates, [Fate::Leaves; 2]);
        }
    }

    #[test]
    fn a_backend_that_keeps_loses_who_has_had_no_answer_and_udp_if_it_finds_another() {
        let gone = backend(BackendState::Gone, 5, BackendFlags::NONE);
        let [udp, tcp] = fates(&gone, GoneBackends::Keep, true);
        assert_eq!((udp, tcp), (Fate::Leaves, Fate::LeavesIfConnecting));
        let [udp, tcp] = fates(&gone, GoneBackends::Keep, false);
        assert_eq!((udp, tcp), (Fate::Stays, Fate::LeavesIfConnecting));
        let late = DIALLED + CONNECTING;
        let tcp = record(Protocol::Tcp);
        let fate = fate(&tcp, &gone, GoneBackends::Keep, late, || true);
        assert_eq!(fate, Fate::Stays);
    }

    #[test]
    fn the_service_has_the_last_word() {
        let gone = |flags| backend(BackendState::Gone, 5, flags);
        let reset = gone(BackendFlags::RESET_WHEN_GONE);
        assert_eq!(fates(&reset, GoneBackends::Keep, false), [Fate::Leaves; 2]);
        let keep = gone(BackendFlags::KEEP_WHEN_GONE);
        let [udp, tcp] = fates(&keep, GoneBackends::Reset, false);
        assert_eq!((udp, tcp), (Fate::Stays, Fate::LeavesIfConnecting));
    }

    #[test]
    fn another_life_of_the_id_is_another_backend() {
        let other = backend(BackendState::Active, 5, BackendFlags::KEEP_WHEN_GONE);
        let fates = fates(&other, GoneBackends::Reset, false);
        assert_eq!(fates, [Fate::Leaves; 2]);
    }
}
