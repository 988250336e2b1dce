//! Keys and values of the BPF maps.
//!
//! Every type is plain data (`#[repr(C)]`, no implicit padding, checked by bytemuck at compile
//! time). Addresses take 16 bytes for both families and, like ports, are kept in network order
//! as they stand in a packet, in machine words: byte arrays cost the verifier a third more
//! instructions and the packet 15 ns.

/// What all sets of bits can do.
macro_rules! bit_set {
    ($name:ident) => {
        impl $name {
            /// Whether all bits of `other` are set.
            #[inline(always)]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether no bit is set.
            #[inline(always)]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Both sets of bits.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}

mod addr;
mod affinity;
mod backend;
mod counters;
mod flow;
mod fragment;
mod frontend;
pub mod limits;
mod place;
mod service;
mod settings;
mod socket;
mod verdict;

pub use addr::{Addr, Family, Port, Protocol};
pub use affinity::{Affinity, AffinityKey};
pub use backend::{Backend, BackendFlags, BackendState};
pub use counters::{RefusalReason, ServiceCounters};
pub use flow::{Exit, Flow, FlowKey, FlowRole, FlowState, Side, Tuple};
pub use fragment::{FragmentKey, FragmentPorts};
pub use frontend::{Frontend, FrontendFlags, FrontendKey, Scope};
pub use place::{AddressFlags, Device, DeviceFlags, NetworkFlags, NetworkKey, SourceRangeKey};
pub use service::ServiceName;
pub use settings::{Settings, SettingsFlags};
pub use socket::{
    DatagramKey, DatagramSide, Peer, PodFlags, SocketClient, SocketFlags, SocketRecord,
    SocketSettings,
};
pub use verdict::{Drop, Pass, Reply, Rewrite, Verdict};

/// Version of the map layouts. Pins live in a folder named after it.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "next-layout") { 2 } else { 1 };
