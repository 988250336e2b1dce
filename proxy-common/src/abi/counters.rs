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
    /// New flows refused, rejected or dropped, by [`RefusalReason`]. They wrap.
    pub refused: [u32; RefusalReason::ALL.len()],
}

/// Why a Service did not take a new flow. The names are stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RefusalReason {
    /// It has no endpoints.
    NoEndpoint = 0,
    /// It has endpoints, but none that the policy allows here (rule R66).
    NoLocalEndpoint = 1,
    /// The client is outside its source ranges (rule R104).
    SourceRange = 2,
    /// No free port to keep two flows apart.
    PortsExhausted = 3,
    /// The kernel refused a flow record.
    FlowTable = 4,
    /// Anything else: no route, or a frontend that was changed at this moment.
    Other = 5,
}

impl RefusalReason {
    /// Every variant, in order.
    pub const ALL: [Self; 6] = [
        Self::NoEndpoint,
        Self::NoLocalEndpoint,
        Self::SourceRange,
        Self::PortsExhausted,
        Self::FlowTable,
        Self::Other,
    ];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no-endpoint",
            Self::NoLocalEndpoint => "no-local-endpoint",
            Self::SourceRange => "source-range",
            Self::PortsExhausted => "ports-exhausted",
            Self::FlowTable => "flow-table",
            Self::Other => "other",
        }
    }
}

impl ServiceCounters {
    /// New flows refused for any reason.
    pub fn n_refused(&self) -> u64 {
        self.refused.iter().copied().map(u64::from).sum()
    }

    /// Counts one more.
    #[inline(always)]
    pub fn refuse(&mut self, reason: RefusalReason) {
        if let Some(count) = self.refused.get_mut(reason as usize) {
            *count = count.wrapping_add(1);
        }
    }
}

impl core::ops::AddAssign for ServiceCounters {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.flows += other.flows;
        for (count, other) in self.refused.iter_mut().zip(other.refused) {
            *count = count.wrapping_add(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_sums_wrap() {
        let mut counters = ServiceCounters::default();
        for reason in RefusalReason::ALL {
            counters.refuse(reason);
        }
        assert_eq!(counters.refused, [1; 6]);
        counters.refused[0] = u32::MAX;
        counters += counters;
        assert_eq!(counters.refused, [u32::MAX - 1, 2, 2, 2, 2, 2]);
        assert_eq!(counters.n_refused(), u64::from(u32::MAX) + 9);
        assert_eq!(size_of::<ServiceCounters>(), 48);
    }
}
