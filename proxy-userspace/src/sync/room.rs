//! Room in the maps: how much a Service needs, how much there is, and who gets it when some
//! becomes free.
//!
//! # Who goes first
//! Services that are in force and wait for their next version go before those that are not in
//! force at all; among either, who waits longest goes first, and a newer version of a Service
//! keeps its place. Who does not fit holds nobody up: room that is free serves whoever fits.

use std::collections::BTreeMap;
use std::fmt;

use super::Sync;
use super::publish::Writer;
use super::target::{Capacity, Target};
use crate::model::ObjectName;
use crate::setting::Setting;

/// Entries of the maps that describe Services.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Room {
    pub(super) services: usize,
    pub(super) backends: usize,
    pub(super) frontends: usize,
    pub(super) addresses: usize,
    pub(super) source_ranges: usize,
    pub(super) slots: usize,
    /// Of the slots, those in one piece.
    pub(super) block: u32,
}

impl Room {
    /// Whether what is needed is there.
    pub(super) const fn fits(&self, free: &Self) -> bool {
        self.services <= free.services
            && self.backends <= free.backends
            && self.frontends <= free.frontends
            && self.addresses <= free.addresses
            && self.source_ranges <= free.source_ranges
            && self.slots <= free.slots
            && self.block <= free.block
    }

    /// The lesser of both, map by map.
    fn least(self, other: Self) -> Self {
        Self {
            services: self.services.min(other.services),
            backends: self.backends.min(other.backends),
            frontends: self.frontends.min(other.frontends),
            addresses: self.addresses.min(other.addresses),
            source_ranges: self.source_ranges.min(other.source_ranges),
            slots: self.slots.min(other.slots),
            block: self.block.min(other.block),
        }
    }
}

/// What a Service needs beyond what it has, and what there was when it was tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shortage {
    pub(super) needed: Room,
    pub(super) free: Room,
    pub(super) capacity: Capacity,
}

impl Shortage {
    /// How many more ids of backends and of service ports are needed.
    pub(super) const fn lacking_ids(&self) -> (usize, usize) {
        let backends = self.needed.backends.saturating_sub(self.free.backends);
        let services = self.needed.services.saturating_sub(self.free.services);
        (backends, services)
    }

    /// Whether it is for nothing else but what a grace period may free.
    pub(super) const fn is_curable(&self) -> bool {
        let Self { needed, free, .. } = self;
        needed.frontends <= free.frontends
            && needed.addresses <= free.addresses
            && needed.source_ranges <= free.source_ranges
    }

    /// Whether ids are all that lacks.
    pub(super) const fn is_of_ids(&self) -> bool {
        let Self { needed, free, .. } = self;
        self.is_curable() && needed.slots <= free.slots && needed.block <= free.block
    }

    fn counts(&self) -> [(&'static str, usize, usize, u32, &'static str); 5] {
        let Self {
            needed,
            free,
            capacity,
        } = self;
        [
            (
                "SERVICES",
                needed.services,
                free.services,
                capacity.services,
                "--max-services",
            ),
            (
                "BACKENDS",
                needed.backends,
                free.backends,
                capacity.backends,
                "--max-backends",
            ),
            (
                "FRONTENDS",
                needed.frontends,
                free.frontends,
                capacity.frontends,
                "--max-frontends",
            ),
            (
                "ADDRESSES",
                needed.addresses,
                free.addresses,
                capacity.addresses,
                "--max-addresses",
            ),
            (
                "SOURCE_RANGES",
                needed.source_ranges,
                free.source_ranges,
                capacity.source_ranges,
                "--max-source-ranges",
            ),
        ]
    }
}

/// Each map that is too small, with the numbers and what to raise.
impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts().into_iter();
        let lacking = counts.filter(|(_, needed, free, ..)| needed > free);
        let mut parts: Vec<_> = lacking
            .map(|(map, needed, free, size, option)| full(map, needed, free, size, option))
            .collect();
        let Self {
            needed,
            free,
            capacity,
        } = self;
        if needed.block > free.block {
            let entries = if needed.block == 1 {
                "entry"
            } else {
                "consecutive entries"
            };
            parts.push(format!(
                "map SLOTS is full: {} {entries} needed, at most {} of {} free in one piece; \
                 raise {}",
                needed.block,
                free.block,
                capacity.slots,
                Setting("--max-slots")
            ));
        } else if needed.slots > free.slots {
            let (needed, free) = (needed.slots, free.slots);
            parts.push(full("SLOTS", needed, free, capacity.slots, "--max-slots"));
        }
        write!(f, "{}", parts.join("; "))
    }
}

/// That a map is full, in words.
pub(super) fn full(
    map: &str,
    needed: usize,
    free: usize,
    size: u32,
    option: &'static str,
) -> String {
    let entries = if needed == 1 { "entry" } else { "entries" };
    format!(
        "map {map} is full: {needed} more {entries} needed, {free} of {size} free; raise {}",
        Setting(option)
    )
}

/// A place in the queue; the smallest goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    /// Nothing of the Service is in force.
    is_new: bool,
    ticket: u64,
}

impl Place {
    /// What tells how long a Service has waited.
    pub(super) const fn ticket(self) -> u64 {
        self.ticket
    }
}

/// Services that wait for room.
#[derive(Default, Debug)]
pub(super) struct Queue {
    by_place: BTreeMap<Place, (ObjectName, Room)>,
    next_ticket: u64,
    /// The least that was free while they were looked at last: none of them fits into that.
    looked_at: Option<Room>,
}

impl Queue {
    /// Lets a Service wait that does not fit into what is free, at its old place if it had one.
    pub(super) fn wait(
        &mut self,
        (name, needed): (&ObjectName, Room),
        free: Room,
        is_new: bool,
        ticket: Option<u64>,
    ) -> Place {
        let ticket = ticket.unwrap_or(self.next_ticket);
        self.next_ticket = self.next_ticket.max(ticket + 1);
        let place = Place { is_new, ticket };
        let before = self.looked_at.filter(|_| !self.by_place.is_empty());
        self.looked_at = Some(before.map_or(free, |before| before.least(free)));
        self.by_place.insert(place, (name.clone(), needed));
        place
    }

    /// A Service waits no more, or will be tried.
    pub(super) fn leave(&mut self, place: Place) {
        self.by_place.remove(&place);
    }

    /// The first that fits into what is free, after this place.
    fn next(&self, after: Option<Place>, free: &Room) -> Option<(Place, ObjectName)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, Excluded);
        let mut waiting = self.by_place.range((start, Unbounded));
        let found = waiting.find(|(_, (_, needed))| needed.fits(free));
        found.map(|(place, (name, _))| (*place, name.clone()))
    }
}

impl Sync {
    /// What is free now.
    pub(super) fn free(&self) -> Room {
        let free = |size: u32, used: usize| (size as usize).saturating_sub(used);
        let Capacity {
            frontends,
            source_ranges,
            ..
        } = self.capacity;
        let damaged = self.repairs.len();
        Room {
            services: self.service_ids.available(),
            backends: self.backend_ids.available(),
            frontends: free(frontends, self.actual.frontends.len() + damaged),
            addresses: self.free_addresses(),
            source_ranges: free(source_ranges, self.actual.source_ranges.len() + damaged),
            slots: self.blocks.n_free(),
            block: self.blocks.longest(),
        }
    }

    /// What could be made free: what rests, too, and what nothing but old flows uses.
    pub(super) fn free_in_the_end(&self) -> Room {
        let free = self.free_and_resting();
        let (backends, services) = self.detached.counts();
        Room {
            services: free.services + services,
            backends: free.backends + backends,
            ..free
        }
    }

    /// What is free, or will be after a grace period.
    pub(super) fn free_and_resting(&self) -> Room {
        let free = self.free();
        let resting = self.blocks.n_resting();
        let slots = free.slots + resting;
        Room {
            services: free.services + self.service_ids.n_resting(),
            backends: free.backends + self.backend_ids.n_resting(),
            slots,
            // Which pieces join is not known before.
            block: if resting == 0 {
                free.block
            } else {
                u32::try_from(slots).unwrap_or(u32::MAX)
            },
            ..free
        }
    }

    /// Brings those into force who fit by now.
    pub(super) fn let_in<T: Target>(&mut self, writer: &mut Writer<'_, T>) {
        while self.try_queue(writer) {}
    }

    /// Tries all who may fit by now, in order; says whether it let anybody in, who may have made
    /// room for others.
    fn try_queue<T: Target>(&mut self, writer: &mut Writer<'_, T>) -> bool {
        let (mut last, mut has_let_in) = (None, false);
        while let Some((place, name)) = self.next_in_queue(last) {
            has_let_in |= self.bring(vec![name], writer) > 0;
            self.settle_addresses(writer);
            last = Some(place);
        }
        has_let_in
    }

    /// The next Service that may fit by now; none if there is no more room than when all were
    /// looked at last.
    fn next_in_queue(&mut self, last: Option<Place>) -> Option<(Place, ObjectName)> {
        if self.queue.by_place.is_empty() {
            return None;
        }
        let free = self.free_in_the_end();
        let before = self.queue.looked_at;
        if last.is_none() && before.is_some_and(|before| free.fits(&before)) {
            return None;
        }
        self.queue.looked_at = Some(match before {
            Some(before) if last.is_some() => free.least(before),
            _ => free,
        });
        self.queue.next(last, &free)
    }
}
