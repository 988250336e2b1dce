//! Laws that hold for any history.

use std::collections::{BTreeMap, BTreeSet};

use beeline::model::{Event, ObjectName, TrafficPolicy};
use beeline::sync::Capacity;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proxy_common::abi::Family;

use super::build::{Build, node, object, service, slice};
use super::cluster::{Cluster, ROOMY};
use super::maps::{Maps, View};

/// Room for everything, with little to spare.
const SNUG: Capacity = Capacity {
    frontends: 48,
    slots: 384,
    backends: 384,
    services: 48,
    addresses: 48,
    source_ranges: 48,
};
const SERVICES: u8 = 4;
const PORTS: [&str; 4] = ["http:80/TCP", "dns:53/UDP", ":81/TCP", "http:80/SCTP"];
const MOVED_PORTS: [&str; 4] = ["http:8000/TCP", "dns:53/UDP", ":80/TCP", "http:80/SCTP"];
const STATES: [&str; 4] = ["", " terminating", " unready", " leaving"];
const HINTS: [&str; 4] = ["", " zone=a", " zone=b", " zone=a node=here"];

/// Some change of one object.
fn event(ips: BoxedStrategy<(u8, String)>) -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (ips, subsequence(PORTS.to_vec(), 0..4), any::<bool>(), any::<bool>(), 0_u8..3)
            .prop_map(|((index, ips), ports, is_moved, is_local, affinity)| {
                let moved = MOVED_PORTS.map(|port| port.to_owned());
                let kept = ports.iter().map(|port| (*port).to_owned()).collect::<Vec<_>>();
                let ports = if is_moved { moved[..kept.len()].to_vec() } else { kept };
                let mut service = service(&name(index), &ips).ports(&ports.join(" "));
                service.affinity_seconds = (affinity > 0).then_some(u32::from(affinity));
                if is_local {
                    service.internal_policy = TrafficPolicy::Local;
                }
                service.event()
            }),
        2 => (0..SERVICES).prop_map(|index| Event::ServiceGone(object(&name(index)))),
        9 => (0..SERVICES, 0_u8..2, any::<bool>(), any::<bool>(), vec(endpoint(), 0..6))
            .prop_map(|(index, part, is_v6, is_moved, endpoints)| {
                let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
                let lines: Vec<_> = endpoints.iter().map(|line| line.replace("NET", match family {
                    Family::Ipv4 => "10.0.0.",
                    Family::Ipv6 => "fd00::",
                })).collect();
                let lines: Vec<_> = lines.iter().map(String::as_str).collect();
                let ports = if is_moved { "http:9090/TCP" } else {
                    "http:8080/TCP dns:1053/UDP :8081/TCP http:8080/SCTP"
                };
                let slice_name = format!("ns/slice-{index}-{part}-{family}");
                slice(&slice_name, &name(index), family, &lines).ports(ports).event()
            }),
        3 => (0..SERVICES, 0_u8..2, any::<bool>()).prop_map(|(index, part, is_v6)| {
            let family = if is_v6 { Family::Ipv6 } else { Family::Ipv4 };
            Event::SliceGone(object(&format!("ns/slice-{index}-{part}-{family}")))
        }),
        1 => prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))].prop_map(node),
    ]
}

fn name(index: u8) -> String {
    format!("ns/service-{index}")
}

fn endpoint() -> impl Strategy<Value = String> {
    let node = prop_oneof![Just("here"), Just("there")];
    let state = prop_oneof![4 => Just(0), 1 => 1_usize..4];
    (1_u8..8, node, state, 0_usize..4).prop_map(|(ip, node, state, hint)| {
        format!("NET{ip}@{node}{}{}", STATES[state], HINTS[hint])
    })
}

/// A Service with addresses of its own.
fn own_ips() -> BoxedStrategy<(u8, String)> {
    let ips = |index: u8, choice: u8| match choice {
        0 => format!("10.96.0.{index}"),
        1 => format!("10.96.1.{index} fd00:96::{index}"),
        2 => format!("fd00:96::{index}"),
        _ => format!("fd00:96::{index} 10.96.0.{index}"),
    };
    (0..SERVICES, 0_u8..4)
        .prop_map(move |(index, choice)| (index, ips(index, choice)))
        .boxed()
}

/// A Service at addresses that others want, too.
fn shared_ips() -> BoxedStrategy<(u8, String)> {
    let ips = subsequence(vec!["10.96.0.1", "fd00:96::1"], 1..=2);
    (0..SERVICES, ips, 1_u8..4)
        .prop_map(|(index, ips, last)| {
            let ips: Vec<_> = ips
                .iter()
                .map(|ip| format!("{}{last}", &ip[..ip.len() - 1]))
                .collect();
            (index, ips.join(" "))
        })
        .boxed()
}

fn batches(ips: BoxedStrategy<(u8, String)>) -> impl Strategy<Value = Vec<Vec<Event>>> {
    vec(vec(event(ips), 1..6), 1..12)
}

/// Brings a batch into force and checks what packets see after every single write: for each
/// frontend, what there was before or what there is to be.
fn apply_watched(cluster: &mut Cluster, batch: Vec<Event>) -> Vec<Maps> {
    let before = cluster.maps.view();
    cluster.maps.history = Some(vec![]);
    cluster.apply(batch);
    let history = cluster.maps.history.take().unwrap();
    assert_only(&history, &[&before, &cluster.desired()]);
    history
}

/// Nobody ever sees anything but one of these views, frontend by frontend.
fn assert_only(history: &[Maps], allowed: &[&View]) {
    for (step, maps) in history.iter().enumerate() {
        let view = maps.view();
        let keys = allowed
            .iter()
            .flat_map(|view| view.keys())
            .chain(view.keys());
        for key in keys {
            let seen = view.get(key);
            let may = allowed.iter().any(|allowed| allowed.get(key) == seen);
            assert!(
                may,
                "after write {step}, {:?}: {seen:?} at {key:?}",
                maps.log.last()
            );
        }
    }
}

/// A tenth of the next writes fails.
fn faults() -> impl Strategy<Value = Vec<bool>> {
    vec(prop::bool::weighted(0.1), 400)
}

proptest! {
    #[test]
    fn any_history_ends_as_its_last_state_alone(batches in batches(own_ips())) {
        let mut cluster = Cluster::new(ROOMY);
        for batch in batches {
            apply_watched(&mut cluster, batch);
            prop_assert_eq!(cluster.maps.view(), cluster.desired());
            prop_assert_eq!(cluster.sync.problems(), []);
        }
        cluster.empty_and_fill();
    }

    #[test]
    fn what_comes_again_costs_no_writes(batches in batches(shared_ips())) {
        let mut cluster = Cluster::new(ROOMY);
        for batch in batches {
            cluster.apply(batch.clone());
            prop_assert_eq!(cluster.retry().n_writes, 0);
            prop_assert_eq!(cluster.restart(), 0);
        }
    }

    #[test]
    fn failing_writes_end_right_after_retries(
        batches in batches(own_ips()), faults in faults(), retries in 0_usize..3
    ) {
        let mut cluster = Cluster::new(SNUG);
        cluster.maps.faults = faults;
        for batch in batches {
            apply_watched(&mut cluster, batch);
            for _ in 0..retries {
                let report = cluster.retry();
                prop_assert_eq!(report.n_pending, cluster.sync.problems().len());
            }
            if cluster.sync.problems().is_empty() {
                prop_assert_eq!(cluster.maps.view(), cluster.desired());
            }
        }
        cluster.maps.faults = vec![];
        prop_assert_eq!(cluster.retry().n_pending, 0);
        prop_assert_eq!(cluster.maps.view(), cluster.desired());
        cluster.empty_and_fill();
    }

    /// In a crowd each frontend belongs to one claimant, who keeps it as long as it wants it, and
    /// moves from hand to hand without a gap.
    #[test]
    fn frontends_that_several_claim_have_one_owner(batches in batches(shared_ips())) {
        let mut cluster = Cluster::new(ROOMY);
        for batch in batches {
            let before = cluster.maps.view();
            cluster.maps.history = Some(vec![]);
            cluster.apply(batch);
            let after = cluster.maps.view();
            let history = cluster.maps.history.take().unwrap();
            assert_only(&history, &[&before, &after]);
            assert_owners(&cluster, &before, &after);
        }
        cluster.empty_and_fill();
    }

    /// Whatever does not fit stays as some earlier version of it was, as a whole.
    #[test]
    fn too_small_maps_hold_whole_versions(
        batches in batches(own_ips()), capacity in small_capacity()
    ) {
        let mut cluster = Cluster::new(capacity);
        let mut versions: BTreeMap<ObjectName, Vec<View>> = BTreeMap::new();
        for batch in batches {
            cluster.apply(batch);
            cluster.retry();
            for name in (0..SERVICES).map(|index| object(&name(index))) {
                let desired = cluster.desired_of(&name);
                let known = versions.entry(name.clone()).or_insert_with(|| vec![View::new()]);
                known.push(desired.clone());
                let seen = of_service(&cluster.maps.view(), &name);
                prop_assert!(known.contains(&seen), "{} has {:?}", name, seen);
                let subject = format!("Service {name}");
                let problems = cluster.sync.problems();
                let problem = problems.iter().find(|problem| problem.subject == subject);
                // There may be a problem though packets see all: room for an idle backend.
                prop_assert!(problem.is_some() || seen == desired);
                prop_assert!(problem.is_none_or(|it| it.message.contains("raise --max-")));
            }
        }
        cluster.empty_and_fill();
    }
}

proptest! {
    // Each case is hundreds of crashes.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    /// Every prefix of every list of writes is a crash.
    #[test]
    fn a_crash_after_any_write_is_repaired_by_the_next_pass(batches in batches(own_ips())) {
        let mut cluster = Cluster::new(SNUG);
        for batch in batches {
            for crashed in apply_watched(&mut cluster, batch) {
                let survivor = std::mem::replace(&mut cluster.maps, crashed);
                let before = cluster.maps.view();
                cluster.maps.history = Some(vec![]);
                cluster.restart();
                let history = cluster.maps.history.take().unwrap();
                assert_only(&history, &[&before, &cluster.desired()]);
                prop_assert_eq!(cluster.maps.view(), cluster.desired());
                prop_assert_eq!(cluster.restart(), 0);
                cluster.maps = survivor;
            }
            prop_assert_eq!(cluster.restart(), 0);
        }
    }
}

fn small_capacity() -> impl Strategy<Value = Capacity> {
    let sizes = (1_u32..12, 1_u32..40, 1_u32..30, 1_u32..12, 1_u32..8, 1_u32..8);
    sizes.prop_map(
        |(frontends, slots, backends, services, addresses, source_ranges)| Capacity {
            frontends,
            slots,
            backends,
            services,
            addresses,
            source_ranges,
        },
    )
}

fn of_service(view: &View, name: &ObjectName) -> View {
    let is_own = |text: &str| text.split(':').next() == Some(&name.to_string());
    view.iter()
        .filter(|(_, it)| is_own(&it.service))
        .map(|(k, v)| (*k, v.clone()))
        .collect()
}

fn assert_owners(cluster: &Cluster, before: &View, after: &View) {
    let mut claimed = BTreeSet::new();
    let mut winners = View::new();
    let mut losers = BTreeSet::new();
    for name in cluster.names() {
        for (key, seen) in cluster.desired_of(&name) {
            let had_it = before
                .get(&key)
                .is_some_and(|before| before.service == seen.service);
            let has_it = after.get(&key) == Some(&seen);
            assert!(has_it || !had_it, "a frontend was taken from its owner");
            claimed.insert(key);
            if has_it {
                winners.insert(key, seen);
            } else {
                losers.insert(format!("Service {name}"));
            }
        }
    }
    assert_eq!(&winners, after);
    assert_eq!(claimed, winners.into_keys().collect());
    let problems = cluster.sync.problems();
    assert!(
        problems
            .iter()
            .all(|it| it.message.contains("belongs to Service ns/"))
    );
    assert_eq!(
        problems
            .into_iter()
            .map(|it| it.subject)
            .collect::<BTreeSet<_>>(),
        losers
    );
}
