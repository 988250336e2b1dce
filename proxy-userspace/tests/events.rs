//! Kubernetes Events, at an API server that speaks real HTTP.

#[path = "support/api_server.rs"]
mod api_server;

use std::time::{Duration, Instant};

use api_server::{ApiServer, Failure, Verb};
use beeline::events::{Events, Trouble};
use beeline::model::Problem;
use beeline::source::kubernetes::{Access, client};
use serde_json::{Value, json};

/// What is over soon is not said.
const GRACE: Duration = Duration::from_secs(3);

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-of-{name}")},
        "spec": {"clusterIP": "10.0.0.1"},
    })
}

fn problem(subject: &str, message: &str) -> Problem {
    Problem {
        subject: subject.to_owned(),
        message: message.to_owned(),
    }
}

/// A daemon, as far as Events go.
async fn events(server: &ApiServer) -> Events {
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), server.kubeconfig()).unwrap();
    let access = Access {
        kubeconfig: Some(kubeconfig.path().to_owned()),
        ..Access::default()
    };
    Events::start(client(&access).await.unwrap(), "n1")
}

/// The Events there are for this reason.
fn written(server: &ApiServer, reason: &str) -> Vec<Value> {
    let mut events = server.objects("events");
    events.retain(|event| event["reason"] == reason);
    events
}

/// Waits until there is an Event for this reason.
async fn until(server: &ApiServer, reason: &str) -> Value {
    let start = Instant::now();
    loop {
        if let Some(event) = written(server, reason).pop() {
            return event;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "no {reason}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn n_requests(server: &ApiServer, word: &str) -> usize {
    let requests = server.requests().into_iter();
    requests.filter(|it| it.starts_with(word)).count()
}

#[tokio::test]
async fn a_problem_is_one_event_on_its_object() {
    let server = ApiServer::start().await;
    server.apply(service("web"));
    let events = events(&server).await;
    let full = |n: u32| {
        let message = format!("map SLOTS is full: {n} more needed; raise --max-slots");
        [problem("Service shop/web", &message), problem("maps", "x")]
    };
    let tell = |n| events.tell([(Trouble::Maps, &full(n)[..])]);
    tell(1);
    let event = until(&server, "FailedToProgramService").await;
    tell(2);
    events.tell([]);
    tell(3);
    tokio::time::sleep(GRACE / 2).await;
    // Over and there again within the time of grace.
    events.tell([]);
    tokio::time::sleep(GRACE).await;
    assert_eq!(written(&server, "FailedToProgramService").len(), 1);
    assert_eq!(n_requests(&server, "POST"), 2, "{:#?}", server.requests());
    assert_eq!(n_requests(&server, "PATCH"), 0);
    let note = "node n1: map SLOTS is full: 1 more needed; raise --max-slots";
    for (field, value) in [
        ("/metadata/namespace", "shop"),
        ("/type", "Warning"),
        ("/note", note),
        ("/action", "ProgramService"),
        ("/reportingController", "beeline"),
        ("/reportingInstance", "beeline-n1"),
        ("/regarding/apiVersion", "v1"),
        ("/regarding/kind", "Service"),
        ("/regarding/namespace", "shop"),
        ("/regarding/name", "web"),
        ("/regarding/uid", "uid-of-web"),
    ] {
        assert_eq!(
            event.pointer(field),
            Some(&value.into()),
            "{field}: {event}"
        );
    }
    let time: jiff::Timestamp = event["eventTime"].as_str().unwrap().parse().unwrap();
    let now = jiff::Timestamp::try_from(beeline::clock::wall()).unwrap();
    assert!(now.duration_since(time).abs() < jiff::SignedDuration::from_secs(60));
}

#[tokio::test]
async fn servers_that_cannot_be_started_are_said_where_kube_proxy_says_it() {
    let server = ApiServer::start().await;
    server.apply(service("web"));
    let events = events(&server).await;
    let taken = "cannot listen: address in use";
    events.tell([(
        Trouble::Server,
        &[
            problem("Service shop/web", taken),
            problem("healthz address 0.0.0.0:10256", taken),
            problem("metrics address 127.0.0.1:10249", taken),
        ][..],
    )]);
    for (reason, namespace, uid) in [
        ("FailedToStartServiceHealthcheck", "shop", "uid-of-web"),
        ("FailedToStartProxierHealthcheck", "default", "n1"),
        ("FailedToStartMetricServer", "default", "n1"),
    ] {
        let event = until(&server, reason).await;
        assert_eq!(event["metadata"]["namespace"], namespace);
        assert_eq!(event["regarding"]["uid"], uid);
    }
}

#[tokio::test]
async fn a_restart_storm_adds_no_events() {
    let server = ApiServer::start().await;
    server.apply(service("web"));
    let clash = [problem(
        "Service shop/web",
        "10.0.0.1:80 belongs to Service a/b already",
    )];
    let mut daemons = Vec::new();
    for count in 1..=5u32 {
        let events = events(&server).await;
        events.tell([(Trouble::Maps, &clash[..])]);
        // One start after the other: each counts.
        server
            .requested(&["POST", "/namespaces/default/events"], count as usize)
            .await;
        if count > 1 {
            let patches = 2 * (count as usize - 1);
            server.requested(&["PATCH"], patches).await;
        }
        daemons.push(events);
    }
    until(&server, "FailedToProgramService").await;
    server
        .requested(&["POST", "/namespaces/shop/events"], 5)
        .await;
    assert_eq!(server.objects("events").len(), 2);
    let start = until(&server, "Starting").await;
    assert_eq!(start["series"]["count"], 5, "{start}");
    assert_eq!(start["type"], "Normal");
    let clash = until(&server, "FailedToProgramService").await;
    assert!(clash["series"].is_null(), "{clash}");
}

#[tokio::test]
async fn a_refusal_is_no_reason_to_insist() {
    let server = ApiServer::start().await;
    server.apply(service("web"));
    server.fail("events", Verb::Create, 1000, Failure::Status(403));
    let events = events(&server).await;
    events.tell([(Trouble::Maps, &[problem("Service shop/web", "no room")][..])]);
    server
        .requested(&["POST", "/namespaces/shop/events"], 1)
        .await;
    tokio::time::sleep(GRACE).await;
    assert_eq!(n_requests(&server, "POST"), 2);
    assert_eq!(server.objects("events"), Vec::<Value>::new());
}

#[tokio::test]
async fn a_flood_of_problems_is_a_trickle_of_events() {
    let server = ApiServer::start().await;
    let names: Vec<_> = (0..100).map(|n| format!("web{n}")).collect();
    for name in &names {
        server.apply(service(name));
    }
    let events = events(&server).await;
    let problems: Vec<_> = names
        .iter()
        .map(|name| problem(&format!("Service shop/{name}"), "no room"))
        .collect();
    let start = Instant::now();
    for _ in 0..1000 {
        events.tell([(Trouble::Maps, &problems[..])]);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "nobody waits");
    until(&server, "FailedToProgramService").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.objects("events").len(), 10);
}

#[tokio::test]
async fn nothing_is_written_of_what_is_gone() {
    let server = ApiServer::start().await;
    let events = events(&server).await;
    events.tell([(Trouble::Maps, &[problem("Service shop/web", "no room")][..])]);
    server
        .requested(&["LIST", "/namespaces/shop/services"], 1)
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(n_requests(&server, "POST"), 1, "the start alone");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_waited_for() {
    let mut server = ApiServer::start().await;
    server.down().await;
    let events = events(&server).await;
    let start = Instant::now();
    events.tell([(Trouble::Maps, &[problem("Service shop/web", "no room")][..])]);
    assert!(start.elapsed() < Duration::from_millis(100));
    server.up().await;
    server.apply(service("web"));
    // What was tried in vain is tried again after a while, and each time that something is new.
    events.tell([(
        Trouble::Maps,
        &[problem("Service shop/web", "no room at all")][..],
    )]);
    tokio::time::sleep(GRACE + Duration::from_secs(1)).await;
    events.tell([]);
    until(&server, "Starting").await;
}
