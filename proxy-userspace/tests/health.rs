//! The servers for health and metrics over real connections, on loopback.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use beeline::health::{Health, HealthCheck, NodePorts, Problems, Server, State};
use beeline::metrics::{self, Metrics};
use beeline::model::{Node, ObjectName};
use beeline::source::parse;
use proxy_common::abi::Family;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// No wait takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A state with a clock that stands still unless moved.
struct Scene {
    health: Health,
    now: Arc<Mutex<Instant>>,
    metrics: Arc<Metrics>,
    problems: Problems,
}

impl Scene {
    /// Up to date, on a node that stays; health checks are on loopback.
    fn new() -> Self {
        let now = Arc::new(Mutex::new(Instant::now()));
        let clock = {
            let now = Arc::clone(&now);
            move || *now.lock().unwrap()
        };
        let mut state = State::new(Duration::from_secs(30));
        state.set_addresses(BTreeSet::from([V4, V6]));
        state.set_node(&node(false));
        let scene = Self {
            health: Health::new(state, clock),
            now,
            metrics: Metrics::new(),
            problems: Problems::default(),
        };
        Family::ALL
            .into_iter()
            .for_each(|family| scene.sync(family));
        scene
    }

    fn pass(&self, seconds: u64) {
        *self.now.lock().unwrap() += Duration::from_secs(seconds);
    }

    fn change(&self, family: Family) {
        self.health.update(|state, now| state.changed(family, now));
    }

    fn sync(&self, family: Family) {
        self.health.update(|state, now| state.synced(family, now));
    }

    fn set_check(&self, name: &str, port: u16, counts: &[(Family, u32)]) {
        let check = HealthCheck {
            port,
            local: counts.iter().copied().collect(),
        };
        self.health
            .update(|state, _| state.set_check(&object(name), Some(check)));
    }

    fn remove_check(&self, name: &str) {
        self.health
            .update(|state, _| state.set_check(&object(name), None));
    }

    fn server(&self, bind: SocketAddr) -> Server {
        let (health, metrics) = (self.health.clone(), Arc::clone(&self.metrics));
        Server::start(bind, health, metrics, self.problems.clone())
    }

    fn node_ports(&self) -> NodePorts {
        NodePorts::new(self.health.clone(), self.problems.clone())
    }

    fn problems(&self) -> Vec<String> {
        let text = |it: beeline::model::Problem| format!("{}: {}", it.subject, it.message);
        self.problems.all().into_iter().map(text).collect()
    }
}

fn node(to_be_deleted: bool) -> Node {
    Node {
        name: "here".into(),
        zone: None,
        addresses: vec![],
        pod_cidrs: vec![],
        to_be_deleted,
    }
}

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn any_port() -> SocketAddr {
    (V4, 0).into()
}

/// A port that nobody has in either family. It is not one that the kernel gives to clients, so
/// that none of them takes it before the server does.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        if unspecified.map(|ip: IpAddr| TcpListener::bind((ip, port)).is_ok()) == [true; 2] {
            return port;
        }
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What comes back for these bytes until the connection ends.
async fn talk(to: SocketAddr, request: &str) -> std::io::Result<Reply> {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        std::io::Result::Ok(reply)
    };
    let reply = tokio::time::timeout(PATIENCE, talk).await??;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    Ok(Reply {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

async fn ask(method: &str, to: SocketAddr, path: &str) -> Reply {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: node\r\n\r\n");
    talk(to, &request).await.unwrap()
}

async fn get(to: SocketAddr, path: &str) -> Reply {
    ask("GET", to, path).await
}

async fn is_refused(to: SocketAddr) -> bool {
    let kind = TcpStream::connect(to).await.err().map(|it| it.kind());
    kind == Some(std::io::ErrorKind::ConnectionRefused)
}

/// Waits until it is so.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The kernel's number of the socket that listens here.
fn socket_number(port: u16) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let place = format!("0100007F:{port:04X}");
    let lines = table.lines().map(|line| line.split_whitespace().collect());
    let mut listening = lines.filter(|it: &Vec<&str>| it[1] == place && it[3] == "0A");
    listening.next().unwrap()[9].to_owned()
}

#[tokio::test]
async fn r130_r131_r135_healthz_and_livez_tell_of_proxy_and_node() {
    let scene = Scene::new();
    let server = scene.server(any_port());
    let address = server.address().unwrap();

    let healthz = get(address, "/healthz").await;
    assert_eq!(healthz.status, 200);
    assert_eq!(healthz.header("Content-Type"), Some("application/json"));
    assert_eq!(healthz.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(healthz.header("X-Load-Balancing-Endpoint-Weight"), None);
    let body = healthz.json();
    assert_eq!(body["nodeEligible"], json!(true));
    assert_eq!(body["healthy"], json!(true));
    assert_eq!(body["status"]["IPv6"]["healthy"], json!(true));
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    let time = body["currentTime"].as_str().unwrap();
    let distance = jiff::Timestamp::try_from(beeline::clock::wall())
        .unwrap()
        .duration_since(time.parse().unwrap());
    assert!(
        distance.abs() < jiff::SignedDuration::from_secs(60),
        "{time}"
    );

    let livez = get(address, "/livez").await;
    assert_eq!(livez.status, 200);
    assert_eq!(livez.json().get("nodeEligible"), None);

    // The node is about to go, and then is not.
    scene.health.update(|state, _| state.set_node(&node(true)));
    let healthz = get(address, "/healthz").await;
    assert_eq!(healthz.status, 503);
    assert_eq!(healthz.json()["nodeEligible"], json!(false));
    assert_eq!(get(address, "/livez").await.status, 200);
    scene.health.update(|state, _| state.set_node(&node(false)));
    assert_eq!(get(address, "/healthz").await.status, 200);

    for path in ["/", "/healthz/", "/metrics", "/configz"] {
        assert_eq!(get(address, path).await.status, 404, "{path}");
    }
    let counted = scene.metrics.text();
    for sample in [
        r#"kubeproxy_proxy_healthz_total{code="200"} 2"#,
        r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
        r#"kubeproxy_proxy_livez_total{code="200"} 2"#,
    ] {
        assert!(counted.contains(sample), "{sample} in {counted}");
    }
}

#[tokio::test]
async fn r132_r133_a_family_that_is_late_fails_everything_until_it_is_not() {
    let scene = Scene::new();
    let port = free_port();
    scene.set_check("web", port, &[(Family::Ipv4, 1)]);
    let server = scene.server(any_port());
    let address = server.address().unwrap();
    let mut node_ports = scene.node_ports();
    node_ports.settle().await;
    let node_port = SocketAddr::new(V4, port);

    scene.pass(3600);
    assert_eq!(get(address, "/healthz").await.status, 200);
    Family::ALL
        .into_iter()
        .for_each(|family| scene.change(family));
    scene.sync(Family::Ipv4);
    assert_eq!(get(address, "/healthz").await.status, 200);
    scene.pass(61);
    for path in ["/healthz", "/livez"] {
        let late = get(address, path).await;
        assert_eq!(late.status, 503);
        let body = late.json();
        assert_eq!(body["healthy"], json!(false));
        assert_eq!(body["status"]["IPv4"]["healthy"], json!(true));
        assert_eq!(body["status"]["IPv6"]["healthy"], json!(false));
        assert_eq!(body["lastUpdated"], body["status"]["IPv6"]["lastUpdated"]);
        assert_ne!(body["lastUpdated"], body["currentTime"]);
    }
    let check = get(node_port, "/").await;
    assert_eq!(check.status, 503);
    assert_eq!(check.json()["localEndpoints"], json!(1));
    assert_eq!(check.json()["serviceProxyHealthy"], json!(false));
    scene.sync(Family::Ipv6);
    assert_eq!(get(address, "/healthz").await.status, 200);
    assert_eq!(get(node_port, "/").await.status, 200);
}

#[tokio::test]
async fn r122_r123_a_node_port_answers_whatever_is_asked() {
    let scene = Scene::new();
    let port = free_port();
    scene.set_check("web", port, &[(Family::Ipv4, 3)]);
    let mut node_ports = scene.node_ports();
    node_ports.settle().await;
    let address = SocketAddr::new(V4, port);

    let good = get(address, "/").await;
    assert_eq!(good.status, 200);
    assert_eq!(good.header("Content-Type"), Some("application/json"));
    assert_eq!(good.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(good.header("X-Load-Balancing-Endpoint-Weight"), Some("3"));
    let service = json!({"namespace": "shop", "name": "web"});
    let body = json!({"service": service, "localEndpoints": 3, "serviceProxyHealthy": true});
    assert_eq!(good.json(), body);

    for (method, path) in [
        ("GET", "/healthz"),
        ("PUT", "/foo/bar?x=y"),
        ("DELETE", "/"),
        ("HEAD", "/"),
        ("OPTIONS", "*"),
    ] {
        let reply = ask(method, address, path).await;
        assert_eq!(reply.status, 200, "{method} {path}");
    }
    let post = "POST / HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(talk(address, post).await.unwrap().json(), body);
    let old = talk(address, "GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(old.json(), body);

    scene.set_check("web", port, &[(Family::Ipv4, 0)]);
    let bad = get(address, "/").await;
    assert_eq!(bad.status, 503);
    assert_eq!(bad.header("X-Load-Balancing-Endpoint-Weight"), Some("0"));
    assert_eq!(bad.json()["localEndpoints"], json!(0));
    assert_eq!(bad.json()["serviceProxyHealthy"], json!(true));
}

#[tokio::test]
async fn r125_listeners_follow_their_service_and_stay_if_nothing_moves_them() {
    let scene = Scene::new();
    let (first, second) = (free_port(), free_port());
    let [old, new] = [first, second].map(|port| SocketAddr::new(V4, port));
    let mut node_ports = scene.node_ports();
    scene.set_check("web", first, &[(Family::Ipv4, 1)]);
    node_ports.settle().await;
    assert_eq!(get(old, "/").await.status, 200);
    let socket = socket_number(first);

    scene.set_check("web", first, &[(Family::Ipv4, 7)]);
    scene.set_check("other", second, &[(Family::Ipv6, 1)]);
    node_ports.settle().await;
    assert_eq!(socket_number(first), socket);
    scene.remove_check("other");
    node_ports.settle().await;

    scene.set_check("web", second, &[(Family::Ipv4, 1)]);
    node_ports.settle().await;
    assert!(is_refused(old).await);
    assert_eq!(get(new, "/").await.status, 200);

    scene.remove_check("web");
    node_ports.settle().await;
    assert!(is_refused(new).await);

    // In one go another Service takes the port over.
    scene.set_check("web", first, &[(Family::Ipv4, 1)]);
    node_ports.settle().await;
    scene.remove_check("web");
    scene.set_check("another", first, &[(Family::Ipv4, 2)]);
    node_ports.settle().await;
    assert_eq!(get(old, "/").await.json()["service"]["name"], "another");
    assert_eq!(scene.problems(), [""; 0]);
}

#[tokio::test]
async fn r126_each_family_answers_for_its_own_endpoints() {
    let scene = Scene::new();
    let (port, v4_port) = (free_port(), free_port());
    scene.set_check("both", port, &[(Family::Ipv4, 0), (Family::Ipv6, 2)]);
    scene.set_check("single", v4_port, &[(Family::Ipv4, 1)]);
    let mut node_ports = scene.node_ports();
    node_ports.settle().await;
    assert_eq!(get((V4, port).into(), "/").await.status, 503);
    let v6 = get((V6, port).into(), "/").await;
    assert_eq!(v6.status, 200);
    assert_eq!(v6.json()["localEndpoints"], json!(2));
    assert_eq!(get((V4, v4_port).into(), "/").await.status, 200);
    assert!(is_refused((V6, v4_port).into()).await);
}

#[tokio::test]
async fn r121_the_unspecified_addresses_are_one_for_each_family() {
    let scene = Scene::new();
    let port = free_port();
    let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let set_addresses = |addresses: &[IpAddr]| {
        let addresses = addresses.iter().copied().collect();
        scene
            .health
            .update(|state, _| state.set_addresses(addresses));
    };
    set_addresses(&unspecified);
    scene.set_check("both", port, &[(Family::Ipv4, 1), (Family::Ipv6, 2)]);
    let mut node_ports = scene.node_ports();
    node_ports.settle().await;
    for (ip, n_local) in [(V4, 1), (V6, 2), (IpAddr::from([127, 9, 9, 9]), 1)] {
        let reply = get((ip, port).into(), "/").await;
        assert_eq!(reply.json()["localEndpoints"], json!(n_local), "{ip}");
    }
    assert_eq!(scene.problems(), [""; 0]);

    set_addresses(&[IpAddr::from([127, 9, 9, 9])]);
    node_ports.settle().await;
    assert!(is_refused((V4, port).into()).await);
    assert!(is_refused((V6, port).into()).await);
    assert_eq!(get(([127, 9, 9, 9], port).into(), "/").await.status, 200);
}

#[tokio::test]
async fn r125_a_taken_port_is_a_problem_until_it_can_be_had() {
    let scene = Scene::new();
    let port = free_port();
    let taken = TcpListener::bind((V4, port)).unwrap();
    let running = tokio::spawn(scene.node_ports().run());
    scene.set_check("web", port, &[(Family::Ipv4, 1), (Family::Ipv6, 1)]);
    until(async || !scene.problems().is_empty()).await;
    let problem = scene.problems().join("\n");
    let start = format!(
        "Service shop/web: field spec.healthCheckNodePort: cannot listen on port {port} of 127.0.0.1: "
    );
    assert!(problem.starts_with(&start), "{problem}");
    // The other address does its part.
    assert_eq!(get((V6, port).into(), "/").await.status, 200);

    drop(taken);
    until(async || scene.problems().is_empty()).await;
    assert_eq!(get((V4, port).into(), "/").await.status, 200);
    running.abort();
}

#[tokio::test]
async fn of_two_services_with_one_port_the_second_waits() {
    let scene = Scene::new();
    let port = free_port();
    let address = SocketAddr::new(V4, port);
    let mut node_ports = scene.node_ports();
    scene.set_check("b", port, &[(Family::Ipv4, 1)]);
    node_ports.settle().await;
    scene.set_check("a", port, &[(Family::Ipv4, 1)]);
    node_ports.settle().await;
    assert!(scene.problems()[0].starts_with("Service shop/a: "));
    assert_eq!(get(address, "/").await.json()["service"]["name"], "b");
    scene.remove_check("b");
    node_ports.settle().await;
    assert_eq!(scene.problems(), [""; 0]);
    assert_eq!(get(address, "/").await.json()["service"]["name"], "a");
    scene.remove_check("a");
    node_ports.settle().await;
    assert!(is_refused(address).await);
}

#[tokio::test]
async fn a_fixed_address_that_is_taken_is_tried_again() {
    let scene = Scene::new();
    let bind = SocketAddr::new(V4, free_port());
    let taken = TcpListener::bind(bind).unwrap();
    let server = scene.server(bind);
    assert_eq!(server.address(), None);
    until(async || !scene.problems().is_empty()).await;
    let start = format!("healthz address {bind}: cannot listen: ");
    assert!(scene.problems()[0].starts_with(&start));
    drop(taken);
    until(async || scene.problems().is_empty()).await;
    assert_eq!(get(bind, "/livez").await.status, 200);
    drop(server);
    until(async || is_refused(bind).await).await;
}

#[tokio::test]
async fn an_unspecified_fixed_address_stands_for_both_families() {
    let scene = Scene::new();
    for ip in [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Ipv6Addr::UNSPECIFIED.into(),
    ] {
        let server = scene.server((ip, 0).into());
        let port = server.address().unwrap().port();
        assert_eq!(get((V4, port).into(), "/livez").await.status, 200);
        assert_eq!(get((V6, port).into(), "/livez").await.status, 200);
    }
}

#[tokio::test]
async fn idle_clients_keep_nobody_out() {
    let scene = Scene::new();
    let server = scene.server(any_port());
    let address = server.address().unwrap();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(get(address, "/livez").await.status, 200);
    // The oldest had to go; the latest goes when its time is over, though it sends something.
    let cut = |mut stream: TcpStream| async move {
        let mut nothing = [0; 16];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut nothing)).await;
        read.is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
    };
    assert!(cut(idle.remove(0)).await);
    let mut latest = idle.pop().unwrap();
    latest.write_all(b"GET / HT").await.unwrap();
    let start = Instant::now();
    assert!(cut(latest).await);
    assert!(start.elapsed() > Duration::from_secs(1));
}

#[tokio::test]
async fn excessive_requests_are_refused() {
    let scene = Scene::new();
    let server = scene.server(any_port());
    let address = server.address().unwrap();
    let fields = |n, length| format!("X: {}\r\n", "y".repeat(length)).repeat(n);
    for (n, length) in [(100, 1), (2, 5000)] {
        let request = format!("GET /livez HTTP/1.1\r\n{}\r\n", fields(n, length));
        assert_eq!(talk(address, &request).await.unwrap().status, 431);
    }
    let nonsense = talk(address, "hello\r\n\r\n").await.unwrap();
    assert_eq!(nonsense.status, 400);
    let modest = format!("GET /livez HTTP/1.1\r\n{}\r\n", fields(20, 10));
    assert_eq!(talk(address, &modest).await.unwrap().status, 200);
}

#[tokio::test]
async fn r137_the_metrics_server_has_kube_proxys_paths() {
    let scene = Scene::new();
    let (metrics, problems) = (Arc::clone(&scene.metrics), scene.problems.clone());
    let configz = json!({"kubeproxy.config.k8s.io": {"Mode": "iptables"}});
    let server = metrics::Server::start(any_port(), metrics, &configz, problems);
    let address = server.address().unwrap();
    for (path, body) in [
        ("/healthz", "ok"),
        ("/healthz?verbose=1", "[+]ping ok\nhealthz check passed\n"),
        ("/proxyMode", "beeline"),
        (
            "/configz",
            r#"{"kubeproxy.config.k8s.io":{"Mode":"iptables"}}"#,
        ),
    ] {
        let reply = get(address, path).await;
        assert_eq!((reply.status, &*reply.body), (200, body));
    }
    let plain = get(address, "/metrics").await;
    assert_eq!(plain.status, 200);
    assert_eq!(
        plain.header("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(plain.body.contains(
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0"#
    ));
    let request = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\n\r\n";
    let open = talk(address, request).await.unwrap();
    let kind = open.header("Content-Type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text"));
    assert!(open.body.ends_with("# EOF\n"));
    assert_eq!(get(address, "/livez").await.status, 404);
}

#[tokio::test]
async fn an_address_that_is_taken_can_be_an_error() {
    let scene = Scene::new();
    let taken = scene.server(any_port());
    let address = taken.address().unwrap();
    let error = scene.server(address).at_once().unwrap_err().to_string();
    assert!(error.contains("--healthz-bind-address"), "{error}");
    assert!(error.contains(&address.to_string()), "{error}");
    assert_eq!(get(address, "/livez").await.status, 200);
}

#[tokio::test]
async fn readiness_is_asked_apart_from_health() {
    let scene = Scene::new();
    let server = scene.server(any_port());
    let address = server.address().unwrap();
    let early = get(address, "/readyz").await;
    assert_eq!(early.status, 503);
    assert!(early.body.contains("first lists"), "{}", early.body);
    assert_eq!(get(address, "/livez").await.status, 200);
    scene.health.update(|state, _| state.set_in_force());
    let ready = get(address, "/readyz").await;
    assert_eq!((ready.status, &*ready.body), (200, "ok"));
}

#[test]
fn r134_the_autoscalers_taint_or_a_deletion_ends_a_node() {
    let is_to_go = |fields: Value| {
        let node = serde_json::from_value(fields).unwrap();
        let parsed = parse::node(&mut parse::Strings::default(), object("here"), &node);
        parsed.object.unwrap().to_be_deleted
    };
    let tainted = |key, effect, value: Option<&str>| {
        let taint = json!({"key": key, "effect": effect, "value": value});
        is_to_go(json!({"spec": {"taints": [{"key": "first", "effect": "NoExecute"}, taint]}}))
    };
    let key = "ToBeDeletedByClusterAutoscaler";
    assert!(tainted(key, "NoSchedule", Some("1700000000")));
    assert!(tainted(key, "PreferNoSchedule", None));
    assert!(!tainted("other", "NoSchedule", None));
    assert!(!is_to_go(json!({"spec": {}})));
    let metadata = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    assert!(is_to_go(json!({"metadata": metadata})));
}
