//! What is not served: refused at once, or not answered at all; and addresses of the node that
//! come and go.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::testbed::{Layout, NODE_IPV4, NODE_IPV6, NODE_NAME, Namespace, in_namespace, sctp};

use crate::client::{PATIENCE, udp};
use crate::socket_world::until;
use crate::vitals::{SOON, get};
use crate::world::{Endpoint, Kind, Service, Speak, World, ask};

/// Before a lost SYN would be sent again.
const AT_ONCE: Duration = Duration::from_millis(900);
/// How long nothing must come where nothing is expected.
const SILENCE: Duration = Duration::from_millis(300);

/// What clients send to find a door closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Knock {
    Tcp,
    Udp,
    Sctp,
    Echo,
}

impl Knock {
    const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Echo];

    /// What a client hears in answer.
    fn at(self, address: SocketAddr, patience: Duration) -> Result<(), ErrorKind> {
        let result = match self {
            Self::Tcp => TcpStream::connect_timeout(&address, patience).map(drop),
            Self::Udp => udp(0, address).and_then(|socket| {
                socket.set_read_timeout(Some(patience))?;
                socket.send(b"hello")?;
                socket.recv(&mut [0; 9]).map(drop)
            }),
            Self::Sctp => sctp::Association::open_raw(0, address, patience).map(drop),
            Self::Echo => echo_request(address.ip(), patience),
        };
        result.map_err(|error| match (error.kind(), error.raw_os_error()) {
            // The last: the node's own packet, of which the sender hears that it was dropped.
            (ErrorKind::WouldBlock, _) | (_, Some(nix::libc::ENOBUFS)) => ErrorKind::TimedOut,
            (other, _) => other,
        })
    }
}

/// Sends an ICMP echo request and waits for what comes.
fn echo_request(address: IpAddr, patience: Duration) -> io::Result<()> {
    let (protocol, kind) = match address {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128),
    };
    let server = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(server), Type::RAW, Some(protocol))?;
    socket.connect(&server.into())?;
    socket.set_read_timeout(Some(patience))?;
    let mut request = [kind, 0, 0, 0, 0, 7, 0, 1];
    if address.is_ipv4() {
        // The kernel fills in ICMPv6's only.
        let sum = u16::from_be_bytes([kind, 0]) + 7 + 1;
        request[2..4].copy_from_slice(&(!sum).to_be_bytes());
    }
    socket.send(&request)?;
    socket.recv(&mut [MaybeUninit::uninit(); 1_500]).map(drop)
}

fn clients(world: &World) -> [(&'static str, &Namespace); 3] {
    [
        ("node", world.node()),
        ("pod", &world.pod.namespace),
        ("outside", &world.client.namespace),
    ]
}

struct Closed<'a> {
    world: &'a World,
    failures: Vec<String>,
}

impl Closed<'_> {
    /// Every client has to hear `expected` from an address.
    fn check(&mut self, what: &str, address: SocketAddr, expected: ErrorKind, knocks: &[Knock]) {
        let patience = if expected == ErrorKind::TimedOut {
            SILENCE
        } else {
            PATIENCE
        };
        for (who, namespace) in clients(self.world) {
            for knock in knocks {
                let start = Instant::now();
                let heard = in_namespace(namespace, || knock.at(address, patience));
                let took = start.elapsed();
                if heard != Err(expected) || took > AT_ONCE {
                    self.failures.push(format!(
                        "{who}, {what} {address}, {knock:?}: {heard:?} after {took:?}"
                    ));
                }
            }
        }
    }
}

fn doors_are_closed_as_they_should_be(world: &World) {
    let none = Service {
        name: "none",
        number: 7,
        endpoints: Vec::new(),
    };
    world.apply(&none);
    let [local, ..] = world.services();
    let failures = Vec::new();
    let mut closed = Closed { world, failures };
    let transports = &Knock::ALL[..3];
    for family in Family::ALL {
        for kind in Kind::ALL {
            let address = none.at(kind, family);
            closed.check(
                "no endpoints",
                address,
                ErrorKind::ConnectionRefused,
                transports,
            );
        }
        let mut unused = local.at(Kind::ClusterIp, family);
        unused.set_port(99);
        closed.check(
            "unused port",
            unused,
            ErrorKind::ConnectionRefused,
            &Knock::ALL,
        );
        let nobodys = Service {
            number: 88,
            ..none.clone()
        };
        let address = nobodys.at(Kind::ClusterIp, family);
        closed.check(
            "nobody's address",
            address,
            ErrorKind::TimedOut,
            &Knock::ALL,
        );
    }
    let failures = closed.failures;
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// NodePorts at addresses that the node gets and loses.
fn node_ports_follow_the_nodes_addresses(world: &World) {
    let [local, far, _] = world.services();
    let added = ["172.18.0.99/24", "fd00:172:18::99/64"];
    for address in added {
        let ip = address
            .split_once('/')
            .unwrap()
            .0
            .parse::<IpAddr>()
            .unwrap();
        let served = || {
            [&local, &far].into_iter().all(|service| {
                let server = SocketAddr::new(ip, service.node_port());
                clients(world).into_iter().all(|(_, namespace)| {
                    Speak::ALL.into_iter().all(|speak| {
                        let answer = in_namespace(namespace, || ask(speak, server, SILENCE));
                        answer.is_ok_and(|it| it.backend == service.name)
                    })
                })
            })
        };
        assert!(!served());
        let nodad = if ip.is_ipv6() { " nodad" } else { "" };
        world
            .node()
            .ip([format!("address add {address} dev eth0{nodad}")])
            .unwrap();
        until("served", SOON, served);
        world
            .node()
            .ip([format!("address delete {address} dev eth0")])
            .unwrap();
        let is_known = |status: &Value| {
            let all = status["node_addresses"].as_array().into_iter().flatten();
            all.into_iter().any(|it| it["address"] == ip.to_string())
        };
        let forgotten = |status: &Value| !is_known(status);
        world
            .daemon
            .wait_until("address forgotten", forgotten)
            .unwrap();
        assert!(!served());
    }
}

/// Where only the primary addresses accept, NodePorts of others are the host's (rule R91).
fn only_primary_addresses_accept(world: &mut World) {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NODE_NAME },
        "status": { "addresses": [
            { "type": "InternalIP", "address": NODE_IPV4 },
            { "type": "InternalIP", "address": NODE_IPV6 },
        ] },
    });
    world.write("node.json", &node);
    world.start_again_with(&["--nodeport-addresses", "primary"]);
    let [_, far, _] = world.services();
    for family in Family::ALL {
        let closed = far.at(Kind::SecondaryNodePort, family);
        let serves = |(_, namespace): (&str, &Namespace)| {
            let server = far.at(Kind::NodePort, family);
            in_namespace(namespace, || ask(Speak::Tcp, server, AT_ONCE)).is_ok()
        };
        until("primary address", SOON, || {
            clients(world).into_iter().all(serves)
        });
        for (who, namespace) in clients(world) {
            for knock in [Knock::Tcp, Knock::Udp] {
                let heard = in_namespace(namespace, || knock.at(closed, AT_ONCE));
                let refused = Err(ErrorKind::ConnectionRefused);
                assert_eq!(heard, refused, "{who} {closed} {knock:?}");
            }
        }
    }
}

/// Load balancers outside ask for local endpoints (rules R120 to R123).
fn health_checks_answer_machines_outside(world: &World) {
    let check = |of: &Service| {
        let ask = |node: IpAddr| {
            let address = SocketAddr::new(node, of.health_check_port());
            let answer = world.client.run(|| get(address, "/"));
            answer.map(|(status, _)| status)
        };
        [NODE_IPV4.into(), NODE_IPV6.into()].map(ask)
    };
    let with = |endpoint| Service {
        name: "checked",
        number: 8,
        endpoints: vec![endpoint],
    };
    let here = with(Endpoint::new(&world.local, NODE_NAME));
    world.apply_local(&here);
    until("a local endpoint", SOON, || check(&here) == [Some(200); 2]);
    for family in Family::ALL {
        let server = here.at(Kind::NodePort, family);
        let answer = world
            .client
            .run(|| ask(Speak::Tcp, server, AT_ONCE))
            .unwrap();
        assert_eq!(answer.client, world.client.address(family));
    }
    world.apply_local(&with(Endpoint::new(&world.far, "elsewhere")));
    until("no local endpoint", SOON, || check(&here) == [Some(503); 2]);
    for family in Family::ALL {
        let heard = world
            .client
            .run(|| Knock::Tcp.at(here.at(Kind::NodePort, family), SILENCE));
        assert_eq!(heard, Err(ErrorKind::TimedOut));
    }
    world.delete(&here);
    until("no Service", SOON, || check(&here) == [None; 2]);
}

#[test]
fn what_is_not_served_is_refused_or_dropped() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    doors_are_closed_as_they_should_be(&world);
    node_ports_follow_the_nodes_addresses(&world);
    health_checks_answer_machines_outside(&world);
    only_primary_addresses_accept(&mut world);
}

#[test]
fn what_is_not_served_is_refused_or_dropped_behind_a_bridge() {
    doors_are_closed_as_they_should_be(&World::new(Layout::Bridge, 1500, &[]));
}
