//! The whole daemon behind an API server that speaks real HTTP, on the node itself.

use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};

use crate::api_cluster::{Cluster, IN_FORCE, problem};
use crate::api_server::Gone;
use crate::client::Connection;
use crate::cluster::Endpoint;

/// Long enough for something wrong to happen.
const A_WHILE: Duration = Duration::from_secs(1);

#[test]
fn services_come_change_and_go() {
    let (cluster, web) = Cluster::serving();
    let mut shop = cluster.service("shop", 11);
    shop.endpoints = vec![Endpoint::of(&cluster.backends[0])];
    cluster.apply(&shop);
    cluster.expect(&shop, &["web-0"]);
    shop.endpoints = vec![Endpoint::of(&cluster.backends[1])];
    cluster.apply(&shop);
    cluster.expect(&shop, &["web-1"]);
    cluster.api.server.delete("services", "default", "shop");
    let start = Instant::now();
    while cluster.services_in_force().to_string().contains("shop") {
        assert!(start.elapsed() < IN_FORCE);
    }
    cluster.expect_now(&web, &["web-0", "web-1"]);
}

#[test]
fn changes_are_followed_after_cut_watches_and_forgotten_versions() {
    let (cluster, mut web) = Cluster::serving();
    let mut turn = 0;
    let mut change_and_expect = |meanwhile: &str| {
        turn += 1;
        let pod = &cluster.backends[turn % 2];
        web.endpoints = vec![Endpoint::of(pod)];
        cluster.apply(&web);
        match meanwhile {
            "gone by an event" => cluster.api.server.forget(Gone::Event),
            "gone by the status" => cluster.api.server.forget(Gone::Status),
            _ => {}
        }
        cluster.expect(&web, &[&pod.name]);
    };
    for what in [
        "cut",
        "gone by an event",
        "cut",
        "gone by the status",
        "cut",
    ] {
        for resource in ["services", "endpointslices"] {
            cluster.api.wait_until_watched(resource);
        }
        cluster.api.server.cut();
        change_and_expect(what);
    }
}

#[test]
fn traffic_goes_on_while_the_api_server_is_away() {
    let (mut cluster, mut web) = Cluster::serving();
    let address = web.address(Family::Ipv4);
    let mut connection = cluster.client.run(|| Connection::open(address).unwrap());
    cluster.api.down();
    let message = cluster.wait_for_problem("API server");
    assert!(message.contains("connection refused"), "{message}");
    web.endpoints = vec![Endpoint::of(&cluster.backends[0])];
    cluster.apply(&web);
    cluster.expect_now(&web, &["web-0", "web-1"]);
    // Nor is it needed after a restart.
    cluster.start();
    cluster.wait_for_problem("API server");
    cluster.expect_now(&web, &["web-0", "web-1"]);
    connection.echo(b"still there?").unwrap();
    cluster.api.up();
    cluster.expect(&web, &["web-0"]);
    cluster.wait_until_solved("API server");
    let start = problem(&cluster.daemon().status(), "start");
    assert_eq!(start, None);
}

#[test]
fn nothing_is_programmed_before_both_first_lists_are_complete() {
    let mut cluster = Cluster::new();
    let web = cluster.service("web", 10);
    cluster.apply(&web);
    cluster.api.hold_back("endpointslices");
    cluster.start();
    cluster.api.wait_until_watched("services");
    cluster.wait_until_attached();
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        assert_eq!(cluster.services_in_force(), json!([]));
        assert_eq!(cluster.daemon().status()["synced"], false);
    }
    cluster.api.server.cut();
    cluster.expect(&web, &["web-0", "web-1"]);
}

#[test]
fn what_is_in_force_stays_while_the_first_lists_are_late() {
    let (mut cluster, web) = Cluster::serving();
    cluster.daemon().kill();
    cluster.api.hold_back("services");
    cluster.start();
    cluster.api.wait_until_watched("endpointslices");
    cluster.wait_until_attached();
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        cluster.expect_now(&web, &["web-0", "web-1"]);
        assert_eq!(cluster.daemon().status()["synced"], false);
    }
    cluster.api.server.cut();
    let ready = |status: &Value| status["synced"] == true;
    cluster.daemon().wait_until("ready", ready).unwrap();
    cluster.expect_now(&web, &["web-0", "web-1"]);
}

#[test]
fn a_restart_with_an_unchanged_cluster_writes_nothing() {
    let (mut cluster, web) = Cluster::serving();
    cluster.daemon().kill();
    cluster.run();
    let status = cluster.daemon().status();
    assert_eq!(status["last_sync"]["writes"], 0, "{status}");
    assert_eq!(status["last_sync"]["services"], 1, "{status}");
    cluster.expect_now(&web, &["web-0", "web-1"]);
}

/// The same object, as nobody can decode it.
fn malformed(kind: &str, version: &str, name: &str, field: &str) -> Value {
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": name, "namespace": "default" },
        field: 7,
    })
}

#[test]
fn what_cannot_be_decoded_after_a_restart_is_kept() {
    let (mut cluster, web) = Cluster::serving();
    let [shop, old] = [("shop", 11), ("old", 12)].map(|(name, number)| {
        let service = cluster.service(name, number);
        cluster.apply(&service);
        cluster.expect(&service, &["web-0", "web-1"]);
        service
    });
    cluster.daemon().kill();
    let server = &cluster.api.server;
    // Of `web` the Service is hidden, of `shop` the endpoints; `old` may have either.
    server.apply(malformed("Service", "v1", "web", "spec"));
    for slice in ["shop-ipv4", "shop-ipv6"] {
        let version = "discovery.k8s.io/v1";
        server.apply(malformed("EndpointSlice", version, slice, "endpoints"));
    }
    server.delete("services", "default", "old");
    cluster.run();
    for service in [&web, &shop, &old] {
        cluster.expect_now(service, &["web-0", "web-1"]);
    }
    let message = cluster.wait_for_problem("start");
    for part in [
        "Service default/old, Service default/shop, Service default/web: ",
        "EndpointSlice default/shop-ipv4, EndpointSlice default/shop-ipv6, Service default/web",
    ] {
        assert!(message.contains(part), "{message}");
    }
    cluster.apply(&shop);
    let start = Instant::now();
    while cluster.services_in_force().to_string().contains("old") {
        assert!(start.elapsed() < IN_FORCE);
    }
    for service in [&web, &shop] {
        cluster.expect_now(service, &["web-0", "web-1"]);
    }
    // The status follows the maps a little later.
    let keeps_web_alone = |status: &Value| {
        problem(status, "start").is_some_and(|text| text.starts_with("Service default/web: "))
    };
    cluster
        .daemon()
        .wait_until("web alone kept", keeps_web_alone)
        .unwrap();
    cluster.apply(&web);
    cluster.wait_until_solved("start");
    cluster.expect_now(&web, &["web-0", "web-1"]);
}

#[test]
fn an_api_server_that_is_away_at_the_start_is_waited_for() {
    let mut cluster = Cluster::new();
    let web = cluster.service("web", 10);
    cluster.apply(&web);
    cluster.api.down();
    cluster.start();
    let message = cluster.wait_for_problem("API server");
    assert!(message.contains("connection refused"), "{message}");
    let log = cluster.daemon().log();
    assert!(log.contains("API server: listing "), "{log}");
    assert_eq!(cluster.daemon().status()["synced"], false);
    cluster.api.up();
    cluster.expect(&web, &["web-0", "web-1"]);
    cluster.wait_until_solved("API server");
}

/// Runs with the kubeconfig, which must be refused at once in one line that has these words.
fn assert_refused(cluster: &Cluster, words: &str) {
    let daemon = cluster.beeline().start::<&str>([]).unwrap();
    let end = daemon.wait_until("refused", |_| false).unwrap_err();
    assert!(end.to_string().contains("exit status: 1"), "{end}");
    let log = daemon.log();
    assert_eq!(log.lines().count(), 1, "{log}");
    let start = format!("error: kubeconfig {}: ", cluster.api.kubeconfig.display());
    assert!(log.starts_with(&start), "no {start:?} in: {log}");
    assert!(log.contains(words), "no {words:?} in: {log}");
    assert!(!cluster.testbed.bpffs().join("beeline").exists());
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let mut cluster = Cluster::new();
    let good = cluster.api.server.kubeconfig();
    let other = good.replace(
        r#""current-context":"test""#,
        r#""current-context":"other""#,
    );
    for (text, words) in [
        ("clusters: [", "line 1 column 11: unclosed bracket '['"),
        ("clusters: 7", "line 1 column 11: "),
        (&other, "failed to load current context: other"),
    ] {
        std::fs::write(&cluster.api.kubeconfig, text).unwrap();
        assert_refused(&cluster, words);
    }
    cluster.api.kubeconfig = "/nowhere/to/be/found".into();
    assert_refused(&cluster, "no such file or directory");
}

/// Nobody can tell yet which of them the socket edge is to leave out.
#[test]
fn pods_that_are_not_listed_yet_are_left_to_their_devices() {
    let cluster = Cluster::new();
    let service = cluster.service("web", 10);
    cluster.apply(&service);
    cluster.api.hold_back("pods");
    let group = cluster.client.namespace.cgroup().file_name().unwrap();
    let uid = group.to_str().unwrap().strip_prefix("pod").unwrap();
    cluster.api.server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "client", "namespace": "shop", "uid": uid},
        "spec": {"nodeName": xtask::testbed::NODE_NAME},
    }));
    let beeline = cluster.beeline().socket_lb("all");
    let skip = ["--socket-lb-skip-namespaces", "mesh"];
    let daemon = beeline.run(skip).unwrap();
    // What the pod edge translates is a flow.
    let is_flow = || {
        let address = service.address(Family::Ipv4);
        let open = || Connection::open(address).unwrap();
        let connection = cluster.client.run(open);
        let client = connection.stream.local_addr().unwrap().to_string();
        let flows = beeline.json(["flows"]).unwrap().to_string();
        flows.contains(&client)
    };
    assert!(is_flow());
    cluster.api.server.cut();
    let served = |status: &Value| status["socket_edge"]["pods"]["served"] == 1;
    daemon.wait_until("served", served).unwrap();
    assert!(!is_flow());
}
