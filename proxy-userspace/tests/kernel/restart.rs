//! The daemon is not needed for traffic, and a restart changes nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use proxy_common::abi::Family;

use crate::client::{Connection, transfer_while, udp, udp_echo};
use crate::cluster::{Cluster, Plan};

#[test]
fn traffic_survives_a_killed_daemon_and_its_successor() {
    let mut cluster = Cluster::new(Plan::default());
    let (client, service) = (cluster.client.clone(), cluster.service.clone());
    let open = |family| Connection::open(service.address(family)).unwrap();
    let mut connections = client.run(|| Family::ALL.map(open));
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
    cluster.daemon.kill();
    use_all("while the daemon is down");
    cluster.start_again();
    use_all("after the restart");
    let (status, log) = (cluster.daemon.status(), cluster.daemon.log());
    assert_eq!(status["last_sync"]["writes"], 0, "{log}");
}

#[test]
fn transfers_go_on_while_the_daemon_is_killed_and_started_again() {
    let mut cluster = Cluster::new(Plan::default());
    let addresses = Family::ALL.map(|family| cluster.service.address(family));
    let connections = cluster
        .client
        .run(|| addresses.map(|address| Connection::open(address).unwrap()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let go_on = |_| !done.load(Ordering::Relaxed);
        let transfers = connections
            .each_ref()
            .map(|connection| scope.spawn(move || transfer_while(connection, go_on)));
        for _ in 0..3 {
            cluster.daemon.kill();
            cluster.start_again();
        }
        done.store(true, Ordering::Relaxed);
        for transfer in transfers {
            assert!(transfer.join().unwrap().unwrap() > 100);
        }
    });
}
