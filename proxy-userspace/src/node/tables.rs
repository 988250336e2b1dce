//! From configuration, Node object and devices to maps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::abi::{
    Addr, AddressFlags, Device, DeviceFlags, Family, NetworkFlags, NetworkKey, Settings,
    SettingsFlags,
};

use super::config::family_of;
use super::{DetectLocal, GoneBackends, MidFlow, NodeConfig, NodePortAddresses, SourceNat};
use crate::model::Node;

/// A device of this node, as far as the datapath is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalDevice {
    /// Its number in the network namespace.
    pub index: u32,
    /// Its name.
    pub name: Arc<str>,
    /// The bridge that it is a port of.
    pub master: Option<Arc<str>>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Link-layer address; zeros if it has none.
    pub mac: [u8; 6],
    /// Its usable addresses by preference: the first of each family is the source of packets that
    /// leave by it (rule R79), link-local and loopback ones aside.
    pub addresses: Vec<IpAddr>,
    /// Whether it is the loopback device.
    pub is_loopback: bool,
    /// Whether a pod is behind it.
    pub leads_to_pod: bool,
}

/// What the maps are to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeTables {
    /// The one entry of `SETTINGS`.
    pub settings: Settings,
    /// This node's part of `ADDRESSES`: the flags `NODE` and `NODE_PORTS`.
    pub addresses: BTreeMap<Addr, AddressFlags>,
    /// `NETWORKS`.
    pub networks: BTreeMap<NetworkKey, NetworkFlags>,
    /// `DEVICES`, by interface index.
    pub devices: BTreeMap<u32, Device>,
}

/// What the maps are to hold, given this node's Node object, the cluster's ServiceCIDRs and this
/// node's devices. The devices are in order of preference: of those that carry a default route, the
/// first comes first. `host_device` is the index of `beeline0`, 0 if there is none.
pub fn tables(
    config: &NodeConfig,
    node: Option<&Node>,
    service_cidrs: &[IpNet],
    devices: &[LocalDevice],
    host_device: u32,
) -> NodeTables {
    let pods = local_pods(&config.detect_local, node);
    let services: Vec<_> = config.service_cidrs.iter().chain(service_cidrs).collect();
    let (first_port, last_port) = config.source_ports.ports();
    let source = |family| source(family, node, devices).map_or(Addr::UNSPECIFIED, Addr::from);
    let settings = Settings {
        node_v4: source(Family::Ipv4),
        node_v6: source(Family::Ipv6),
        first_port,
        last_port,
        flags: flags(config, &pods, !services.is_empty()),
        host_device,
    };
    NodeTables {
        settings,
        addresses: addresses(config, node, devices),
        networks: with_inherited_flags(&services, &pods),
        devices: devices
            .iter()
            .map(|device| (device.index, abi_device(&config.detect_local, device)))
            .collect(),
    }
}

/// The first address of each family in the Node object, InternalIP before ExternalIP (rule R181).
pub fn primary_addresses(node: Option<&Node>) -> Vec<IpAddr> {
    let addresses = node.map_or(&[][..], |node| &node.addresses);
    let is_first = |(at, address): &(usize, &IpAddr)| {
        let earlier = addresses.iter().take(*at);
        !earlier
            .map(|ip| Family::of(*ip))
            .any(|family| family == Family::of(**address))
    };
    let firsts = addresses.iter().enumerate().filter(is_first);
    firsts.map(|(_, address)| *address).collect()
}

/// The ranges of `family` whose addresses accept NodePorts; `None`: every address does (rules R86,
/// R87).
pub fn node_port_ranges(
    accepted: &NodePortAddresses,
    node: Option<&Node>,
    family: Family,
) -> Option<Vec<IpNet>> {
    let ranges: Vec<IpNet> = match accepted {
        NodePortAddresses::Primary => {
            let primary = primary_addresses(node).into_iter();
            primary
                .filter(|ip| !ip.is_loopback())
                .map(IpNet::from)
                .collect()
        }
        NodePortAddresses::Ranges(ranges) => ranges.clone(),
    };
    let is_ours = |range: &IpNet| family_of(range) == family;
    let ours: Vec<_> = ranges.into_iter().filter(is_ours).collect();
    let is_limited = !ours.is_empty() && ours.iter().all(|range| range.prefix_len() > 0);
    is_limited.then_some(ours)
}

fn flags(config: &NodeConfig, pods: &[IpNet], has_service_cidrs: bool) -> SettingsFlags {
    let detects = |family| pods.iter().any(|range| family_of(range) == family);
    let detects_by_device = match config.detect_local {
        DetectLocal::BridgeInterface(_)
        | DetectLocal::InterfaceNamePrefix(_)
        | DetectLocal::PodDevices => true,
        DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => false,
    };
    [
        (
            SettingsFlags::ADOPT_MID_FLOW,
            config.mid_flow == MidFlow::Adopt,
        ),
        (SettingsFlags::DETECT_V4, detects(Family::Ipv4)),
        (SettingsFlags::DETECT_V6, detects(Family::Ipv6)),
        (SettingsFlags::DETECT_DEVICE, detects_by_device),
        (SettingsFlags::MASQUERADE_ALL, config.masquerade_all),
        (
            SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY,
            config.source_nat == SourceNat::LikeKubeProxy,
        ),
        (
            SettingsFlags::KEEP_GONE,
            config.gone_backends == GoneBackends::Keep,
        ),
        (SettingsFlags::SERVICE_CIDRS, has_service_cidrs),
    ]
    .into_iter()
    .filter(|(_, is_set)| *is_set)
    .fold(SettingsFlags::NONE, |all, (flag, _)| all.union(flag))
}

/// The networks whose addresses are local pods': of each family the first one (rule R51).
fn local_pods(detect: &DetectLocal, node: Option<&Node>) -> Vec<IpNet> {
    let ranges = match detect {
        DetectLocal::ClusterCidr(ranges) => ranges.as_slice(),
        DetectLocal::NodeCidr => node.map_or(&[][..], |node| &node.pod_cidrs),
        DetectLocal::BridgeInterface(_)
        | DetectLocal::InterfaceNamePrefix(_)
        | DetectLocal::PodDevices => &[],
    };
    let first = |family| ranges.iter().find(|range| family_of(range) == family);
    Family::ALL.into_iter().filter_map(first).copied().collect()
}

/// An address that others than this machine and its links can know.
fn is_routable(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_multicast() && !is_link_local(address)
}

const fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Where the device that a packet leaves by has no address, the Node object's serves. It may be one
/// that no device has, as behind a NAT; replies to that would not come back, so a device's own goes
/// before it.
fn source(family: Family, node: Option<&Node>, devices: &[LocalDevice]) -> Option<IpAddr> {
    let own = || {
        let addresses = devices.iter().flat_map(|device| &device.addresses);
        addresses.filter(|ip| Family::of(**ip) == family && is_routable(ip))
    };
    let primary = primary_addresses(node)
        .into_iter()
        .find(|ip| Family::of(*ip) == family);
    let is_own = |primary: &IpAddr| own().any(|ip| ip == primary);
    primary
        .filter(is_own)
        .or_else(|| own().next().copied())
        .or(primary)
}

/// A link-local IPv4 address makes a client this node's, but accepts no NodePorts: nobody beyond
/// the link can dial it. A link-local IPv6 address is left out: no packet with one leaves its link,
/// and every pod's device has one.
fn addresses(
    config: &NodeConfig,
    node: Option<&Node>,
    devices: &[LocalDevice],
) -> BTreeMap<Addr, AddressFlags> {
    let accepted =
        Family::ALL.map(|family| node_port_ranges(&config.node_port_addresses, node, family));
    let accepts = |ip: &IpAddr| {
        let [v4, v6] = &accepted;
        let ranges = if ip.is_ipv4() { v4 } else { v6 };
        let is_inside = |ranges: &Vec<IpNet>| ranges.iter().any(|range| range.contains(ip));
        is_routable(ip) && ranges.as_ref().is_none_or(is_inside)
    };
    let is_shown = |ip: &&IpAddr| is_routable(ip) || (ip.is_ipv4() && is_link_local(ip));
    let own = devices.iter().flat_map(|device| &device.addresses);
    own.filter(is_shown)
        .map(|ip| {
            let node_ports = if accepts(ip) {
                AddressFlags::NODE_PORTS
            } else {
                AddressFlags::NONE
            };
            (Addr::from(*ip), AddressFlags::NODE.union(node_ports))
        })
        .collect()
}

/// The trie yields the longest prefix only: each network gets the flags of those around it.
fn with_inherited_flags(services: &[&IpNet], pods: &[IpNet]) -> BTreeMap<NetworkKey, NetworkFlags> {
    let services = services
        .iter()
        .map(|net| (net.trunc(), NetworkFlags::SERVICES));
    let pods = pods
        .iter()
        .map(|net| (net.trunc(), NetworkFlags::LOCAL_PODS));
    let all: Vec<(IpNet, NetworkFlags)> = services.chain(pods).collect();
    let flags_of = |inner: &IpNet| {
        let around = all.iter().filter(|(outer, _)| outer.contains(inner));
        around.fold(NetworkFlags::NONE, |sum, (_, flags)| sum.union(*flags))
    };
    let mut networks: BTreeMap<_, _> = all
        .iter()
        .map(|(network, _)| (key(network), flags_of(network)))
        .collect();
    // IPv4 addresses lie in ::/0, too, as they stand in the trie.
    if networks.keys().any(|key| key.prefix_len < V4_BITS) {
        let _network = networks.entry(v4_root()).or_insert(NetworkFlags::NONE);
    }
    networks
}

/// Bits of an IPv4-mapped address before the IPv4 address.
const V4_BITS: u32 = 96;

fn key(network: &IpNet) -> NetworkKey {
    let before = match network {
        IpNet::V4(_) => V4_BITS,
        IpNet::V6(_) => 0,
    };
    NetworkKey {
        prefix_len: before + u32::from(network.prefix_len()),
        addr: Addr::from(network.network()),
    }
}

fn v4_root() -> NetworkKey {
    NetworkKey {
        prefix_len: V4_BITS,
        addr: Addr::from_v4_word(0),
    }
}

fn abi_device(detect: &DetectLocal, device: &LocalDevice) -> Device {
    let address = |family| {
        let mut own = device.addresses.iter();
        let address = own.find(|ip| Family::of(**ip) == family && is_routable(ip));
        // What leaves by loopback does not leave; its addresses are no better than the node's.
        let address = address.filter(|_| !device.is_loopback);
        address.map_or(Addr::UNSPECIFIED, |ip| Addr::from(*ip))
    };
    let flags = if leads_to_pods(detect, device) {
        DeviceFlags::LOCAL_PODS
    } else {
        DeviceFlags::NONE
    };
    Device {
        v4: address(Family::Ipv4),
        v6: address(Family::Ipv6),
        mtu: device.mtu,
        mac: bytemuck::cast(device.mac),
        flags,
    }
}

fn leads_to_pods(detect: &DetectLocal, device: &LocalDevice) -> bool {
    // What comes in by a port of a bridge comes in by the bridge, to netfilter.
    let mut names = [Some(&device.name), device.master.as_ref()]
        .into_iter()
        .flatten();
    match detect {
        DetectLocal::BridgeInterface(bridge) => names.any(|name| name == bridge),
        DetectLocal::InterfaceNamePrefix(prefix) => names.any(|name| name.starts_with(&**prefix)),
        DetectLocal::PodDevices => device.leads_to_pod,
        DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => false,
    }
}

#[cfg(test)]
mod tests;
