//! The Kubernetes source against an API server that speaks real HTTP.

#[path = "support/api_server.rs"]
mod api_server;
#[path = "support/events.rs"]
mod events;

use std::time::{Duration, Instant};

use api_server::{ApiServer, Failure, Gone, Verb};
use beeline::source::KubernetesSource;
use beeline::source::kubernetes::{Access, client, state};
use events::Events;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::task::JoinHandle;

fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": address, "ports": [{"port": 80}]},
    })
}

fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|a| json!({"addresses": [a]}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": 80}], "endpoints": endpoints,
    })
}

fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
    })
}

fn service_cidr(name: &str, ranges: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": ranges},
    })
}

fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"][label] = "".into();
    object
}

/// A source on an API server, through a kubeconfig file.
struct Fixture {
    server: ApiServer,
    events: Events,
    source: JoinHandle<()>,
    _kubeconfig: NamedTempFile,
}

impl Fixture {
    async fn on(server: ApiServer) -> Self {
        Self::with(server, false).await
    }

    async fn with(server: ApiServer, pods: bool) -> Self {
        let kubeconfig = NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), server.kubeconfig()).unwrap();
        let access = Access {
            kubeconfig: Some(kubeconfig.path().to_owned()),
            ..Access::default()
        };
        let (sender, events) = Events::channel();
        let source = KubernetesSource {
            client: client(&access).await.unwrap(),
            timing: access.timing,
            node: "n1".into(),
            pods,
            state: state(pods),
        };
        Self {
            server,
            events,
            source: tokio::spawn(source.run(sender)),
            _kubeconfig: kubeconfig,
        }
    }

    /// With one Service and one slice, up to the point where all is known and watched.
    async fn synced() -> Self {
        let server = ApiServer::start().await;
        server.apply(service("web", "10.0.0.1"));
        server.apply(slice("web-1", &["10.1.0.1"]));
        server.apply(node("n1", "a"));
        let mut it = Self::on(server).await;
        let first = it.events.sorted(4).await;
        assert_eq!(
            first,
            [
                "Node n1 a",
                "Service shop/web 10.0.0.1",
                "Slice shop/web-1 10.1.0.1",
                "Synced"
            ]
        );
        it.watched().await;
        it
    }

    async fn watched(&self) {
        for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
            self.server.watched(resource).await;
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(&self.events.next().await, expected);
        }
    }

    /// Nothing is to be announced but what comes now.
    async fn expect_nothing_before_a_change(&mut self, address: &str) {
        self.server.apply(service("probe", address));
        self.expect(&[&format!("Service shop/probe {address}")])
            .await;
    }
}

#[tokio::test]
async fn changes_are_followed() {
    let mut it = Fixture::synced().await;
    it.server.apply(service("web", "10.0.0.2"));
    it.expect(&["Service shop/web 10.0.0.2"]).await;
    it.server.apply(slice("web-1", &["10.1.0.1", "10.1.0.2"]));
    it.expect(&["Slice shop/web-1 10.1.0.1,10.1.0.2"]).await;
    it.server.apply(node("n1", "b"));
    it.expect(&["Node n1 b"]).await;
    it.server.delete("endpointslices", "shop", "web-1");
    it.expect(&["SliceGone shop/web-1"]).await;
    it.server.delete("services", "shop", "web");
    it.expect(&["ServiceGone shop/web"]).await;
    // R46: a Node that goes says nothing.
    it.server.delete("nodes", "", "n1");
    it.expect_nothing_before_a_change("10.0.0.9").await;
}

#[tokio::test]
async fn service_cidrs_are_followed() {
    let mut it = Fixture::synced().await;
    it.server
        .apply(service_cidr("a", &["10.0.0.0/16", "fd00::/112"]));
    it.expect(&["ServiceCidrs 10.0.0.0/16,fd00::/112"]).await;
    it.server.apply(service_cidr("b", &["10.1.0.0/16"]));
    it.expect(&["ServiceCidrs 10.0.0.0/16,10.1.0.0/16,fd00::/112"])
        .await;
    it.server.delete("servicecidrs", "", "a");
    it.expect(&["ServiceCidrs 10.1.0.0/16"]).await;
    it.server.delete("servicecidrs", "", "b");
    it.expect(&["ServiceCidrs "]).await;
}

#[tokio::test]
async fn an_api_server_without_service_cidrs_is_fine() {
    let server = ApiServer::start().await;
    server.fail("servicecidrs", Verb::List, 1000, Failure::Status(404));
    server.apply(service("web", "10.0.0.1"));
    let mut it = Fixture::on(server).await;
    assert_eq!(
        it.events.sorted(2).await,
        ["Service shop/web 10.0.0.1", "Synced"]
    );
    it.server.requested(&["/servicecidrs"], 1).await;
    it.server.watched("services").await;
    it.expect_nothing_before_a_change("10.0.0.9").await;
    let lists = it.server.requests().into_iter();
    let lists = lists.filter(|request| request.contains("/servicecidrs"));
    assert_eq!(lists.count(), 1, "it is asked again and again");
}

#[tokio::test]
async fn only_what_matters_is_asked_for() {
    let server = ApiServer::start().await;
    let foreign = "service.kubernetes.io/service-proxy-name";
    let headless = "service.kubernetes.io/headless";
    server.apply(labelled(service("foreign", "10.0.0.2"), foreign));
    server.apply(service("headless", "None"));
    server.apply(labelled(slice("headless-1", &["10.1.0.2"]), headless));
    server.apply(node("n2", "z"));
    server.apply(service("web", "10.0.0.1"));
    let mut it = Fixture::on(server).await;
    assert_eq!(
        it.events.until("Synced").await,
        ["Service shop/web 10.0.0.1", "Synced"]
    );
    it.watched().await;
    for (path, parts) in [
        (
            "/api/v1/services",
            [
                "[labelSelector=!service.kubernetes.io/service-proxy-name]",
                "[fieldSelector=spec.clusterIP!=None]",
            ],
        ),
        (
            "/discovery.k8s.io/v1/endpointslices",
            ["[labelSelector=!service.kubernetes.io/headless]", ""],
        ),
        ("/api/v1/nodes", ["[fieldSelector=metadata.name=n1]", ""]),
    ] {
        it.server
            .requested(&["LIST", path, parts[0], parts[1], "[limit="], 1)
            .await;
        let watch = [
            path,
            parts[0],
            parts[1],
            "[watch=true]",
            "[allowWatchBookmarks=true]",
        ];
        it.server.requested(&watch, 1).await;
    }
    // R3, R1, R2: given away, taken back, made headless, made external.
    it.server
        .apply(labelled(service("web", "10.0.0.1"), foreign));
    it.expect(&["ServiceGone shop/web"]).await;
    it.server.apply(service("web", "10.0.0.1"));
    it.expect(&["Service shop/web 10.0.0.1"]).await;
    it.server.apply(service("web", "None"));
    it.expect(&["ServiceGone shop/web"]).await;
    it.server.apply(service("web", "10.0.0.1"));
    it.expect(&["Service shop/web 10.0.0.1"]).await;
    let mut external = service("web", "10.0.0.1");
    external["spec"]["type"] = "ExternalName".into();
    it.server.apply(external);
    it.expect(&["ServiceGone shop/web"]).await;
    // R4
    it.server.apply(slice("web-1", &["10.1.0.1"]));
    it.expect(&["Slice shop/web-1 10.1.0.1"]).await;
    it.server
        .apply(labelled(slice("web-1", &["10.1.0.1"]), headless));
    it.expect(&["SliceGone shop/web-1"]).await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = ApiServer::start().await;
    for n in 0..1100 {
        server.apply(service(&format!("s{n:04}"), "10.0.0.1"));
    }
    let mut it = Fixture::on(server).await;
    let lines = it.events.until("Synced").await;
    assert_eq!(lines.len(), 1101);
    it.server.requested(&["/services", "[continue="], 2).await;
}

#[tokio::test]
async fn nothing_is_synced_before_both_lists_are_complete() {
    for late in ["services", "endpointslices"] {
        let server = ApiServer::start().await;
        server.fail(
            late,
            Verb::List,
            1,
            Failure::Late(Duration::from_millis(300)),
        );
        server.apply(service("web", "10.0.0.1"));
        server.apply(slice("web-1", &["10.1.0.1"]));
        let mut it = Fixture::on(server).await;
        let lines = it.events.until("Synced").await;
        assert_eq!(lines.len(), 3, "{lines:?}");
        it.expect_nothing_before_a_change("10.0.0.9").await;
    }
}

#[tokio::test]
async fn a_slow_start_is_waited_for() {
    let mut server = ApiServer::start().await;
    server.apply(service("web", "10.0.0.1"));
    server.down().await;
    let mut it = Fixture::on(server).await;
    let problem = it.events.next().await;
    assert!(
        problem.starts_with("Problem API server: listing "),
        "{problem}"
    );
    assert!(problem.contains("connection refused"), "{problem}");
    it.server.up().await;
    let mut lines = it.events.until("Synced").await;
    while !lines.iter().any(|line| line == "Solved API server") {
        lines.push(it.events.next().await);
    }
    assert!(
        lines.contains(&"Service shop/web 10.0.0.1".to_owned()),
        "{lines:?}"
    );
}

#[tokio::test]
async fn errors_of_the_server_are_reported_and_retried() {
    let server = ApiServer::start().await;
    server.apply(service("web", "10.0.0.1"));
    server.fail("services", Verb::List, 1, Failure::Status(429));
    server.fail("services", Verb::List, 1, Failure::Status(500));
    let mut it = Fixture::on(server).await;
    for code in [429, 500] {
        let problem =
            format!("Problem API server: listing Services: as the test wants it (status {code})");
        it.expect(&[&problem]).await;
    }
    it.expect(&["Service shop/web 10.0.0.1", "Solved API server", "Synced"])
        .await;
}

#[tokio::test]
async fn the_same_trouble_is_reported_once() {
    let mut it = Fixture::synced().await;
    it.server
        .fail("services", Verb::Watch, 2, Failure::Status(503));
    it.server.cut();
    it.expect(&[
        "Problem API server: watching Services: as the test wants it (status 503)",
        "Solved API server",
    ])
    .await;
    it.expect_nothing_before_a_change("10.0.0.9").await;
}

#[tokio::test]
async fn an_answer_that_is_no_list_is_reported() {
    let server = ApiServer::start().await;
    server.fail("services", Verb::List, 1, Failure::Body("<html>".into()));
    let mut it = Fixture::on(server).await;
    it.expect(&[
        "Problem API server: listing Services: expected value at line 1 column 1",
        "Solved API server",
        "Synced",
    ])
    .await;
}

#[tokio::test]
async fn a_cut_connection_is_resumed_where_it_was() {
    let mut it = Fixture::synced().await;
    for n in 2..4 {
        it.server.cut();
        it.server.apply(service("web", &format!("10.0.0.{n}")));
        it.server.apply(slice("web-1", &[&format!("10.1.0.{n}")]));
        let mut lines = it.events.sorted(2).await;
        lines.sort();
        let expected = [
            format!("Service shop/web 10.0.0.{n}"),
            format!("Slice shop/web-1 10.1.0.{n}"),
        ];
        assert_eq!(lines, expected);
        it.watched().await;
    }
    // Without listing again.
    let lists = it
        .server
        .requests()
        .iter()
        .filter(|request| request.starts_with("LIST"))
        .count();
    assert_eq!(lists, 4);
    it.expect_nothing_before_a_change("10.0.0.9").await;
}

#[tokio::test]
async fn a_server_that_is_away_changes_nothing() {
    let mut it = Fixture::synced().await;
    it.server.down().await;
    let problem = it.events.next().await;
    assert!(
        problem.starts_with("Problem API server: watching "),
        "{problem}"
    );
    it.server.apply(service("web", "10.0.0.2"));
    it.server.up().await;
    let mut lines = Vec::new();
    for done in ["Solved API server", "Service shop/web 10.0.0.2"] {
        while !lines.iter().any(|line| line == done) {
            lines.push(it.events.next().await);
        }
    }
    lines.retain(|line| !line.starts_with("Problem API server") && line != "Solved API server");
    assert_eq!(lines, ["Service shop/web 10.0.0.2"]);
}

#[tokio::test]
async fn a_forgotten_version_leads_to_a_new_list() {
    for gone in [Gone::Status, Gone::Event] {
        let mut it = Fixture::synced().await;
        it.server.apply(service("stays", "10.0.0.7"));
        it.expect(&["Service shop/stays 10.0.0.7"]).await;
        it.server.down().await;
        // While nobody looks, one goes, one comes, one changes and one stays.
        it.server.delete("services", "shop", "web");
        it.server.apply(service("new", "10.0.0.8"));
        it.server.apply(slice("web-1", &["10.1.0.9"]));
        it.server.forget(gone);
        it.server.up().await;
        let mut lines = Vec::new();
        for done in [
            "ServiceGone shop/web",
            "Service shop/new 10.0.0.8",
            "Slice shop/web-1 10.1.0.9",
        ] {
            while !lines.iter().any(|line| line == done) {
                lines.push(it.events.next().await);
            }
        }
        lines.retain(|line| !line.contains("API server"));
        assert_eq!(lines.len(), 3, "{gone:?} {lines:?}");
        it.watched().await;
        it.server.apply(service("new", "10.0.0.9"));
        let line = it.events.until("Service shop/new").await.pop();
        assert_eq!(line.as_deref(), Some("Service shop/new 10.0.0.9"));
    }
}

#[tokio::test]
async fn an_error_event_in_a_running_watch_leads_to_a_new_list() {
    let mut it = Fixture::synced().await;
    it.server.send(
        "endpointslices",
        "ERROR",
        &json!({
            "kind": "Status", "code": 410, "reason": "Expired", "message": "too old",
        }),
    );
    it.server.requested(&["LIST", "/endpointslices"], 2).await;
    it.watched().await;
    it.server.apply(slice("web-1", &["10.1.0.5"]));
    it.expect(&["Slice shop/web-1 10.1.0.5"]).await;
}

#[tokio::test]
async fn bookmarks_move_the_version_on() {
    let mut it = Fixture::synced().await;
    // Much happens that this watch does not see.
    let mut version = 0;
    for n in 0..10 {
        version = it.server.apply(node("n2", &n.to_string()));
    }
    it.server.bookmark("services");
    // Events come in order: after this one the bookmark has been seen.
    it.server.send(
        "services",
        "MODIFIED",
        &json!({
            "metadata": {"name": "probe", "namespace": "shop", "resourceVersion": version.to_string()},
            "spec": {"clusterIP": "10.0.0.9"},
        }),
    );
    it.expect(&["Service shop/probe 10.0.0.9"]).await;
    it.server.forget(Gone::Event);
    it.server.cut();
    it.server.requested(&["/services", "[watch=true]"], 2).await;
    it.watched().await;
    it.server.apply(service("web", "10.0.0.2"));
    it.expect(&["Service shop/web 10.0.0.2"]).await;
    let is_list = |request: &String| request.starts_with("LIST") && request.contains("/services");
    assert_eq!(it.server.requests().into_iter().filter(is_list).count(), 1);
}

#[tokio::test]
async fn duplicated_and_old_events_are_no_news() {
    let mut it = Fixture::synced().await;
    let old = slice("web-1", &["10.1.0.1"]);
    let version = it.server.apply(slice("web-1", &["10.1.0.2"]));
    it.expect(&["Slice shop/web-1 10.1.0.2"]).await;
    let at = |mut object: Value, version: u64| {
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object
    };
    it.server.send(
        "endpointslices",
        "MODIFIED",
        &at(slice("web-1", &["10.1.0.2"]), version),
    );
    it.server.send(
        "endpointslices",
        "ADDED",
        &at(slice("web-1", &["10.1.0.2"]), version),
    );
    it.server
        .send("endpointslices", "MODIFIED", &at(old.clone(), version - 1));
    it.server
        .send("endpointslices", "DELETED", &at(old.clone(), version - 1));
    // A change that does not matter.
    let mut annotated = slice("web-1", &["10.1.0.2"]);
    annotated["metadata"]["annotations"] = json!({"a": "b"});
    it.server.apply(annotated);
    it.server.apply(slice("web-2", &["10.1.0.9"]));
    it.expect(&["Slice shop/web-2 10.1.0.9"]).await;
    // An old event does not revive what was deleted.
    it.server.delete("endpointslices", "shop", "web-1");
    it.expect(&["SliceGone shop/web-1"]).await;
    it.server
        .send("endpointslices", "MODIFIED", &at(old, version));
    it.server.apply(slice("web-2", &["10.1.0.10"]));
    it.expect(&["Slice shop/web-2 10.1.0.10"]).await;
    // But the same name may be used again.
    it.server.apply(slice("web-1", &["10.1.0.3"]));
    it.expect(&["Slice shop/web-1 10.1.0.3"]).await;
}

#[tokio::test]
async fn a_malformed_object_stalls_nothing() {
    let server = ApiServer::start().await;
    let mut malformed = service("bad", "10.0.0.2");
    malformed["spec"]["ports"] = json!([{"port": "http"}]);
    server.apply(malformed.clone());
    server.apply(service("web", "10.0.0.1"));
    let mut it = Fixture::on(server).await;
    let problem = "Problem Service shop/bad: spec.ports[0].port: \
                   invalid type: string \"http\", expected i32";
    it.expect(&[problem, "Service shop/web 10.0.0.1", "Synced"])
        .await;
    it.watched().await;
    it.server.apply(service("bad", "10.0.0.2"));
    it.expect(&["Service shop/bad 10.0.0.2", "Solved Service shop/bad"])
        .await;
    // What it said before stays in force; the watch goes on.
    it.server.apply(malformed);
    it.expect(&[problem]).await;
    it.expect_nothing_before_a_change("10.0.0.9").await;
    // Malformed in part, it is used for the rest.
    let mut partly = service("bad", "10.0.0.3");
    partly["spec"]["ports"][0]["protocol"] = "QUIC".into();
    it.server.apply(partly);
    it.expect(&[
        "Service shop/bad 10.0.0.3",
        "Problem Service shop/bad: spec.ports[0].protocol: unknown protocol 'QUIC'",
    ])
    .await;
    it.server.delete("services", "shop", "bad");
    it.expect(&["ServiceGone shop/bad", "Solved Service shop/bad"])
        .await;
}

#[tokio::test]
async fn an_event_that_can_not_be_read_leads_to_a_new_list() {
    let mut it = Fixture::synced().await;
    it.server.send("services", "MIXED UP", &json!({}));
    it.expect(&["Problem API server: watching Services: unreadable event"])
        .await;
    it.expect(&["Solved API server"]).await;
    it.expect_nothing_before_a_change("10.0.0.9").await;
    it.server.requested(&["LIST", "/services"], 2).await;
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_not_opened_in_a_rush() {
    let it = Fixture::synced().await;
    let start = Instant::now();
    it.server
        .fail("services", Verb::Watch, 1000, Failure::Body(String::new()));
    it.server.cut();
    it.server.requested(&["/services", "[watch=true]"], 4).await;
    assert!(
        start.elapsed() > Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn requests_that_are_cut_are_sent_again() {
    let server = ApiServer::start().await;
    server.apply(service("web", "10.0.0.1"));
    server.fail("services", Verb::List, 2, Failure::Cut);
    let mut it = Fixture::on(server).await;
    let lines = it.events.until("Synced").await;
    assert_eq!(lines.last().map(String::as_str), Some("Synced"));
    assert!(
        lines.contains(&"Service shop/web 10.0.0.1".to_owned()),
        "{lines:?}"
    );
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let it = Fixture::synced().await;
    drop(it.events);
    tokio::time::timeout(Duration::from_secs(10), it.source)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_missing_kubeconfig_is_an_error() {
    let access = Access {
        kubeconfig: Some("/nonexistent/config".into()),
        ..Access::default()
    };
    let error = client(&access).await.map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kubeconfig /nonexistent/config: no such file or directory"
    );
}

fn pod(name: &str, node: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"),
                     "labels": labels},
        "spec": {"nodeName": node}, "status": {"phase": "Running"},
    })
}

#[tokio::test]
async fn pods_of_this_node_are_followed_by_their_metadata() {
    let server = ApiServer::start().await;
    server.apply(pod("a", "n1", json!({"app": "x"})));
    server.apply(pod("b", "n2", json!({})));
    let mut mirror = pod("c", "n1", json!({}));
    mirror["metadata"]["annotations"] =
        json!({"kubernetes.io/config.mirror": "h", "kubernetes.io/config.hash": "h"});
    server.apply(mirror);
    let mut it = Fixture::with(server, true).await;
    let mut first = it.events.sorted(4).await;
    first.sort();
    assert_eq!(
        first,
        [
            "Pod shop/a u-a app=x",
            "Pod shop/c h ",
            "PodsKnown",
            "Synced"
        ]
    );
    it.server.watched("pods").await;
    let ours = "[fieldSelector=spec.nodeName=n1,status.phase!=Succeeded,status.phase!=Failed]";
    for watch in ["LIST", "WATCH"] {
        let parts = ["/api/v1/pods", ours, watch, "[as=PartialObjectMetadata"];
        it.server.requested(&parts, 1).await;
    }
    it.server.apply(pod("a", "n1", json!({"app": "y"})));
    it.expect(&["Pod shop/a u-a app=y"]).await;
    it.server.apply(pod("d", "n1", json!({"app": 1})));
    it.expect(&[
        "Problem Pod shop/d: metadata.labels.app: invalid type: integer `1`, expected a string",
    ])
    .await;
    let mut ended = pod("a", "n1", json!({"app": "y"}));
    ended["status"]["phase"] = "Succeeded".into();
    it.server.apply(ended);
    it.expect(&["PodGone shop/a"]).await;
    it.server.delete("pods", "shop", "c");
    it.expect(&["PodGone shop/c"]).await;
    it.expect_nothing_before_a_change("10.0.0.9").await;
}

/// Without the right to list Pods, Services are served all the same.
#[tokio::test]
async fn pods_that_must_not_be_listed_hold_up_nothing() {
    let server = ApiServer::start().await;
    server.apply(service("web", "10.0.0.1"));
    server.fail("pods", Verb::List, 1, Failure::Status(403));
    let mut it = Fixture::with(server, true).await;
    let mut lines = it.events.sorted(5).await;
    lines.sort();
    assert_eq!(
        lines,
        [
            "PodsKnown",
            "Problem API server: listing Pods: as the test wants it (status 403)",
            "Service shop/web 10.0.0.1",
            "Solved API server",
            "Synced",
        ]
    );
}

#[tokio::test]
async fn pods_are_not_asked_for_unless_they_are_wanted() {
    let it = Fixture::synced().await;
    let asked = it.server.requests();
    assert!(
        !asked.iter().any(|request| request.contains("/pods")),
        "{asked:?}"
    );
}
