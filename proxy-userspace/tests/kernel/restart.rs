//! The daemon is not needed for traffic, and a restart changes nothing.

use proxy_common::abi::Family;

use crate::client::{Connection, PATIENCE, udp, udp_echo};
use crate::cluster::{Cluster, Plan};

#[test]
fn traffic_survives_a_killed_daemon_and_its_successor() {
    let Cluster {
        daemon,
        servers,
        backends,
        client,
        service,
        testbed,
    } = Cluster::new(Plan::default());
    let connections: Vec<_> = client.run(|| {
        let open = |family| Connection::open(service.address(family)).unwrap();
        Family::ALL.map(open).into()
    });
    let mut connections: Vec<Connection> = connections;
    let mut use_all = |when: &str| {
        for connection in &mut connections {
            connection
                .echo(&[7; 20_000])
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        client.run(|| {
            for address in Family::ALL.map(|family| service.address(family)) {
                Connection::open(address).unwrap().echo(b"new").unwrap();
                udp_echo(&udp(0, address).unwrap(), b"new").unwrap();
            }
        });
    };
    use_all("before");
    assert!(daemon.kill().is_some());
    use_all("while the daemon is down");
    let daemon = crate::cluster::beeline(&testbed).run::<&str>([]).unwrap();
    use_all("after the restart");
    assert_eq!(writes(&daemon), 0, "{}", daemon.log());
    drop((daemon, servers, backends));
}

#[test]
fn a_transfer_goes_on_while_the_daemon_is_killed_and_started_again() {
    let Cluster {
        daemon,
        servers,
        backends,
        client,
        service,
        testbed,
    } = Cluster::new(Plan::default());
    let address = service.address(Family::Ipv4);
    let connection = client.run(|| Connection::open(address).unwrap());
    connection.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| crate::client::transfer(&connection, 512 << 20));
        assert!(daemon.kill().is_some());
        let next = crate::cluster::beeline(&testbed).run::<&str>([]).unwrap();
        assert!(next.kill().is_some());
        let last = crate::cluster::beeline(&testbed).run::<&str>([]).unwrap();
        transfer.join().unwrap().unwrap();
        drop(last);
    });
    drop((servers, backends));
}

/// Entries of maps that a daemon has written, by its log.
fn writes(daemon: &xtask::testbed::Daemon) -> u64 {
    let log = daemon.log();
    log.len() as u64
}
