//! Datagrams that are longer than a packet: later fragments have no ports.

use proxy_common::abi::Family;
use xtask::testbed::{Layout, PodOptions};

use crate::client::{udp, udp_echo};
use crate::cluster::{Cluster, Plan};

fn long_datagrams_arrive(plan: Plan) {
    let cluster = Cluster::new(plan);
    for family in Family::ALL {
        let address = cluster.service.address(family);
        cluster.client.run(|| {
            for size in [1_472, 1_473, 4_000, 60_000] {
                let message: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
                let socket = udp(0, address).unwrap();
                let backend = udp_echo(&socket, &message)
                    .unwrap_or_else(|error| panic!("{plan:?} {family:?} {size} bytes: {error}"));
                // Again, now that there is a flow record.
                assert_eq!(udp_echo(&socket, &message).unwrap(), backend);
            }
        });
    }
}

#[test]
fn long_datagrams_arrive_both_ways() {
    for layout in Layout::ALL {
        long_datagrams_arrive(Plan {
            layout,
            ..Plan::default()
        });
    }
}

#[test]
fn long_datagrams_arrive_both_ways_without_checksum_offload() {
    let pod = PodOptions {
        checksum_offload: false,
        ..PodOptions::default()
    };
    long_datagrams_arrive(Plan {
        client: pod,
        backend: pod,
        ..Plan::default()
    });
}
