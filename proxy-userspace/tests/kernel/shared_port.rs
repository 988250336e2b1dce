//! Two Services that share a backend, and a client that uses one port for both: on the
//! backend's side the two flows would be one and the same.

use std::net::SocketAddr;
use std::time::Duration;

use proxy_common::abi::Family;
use socket2::{Domain, Protocol, Socket, Type};
use xtask::testbed::{Layout, sctp};

use crate::client::{Connection, PATIENCE, udp_echo};
use crate::cluster::{Cluster, Plan, Service};

const CLIENT_PORT: u16 = 33_333;

/// A socket at the shared port, connected to `server`.
fn from_shared_port(kind: Type, protocol: Protocol, server: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(server), kind, Some(protocol)).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any: SocketAddr = if server.is_ipv4() {
        ([0; 4], CLIENT_PORT).into()
    } else {
        ([0_u16; 8], CLIENT_PORT).into()
    };
    socket.bind(&any.into()).unwrap();
    socket.connect_timeout(&server.into(), PATIENCE).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

/// Talks to two Services with one backend from one port, over every protocol. Both have to answer
/// in the backend's name.
pub(crate) fn shared_connections(servers: [SocketAddr; 2], backend: &str) {
    let tcp = |server| from_shared_port(Type::STREAM, Protocol::TCP, server).into();
    let mut streams = servers.map(|server| Connection::greet(tcp(server)).unwrap());
    let udp = |server| from_shared_port(Type::DGRAM, Protocol::UDP, server).into();
    let sockets = servers.map(udp);
    for round in 0..100_u8 {
        for (at, stream) in streams.iter_mut().enumerate() {
            stream.echo(&[round, at as u8]).unwrap();
        }
        for (at, socket) in sockets.iter().enumerate() {
            let said = udp_echo(socket, &[round, at as u8]).unwrap();
            assert!(said.starts_with(backend), "{said}");
        }
    }
    let mut associations =
        servers.map(|server| sctp::Association::open(CLIENT_PORT, server, PATIENCE).unwrap());
    for association in &mut associations {
        let said = association.exchange(b"hello").unwrap();
        assert!(said.starts_with(backend.as_bytes()) && said.ends_with(b"\nhello"));
    }
}

#[test]
fn flows_from_one_port_to_two_services_with_one_backend_stay_apart() {
    for layout in Layout::ALL {
        let cluster = Cluster::new(Plan {
            layout,
            backends: 1,
            ..Plan::default()
        });
        let other = Service::new("other", 20, &cluster.backends);
        cluster.apply(&other);
        for family in Family::ALL {
            let servers = [cluster.service.address(family), other.address(family)];
            cluster.client.run(|| shared_connections(servers, "web-0"));
        }
    }
}
