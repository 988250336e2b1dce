//! No endpoints, no silence (rules R65, R67).

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use xtask::testbed::{Layout, sctp};

use crate::client::{PATIENCE, udp};
use crate::cluster::{Cluster, Plan};

/// At once: before a lost SYN would be sent again.
const AT_ONCE: Duration = Duration::from_millis(900);

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    for layout in Layout::ALL {
        let cluster = Cluster::new(Plan {
            layout,
            backends: 0,
            ..Plan::default()
        });
        for family in Family::ALL {
            let address = cluster.service.address(family);
            cluster.client.run(|| {
                let refused = |what: &str, attempt: &dyn Fn() -> std::io::Error| {
                    let start = Instant::now();
                    let (kind, took) = (attempt().kind(), start.elapsed());
                    let case = format!("{layout:?} {address} {what} {took:?}");
                    assert_eq!(kind, ErrorKind::ConnectionRefused, "{case}");
                    assert!(took < AT_ONCE, "{case}");
                };
                refused("TCP", &|| {
                    TcpStream::connect_timeout(&address, PATIENCE).unwrap_err()
                });
                refused("UDP", &|| {
                    let socket = udp(0, address).unwrap();
                    socket.send(b"hello").unwrap();
                    socket.recv(&mut [0; 9]).unwrap_err()
                });
                refused("SCTP", &|| {
                    sctp::Association::open_raw(0, address, PATIENCE).unwrap_err()
                });
            });
        }
    }
}

#[test]
fn a_closed_port_of_a_backend_is_reported_to_the_client() {
    for layout in Layout::ALL {
        let mut cluster = Cluster::new(Plan {
            layout,
            backends: 1,
            ..Plan::default()
        });
        cluster.servers.clear();
        for family in Family::ALL {
            let address = cluster.service.address(family);
            cluster.client.run(|| {
                let socket = udp(0, address).unwrap();
                socket.send(b"hello").unwrap();
                let error = socket.recv(&mut [0; 9]).unwrap_err();
                assert_eq!(
                    error.kind(),
                    ErrorKind::ConnectionRefused,
                    "{layout:?} {address}"
                );
                let error = TcpStream::connect_timeout(&address, PATIENCE).unwrap_err();
                assert_eq!(
                    error.kind(),
                    ErrorKind::ConnectionRefused,
                    "{layout:?} {address}"
                );
            });
        }
    }
}
