//! Pods whose processes are clients: each a namespace in a control group, with a real stack.
//!
//! ```text
//!   pod: eth0 ── p1 ┐ outside
//!                   ├ (by this program)
//!                f1 ┘ ── veth1: node
//! ```
//!
//! What a pod's socket has to say comes out of `p1` and is put on the far end of the pod's device,
//! and the other way round: so all packets are seen on their way, and of those that come back only
//! the socket's own reach the pod, which may be a backend, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use xtask::testbed::{Namespace, Offload, Testbed, set_offload};

use super::packet::Seen;
use super::plan::Plan;
use super::world::{GATEWAYS, text, whole};
use crate::case::Protocol;

/// A pod's namespace.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) namespace: Namespace,
    /// Name of its link's outer end.
    pub(super) tap: String,
}

/// Whose packets are passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Focus {
    /// The pod's device.
    pub(super) device: usize,
    pub(super) protocol: Protocol,
    /// The socket's address.
    pub(super) from: std::net::SocketAddr,
}

impl Focus {
    /// Whether a packet that came out of the pod is the socket's.
    pub(super) fn is_from(&self, seen: &Seen) -> bool {
        let protocol = seen.transport().map(|transport| transport.protocol);
        protocol == Some(self.protocol) && seen.from() == self.from
    }

    /// Whether a packet to the pod is for the socket, or an error about one of its packets.
    pub(super) fn is_for(&self, seen: &Seen) -> bool {
        match (seen.transport(), seen.quoted()) {
            (Some(transport), _) => transport.protocol == self.protocol && seen.to() == self.from,
            (None, Some(quoted)) => seen.dst == self.from.ip() && self.is_from(&quoted),
            (None, None) => false,
        }
    }
}

/// Makes the pods that are clients, by their devices.
pub(super) fn build(plan: &Plan, testbed: &Testbed) -> Result<BTreeMap<usize, Pod>> {
    let outside = testbed.outside();
    let mut pods = BTreeMap::new();
    for (device, addresses) in &plan.clients {
        let namespace = testbed
            .bare_pod(&format!("pod{device}"))
            .context("make a pod")?;
        let tap = format!("p{device}");
        outside.ip([
            format!(
                "link add {tap} address {} type veth peer name eth0 address {} netns {}",
                text(tap_mac(*device)),
                text(mac(*device)),
                namespace.name()
            ),
            format!("link set {tap} addrgenmode none up"),
        ])?;
        // What leaves the pod is to have whole checksums.
        set_offload(&namespace, "eth0", Offload::TransmitChecksum, false)?;
        namespace.ip(addresses_and_routes(*device, addresses))?;
        pods.insert(*device, Pod { namespace, tap });
    }
    Ok(pods)
}

/// The hardware address of the pod behind a device.
pub(super) const fn mac(device: usize) -> [u8; 6] {
    [0x02, 0, 0, 0xd, (device >> 8) as u8, device as u8]
}

/// The hardware address to which it sends everything.
pub(super) const fn tap_mac(device: usize) -> [u8; 6] {
    [0x02, 0, 0, 0xc, (device >> 8) as u8, device as u8]
}

fn addresses_and_routes(device: usize, addresses: &BTreeSet<IpAddr>) -> Vec<String> {
    let mut commands = vec!["link set eth0 addrgenmode none up".to_owned()];
    for address in addresses {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        commands.push(format!("address add {} dev eth0{nodad}", whole(*address)));
    }
    for gateway in GATEWAYS {
        let mac = text(tap_mac(device));
        commands.push(format!(
            "neigh replace {gateway} lladdr {mac} dev eth0 nud permanent"
        ));
        commands.push(format!("route add default via {gateway} dev eth0 onlink"));
    }
    commands
}
