//! Large transfers arrive intact, whoever fills in checksums and cuts segments.

use proxy_common::abi::Family;
use xtask::testbed::{Layout, PodOptions};

use crate::client::{Connection, transfer};
use crate::cluster::{Cluster, Plan};

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
    let options = [(true, true), (true, false), (false, true), (false, false)];
    let pods = options.map(|(checksum_offload, receive_offload)| PodOptions {
        checksum_offload,
        receive_offload,
        ..PodOptions::default()
    });
    for client in pods {
        for backend in [pods[1], pods[2]] {
            let cluster = Cluster::new(Plan {
                client,
                backend,
                ..Plan::default()
            });
            for family in Family::ALL {
                let address = cluster.service.address(family);
                cluster.client.run(|| {
                    let connection = Connection::open(address).unwrap();
                    transfer(&connection, 32 * MIB).unwrap_or_else(|error| {
                        panic!("{client:?} {backend:?} {family:?}: {error}")
                    });
                });
            }
        }
    }
}
