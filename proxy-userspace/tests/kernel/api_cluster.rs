//! A node whose Beeline follows an API server that speaks real HTTP.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::Value;
use tokio::runtime::Runtime;
use xtask::testbed::{Beeline, Daemon, Layout, Namespace, Pod, Server, Testbed, in_namespace};

use crate::api_server::{ApiServer, Failure, Verb};
use crate::client::{Connection, udp, udp_echo};
use crate::cluster::{Service, beeline, serve_all};

/// How long a change may take until it is in force, pauses before a retry included.
pub(crate) const IN_FORCE: Duration = Duration::from_secs(30);

/// An API server on a node's loopback. Its threads live in the node's namespace.
pub(crate) struct Api {
    pub(crate) node: Namespace,
    pub(crate) runtime: Runtime,
    pub(crate) server: ApiServer,
    pub(crate) kubeconfig: PathBuf,
}

impl Api {
    pub(crate) fn on(testbed: &Testbed) -> Self {
        let node = testbed.node().namespace.clone();
        let kubeconfig = testbed.manifests().with_file_name("kubeconfig");
        let (runtime, server) = in_namespace(&node, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let server = runtime.block_on(ApiServer::start());
            (runtime, server)
        });
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        Self {
            node,
            runtime,
            server,
            kubeconfig,
        }
    }

    pub(crate) fn down(&mut self) {
        let (runtime, server) = (&self.runtime, &mut self.server);
        in_namespace(&self.node, || runtime.block_on(server.down()));
    }

    pub(crate) fn up(&mut self) {
        let (runtime, server) = (&self.runtime, &mut self.server);
        in_namespace(&self.node, || runtime.block_on(server.up()));
    }

    pub(crate) fn wait_until_watched(&self, resource: &str) {
        self.runtime.block_on(self.server.watched(resource));
    }

    /// Lets the next list of this resource wait until connections are cut.
    pub(crate) fn hold_back(&self, resource: &str) {
        let late = Failure::Late(Duration::from_secs(600));
        self.server.fail(resource, Verb::List, 1, late);
    }
}

/// A node with an API server, a client, and two backends that echo. Fields are dropped in this
/// order.
pub(crate) struct Cluster {
    pub(crate) daemon: Option<Daemon>,
    pub(crate) api: Api,
    _servers: Vec<Server>,
    pub(crate) backends: [Pod; 2],
    pub(crate) client: Pod,
    pub(crate) testbed: Testbed,
}

impl Cluster {
    /// Without Services, and without Beeline.
    pub(crate) fn new() -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        let client = testbed.pod("client").unwrap();
        let backends = ["web-0", "web-1"].map(|name| testbed.pod(name).unwrap());
        Self {
            daemon: None,
            api: Api::on(&testbed),
            _servers: backends.iter().flat_map(serve_all).collect(),
            backends,
            client,
            testbed,
        }
    }

    /// With a Service in force.
    pub(crate) fn serving() -> (Self, Service) {
        Self::serving_with(&[])
    }

    pub(crate) fn serving_with(args: &[&str]) -> (Self, Service) {
        let mut cluster = Self::new();
        let service = cluster.service("web", 10);
        cluster.apply(&service);
        cluster.run_with(args);
        cluster.expect(&service, &["web-0", "web-1"]);
        (cluster, service)
    }

    pub(crate) fn service(&self, name: &str, number: u8) -> Service {
        Service::new(name, number, &self.backends)
    }

    pub(crate) fn beeline(&self) -> Beeline<'_> {
        beeline(&self.testbed).with_kubeconfig(&self.api.kubeconfig)
    }

    pub(crate) fn start(&mut self) {
        self.start_with(&[]);
    }

    pub(crate) fn start_with(&mut self, args: &[&str]) {
        self.daemon = None;
        self.daemon = Some(self.beeline().start(args).unwrap());
    }

    pub(crate) fn run(&mut self) {
        self.run_with(&[]);
    }

    pub(crate) fn run_with(&mut self, args: &[&str]) {
        self.start_with(args);
        let ready = |status: &Value| status["synced"] == true;
        self.daemon().wait_until("ready", ready).unwrap();
    }

    /// Waits until the client's packets are looked at.
    pub(crate) fn wait_until_attached(&self) {
        let device = &self.client.device;
        let knows = |status: &Value| status["devices"].to_string().contains(device);
        self.daemon().wait_until("attached", knows).unwrap();
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// Gives the API server a Service and its EndpointSlices. A manifest is only the way there:
    /// the daemon reads none.
    pub(crate) fn apply(&self, service: &Service) {
        service.write(&self.testbed);
        for entry in std::fs::read_dir(self.testbed.manifests()).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            self.api.server.apply_manifest(&text).unwrap();
            std::fs::remove_file(path).unwrap();
        }
    }

    /// Who answers at the Service's addresses, by TCP and UDP.
    pub(crate) fn met(&self, service: &Service) -> std::io::Result<BTreeSet<String>> {
        self.client.run(|| {
            let mut met = BTreeSet::new();
            for address in Family::ALL.map(|family| service.address(family)) {
                for _ in 0..20 {
                    let mut connection = Connection::open(address)?;
                    connection.echo(&[7; 3_000])?;
                    met.insert(connection.backend);
                    met.insert(udp_echo(&udp(0, address)?, b"hello")?);
                }
            }
            Ok(met)
        })
    }

    /// Waits until exactly these backends answer.
    pub(crate) fn expect(&self, service: &Service, backends: &[&str]) {
        self.expect_within(service, backends, IN_FORCE);
    }

    pub(crate) fn expect_within(&self, service: &Service, backends: &[&str], time: Duration) {
        let start = Instant::now();
        loop {
            let met = self.met(service);
            if matches!(&met, Ok(met) if met.iter().eq(backends)) {
                return;
            }
            assert!(
                start.elapsed() < time,
                "expected {backends:?}: {met:?}, {}",
                self.daemon().status()
            );
        }
    }

    /// These backends answer now, and nobody else.
    pub(crate) fn expect_now(&self, service: &Service, backends: &[&str]) {
        let met = self.met(service).unwrap();
        assert!(met.iter().eq(backends), "{met:?}");
    }

    pub(crate) fn services_in_force(&self) -> Value {
        self.beeline().json(["services"]).unwrap()
    }

    /// Waits until the status has a problem with this subject; what it says.
    pub(crate) fn wait_for_problem(&self, subject: &str) -> String {
        let says = |status: &Value| problem(status, subject).is_some();
        self.daemon().wait_until(subject, says).unwrap();
        problem(&self.daemon().status(), subject).unwrap_or_default()
    }

    pub(crate) fn wait_until_solved(&self, subject: &str) {
        let says = |status: &Value| !status.is_null() && problem(status, subject).is_none();
        self.daemon().wait_until(subject, says).unwrap();
    }
}

pub(crate) fn problem(status: &Value, subject: &str) -> Option<String> {
    let problems = status["problems"].as_array()?;
    let problem = problems
        .iter()
        .find(|problem| problem["subject"] == subject)?;
    Some(problem["message"].as_str()?.to_owned())
}
