//! Frontends: the addresses and ports that clients dial.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Family, FlowKey, Port, Protocol};

/// Key of the map `FRONTENDS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FrontendKey {
    /// The address that clients dial.
    pub addr: Addr,
    /// The port that clients dial.
    pub port: Port,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Scope`].
    pub scope: u8,
}

impl FrontendKey {
    /// The frontend at exactly the address that a packet of this flow is for.
    #[inline(always)]
    pub const fn of(flow: &FlowKey) -> Self {
        Self {
            addr: flow.tuple.dst,
            port: flow.tuple.dst_port,
            protocol: flow.protocol,
            scope: Scope::Exact as u8,
        }
    }

    /// The frontend at exactly this address, port and protocol.
    #[inline(always)]
    pub const fn exact(addr: Addr, port: Port, protocol: Protocol) -> Self {
        Self {
            addr,
            port,
            protocol: protocol.number(),
            scope: Scope::Exact as u8,
        }
    }

    /// The NodePort that a packet of this flow is for, if its destination accepts NodePorts.
    #[inline(always)]
    pub const fn node_port_of(flow: &FlowKey) -> Self {
        Self {
            addr: Self::any_node_address(flow.tuple.dst.is_v4()),
            port: flow.tuple.dst_port,
            protocol: flow.protocol,
            scope: Scope::NodePort as u8,
        }
    }

    /// The NodePort of this family, number and protocol.
    #[inline(always)]
    pub const fn node_port(family: Family, port: Port, protocol: Protocol) -> Self {
        Self {
            addr: Self::any_node_address(matches!(family, Family::Ipv4)),
            port,
            protocol: protocol.number(),
            scope: Scope::NodePort as u8,
        }
    }

    /// Stands for every address of one family that accepts NodePorts: `0.0.0.0` or `::`.
    #[inline(always)]
    const fn any_node_address(is_v4: bool) -> Addr {
        if is_v4 {
            Addr::from_v4_word(0)
        } else {
            Addr::UNSPECIFIED
        }
    }
}

/// How the address of a [`FrontendKey`] is matched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Scope {
    /// The packet's destination is the key's address.
    Exact = 0,
    /// The packet's destination is any address that accepts NodePorts (rules R85, R86), for which
    /// the key holds `0.0.0.0` or `::`.
    NodePort = 1,
}

/// Value of the map `FRONTENDS`: where the backends of a frontend stand.
///
/// A block of consecutive entries in `SLOTS` holds the local set as its head and the cluster set
/// as its tail; the two overlap in the middle, so that each is contiguous:
///
/// ```text
///  first_slot                 first_slot + cluster_offset
///  |  local only                  |  both  |        remote        |
///  |<------------- n_local --------------->|
///                                 |<-------- n_cluster ---------->|
/// ```
///
/// Usually every local endpoint is in the cluster set and `cluster_offset` is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Frontend {
    /// Service port: index into `SERVICES` and `SERVICE_COUNTERS`, key of `AFFINITY`.
    pub service: u32,
    /// [`FrontendFlags`].
    pub flags: FrontendFlags,
    /// Index of the block's first entry in `SLOTS`.
    pub first_slot: u32,
    /// Size of the local set (rule R32).
    pub n_local: u32,
    /// Distance from the block's first entry to the cluster set.
    pub cluster_offset: u32,
    /// Size of the cluster set (rule R31).
    pub n_cluster: u32,
    /// Session affinity time-out in seconds; 0: no affinity.
    pub affinity_seconds: u32,
}

/// Properties of a [`Frontend`], a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct FrontendFlags(u32);

impl FrontendFlags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// The traffic policy that governs this frontend is Local (rules R52, R53).
    pub const LOCAL_ONLY: Self = Self(1);
    /// No usable endpoint anywhere: new connections are rejected, not dropped (rules R35, R65).
    pub const REJECT: Self = Self(1 << 1);
    /// An external IP, a load balancer's VIP or a NodePort, not a cluster IP (rule R53).
    pub const EXTERNAL: Self = Self(1 << 2);
    /// New connections are taken from `SOURCE_RANGES` of the service only (rules R102 to R104).
    pub const SOURCE_RANGES: Self = Self(1 << 3);
}

bit_set!(FrontendFlags);
