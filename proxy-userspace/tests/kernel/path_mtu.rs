//! Path-MTU discovery through a Service: the ICMP errors that it lives on quote translated
//! packets.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use xtask::testbed::{Layout, Namespace, PodOptions, Testbed, in_namespace};

use crate::client::{Connection, PATIENCE, transfer, udp, udp_echo};
use crate::cluster::{Cluster, Plan};
use crate::socket_option::{forbid_fragments, path_mtu};

/// The smallest that IPv6 allows.
const MTU: u32 = 1280;
/// After this long a datagram is taken for lost.
const RETRY: Duration = Duration::from_millis(300);
/// Of IP and UDP together.
const fn headers(family: Family) -> usize {
    match family {
        Family::Ipv4 => 28,
        Family::Ipv6 => 48,
    }
}

pub(crate) fn tcp_learns_the_mtu(client: &Namespace, address: SocketAddr, mtu: u32) {
    in_namespace(client, || {
        let connection = Connection::open(address).unwrap();
        transfer(&connection, 4 << 20).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(
            path_mtu(&connection.stream, address).unwrap(),
            mtu,
            "{address}"
        );
    });
}

/// Sends datagrams that must not be cut until the socket has learnt the MTU.
pub(crate) fn udp_learns_the_mtu(client: &Namespace, address: SocketAddr, mtu: u32) {
    let family = Family::of(address.ip());
    in_namespace(client, || {
        let socket = udp(0, address).unwrap();
        forbid_fragments(&socket, family).unwrap();
        let too_long = vec![7; mtu as usize - headers(family) + 1];
        wait_for_mtu(&socket, address, mtu, || match socket.send(&too_long) {
            Ok(_) => {}
            Err(error) => assert!(is_too_long(&error), "{error}"),
        });
        // The error that told it, if nobody has heard of it yet.
        drop(socket.take_error().unwrap());
        socket.set_read_timeout(Some(RETRY)).unwrap();
        let start = Instant::now();
        // Answers carry the backend's name as well: the first may be too long for their own way.
        while let Err(error) = udp_echo(&socket, &too_long[1..]) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{address}: {error}");
            assert!(start.elapsed() < PATIENCE, "{address}: no answer");
        }
        let error = socket.send(&too_long).unwrap_err();
        assert!(is_too_long(&error), "{error}");
    });
}

fn is_too_long(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EMSGSIZE)
}

fn wait_for_mtu(socket: &impl AsRawFd, peer: SocketAddr, mtu: u32, mut send: impl FnMut()) {
    let start = Instant::now();
    while path_mtu(socket, peer).unwrap() != mtu {
        assert!(start.elapsed() < PATIENCE, "{peer}: MTU not learnt");
        send();
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends long datagrams as ordinary programs do: cut by the sender, to a size that it learns.
pub(crate) fn long_datagrams_get_through(client: &Namespace, address: SocketAddr) {
    in_namespace(client, || {
        for size in [1_400, 4_000, 60_000] {
            a_datagram_gets_through(address, size);
        }
    });
}

fn a_datagram_gets_through(address: SocketAddr, size: usize) {
    // Each size has its socket: an answer that comes late is to the right question still.
    let socket = udp(0, address).unwrap();
    socket.set_read_timeout(Some(RETRY)).unwrap();
    let start = Instant::now();
    let (mut n_lost, mut n_too_long) = (0, 0);
    // The first ones are lost where routers must not cut: in IPv6, and both ways. An error tells
    // the sender so.
    while let Err(error) = udp_echo(&socket, &vec![7; size]) {
        if is_too_long(&error) {
            n_too_long += 1;
            std::thread::sleep(Duration::from_millis(10));
        } else {
            let what = format!("{address}: {size} bytes");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{what}: {error}");
            n_lost += 1;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{address}: {size} bytes: {n_lost} lost, {n_too_long} too long"
        );
    }
}

fn the_mtu_is_found_out(cluster: &Cluster) {
    let client = &cluster.client.namespace;
    for address in Family::ALL.map(|family| cluster.service.address(family)) {
        long_datagrams_get_through(client, address);
        tcp_learns_the_mtu(client, address, MTU);
        udp_learns_the_mtu(client, address, MTU);
    }
}

fn a_narrow_link_is_found_out(layout: Layout) {
    let testbed = Testbed::new(layout).unwrap();
    testbed.add_remote_node(layout, MTU).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = vec![testbed.remote_pod("web-0").unwrap()];
    let cluster = Cluster::with_backends(testbed, client, backends);
    the_mtu_is_found_out(&cluster);
}

#[test]
fn a_narrow_link_on_the_way_to_a_remote_backend_is_found_out() {
    a_narrow_link_is_found_out(Layout::Routed);
}

#[test]
fn a_narrow_link_on_the_way_to_a_remote_backend_is_found_out_behind_a_bridge() {
    a_narrow_link_is_found_out(Layout::Bridge);
}

#[test]
fn a_backend_with_a_narrow_device_of_its_own_is_found_out() {
    // Announcing long segments in spite of the MTU leaves it to the node's ICMP errors.
    let announced_mss = Some(1440);
    let backend = PodOptions {
        mtu: MTU,
        announced_mss,
        ..PodOptions::default()
    };
    let cluster = Cluster::new(Plan {
        backends: 1,
        backend,
        ..Plan::default()
    });
    the_mtu_is_found_out(&cluster);
}

#[test]
fn a_client_with_a_narrow_device_gets_long_answers() {
    let announced_mss = Some(1440);
    let client = PodOptions {
        mtu: MTU,
        announced_mss,
        ..PodOptions::default()
    };
    let cluster = Cluster::new(Plan {
        backends: 1,
        client,
        ..Plan::default()
    });
    for family in Family::ALL {
        let address = cluster.service.address(family);
        long_datagrams_get_through(&cluster.client.namespace, address);
        cluster
            .client
            .run(|| transfer(&Connection::open(address).unwrap(), 4 << 20).unwrap());
    }
}

#[test]
fn a_pod_with_a_narrow_device_reaches_itself() {
    let announced_mss = Some(1440);
    let backend = PodOptions {
        mtu: MTU,
        announced_mss,
        ..PodOptions::default()
    };
    let cluster = Cluster::new(Plan {
        backends: 1,
        backend,
        ..Plan::default()
    });
    for family in Family::ALL {
        let address = cluster.service.address(family);
        cluster.backends[0].run(|| transfer(&Connection::open(address).unwrap(), 4 << 20).unwrap());
    }
}
