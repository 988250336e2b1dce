//! Beeline takes over from kube-proxy under load, and loses nothing.
//!
//! The rules are like kube-proxy's own: see `take_over_rules`.

use std::process::Command;
use std::time::Duration;

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::load::{Kind, Load, Stream};
use xtask::testbed::{
    Daemon, Layout, NODE_IPV4, NODE_IPV6, NODE_NAME, Namespace, Pod, Serve, Server, Testbed,
};

use crate::cluster::beeline;
use crate::loss_crowd::expect_no_loss;
use crate::socket_world::until;
use crate::take_over_rules::{
    Mode, TARGET_PORT, TCP, UDP, cluster_ip, counted, node_port, tables, without_kube_proxys,
};

/// Long enough for UDP flows to count as streams, and for every client to have said something.
const WHILE: Duration = Duration::from_millis(2500);
/// How long what kube-proxy left may take to go once nobody needs it.
const GONE: Duration = Duration::from_secs(100);

/// A node on which kube-proxy has been serving. Fields are dropped in this order.
pub(crate) struct World {
    pub(crate) mode: Mode,
    _servers: Vec<Server>,
    pub(crate) backends: [Pod; 2],
    pod: Pod,
    outside: Pod,
    pub(crate) testbed: Testbed,
}

impl World {
    pub(crate) fn new(mode: Mode) -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        let pod = testbed.pod("client").unwrap();
        let outside = testbed.machine("far-off", 30).unwrap();
        let backends = ["web-0", "web-1"].map(|name| testbed.pod(name).unwrap());
        let world = Self {
            mode,
            _servers: backends
                .iter()
                .map(|pod| pod.serve(Serve::Echo, TARGET_PORT).unwrap())
                .collect(),
            backends,
            pod,
            outside,
            testbed,
        };
        world.forget_soon();
        let services = [(TCP, "TCP"), (UDP, "UDP")].map(|it| world.manifest(it));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": services.concat() });
        let file = world.testbed.manifests().join("services.json");
        std::fs::write(file, list.to_string()).unwrap();
        world.mode.load_others(&world.testbed, "before");
        world.mode.load(&world.testbed, &world.backends);
        world.mode.load_others(&world.testbed, "after");
        world
    }

    pub(crate) fn node(&self) -> &Namespace {
        &self.testbed.node().namespace
    }

    /// Has netfilter forget connections soon after their ends.
    fn forget_soon(&self) {
        for state in ["fin_wait", "close_wait", "last_ack", "time_wait", "close"] {
            let name = format!("net/netfilter/nf_conntrack_tcp_timeout_{state}");
            self.node().set(&name, "5").unwrap();
        }
        for state in ["timeout", "timeout_stream"] {
            let name = format!("net/netfilter/nf_conntrack_udp_{state}");
            self.node().set(&name, "30").unwrap();
        }
    }

    /// The Service and its endpoints.
    fn manifest(&self, (number, protocol): (u8, &str)) -> Vec<Value> {
        let name = format!("svc-{number:05}");
        let ips = Family::ALL.map(|family| cluster_ip(family, number));
        let port = json!({ "name": "p80", "protocol": protocol, "port": 80,
            "nodePort": node_port(number) });
        let slice = |family: Family| {
            let endpoints = self.backends.each_ref().map(|pod| {
                json!({ "addresses": [pod.address(family)], "nodeName": NODE_NAME,
                    "conditions": { "ready": true } })
            });
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", family.name().to_lowercase()),
                    "namespace": "bench",
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": family.name(),
                "ports": [{ "name": "p80", "protocol": protocol, "port": TARGET_PORT }],
                "endpoints": endpoints,
            })
        };
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "bench" },
            "spec": {
                "type": "NodePort",
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilies": Family::ALL.map(Family::name),
                "ports": [port],
            },
        });
        [&[service][..], &Family::ALL.map(slice)].concat()
    }

    /// Everybody, by everything that serves.
    pub(crate) fn streams(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        for family in Family::ALL {
            let ip = |number| (cluster_ip(family, number).to_string(), 80);
            let at_node = |number| match family {
                Family::Ipv4 => (NODE_IPV4.to_string(), node_port(number)),
                Family::Ipv6 => (NODE_IPV6.to_string(), node_port(number)),
            };
            for (who, from, to) in [
                ("pod", &self.pod.namespace, [ip(TCP), ip(UDP)]),
                (
                    "pod at node port",
                    &self.pod.namespace,
                    [TCP, UDP].map(at_node),
                ),
                ("node", self.node(), [ip(TCP), ip(UDP)]),
                ("outside", &self.outside.namespace, [TCP, UDP].map(at_node)),
            ] {
                let [tcp, udp] = to;
                for (kind, (ip, port), per_second) in [
                    (Kind::TcpShort, tcp.clone(), 20.0),
                    (Kind::TcpLong { sockets: 4 }, tcp, 40.0),
                    (Kind::UdpShort, udp.clone(), 20.0),
                    (Kind::UdpLong { sockets: 4 }, udp, 40.0),
                ] {
                    streams.push(Stream {
                        name: format!("{who}, {}, {kind:?}", family.name()),
                        from: from.clone(),
                        to: (ip.parse::<std::net::IpAddr>().unwrap(), port).into(),
                        kind,
                        per_second,
                    });
                }
            }
        }
        streams
    }

    /// Starts Beeline beside kube-proxy.
    pub(crate) fn start(&self, socket_lb: &'static str, args: &[&str]) -> Daemon {
        let cidrs = [
            "--service-cidr",
            "10.96.0.0/16",
            "--service-cidr",
            "fd00:10:96::/96",
        ];
        let beeline = beeline(&self.testbed).socket_lb(socket_lb);
        beeline.run([&cidrs[..], args].concat()).unwrap()
    }

    /// What `beeline migrate` says.
    fn migrate(&self, args: &[&str]) -> Result<Value, String> {
        let args = [&["migrate", "-o", "json"], args].concat();
        let output = beeline(&self.testbed).call(args).unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(String::from_utf8(output.stderr).unwrap())
        }
    }

    /// Kinds and tables of kube-proxy's rules that were found.
    fn expect_tables(&self, done: &Value) {
        let tables = done["tables"].as_array().unwrap();
        let kinds: Vec<_> = tables
            .iter()
            .map(|it| it["kind"].as_str().unwrap())
            .collect();
        match self.mode {
            Mode::Nftables => assert_eq!(kinds, ["nftables"; 2], "{done}"),
            Mode::IptablesNft => assert_eq!(kinds, ["iptables-nft"; 6], "{done}"),
            Mode::IptablesLegacy => assert_eq!(kinds, ["iptables-legacy"; 6], "{done}"),
        }
        if self.mode != Mode::Nftables {
            let chains: u64 = tables.iter().map(|it| it["chains"].as_u64().unwrap()).sum();
            // Of each family: in `nat` five, one for each Service and each endpoint, and two for
            // NodePorts; six in `filter`, one in `mangle`.
            let nat = 5 + 100 + (98 * 5 + 2 * 2) + 2;
            assert_eq!(chains, 2 * (nat + 6 + 1), "{done}");
        }
    }

    /// A program that goes by kube-proxy's name and does nothing.
    fn start_kube_proxy(&self) -> xtask::testbed::Program {
        let program = self.testbed.manifests().join("../kube-proxy");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut command = Command::new(program);
        command.arg("1000");
        self.testbed.start(self.node(), command).unwrap()
    }
}

/// From kube-proxy's rules to Beeline, and then the rules go: nobody notices.
fn take_over(mode: Mode, socket_lb: &'static str) -> (World, Daemon) {
    let world = World::new(mode);
    let before = mode.rules(world.node());
    let load = Load::start(world.streams()).unwrap();
    std::thread::sleep(WHILE);
    let daemon = world.start(socket_lb, &[]);
    std::thread::sleep(WHILE);
    assert_eq!(mode.rules(world.node()), before);
    world.expect_tables(&world.migrate(&["--dry-run"]).unwrap());
    assert_eq!(mode.rules(world.node()), before);
    let n_counted = (mode == Mode::IptablesLegacy).then(|| counted(world.node(), "counts after"));
    let done = world.migrate(&[]).unwrap();
    world.expect_tables(&done);
    let rest = mode.rules(world.node());
    assert_eq!(rest, without_kube_proxys(&before));
    if let Some(n_counted) = n_counted {
        assert!(n_counted > 0 && counted(world.node(), "counts after") >= n_counted);
    }
    std::thread::sleep(WHILE);
    let again = world.migrate(&[]).unwrap();
    assert_eq!(again["tables"], json!([]));
    assert_eq!(mode.rules(world.node()), rest);
    let names = tables(world.node());
    for family in ["ip", "ip6"] {
        assert!(
            names.contains(&format!("table {family} beeline")),
            "{names:?}"
        );
        assert!(
            !names.contains(&format!("table {family} kube-proxy")),
            "{names:?}"
        );
    }
    expect_no_loss(&load.stop().unwrap());
    (world, daemon)
}

#[test]
fn nothing_is_lost_where_nftables_rules_served() {
    let (world, daemon) = take_over(Mode::Nftables, "off");
    // Those who opened connections have ended, and so has what netfilter remembers of them.
    let is_gone = || !tables(world.node()).iter().any(|it| it.contains("beeline"));
    until("what keeps connections is gone", GONE, is_gone);
    assert_eq!(daemon.status()["problems"], json!([]));
    let flows = beeline(&world.testbed).json(["flows"]).unwrap();
    let is_left_alone = |flow: &&Value| flow["backend"] == flow["frontend"];
    let left_alone: Vec<_> = flows["flows"]
        .as_array()
        .unwrap()
        .iter()
        .filter(is_left_alone)
        .collect();
    assert!(left_alone.is_empty(), "{left_alone:?}");
}

#[test]
fn nothing_is_lost_where_nftables_rules_served_with_the_socket_edge() {
    drop(take_over(Mode::Nftables, "all"));
}

#[test]
fn nothing_is_lost_where_iptables_made_nf_tables_rules() {
    drop(take_over(Mode::IptablesNft, "off"));
}

#[test]
fn nothing_is_lost_where_old_iptables_served() {
    drop(take_over(Mode::IptablesLegacy, "all"));
}

#[test]
fn rules_are_left_while_kube_proxy_runs() {
    let world = World::new(Mode::Nftables);
    let serves = || {
        tables(world.node())
            .iter()
            .any(|it| it.contains("kube-proxy"))
    };
    let refusal = world.migrate(&[]).unwrap_err();
    assert!(refusal.contains("no daemon is running"), "{refusal}");
    let kube_proxy = world.start_kube_proxy();
    let daemon = world.start("off", &["--replace-kube-proxy"]);
    let told = |text: &str| {
        let problems = daemon.status()["problems"].to_string();
        text.is_empty() && problems == "[]" || !text.is_empty() && problems.contains(text)
    };
    let runs = format!("it runs (process {})", kube_proxy.id());
    until("it is told that kube-proxy runs", GONE, || told(&runs));
    let refusal = world.migrate(&[]).unwrap_err();
    assert!(refusal.contains("kube-proxy runs"), "{refusal}");
    assert!(serves());
    drop(kube_proxy);
    until("the rules are removed once it has ended", GONE, || {
        !serves()
    });
    until("nothing is wrong", GONE, || told(""));
    let log = daemon.log();
    assert!(
        log.contains("removed kube-proxy's rules: nftables, IPv6"),
        "{log}"
    );
    // It comes back: its rules are not removed without being asked for.
    world.mode.load(&world.testbed, &world.backends);
    until("it is told that rules are here", GONE, || {
        told("its rules are here")
    });
    assert!(serves());
    world.expect_tables(&world.migrate(&[]).unwrap());
    assert!(!serves());
    until("nothing is wrong again", GONE, || told(""));
}
