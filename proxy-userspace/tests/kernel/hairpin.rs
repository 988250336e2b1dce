//! A pod that reaches itself through its own Service (rule R77).

use proxy_common::abi::Family;
use xtask::testbed::{Layout, sctp};

use crate::client::{Connection, PATIENCE, transfer, udp, udp_echo};
use crate::cluster::{Cluster, Plan};

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for layout in Layout::ALL {
        let cluster = Cluster::new(Plan {
            layout,
            backends: 1,
            ..Plan::default()
        });
        for family in Family::ALL {
            let address = cluster.service.address(family);
            cluster.backends[0].run(|| {
                let connection = Connection::open(address).unwrap();
                assert_eq!(connection.backend, "web-0");
                // The server must not see a connection from its own address: its answers
                // would never leave the pod.
                transfer(&connection, 8 << 20).unwrap();
                let socket = udp(0, address).unwrap();
                for size in [1, 1_000, 9_000] {
                    assert_eq!(udp_echo(&socket, &vec![7; size]).unwrap(), "web-0");
                }
                let mut sctp = sctp::Association::open(0, address, PATIENCE).unwrap();
                assert_eq!(sctp.exchange(b"hello").unwrap(), b"web-0\nhello");
            });
        }
    }
}

#[test]
fn backends_reach_each_other_and_themselves_through_their_service() {
    let cluster = Cluster::new(Plan {
        backends: 3,
        ..Plan::default()
    });
    for family in Family::ALL {
        let address = cluster.service.address(family);
        for pod in &cluster.backends {
            let mut met = std::collections::BTreeSet::new();
            pod.run(|| {
                for _ in 0..100 {
                    met.insert(Connection::open(address).unwrap().backend);
                }
            });
            assert_eq!(met.len(), 3, "{} met {met:?} only", pod.name);
        }
    }
}
