//! A testbed with a Service on it, and Beeline running.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::{Beeline, Daemon, Layout, NODE_NAME, Pod, PodOptions, Serve, Server, Testbed};

/// The port that servers listen at.
pub(crate) const TARGET_PORT: u16 = 7000;
/// The port of Services: another one, so that every packet's port is rewritten.
pub(crate) const PORT: u16 = 80;

/// How long a change of manifests may take until it is in force.
const IN_FORCE: Duration = Duration::from_secs(10);

/// A Service with a cluster IP of each family and port [`PORT`] for TCP, UDP and SCTP.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    name: String,
    number: u8,
    /// Its endpoints.
    pub(crate) endpoints: Vec<Endpoint>,
}

/// An endpoint of a Service.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// IPv4 and IPv6.
    addresses: (Ipv4Addr, Ipv6Addr),
    /// Being deleted, but still serving.
    pub(crate) terminating: bool,
}

impl Endpoint {
    /// A pod that is ready.
    pub(crate) fn of(pod: &Pod) -> Self {
        Self {
            addresses: (pod.ipv4, pod.ipv6),
            terminating: false,
        }
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => IpAddr::V4(self.addresses.0),
            Family::Ipv6 => IpAddr::V6(self.addresses.1),
        }
    }

    fn to_json(&self, family: Family) -> Value {
        let address = self.address(family);
        let terminating = self.terminating;
        json!({
            "addresses": [address],
            "nodeName": NODE_NAME,
            "conditions": { "ready": !terminating, "serving": true, "terminating": terminating },
        })
    }
}

impl Service {
    /// A Service whose addresses end with `number`, 1 to 99.
    pub(crate) fn new(name: &str, number: u8, backends: &[Pod]) -> Self {
        let endpoints = backends.iter().map(Endpoint::of).collect();
        Self {
            name: name.to_owned(),
            number,
            endpoints,
        }
    }

    /// What clients dial.
    pub(crate) fn address(&self, family: Family) -> SocketAddr {
        let ip = match family {
            Family::Ipv4 => IpAddr::from([10, 96, 0, self.number]),
            Family::Ipv6 => IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, self.number.into()]),
        };
        SocketAddr::new(ip, PORT)
    }

    /// Writes the Service and its EndpointSlices to a file of the testbed's manifests, in place
    /// of what was there.
    pub(crate) fn write(&self, testbed: &Testbed) {
        let items: Vec<_> = Family::ALL
            .into_iter()
            .map(|family| self.slice(family))
            .chain([self.service()])
            .collect();
        put(testbed, &format!("{}.json", self.name), &items);
    }

    fn service(&self) -> Value {
        let ips = Family::ALL.map(|family| self.address(family).ip());
        let ports = PROTOCOLS.map(|protocol| {
            json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": PORT })
        });
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilies": Family::ALL.map(Family::name),
                "ports": ports,
            },
        })
    }

    fn slice(&self, family: Family) -> Value {
        let ports = PROTOCOLS.map(|protocol| {
            json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET_PORT })
        });
        let endpoints: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.to_json(family))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name, family.name().to_lowercase()),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": family.name(),
            "ports": ports,
            "endpoints": endpoints,
        })
    }
}

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How pods reach the node.
    pub(crate) layout: Layout,
    /// Number of backends of the Service.
    pub(crate) backends: usize,
    /// What is special about the client's pod.
    pub(crate) client: PodOptions,
    /// What is special about the backends' pods.
    pub(crate) backend: PodOptions,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            layout: Layout::Routed,
            backends: 2,
            client: PodOptions::default(),
            backend: PodOptions::default(),
        }
    }
}

/// A node with Beeline, a client, and a Service `web` with backends `web-0`, `web-1`, … that
/// echo. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// `beeline run`.
    pub(crate) daemon: Daemon,
    /// The backends' servers.
    pub(crate) servers: Vec<Server>,
    /// The backends.
    pub(crate) backends: Vec<Pod>,
    /// A pod that is no backend.
    pub(crate) client: Pod,
    /// The Service.
    pub(crate) service: Service,
    /// All that is around.
    pub(crate) testbed: Testbed,
}

impl Cluster {
    /// Makes a cluster and waits until Beeline has programmed it.
    pub(crate) fn new(plan: Plan) -> Self {
        let testbed = Testbed::new(plan.layout).unwrap();
        let client = testbed.pod_with("client", &plan.client).unwrap();
        let backends: Vec<_> = (0..plan.backends)
            .map(|at| {
                testbed
                    .pod_with(&format!("web-{at}"), &plan.backend)
                    .unwrap()
            })
            .collect();
        Self::with_backends(testbed, client, backends)
    }

    /// Makes a cluster out of a testbed with pods.
    pub(crate) fn with_backends(testbed: Testbed, client: Pod, backends: Vec<Pod>) -> Self {
        let servers = backends.iter().flat_map(serve_all).collect();
        let service = Service::new("web", 10, &backends);
        service.write(&testbed);
        let daemon = beeline(&testbed).run::<&str>([]).unwrap();
        Self {
            daemon,
            servers,
            backends,
            client,
            service,
            testbed,
        }
    }

    /// Waits until a new pod's packets are looked at.
    pub(crate) fn wait_until_attached(&self, pod: &Pod) {
        let knows = |status: &Value| {
            let devices = status["devices"].as_array();
            devices.is_some_and(|devices| devices.iter().any(|device| *device == pod.device))
        };
        self.daemon.wait_until("new pod attached", knows).unwrap();
    }

    /// Starts `beeline run` again, after it has ended.
    pub(crate) fn start_again(&mut self) {
        self.daemon = beeline(&self.testbed).run::<&str>([]).unwrap();
    }

    /// The `beeline` command on this node.
    pub(crate) fn beeline(&self) -> Beeline<'_> {
        beeline(&self.testbed)
    }

    /// Writes a Service and waits until new flows go to exactly its ready endpoints.
    pub(crate) fn apply(&self, service: &Service) {
        service.write(&self.testbed);
        let start = Instant::now();
        while !Family::ALL
            .into_iter()
            .all(|family| self.is_in_force(service, family))
        {
            assert!(
                start.elapsed() < IN_FORCE,
                "{service:?} is not in force in {IN_FORCE:?}"
            );
        }
    }

    /// Whether the maps have a Service's ready endpoints of a family, and no others, for all
    /// protocols.
    fn is_in_force(&self, service: &Service, family: Family) -> bool {
        let ready = service
            .endpoints
            .iter()
            .filter(|endpoint| !endpoint.terminating);
        let expected: BTreeSet<_> = ready
            .map(|endpoint| endpoint.address(family).to_string())
            .collect();
        let address = service.address(family).ip().to_string();
        let frontends = self.beeline().json(["services"]).unwrap();
        let frontends = frontends.as_array().into_iter().flatten();
        let ours: Vec<_> = frontends
            .filter(|frontend| frontend["address"] == address)
            .map(backends)
            .collect();
        ours.len() == PROTOCOLS.len() && ours.iter().all(|backends| *backends == expected)
    }
}

/// The backends of a frontend in what `beeline services -o json` says.
fn backends(frontend: &Value) -> BTreeSet<String> {
    let backends = frontend["backends"].as_array().into_iter().flatten();
    backends
        .filter_map(|backend| backend["address"].as_str())
        .map(str::to_owned)
        .collect()
}

/// The `beeline` command on a testbed's node.
pub(crate) fn beeline(testbed: &Testbed) -> Beeline<'_> {
    Beeline::new(testbed, env!("CARGO_BIN_EXE_beeline"))
}

/// A `beeline` whose maps have another layout: built with the feature `next-layout`.
pub(crate) fn next_beeline() -> PathBuf {
    let built = || Path::new(env!("CARGO_BIN_EXE_beeline")).with_file_name("beeline-next");
    let next = std::env::var_os("BEELINE_NEXT").map_or_else(built, PathBuf::from);
    assert!(
        next.exists(),
        "{}: `cargo xtask build --next` builds it",
        next.display()
    );
    next
}

/// Starts the servers of a backend.
pub(crate) fn serve_all(pod: &Pod) -> Vec<Server> {
    let serve = |what| pod.serve(what, TARGET_PORT).unwrap();
    [Serve::Echo, Serve::Sctp].map(serve).into()
}

/// Makes these objects the content of a file of the testbed's manifests, in one step.
pub(crate) fn put(testbed: &Testbed, name: &str, items: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    put_object(testbed, name, &list);
}

/// The same with one object.
pub(crate) fn put_object(testbed: &Testbed, name: &str, object: &Value) {
    let folder = testbed.manifests();
    let draft = folder.join(format!(".{name}.draft"));
    std::fs::write(&draft, object.to_string()).unwrap();
    std::fs::rename(&draft, folder.join(name)).unwrap();
}
