//! Clients outside, through this node to backends that are not on it: their addresses are
//! replaced, and whatever comes back has to find its way.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use proxy_common::abi::Family;
use xtask::testbed::{Layout, Offload, REMOTE_NODE_NAME, in_namespace, set_offload};

use crate::client::{Connection, PATIENCE, transfer, transfer_while, udp, udp_echo};
use crate::path_mtu::{long_datagrams_get_through, tcp_learns_the_mtu, udp_learns_the_mtu};
use crate::shared_port::shared_connections;
use crate::world::{Answer, Endpoint, Kind, Service, Speak, World, ask};

const MIB: u64 = 1 << 20;

#[test]
fn transfers_shared_ports_and_errors_find_their_way() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    large_transfers_arrive_intact(&world);
    two_services_may_share_backend_and_client_port(&world);
    transfers_go_on_without_the_daemon(&mut world);
    errors_of_the_backend_reach_the_client(&mut world);
    cleanup_leaves_nothing(&world);
}

fn large_transfers_arrive_intact(world: &World) {
    let [_, far, _] = world.services();
    for family in Family::ALL {
        let address = far.at(Kind::NodePort, family);
        let run = || transfer(&Connection::open(address).unwrap(), 100 * MIB).unwrap();
        world.client.run(run);
        world.on_node(run);
    }
}

fn two_services_may_share_backend_and_client_port(world: &World) {
    let [_, far, _] = world.services();
    let other = Service {
        name: "other",
        number: 4,
        endpoints: vec![Endpoint::new(&world.far, REMOTE_NODE_NAME)],
    };
    world.apply(&other);
    for namespace in [&world.client.namespace, world.node()] {
        for family in Family::ALL {
            let servers = [far.clone(), other.clone()].map(|it| it.at(Kind::NodePort, family));
            in_namespace(namespace, || shared_connections(servers, "far"));
        }
    }
}

fn transfers_go_on_without_the_daemon(world: &mut World) {
    let [_, far, _] = world.services();
    let client = world.client.clone();
    let addresses = Family::ALL.map(|family| far.at(Kind::NodePort, family));
    let open = |address| Connection::open(address).unwrap();
    let from_outside = client.run(|| addresses.map(open));
    let from_node = world.on_node(|| addresses.map(open));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let go_on = |_| !done.load(Ordering::Relaxed);
        let all = from_outside.iter().chain(&from_node);
        let transfers: Vec<_> = all
            .map(|connection| scope.spawn(move || transfer_while(connection, go_on)))
            .collect();
        for _ in 0..2 {
            assert!(world.daemon.kill().is_some());
            client.run(|| drop(addresses.map(open)));
            world.start_again();
        }
        done.store(true, Ordering::Relaxed);
        for transfer in transfers {
            assert!(transfer.join().unwrap().unwrap() > 10);
        }
    });
}

/// The backends' servers end; their ports answer with errors.
fn errors_of_the_backend_reach_the_client(world: &mut World) {
    world.servers.clear();
    for service in world.services() {
        for namespace in [world.node(), &world.pod.namespace, &world.client.namespace] {
            for kind in [Kind::NodePort, Kind::Vip, Kind::ClusterIp] {
                for family in Family::ALL {
                    let address = service.at(kind, family);
                    in_namespace(namespace, || a_closed_port_is_noticed(address));
                }
            }
        }
    }
}

fn a_closed_port_is_noticed(address: SocketAddr) {
    let refused = Some(ErrorKind::ConnectionRefused);
    let start = Instant::now();
    let tcp = TcpStream::connect_timeout(&address, PATIENCE);
    assert_eq!(tcp.err().map(|it| it.kind()), refused, "TCP {address}");
    let socket = udp(0, address).unwrap();
    let result = socket.send(b"hello").and_then(|_| socket.recv(&mut [0; 9]));
    assert_eq!(result.err().map(|it| it.kind()), refused, "UDP {address}");
    assert!(start.elapsed() < PATIENCE, "{address}");
}

fn cleanup_leaves_nothing(world: &World) {
    assert!(world.daemon.stop().is_some());
    let output = world.beeline().call(["cleanup", "--now"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let node = world.node();
    let links = node.ask_ip("link show").unwrap();
    assert!(
        !links.contains(" beeline0") && !links.contains("beeline1"),
        "{links}"
    );
    for family in ["-4", "-6"] {
        let routes = node
            .ask_ip(&format!("{family} route show table all"))
            .unwrap();
        assert!(!routes.contains("proto 190"), "{routes}");
    }
    for sysctl in ["accept_local", "route_localnet"] {
        let value = node.get(&format!("net/ipv4/conf/lo/{sysctl}")).unwrap();
        assert_eq!(value, "0", "{sysctl}");
    }
    let pins = std::fs::read_dir(world.testbed.bpffs()).unwrap();
    let names = pins.map(|it| it.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|it| it.contains("beeline")).count(), 0);
}

fn a_narrow_link_is_found_out(layout: Layout, mtu: u32) {
    let world = World::new(layout, mtu, &[]);
    let [_, far, _] = world.services();
    // The kernel keeps no MTU for its own addresses: no NodePort from the node itself.
    let clients = [
        (&world.client.namespace, [Kind::NodePort, Kind::Vip]),
        (&world.pod.namespace, [Kind::NodePort, Kind::Vip]),
        (world.node(), [Kind::ClusterIp, Kind::Vip]),
    ];
    for (namespace, kinds) in clients {
        for kind in kinds {
            for family in Family::ALL {
                let address = far.at(kind, family);
                long_datagrams_get_through(namespace, address);
                tcp_learns_the_mtu(namespace, address, mtu);
                udp_learns_the_mtu(namespace, address, mtu);
            }
        }
    }
    fragments_keep_their_client(&world);
}

/// Long datagrams through a NodePort to a backend on this node, which sees the client.
fn fragments_keep_their_client(world: &World) {
    let [local, ..] = world.services();
    for family in Family::ALL {
        let address = local.at(Kind::NodePort, family);
        world.client.run(|| {
            let socket = udp(0, address).unwrap();
            for size in [1_473, 20_000, 60_000] {
                let said = udp_echo(&socket, &vec![7; size]).unwrap();
                let answer = Answer::parse(&said).unwrap();
                assert_eq!(answer.client, world.client.address(family));
            }
        });
        let answer = world.client.run(|| ask(Speak::Sctp, address, PATIENCE));
        assert_eq!(answer.unwrap().client, world.client.address(family));
    }
}

#[test]
fn a_narrow_link_behind_a_node_port_is_found_out() {
    a_narrow_link_is_found_out(Layout::Routed, 1280);
}

#[test]
fn a_narrow_link_behind_a_node_port_is_found_out_with_a_bridge() {
    a_narrow_link_is_found_out(Layout::Bridge, 1400);
}

/// The tunnel's: what VXLAN leaves of 1500 bytes.
const TUNNEL_MTU: u32 = 1450;

/// As flannel does it: what goes to pods of the other node goes by VXLAN.
fn dig_tunnel(world: &World) {
    let remote = &world.testbed.remote().unwrap().namespace;
    let ends = [
        (world.node(), ["172.18.0.2", "172.19.0.2"], 1, 2),
        (remote, ["172.19.0.2", "172.18.0.2"], 2, 1),
    ];
    for (namespace, [local, remote], own, other) in ends {
        let peers = other - 1;
        namespace
            .ip([
                format!(
                    "link add tunnel mtu {TUNNEL_MTU} type vxlan id 7 local {local} remote {remote} \
                     dstport 4789 dev eth0"
                ),
                format!("address add 172.21.0.{own}/24 dev tunnel"),
                format!("address add fd00:172:21::{own}/64 dev tunnel nodad"),
                "link set tunnel up".to_owned(),
                format!("route add 10.244.{peers}.0/24 via 172.21.0.{other}"),
                format!("route add fd00:10:244:{peers}::/64 via fd00:172:21::{other}"),
            ])
            .unwrap();
    }
    let is_edge =
        |status: &serde_json::Value| status["node_devices"].to_string().contains("tunnel");
    world
        .daemon
        .wait_until("the tunnel is an edge", is_edge)
        .unwrap();
}

#[test]
fn a_tunnel_behind_a_node_port_is_found_out() {
    let world = World::new(Layout::Bridge, 1500, &[]);
    dig_tunnel(&world);
    let [_, far, _] = world.services();
    // Only what a device has received is complete; a veth pair saves itself the trouble.
    let client = &world.client.namespace;
    set_offload(client, "eth0", Offload::TransmitChecksum, false).unwrap();
    for (namespace, kinds) in [
        (client, [Kind::NodePort, Kind::Vip]),
        (&world.pod.namespace, [Kind::NodePort, Kind::Vip]),
        (world.node(), [Kind::ClusterIp, Kind::Vip]),
    ] {
        for kind in kinds {
            for family in Family::ALL {
                let address = far.at(kind, family);
                long_datagrams_get_through(namespace, address);
                in_namespace(namespace, || {
                    transfer(&Connection::open(address).unwrap(), 4 * MIB).unwrap();
                });
                udp_learns_the_mtu(namespace, address, TUNNEL_MTU);
            }
        }
    }
}
