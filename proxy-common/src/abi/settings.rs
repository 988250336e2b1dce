//! What the datapath needs to know of this node and its configuration.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Port};

/// The one entry of the map `SETTINGS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// An IPv4 address of this node, the source where the device that a packet leaves by has none;
    /// unspecified: the frontend's.
    pub node_v4: Addr,
    /// The same for IPv6.
    pub node_v6: Addr,
    /// First port that a client's port may be mapped to, by source NAT or if it clashes.
    pub first_port: Port,
    /// Last such port.
    pub last_port: Port,
    /// A set of [`SettingsFlags`].
    pub flags: SettingsFlags,
    /// Index of `beeline0`, by which packets of this node's processes are routed; 0: none.
    pub host_device: u32,
}

/// Switches of the datapath, a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct SettingsFlags(u32);

impl SettingsFlags {
    /// No switch.
    pub const NONE: Self = Self(0);
    /// A TCP or SCTP packet in mid-flow without a record starts one, instead of falling through
    /// to netfilter, whose conntrack may know it from kube-proxy's time.
    pub const ADOPT_MID_FLOW: Self = Self(1);
    /// A source address tells whether an IPv4 client is a local pod, by `NETWORKS` (rule R51).
    pub const DETECT_V4: Self = Self(1 << 1);
    /// The same for IPv6.
    pub const DETECT_V6: Self = Self(1 << 2);
    /// The device by which a packet comes in tells whether the client is a local pod, for both
    /// families, by `DEVICES`.
    pub const DETECT_DEVICE: Self = Self(1 << 3);
    /// All traffic to cluster IPs gets an address of this node as source (rule R78).
    pub const MASQUERADE_ALL: Self = Self(1 << 4);
    /// The source is rewritten wherever kube-proxy does, not only where it has to be.
    pub const SOURCE_NAT_LIKE_KUBE_PROXY: Self = Self(1 << 5);
    /// TCP and SCTP flows to a backend that is gone are left alone, as kube-proxy does.
    pub const KEEP_GONE: Self = Self(1 << 6);
    /// `NETWORKS` holds ServiceCIDRs, whose unallocated addresses are dropped (rule R16).
    pub const SERVICE_CIDRS: Self = Self(1 << 7);
    /// Traffic is handed back to whoever serves beside Beeline: flows with a record go on, and
    /// everything else is left to the stack, refusals and drops included.
    pub const HANDED_BACK: Self = Self(1 << 8);
}

bit_set!(SettingsFlags);

impl Settings {
    /// Ports below Linux' default ephemeral range (32768 to 60999) and the NodePorts (30000 to
    /// 32767): a connection of a process on this node never has one by itself.
    pub const DEFAULT: Self = Self {
        node_v4: Addr::UNSPECIFIED,
        node_v6: Addr::UNSPECIFIED,
        first_port: Port::new(10_000),
        last_port: Port::new(29_999),
        flags: SettingsFlags::NONE,
        host_device: 0,
    };
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}
