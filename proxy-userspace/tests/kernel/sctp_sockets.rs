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

/// More associations than it ever takes to meet both of two backends: else once in 2⁵⁹ runs.
const ASSOCIATIONS: u32 = 60;

/// Opens associations until both backends have been met, and sends messages of all sizes to each.
fn messages_arrive(plan: Plan) {
    let cluster = Cluster::new(plan);
    for family in Family::ALL {
        let address = cluster.service.address(family);
        let mut met = BTreeSet::new();
        cluster.client.run(|| {
            for _ in 0..ASSOCIATIONS {
                let mut association = sctp::Association::open(0, address, PATIENCE)
                    .unwrap_or_else(|error| panic!("{plan:?} {address}: {error}"));
                if met.insert(echo(&mut association, 1)) {
                    SIZES
                        .into_iter()
                        .for_each(|size| drop(echo(&mut association, size)));
                }
                association.close().unwrap();
                if met.len() == plan.backends {
                    break;
                }
            }
        });
        assert_eq!(met.len(), plan.backends, "{plan:?} {address}: {met:?}");
    }
}

/// Sends a message and returns who answered. The answer must be right.
fn echo(association: &mut sctp::Association, size: usize) -> Vec<u8> {
    let message: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
    let mut answer = association
        .exchange(&message)
        .unwrap_or_else(|error| panic!("{size} bytes: {error}"));
    let at = answer.iter().position(|&byte| byte == b'\n').unwrap();
    assert_eq!(&answer[at + 1..], message, "{size} bytes");
    answer.truncate(at);
    answer
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
