//! Which frontend a packet is for.

use super::{Sockets, Tables};
use crate::abi::{
    Addr, AddressFlags, FlowKey, Frontend, FrontendKey, NetworkFlags, SettingsFlags, SocketFlags,
};

/// What is at the address and port that a packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// A frontend.
    Frontend(&'a Frontend),
    /// A cluster IP that does not have this port (rule R15).
    UnusedPort,
    /// An address of a ServiceCIDR that no Service has (rule R16).
    Unallocated,
    /// Nothing of ours (rule R8).
    Nothing,
}

/// Looks for the frontend of a packet: an exact match comes before NodePorts (rule R94).
#[inline(always)]
pub fn frontend<'a, T: Tables>(tables: &'a T, key: &FlowKey) -> Found<'a> {
    let flags = tables.address(&key.tuple.dst);
    if flags.is_empty() {
        return elsewhere(tables, &key.tuple.dst);
    }
    let has_node_ports = flags.contains(AddressFlags::NODE_PORTS);
    match at(tables, key, has_node_ports) {
        Some(frontend) => Found::Frontend(frontend),
        None => no_port(flags),
    }
}

/// The same for a socket of this node, which may dial a loopback address: there are NodePorts, too,
/// if that is asked for.
#[inline(always)]
pub fn frontend_of_socket<'a, S: Sockets>(sockets: &'a S, key: &FlowKey) -> Found<'a> {
    if !key.tuple.dst.is_loopback() {
        return frontend(sockets, key);
    }
    let flags = sockets.socket_settings().flags;
    if !flags.contains(SocketFlags::LOCALHOST_NODE_PORTS) {
        return Found::Nothing;
    }
    sockets
        .frontend(&FrontendKey::node_port_of(key))
        .map_or(Found::Nothing, Found::Frontend)
}

#[inline(never)]
fn at<'a, T: Tables>(tables: &'a T, key: &FlowKey, has_node_ports: bool) -> Option<&'a Frontend> {
    tables.frontend(&FrontendKey::of(key)).or_else(|| {
        if has_node_ports {
            tables.frontend(&FrontendKey::node_port_of(key))
        } else {
            None
        }
    })
}

/// What is at an address for a protocol that has no ports.
#[inline(always)]
pub fn address<'a, T: Tables>(tables: &T, addr: &Addr) -> Found<'a> {
    let flags = tables.address(addr);
    if flags.is_empty() {
        elsewhere(tables, addr)
    } else {
        no_port(flags)
    }
}

/// A cluster IP that this node owns is left to it (rule R17).
#[inline(always)]
fn no_port<'a>(flags: AddressFlags) -> Found<'a> {
    if flags.contains(AddressFlags::CLUSTER_IP) && !flags.contains(AddressFlags::NODE) {
        Found::UnusedPort
    } else {
        Found::Nothing
    }
}

/// Whether there is nothing of ours at an address, told without a look at networks.
#[inline(always)]
pub(super) fn is_surely_elsewhere<T: Tables>(tables: &T, addr: &Addr) -> bool {
    tables.address(addr).is_empty() && !knows_service_cidrs(tables)
}

#[inline(always)]
fn knows_service_cidrs<T: Tables>(tables: &T) -> bool {
    let flags = tables.settings().flags;
    flags.contains(SettingsFlags::SERVICE_CIDRS)
}

#[inline(always)]
fn elsewhere<'a, T: Tables>(tables: &T, addr: &Addr) -> Found<'a> {
    if knows_service_cidrs(tables) && tables.network(addr).contains(NetworkFlags::SERVICES) {
        Found::Unallocated
    } else {
        Found::Nothing
    }
}
