//! Large transfers arrive intact, whoever fills in checksums and cuts segments.

use proxy_common::abi::Family;
use xtask::testbed::{Layout, PodOptions};

use crate::client::{Connection, transfer};
use crate::cluster::{Cluster, Plan, Service, serve_all};

const MIB: u64 = 1 << 20;

fn transfers_arrive_intact(plan: Plan, family: Family, bytes: u64) {
    let cluster = Cluster::new(plan);
    let address = cluster.service.address(family);
    cluster
        .client
        .run(|| transfer(&Connection::open(address).unwrap(), bytes).unwrap());
}

#[test]
fn a_gibibyte_arrives_intact_over_ipv4() {
    transfers_arrive_intact(Plan::default(), Family::Ipv4, 1024 * MIB);
}

#[test]
fn a_gibibyte_arrives_intact_over_ipv6_behind_a_bridge() {
    let plan = Plan {
        layout: Layout::Bridge,
        ..Plan::default()
    };
    transfers_arrive_intact(plan, Family::Ipv6, 1024 * MIB);
}

#[test]
fn transfers_arrive_intact_with_any_offloads() {
    let pods = [(true, true), (true, false), (false, true), (false, false)].map(
        |(checksum_offload, receive_offload)| PodOptions {
            checksum_offload,
            receive_offload,
            ..PodOptions::default()
        },
    );
    let cluster = Cluster::new(Plan {
        backends: 0,
        ..Plan::default()
    });
    let mut running = Vec::new();
    let services = pods.each_ref().map(|options| {
        let name = format!("backend-{}", running.len());
        let pod = cluster.testbed.pod_with(&name, options).unwrap();
        running.push(serve_all(&pod));
        let service = Service::new(&name, 20 + running.len() as u8, &[pod]);
        cluster.apply(&service);
        service
    });
    for (at, options) in pods.iter().enumerate() {
        let client = cluster
            .testbed
            .pod_with(&format!("client-{at}"), options)
            .unwrap();
        cluster.wait_until_attached(&client);
        for (service, backend) in services.iter().zip(&pods) {
            for family in Family::ALL {
                let address = service.address(family);
                let result = client.run(|| transfer(&Connection::open(address)?, 16 * MIB));
                result.unwrap_or_else(|error| {
                    panic!("{options:?} to {backend:?}, {family:?}: {error}")
                });
            }
        }
    }
}
