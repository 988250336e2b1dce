//! SCTP through a Service whose port is not the backends': the checksum covers the ports.
//!
//! With the kernel's own sockets where it has them: then the checksum is either filled in last of
//! all, or in the packet from the start. Else with raw sockets, which fill it in themselves.

use std::collections::BTreeSet;

use proxy_common::abi::Family;
use xtask::testbed::{Layout, PodOptions, sctp};

use crate::client::PATIENCE;
use crate::cluster::{Cluster, Plan};

/// Messages of every alignment, up to several packets.
const SIZES: [usize; 8] = [1, 2, 3, 4, 5, 1_000, 1_203, 20_000];

fn messages_arrive(plan: Plan) {
    let cluster = Cluster::new(plan);
    for family in Family::ALL {
        let address = cluster.service.address(family);
        let mut met = BTreeSet::new();
        cluster.client.run(|| {
            for round in 0..20_u8 {
                let open = || sctp::Association::open(0, address, PATIENCE);
                let mut association = open().unwrap_or_else(|error| panic!("{plan:?}: {error}"));
                for size in SIZES {
                    let message = vec![round; size];
                    let answer = association
                        .exchange(&message)
                        .unwrap_or_else(|error| panic!("{plan:?} {size} bytes: {error}"));
                    let at = answer.iter().position(|&byte| byte == b'\n').unwrap();
                    assert_eq!(&answer[at + 1..], message);
                    met.insert(answer[..at].to_vec());
                }
                association.close().unwrap();
            }
        });
        assert_eq!(met.len(), 2, "{met:?}");
    }
}

#[test]
fn messages_arrive_with_a_checksum_that_is_filled_in_last() {
    if !sctp::kernel_has_sctp() {
        println!("skipped: this kernel has no SCTP, so that it never fills in its checksum");
        return;
    }
    for layout in Layout::ALL {
        messages_arrive(Plan {
            layout,
            ..Plan::default()
        });
    }
}

#[test]
fn messages_arrive_with_a_checksum_that_is_in_the_packet() {
    if !sctp::kernel_has_sctp() {
        println!("note: this kernel has no SCTP; both sides speak it over raw sockets");
    }
    let pod = PodOptions {
        checksum_offload: false,
        ..PodOptions::default()
    };
    for layout in Layout::ALL {
        messages_arrive(Plan {
            layout,
            client: pod,
            backend: pod,
            ..Plan::default()
        });
    }
}

#[test]
fn messages_arrive_with_checksums_filled_in_on_one_side_only() {
    let pod = PodOptions {
        checksum_offload: false,
        ..PodOptions::default()
    };
    messages_arrive(Plan {
        client: pod,
        ..Plan::default()
    });
    messages_arrive(Plan {
        backend: pod,
        ..Plan::default()
    });
}
