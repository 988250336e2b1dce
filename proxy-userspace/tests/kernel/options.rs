//! Packets with more between addresses and ports than usual.

use proxy_common::abi::Family;
use xtask::testbed::{Layout, PodOptions};

use crate::client::{Connection, connect_with_options, transfer, udp, udp_echo};
use crate::cluster::{Cluster, Plan};
use crate::socket_option::send_ip_options;

fn options_get_through(plan: Plan, bytes: u64) {
    let cluster = Cluster::new(plan);
    for family in Family::ALL {
        let address = cluster.service.address(family);
        cluster.client.run(|| {
            let mut connection = Connection::greet(connect_with_options(address)).unwrap();
            (0..20).for_each(|round| connection.echo(&[round; 1_000]).unwrap());
            transfer(&connection, bytes).unwrap();

            let socket = udp(0, address).unwrap();
            send_ip_options(&socket, family).unwrap();
            for size in [1, 1_000, 4_000] {
                udp_echo(&socket, &vec![7; size]).unwrap();
            }
        });
    }
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_get_through() {
    for layout in Layout::ALL {
        // No bulk: when a kernel forwards a large IPv6 packet that is to be segmented later,
        // it takes an extension header for TCP's and may call the segments too big (seen on
        // 6.18; `skb_gso_network_seglen`).
        options_get_through(
            Plan {
                layout,
                ..Plan::default()
            },
            0,
        );
    }
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_get_through_without_offloads() {
    let pod = PodOptions {
        checksum_offload: false,
        ..PodOptions::default()
    };
    for layout in Layout::ALL {
        options_get_through(
            Plan {
                layout,
                client: pod,
                backend: pod,
                ..Plan::default()
            },
            4 << 20,
        );
    }
}
