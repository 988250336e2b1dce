//! `beeline0`, the routes to it and the kernel's settings: made, kept, followed, removed.

use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::Value;
use xtask::testbed::{Beeline, Daemon, Layout, Namespace, Testbed, in_namespace};

use crate::client::Connection;
use crate::cluster::{Service, beeline, serve_all};

const V4: &str = "10.96.0.0/16";
const V6: &str = "fd00:10:96::/112";
const ACCEPT_LOCAL: &str = "net/ipv4/conf/lo/accept_local";

/// How long a change on the node may take to be followed.
const FOLLOWED: Duration = Duration::from_secs(10);

fn run(beeline: &Beeline<'_>, more: &[&str]) -> Daemon {
    let args = ["--service-cidr", V4, "--service-cidr", V6];
    beeline.run([&args, more].concat()).unwrap()
}

/// Waits until what `ip` says of the node is as it should be.
fn wait_for(node: &Namespace, command: &str, expected: impl Fn(&str) -> bool) {
    let start = Instant::now();
    loop {
        let said = node.ask_ip(command).unwrap();
        if expected(&said) {
            return;
        }
        assert!(start.elapsed() < FOLLOWED, "`ip {command}` says:\n{said}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn routes(node: &Namespace) -> [String; 2] {
    ["-4", "-6"].map(|family| {
        let all = node.ask_ip(&format!("{family} route show")).unwrap();
        let ours = all.lines().filter(|line| line.contains("beeline0"));
        let ours = ours.filter(|line| line.contains("proto 190"));
        ours.map(|line| format!("{}\n", line.trim())).collect()
    })
}

fn assert_routed(node: &Namespace) {
    let [v4, v6] = routes(node);
    assert!(v4.starts_with(V4) && v4.contains("src 172.18.0.2"), "{v4}");
    assert!(
        v6.starts_with(V6) && v6.contains("src fd00:172:18::2"),
        "{v6}"
    );
    assert_eq!((v4.lines().count(), v6.lines().count()), (1, 1), "{v4}{v6}");
}

fn names(status: &Value, field: &str) -> Vec<String> {
    let names = status[field].as_array().into_iter().flatten();
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn testbed() -> Testbed {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    testbed
}

#[test]
fn it_is_made_at_start_kept_over_restarts_and_removed_by_cleanup() {
    let testbed = testbed();
    let node = &testbed.node().namespace;
    let beeline = beeline(&testbed);
    assert_eq!(node.get(ACCEPT_LOCAL).unwrap(), "0");
    let daemon = run(&beeline, &[]);
    let status = daemon.status();
    assert_eq!(names(&status, "node_devices"), ["eth0"], "{status}");
    assert_eq!(
        names(&status, "host_devices"),
        ["beeline0", "lo"],
        "{status}"
    );
    assert_eq!(
        status["problems"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    let link = node.ask_ip("link show beeline0").unwrap();
    assert!(
        link.contains("NOARP") && link.contains("UP") && link.contains("mtu 1500"),
        "{link}"
    );
    let addresses = node.ask_ip("address show beeline0").unwrap();
    assert!(!addresses.contains("inet"), "{addresses}");
    assert_eq!(node.get(ACCEPT_LOCAL).unwrap(), "1");
    assert_eq!(
        node.get("net/ipv6/conf/beeline1/disable_ipv6").unwrap(),
        "1"
    );
    assert_routed(node);
    let seen = beeline.json(["status"]).unwrap();
    assert_eq!(seen["healthy"], true, "{seen}");

    let before = node.ask_ip("-o link show type veth").unwrap();
    assert!(daemon.kill().is_some());
    assert_routed(node);
    let daemon = run(&beeline, &["--attach", "clsact"]);
    assert_eq!(node.ask_ip("-o link show type veth").unwrap(), before);
    assert_routed(node);
    let seen = beeline.json(["status"]).unwrap();
    assert_eq!(seen["healthy"], true, "{seen}");
    assert!(daemon.stop().is_some());

    let output = beeline.call(["cleanup", "--now"]).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("device beeline0 removed"), "{said}");
    assert!(
        said.contains("net.ipv4.conf.lo.accept_local = 0 again"),
        "{said}"
    );
    let links = node.ask_ip("link show").unwrap();
    assert!(
        !links.contains("beeline0") && !links.contains("beeline1"),
        "{links}"
    );
    assert_eq!(routes(node), ["", ""]);
    assert_eq!(node.get(ACCEPT_LOCAL).unwrap(), "0");
    let seen = beeline.call(["status", "-o", "json"]).unwrap();
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["attached"].as_array().map(Vec::len), Some(0), "{seen}");
}

#[test]
fn processes_of_the_node_reach_a_service_by_it() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let pod = testbed.pod("web").unwrap();
    let _servers = serve_all(&pod);
    let service = Service::new("web", 10, std::slice::from_ref(&pod));
    service.write(&testbed);
    let node = &testbed.node().namespace;
    let _daemon = run(&beeline(&testbed), &[]);
    for family in Family::ALL {
        in_namespace(node, || {
            let mut connection = Connection::open(service.address(family)).unwrap();
            assert_eq!(connection.backend, "web");
            connection.echo(b"there and back").unwrap();
        });
    }
}

#[test]
fn what_somebody_takes_away_is_put_back() {
    let testbed = testbed();
    let node = &testbed.node().namespace;
    let _daemon = run(&beeline(&testbed), &[]);
    let is_routed = |said: &str| said.contains("beeline0") && said.contains("src");
    node.ip([format!("route delete {V4} dev beeline0")])
        .unwrap();
    wait_for(node, "-4 route show", is_routed);
    node.ip([format!("route delete {V6} dev beeline0")])
        .unwrap();
    wait_for(node, "-6 route show", is_routed);
    node.ip(["link delete beeline0"]).unwrap();
    wait_for(node, "-4 route show", is_routed);
    wait_for(node, "-6 route show", is_routed);
    assert_routed(node);
    node.ip(["link set beeline0 down"]).unwrap();
    wait_for(node, "-4 route show", is_routed);
    wait_for(node, "-6 route show", is_routed);
}

#[test]
fn it_follows_the_way_outs_mtu_and_the_nodes_addresses() {
    let testbed = testbed();
    let node = &testbed.node().namespace;
    let _daemon = run(&beeline(&testbed), &[]);
    node.ip(["link set eth0 mtu 1400"]).unwrap();
    wait_for(node, "link show beeline0", |said| said.contains("mtu 1400"));
    // The kernel takes a route away with the address that is its source.
    node.ip([
        "address add 172.18.0.9/16 dev eth0",
        "address delete 172.18.0.2/24 dev eth0",
    ])
    .unwrap();
    wait_for(node, "-4 route show", |said| {
        said.contains(V4) && said.contains("src 172.18.0.9")
    });
    node.ip(["address delete fd00:172:18::2/64 dev eth0"])
        .unwrap();
    wait_for(node, "-6 route show", |said| {
        said.contains(V6) && !said.contains("src fd00")
    });
}

#[test]
fn others_routes_and_devices_are_left_alone() {
    let testbed = testbed();
    let node = &testbed.node().namespace;
    let theirs = "10.96.0.0/16 via 172.18.0.1 dev eth0";
    node.ip([
        format!("route add {theirs}"),
        "link add beeline0 type bridge".to_owned(),
    ])
    .unwrap();
    let daemon = run(&beeline(&testbed), &[]);
    let status = daemon.status().to_string();
    assert!(status.contains("no veth pair"), "{status}");
    assert!(daemon.stop().is_some());
    node.ip(["link delete beeline0"]).unwrap();
    let daemon = run(&beeline(&testbed), &[]);
    assert_routed(node);
    assert!(daemon.stop().is_some());
    let output = beeline(&testbed).call(["cleanup", "--now"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let routes = node.ask_ip("-4 route show").unwrap();
    assert!(routes.contains(theirs), "{routes}");
}

#[test]
fn a_node_without_ipv6_misses_nothing() {
    let testbed = testbed();
    let node = &testbed.node().namespace;
    node.set("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let daemon = run(&beeline(&testbed), &[]);
    let status = daemon.status();
    assert_eq!(
        status["problems"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    let [v4, v6] = routes(node);
    assert!(v4.starts_with(V4) && v6.is_empty(), "{v4}{v6}");
}
