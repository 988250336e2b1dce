//! What the datapath needs to know of this node and its configuration.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Port};

/// The one entry of the map `SETTINGS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// An IPv4 address of this node, source of hairpin packets; unspecified: the frontend's.
    pub node_v4: Addr,
    /// The same for IPv6.
    pub node_v6: Addr,
    /// First port that a client's port may be mapped to if it clashes.
    pub first_port: Port,
    /// Last such port.
    pub last_port: Port,
    /// A set of [`SettingsFlags`].
    pub flags: SettingsFlags,
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

    /// Whether all bits of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Settings {
    /// Ports above Linux' default ephemeral range (32768 to 60999).
    pub const DEFAULT: Self = Self {
        node_v4: Addr::UNSPECIFIED,
        node_v6: Addr::UNSPECIFIED,
        first_port: Port::new(61_000),
        last_port: Port::new(65_535),
        flags: SettingsFlags::NONE,
    };
}

impl Default for Settings {
    fn default() -> Self {
        Self::DEFAULT
    }
}
