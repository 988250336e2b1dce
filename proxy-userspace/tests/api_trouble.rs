//! The Kubernetes source when the API server is in trouble: it says so, is patient, and comes back
//! without a word too many. Times are short, but in proportion.

#[path = "support/api_server.rs"]
mod api_server;
#[path = "support/events.rs"]
mod events;

use std::time::{Duration, Instant};

use api_server::{ApiServer, Failure, Gone, Verb};
use beeline::source::kubernetes::{Access, RIGHTS, Timing, client, state};
use beeline::source::{KubernetesSource, ResourceState, SourceState};
use events::Events;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// No state takes longer to come unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is followed.
const RESOURCES: [&str; 4] = ["endpointslices", "nodes", "servicecidrs", "services"];

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Everything is about two hundred times as fast.
fn fast() -> Timing {
    Timing {
        connect: millis(500),
        answer: millis(1000),
        slow: millis(200),
        idle: millis(700),
        pace: millis(5),
        pause: (millis(4), millis(150)),
    }
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": address, "ports": [{"port": 80}]},
    })
}

/// A source on API servers.
struct Fixture {
    events: Events,
    state: watch::Receiver<SourceState>,
    folder: TempDir,
    source: JoinHandle<()>,
}

impl Fixture {
    /// With a user as a kubeconfig has it.
    async fn start(server: &ApiServer, access: Access, user: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut kubeconfig: Value = serde_json::from_str(&server.kubeconfig()).unwrap();
        kubeconfig["users"][0]["user"] = user;
        std::fs::write(folder.path().join("config"), kubeconfig.to_string()).unwrap();
        std::fs::write(folder.path().join("token"), "first\n").unwrap();
        let access = Access {
            kubeconfig: Some(folder.path().join("config")),
            ..access
        };
        Self {
            folder,
            ..Self::through(access).await
        }
    }

    async fn through(access: Access) -> Self {
        let (sender, events) = Events::wide_channel();
        let told = state(false);
        let state = told.subscribe();
        let source = KubernetesSource {
            client: client(&access).await.unwrap(),
            timing: access.timing,
            node: "n1".into(),
            pods: false,
            state: told,
        };
        Self {
            events,
            state,
            folder: tempfile::tempdir().unwrap(),
            source: tokio::spawn(source.run(sender)),
        }
    }

    /// On one server, with one Service that is known.
    async fn synced(server: &ApiServer) -> Self {
        server.apply(service("web", "10.0.0.1"));
        let access = Access {
            timing: fast(),
            ..Access::default()
        };
        let mut it = Self::start(server, access, json!({})).await;
        it.expect_start().await;
        it
    }

    async fn expect_start(&mut self) {
        let lines = self.events.sorted(2).await;
        assert_eq!(lines, ["Service shop/web 10.0.0.1", "Synced"]);
        self.until("all connected", is_connected).await;
    }

    /// Waits until the state is so.
    async fn until(&mut self, what: &str, holds: impl FnMut(&SourceState) -> bool) {
        let wait = self.state.wait_for(holds);
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("not {what}: {:?}", *self.state.borrow());
        }
    }

    fn resource(&self, resource: &str) -> ResourceState {
        self.state.borrow().resources[resource].clone()
    }

    fn restarts(&self, resource: &str, reason: &str) -> u64 {
        self.resource(resource).n_restarts[reason]
    }

    /// Takes in events until this one; those about Services and Nodes among them.
    async fn objects_until(&mut self, last: &str) -> Vec<String> {
        let mut lines = self.events.until(last).await;
        lines.retain(|line| !line.contains("API server"));
        lines
    }

    /// A change is heard of, and nothing was said of what did not change.
    async fn expect_change(&mut self, server: &ApiServer, address: &str) {
        server.apply(service("web", address));
        let line = format!("Service shop/web {address}");
        assert_eq!(self.objects_until(&line).await, [line]);
    }
}

fn is_connected(state: &SourceState) -> bool {
    state.is_listed() && state.away(Instant::now()).next().is_none()
}

fn is_away(state: &SourceState) -> bool {
    state.away(Instant::now()).count() == RESOURCES.len()
}

fn count(server: &ApiServer, parts: &[&str]) -> usize {
    let requests = server.requests().into_iter();
    let has_all = |request: &String| parts.iter().all(|part| request.contains(part));
    requests.filter(has_all).count()
}

/// Waits until each watch has been opened `times` times.
async fn watched_again(server: &ApiServer, times: usize) {
    for resource in RESOURCES {
        let path = format!("/{resource} ");
        server.requested(&["WATCH", &path], times).await;
    }
}

/// An hour of the real pauses.
#[tokio::test]
async fn a_server_that_is_gone_for_long_is_asked_now_and_then() {
    let mut server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    server.down().await;
    it.until("away", is_away).await;
    let away = it.resource("services").since;
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.apply(service("new", "10.0.0.2"));
    // What is refused asks all the same: the pauses tell how often.
    for resource in RESOURCES {
        let n_tries = it.restarts(resource, "refused");
        assert!((20..=100).contains(&n_tries), "{resource}: {n_tries}");
    }
    assert_eq!(it.resource("services").since, away, "since the beginning");
    let n_requests = server.requests().len();
    server.up().await;
    let lines = it.objects_until("Service shop/new").await;
    assert_eq!(lines, ["Service shop/new 10.0.0.2"]);
    it.until("connected", is_connected).await;
    assert!(it.resource("services").since > away);
    // Nothing was listed again: each watch goes on from where it was.
    let n_requests = server.requests().len() - n_requests;
    assert_eq!(n_requests, RESOURCES.len());
    assert_eq!(count(&server, &["LIST"]), RESOURCES.len());
}

#[tokio::test]
async fn a_flapping_server_costs_little_and_nothing_is_lost() {
    let mut server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    for turn in 0..20 {
        server.down().await;
        server.apply(service("web", &format!("10.0.1.{turn}")));
        server.up().await;
        tokio::time::sleep(millis(20)).await;
    }
    let lines = it.objects_until("Service shop/web 10.0.1.19").await;
    let mut in_order = lines.clone();
    in_order.sort_by_key(|line| line.rsplit('.').next().unwrap().parse::<u32>().unwrap());
    assert_eq!(lines, in_order);
    it.until("connected", is_connected).await;
    assert_eq!(count(&server, &["LIST"]), RESOURCES.len(), "no new lists");
    it.expect_change(&server, "10.0.0.9").await;
}

#[tokio::test]
async fn a_slow_server_is_reported_and_waited_for() {
    let server = ApiServer::start().await;
    let late = Failure::Late(millis(500));
    server.fail("services", Verb::List, 1, late.clone());
    server.apply(service("web", "10.0.0.1"));
    let access = Access {
        timing: fast(),
        ..Access::default()
    };
    let mut it = Fixture::start(&server, access, json!({})).await;
    let first = it.events.next().await;
    assert_eq!(first, "Problem API server: no answer for 200ms");
    assert_eq!(it.resource("services").n_restarts["refused"], 0);
    it.objects_until("Synced").await;
    // A watch, too.
    it.until("connected", is_connected).await;
    server.fail("services", Verb::Watch, 1, late);
    server.cut();
    it.until("away", |state| !state.resources["services"].is_connected)
        .await;
    it.until("connected", is_connected).await;
    it.expect_change(&server, "10.0.0.9").await;
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up() {
    let server = ApiServer::start().await;
    let never = Failure::Late(Duration::from_secs(600));
    server.fail("services", Verb::List, 1, never.clone());
    server.apply(service("web", "10.0.0.1"));
    let access = Access {
        timing: fast(),
        ..Access::default()
    };
    let mut it = Fixture::start(&server, access, json!({})).await;
    let problem = "Problem API server: listing Services: nothing was heard for 1s";
    it.events.until(problem).await;
    it.objects_until("Synced").await;
    it.until("connected", is_connected).await;
    assert_eq!(count(&server, &["LIST", "/services"]), 2);
    assert_eq!(it.restarts("services", "stalled"), 1);
    server.fail("services", Verb::Watch, 1, never);
    server.cut();
    it.expect_change(&server, "10.0.0.9").await;
}

#[tokio::test]
async fn a_busy_server_is_left_alone_for_as_long_as_it_says() {
    let server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    for resource in RESOURCES {
        server.fail(resource, Verb::Watch, 1, Failure::Busy(2));
    }
    let n_requests = server.requests().len();
    let start = Instant::now();
    server.cut();
    it.until("away", is_away).await;
    it.until("connected", is_connected).await;
    assert!(start.elapsed() >= Duration::from_secs(2));
    // Each watch was refused once, and opened once.
    let n_requests = server.requests().len() - n_requests;
    assert_eq!(n_requests, 2 * RESOURCES.len());
    for resource in RESOURCES {
        assert_eq!(it.restarts(resource, "throttled"), 1, "{resource}");
    }
    it.expect_change(&server, "10.0.0.9").await;
}

/// All nodes would ask etcd at once, when they have to list at once.
#[tokio::test]
async fn lists_are_served_from_memory() {
    let server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    for resource in RESOURCES {
        let path = format!("/{resource} ");
        let first = ["LIST", &path, "[limit=500]", "[resourceVersion=0]"];
        assert_eq!(count(&server, &first), 1, "{:#?}", server.requests());
    }
    it.expect_change(&server, "10.0.0.2").await;
    // Something else happens, and makes this version an old one.
    server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}));
    server.forget(Gone::Status);
    server.cut();
    server.requested(&["LIST", "/services"], 2).await;
    it.until("connected", is_connected).await;
    let lists = server.requests().into_iter();
    let second = lists
        .filter(|it| it.starts_with("LIST") && it.contains("/services"))
        .nth(1)
        .unwrap();
    assert!(second.contains("[resourceVersion=1"), "{second}");
    assert!(!second.contains("[limit="), "{second}");
    assert_eq!(it.restarts("services", "gone"), 1);
    it.expect_change(&server, "10.0.0.9").await;
}

/// As after etcd was restored from a backup.
#[tokio::test]
async fn a_version_that_the_server_does_not_know_yet_is_not_insisted_on() {
    let server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    server.fail("services", Verb::Watch, 1, Failure::Status(410));
    server.fail("services", Verb::List, 1, Failure::Status(504));
    server.cut();
    server.requested(&["LIST", "/services"], 3).await;
    it.until("connected", is_connected).await;
    let lists = server.requests().into_iter();
    let last = lists
        .filter(|it| it.starts_with("LIST") && it.contains("/services"))
        .nth(2)
        .unwrap();
    assert!(!last.contains("[resourceVersion="), "{last}");
    it.expect_change(&server, "10.0.0.9").await;
}

#[tokio::test]
async fn a_watch_that_says_nothing_is_opened_anew_where_it_was() {
    let server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    for resource in RESOURCES {
        server.silence(resource);
    }
    server.apply(service("web", "10.0.0.2"));
    let line = "Service shop/web 10.0.0.2";
    assert_eq!(it.objects_until(line).await, [line]);
    for resource in RESOURCES {
        server
            .requested(&["WATCH", &format!("/{resource} ")], 2)
            .await;
        let it = it.resource(resource);
        assert!(it.n_restarts["stalled"] >= 1, "{it:?}");
        assert!(it.is_connected);
    }
    assert_eq!(count(&server, &["LIST"]), RESOURCES.len());
    it.expect_change(&server, "10.0.0.9").await;
}

#[tokio::test]
async fn bookmarks_show_that_a_watch_is_alive() {
    let server = ApiServer::start().await;
    let it = Fixture::synced(&server).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(millis(100)).await;
        server.bookmark("services");
    }
    assert_eq!(it.restarts("services", "stalled"), 0);
    assert!(it.restarts("nodes", "stalled") >= 2);
    assert_eq!(count(&server, &["WATCH", "/services"]), 1);
}

#[tokio::test]
async fn the_next_server_serves_when_one_dies() {
    let mut first = ApiServer::start().await;
    let mut second = first.twin().await;
    first.apply(service("web", "10.0.0.1"));
    let access = Access {
        servers: vec![first.url().parse().unwrap(), second.url().parse().unwrap()],
        timing: fast(),
        ..Access::default()
    };
    // The kubeconfig leads nowhere.
    let mut nowhere = ApiServer::start().await;
    nowhere.down().await;
    let mut it = Fixture::start(&nowhere, access, json!({})).await;
    it.expect_start().await;
    for turn in 1..4 {
        first.down().await;
        watched_again(&second, 2 * turn).await;
        it.expect_change(&second, &format!("10.0.{turn}.1")).await;
        first.up().await;
        second.down().await;
        watched_again(&first, 2 * turn + 1).await;
        it.expect_change(&first, &format!("10.0.{turn}.2")).await;
        second.up().await;
    }
    it.until("connected", is_connected).await;
    assert_eq!(it.restarts("services", "refused"), 0, "nobody had to wait");
    // With an error of its own, too.
    first.fail("services", Verb::Watch, 1, Failure::Status(500));
    first.cut();
    it.expect_change(&first, "10.0.0.9").await;
    // Both away, and one comes back.
    first.down().await;
    second.down().await;
    it.until("away", is_away).await;
    second.up().await;
    it.until("connected", is_connected).await;
    it.expect_change(&second, "10.0.0.8").await;
}

#[tokio::test]
async fn a_token_is_read_again_when_it_changes_on_disk() {
    let server = ApiServer::start().await;
    server.apply(service("web", "10.0.0.1"));
    server.require_token("first");
    let access = Access {
        timing: fast(),
        ..Access::default()
    };
    // Beside the kubeconfig.
    let mut it = Fixture::start(&server, access, json!({"tokenFile": "token"})).await;
    it.expect_start().await;
    let token = it.folder.path().join("token");
    // In time, as a kubelet does it: by another file in its place.
    let write = |text: &str| {
        let new = it.folder.path().join("token.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &token).unwrap();
    };
    write("second\n");
    server.require_token("second");
    server.cut();
    it.expect_change(&server, "10.0.0.2").await;
    it.until("connected", is_connected).await;
    assert_eq!(it.restarts("services", "unauthorized"), 0);
    // Too late.
    let write = |text: &str| std::fs::write(&token, text).unwrap();
    server.require_token("third");
    server.cut();
    it.until("away", is_away).await;
    assert!(it.restarts("services", "unauthorized") > 0);
    write("third\n");
    it.until("connected", is_connected).await;
    it.expect_change(&server, "10.0.0.3").await;
    // It may vanish: what was read last counts.
    std::fs::remove_file(&token).unwrap();
    server.cut();
    it.expect_change(&server, "10.0.0.4").await;
}

#[tokio::test]
async fn a_kubeconfig_that_changes_is_read_again() {
    let server = ApiServer::start().await;
    let mut it = Fixture::synced(&server).await;
    let other = server.twin().await;
    let path = it.folder.path().join("config");
    // Half of it says nothing.
    std::fs::write(&path, &other.kubeconfig()[..20]).unwrap();
    server.cut();
    it.expect_change(&server, "10.0.0.2").await;
    std::fs::write(&path, other.kubeconfig()).unwrap();
    let mut server = server;
    server.down().await;
    it.expect_change(&other, "10.0.0.3").await;
}

/// Who vouches for servers or clients.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let (key, mut parameters) = (KeyPair::generate().unwrap(), CertificateParams::default());
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Self(Issuer::new(parameters, key), certificate)
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.0).unwrap(), key)
    }

    /// How a server is told from others, and who its clients are.
    fn server(&self, name: &str, clients: &Self) -> ServerConfig {
        let mut roots = RootCertStore::empty();
        let pem = CertificateDer::from_pem_slice(clients.1.as_bytes()).unwrap();
        roots.add(pem).unwrap();
        let clients = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
        let (certificate, key) = self.issue(name);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ServerConfig::builder().with_client_cert_verifier(clients);
        config
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

#[tokio::test]
async fn a_client_certificate_is_read_again_when_it_changes_on_disk() {
    let (servers, old, new) = (Authority::new(), Authority::new(), Authority::new());
    let server = ApiServer::start().await;
    server.apply(service("web", "10.0.0.1"));
    server.secure(servers.server("api.test", &old));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&server.kubeconfig()).unwrap();
    kubeconfig["clusters"][0]["cluster"] = json!({
        "server": "https://nowhere.test", "certificate-authority": "ca", "tls-server-name": "api.test",
    });
    kubeconfig["users"][0]["user"] =
        json!({"client-certificate": "certificate", "client-key": "key"});
    write("config", &kubeconfig.to_string());
    write("ca", &servers.1);
    let issue = |authority: &Authority| {
        let (certificate, key) = authority.issue("node");
        write("certificate", &certificate.pem());
        write("key", &key.serialize_pem());
    };
    issue(&old);
    let access = Access {
        kubeconfig: Some(folder.path().join("config")),
        // By its address, which its certificate does not have.
        servers: vec![server.url().replace("http", "https").parse().unwrap()],
        timing: fast(),
    };
    let mut it = Fixture::through(access).await;
    it.expect_start().await;
    server.secure(servers.server("api.test", &new));
    issue(&new);
    server.cut();
    it.expect_change(&server, "10.0.0.2").await;
    it.until("connected", is_connected).await;
    assert_eq!(it.restarts("services", "refused"), 0);
    // Too late, and not both files at a time.
    let newest = Authority::new();
    server.secure(servers.server("api.test", &newest));
    server.cut();
    it.until("away", is_away).await;
    let (certificate, key) = newest.issue("node");
    write("key", &key.serialize_pem());
    let n_tries = it.restarts("services", "refused");
    it.until("tried again", |state| {
        state.resources["services"].n_restarts["refused"] > n_tries
    })
    .await;
    write("certificate", &certificate.pem());
    it.expect_change(&server, "10.0.0.3").await;
    // Who vouches for servers may change, too.
    let others = Authority::new();
    server.secure(others.server("api.test", &newest));
    server.cut();
    it.until("away", is_away).await;
    write("ca", &others.1);
    it.expect_change(&server, "10.0.0.4").await;
}

/// Nothing is asked for without a right that is listed, and no right is listed without need.
#[tokio::test]
async fn rights_are_those_that_are_used() {
    let server = ApiServer::start().await;
    let it = Fixture::synced(&server).await;
    for request in server.requests() {
        let mut words = request.split_whitespace();
        let (verb, path) = (words.next().unwrap(), words.next().unwrap());
        let resource = path.rsplit('/').next().unwrap();
        let right = RIGHTS.iter().find(|right| {
            let group = match right.group {
                "" => "/api/v1/".to_owned(),
                group => format!("/apis/{group}/"),
            };
            right.resource == resource && path.starts_with(&group)
        });
        let right = right.unwrap_or_else(|| panic!("no right for {request}"));
        assert!(right.verbs.contains(&verb.to_lowercase().as_str()));
    }
    let always = RIGHTS.iter().filter(|it| it.option.is_none());
    let mut always: Vec<_> = always.map(|right| right.resource).collect();
    always.retain(|resource| *resource != "events");
    always.sort();
    assert_eq!(always, RESOURCES);
    drop(it.events);
    it.source.await.unwrap();
}
