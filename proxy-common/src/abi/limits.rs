//! Default sizes of the maps, and what an entry costs.
//!
//! Kernel memory per entry as `/proc/PID/fdinfo` tells it, the kernel's own share included. Only
//! `FLOWS` is large; 16-byte addresses make its key 40 bytes instead of 16, a price paid for having
//! one map instead of two.

/// Frontends: addresses × ports × protocols. 120 bytes each.
pub const FRONTENDS: u32 = 131_072;
/// Addresses of frontends and of this node. 88 bytes each.
pub const ADDRESSES: u32 = 131_072;
/// ServiceCIDRs and networks of local pods.
pub const NETWORKS: u32 = 1_024;
/// `loadBalancerSourceRanges` × service ports.
pub const SOURCE_RANGES: u32 = 65_536;
/// Network devices of this node. 120 bytes each.
pub const DEVICES: u32 = 8_192;
/// Positions of backends in frontends' blocks. 8 bytes each; an update needs old and new block.
pub const SLOTS: u32 = 1_048_576;
/// Endpoints × service ports. 32 bytes each.
pub const BACKENDS: u32 = 524_288;
/// Service ports × families. 272 bytes each, and 48 bytes per CPU.
pub const SERVICES: u32 = 65_536;
/// Flow records, two a conversation, if memory allows. 184 to 200 bytes each, as full as the
/// kernel's table of buckets is, whose size is a power of two.
pub const FLOWS: u32 = 524_288;
/// Fewest flow records ever taken by default.
pub const FLOWS_MIN: u32 = 65_536;
/// Clients × service ports with affinity. 104 bytes each.
pub const AFFINITY: u32 = 65_536;
/// Datagrams in pieces at one time. 112 bytes each.
pub const FRAGMENTS: u32 = 8_192;
/// Lengths of an SCTP packet: one entry for each, 0 to 65,535.
pub const CRC_SHIFTS: u32 = 65_536;
/// Notes of which pods have flows: a power of two, and so many that pods rarely share one. Another
/// number would be another layout, whose notes have to be made from the flows.
pub const POD_FLOWS: u32 = 4_096;
/// Room in the per-CPU map of outcomes.
pub const OUTCOMES: u32 = 64;
/// Connected sockets that are pointed at a backend. 136 bytes each.
pub const SOCKETS: u32 = 131_072;
/// Correspondences of UDP sockets that are not connected, two records each. 160 bytes each.
pub const DATAGRAMS: u32 = 65_536;
/// Network namespaces of pods.
pub const CLIENTS: u32 = 4_096;
/// Pods' cgroups.
pub const PODS: u32 = 4_096;
