//! What a device is to us, decided from links alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::host_edge::{HOST_DEVICE, OURS};
use super::{Device, DevicePatterns};
use crate::loader::Kind;

/// What is known of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number and name.
    pub device: Device,
    /// What kind of link it is.
    pub kind: LinkKind,
    /// Whether its other end, or what it stands on, is in another network namespace.
    pub is_peer_elsewhere: bool,
    /// Whether its packets have an Ethernet header.
    pub has_ethernet: bool,
    /// Of what it is a port, if of anything.
    pub port: Option<Port>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Link-layer address; zeros if it has none.
    pub mac: [u8; 6],
    /// Whether it is switched on.
    pub is_up: bool,
}

/// Kinds of links, as far as they matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// The loopback device.
    Loopback,
    /// One end of a pair: veth or netkit.
    Pair,
    /// A bridge.
    Bridge,
    /// Leads nowhere: dummy, ifb, nlmon, and VRFs, whose ports do.
    Internal,
    /// Physical, bond, VLAN, tunnel and all others.
    Other,
}

impl LinkKind {
    /// Whether packets can leave this node by it.
    pub(super) const fn leads_elsewhere(self) -> bool {
        match self {
            Self::Loopback | Self::Internal => false,
            Self::Pair | Self::Bridge | Self::Other => true,
        }
    }
}

/// A link's being a port of another one, which takes its packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    /// Index of the other one.
    pub master: u32,
    /// Whether that is a bridge: else a bond, a team, a switch.
    pub is_bridge: bool,
}

/// What a device is to us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A pod is behind it.
    PodEdge,
    /// Traffic enters or leaves the node by it.
    NodeEdge,
    /// The loopback device, by which this node's processes dial its own addresses.
    Loopback,
    /// Ours, by which this node's processes dial Services.
    HostEdge,
    /// Anything else.
    Other,
}

impl Role {
    /// The programs that belong on a device of this role. What comes back by loopback or the host
    /// edge was put there by us, and needs none.
    pub const fn programs(self) -> &'static [Kind] {
        match self {
            Self::PodEdge => &[Kind::PodIngress, Kind::PodEgress],
            Self::NodeEdge => &[Kind::NodeIngress, Kind::NodeEgress],
            Self::Loopback | Self::HostEdge => &[Kind::NodeEgress],
            Self::Other => &[],
        }
    }
}

/// Names of devices that override what the links look like.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Patterns {
    /// Of those that lead to pods.
    pub pods: DevicePatterns,
    /// Of those that traffic enters or leaves the node by.
    pub nodes: DevicePatterns,
}

/// The role of each of `links`; `uplinks` are those that carry a default route.
///
/// On its own, a device leads to a pod if it is one end of a pair whose other end is in another
/// network namespace, unless it is an uplink: then this node is itself a container, and the device
/// its way out. Of all others those are edges of the node that packets can leave it by: not what is
/// a port of something else, a bridge only if it is an uplink or has a port that leads to no pod,
/// one end of a pair only if it is an uplink or its other end is elsewhere. A device without
/// Ethernet header is none: the programs could not read its packets.
pub fn roles(
    links: &BTreeMap<u32, Link>,
    uplinks: &BTreeSet<u32>,
    patterns: &Patterns,
) -> BTreeMap<u32, Role> {
    let is_uplink = |link: &Link| uplinks.contains(&link.device.index);
    let leads_to_pod = |link: &Link| is_pod(link, is_uplink(link), patterns);
    let ports = links.values().filter(|link| !leads_to_pod(link));
    let bridges: BTreeSet<u32> = ports
        .filter_map(|link| link.port)
        .map(|port| port.master)
        .collect();
    let role = |link: &Link| {
        let is_uplink = is_uplink(link);
        let is_edge = match link.kind {
            LinkKind::Bridge => is_uplink || bridges.contains(&link.device.index),
            LinkKind::Pair => is_uplink || link.is_peer_elsewhere,
            LinkKind::Loopback | LinkKind::Internal => false,
            LinkKind::Other => true,
        };
        let is_edge = is_edge && link.port.is_none();
        let is_edge = patterns.nodes.verdict(&link.device.name).unwrap_or(is_edge);
        match own_role(link) {
            Some(role) => role,
            None if leads_to_pod(link) => Role::PodEdge,
            None if is_edge && link.has_ethernet => Role::NodeEdge,
            None => Role::Other,
        }
    };
    links
        .iter()
        .map(|(index, link)| (*index, role(link)))
        .collect()
}

/// The role that a device has whatever patterns say.
fn own_role(link: &Link) -> Option<Role> {
    let name = &*link.device.name;
    if link.kind == LinkKind::Loopback {
        Some(Role::Loopback)
    } else if name == HOST_DEVICE && link.kind == LinkKind::Pair {
        Some(Role::HostEdge)
    } else {
        name.starts_with(OURS).then_some(Role::Other)
    }
}

fn is_pod(link: &Link, is_uplink: bool, patterns: &Patterns) -> bool {
    let name = &*link.device.name;
    let is_edge = link.kind == LinkKind::Pair && link.is_peer_elsewhere && !is_uplink;
    let is_named_otherwise = || patterns.nodes.verdict(name) == Some(true);
    let verdict = patterns.pods.verdict(name);
    own_role(link).is_none() && verdict.unwrap_or(is_edge && !is_named_otherwise())
}

impl Link {
    /// A link with an Ethernet header and nothing special about it.
    pub fn new(index: u32, name: &str, kind: LinkKind) -> Self {
        let device = Device {
            index,
            name: Arc::from(name),
        };
        Self {
            device,
            kind,
            is_peer_elsewhere: false,
            has_ethernet: true,
            port: None,
            mtu: 1500,
            mac: [0; 6],
            is_up: true,
        }
    }
}
