//! Endpoints, and pods, come and go.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use proxy_common::abi::Family;
use xtask::testbed::Layout;

use crate::client::{Connection, udp, udp_echo};
use crate::cluster::{Cluster, Endpoint, Plan, serve_all};

/// How often endpoints change under load.
const CHANGES: usize = 6;

#[test]
fn endpoints_come_and_go_under_load() {
    let cluster = Cluster::new(Plan {
        backends: 4,
        ..Plan::default()
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (cluster, done) = (&cluster, &done);
        let load: Vec<_> = Family::ALL
            .into_iter()
            .map(|family| scope.spawn(move || connections_that_live(cluster, family, done)))
            .collect();
        // Whatever comes of it, the load must end.
        let changed = catch_unwind(AssertUnwindSafe(|| change_endpoints(cluster)));
        done.store(true, Ordering::Relaxed);
        for thread in load {
            assert!(
                thread.join().unwrap() > 100,
                "too little load to show anything"
            );
        }
        changed.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Opens connections without a pause; keeps those to `web-0` and `web-1`, which always stay, and
/// uses one after the other. Returns how many were opened.
fn connections_that_live(cluster: &Cluster, family: Family, done: &AtomicBool) -> usize {
    let address = cluster.service.address(family);
    let (mut opened, mut cut) = (0, 0);
    cluster.client.run(|| {
        let mut kept = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let connection = match Connection::open(address) {
                Ok(connection) => connection,
                // Its endpoint was taken away before it had said its name.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    cut += 1;
                    continue;
                }
                Err(error) => panic!("{address}: {error}"),
            };
            opened += 1;
            if kept.len() < 50 && ["web-0", "web-1"].contains(&connection.backend.as_str()) {
                kept.push(connection);
            }
            if let Some(connection) = kept.get_mut(opened % 50) {
                connection.echo(b"still there?").unwrap();
            }
        }
        kept.iter_mut()
            .for_each(|connection| connection.echo(b"to the end?").unwrap());
    });
    // Of one connection at a time, a change can cut one.
    assert!(cut <= CHANGES, "{cut} connections cut by {CHANGES} changes");
    opened
}

/// Takes `web-2` and `web-3` away and back, in turns, and looks each time that new flows keep to
/// what is there.
fn change_endpoints(cluster: &Cluster) {
    let mut service = cluster.service.clone();
    for round in 0..CHANGES {
        let (stays, goes) = if round % 2 == 0 { (2, 3) } else { (3, 2) };
        service.endpoints = [0, 1, stays]
            .map(|at| Endpoint::of(&cluster.backends[at]))
            .into();
        cluster.apply(&service);
        let gone = &cluster.backends[goes].name;
        let met = backends_met(
            cluster,
            &service.address(Family::ALL[round % 2]).to_string(),
        );
        assert!(!met.contains(gone), "round {round}: {met:?}");
        assert_eq!(met.len(), 3, "round {round}: {met:?}");
    }
}

fn backends_met(cluster: &Cluster, address: &str) -> BTreeSet<String> {
    let address = address.parse().unwrap();
    cluster.client.run(|| {
        let tcp = (0..100).map(|_| Connection::open(address).unwrap().backend);
        let udp = (0..100).map(|_| udp_echo(&udp(0, address).unwrap(), b"hello").unwrap());
        tcp.chain(udp).collect()
    })
}

#[test]
fn connections_to_an_endpoint_that_is_terminating_live_on() {
    let cluster = Cluster::new(Plan {
        backends: 2,
        ..Plan::default()
    });
    for family in Family::ALL {
        let address = cluster.service.address(family);
        let mut service = cluster.service.clone();
        let mut kept: Vec<_> = cluster.client.run(|| {
            (0..30)
                .map(|_| Connection::open(address).unwrap())
                .collect()
        });
        service.endpoints[1].terminating = true;
        cluster.apply(&service);
        kept.iter_mut()
            .for_each(|connection| connection.echo(b"still there?").unwrap());
        let met = backends_met(&cluster, &address.to_string());
        assert_eq!(met, BTreeSet::from(["web-0".to_owned()]));
        cluster.apply(&cluster.service);
    }
}

#[test]
fn connections_to_a_removed_endpoint_end_at_once() {
    let cluster = Cluster::new(Plan {
        backends: 2,
        ..Plan::default()
    });
    for family in Family::ALL {
        let address = cluster.service.address(family);
        let kept: Vec<_> = cluster.client.run(|| {
            (0..30)
                .map(|_| Connection::open(address).unwrap())
                .collect()
        });
        let socket = cluster.client.run(|| udp(0, address).unwrap());
        udp_echo(&socket, b"hello").unwrap();
        let mut service = cluster.service.clone();
        service.endpoints.truncate(1);
        cluster.apply(&service);
        for mut connection in kept {
            let result = connection
                .echo(b"still there?")
                .map_err(|error| error.kind());
            match connection.backend.as_str() {
                "web-0" => assert_eq!(result, Ok(())),
                _ => assert_eq!(result, Err(ErrorKind::ConnectionReset)),
            }
        }
        // A datagram knows of no connection that could end: it goes where there is somebody.
        assert_eq!(udp_echo(&socket, b"hello").unwrap(), "web-0");
        cluster.apply(&cluster.service);
    }
}

#[test]
fn from_endpoints_to_none_and_back() {
    let cluster = Cluster::new(Plan::default());
    let mut none = cluster.service.clone();
    none.endpoints.clear();
    for family in Family::ALL {
        let address = cluster.service.address(family);
        let refused = || {
            Connection::open(address)
                .map(drop)
                .map_err(|error| error.kind())
        };
        cluster.apply(&none);
        let expected = Err(ErrorKind::ConnectionRefused);
        assert_eq!(cluster.client.run(refused), expected);
        cluster.apply(&cluster.service);
        assert_eq!(cluster.client.run(refused), Ok(()));
    }
}

#[test]
fn pods_that_come_are_served_and_those_that_go_are_forgotten() {
    for layout in Layout::ALL {
        let mut cluster = Cluster::new(Plan {
            layout,
            ..Plan::default()
        });
        let (client, backend) = (
            cluster.testbed.pod("late").unwrap(),
            cluster.testbed.pod("web-9").unwrap(),
        );
        cluster.servers.extend(serve_all(&backend));
        let mut service = cluster.service.clone();
        service.endpoints = vec![Endpoint::of(&backend)];
        cluster.apply(&service);
        cluster.wait_until_attached(&client);
        for family in Family::ALL {
            let address = service.address(family);
            let met = client.run(|| Connection::open(address).unwrap().backend);
            assert_eq!(met, "web-9");
        }
        let log = cluster.daemon.log();
        assert!(
            !log.contains("detached"),
            "the new pods were left alone for a while: {log}"
        );
        cluster.testbed.remove_pod(&client).unwrap();
        cluster
            .daemon
            .wait_until("old pod forgotten", |status| {
                !status
                    .to_string()
                    .contains(&format!("\"{}\"", client.device))
            })
            .unwrap();
    }
}
