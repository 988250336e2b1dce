//! Full maps: what is in force goes on, what does not fit is named, and gets in when it does.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::{Layout, Testbed};

use crate::client::{Connection, udp, udp_echo};
use crate::cluster::{PORT, Service, TARGET_PORT, beeline, serve_all};

/// Until what fits is in force: sooner than what waits for a second try.
const AT_ONCE: Duration = Duration::from_secs(4);

/// Connections and sockets that talk to a Service.
struct Talks {
    connections: Vec<Connection>,
    sockets: Vec<UdpSocket>,
}

impl Talks {
    fn open(service: &Service) -> Self {
        let addresses = Family::ALL.map(|family| service.address(family));
        let connect = |address| Connection::open(address).unwrap();
        let socket = |address| {
            let socket = udp(0, address).unwrap();
            udp_echo(&socket, b"first").unwrap();
            socket
        };
        Self {
            connections: addresses.into_iter().map(connect).collect(),
            sockets: addresses.into_iter().map(socket).collect(),
        }
    }

    fn go_on(&mut self, when: &str) {
        for connection in &mut self.connections {
            connection
                .echo(b"still there?")
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        for socket in &self.sockets {
            udp_echo(socket, b"still there?").unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    }
}

/// The message of the problem of `subject`, if there is one.
fn problem(status: &Value, subject: &str) -> Option<String> {
    let problems = status["problems"].as_array()?;
    let problem = problems.iter().find(|it| it["subject"] == subject)?;
    problem["message"].as_str().map(str::to_owned)
}

/// How full a map is, as `beeline status` has it.
fn entries(testbed: &Testbed, map: &str) -> u64 {
    let status = status(testbed);
    let maps = status["maps"].as_array().into_iter().flatten();
    let entries = maps.filter(|it| it["map"] == map);
    entries.filter_map(|it| it["entries"].as_u64()).sum()
}

/// What `beeline status` says: it may be of bad health.
fn status(testbed: &Testbed) -> Value {
    let said = beeline(testbed).call(["status", "-o", "json"]).unwrap();
    serde_json::from_slice(&said.stdout).unwrap()
}

/// What `beeline status` says of a map that is crowded.
fn crowding(testbed: &Testbed, map: &str) -> Option<String> {
    let status = status(testbed);
    let full = status["full"].as_array()?;
    let problem = full
        .iter()
        .find(|it| it["subject"] == format!("map {map}"))?;
    problem["message"].as_str().map(str::to_owned)
}

/// How many packets or sockets had this verdict.
fn count(testbed: &Testbed, reason: &str) -> u64 {
    let status = status(testbed);
    let outcomes = status["outcomes"].as_array().into_iter().flatten();
    let ours = outcomes.filter(|it| it["reason"] == reason);
    ours.filter_map(|it| it["packets"].as_u64()).sum()
}

/// A Service with a VIP that two networks may reach, written to the manifests.
fn write_guarded(testbed: &Testbed) {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "late", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.30",
            "clusterIPs": ["10.96.0.30"],
            "ipFamilies": ["IPv4"],
            "loadBalancerSourceRanges": ["10.0.0.0/8", "192.0.2.0/24"],
            "ports": [{ "name": "tcp", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.9" }] } },
    });
    std::fs::write(testbed.manifests().join("late.json"), service.to_string()).unwrap();
}

fn remove(testbed: &Testbed, name: &str) {
    std::fs::remove_file(testbed.manifests().join(format!("{name}.json"))).unwrap();
}

#[test]
fn a_service_that_does_not_fit_is_named_and_gets_in_without_a_restart() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = [testbed.pod("web-0").unwrap()];
    let _servers: Vec<_> = backends.iter().flat_map(serve_all).collect();
    let [web, filler, late] = [("web", 10), ("filler", 20), ("late", 30)]
        .map(|(name, number)| Service::new(name, number, &backends));
    web.write(&testbed);
    filler.write(&testbed);
    // Each Service has six ports with one frontend, one backend and one slot, and two addresses;
    // the node has two as well. There is room for two Services, and not quite for a third one.
    let sizes = [
        ("FRONTENDS", "--max-frontends", "maxFrontends", "6", "17"),
        ("SLOTS", "--max-slots", "maxSlots", "6", "17"),
        ("BACKENDS", "--max-backends", "maxBackends", "6", "17"),
        ("SERVICES", "--max-services", "maxServices", "6", "17"),
        ("ADDRESSES", "--max-addresses", "maxAddresses", "2", "7"),
    ];
    let args = sizes.map(|(_, option, _, _, size)| [option, size]);
    let daemon = beeline(&testbed).run(args.as_flattened()).unwrap();
    let mut talks = client.run(|| Talks::open(&web));
    late.write(&testbed);
    daemon
        .wait_until("the third Service is named", |status| {
            problem(status, "Service default/late").is_some()
        })
        .unwrap();
    let message = problem(&daemon.status(), "Service default/late").unwrap();
    for (map, option, field, needed, size) in sizes {
        let start = format!("map {map} is full: {needed} more entries needed, ");
        let end = format!(" of {size} free; raise {option} ({field})");
        let mut parts = message
            .split("; map ")
            .map(|it| it.trim_start_matches("map "));
        let is_named =
            |part: &str| format!("map {part}").starts_with(&start) && part.ends_with(&end);
        assert!(parts.any(is_named), "{start}{end} in {message}");
    }
    assert!(daemon.log().contains(&message), "{}", daemon.log());
    let frontends = beeline(&testbed).json(["services"]).unwrap().to_string();
    assert!(!frontends.contains("default/late"), "{frontends}");
    talks.go_on("in full maps");
    client.run(|| Talks::open(&web).go_on("in full maps"));

    let start = Instant::now();
    remove(&testbed, "filler");
    daemon
        .wait_until("the third Service gets in", |status| {
            problem(status, "Service default/late").is_none()
        })
        .unwrap();
    let took = start.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    client.run(|| Talks::open(&late).go_on("when there is room"));
    talks.go_on("when there is room");
    assert_eq!(daemon.status()["problems"], json!([]));
}

#[test]
fn source_ranges_that_do_not_fit_keep_the_service_out() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = [testbed.pod("web-0").unwrap()];
    let _servers: Vec<_> = backends.iter().flat_map(serve_all).collect();
    let web = Service::new("web", 10, &backends);
    web.write(&testbed);
    let daemon = beeline(&testbed).run(["--max-source-ranges", "1"]).unwrap();
    let mut talks = client.run(|| Talks::open(&web));
    write_guarded(&testbed);
    let is_named = |status: &Value| problem(status, "Service default/late").is_some();
    daemon.wait_until("it is named", is_named).unwrap();
    assert_eq!(
        problem(&daemon.status(), "Service default/late").unwrap(),
        "map SOURCE_RANGES is full: 2 more entries needed, 1 of 1 free; \
         raise --max-source-ranges (maxSourceRanges)"
    );
    talks.go_on("without room for source ranges");
    // With larger maps it gets in; flows and what was in force are carried over.
    assert!(daemon.stop().is_some());
    let daemon = beeline(&testbed).run(["--max-source-ranges", "8"]).unwrap();
    assert_eq!(problem(&daemon.status(), "Service default/late"), None);
    assert_eq!(entries(&testbed, "SOURCE_RANGES"), 2);
    talks.go_on("with larger maps");
    // They can't shrink, and whoever asks for it is told.
    assert!(daemon.stop().is_some());
    let refused = beeline(&testbed)
        .start(["--max-source-ranges", "4"])
        .unwrap();
    let end = refused
        .wait_until("refused", |_| false)
        .unwrap_err()
        .to_string();
    assert!(
        end.contains("cannot shrink to 4; start with 8 as --max-source-ranges (maxSourceRanges)"),
        "{end}"
    );
    talks.go_on("without a daemon");
}

#[test]
fn what_is_around_the_node_and_finds_no_room_is_named() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = [testbed.pod("web-0").unwrap()];
    let _servers: Vec<_> = backends.iter().flat_map(serve_all).collect();
    let web = Service::new("web", 10, &backends);
    web.write(&testbed);
    let args = [
        ["--max-devices", "3"],
        ["--max-networks", "2"],
        ["--max-addresses", "1"],
        ["--service-cidr", "10.96.0.0/16"],
        ["--service-cidr", "fd00:10:96::/112"],
    ];
    let daemon = beeline(&testbed).start(args.as_flattened()).unwrap();
    let named = |status: &Value, start: &str| {
        let problems = status["problems"].as_array().into_iter().flatten();
        let mut ours = problems.filter(|it| it["subject"].as_str().unwrap().starts_with(start));
        ours.next()
            .map(|it| it["message"].as_str().unwrap().to_owned())
    };
    let subjects = ["device", "network fd00:10:96::/112", "node address"];
    daemon
        .wait_until("devices, networks and addresses are named", |status| {
            subjects.iter().all(|it| named(status, it).is_some())
        })
        .unwrap();
    let status = daemon.status();
    let settings = [
        "--max-devices (maxDevices)",
        "--max-networks (maxNetworks)",
        "--max-addresses (maxAddresses)",
    ];
    for (subject, setting) in subjects.into_iter().zip(settings) {
        let message = named(&status, subject).unwrap();
        assert!(message.contains(&format!("raise {setting}")), "{message}");
    }
    assert!(daemon.stop().is_some());
    let args = [
        ["--max-devices", "64"],
        ["--max-networks", "64"],
        ["--max-addresses", "64"],
        ["--service-cidr", "10.96.0.0/16"],
        ["--service-cidr", "fd00:10:96::/112"],
    ];
    let daemon = beeline(&testbed).run(args.as_flattened()).unwrap();
    assert_eq!(daemon.status()["problems"], json!([]));
    client.run(|| Talks::open(&web).go_on("with room"));
}

/// A datagram each from as many sockets.
fn flood(server: SocketAddr, n: usize) {
    for _ in 0..n {
        udp_echo(&udp(0, server).unwrap(), b"flood").unwrap();
    }
}

#[test]
fn a_flood_of_flows_pushes_out_none_that_is_in_use() {
    const FLOWS: u64 = 2_048;
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = [testbed.pod("web-0").unwrap()];
    let _servers: Vec<_> = backends.iter().flat_map(serve_all).collect();
    let web = Service::new("web", 10, &backends);
    web.write(&testbed);
    let daemon = beeline(&testbed)
        .run(["--max-flows", &FLOWS.to_string()])
        .unwrap();
    let server = web.address(Family::Ipv4);
    let mut all: Vec<_> = client.run(|| (0..4).map(|_| Talks::open(&web)).collect());
    client.run(|| {
        for _ in 0..40 {
            flood(server, 100);
            all.iter_mut().for_each(|talks| talks.go_on("in the flood"));
        }
        Talks::open(&web).go_on("after the flood");
    });
    assert_eq!(count(&testbed, "flow-table"), 0);
    let message = crowding(&testbed, "FLOWS").unwrap();
    assert!(
        message.contains("raise --max-flows (maxFlows)"),
        "{message}"
    );
    assert!(entries(&testbed, "FLOWS") <= FLOWS);
    // A larger map takes the flows over.
    assert!(daemon.stop().is_some());
    let _daemon = beeline(&testbed).run(["--max-flows", "65536"]).unwrap();
    assert_eq!(crowding(&testbed, "FLOWS"), None);
    all.iter_mut()
        .for_each(|talks| talks.go_on("in the larger map"));
}

#[test]
fn sockets_that_find_no_room_are_served_by_packet() {
    const SOCKETS: u64 = 10;
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = [testbed.pod("web-0").unwrap()];
    let _servers: Vec<_> = backends.iter().flat_map(serve_all).collect();
    let web = Service::new("web", 10, &backends);
    web.write(&testbed);
    let daemon = beeline(&testbed)
        .socket_lb("all")
        .run(["--max-sockets", &SOCKETS.to_string()])
        .unwrap();
    let mut all: Vec<_> = client.run(|| (0..8).map(|_| Talks::open(&web)).collect());
    assert_eq!(entries(&testbed, "SOCKETS"), SOCKETS);
    let n_by_packet = count(&testbed, "sockets-full");
    assert!(n_by_packet >= 8 * 4 - SOCKETS, "{n_by_packet}");
    let message = crowding(&testbed, "SOCKETS").unwrap();
    assert!(
        message.contains("served by packet; raise --max-sockets (maxSockets)"),
        "{message}"
    );
    all.iter_mut()
        .for_each(|talks| talks.go_on("in a full map"));
    // Whoever goes makes room for others.
    all.drain(..4);
    let deadline = Instant::now() + AT_ONCE;
    while entries(&testbed, "SOCKETS") == SOCKETS {
        assert!(
            Instant::now() < deadline,
            "sockets that are closed are kept"
        );
    }
    let before = count(&testbed, "connect");
    all.extend(client.run(|| [Talks::open(&web)]));
    assert!(count(&testbed, "connect") > before);
    // A larger map takes the sockets over.
    assert!(daemon.stop().is_some());
    let _daemon = beeline(&testbed)
        .socket_lb("all")
        .run(["--max-sockets", "1024"])
        .unwrap();
    assert_eq!(crowding(&testbed, "SOCKETS"), None);
    all.iter_mut()
        .for_each(|talks| talks.go_on("in the larger map"));
}

#[test]
fn affinity_is_carried_over_into_a_larger_map() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backends = ["web-0", "web-1", "web-2"].map(|name| testbed.pod(name).unwrap());
    let _servers: Vec<_> = backends.iter().flat_map(serve_all).collect();
    let web = Service::new("web", 10, &backends);
    web.write(&testbed);
    let file = testbed.manifests().join("web.json");
    let mut list: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let objects = list["items"].as_array_mut().unwrap();
    objects.last_mut().unwrap()["spec"]["sessionAffinity"] = "ClientIP".into();
    std::fs::write(&file, list.to_string()).unwrap();
    let met = || {
        let open = |family| Connection::open(web.address(family)).unwrap().backend;
        client.run(|| Family::ALL.map(open))
    };
    let daemon = beeline(&testbed).run(["--max-affinity", "64"]).unwrap();
    let before = met();
    assert!(daemon.stop().is_some());
    let _daemon = beeline(&testbed).run(["--max-affinity", "128"]).unwrap();
    assert_eq!(entries(&testbed, "AFFINITY"), 2);
    for _ in 0..8 {
        assert_eq!(met(), before);
    }
}
