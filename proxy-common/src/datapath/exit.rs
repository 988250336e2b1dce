//! Where a rewritten packet or an answer goes.

use super::reply::turn_ethernet;
use super::{Hook, Origin, Packet, Route, Tables};
use crate::abi::{Drop, Exit, Tuple};

/// Why a packet cannot go where it should.
pub(super) enum Stuck {
    /// It is dropped.
    Drop(Drop),
    /// The device takes packets of so many bytes at most.
    TooLong(u32),
}

/// Looks for the way of a packet that is going to have the addresses of `to`.
///
/// To be called before the packet is rewritten: one that does not fit is answered with its own
/// words.
#[inline(always)]
pub(super) fn prepare<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    exit: Exit,
    to: &Tuple,
) -> Result<(), Stuck> {
    if exit != Exit::Route {
        return Ok(());
    }
    let origin = origin(packet, tables, hook);
    match packet.route(&to.src, &to.dst, origin) {
        Route::Neighbour(device) => fits(packet, tables, device),
        Route::None => Err(Stuck::Drop(Drop::NoRoute)),
    }
}

#[inline(always)]
fn fits<P: Packet, T: Tables>(packet: &P, tables: &T, device: u32) -> Result<(), Stuck> {
    const ETHERNET_LEN: u32 = super::parse::ETHERNET_LEN;
    match tables.device(device) {
        Some(device)
            if packet.len() > device.mtu.saturating_add(ETHERNET_LEN) && !packet.is_segmented() =>
        {
            Err(Stuck::TooLong(device.mtu))
        }
        Some(_) | None => Ok(()),
    }
}

/// Sends the packet its way.
#[inline(always)]
pub(super) fn leave<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    exit: Exit,
    device: u32,
) -> Result<(), Drop> {
    match exit {
        // The way has been found.
        Exit::Stack | Exit::Route => Ok(()),
        Exit::Back => turn_back(packet),
        Exit::Host => enter(packet, tables, device),
    }
}

/// Sends an answer to the packet's sender.
#[inline(always)]
pub(super) fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<(), Drop> {
    let device = packet.device();
    if hook == Hook::NodeEgress {
        enter(packet, tables, device)
    } else {
        turn_back(packet)
    }
}

/// Where the packet comes from, to the routing table.
#[inline(always)]
pub(super) fn origin<P: Packet, T: Tables>(packet: &P, tables: &T, hook: Hook) -> Origin {
    let is_own = hook == Hook::NodeEgress;
    let device = if is_own {
        tables.settings().host_device
    } else {
        packet.device()
    };
    Origin { device, is_own }
}

/// Back out of the device it came in by.
#[inline(always)]
fn turn_back<P: Packet>(packet: &mut P) -> Result<(), Drop> {
    turn_ethernet(packet).ok_or(Drop::Write)?;
    let device = packet.device();
    packet.redirect_out(device);
    Ok(())
}

/// Into this node by `device`, whose link-layer address it gets, or it would be taken for another
/// host's. As source, too, by which it is known when it comes in.
#[inline(always)]
fn enter<P: Packet, T: Tables>(packet: &mut P, tables: &T, device: u32) -> Result<(), Drop> {
    let [a, b, c] = tables.device(device).ok_or(Drop::NoRoute)?.mac;
    packet.store(0, [a, b, c, a, b, c]).ok_or(Drop::Write)?;
    packet.redirect_in(device);
    Ok(())
}
