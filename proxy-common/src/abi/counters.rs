//! Counters.

use bytemuck::{Pod, Zeroable};

/// Value of the per-CPU map `SERVICE_COUNTERS`, indexed by service id.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceCounters {
    /// Packets translated, both directions.
    pub packets: u64,
    /// Bytes of those packets, link-layer headers included.
    pub bytes: u64,
    /// New flows sent to a backend.
    pub flows: u64,
    /// New flows refused: rejected or dropped.
    pub refused: u64,
}

impl core::ops::AddAssign for ServiceCounters {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.flows += other.flows;
        self.refused += other.refused;
    }
}
