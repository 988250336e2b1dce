//! Laws that hold for any history.

use std::collections::{BTreeMap, BTreeSet};

use beeline::model::{Event, ObjectName, TrafficPolicy};
use beeline::sync::Capacity;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proxy_common::abi::{Family, FrontendKey};

use super::build::{Build, ips, nets, node, object, service, slice};
use super::cluster::{Cluster, ROOMY};
use super::maps::{Maps, Seen, View};

/// Room for everything, with little to spare.
const SNUG: Capacity = Capacity {
    frontends: 128,
    slots: 384,
    backends: 384,
    services: 48,
    addresses: 48,
    source_ranges: 128,
};
pub(crate) const SERVICES: u8 = 4;
const PORTS: [&str; 4] = ["http:80/TCP", "dns:53/UDP", ":81/TCP", "http:80/SCTP"];
const MOVED_PORTS: [&str; 4] = ["http:8000/TCP", "dns:53/UDP", ":80/TCP", "http:80/SCTP"];
const STATES: [&str; 4] = ["", " terminating", " unready", " leaving"];
const HINTS: [&str; 4] = ["", " zone=a", " zone=b", " zone=a node=here"];

/// A Service and where its clients find it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    index: u8,
    cluster_ips: String,
    external_ips: String,
    vips: String,
    /// Of its first port; the others' follow.
    node_port: Option<u16>,
}

/// What is not an address of a Service.
fn manners() -> impl Strategy<Value = (bool, bool, u8, &'static str)> {
    let ranges = vec![
        "",
        "10.0.0.0/8",
        "10.0.0.0/8 fd00::/8 192.0.2.0/24",
        "fd00::/8",
        "192.0.2.0/24",
    ];
    (any::<bool>(), any::<bool>(), 0_u8..3, select(ranges))
}

/// Some change of one object.
fn event(places: BoxedStrategy<Place>) -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (places, subsequence(PORTS.to_vec(), 0..4), any::<bool>(), manners())
            .prop_map(|(place, ports, is_moved, (is_local, is_external_local, affinity, ranges))| {
                let moved = MOVED_PORTS.map(|port| port.to_owned());
                let kept = ports.iter().map(|port| (*port).to_owned()).collect::<Vec<_>>();
                let ports = if is_moved { moved[..kept.len()].to_vec() } else { kept };
                let service = service(&name(place.index), &place.cluster_ips);
                let mut service = service.ports(&ports.join(" "));
                service.affinity_seconds = (affinity > 0).then_some(u32::from(affinity));
                let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                service.internal_policy = policy(is_local);
                service.external_policy = policy(is_external_local);
                service.external_ips = ips(&place.external_ips);
                service.load_balancer_ips = ips(&place.vips);
                service.source_ranges = nets(ranges);
                for (port, number) in service.ports.iter_mut().zip(0..) {
                    port.node_port = place.node_port.map(|first| first + number);
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
        1 => (select(vec![None, Some("a"), Some("b")]), subsequence(vec!["10.9.9.9", "fd00::9"], 0..=2))
            .prop_map(|(zone, addresses)| node(zone, &addresses)),
        1 => select(vec!["", "10.96.0.0/16"]).prop_map(|text| Event::ServiceCidrs(nets(text))),
    ]
}

pub(crate) fn name(index: u8) -> String {
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
pub(crate) fn own_places() -> BoxedStrategy<Place> {
    let cluster_ips = |index: u8, choice: u8| match choice {
        0 => format!("10.96.0.{index}"),
        1 => format!("10.96.1.{index} fd00:96::{index}"),
        2 => format!("fd00:96::{index}"),
        _ => format!("fd00:96::{index} 10.96.0.{index}"),
    };
    // An external IP may be a VIP as well.
    let external_ips = subsequence(vec!["192.0.2.", "192.0.3.", "fd00:e::"], 0..=2);
    let vips = subsequence(vec!["192.0.2.", "198.51.100.", "fd00:f::"], 0..=2);
    let place = (0..SERVICES, 0_u8..4, external_ips, vips, any::<bool>());
    place
        .prop_map(move |(index, choice, external_ips, vips, has_node_ports)| {
            let all = |nets: Vec<&str>| {
                let ips: Vec<_> = nets.iter().map(|net| format!("{net}{index}")).collect();
                ips.join(" ")
            };
            Place {
                index,
                cluster_ips: cluster_ips(index, choice),
                external_ips: all(external_ips),
                vips: all(vips),
                node_port: has_node_ports.then_some(30_000 + 10 * u16::from(index)),
            }
        })
        .boxed()
}

/// A Service at addresses that others want, too.
fn shared_places() -> BoxedStrategy<Place> {
    let pool = vec![
        "10.96.0.1",
        "fd00:96::1",
        "10.96.0.2",
        "fd00:96::2",
        "10.96.0.3",
    ];
    let some = move |most| subsequence(pool.clone(), 0..=most);
    let cluster_ips = (select(vec!["10.96.0.", "fd00:96::"]), 1_u8..4);
    let node_port = proptest::option::of(30_000_u16..30_004);
    (0..SERVICES, cluster_ips, some(2), some(2), node_port)
        .prop_map(
            |(index, (net, last), external_ips, vips, node_port)| Place {
                index,
                cluster_ips: format!("{net}{last}"),
                external_ips: external_ips.join(" "),
                vips: vips.join(" "),
                node_port,
            },
        )
        .boxed()
}

pub(crate) fn batches(places: BoxedStrategy<Place>) -> impl Strategy<Value = Vec<Vec<Event>>> {
    vec(vec(event(places), 1..6), 1..12)
}

/// What else happens to a daemon.
#[derive(Clone, Debug)]
enum Incident {
    Nothing,
    Restart,
    /// The node has other addresses, some of them its Services'.
    Addresses(Vec<&'static str>),
    /// Somebody has looked at the flows.
    Release(BTreeSet<u32>),
}

fn incident() -> impl Strategy<Value = Incident> {
    let addresses = vec![
        "10.9.9.9",
        "-fd00::9",
        "192.0.2.1",
        "-10.96.0.1",
        "fd00:e::2",
    ];
    prop_oneof![
        3 => Just(Incident::Nothing),
        1 => Just(Incident::Restart),
        2 => subsequence(addresses, 0..=5).prop_map(Incident::Addresses),
        1 => vec(0_u32..32, 0..16).prop_map(|ids| Incident::Release(ids.into_iter().collect())),
    ]
}

fn happen(cluster: &mut Cluster, incident: Incident) {
    match incident {
        Incident::Nothing => {}
        Incident::Restart => assert_eq!(cluster.restart(), 0),
        Incident::Addresses(addresses) => {
            cluster.set_own(&addresses);
        }
        Incident::Release(in_use) => {
            let waiting = cluster.sync.detached();
            cluster.sync.release_detached(&in_use, &mut cluster.maps);
            let left: BTreeSet<_> = waiting.intersection(&in_use).copied().collect();
            assert_eq!(cluster.sync.detached(), left);
        }
    }
}

/// Brings a batch into force and checks what packets see after every single write: for each
/// frontend, what there was before or what there is to be.
fn apply_watched(cluster: &mut Cluster, batch: Vec<Event>) -> Vec<Maps> {
    let before = cluster.maps.view();
    cluster.maps.history = Some(vec![]);
    cluster.apply(batch);
    let history = cluster.maps.history.take().unwrap();
    let desired = cluster.desired();
    assert_only(&history, [&before, &desired], &cluster.desired_each());
    history
}

/// Nobody ever sees anything but one of these views, frontend by frontend.
pub(crate) fn assert_only(history: &[Maps], allowed: [&View; 2], desired: &[View]) {
    for (step, maps) in history.iter().enumerate() {
        let view = maps.view();
        let keys = allowed
            .iter()
            .flat_map(|view| view.keys())
            .chain(view.keys());
        for key in keys {
            let seen = view.get(key);
            let may = allowed.iter().any(|allowed| allowed.get(key) == seen)
                || seen.is_some_and(|it| is_between(key, it, allowed, desired));
            assert!(
                may,
                "after write {step}, {:?}: {seen:?} at {key:?}",
                maps.log.last()
            );
        }
    }
}

/// Whether this is as in one of these views but for source ranges: new ones come before, and old
/// ones go after the change.
fn is_between(key: &FrontendKey, seen: &Seen, allowed: [&View; 2], desired: &[View]) -> bool {
    let views = allowed.into_iter().chain(desired);
    let of_service = views.flat_map(|view| view.values());
    let all: BTreeSet<_> = of_service
        .filter(|it| it.service == seen.service)
        .flat_map(|it| &it.ranges)
        .collect();
    allowed
        .iter()
        .filter_map(|view| view.get(key))
        .any(|allowed| {
            let is_wider = seen.ranges.is_superset(&allowed.ranges);
            let mut same = seen.clone();
            same.ranges.clone_from(&allowed.ranges);
            is_wider && seen.ranges.iter().all(|net| all.contains(net)) && same == *allowed
        })
}

/// A tenth of the next writes fails.
fn faults() -> impl Strategy<Value = Vec<bool>> {
    vec(prop::bool::weighted(0.1), 400)
}

proptest! {
    #[test]
    fn any_history_ends_as_its_last_state_alone(
        batches in batches(own_places()), incidents in vec(incident(), 12)
    ) {
        let mut cluster = Cluster::new(ROOMY);
        for (batch, incident) in batches.into_iter().zip(incidents) {
            apply_watched(&mut cluster, batch);
            happen(&mut cluster, incident);
            cluster.assert_settled();
        }
        cluster.empty_and_fill();
    }

    #[test]
    fn what_comes_again_costs_no_writes(batches in batches(shared_places())) {
        let mut cluster = Cluster::new(ROOMY);
        for batch in batches {
            cluster.apply(batch.clone());
            prop_assert_eq!(cluster.retry().n_writes, 0);
            prop_assert_eq!(cluster.restart(), 0);
        }
    }

    #[test]
    fn failing_writes_end_right_after_retries(
        batches in batches(own_places()), faults in faults(), retries in 0_usize..3
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
        cluster.assert_settled();
        cluster.empty_and_fill();
    }

    /// In a crowd each frontend belongs to one claimant, who keeps it as long as it wants it, and
    /// moves from hand to hand without a gap.
    #[test]
    fn frontends_that_several_claim_have_one_owner(batches in batches(shared_places())) {
        let mut cluster = Cluster::new(ROOMY);
        for batch in batches {
            let before = cluster.maps.view();
            cluster.maps.history = Some(vec![]);
            cluster.apply(batch);
            let after = cluster.maps.view();
            let history = cluster.maps.history.take().unwrap();
            assert_only(&history, [&before, &after], &cluster.desired_each());
            assert_owners(&cluster, &before, &after);
        }
        cluster.empty_and_fill();
    }

    /// Whatever does not fit stays as some earlier version of it was, as a whole.
    #[test]
    fn too_small_maps_hold_whole_versions(
        batches in batches(own_places()), capacity in small_capacity()
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
                let seen = cluster.maps.view_of(&name);
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
    fn a_crash_after_any_write_is_repaired_by_the_next_pass(batches in batches(own_places())) {
        let mut cluster = Cluster::new(SNUG);
        for batch in batches {
            for crashed in apply_watched(&mut cluster, batch) {
                let survivor = std::mem::replace(&mut cluster.maps, crashed);
                let before = cluster.maps.view();
                cluster.maps.history = Some(vec![]);
                cluster.restart();
                let history = cluster.maps.history.take().unwrap();
                let desired = cluster.desired();
    assert_only(&history, [&before, &desired], &cluster.desired_each());
                prop_assert_eq!(cluster.maps.view(), cluster.desired());
                prop_assert_eq!(cluster.restart(), 0);
                cluster.maps = survivor;
            }
            prop_assert_eq!(cluster.restart(), 0);
        }
    }
}

pub(crate) fn small_capacity() -> impl Strategy<Value = Capacity> {
    let sizes = (
        1_u32..12,
        1_u32..40,
        1_u32..30,
        1_u32..12,
        1_u32..8,
        1_u32..8,
    );
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
