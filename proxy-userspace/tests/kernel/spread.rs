//! New flows go to all backends alike (rule R36).

use std::collections::BTreeMap;

use proxy_common::abi::Family;
use xtask::testbed::Layout;

use crate::client::{Connection, udp, udp_echo};
use crate::cluster::{Cluster, Plan};

const FLOWS: u32 = 10_000;
const BACKENDS: usize = 5;

/// The upper 10⁻⁶ point of the chi-square distribution with `BACKENDS - 1` = 4 degrees of
/// freedom: exp(-x/2) · (1 + x/2) = 10⁻⁶. An even choice fails this test once in a million runs.
const CRITICAL: f64 = 33.377;

fn assert_even(answers: &BTreeMap<String, u32>) {
    let expected = f64::from(FLOWS) / BACKENDS as f64;
    let distance = |&count: &u32| (f64::from(count) - expected).powi(2) / expected;
    let chi_square: f64 = answers.values().map(distance).sum();
    assert_eq!(answers.len(), BACKENDS, "{answers:?}");
    assert_eq!(answers.values().sum::<u32>(), FLOWS);
    assert!(
        chi_square < CRITICAL,
        "chi-square {chi_square:.1} > {CRITICAL}: {answers:?}"
    );
}

fn tcp_connections_spread_evenly(layout: Layout, family: Family) {
    let cluster = Cluster::new(Plan {
        layout,
        backends: BACKENDS,
        ..Plan::default()
    });
    let address = cluster.service.address(family);
    let mut answers = BTreeMap::new();
    cluster.client.run(|| {
        for _ in 0..FLOWS {
            *answers
                .entry(Connection::open(address).unwrap().backend)
                .or_default() += 1;
        }
    });
    assert_even(&answers);
}

#[test]
fn tcp_connections_over_ipv4_spread_evenly() {
    tcp_connections_spread_evenly(Layout::Routed, Family::Ipv4);
}

#[test]
fn tcp_connections_over_ipv6_spread_evenly_behind_a_bridge() {
    tcp_connections_spread_evenly(Layout::Bridge, Family::Ipv6);
}

#[test]
fn tcp_connections_over_ipv4_spread_evenly_behind_a_bridge() {
    // The bridge's device routes packets back to where they came from and tells clients so by
    // ICMP redirects, which must not lead them past the Service.
    tcp_connections_spread_evenly(Layout::Bridge, Family::Ipv4);
}

fn udp_ports_spread_evenly(family: Family) {
    let cluster = Cluster::new(Plan {
        backends: BACKENDS,
        ..Plan::default()
    });
    let address = cluster.service.address(family);
    let mut answers = BTreeMap::new();
    cluster.client.run(|| {
        for port in (20_000..).take(FLOWS as usize) {
            let backend = udp_echo(&udp(port, address).unwrap(), b"hello").unwrap();
            *answers.entry(backend).or_default() += 1;
        }
    });
    assert_even(&answers);
}

#[test]
fn udp_ports_over_ipv4_spread_evenly() {
    udp_ports_spread_evenly(Family::Ipv4);
}

#[test]
fn udp_ports_over_ipv6_spread_evenly() {
    udp_ports_spread_evenly(Family::Ipv6);
}
