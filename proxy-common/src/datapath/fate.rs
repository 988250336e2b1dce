//! What becomes of a flow when its backend changes.

use core::hint::black_box;

use super::Tables;
use super::conntrack::is_over;
use super::find::{self, Found};
use crate::abi::{Backend, BackendState, Flow, FlowKey, FlowState, Protocol, SettingsFlags};

/// What becomes of a flow with a packet of its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It goes on.
    Lives,
    /// The packet may open another in its place.
    Over,
    /// Its backend is gone.
    Gone,
}

/// The fate of a flow with the record `flow`. `opens`: the packet would open one.
#[inline(always)]
pub(super) fn of_flow<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow, opens: bool) -> Fate {
    if opens && FlowState::from_number(flow.state).is_none_or(is_over) {
        return Fate::Over;
    }
    let is_udp = key.protocol == Protocol::Udp.number();
    let backend = (flow.backend, flow.generation);
    with_backend(tables, backend, is_udp, opens, || {
        black_box(may_move(tables, key))
    })
}

/// The fate of a flow whose backend has, or had, this id and generation. `may_move`: whether it
/// would find another one.
#[inline(always)]
pub(super) fn with_backend<T: Tables>(
    tables: &T,
    (id, generation): (u32, u32),
    is_udp: bool,
    opens: bool,
    may_move: impl FnOnce() -> bool,
) -> Fate {
    let keeps = || tables.settings().flags.contains(SettingsFlags::KEEP_GONE);
    let backend = tables.backend(id);
    of_client(backend, generation, is_udp, opens, keeps, may_move)
}

/// The fate of whoever remembers `generation` of a backend whose entry is `backend` now.
///
/// `opens`: it would open a flow. `keeps`: whether this node leaves TCP and SCTP alone where the
/// Service does not say. `may_move`: whether it would find another backend.
#[inline(always)]
pub fn of_client(
    backend: Option<&Backend>,
    generation: u32,
    is_udp: bool,
    opens: bool,
    keeps: impl FnOnce() -> bool,
    may_move: impl FnOnce() -> bool,
) -> Fate {
    let current = backend.filter(|backend| backend.generation == generation);
    let is_left = current.is_some_and(|backend| {
        backend.state == BackendState::NotServing as u8
            || backend.state == BackendState::Detached as u8
    });
    let keeps = current.is_none() && {
        let keeps = keeps();
        backend.map_or(keeps, |backend| backend.keeps(generation, keeps))
    };
    // Asked for in one place: the look-up is long.
    let moves = is_udp && (is_left || keeps) && may_move();
    match (current, keeps) {
        _ if moves => Fate::Over,
        (Some(_), _) => Fate::Lives,
        (None, _) if opens => Fate::Over,
        (None, true) => Fate::Lives,
        (None, false) if is_udp => Fate::Over,
        (None, false) => Fate::Gone,
    }
}

/// Whether a flow could find another backend where it was opened.
#[inline(never)]
fn may_move<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    has_backends(find::frontend(tables, key))
}

/// Whether there is a backend at what was found.
#[inline(always)]
pub(super) fn has_backends(found: Found<'_>) -> bool {
    match found {
        Found::Frontend(frontend) => frontend.n_cluster != 0 || frontend.n_local != 0,
        Found::UnusedPort | Found::Unallocated | Found::Nothing => false,
    }
}
