//! What this node is to its maps: its addresses as they come and go, its devices and their roles.

use std::collections::BTreeMap;

use serde_json::Value;
use xtask::testbed::{Daemon, Layout, Testbed};

use crate::cluster::{Service, beeline};

fn testbed(layout: Layout) -> Testbed {
    let testbed = Testbed::new(layout).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    testbed
}

/// The node's addresses, and whether each accepts NodePorts.
fn addresses(status: &Value) -> BTreeMap<String, bool> {
    let all = status["node_addresses"].as_array().into_iter().flatten();
    all.map(|it| {
        let address = it["address"].as_str().unwrap_or_default().to_owned();
        (address, it["node_ports"] == true)
    })
    .collect()
}

fn wait_for(daemon: &Daemon, what: &str, expected: &[(&str, bool)]) {
    let expected: BTreeMap<_, _> = expected
        .iter()
        .map(|(address, accepts)| ((*address).to_owned(), *accepts))
        .collect();
    daemon
        .wait_until(what, |status| addresses(status) == expected)
        .unwrap();
}

#[test]
fn addresses_are_followed_as_they_come_and_go() {
    let testbed = testbed(Layout::Bridge);
    let node = &testbed.node().namespace;
    let args = ["--nodeport-addresses", "172.18.0.0/24,fd00:172:18::/64"];
    let daemon = beeline(&testbed).run(args).unwrap();
    let uplink = [("172.18.0.2", true), ("fd00:172:18::2", true)];
    let bridge = [("10.244.0.1", false), ("fd00:10:244::1", false)];
    wait_for(&daemon, "at start", &[uplink, bridge].concat());
    node.ip([
        "address add 172.18.0.77/32 dev lo",
        "address add fd00:172:18::77/128 dev lo",
    ])
    .unwrap();
    let more = [("172.18.0.77", true), ("fd00:172:18::77", true)];
    wait_for(&daemon, "more", &[uplink, bridge, more].concat());
    node.ip(["address delete 172.18.0.77/32 dev lo", "link delete cni0"])
        .unwrap();
    wait_for(&daemon, "fewer", &[&uplink[..], &more[1..]].concat());
    // Not before it is sure that nobody else has it.
    node.set("net/ipv6/conf/all/accept_dad", "1").unwrap();
    node.set("net/ipv6/conf/eth0/accept_dad", "1").unwrap();
    node.ip(["address add fd00:172:18::99/64 dev eth0"])
        .unwrap();
    let sure = [("fd00:172:18::99", true)];
    wait_for(&daemon, "sure", &[&uplink[..], &more[1..], &sure].concat());
    let tentative = node.ask_ip("-6 address show dev eth0 tentative").unwrap();
    assert_eq!(tentative, "");
}

#[test]
fn loopback_and_link_local_addresses_are_not_for_node_ports() {
    let testbed = testbed(Layout::Routed);
    let node = &testbed.node().namespace;
    node.ip(["address add 169.254.20.10/32 dev lo"]).unwrap();
    let daemon = beeline(&testbed).run(["--nodeport-addresses", ""]).unwrap();
    let expected = [
        ("172.18.0.2", true),
        ("fd00:172:18::2", true),
        ("169.254.20.10", false),
    ];
    wait_for(&daemon, "at start", &expected);
}

#[test]
fn devices_get_the_programs_of_their_roles() {
    let testbed = testbed(Layout::Bridge);
    let node = &testbed.node().namespace;
    let pod = testbed.pod("client").unwrap();
    let outside = testbed.outside().name();
    node.ip([
        format!("link add up1 type veth peer name down1 netns {outside}"),
        "link add here1 type veth peer name here2".to_owned(),
    ])
    .unwrap();
    let beeline = beeline(&testbed);
    let daemon = beeline.run(["--pod-devices", "!up*"]).unwrap();
    let programs = |device: &str| {
        let seen = beeline.json(["status"]).unwrap();
        let all = seen["attached"].as_array().cloned().unwrap_or_default();
        let ours = all.into_iter().filter(|at| at["device"] == device);
        let named = ours.map(|at| {
            (
                at["side"].as_str().unwrap().to_owned(),
                at["program"].clone(),
            )
        });
        named.collect::<BTreeMap<_, _>>()
    };
    let sides = |device: &str| programs(device).into_keys().collect::<Vec<_>>();
    for device in ["eth0", "up1", &pod.device] {
        assert_eq!(sides(device), ["egress", "ingress"], "{device}");
    }
    for device in ["lo", "beeline0"] {
        assert_eq!(sides(device), ["egress"], "{device}");
        assert_eq!(programs(device)["egress"], programs("eth0")["egress"]);
    }
    for device in ["cni0", "here1", "here2", "beeline1"] {
        assert_eq!(sides(device), Vec::<String>::new(), "{device}");
    }
    assert_ne!(
        programs("eth0")["ingress"],
        programs(&pod.device)["ingress"]
    );

    // Joined to the bridge, the other way out leaves its part to it.
    node.ip(["link set up1 master cni0"]).unwrap();
    let has = |name: &'static str| {
        move |status: &Value| status["node_devices"].to_string().contains(name)
    };
    daemon
        .wait_until("the bridge is an edge", has("cni0"))
        .unwrap();
    daemon
        .wait_until("the port is none", |status| !has("up1")(status))
        .unwrap();
    assert_eq!(sides("up1"), Vec::<String>::new());
    assert_eq!(sides("cni0"), ["egress", "ingress"]);
    node.ip(["link delete up1"]).unwrap();
    daemon
        .wait_until("the bridge is none", |status| !has("cni0")(status))
        .unwrap();
    assert_eq!(sides("cni0"), Vec::<String>::new());
}
