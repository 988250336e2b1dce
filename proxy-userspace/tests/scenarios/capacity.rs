//! Full maps: what is in force stays whole, and who waits gets in as soon as there is room.

use std::collections::BTreeMap;

use beeline::model::{Event, ObjectName, Service};
use beeline::sync::{Capacity, Write};
use proptest::prelude::*;
use proptest::sample::select;
use proxy_common::abi::Family;

use super::build::{Build, ips, nets, object, service, slice};
use super::cluster::{Cluster, ROOMY};
use super::maps::{Failing, Fault, Maps, View};
use super::properties::{SERVICES, assert_only, batches, name, own_places, small_capacity};

const FAILING: [Failing; 3] = [Failing::One, Failing::NewEntries, Failing::All];

/// What packets see of each Service.
fn views(cluster: &Cluster) -> BTreeMap<ObjectName, View> {
    let names = (0..SERVICES).map(|index| object(&name(index)));
    names
        .map(|name| (name.clone(), cluster.maps.view_of(&name)))
        .collect()
}

/// What of it is of a family.
fn of(family: Family, view: &View) -> View {
    let of_family = view.iter().filter(|(key, _)| key.addr.family() == family);
    of_family.map(|(key, seen)| (*key, seen.clone())).collect()
}

/// Each Service is as it was or as it is to be, in each family (rule R150); who is not as it is to
/// be is named.
fn assert_whole(cluster: &Cluster, before: &BTreeMap<ObjectName, View>) {
    for (name, before) in before {
        let (seen, desired) = (cluster.maps.view_of(name), cluster.desired_of(name));
        for family in Family::ALL {
            let of_family = of(family, &seen);
            assert!(
                of_family == of(family, &desired) || of_family == of(family, before),
                "{name}: {seen:#?} instead of {desired:#?} or {before:#?}"
            );
        }
        let subject = format!("Service {name}");
        let is_named = cluster
            .sync
            .problems()
            .iter()
            .any(|it| it.subject == subject);
        assert!(is_named || seen == desired, "{name} is not named");
    }
}

/// Nobody waits who would fit: another start on the same maps brings nothing into force.
fn assert_nobody_fits(cluster: &mut Cluster, capacity: Capacity) {
    let before = cluster.maps.view();
    let world = std::mem::take(&mut cluster.world);
    let other = Cluster::starting_on(cluster.maps.clone(), world, capacity);
    assert_eq!(other.maps.view(), before);
    cluster.world = other.world;
}

/// The versions of a Service in the small world: none, one endpoint, two, one at two frontends,
/// one with source ranges.
const N_VERSIONS: u8 = 5;

fn version(index: u8, version: u8) -> Vec<Event> {
    let service_name = name(index);
    if version == 0 {
        return vec![Event::ServiceGone(object(&service_name))];
    }
    let mut service: Service = service(&service_name, &format!("10.96.0.{index}"));
    let (ports, endpoints) = match version {
        1 => ("a:80/TCP", &["10.0.0.1"][..]),
        2 => ("a:80/TCP", &["10.0.0.1", "10.0.0.2"][..]),
        3 => ("a:80/TCP b:81/TCP", &["10.0.0.1"][..]),
        _ => ("a:80/TCP", &["10.0.0.3"][..]),
    };
    if version == 4 {
        service.load_balancer_ips = ips(&format!("192.0.2.{index}"));
        service.source_ranges = nets("10.0.0.0/8");
    }
    let slice = slice(
        &format!("ns/slice-{index}"),
        &service_name,
        Family::Ipv4,
        endpoints,
    );
    vec![
        service.ports(ports).event(),
        slice.ports("a:8080/TCP b:8081/TCP").event(),
    ]
}

/// One map of each size that lacks something, the others roomy.
fn tight() -> Vec<Capacity> {
    let sized = |size: u32| {
        [
            Capacity {
                frontends: size,
                ..ROOMY
            },
            Capacity {
                slots: size,
                ..ROOMY
            },
            Capacity {
                backends: size,
                ..ROOMY
            },
            Capacity {
                services: size,
                ..ROOMY
            },
            Capacity {
                addresses: size,
                ..ROOMY
            },
            Capacity {
                source_ranges: size,
                ..ROOMY
            },
        ]
    };
    (1..=3).flat_map(sized).collect()
}

/// Every sequence of three changes of two Services, in maps that are too small.
#[test]
fn every_small_history_in_every_small_map() {
    let changes: Vec<_> = (0..2)
        .flat_map(|index| (0..N_VERSIONS).map(move |number| (index, number)))
        .collect();
    let n = changes.len();
    for capacity in tight() {
        for sequence in 0..n * n * n {
            let steps = [sequence / n / n, sequence / n % n, sequence % n];
            let mut cluster = Cluster::new(capacity);
            for step in steps {
                let before = views(&cluster);
                let (index, number) = changes[step];
                cluster.apply(version(index, number));
                assert_whole(&cluster, &before);
            }
            assert_nobody_fits(&mut cluster, capacity);
        }
    }
}

/// Every change of one Service while another comes, grows, changes or goes, with a fault at every
/// write.
#[test]
fn every_write_of_every_small_change_may_fail() {
    let others = [(0, 1), (1, 2), (3, 4), (1, 0)];
    let pairs = (0..N_VERSIONS).flat_map(|old| (0..N_VERSIONS).map(move |new| (old, new)));
    for ((old, new), (other_old, other_new)) in
        pairs.flat_map(|pair| others.map(|other| (pair, other)))
    {
        let started = || {
            let mut cluster = Cluster::new(ROOMY);
            cluster.apply([version(0, old), version(1, other_old)].concat());
            cluster.maps.log.clear();
            cluster
        };
        let change = || [version(0, new), version(1, other_new)].concat();
        let mut cluster = started();
        cluster.apply(change());
        let n_writes = cluster.maps.log.len();
        for (after, failing) in (0..n_writes).flat_map(|k| FAILING.map(|failing| (k, failing))) {
            assert_whole_with(&mut started(), change(), Fault { failing, after });
        }
    }
}

/// A Service with this many endpoints.
fn sized(index: u8, n_endpoints: u8) -> Vec<Event> {
    let service_name = name(index);
    let endpoints: Vec<_> = (0..n_endpoints)
        .map(|last| format!("10.0.{index}.{last}"))
        .collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    let slice_name = format!("ns/slice-{index}");
    let service = service(&service_name, &format!("10.96.0.{index}")).ports("a:80/TCP");
    let slice = slice(&slice_name, &service_name, Family::Ipv4, &endpoints).ports("a:80/TCP");
    vec![service.event(), slice.event()]
}

/// How many endpoints of each of the first Services are in force.
fn in_force<const N: usize>(cluster: &Cluster) -> [usize; N] {
    std::array::from_fn(|index| {
        let view = cluster
            .maps
            .view_of(&object(&name(u8::try_from(index).unwrap())));
        view.values().next().map_or(0, |seen| seen.cluster.len())
    })
}

fn with_backends(backends: u32) -> Cluster {
    Cluster::new(Capacity { backends, ..ROOMY })
}

#[test]
fn who_waits_longest_goes_first_and_holds_nobody_up() {
    let mut cluster = with_backends(6);
    cluster.apply(sized(0, 4));
    // By name, the last comes first.
    cluster.apply(sized(3, 4));
    cluster.apply(sized(2, 3));
    cluster.apply(sized(1, 3));
    assert_eq!(in_force(&cluster), [4, 0, 0, 0]);
    // Another version keeps its place.
    cluster.apply(sized(3, 5));
    cluster.apply(sized(0, 1));
    assert_eq!(in_force(&cluster), [1, 0, 0, 5]);
    cluster.apply(sized(3, 1));
    assert_eq!(in_force(&cluster), [1, 0, 3, 1]);
    // Not the first in the queue, but it fits.
    cluster.apply([sized(0, 3), sized(2, 2)].concat());
    assert_eq!(in_force(&cluster), [3, 0, 2, 1]);
    cluster.apply([Event::ServiceGone(object(&name(3)))]);
    cluster.apply([Event::ServiceGone(object(&name(2)))]);
    assert_eq!(in_force(&cluster), [3, 3, 0, 0]);
    assert_eq!(cluster.sync.problems(), []);
}

#[test]
fn who_is_in_force_goes_before_who_is_new() {
    let mut cluster = with_backends(6);
    cluster.apply([sized(0, 3), sized(3, 2)].concat());
    cluster.apply(sized(1, 3));
    cluster.apply(sized(3, 5));
    assert_eq!(in_force(&cluster), [3, 0, 0, 2]);
    cluster.apply([Event::ServiceGone(object(&name(0)))]);
    assert_eq!(in_force(&cluster), [0, 0, 0, 5]);
    // So it is within one batch.
    let mut cluster = with_backends(4);
    cluster.apply(sized(1, 1));
    cluster.apply([sized(0, 3), sized(1, 3)].concat());
    assert_eq!(in_force(&cluster), [0, 3]);
}

#[test]
fn a_batch_that_makes_room_uses_it() {
    let mut cluster = with_backends(4);
    cluster.apply(sized(3, 4));
    let gone = vec![Event::ServiceGone(object(&name(3)))];
    cluster.apply([gone, sized(0, 4)].concat());
    assert_eq!(in_force(&cluster), [4]);
    assert_eq!(cluster.sync.problems(), []);
}

#[test]
fn backends_that_no_flow_uses_any_more_make_room() {
    let mut cluster = with_backends(4);
    cluster.apply([sized(0, 2), sized(1, 2)].concat());
    cluster.apply([Event::ServiceGone(object(&name(1)))]);
    // Only what the flows of the old one use lacks, and one more.
    cluster.apply(sized(2, 3));
    assert_eq!(in_force(&cluster), [2, 0, 0]);
    cluster.apply(sized(0, 1));
    assert_eq!(in_force(&cluster), [1, 0, 3]);
}

#[test]
fn every_map_that_lacks_room_is_named_with_its_setting() {
    let capacity = Capacity {
        frontends: 1,
        slots: 2,
        backends: 2,
        services: 1,
        addresses: 1,
        source_ranges: 0,
    };
    let mut cluster = Cluster::new(capacity);
    cluster.apply(sized(0, 1));
    cluster.apply(sized(1, 3));
    let problems = cluster.sync.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].subject, "Service ns/service-1");
    assert_eq!(
        problems[0].message,
        "map SERVICES is full: 1 more entry needed, 0 of 1 free; \
         raise --max-services (maxServices); \
         map BACKENDS is full: 3 more entries needed, 1 of 2 free; \
         raise --max-backends (maxBackends); \
         map FRONTENDS is full: 1 more entry needed, 0 of 1 free; \
         raise --max-frontends (maxFrontends); \
         map ADDRESSES is full: 1 more entry needed, 0 of 1 free; \
         raise --max-addresses (maxAddresses); \
         map SLOTS is full: 3 consecutive entries needed, at most 1 of 2 free in one piece; \
         raise --max-slots (maxSlots)"
    );
}

#[test]
fn addresses_of_the_node_that_find_no_room_are_named_and_come_first() {
    let mut cluster = Cluster::new(Capacity {
        addresses: 2,
        ..ROOMY
    });
    cluster.apply([sized(0, 1), sized(1, 1)].concat());
    cluster.apply(sized(2, 1));
    let report = cluster.set_own(&["192.0.2.1", "192.0.2.2"]);
    assert_eq!(report.n_pending, 2);
    let problems = cluster.sync.problems();
    assert_eq!(problems[0].subject, "node addresses 192.0.2.1, 192.0.2.2");
    assert_eq!(
        problems[0].message,
        "map ADDRESSES is full: 2 more entries needed, 0 of 2 free; \
         raise --max-addresses (maxAddresses)"
    );
    cluster.apply([Event::ServiceGone(object(&name(0)))]);
    assert_eq!(in_force(&cluster), [0, 1, 0]);
    let subject = &cluster.sync.problems()[0].subject;
    assert_eq!(subject, "node address 192.0.2.2");
    cluster.set_own(&[]);
    assert_eq!(in_force(&cluster), [0, 1, 1]);
}

/// Crowds that do not fit cost each later change next to nothing: their plans are not made again.
#[test]
fn a_crowd_that_waits_is_not_tried_at_every_change() {
    let mut cluster = with_backends(4);
    cluster.apply(sized(0, 3));
    let crowd = (0..200_u8).flat_map(|number| {
        let name = format!("ns/crowd-{number}");
        let service = service(&name, &format!("10.97.0.{number}")).ports("a:80/TCP");
        let slice = slice(
            &format!("{name}-1"),
            &name,
            Family::Ipv4,
            &["10.1.0.1", "10.1.0.2"],
        );
        [service.event(), slice.ports("a:80/TCP").event()]
    });
    assert_eq!(cluster.apply(crowd).n_pending, 200);
    cluster.maps.log.clear();
    cluster.maps.n_grace_periods = 0;
    // With two endpoints of the one there is room for the first of the crowd, and then no more.
    cluster.apply(sized(0, 2));
    assert_eq!(cluster.retry().n_pending, 199);
    for _ in 0..50 {
        cluster.apply(sized(0, 3));
        cluster.apply(sized(0, 1));
        cluster.apply(sized(0, 2));
        assert_eq!(cluster.retry().n_pending, 199);
    }
    let n_grace_periods = cluster.maps.n_grace_periods;
    assert!(n_grace_periods <= 102, "{n_grace_periods}");
}

/// Applies a batch under a fault, looks at what is in force, and lifts the fault.
fn assert_whole_with(cluster: &mut Cluster, batch: Vec<Event>, fault: Fault) {
    let (before, before_all) = (views(cluster), cluster.maps.view());
    cluster.maps.fault = Some(fault);
    cluster.maps.history = Some(vec![]);
    cluster.apply(batch);
    // At no moment does a packet see anything else, ...
    let history = cluster.maps.history.take().unwrap();
    let desired = cluster.desired();
    assert_only(&history, [&before_all, &desired], &cluster.desired_each());
    // ... and in the end the Services are whole. Only what can't be removed may be one too many.
    let failed = cluster.maps.failed.take();
    let is_surplus = matches!(
        failed,
        Some(Write::RemoveFrontend { .. } | Write::RemoveSourceRange { .. })
    );
    let is_whole = match fault.failing {
        Failing::One => !is_surplus,
        Failing::NewEntries => true,
        // Nothing can be taken back either.
        Failing::All => fault.after == 0,
    };
    if is_whole {
        assert_whole(cluster, &before);
    }
    cluster.maps.fault = None;
    cluster.retry();
    cluster.assert_settled();
}

proptest! {
    /// Whatever the sizes and the history, after every change each Service is as it was or as it
    /// is to be, nobody waits who fits, and in maps that have grown all is in force.
    #[test]
    fn what_does_not_fit_stays_whole_and_gets_in_when_it_does(
        batches in batches(own_places()), capacity in small_capacity()
    ) {
        let mut cluster = Cluster::new(capacity);
        for batch in batches {
            let before = views(&cluster);
            cluster.apply(batch);
            assert_whole(&cluster, &before);
            assert_nobody_fits(&mut cluster, capacity);
            let n_writes = cluster.maps.log.len();
            cluster.retry();
            prop_assert_eq!(cluster.maps.log.len(), n_writes, "there was more to do");
        }
        cluster.grow(ROOMY);
        cluster.assert_settled();
    }

    /// The room that a Service needs comes back when others go: no event of its own is needed.
    #[test]
    fn who_waits_gets_in_when_others_go(
        batches in batches(own_places()), capacity in small_capacity(), last in 0..SERVICES
    ) {
        let mut cluster = Cluster::new(capacity);
        for batch in batches {
            cluster.apply(batch);
        }
        let last = object(&name(last));
        let is_new = cluster.maps.view_of(&last).is_empty();
        let others = cluster.names().into_iter().filter(|it| *it != last);
        let others: Vec<_> = others.map(Event::ServiceGone).collect();
        cluster.apply(others);
        let desired = cluster.desired_of(&last);
        let is_in_force = cluster.maps.view_of(&last) == desired;
        let world = std::mem::take(&mut cluster.world);
        let alone = Cluster::starting_on(Maps::new(capacity), world, capacity);
        // What it has in force already needs room, too, that one who starts alone has.
        prop_assert!(is_in_force || !is_new || !alone.sync.problems().is_empty());
    }

    /// A fault at any write of any change.
    #[test]
    fn a_fault_at_any_write_leaves_every_service_whole(
        mut batches in batches(own_places()),
        after in 0_usize..40,
        failing in select(FAILING.to_vec()),
    ) {
        let mut cluster = Cluster::new(ROOMY);
        let last = batches.pop().unwrap();
        for batch in batches {
            cluster.apply(batch);
        }
        assert_whole_with(&mut cluster, last, Fault { failing, after });
        cluster.empty_and_fill();
    }
}
