//! Traffic goes on whatever becomes of the API server, and changes come into force when it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::Value;
use xtask::testbed::in_namespace;

use crate::api_cluster::{Cluster, problem};
use crate::api_server::Failure;
use crate::api_server::Verb;
use crate::client::Connection;
use crate::cluster::{Endpoint, Service};

/// What is followed.
const RESOURCES: [&str; 4] = ["endpointslices", "nodes", "servicecidrs", "services"];
/// Between two connections of a client.
const PAUSE: Duration = Duration::from_millis(5);

/// A client that opens one connection after the other, and keeps one open, until it is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<std::io::Result<usize>>>,
}

impl Traffic {
    /// To a Service of which `stays` stays an endpoint.
    fn start(cluster: &Cluster, service: &Service, stays: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (is_over, stays) = (Arc::clone(&stop), stays.to_owned());
        let (namespace, address) = (
            cluster.client.namespace.clone(),
            service.address(Family::Ipv4),
        );
        let talk = move || {
            let mut kept = loop {
                let connection = Connection::open(address)?;
                if connection.backend == stays {
                    break connection;
                }
            };
            let mut n_connections = 0;
            while !is_over.load(Ordering::Relaxed) {
                Connection::open(address)?.echo(b"a new one")?;
                kept.echo(b"the same as ever")?;
                n_connections += 1;
                std::thread::sleep(PAUSE);
            }
            Ok(n_connections)
        };
        let client = std::thread::spawn(move || in_namespace(&namespace, talk));
        Self {
            stop,
            client: Some(client),
        }
    }

    /// Nothing has failed, and there was something that could.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let n_connections = self.client.take().unwrap().join().unwrap();
        assert!(matches!(n_connections, Ok(1..)), "{n_connections:?}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Cluster {
    fn wait_until_away(&self) {
        let is_away = |status: &Value| {
            let resources = status["resources"].as_object();
            let mut states = resources.into_iter().flatten();
            status["problems"].to_string().contains("API server")
                && states.all(|(_, state)| state["connected"] == false)
        };
        self.daemon().wait_until("away", is_away).unwrap();
    }

    fn wait_until_connected(&self) {
        let is_connected = |status: &Value| {
            let resources = status["resources"].as_object();
            let mut states = resources.into_iter().flatten();
            problem(status, "API server").is_none()
                && status["resources"]
                    .as_object()
                    .is_some_and(|it| it.len() == 4)
                && states.all(|(_, state)| state["connected"] == true)
        };
        self.daemon().wait_until("connected", is_connected).unwrap();
    }

    /// The Service has this one endpoint from now on, and that comes into force.
    fn leave(&self, service: &mut Service, backend: usize) {
        service.endpoints = vec![Endpoint::of(&self.backends[backend])];
        self.apply(service);
    }
}

fn restarts(status: &Value, resource: &str, reason: &str) -> u64 {
    let count = &status["resources"][resource]["restarts"][reason];
    count.as_u64().unwrap_or_default()
}

#[test]
fn a_server_that_was_gone_is_caught_up_with() {
    let (mut cluster, mut web) = Cluster::serving();
    let traffic = Traffic::start(&cluster, &web, "web-0");
    cluster.wait_until_connected();
    let last_sync = cluster.daemon().status()["last_sync"].clone();
    cluster.api.down();
    cluster.wait_until_away();
    let said = cluster.beeline().call(["status"]).unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("services: no news for "), "{said}");
    cluster.expect_now(&web, &["web-0", "web-1"]);
    // Nothing was changed: nothing is done.
    cluster.api.up();
    cluster.wait_until_connected();
    assert_eq!(cluster.daemon().status()["last_sync"], last_sync);
    cluster.api.down();
    cluster.wait_until_away();
    cluster.leave(&mut web, 0);
    cluster.expect_now(&web, &["web-0", "web-1"]);
    cluster.api.up();
    cluster.expect(&web, &["web-0"]);
    cluster.wait_until_connected();
    traffic.finish();
    let sync = &cluster.daemon().status()["last_sync"];
    assert_eq!(sync["services"], 1, "{sync}");
    assert!(sync["writes"].as_u64() > Some(0), "{sync}");
}

#[test]
fn one_of_two_servers_dies_and_one_falls_silent() {
    let (mut cluster, mut web) = {
        let mut cluster = Cluster::new();
        let web = cluster.service("web", 10);
        cluster.apply(&web);
        // One on a machine of its own.
        let other = cluster.testbed.pod("other").unwrap();
        let ip = other.address(Family::Ipv4);
        let twin = in_namespace(&other.namespace, || {
            cluster.api.runtime.block_on(cluster.api.server.twin_at(ip))
        });
        let servers = [twin.url(), cluster.api.server.url()];
        let args = servers.each_ref().map(|url| ["--kubernetes-server", url]);
        cluster.run_with(args.as_flattened());
        cluster.expect(&web, &["web-0", "web-1"]);
        cluster.wait_until_connected();
        let traffic = Traffic::start(&cluster, &web, "web-0");
        // It does not even close its connections.
        other.namespace.ip(["link set eth0 down"]).unwrap();
        let start = Instant::now();
        let mut web = web;
        cluster.leave(&mut web, 0);
        cluster.expect_within(&web, &["web-0"], Duration::from_secs(60));
        assert!(
            start.elapsed() > Duration::from_secs(1),
            "it was not silent"
        );
        traffic.finish();
        other.namespace.ip(["link set eth0 up"]).unwrap();
        (cluster, web)
    };
    // The other one of the two, with a bang.
    let traffic = Traffic::start(&cluster, &web, "web-0");
    cluster.wait_until_connected();
    cluster.api.down();
    web.endpoints = cluster.backends.iter().map(Endpoint::of).collect();
    cluster.apply(&web);
    cluster.api.up();
    cluster.expect(&web, &["web-0", "web-1"]);
    traffic.finish();
}

#[test]
fn a_watch_that_stalls_is_noticed() {
    let (cluster, mut web) = Cluster::serving_with(&["--kubernetes-idle", "10s"]);
    let traffic = Traffic::start(&cluster, &web, "web-0");
    cluster.wait_until_connected();
    for resource in RESOURCES {
        cluster.api.server.silence(resource);
    }
    cluster.leave(&mut web, 0);
    cluster.expect(&web, &["web-0"]);
    traffic.finish();
    let stalled = |status: &Value| restarts(status, "endpointslices", "stalled") > 0;
    cluster.daemon().wait_until("stalled", stalled).unwrap();
    cluster.wait_until_connected();
    // Each goes on from where it was.
    let requests = cluster.api.server.requests().into_iter();
    let lists = requests.filter(|request| request.starts_with("LIST"));
    assert_eq!(lists.count(), RESOURCES.len());
}

#[test]
fn a_token_that_is_rotated_is_read_again() {
    let mut cluster = Cluster::new();
    let mut web = cluster.service("web", 10);
    cluster.apply(&web);
    let kubeconfig = std::fs::read_to_string(&cluster.api.kubeconfig).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
    kubeconfig["users"][0]["user"]["tokenFile"] = "token".into();
    std::fs::write(&cluster.api.kubeconfig, kubeconfig.to_string()).unwrap();
    let token = cluster.api.kubeconfig.with_file_name("token");
    let issue = |text: &str| std::fs::write(&token, text).unwrap();
    issue("secret-1");
    cluster.api.server.require_token("secret-1");
    cluster.run();
    cluster.expect(&web, &["web-0", "web-1"]);
    let traffic = Traffic::start(&cluster, &web, "web-0");
    cluster.wait_until_connected();
    issue("secret-2\n");
    cluster.api.server.require_token("secret-2");
    cluster.api.server.cut();
    cluster.leave(&mut web, 0);
    cluster.expect(&web, &["web-0"]);
    // Nothing was ever refused.
    cluster.wait_until_connected();
    let status = cluster.daemon().status();
    assert_eq!(restarts(&status, "endpointslices", "unauthorized"), 0);
    // It has run out before there is another one.
    cluster.api.server.require_token("secret-3");
    cluster.api.server.cut();
    cluster.wait_until_away();
    let message = problem(&cluster.daemon().status(), "API server").unwrap();
    assert!(message.contains("Unauthorized (status 401)"), "{message}");
    cluster.expect_now(&web, &["web-0"]);
    issue("secret-3");
    web.endpoints = cluster.backends.iter().map(Endpoint::of).collect();
    cluster.apply(&web);
    cluster.expect(&web, &["web-0", "web-1"]);
    traffic.finish();
    let log = cluster.daemon().log();
    assert!(!log.contains("secret-"), "a token in the log: {log}");
}

#[test]
fn a_storm_of_refusals_is_weathered() {
    let (cluster, mut web) = Cluster::serving();
    let traffic = Traffic::start(&cluster, &web, "web-0");
    cluster.wait_until_connected();
    for resource in RESOURCES {
        let server = &cluster.api.server;
        server.fail(resource, Verb::Watch, 3, Failure::Busy(1));
    }
    let n_requests = cluster.api.server.requests().len();
    let start = Instant::now();
    cluster.api.server.cut();
    cluster.wait_until_away();
    cluster.leave(&mut web, 0);
    cluster.expect(&web, &["web-0"]);
    cluster.wait_until_connected();
    traffic.finish();
    assert!(start.elapsed() > Duration::from_secs(3));
    let n_requests = cluster.api.server.requests().len() - n_requests;
    // Three refusals and one success each.
    assert!(n_requests <= 4 * RESOURCES.len(), "{n_requests} requests");
}
