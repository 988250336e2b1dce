//! What addresses, networks and devices are to this node.

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// Value of the map `ADDRESSES`: what an address is, a bit set.
///
/// Only addresses in this map can be a frontend's: a packet to any other costs one look-up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct AddressFlags(u32);

impl AddressFlags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A Service's cluster IP: its other ports reject (rule R15).
    pub const CLUSTER_IP: Self = Self(1);
    /// An external IP or a load balancer's VIP: its other ports are left alone.
    pub const EXTERNAL: Self = Self(1 << 1);
    /// Assigned to this node, loopback addresses aside (rules R50, R90).
    pub const NODE: Self = Self(1 << 2);
    /// Assigned to this node and accepts NodePorts (rule R86).
    pub const NODE_PORTS: Self = Self(1 << 3);
}

bit_set!(AddressFlags);

/// Key of the map `NETWORKS`, a longest-prefix trie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct NetworkKey {
    /// Bits of `addr` that count, of 128: 96 more than an IPv4 prefix has. Host byte order.
    pub prefix_len: u32,
    /// The network's first address.
    pub addr: Addr,
}

/// Value of the map `NETWORKS`: what a network is, a bit set.
///
/// The trie yields the longest prefix only, so a network inside another has that one's bits too.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct NetworkFlags(u32);

impl NetworkFlags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Part of a ServiceCIDR: unallocated addresses are dropped (rule R16).
    pub const SERVICES: Self = Self(1);
    /// Its addresses are local pods' (rule R51, modes ClusterCIDR and NodeCIDR).
    pub const LOCAL_PODS: Self = Self(1 << 1);
}

bit_set!(NetworkFlags);

/// Key of the map `SOURCE_RANGES`, a longest-prefix trie (rules R102 to R105). Values are 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SourceRangeKey {
    /// Bits of `service` and `addr` that count, of 160: 128 more than an IPv4 prefix has, 32 more
    /// than an IPv6 one. Host byte order.
    pub prefix_len: u32,
    /// The service port that the range guards.
    pub service: u32,
    /// The range's first address.
    pub addr: Addr,
}

/// Value of the map `DEVICES`, by interface index: what the datapath has to know of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Device {
    /// The IPv4 address that packets leaving by it get as source (rule R79); unspecified: it has
    /// none, and [`Settings::node_v4`](super::Settings::node_v4) serves.
    pub v4: Addr,
    /// The same for IPv6.
    pub v6: Addr,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Link-layer address; zeros if it has none.
    pub mac: [u16; 3],
    /// [`DeviceFlags`].
    pub flags: DeviceFlags,
}

/// Properties of a [`Device`], a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct DeviceFlags(u16);

impl DeviceFlags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// What comes in by it is from a local pod (rule R51, modes BridgeInterface and
    /// InterfaceNamePrefix).
    pub const LOCAL_PODS: Self = Self(1);
}

bit_set!(DeviceFlags);
