//! How often the way from events to map writes asks for memory: less than it may, and no more with
//! many Services than with few.
//!
//! A number that is exceeded on purpose is to be replaced by the one that the failure shows.

#[path = "support/crowd.rs"]
mod crowd;

use std::convert::Infallible;

use allocation_counter::{AllocationInfo, measure};
use beeline::model::Event;
use beeline::sync::{Capacity, Target, Write};
use proxy_common::abi::limits;

use crowd::{Way, endpoint, lists, replaced, service, slice};

const CAPACITY: Capacity = Capacity {
    frontends: limits::FRONTENDS,
    slots: limits::SLOTS,
    backends: limits::BACKENDS,
    services: limits::SERVICES,
    addresses: limits::ADDRESSES,
    source_ranges: limits::SOURCE_RANGES,
};

/// Endpoints of most Services.
const ENDPOINTS: u32 = 4;
/// Changes of which the mean is taken, after as many others: what grows by doubling has grown.
const CHANGES: u32 = 100;

/// What one event, or one Service, may take: a tenth more is too much.
struct Bound {
    allocations: f64,
    bytes: f64,
}

const CHANGE: Bound = Bound {
    allocations: 36.0,
    bytes: 5_620.0,
};
const NO_CHANGE: Bound = Bound {
    allocations: 0.0,
    bytes: 0.0,
};
const CHANGE_OF_LARGE: Bound = Bound {
    allocations: 160.0,
    bytes: 152_000.0,
};
const COLD_START: Bound = Bound {
    allocations: 41.0,
    bytes: 8_100.0,
};

impl Bound {
    #[track_caller]
    fn holds(&self, what: &str, counted: AllocationInfo, n: u32) {
        let each = |sum: u64| sum as f64 / f64::from(n);
        let (allocations, bytes) = (each(counted.count_total), each(counted.bytes_total));
        println!("{what}: {allocations} allocations of {bytes} bytes together");
        assert!(
            allocations <= self.allocations * 1.1 && bytes <= self.bytes * 1.1,
            "{what}: {allocations} allocations of {bytes} bytes together, which may be {} of {}",
            self.allocations,
            self.bytes
        );
    }
}

/// Takes every write and does nothing.
struct Sink;

impl Target for Sink {
    type Error = Infallible;

    fn write(&mut self, _: &Write) -> Result<(), Infallible> {
        Ok(())
    }

    fn grace_period(&mut self) {}
}

fn started(events: impl IntoIterator<Item = Event>) -> Way<Sink> {
    let mut way = Way::new(CAPACITY, Sink);
    let report = way.take(events);
    assert_eq!(report.n_pending, 0);
    way
}

/// What it takes to follow these events, one at a time.
fn follow(way: &mut Way<Sink>, events: impl IntoIterator<Item = Event>) -> AllocationInfo {
    let mut sum = AllocationInfo::default();
    for event in events {
        sum += measure(|| assert_eq!(way.take([event]).n_pending, 0));
    }
    sum
}

fn changes_among(n_services: u32) -> AllocationInfo {
    let mut way = started(lists(n_services, ENDPOINTS));
    let event = |number| replaced(number % n_services, ENDPOINTS, 1 + number / n_services);
    let _others = follow(&mut way, (0..CHANGES).map(event));
    follow(&mut way, (CHANGES..2 * CHANGES).map(event))
}

#[test]
fn a_change_takes_as_much_among_many_services_as_among_few() {
    let (few, many) = (changes_among(10), changes_among(1_000));
    CHANGE.holds("one endpoint among 10 Services", few, CHANGES);
    CHANGE.holds("one endpoint among 1,000 Services", many, CHANGES);
    let ratio = many.count_total as f64 / few.count_total as f64;
    assert!(
        (0.95..1.05).contains(&ratio),
        "{} allocations among 10 Services, {} among 1,000",
        few.count_total,
        many.count_total
    );
}

#[test]
fn what_is_known_already_takes_next_to_nothing() {
    let mut way = started(lists(10, ENDPOINTS));
    let again = lists(10, ENDPOINTS);
    NO_CHANGE.holds("an event without a change", follow(&mut way, again), 20);
}

#[test]
fn a_change_of_a_large_service_takes_no_more_allocations_than_it_may() {
    let numbers: Vec<u32> = (0..1_000).collect();
    let slices: Vec<Vec<_>> = numbers
        .chunks(100)
        .map(|chunk| chunk.iter().map(|&number| endpoint(number)).collect())
        .collect();
    let all = (0..).zip(&slices);
    let all = all.map(|(number, endpoints)| slice(0, number, endpoints.clone()));
    let mut way = started([service(0)].into_iter().chain(all));
    let changed = (0..).zip(&slices).map(|(number, endpoints)| {
        let mut endpoints = endpoints.clone();
        endpoints[0] = endpoint(1_000 + number);
        slice(0, number, endpoints)
    });
    let counted = follow(&mut way, changed);
    CHANGE_OF_LARGE.holds("one endpoint of a Service of 1,000", counted, 10);
}

#[test]
fn a_cold_start_takes_so_much_for_a_service() {
    let lists = lists(1_000, ENDPOINTS);
    let mut way = Way::new(CAPACITY, Sink);
    let counted = measure(|| assert_eq!(way.take(lists).n_pending, 0));
    COLD_START.holds("a cold start, for each Service", counted, 1_000);
}
