//! How much room is taken in the maps.

use super::{Capacity, Sync};

/// The room that is taken and the room that there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    /// Entries in use. What rests until a grace period has passed is free.
    pub used: Capacity,
    /// Entries that there may be.
    pub capacity: Capacity,
}

impl Sync {
    /// How full the maps are, without looking at them.
    pub fn fill(&self) -> Fill {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let used = Capacity {
            frontends: count(self.actual.frontends.len()),
            slots: self.capacity.slots.saturating_sub(self.blocks.free()),
            backends: self.backend_ids.used(),
            services: count(self.actual.ports.len()),
            addresses: count(self.actual.addresses.len()),
            source_ranges: count(self.actual.source_ranges.len()),
        };
        Fill {
            used,
            capacity: self.capacity,
        }
    }
}
