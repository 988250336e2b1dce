//! The rules that benchmarks compare with: what they make of kube-proxy's lead where kube-proxy's
//! would.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use proxy_common::abi::{Family, Protocol};
use xtask::kube_proxy::{Flavour, Node, Port, load, write_rules};
use xtask::testbed::sctp::Association;
use xtask::testbed::{
    Layout, NODE_IPV4, NODE_IPV6, Namespace, Pod, Serve, Server, Testbed, in_namespace,
};

use crate::client::{Connection, PATIENCE, udp, udp_echo};

const TARGET_PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;
/// Enough to meet both endpoints: one in two billions fails.
const CONNECTIONS: usize = 32;
/// Of the last number of the Services' addresses.
const WEB: u8 = 80;
/// See [`WEB`].
const ASTRAY: u8 = 81;
/// See [`WEB`].
const UNSERVED: u8 = 82;

/// A node without Beeline. Fields are dropped in this order.
struct World {
    _servers: Vec<Server>,
    client: Pod,
    outside: Pod,
    web: [Pod; 2],
    testbed: Testbed,
}

fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 96, 1, number).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 1, number.into()).into(),
    }
}

fn node_address(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => NODE_IPV4.into(),
        Family::Ipv6 => NODE_IPV6.into(),
    }
}

/// An address of the node's pods that no pod has.
fn nobody(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 244, 0, 99).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0x99).into(),
    }
}

impl World {
    /// Two endpoints, and a pod that serves alike and is none.
    fn new() -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        let client = testbed.pod("client").unwrap();
        let outside = testbed.machine("far-off", 30).unwrap();
        let web = ["web-0", "web-1"].map(|name| testbed.pod(name).unwrap());
        let bystander = testbed.pod("bystander").unwrap();
        let servers = web.iter().chain([&bystander]).flat_map(|pod| {
            [Serve::Echo, Serve::Sctp].map(|what| pod.serve(what, TARGET_PORT).unwrap())
        });
        Self {
            _servers: servers.collect(),
            client,
            outside,
            web,
            testbed,
        }
    }

    fn node(&self) -> &Namespace {
        &self.testbed.node().namespace
    }

    fn ports(&self, family: Family) -> Vec<Port> {
        let web = self.web.each_ref().map(|pod| pod.address(family));
        let port = |service: &str, protocol: Protocol, number, endpoints: &[IpAddr]| Port {
            name: format!("bench/{service}:{}", protocol.name().to_lowercase()),
            protocol,
            cluster_ip: cluster_ip(family, number),
            port: 80,
            node_port: (number == WEB).then_some(NODE_PORT),
            endpoints: endpoints
                .iter()
                .map(|ip| SocketAddr::new(*ip, TARGET_PORT))
                .collect(),
        };
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let mut ports: Vec<_> = protocols
            .iter()
            .map(|protocol| port("web", *protocol, WEB, &web))
            .collect();
        ports.push(port("astray", Protocol::Tcp, ASTRAY, &[nobody(family)]));
        ports.push(port("unserved", Protocol::Tcp, UNSERVED, &[]));
        ports
    }

    /// All clients reach both endpoints, and nobody else.
    fn expect_both(&self, family: Family) {
        let service = SocketAddr::new(cluster_ip(family, WEB), 80);
        let node_port = SocketAddr::new(node_address(family), NODE_PORT);
        let both = self.web.iter().map(|pod| pod.name.clone());
        let both: BTreeSet<_> = both.collect();
        for (place, address) in [
            (&self.client.namespace, service),
            (self.node(), service),
            (&self.outside.namespace, node_port),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let who = in_namespace(place, || {
                    let dial = |_| dial(protocol, address);
                    (0..CONNECTIONS).map(dial).collect::<BTreeSet<_>>()
                });
                assert_eq!(who, both, "{protocol} from {} to {address}", place.name());
            }
        }
    }

    /// What leads nowhere, and what is refused.
    fn expect_none(&self, family: Family) {
        let failure = |number, patience| {
            let address = SocketAddr::new(cluster_ip(family, number), 80);
            let dial = || TcpStream::connect_timeout(&address, patience);
            self.client.run(dial).unwrap_err().kind()
        };
        // The kernel may hear of the first refusal while it is still busy with `connect`, and then
        // heeds only the one of its next attempt, a second later.
        assert_eq!(
            failure(UNSERVED, PATIENCE),
            ErrorKind::ConnectionRefused,
            "{family}"
        );
        let a_while = Duration::from_millis(300);
        let lost = failure(ASTRAY, a_while);
        assert_ne!(lost, ErrorKind::ConnectionRefused, "{family}");
    }
}

/// Who answers.
fn dial(protocol: Protocol, address: SocketAddr) -> String {
    match protocol {
        Protocol::Tcp => Connection::open(address).unwrap().backend,
        Protocol::Udp => udp_echo(&udp(0, address).unwrap(), b"hello").unwrap(),
        Protocol::Sctp => {
            let mut association = Association::open(0, address, PATIENCE).unwrap();
            let answer = association.exchange(b"hello").unwrap();
            association.close().unwrap();
            let answer = String::from_utf8(answer).unwrap();
            answer.lines().next().unwrap().to_owned()
        }
    }
}

fn serve(flavour: Flavour) {
    let world = World::new();
    for family in Family::ALL {
        let _took = load(world.node(), flavour, family, &world.ports(family)).unwrap();
        world.expect_both(family);
        world.expect_none(family);
    }
}

#[test]
fn iptables_rules_serve() {
    serve(Flavour::Iptables);
}

#[test]
fn old_iptables_rules_serve() {
    serve(Flavour::IptablesLegacy);
}

#[test]
fn nftables_rules_serve() {
    serve(Flavour::Nftables);
}

/// Enough for the nftables mode to need several parts.
const MANY: u16 = 1_100;

/// Services of all protocols, with endpoints and without.
fn many(family: Family) -> Vec<Port> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocols = protocols.into_iter().cycle();
    let port = |(number, protocol): (u16, Protocol)| Port {
        name: format!("bench/svc-{number:05}:p"),
        protocol,
        cluster_ip: cluster_ip(family, (number % 250) as u8),
        port: 1_000 + number,
        node_port: Some(30_000 + number),
        endpoints: (0..number % 4)
            .map(|at| SocketAddr::new(nobody(family), 8_000 + at))
            .collect(),
    };
    (0..MANY).zip(protocols).map(port).collect()
}

fn written(flavour: Flavour, family: Family) -> String {
    let mut text = Vec::new();
    write_rules(flavour, &Node::of_testbed(family), &many(family), &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// What a command shows on a node.
fn shown(node: &Namespace, words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let output = in_namespace(node, || command.output()).unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Lines of `iptables-save`, table by table, each of these sorted, without counters.
fn saved(text: &str) -> Vec<String> {
    let is_rule = |line: &&str| !line.starts_with('#');
    let without_counters = |line: &str| match line.split_once(" [") {
        Some((chain, _)) if chain.starts_with(':') => chain.to_owned(),
        _ => line.to_owned(),
    };
    let mut tables: Vec<Vec<String>> = text
        .split_inclusive("COMMIT\n")
        .map(|table| {
            table
                .lines()
                .filter(is_rule)
                .map(without_counters)
                .collect()
        })
        .collect();
    tables.iter_mut().for_each(|table| table.sort_unstable());
    tables.sort_unstable();
    tables.concat()
}

#[test]
fn iptables_has_the_rules_that_were_written() {
    let testbed = Testbed::bare().unwrap();
    let node = &testbed.node().namespace;
    for (flavour, family, save) in [
        (Flavour::Iptables, Family::Ipv4, "iptables-nft-save"),
        (Flavour::Iptables, Family::Ipv6, "ip6tables-nft-save"),
        (
            Flavour::IptablesLegacy,
            Family::Ipv4,
            "iptables-legacy-save",
        ),
        (
            Flavour::IptablesLegacy,
            Family::Ipv6,
            "ip6tables-legacy-save",
        ),
    ] {
        let _took = load(node, flavour, family, &many(family)).unwrap();
        let (real, expected) = (shown(node, &[save]), written(flavour, family));
        let (real, expected) = (saved(&real), saved(&expected));
        for (real, expected) in real.iter().zip(&expected) {
            assert_eq!(real, expected, "{save}");
        }
        assert_eq!(real.len(), expected.len(), "{save}");
    }
}

#[test]
fn nftables_rules_are_the_same_whether_loaded_at_once_or_in_parts() {
    let testbed = Testbed::bare().unwrap();
    let (node, other) = (&testbed.node().namespace, testbed.outside());
    for (family, name) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
        let _took = load(node, Flavour::Nftables, family, &many(family)).unwrap();
        let mut command = Command::new("nft");
        command.args(["-f", "-"]);
        let mut nft = testbed.start(other, command).unwrap();
        nft.tell(&written(Flavour::Nftables, family)).unwrap();
        nft.end_input();
        let ended = nft.wait(PATIENCE * 6).unwrap();
        assert!(ended.status.success(), "{}", ended.said);
        let list = ["nft", "list", "table", name, "kube-proxy"];
        let (parts, whole) = (shown(node, &list), shown(other, &list));
        for (at, (parts, whole)) in parts.lines().zip(whole.lines()).enumerate() {
            assert_eq!(parts, whole, "line {at} of {name}");
        }
        assert_eq!(parts.len(), whole.len());
        assert!(whole.lines().count() > 2 * usize::from(MANY));
    }
}
