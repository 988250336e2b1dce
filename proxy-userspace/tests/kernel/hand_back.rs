//! `beeline cleanup` hands traffic back to kube-proxy's rules, and no connection notices.
//!
//! The rules are those of a real kube-proxy in nftables mode, for a hundred Services. One of them
//! is Beeline's as well, with the same endpoints.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use xtask::testbed::{
    Beeline, Daemon, Layout, NODE_IPV4, Namespace, Pod, REMOTE_NODE_NAME, Serve, Server, Testbed,
};

use crate::client::Connection;
use crate::cluster::beeline;
use crate::load::{Load, PATIENCE, PAUSE};

/// The Service that both know: number 20 of the dump.
const CLUSTER_IP: [u8; 4] = [10, 96, 1, 20];
const NODE_PORT: u16 = 30_020;
const TARGET_PORT: u16 = 8080;

/// What kube-proxy has besides for a NodePort, and for the same Service's datagrams.
const MORE_RULES: &str = "
    add chain ip kube-proxy external-svc-00020
    add rule ip kube-proxy external-svc-00020 meta mark set meta mark | 0x4000
    add rule ip kube-proxy external-svc-00020 goto service-JEGUCDSC-bench/svc-00020/tcp/p80
    add element ip kube-proxy nodeport-ips { 172.18.0.2 }
    add element ip kube-proxy service-nodeports { tcp . 30020 : goto external-svc-00020 }
    add chain ip kube-proxy service-svc-00020-udp
    add rule ip kube-proxy service-svc-00020-udp meta l4proto udp dnat ip to 10.244.1.101:8080
    add element ip kube-proxy service-ips { 10.96.1.20 . udp . 80 : goto service-svc-00020-udp }
";

/// What there is on a node without kube-proxy: the kubelet's rules have the kernel track every
/// connection from its first packet.
const KUBELET: &str = "
    table inet kubelet {
        chain firewall { type filter hook input priority filter; ct state invalid counter; }
    }
";

struct World {
    daemon: Daemon,
    _servers: Vec<Server>,
    outside: Pod,
    pod: Pod,
    testbed: Testbed,
}

impl World {
    fn new() -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        testbed.add_remote_node(Layout::Routed, 1500).unwrap();
        let outside = testbed.machine("client", 20).unwrap();
        let pod = testbed.pod("pod").unwrap();
        let far = ["far-1", "far-2", "far-3", "far-4"].map(|it| testbed.remote_pod(it).unwrap());
        let zero = second_address(&testbed, &far[0]);
        let backends = [&[zero][..], &far].concat();
        let servers = backends
            .iter()
            .map(|it| it.serve(Serve::Echo, TARGET_PORT).unwrap());
        let servers = servers.collect();
        let node = &testbed.node().namespace;
        nft(&testbed, node, KUBELET);
        std::fs::write(
            testbed.manifests().join("svc-00020.json"),
            manifest(&backends).to_string(),
        )
        .unwrap();
        let daemon = run(&testbed);
        Self {
            daemon,
            _servers: servers,
            outside,
            pod,
            testbed,
        }
    }

    fn node(&self) -> &Namespace {
        &self.testbed.node().namespace
    }

    fn beeline(&self) -> Beeline<'_> {
        beeline(&self.testbed)
    }

    /// Puts kube-proxy's rules in force.
    fn start_kube_proxy(&self) {
        let dump = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../xtask/data/kube-proxy/nftables-100.txt.gz");
        let mut unpack = Command::new("sh");
        let script = "zcat \"$0\" | nft -f -";
        let _same = unpack.args(["-c", script]).arg(dump);
        let ended = self.testbed.call(self.node(), unpack, PATIENCE).unwrap();
        assert!(ended.status.success(), "{}", ended.said);
        nft(&self.testbed, self.node(), MORE_RULES);
    }

    /// Who dials, and what.
    fn clients(&self) -> [(&Namespace, SocketAddr); 3] {
        let service = SocketAddr::from((CLUSTER_IP, 80));
        let node_port = SocketAddr::from((NODE_IPV4, NODE_PORT));
        [
            (&self.pod.namespace, service),
            (self.node(), service),
            (&self.outside.namespace, node_port),
        ]
    }

    fn outcome(&self, reason: &str) -> u64 {
        let output = self.beeline().call(["status", "-o", "json"]).unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let outcomes = status["outcomes"].as_array().unwrap();
        let found = outcomes.iter().find(|it| it["reason"] == reason);
        found.unwrap()["packets"].as_u64().unwrap()
    }

    fn n_flows(&self) -> usize {
        let view = self.beeline().json(["flows"]).unwrap();
        let flows = view["flows"].as_array().unwrap();
        flows.iter().filter(|it| is_open(it)).count()
    }
}

fn is_open(flow: &Value) -> bool {
    !["time-wait", "close"].contains(&flow["state"].as_str().unwrap())
}

fn run(testbed: &Testbed) -> Daemon {
    let args = [
        "--service-cidr",
        "10.96.0.0/16",
        "--cluster-cidr",
        "10.244.0.0/16",
        "--nodeport-addresses",
        "",
        "--timeout",
        "udp-stream=2s",
        "--timeout",
        "udp-replied=2s",
    ];
    beeline(testbed).run(args).unwrap()
}

/// The endpoint 10.244.1.100, at the same pod.
fn second_address(testbed: &Testbed, pod: &Pod) -> Pod {
    let second = Pod {
        ipv4: [10, 244, 1, 100].into(),
        ipv6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x100),
        ..pod.clone()
    };
    let Pod { ipv4, ipv6, .. } = &second;
    let node = &testbed.remote().unwrap().namespace;
    node.ip([format!("route add {ipv4}/32 dev {}", pod.device)])
        .unwrap();
    pod.namespace
        .ip([
            format!("address add {ipv4}/32 dev eth0"),
            format!("address add {ipv6}/128 dev eth0 nodad"),
        ])
        .unwrap();
    second
}

fn nft(testbed: &Testbed, place: &Namespace, rules: &str) {
    let mut command = Command::new("nft");
    let _same = command.args(["-f", "-"]);
    let mut program = testbed.start(place, command).unwrap();
    program.tell(rules).unwrap();
    program.end_input();
    let ended = program.wait(PATIENCE).unwrap();
    assert!(ended.status.success(), "{}", ended.said);
}

fn manifest(backends: &[Pod]) -> Value {
    let port = |protocol: &str| json!({ "name": protocol, "protocol": protocol, "port": 80 });
    let mut ports = ["TCP", "UDP"].map(port);
    ports[0]["nodePort"] = NODE_PORT.into();
    let targets =
        ["TCP", "UDP"].map(|it| json!({ "name": it, "protocol": it, "port": TARGET_PORT }));
    let cluster_ip = IpAddr::from(CLUSTER_IP);
    let endpoints = backends
        .iter()
        .map(|pod| json!({ "addresses": [pod.ipv4], "nodeName": REMOTE_NODE_NAME }));
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "svc-00020", "namespace": "bench" },
            "spec": {
                "type": "NodePort", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
                "ipFamilies": ["IPv4"], "ports": ports,
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "svc-00020", "namespace": "bench",
                "labels": { "kubernetes.io/service-name": "svc-00020" },
            },
            "addressType": "IPv4", "ports": targets,
            "endpoints": endpoints.collect::<Vec<_>>(),
        },
    ] })
}

#[test]
fn all_live_through_the_hand_back_to_kube_proxy() {
    let world = World::new();
    let load = Load::default();
    std::thread::scope(|scope| {
        let mut jobs = Vec::new();
        for (place, address) in world.clients() {
            jobs.push(load.talk(scope, place, address));
            jobs.push(load.dial(scope, place, address));
            if address.port() != NODE_PORT {
                jobs.push(load.send(scope, place, address));
            }
        }
        load.watch(jobs, |jobs| {
            assert!(world.daemon.stop().is_some());
            world.start_kube_proxy();
            load.go_on(jobs);
            assert_eq!(world.outcome("handed-back"), 0);
            let cleanup = world.beeline().command(["cleanup", "--wait", "5m"]);
            let cleanup = world.testbed.start(world.node(), cleanup).unwrap();
            load.go_on(jobs);
            load.go_on(jobs);
            assert!(world.outcome("handed-back") > 30);
            // Three connections, and two flows of datagrams.
            assert_eq!(world.n_flows(), 5, "{}", cleanup.said());
            assert!(cleanup.ended().unwrap().is_none(), "{}", cleanup.said());
            load.stop_long.store(true, Ordering::Relaxed);
            let ended = cleanup.wait(PATIENCE).unwrap();
            assert!(ended.status.success(), "{}", ended.said);
            let waited = ended.said.contains("waiting for 3 connections, 2 flows");
            assert!(waited && !ended.said.contains(" cut\n"), "{}", ended.said);
            let named = ended
                .said
                .contains("kube-proxy's rules serve (nftables, IPv4");
            assert!(named, "{}", ended.said);
            assert!(!world.testbed.bpffs().join("beeline").exists());
            // A while longer with nobody but kube-proxy.
            std::thread::sleep(PAUSE * 20);
        });
    });
}

#[test]
fn an_interrupted_hand_back_is_taken_again_by_a_daemon() {
    let mut world = World::new();
    world.start_kube_proxy();
    let address = SocketAddr::from((CLUSTER_IP, 80));
    let pod = world.pod.clone();
    let mut long = pod.run(|| Connection::open(address).unwrap());
    assert!(world.daemon.stop().is_some());
    let cleanup = || {
        let command = world.beeline().command(["cleanup"]);
        world.testbed.start(world.node(), command).unwrap()
    };
    let program = cleanup();
    let start = Instant::now();
    while !program.said().contains("waiting for 1 connections") {
        assert!(start.elapsed() < PATIENCE, "{}", program.said());
        std::thread::sleep(PAUSE);
    }
    assert!(
        program.said().contains("TCP from 10.244.0."),
        "{}",
        program.said()
    );
    kill(Pid::from_raw(program.id().cast_signed()), Signal::SIGINT).unwrap();
    let ended = program.wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.said);
    assert!(ended.said.contains("stays handed back"), "{}", ended.said);

    let dial = || pod.run(|| Connection::open(address).unwrap().echo(b"new").unwrap());
    long.echo(b"goes on").unwrap();
    let before = world.outcome("handed-back");
    dial();
    assert!(world.outcome("handed-back") > before);
    assert_eq!(world.n_flows(), 1);

    let program = cleanup();
    std::thread::sleep(PAUSE * 10);
    world.daemon = run(&world.testbed);
    let ended = program.wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.said);
    assert!(
        ended.said.contains("a daemon has started meanwhile"),
        "{}",
        ended.said
    );
    let (before, n_new) = (world.outcome("handed-back"), world.outcome("new-flow"));
    dial();
    assert_eq!(world.outcome("handed-back"), before);
    assert!(world.outcome("new-flow") > n_new);
    long.echo(b"goes on").unwrap();

    assert!(world.daemon.stop().is_some());
    let ended = world.beeline().call(["cleanup", "--wait", "1s"]).unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(
        ended.status.success() && said.contains("1 connections and flows cut"),
        "{said}"
    );
}
