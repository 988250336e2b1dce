//! What becomes of a flow when its backend changes.

use core::hint::black_box;

use super::Tables;
use super::conntrack::is_over;
use super::find::{self, Found};
use crate::abi::{BackendState, Flow, FlowKey, FlowState, Protocol, SettingsFlags};

/// What becomes of a flow with a packet of its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
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
    match tables.backend(id) {
        Some(backend) if backend.generation == generation => {
            let is_left = backend.state == BackendState::NotServing as u8
                || backend.state == BackendState::Detached as u8;
            if is_udp && is_left && may_move() {
                Fate::Over
            } else {
                Fate::Lives
            }
        }
        Some(_) | None => {
            let keeps = tables.settings().flags.contains(SettingsFlags::KEEP_GONE);
            let is_over = opens || (is_udp && (!keeps || may_move()));
            match (is_over, keeps) {
                (true, _) => Fate::Over,
                (false, true) => Fate::Lives,
                (false, false) => Fate::Gone,
            }
        }
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
