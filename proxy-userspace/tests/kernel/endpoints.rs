//! What the real binary answers by HTTP, what its metrics tell, and where it listens.

#[path = "../support/exposition.rs"]
mod exposition;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

use beeline::clock::wall;
use beeline::loader::pins::Pins;
use beeline::maps::Table;
use bytemuck::Zeroable as _;
use jiff::Timestamp;
use proxy_common::abi::{Addr, Family as IpFamily, Frontend, FrontendKey};
use serde_json::{Value, json};
use xtask::testbed::{Daemon, Layout, NODE_IPV4, NODE_NAME, Testbed, in_namespace};

use self::exposition::{Family, Text};
use crate::client::PATIENCE;
use crate::cluster::{Cluster, Plan, Service, beeline, put};
use crate::socket_world::until;

const HEALTHZ: u16 = 10_256;
const METRICS: u16 = 10_249;
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

#[derive(Debug)]
struct Reply {
    status: u16,
    /// By names in lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Asks a server on the node's loopback.
fn ask(testbed: &Testbed, port: u16, method: &str, path: &str, accept: &str) -> Reply {
    let text = in_namespace(&testbed.node().namespace, || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nAccept: {accept}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let (head, body) = text.split_once("\r\n\r\n").expect(&text);
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_owned())
    };
    Reply {
        status: status.parse().unwrap(),
        headers: lines.map(header).collect(),
        body: body.to_owned(),
    }
}

fn get(testbed: &Testbed, port: u16, path: &str) -> Reply {
    ask(testbed, port, "GET", path, "*/*")
}

fn metrics(testbed: &Testbed) -> BTreeMap<String, Family> {
    let reply = get(testbed, METRICS, "/metrics");
    assert_eq!(reply.status, 200);
    exposition::read(&reply.body, Text::Plain)
}

fn value(testbed: &Testbed, name: &str, labels: &[(&str, &str)]) -> f64 {
    exposition::value(&metrics(testbed), name, labels).unwrap_or(0.0)
}

/// The metrics a moment later: what the kernel counts is not read twice in a second.
fn fresh_metrics(testbed: &Testbed) -> BTreeMap<String, Family> {
    std::thread::sleep(Duration::from_millis(1_050));
    metrics(testbed)
}

#[test]
fn every_path_and_method_answers_as_kube_proxy_does() {
    let cluster = Cluster::new(Plan::default());
    let testbed = &cluster.testbed;
    let not_found = (404, PLAIN, "404 page not found\n");
    let cases = [
        // The Node object was never seen.
        (HEALTHZ, "/healthz", (503, JSON, "\"nodeEligible\":false")),
        (
            HEALTHZ,
            "/healthz?verbose",
            (503, JSON, "\"healthy\":false"),
        ),
        (HEALTHZ, "/livez", (200, JSON, "\"healthy\":true")),
        (HEALTHZ, "/readyz", (200, PLAIN, "ok")),
        (HEALTHZ, "/", not_found),
        (HEALTHZ, "/metrics", not_found),
        (HEALTHZ, "/livez/", not_found),
        (HEALTHZ, "/healthz/ping", not_found),
        (METRICS, "/healthz", (200, PLAIN, "ok")),
        (
            METRICS,
            "/healthz?verbose",
            (200, PLAIN, "healthz check passed\n"),
        ),
        (METRICS, "/healthz/ping", (200, PLAIN, "ok")),
        (METRICS, "/proxyMode", (200, PLAIN, "beeline")),
        (
            METRICS,
            "/configz",
            (200, JSON, "\"kubeproxy.config.k8s.io\":{"),
        ),
        (
            METRICS,
            "/metrics",
            (
                200,
                "text/plain; version=0.0.4; charset=utf-8",
                "# HELP kubeproxy_",
            ),
        ),
        (METRICS, "/", not_found),
        (METRICS, "//healthz", not_found),
        (METRICS, "/livez", not_found),
        (METRICS, "/configz/", not_found),
        (METRICS, "/debug/pprof/", not_found),
        (METRICS, "/debug/flags/v", not_found),
    ];
    for (port, path, (status, kind, part)) in cases {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let reply = ask(testbed, port, method, path, "*/*");
            let place = format!("{method} {port} {path}: {reply:?}");
            assert_eq!(reply.status, status, "{place}");
            assert_eq!(reply.header("content-type"), kind, "{place}");
            assert_eq!(reply.header("x-content-type-options"), "nosniff", "{place}");
            assert!(reply.body.contains(part), "{place}");
        }
        let head = ask(testbed, port, "HEAD", path, "*/*");
        assert_eq!(
            (head.status, &*head.body),
            (status, ""),
            "HEAD {port} {path}"
        );
        assert_eq!(head.header("content-type"), kind);
    }
    let moved = get(testbed, HEALTHZ, "//livez?x=1");
    assert_eq!(
        (moved.status, moved.header("location")),
        (301, "/livez?x=1")
    );
    for port in [HEALTHZ, METRICS] {
        let all = ask(testbed, port, "OPTIONS", "*", "*/*");
        assert_eq!((all.status, &*all.body), (200, ""));
    }
    let configz: Value = serde_json::from_str(&get(testbed, METRICS, "/configz").body).unwrap();
    let shown = &configz["kubeproxy.config.k8s.io"];
    assert!(shown["MetricsBindAddress"].is_string(), "{configz}");
}

/// The names that `docs/metrics.md` describes.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("| `"));
    names
        .map(|rest| rest.split_once('`').unwrap().0.to_owned())
        .collect()
}

#[test]
fn metrics_are_valid_and_the_documented_ones_and_follow_traffic() {
    let cluster = Cluster::new(Plan::default());
    let testbed = &cluster.testbed;
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = ask(testbed, METRICS, "GET", "/metrics", accept);
    assert!(
        open.header("content-type")
            .starts_with("application/openmetrics-text")
    );
    let _valid = exposition::read(&open.body, Text::OpenMetrics);
    let before = metrics(testbed);
    assert_eq!(
        before.keys().cloned().collect::<BTreeSet<_>>(),
        documented()
    );

    let address = cluster.service.address(IpFamily::Ipv4);
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.write_all(b"hello\n").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream
    };
    let open = [cluster.client.run(talk), cluster.client.run(talk)];
    drop(cluster.client.run(talk));
    let after = fresh_metrics(testbed);
    let grown = |name: &str, labels: &[_]| {
        let of = |families| exposition::value(families, name, labels).unwrap_or(0.0);
        of(&after) - of(&before)
    };
    let web = |port| [("service", "web"), ("port", port), ("ip_family", "IPv4")];
    assert_eq!(grown("beeline_service_connections_total", &web("tcp")), 3.0);
    assert_eq!(grown("beeline_service_connections_total", &web("udp")), 0.0);
    let new_flow = [("outcome", "rewrite"), ("reason", "new-flow")];
    assert_eq!(grown("beeline_verdicts_total", &new_flow), 3.0);
    let packets = grown("beeline_service_packets_total", &web("tcp"));
    let bytes = grown("beeline_service_bytes_total", &web("tcp"));
    assert!(
        packets >= 15.0 && bytes >= packets * 60.0,
        "{packets} {bytes}"
    );

    let none = Service::new("none", 20, &[]);
    none.write(testbed);
    let dial = || TcpStream::connect_timeout(&none.address(IpFamily::Ipv6), PATIENCE).is_err();
    let none = [
        ("service", "none"),
        ("port", "tcp"),
        ("reason", "no-endpoint"),
    ];
    until("refusals by reason", Duration::from_secs(10), || {
        assert!(cluster.client.run(dial));
        value(testbed, "beeline_service_refused_total", &none) > 0.0
    });
    let established = [("protocol", "TCP"), ("state", "established")];
    until("flows by state", Duration::from_secs(30), || {
        value(testbed, "beeline_flows", &established) >= 2.0
    });
    assert!(value(testbed, "beeline_map_entries", &[("map", "FLOWS")]) >= 4.0);
    drop(open);
}

#[test]
fn changes_are_measured_from_the_annotation_on() {
    let cluster = Cluster::new(Plan::default());
    let testbed = &cluster.testbed;
    let name = "kubeproxy_network_programming_duration_seconds";
    let of = |part: &str| value(testbed, &format!("{name}_{part}"), &[("ip_family", "IPv4")]);
    let slice = |address: &str, at: SystemTime| {
        let at = Timestamp::try_from(at).unwrap().to_string();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web-more",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": at},
            },
            "addressType": "IPv4",
            "ports": [{"name": "tcp", "protocol": "TCP", "port": 80}],
            "endpoints": [{"addresses": [address]}],
        })
    };
    let now = wall();
    let ago = |seconds| now - Duration::from_secs(seconds);
    let total = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    let before = value(testbed, total, &[]);
    // From before the daemon's start: it is in force, and not measured.
    put(testbed, "more.json", &[slice("10.99.0.1", ago(3_600))]);
    until("a change", Duration::from_secs(10), || {
        value(testbed, total, &[]) == before + 1.0
    });
    assert_eq!(of("count"), 0.0);
    // The time alone is no change.
    put(testbed, "more.json", &[slice("10.99.0.1", now)]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        (value(testbed, total, &[]), of("count")),
        (before + 1.0, 0.0)
    );
    put(testbed, "more.json", &[slice("10.99.0.2", wall())]);
    until("a measurement", Duration::from_secs(10), || {
        of("count") == 1.0
    });
    assert!((0.0..5.0).contains(&of("sum")), "{}", of("sum"));
    // By a clock that is ahead.
    let ahead = wall() + Duration::from_secs(600);
    let sum = of("sum");
    put(testbed, "more.json", &[slice("10.99.0.3", ahead)]);
    until("another one", Duration::from_secs(10), || {
        of("count") == 2.0
    });
    assert_eq!(of("sum"), sum);
    let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    assert_eq!(value(testbed, pending, &[]), 0.0);
    let synced = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count";
    assert!(value(testbed, synced, &[("ip_family", "IPv6")]) >= 3.0);
}

fn node(metadata: Value) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
    node["metadata"]["name"] = NODE_NAME.into();
    node
}

#[test]
fn a_change_that_waits_too_long_is_ill_health_and_its_end_is_the_cure() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    put(&testbed, "node.json", &[node(json!({}))]);
    let args = [
        "--max-frontends",
        "32",
        "--sync-period",
        "1s",
        "--min-sync-period",
        "200ms",
    ];
    let daemon = beeline(&testbed).run(args).unwrap();
    let status = |path| get(&testbed, HEALTHZ, path).status;
    assert_eq!((status("/healthz"), status("/livez")), (200, 200));

    // The kernel has no room, which the daemon cannot know.
    let mut frontends: Table<FrontendKey, Frontend> =
        Table::open(&Pins::new(&testbed.bpffs()), "FRONTENDS").unwrap();
    let key = |n: u32| FrontendKey {
        addr: Addr::from_v4_word(n),
        ..FrontendKey::zeroed()
    };
    let is_room = |n: &u32| frontends.insert(&key(*n), &Frontend::zeroed()).is_ok();
    let filled: Vec<u32> = (1..=64).take_while(is_room).collect();
    assert_eq!(filled.len(), 32);
    Service::new("late", 30, &[]).write(&testbed);
    until("ill health", Duration::from_secs(20), || {
        status("/livez") == 503
    });
    let healthz = get(&testbed, HEALTHZ, "/healthz");
    let body: Value = serde_json::from_str(&healthz.body).unwrap();
    assert_eq!(
        (healthz.status, &body["nodeEligible"]),
        (503, &json!(true)),
        "{body}"
    );
    assert_eq!(value(&testbed, "beeline_sync_failing", &[]), 1.0);
    let livez = value(&testbed, "kubeproxy_proxy_livez_total", &[("code", "503")]);
    assert!(livez >= 1.0);

    for n in &filled {
        assert!(frontends.remove(&key(*n)).unwrap());
    }
    until("health", Duration::from_secs(20), || {
        status("/livez") == 200
    });
    assert_eq!(status("/healthz"), 200);
    assert_eq!(value(&testbed, "beeline_sync_failing", &[]), 0.0);

    // A node that is being deleted is for load balancers only.
    let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    put(&testbed, "node.json", &[node(deleted)]);
    until("a node to go", Duration::from_secs(10), || {
        status("/healthz") == 503
    });
    assert_eq!((status("/livez"), status("/readyz")), (200, 200));
    drop(daemon);
}

/// The sockets of a process that listen, or have a port for datagrams, by protocol.
fn open_ports(daemon: &Daemon) -> BTreeSet<(&'static str, SocketAddr)> {
    let proc = format!("/proc/{}", daemon.pid());
    let files = std::fs::read_dir(format!("{proc}/fd")).unwrap();
    let links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    let inodes: BTreeSet<String> = links
        .filter_map(|link| {
            let link = link.to_str()?;
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let mut open = BTreeSet::new();
    for (protocol, state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let table = std::fs::read_to_string(format!("{proc}/net/{protocol}")).unwrap();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields[3] == state && inodes.contains(fields[9]) {
                open.insert((protocol, parse(fields[1])));
            }
        }
    }
    open
}

/// Reads `0100007F:2809`, whose words are as they lie in memory.
fn parse(text: &str) -> SocketAddr {
    let (address, port) = text.split_once(':').unwrap();
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).unwrap();
        u32::from_str_radix(word, 16).unwrap().to_ne_bytes()
    });
    let bytes: Vec<u8> = words.flatten().collect();
    let ip: IpAddr = match <[u8; 4]>::try_from(&*bytes) {
        Ok(bytes) => Ipv4Addr::from(bytes).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&*bytes).unwrap()).into(),
    };
    (ip, u16::from_str_radix(port, 16).unwrap()).into()
}

#[test]
fn nothing_listens_elsewhere_than_configured() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "lb", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.77",
            "clusterIPs": ["10.96.0.77"],
            "ipFamilies": ["IPv4"],
            "ports": [{"protocol": "TCP", "port": 80, "nodePort": 30_001}],
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30_100,
        },
    });
    put(&testbed, "lb.json", &[service]);
    let range = format!("{NODE_IPV4}/32");
    let healthz = format!("{NODE_IPV4}:10256");
    let daemon = beeline(&testbed).socket_lb("all").run([
        "--nodeport-addresses",
        &range,
        "--healthz-bind-address",
        &healthz,
    ]);
    let daemon = daemon.unwrap();
    let at = |ip, port| ("tcp", SocketAddr::new(ip, port));
    let expected = BTreeSet::from([
        at(Ipv4Addr::LOCALHOST.into(), METRICS),
        at(NODE_IPV4.into(), HEALTHZ),
        at(NODE_IPV4.into(), 30_100),
    ]);
    until("the health check's port", Duration::from_secs(10), || {
        open_ports(&daemon).len() >= expected.len()
    });
    assert_eq!(open_ports(&daemon), expected);
}

#[test]
fn a_taken_address_is_a_problem_or_the_end() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
    let taken = in_namespace(&testbed.node().namespace, || {
        TcpListener::bind(address).unwrap()
    });
    let ended = beeline(&testbed).run(["--bind-address-hard-fail"]);
    let error = format!("{:#}", ended.unwrap_err());
    for part in [
        "ended",
        "--metrics-bind-address",
        "127.0.0.1:10249",
        "in use",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let daemon = beeline(&testbed).run::<&str>([]).unwrap();
    let subject = format!("metrics address {address}");
    let is_named = |status: &Value| {
        let problems = status["problems"].as_array().into_iter().flatten();
        problems.clone().any(|it| it["subject"] == *subject)
    };
    daemon.wait_until("the problem", is_named).unwrap();
    drop(taken);
    daemon
        .wait_until("its end", |status| !is_named(status))
        .unwrap();
    assert_eq!(get(&testbed, METRICS, "/healthz").status, 200);
}

#[test]
fn no_secret_is_told_and_an_api_server_that_is_away_is() {
    const SECRET: &str = "c2VjcmV0LXRva2VuLW9mLWJlZWxpbmU";
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let kubeconfig = testbed.manifests().with_file_name("kubeconfig");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {"token": SECRET}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let beeline = beeline(&testbed).with_kubeconfig(&kubeconfig);
    let daemon = beeline.start(["--log", "debug"]).unwrap();
    let knows = |status: &Value| !status["problems"].as_array().is_none_or(Vec::is_empty);
    daemon
        .wait_until("the API server's problem", knows)
        .unwrap();
    let ready = get(&testbed, HEALTHZ, "/readyz");
    assert_eq!(ready.status, 503);
    for part in ["first lists", "services"] {
        assert!(ready.body.contains(part), "{ready:?}");
    }
    // Nothing waits to be brought into force.
    assert_eq!(get(&testbed, HEALTHZ, "/livez").status, 200);
    assert_eq!(value(&testbed, "beeline_ready", &[]), 0.0);
    let services = [("resource", "services")];
    assert_eq!(value(&testbed, "beeline_source_connected", &services), 0.0);
    assert!(value(&testbed, "beeline_problems", &[("kind", "source")]) >= 1.0);
    let paths = [
        "/metrics",
        "/configz",
        "/healthz?verbose",
        "/proxyMode",
        "/",
    ];
    let told = paths.map(|path| get(&testbed, METRICS, path).body).concat()
        + &["/healthz", "/livez", "/readyz"]
            .map(|path| get(&testbed, HEALTHZ, path).body)
            .concat();
    let status = daemon.status().to_string();
    let shown = beeline.call(["status"]).unwrap();
    for text in [told, status, daemon.log(), format!("{shown:?}")] {
        assert!(!text.is_empty() && !text.contains(SECRET), "{text}");
    }
}
