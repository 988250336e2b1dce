//! Which writes are made, when room is short, and what is said about it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use beeline::model::{EndpointSlice, Event, Service, TrafficPolicy};
use beeline::sync::{Capacity, Contents, Sync, Write, dump};
use proxy_common::abi::{
    Addr, AddressFlags, Backend, BackendFlags, BackendState, Family, Port, ServiceName,
};

use super::build::{Build, ips, nets, object, service, slice};
use super::cluster::{Cluster, ROOMY};
use super::maps::Maps;

fn web() -> Service {
    service("shop/web", "10.96.0.1").ports("http:80/TCP")
}

fn web_slice(endpoints: &[&str]) -> EndpointSlice {
    slice("shop/web-1", "shop/web", Family::Ipv4, endpoints).ports("http:8080/TCP")
}

fn running(capacity: Capacity, endpoints: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(capacity);
    cluster.apply([web().event(), web_slice(endpoints).event()]);
    cluster.maps.log.clear();
    cluster
}

/// The last part of each write's name, `Gone` or `Detached` for the end of a backend.
fn kinds(maps: &Maps) -> Vec<&'static str> {
    maps.log.iter().map(kind).collect()
}

fn kind(write: &Write) -> &'static str {
    match write {
        Write::Service { .. } => "Service",
        Write::Backend { backend, .. } if backend.state == BackendState::Gone as u8 => "Gone",
        Write::Backend { backend, .. } if backend.state == BackendState::Detached as u8 => {
            "Detached"
        }
        Write::Backend { .. } => "Backend",
        Write::Slots { .. } => "Slots",
        Write::Frontend { .. } => "Frontend",
        Write::RemoveFrontend { .. } => "RemoveFrontend",
        Write::RemoveService { .. } => "RemoveService",
        Write::Address { .. } => "Address",
        Write::RemoveAddress { .. } => "RemoveAddress",
        Write::SourceRange { .. } => "SourceRange",
        Write::RemoveSourceRange { .. } => "RemoveSourceRange",
    }
}

#[test]
fn the_new_is_written_before_it_is_reachable_and_the_old_removed_after() {
    let mut cluster = Cluster::new(ROOMY);
    cluster.apply([web().event(), web_slice(&["10.0.0.1", "10.0.0.2"]).event()]);
    assert_eq!(
        kinds(&cluster.maps),
        [
            "Service", "Backend", "Backend", "Slots", "Address", "Frontend"
        ]
    );
    cluster.maps.log.clear();
    cluster.apply([web_slice(&["10.0.0.2", "10.0.0.3"]).event()]);
    assert_eq!(
        kinds(&cluster.maps),
        ["Backend", "Slots", "Frontend", "Gone"]
    );
    cluster.maps.log.clear();
    cluster.apply([Event::ServiceGone(object("shop/web"))]);
    assert_eq!(
        kinds(&cluster.maps),
        [
            "RemoveFrontend",
            "Detached",
            "Detached",
            "RemoveService",
            "RemoveAddress"
        ]
    );
}

#[test]
fn a_change_of_state_alone_writes_the_backend_alone() {
    let mut cluster = running(ROOMY, &["10.0.0.1", "10.0.0.2 unready"]);
    cluster.apply([web_slice(&["10.0.0.1", "10.0.0.2 terminating"]).event()]);
    assert_eq!(kinds(&cluster.maps), ["Backend"]);
    cluster.apply([web_slice(&["10.0.0.1 terminating", "10.0.0.2 unready"]).event()]);
    assert_eq!(kinds(&cluster.maps)[1..], ["Backend", "Backend"]);
}

#[test]
fn properties_of_a_frontend_alone_write_the_frontend_alone() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let mut changed = web();
    changed.internal_policy = TrafficPolicy::Local;
    cluster.apply([changed.event()]);
    assert_eq!(kinds(&cluster.maps), ["Frontend"]);
}

#[test]
fn r162_a_cluster_ip_changes_hands_by_one_write() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let heir = service("shop/heir", "10.96.0.1").ports("http:80/TCP");
    cluster.apply([Event::ServiceGone(object("shop/web")), heir.event()]);
    assert_eq!(
        kinds(&cluster.maps),
        ["Service", "Frontend", "Detached", "RemoveService"]
    );
}

#[test]
fn an_endpoint_that_returns_has_a_new_id_or_generation() {
    let capacity = Capacity {
        backends: 2,
        ..ROOMY
    };
    let mut cluster = running(capacity, &["10.0.0.1"]);
    let life = |cluster: &Cluster| {
        let backends = cluster.maps.contents().backends;
        let id = backends
            .iter()
            .position(|backend| backend.state != 0)
            .unwrap();
        (id, backends[id].generation)
    };
    let mut lives = vec![life(&cluster)];
    for _ in 0..4 {
        cluster.apply([web_slice(&[]).event()]);
        cluster.apply([web_slice(&["10.0.0.1"]).event()]);
        lives.push(life(&cluster));
    }
    assert_eq!(lives, [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]);
}

/// The entry of the endpoint at this address in its latest life.
fn backend(cluster: &Cluster, ip: &str) -> Backend {
    let addr = ip.parse::<IpAddr>().unwrap().into();
    let backends = cluster.maps.contents().backends;
    let own = backends.into_iter().filter(|it| it.addr == addr);
    own.max_by_key(|it| it.generation).unwrap()
}

fn with_affinity(seconds: Option<u32>) -> Event {
    let mut service = web();
    service.affinity_seconds = seconds;
    service.event()
}

/// What affinity goes by changes with these and no other changes (rules R114, R116).
#[test]
fn joined_grows_where_affinity_forgets() {
    let one = || web_slice(&["10.0.0.1@here"]).event();
    let other_unready = || web_slice(&["10.0.0.1@here", "10.0.0.2 unready"]).event();
    let left = || web_slice(&["10.0.0.1@here unready", "10.0.0.2"]).event();
    let local_only = || web_slice(&["10.0.0.1@here terminating", "10.0.0.2"]).event();
    let steps: [(&str, Event, u32); 14] = [
        ("it comes", one(), 0),
        ("affinity begins", with_affinity(Some(60)), 1),
        ("affinity lasts longer", with_affinity(Some(90)), 0),
        ("another comes", other_unready(), 0),
        ("it leaves both sets and returns", left(), 0),
        ("it has returned", one(), 1),
        ("it stays in the local set", local_only(), 0),
        ("it is in both again", one(), 0),
        ("affinity ends", with_affinity(None), 0),
        ("affinity begins again", with_affinity(Some(90)), 1),
        ("it is removed", web_slice(&[]).event(), 0),
        ("nothing", web_slice(&[]).event(), 0),
        ("it has a new life with a new id", one(), 0),
        ("nothing again", one(), 0),
    ];
    let mut cluster = Cluster::new(ROOMY);
    cluster.apply([web().event(), one()]);
    for (what, event, growth) in steps {
        let before = backend(&cluster, "10.0.0.1");
        cluster.apply([event]);
        let writes = cluster.maps.log.len();
        assert_eq!(cluster.restart(), 0, "{what}");
        assert_eq!(cluster.maps.log.len(), writes);
        let after = backend(&cluster, "10.0.0.1");
        if before.generation == after.generation {
            assert_eq!(after.joined, before.joined + growth, "{what}");
        }
    }
}

#[test]
fn r147_backends_of_a_deleted_service_go_on_until_no_flow_uses_them() {
    let mut cluster = running(ROOMY, &["10.0.0.1@here", "10.0.0.2"]);
    let before = backend(&cluster, "10.0.0.1");
    cluster.apply([Event::ServiceGone(object("shop/web"))]);
    let detached = Backend {
        state: BackendState::Detached as u8,
        flags: BackendFlags::IS_LOCAL,
        ..before
    };
    assert_eq!(backend(&cluster, "10.0.0.1"), detached);
    assert_eq!(cluster.sync.detached(), BTreeSet::from([0, 1]));
    // It comes back: the old ones stay what they are, and so they do across a restart.
    cluster.apply([web().event()]);
    assert_eq!(cluster.restart(), 0);
    let ids = |cluster: &Cluster| {
        let services = cluster.maps.contents().services;
        services.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&cluster), [1]);
    let in_use = BTreeSet::from([0, 7]);
    let report = cluster.sync.release_detached(&in_use, &mut cluster.maps);
    assert_eq!((report.n_writes, report.n_pending), (1, 0));
    assert_eq!(cluster.sync.detached(), BTreeSet::from([0]));
    cluster
        .sync
        .release_detached(&BTreeSet::new(), &mut cluster.maps);
    let gone = backend(&cluster, "10.0.0.1");
    assert_eq!((gone.state, gone.generation), (0, before.generation + 1));
    cluster.empty_and_fill();
}

#[test]
fn a_release_that_fails_is_tried_again() {
    let mut cluster = running(ROOMY, &["10.0.0.1", "10.0.0.2"]);
    cluster.apply([Event::ServiceGone(object("shop/web"))]);
    cluster.maps.faults = vec![true];
    let none = BTreeSet::new();
    assert_eq!(
        cluster
            .sync
            .release_detached(&none, &mut cluster.maps)
            .n_writes,
        1
    );
    assert_eq!(
        cluster
            .sync
            .release_detached(&none, &mut cluster.maps)
            .n_writes,
        1
    );
    assert!(!cluster.sync.has_detached());
}

/// Deletes `shop/old` and then `shop/web`, which have two backends each, and adds a Service with
/// these endpoints.
fn after_two(capacity: Capacity, endpoints: &[&str]) -> Cluster {
    let mut cluster = running(capacity, &["10.0.0.3", "10.0.0.4"]);
    let old = service("shop/old", "10.96.0.2").ports("http:80/TCP");
    let old_slice = slice(
        "shop/old-1",
        "shop/old",
        Family::Ipv4,
        &["10.0.0.1", "10.0.0.2"],
    );
    cluster.apply([old.event(), old_slice.ports("http:80/TCP").event()]);
    for name in ["shop/old", "shop/web"] {
        cluster.apply([Event::ServiceGone(object(name))]);
    }
    let new = service("shop/new", "10.96.0.3").ports("http:80/TCP");
    let new_slice = slice("shop/new-1", "shop/new", Family::Ipv4, endpoints);
    cluster.apply([new.event(), new_slice.ports("http:80/TCP").event()]);
    cluster
}

#[test]
fn if_ids_run_out_those_that_wait_longest_go_first() {
    let states = |cluster: &Cluster| {
        let ips = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
        ips.map(|ip| backend(cluster, ip).state)
    };
    let detached = BackendState::Detached as u8;
    let capacity = Capacity {
        backends: 5,
        ..ROOMY
    };
    let cluster = after_two(capacity, &["10.0.0.7"]);
    assert_eq!(states(&cluster), [detached; 4]);
    let cluster = after_two(capacity, &["10.0.0.7", "10.0.0.8"]);
    assert_eq!(cluster.sync.problems(), []);
    assert_eq!(cluster.sync.detached().len(), 3);
    let mut cluster = after_two(capacity, &["10.0.0.5", "10.0.0.6", "10.0.0.7"]);
    assert_eq!(cluster.maps.view(), cluster.desired());
    assert_eq!(cluster.sync.detached(), BTreeSet::from([0, 1]));
    cluster.empty_and_fill();
    // Nothing is given up for what does not fit in any case.
    let ips: Vec<_> = (1..7).map(|last| format!("10.0.1.{last}")).collect();
    let ips: Vec<_> = ips.iter().map(String::as_str).collect();
    let cluster = after_two(capacity, &ips);
    assert_eq!(states(&cluster), [detached; 4]);
    assert_problem(
        &cluster,
        "shop/new",
        "map BACKENDS is full: 6 more entries needed, 1 of 5 free; \
         raise --max-backends (maxBackends)",
    );
    // An id of a service port is free when the last backend is that names it.
    let capacity = Capacity {
        services: 2,
        ..ROOMY
    };
    let cluster = after_two(capacity, &["10.0.0.9"]);
    assert_eq!(cluster.sync.problems(), []);
    assert_eq!(states(&cluster), [0, 0, detached, detached]);
}

fn guarded(ranges: &str) -> Event {
    let mut service = web();
    service.load_balancer_ips = ips("192.0.2.1");
    service.source_ranges = nets(ranges);
    service.event()
}

#[test]
fn r104_nobody_is_let_in_or_shut_out_in_between() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let steps = [
        ("10.0.0.0/8", &["SourceRange", "Address", "Frontend"][..], 0),
        ("10.1.0.0/16", &["SourceRange", "RemoveSourceRange"], 1),
        ("10.1.0.0/16 fd00::/8", &[], 0),
        ("", &["Frontend", "RemoveSourceRange"], 1),
        ("10.0.0.0/8", &["SourceRange", "Frontend"], 0),
    ];
    for (ranges, writes, n_grace_periods) in steps {
        let before = cluster.maps.n_grace_periods;
        cluster.apply([guarded(ranges)]);
        assert_eq!(kinds(&cluster.maps), writes, "{ranges}");
        assert_eq!(cluster.maps.n_grace_periods - before, n_grace_periods);
        cluster.maps.log.clear();
    }
    cluster.apply([Event::ServiceGone(object("shop/web"))]);
    assert!(cluster.maps.is_empty());
}

#[test]
fn what_a_failed_write_left_lets_nobody_in() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    cluster.apply([guarded("10.0.0.0/8")]);
    // The frontend goes; the range does not.
    cluster.maps.faults = vec![true, false];
    cluster.apply([web().event()]);
    assert_eq!(cluster.maps.contents().source_ranges.len(), 1);
    cluster.maps.history = Some(vec![]);
    cluster.apply([guarded("10.1.0.0/16")]);
    for maps in cluster.maps.history.take().unwrap() {
        let is_guarded = maps.view().values().any(|it| !it.ranges.is_empty());
        assert!(!is_guarded || maps.contents().source_ranges.len() == 1);
    }
    cluster.assert_settled();
}

#[test]
fn addresses_of_the_node_are_kept_until_it_tells_others() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    cluster.set_own(&["192.0.2.1", "-10.96.0.1"]);
    let before = cluster.maps.contents();
    cluster.sync = Sync::new(ROOMY, before.clone());
    assert_eq!(cluster.first_pass(), 0);
    cluster.sync = Sync::new(ROOMY, before);
    cluster.maps.log.clear();
    cluster.set_own(&["192.0.2.2"]);
    assert_eq!(
        kinds(&cluster.maps),
        ["RemoveAddress", "Address", "Address"]
    );
    cluster.assert_settled();
}

#[test]
fn an_address_that_fails_is_a_problem_until_it_is_tried_again() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    cluster.maps.faults = vec![true];
    assert_eq!(cluster.set_own(&["192.0.2.1"]).n_pending, 1);
    let problems = cluster.sync.problems();
    assert_eq!(problems[0].subject, "node address 192.0.2.1");
    assert_eq!(
        problems[0].message,
        "map ADDRESSES: write failed: the kernel said no"
    );
    assert_eq!(cluster.retry().n_pending, 0);
    cluster.assert_settled();
}

#[test]
fn addresses_that_a_crash_left_behind_go() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let mut contents = cluster.maps.contents();
    let addr = |ip: &str| Addr::from(ip.parse::<IpAddr>().unwrap());
    contents.addresses = vec![(addr("10.96.0.9"), AddressFlags::CLUSTER_IP)];
    contents.source_ranges = vec![(9, nets("10.0.0.0/8")[0])];
    cluster.maps = Maps::holding(ROOMY, contents.clone());
    cluster.sync = Sync::new(ROOMY, contents);
    cluster.first_pass();
    cluster.assert_settled();
    assert_eq!(cluster.restart(), 0);
    cluster.empty_and_fill();
}

#[test]
fn grace_periods_are_waited_for_only_when_room_lacks() {
    let mut cluster = running(
        Capacity {
            slots: 100,
            ..ROOMY
        },
        &["10.0.0.1"],
    );
    let before = cluster.maps.n_grace_periods;
    for round in 0..1000 {
        let endpoint = format!("10.0.1.{}", round % 250);
        cluster.apply([web_slice(&[&endpoint]).event()]);
    }
    let n_grace_periods = cluster.maps.n_grace_periods - before;
    assert!((1..=12).contains(&n_grace_periods), "{n_grace_periods}");
}

#[test]
fn what_a_predecessor_left_goes_at_the_end_of_the_first_pass() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    cluster.sync = Sync::new(ROOMY, cluster.maps.contents());
    cluster.sync.retry(&mut cluster.maps);
    assert!(!cluster.maps.view().is_empty());
    cluster.sync.finish_start(|_| false, &mut cluster.maps);
    assert!(cluster.maps.is_empty());
}

#[test]
fn what_may_be_there_is_kept_until_more_is_known() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let before = cluster.maps.view();
    cluster.sync = Sync::new(ROOMY, cluster.maps.contents());
    let report = cluster.sync.finish_start(|_| true, &mut cluster.maps);
    assert_eq!(report.n_writes, 0);
    assert_eq!(cluster.maps.view(), before);
    assert_eq!(cluster.sync.unclaimed().len(), 1);
    cluster.sync.finish_start(|_| false, &mut cluster.maps);
    assert!(cluster.maps.is_empty());
    assert!(cluster.sync.unclaimed().is_empty());
}

#[test]
fn what_is_only_kept_gives_way_to_what_is_there() {
    for comes_late in [false, true] {
        let mut cluster = running(ROOMY, &["10.0.0.1"]);
        let heir = service("shop/heir", "10.96.0.1").ports("http:80/TCP");
        let heir_slice = slice("shop/heir-1", "shop/heir", Family::Ipv4, &["10.0.0.9"]);
        let events = [heir.event(), heir_slice.ports("http:8080/TCP").event()];
        cluster.sync = Sync::new(ROOMY, cluster.maps.contents());
        if comes_late {
            cluster.sync.finish_start(|_| true, &mut cluster.maps);
            cluster.apply(events);
        } else {
            cluster.apply(events);
            assert_problem(
                &cluster,
                "shop/heir",
                "10.96.0.1:80/TCP belongs to Service shop/web already",
            );
            cluster.sync.finish_start(|_| true, &mut cluster.maps);
        }
        assert_eq!(cluster.sync.problems(), []);
        let desired = cluster.desired_of(&object("shop/heir"));
        assert_eq!(cluster.maps.view(), desired);
        cluster.sync.finish_start(|_| false, &mut cluster.maps);
        assert_eq!(cluster.maps.view(), desired);
    }
}

/// One problem, of this Service, with this message.
fn assert_problem(cluster: &Cluster, service: &str, message: &str) {
    let problems = cluster.sync.problems();
    let [problem] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(problem.subject, format!("Service {service}"));
    assert_eq!(problem.message, message);
}

/// A second Service does not fit; it does once the first one is gone.
fn assert_full(capacity: Capacity, message: &str) {
    let mut cluster = running(capacity, &["10.0.0.1", "10.0.0.2"]);
    let before = cluster.maps.view();
    let api = service("shop/api", "10.96.0.2").ports("http:80/TCP");
    let api_slice = slice(
        "shop/api-1",
        "shop/api",
        Family::Ipv4,
        &["10.0.0.3", "10.0.0.4", "10.0.0.5"],
    )
    .ports("http:8080/TCP");
    cluster.apply([api_slice.event(), api.event()]);
    assert_problem(&cluster, "shop/api", message);
    assert_eq!(cluster.maps.view(), before);
    assert_eq!(cluster.maps.log, []);
    cluster.apply([Event::ServiceGone(object("shop/web"))]);
    assert_eq!(cluster.sync.problems(), []);
    assert_eq!(cluster.maps.view(), cluster.desired());
}

#[test]
fn a_full_map_is_named_with_what_lacks_and_what_to_raise() {
    assert_full(
        Capacity {
            frontends: 1,
            ..ROOMY
        },
        "map FRONTENDS is full: 1 more entry needed, 0 of 1 free; \
         raise --max-frontends (maxFrontends)",
    );
    assert_full(
        Capacity { slots: 4, ..ROOMY },
        "map SLOTS is full: 3 consecutive entries needed, at most 2 of 4 free in one piece; \
         raise --max-slots (maxSlots)",
    );
    assert_full(
        Capacity {
            backends: 4,
            ..ROOMY
        },
        "map BACKENDS is full: 3 more entries needed, 2 of 4 free; \
         raise --max-backends (maxBackends)",
    );
    assert_full(
        Capacity {
            addresses: 1,
            ..ROOMY
        },
        "map ADDRESSES is full: 1 more entry needed, 0 of 1 free; \
         raise --max-addresses (maxAddresses)",
    );
    assert_full(
        Capacity {
            services: 1,
            ..ROOMY
        },
        "map SERVICES is full: 1 more entry needed, 0 of 1 free; \
         raise --max-services (maxServices)",
    );
}

#[test]
fn an_update_that_does_not_fit_leaves_the_whole_old_version() {
    let mut cluster = running(Capacity { slots: 5, ..ROOMY }, &["10.0.0.1", "10.0.0.2"]);
    let before = cluster.maps.view();
    let grown = service("shop/web", "10.96.0.1").ports("http:80/TCP late:81/TCP");
    let endpoints = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
    cluster.apply([grown.event(), web_slice(&endpoints).event()]);
    assert_eq!((cluster.maps.view(), cluster.maps.log.len()), (before, 0));
    assert_eq!(cluster.sync.problems().len(), 1);
    cluster.apply([web_slice(&["10.0.0.7"]).event()]);
    assert_eq!(cluster.maps.view(), cluster.desired());
    assert_eq!(cluster.sync.problems(), []);
}

#[test]
fn a_failed_write_is_named_and_tried_again() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let before = cluster.maps.view();
    cluster.maps.faults = vec![true, false];
    cluster.apply([web_slice(&["10.0.0.2"]).event()]);
    assert_problem(
        &cluster,
        "shop/web",
        "map SLOTS: write failed: the kernel said no",
    );
    assert_eq!(cluster.maps.view(), before);
    assert_eq!(cluster.retry().n_pending, 0);
    assert_eq!(cluster.maps.view(), cluster.desired());
    // The first attempt takes back what it has written.
    assert_eq!(
        kinds(&cluster.maps),
        ["Backend", "Gone", "Backend", "Slots", "Frontend", "Gone"]
    );
}

#[test]
fn a_name_that_no_map_can_hold_is_refused() {
    let mut cluster = running(ROOMY, &["10.0.0.1"]);
    let long = service(&format!("shop/{}", "x".repeat(200)), "10.96.0.2").ports("http:80/TCP");
    cluster.apply([long.event()]);
    let problems = cluster.sync.problems();
    assert!(
        problems[0]
            .message
            .contains("210 bytes together, at most 192"),
        "{problems:?}"
    );
    assert_eq!(cluster.maps.log, []);
}

fn two_services() -> Cluster {
    let mut cluster = running(ROOMY, &["10.0.0.1", "10.0.0.2"]);
    let other = service("shop/other", "10.96.0.2").ports("http:80/TCP");
    let other_slice =
        slice("shop/other-1", "shop/other", Family::Ipv4, &["10.0.0.3"]).ports("http:8080/TCP");
    cluster.apply([other.event(), other_slice.event()]);
    cluster
}

/// Contents that no order of writes can leave behind, only somebody else's hand.
#[test]
fn damaged_contents_are_removed_and_written_anew() {
    let damages: [fn(&mut Contents); 8] = [
        |it| it.services.clear(),
        |it| it.frontends[0].1.first_slot = u32::MAX,
        |it| it.frontends[0].1.first_slot += 1,
        |it| it.frontends[0].1.n_cluster = u32::MAX,
        |it| it.slots[0] = 400,
        |it| it.backends[0].state = 0,
        |it| it.services[0].1 = ServiceName::new("nonsense", 6, 4).unwrap(),
        |it| {
            let (mut key, mut value) = it.frontends[0];
            key.port = Port::new(99);
            (value.first_slot, value.n_cluster) = (value.first_slot + 1, value.n_cluster - 1);
            it.frontends.push((key, value));
        },
    ];
    for damage in damages {
        let mut cluster = two_services();
        let sound = cluster.maps.contents();
        let mut contents = sound.clone();
        damage(&mut contents);
        assert_ne!(contents, sound);
        cluster.maps = Maps::holding(ROOMY, contents.clone());
        cluster.sync = Sync::new(ROOMY, contents);
        cluster.retry();
        let repaired = dump(&cluster.maps.contents());
        assert!(
            !repaired.contains('!') && !repaired.contains(":99/"),
            "{repaired}"
        );
        cluster.first_pass();
        assert_eq!(cluster.sync.problems(), []);
        assert_eq!(dump(&cluster.maps.contents()), dump(&sound));
        cluster.empty_and_fill();
    }
}
