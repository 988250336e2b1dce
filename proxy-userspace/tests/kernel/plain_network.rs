//! The testbed itself, without Beeline: pods reach each other at their own addresses.

use std::net::SocketAddr;

use proxy_common::abi::Family;
use xtask::testbed::{Layout, PodOptions, Serve, Testbed, sctp};

use crate::client::{Connection, PATIENCE, connect_with_options, udp, udp_echo};

#[test]
fn pods_talk_over_both_families_in_both_layouts() {
    for layout in Layout::ALL {
        let testbed = Testbed::new(layout).unwrap();
        let (client, server) = (
            testbed.pod("client").unwrap(),
            testbed.pod("server").unwrap(),
        );
        let _servers = [
            server.serve(Serve::Echo, 7).unwrap(),
            server.serve(Serve::Sctp, 7).unwrap(),
        ];
        for family in Family::ALL {
            let address = SocketAddr::new(server.address(family), 7);
            client.run(|| {
                let mut tcp = Connection::open(address).unwrap();
                tcp.echo(b"hello").unwrap();
                assert_eq!(tcp.backend, "server");
                assert_eq!(
                    udp_echo(&udp(0, address).unwrap(), &[7; 9_000]).unwrap(),
                    "server"
                );
                let mut sctp = sctp::Association::open(0, address, PATIENCE).unwrap();
                assert_eq!(sctp.exchange(b"hello").unwrap(), b"server\nhello");
                sctp.close().unwrap();
            });
        }
    }
}

#[test]
fn pods_reach_a_remote_node_behind_a_narrow_link() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    testbed.add_remote_node(Layout::Routed, 1280).unwrap();
    let (client, server) = (
        testbed.pod("client").unwrap(),
        testbed.remote_pod("server").unwrap(),
    );
    let _server = server.serve(Serve::Echo, 7).unwrap();
    for family in Family::ALL {
        let address = SocketAddr::new(server.address(family), 7);
        client.run(|| {
            Connection::open(address)
                .unwrap()
                .echo(&[7; 20_000])
                .unwrap()
        });
    }
}

#[test]
fn pods_with_odd_links_talk() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let odd = PodOptions {
        mtu: 1280,
        announced_mss: Some(1400),
        checksum_offload: false,
        receive_offload: true,
        ..PodOptions::default()
    };
    let (client, server) = (
        testbed.pod("client").unwrap(),
        testbed.pod_with("server", &odd).unwrap(),
    );
    let _server = server.serve(Serve::Echo, 7).unwrap();
    for family in Family::ALL {
        let address = SocketAddr::new(server.address(family), 7);
        client.run(|| {
            Connection::open(address)
                .unwrap()
                .echo(&[7; 20_000])
                .unwrap()
        });
    }
}

#[test]
fn nothing_is_left_of_a_testbed() {
    let testbed = Testbed::new(Layout::Bridge).unwrap();
    let name = testbed.node().namespace.name().to_owned();
    let bpffs = testbed.bpffs();
    assert!(bpffs.exists());
    drop(testbed);
    assert!(!bpffs.exists());
    assert!(!std::path::Path::new("/var/run/netns").join(name).exists());
}

#[test]
fn pods_talk_with_options_in_their_packets() {
    for layout in Layout::ALL {
        let testbed = Testbed::new(layout).unwrap();
        let (client, server) = (
            testbed.pod("client").unwrap(),
            testbed.pod("server").unwrap(),
        );
        let _server = server.serve(Serve::Echo, 7).unwrap();
        for family in Family::ALL {
            let address = SocketAddr::new(server.address(family), 7);
            client.run(|| {
                let mut connection = Connection::greet(connect_with_options(address)).unwrap();
                connection.echo(b"hello").unwrap();
            });
        }
    }
}
