//! Two equal nodes, with pods on both, and an API server between them that both can reach.
//!
//! ```text
//!   client-0, web-0 ── node 0 ── router ── node 1 ── client-1, web-1
//!                                (API server)
//!                                  outside
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use xtask::testbed::{
    Beeline, Daemon, Layout, NODE_NAME, Namespace, Node, Pod, REMOTE_NODE_NAME, Server, Testbed,
    in_namespace,
};

use crate::api_server::ApiServer;
use crate::cluster::{TARGET_PORT, beeline};
use crate::world::{Speak, witness};

/// The nodes, by number.
pub(crate) const NODES: [usize; 2] = [0, 1];
/// The nodes' names.
const NAMES: [&str; 2] = [NODE_NAME, REMOTE_NODE_NAME];
/// The ranges of both nodes' pods.
const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// The ranges of load balancers' addresses.
const BALANCED: [&str; 2] = ["203.0.113.0/24", "2001:db8:2::/64"];
/// How long a change may take until it is in force.
const IN_FORCE: Duration = Duration::from_secs(30);

/// The kinds of address at which a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ClusterIp,
    /// Of a load balancer, which is the outside router.
    Vip,
    /// At this node.
    NodePort(usize),
}

/// Which traffic only goes to endpoints of the node that it meets first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    /// externalTrafficPolicy.
    External,
    /// internalTrafficPolicy.
    Internal,
}

/// A load-balanced Service of both families, with a port of every protocol.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    /// Tells its addresses and ports from other Services'; 1 to 99.
    number: u8,
    local: Option<Local>,
    /// Those that are ready.
    pub(crate) endpoints: Vec<Pod>,
    /// Those that are on their way out.
    pub(crate) terminating: Vec<Pod>,
}

impl Service {
    pub(crate) fn new(name: &'static str, number: u8, endpoints: &[&Pod]) -> Self {
        Self {
            name,
            number,
            local: None,
            endpoints: endpoints.iter().map(|&pod| pod.clone()).collect(),
            terminating: Vec::new(),
        }
    }

    /// The same with a traffic policy Local.
    pub(crate) fn local(self, local: Local) -> Self {
        Self {
            local: Some(local),
            ..self
        }
    }

    /// Where a client finds it.
    pub(crate) fn at(&self, kind: Kind, family: Family) -> SocketAddr {
        let number = self.number;
        let (v4, [a, b, c]) = match kind {
            Kind::ClusterIp => ([10, 96, 0, number], [0xfd00, 0x10, 0x96]),
            Kind::Vip => ([203, 0, 113, number], [0x2001, 0xdb8, 2]),
            Kind::NodePort(node) => {
                return SocketAddr::new(node_address(node, family), 30_000 + u16::from(number));
            }
        };
        let ip = match family {
            Family::Ipv4 => v4.into(),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, number.into())),
        };
        SocketAddr::new(ip, 8_000 + u16::from(number))
    }

    /// The port of its health check.
    pub(crate) fn health_check(&self) -> u16 {
        31_000 + u16::from(self.number)
    }

    fn to_json(&self) -> Value {
        let ports = PROTOCOLS.map(|protocol| {
            json!({
                "name": protocol.to_lowercase(),
                "protocol": protocol,
                "port": 8_000 + u16::from(self.number),
                "nodePort": 30_000 + u16::from(self.number),
            })
        });
        let ips = |kind| Family::ALL.map(|family| self.at(kind, family).ip());
        let mut spec = json!({
            "type": "LoadBalancer",
            "clusterIP": ips(Kind::ClusterIp)[0],
            "clusterIPs": ips(Kind::ClusterIp),
            "ipFamilies": Family::ALL.map(Family::name),
            "ports": ports,
        });
        match self.local {
            Some(Local::External) => {
                spec["externalTrafficPolicy"] = "Local".into();
                spec["healthCheckNodePort"] = self.health_check().into();
            }
            Some(Local::Internal) => spec["internalTrafficPolicy"] = "Local".into(),
            None => {}
        }
        let ingress = ips(Kind::Vip).map(|ip| json!({ "ip": ip }));
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": spec,
            "status": { "loadBalancer": { "ingress": ingress } },
        })
    }

    fn slice_name(&self, family: Family) -> String {
        format!("{}-{}", self.name, family.name().to_lowercase())
    }

    fn slice(&self, family: Family) -> Value {
        let ports = PROTOCOLS.map(|protocol| {
            json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET_PORT })
        });
        let endpoint = |pod: &Pod, terminating: bool| {
            json!({
                "addresses": [pod.address(family)],
                "nodeName": NAMES[node_of(pod)],
                "conditions": { "ready": !terminating, "serving": true, "terminating": terminating },
            })
        };
        let ready = self.endpoints.iter().map(|pod| endpoint(pod, false));
        let leaving = self.terminating.iter().map(|pod| endpoint(pod, true));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.slice_name(family),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": family.name(),
            "ports": ports,
            "endpoints": ready.chain(leaving).collect::<Vec<_>>(),
        })
    }
}

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// The node of a pod, by the third number of its address.
fn node_of(pod: &Pod) -> usize {
    pod.ipv4.octets()[2].into()
}

fn node_address(node: usize, family: Family) -> IpAddr {
    match (family, node) {
        (Family::Ipv4, 0) => "172.18.0.2",
        (Family::Ipv4, _) => "172.19.0.2",
        (Family::Ipv6, 0) => "fd00:172:18::2",
        (Family::Ipv6, _) => "fd00:172:19::2",
    }
    .parse()
    .unwrap()
}

/// An API server on the outside router. Its threads live in the router's namespace.
pub(crate) struct Api {
    place: Namespace,
    runtime: Runtime,
    server: ApiServer,
    kubeconfig: PathBuf,
}

impl Api {
    fn on(testbed: &Testbed) -> Self {
        let place = testbed.outside().clone();
        let (runtime, server) = in_namespace(&place, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            // The router's address towards the first node; the other one finds it, too.
            let address = "172.18.0.1:6443".parse().unwrap();
            let server = runtime.block_on(ApiServer::bind(address)).unwrap();
            (runtime, server)
        });
        let kubeconfig = testbed.manifests().with_file_name("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        Self {
            place,
            runtime,
            server,
            kubeconfig,
        }
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) fn down(&mut self) {
        let (runtime, server) = (&self.runtime, &mut self.server);
        in_namespace(&self.place, || runtime.block_on(server.down()));
    }

    /// Accepts connections again.
    pub(crate) fn up(&mut self) {
        let (runtime, server) = (&self.runtime, &mut self.server);
        in_namespace(&self.place, || runtime.block_on(server.up()));
    }
}

/// Two nodes that serve. Fields are dropped in this order.
pub(crate) struct TwoNodes {
    daemons: [Option<Daemon>; 2],
    pub(crate) api: Api,
    _servers: Vec<Server>,
    /// Of each node one that is no backend.
    clients: [Pod; 2],
    /// Of each node one that may be.
    backends: [Pod; 2],
    /// A machine that is no node.
    pub(crate) outside: Pod,
    socket_lb: &'static str,
    testbed: Testbed,
}

impl TwoNodes {
    /// Makes two nodes without Services, of which these sockets are served (`--socket-lb`).
    pub(crate) fn new(socket_lb: &'static str) -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        testbed.add_remote_node(Layout::Routed, 1500).unwrap();
        let outside = testbed.machine("outside-client", 20).unwrap();
        let [clients, backends] = ["client", "web"].map(|name| {
            [
                testbed.pod(&format!("{name}-0")).unwrap(),
                testbed.remote_pod(&format!("{name}-1")).unwrap(),
            ]
        });
        let mut nodes = Self {
            daemons: [None, None],
            api: Api::on(&testbed),
            _servers: backends.iter().flat_map(witness).collect(),
            clients,
            backends,
            outside,
            socket_lb,
            testbed,
        };
        for node in NODES {
            nodes.api.server.apply(node_object(node));
        }
        nodes.balance_to(0);
        for node in NODES {
            nodes.start(node);
        }
        nodes
    }

    fn node(&self, node: usize) -> &Node {
        match node {
            0 => self.testbed.node(),
            _ => self.testbed.remote().unwrap(),
        }
    }

    /// A node's namespace.
    pub(crate) fn namespace(&self, node: usize) -> &Namespace {
        &self.node(node).namespace
    }

    /// A node's address of a family.
    pub(crate) fn node_address(&self, node: usize, family: Family) -> IpAddr {
        self.node(node).address(family)
    }

    /// A node's pod that is no backend.
    pub(crate) fn client(&self, node: usize) -> &Pod {
        &self.clients[node]
    }

    /// A node's pod that may be a backend.
    pub(crate) fn backend(&self, node: usize) -> &Pod {
        &self.backends[node]
    }

    /// The names of all that may be.
    pub(crate) fn backend_names(&self) -> BTreeSet<&str> {
        self.backends.iter().map(|pod| pod.name.as_str()).collect()
    }

    fn beeline(&self, node: usize) -> Beeline<'_> {
        beeline(&self.testbed)
            .on(self.node(node))
            .socket_lb(self.socket_lb)
            .with_kubeconfig(&self.api.kubeconfig)
    }

    /// Starts a node's daemon and waits until it is ready.
    pub(crate) fn start(&mut self, node: usize) {
        self.launch(node);
        let ready = |status: &Value| status["synced"] == true;
        self.daemon(node).wait_until("ready", ready).unwrap();
    }

    /// Starts a node's daemon.
    pub(crate) fn launch(&mut self, node: usize) {
        self.daemons[node] = None;
        let args = ["--cluster-cidr", CLUSTER_CIDR];
        let daemon = self.beeline(node).start(args).unwrap();
        self.daemons[node] = Some(daemon);
    }

    /// Ends a node's daemon as a kubelet does.
    pub(crate) fn stop(&self, node: usize) {
        assert!(self.daemon(node).stop().unwrap().success());
    }

    /// Ends it without a chance to do anything.
    pub(crate) fn kill(&self, node: usize) {
        let ended = self.daemon(node).kill().unwrap();
        assert_eq!(ended.code(), None, "{ended}");
    }

    fn daemon(&self, node: usize) -> &Daemon {
        self.daemons[node].as_ref().unwrap()
    }

    /// Has the outside router send what is for load balancers to this node.
    pub(crate) fn balance_to(&self, node: usize) {
        self.balance([node, node]);
    }

    /// Has it send IPv4 to one node and IPv6 to the other.
    pub(crate) fn balance_by_family(&self) {
        self.balance(NODES);
    }

    fn balance(&self, nodes: [usize; 2]) {
        let ways = Family::ALL.into_iter().zip(BALANCED).zip(nodes);
        let routes = ways.map(|((family, range), node)| {
            let via = self.node_address(node, family);
            format!("route replace {range} via {via}")
        });
        self.testbed.outside().ip(routes).unwrap();
    }

    /// Tells the API server of a Service and its endpoints.
    pub(crate) fn put(&self, service: &Service) {
        let server = &self.api.server;
        server.apply(service.to_json());
        for family in Family::ALL {
            server.apply(service.slice(family));
        }
    }

    /// The same, and waits until both nodes have it in force.
    pub(crate) fn apply(&self, service: &Service) {
        self.put(service);
        for node in NODES {
            self.expect_in_force(node, service);
        }
    }

    /// Deletes a Service and its endpoints, and waits until neither node has it.
    pub(crate) fn delete(&self, service: &Service) {
        let server = &self.api.server;
        server.delete("services", "default", service.name);
        for family in Family::ALL {
            let slice = service.slice_name(family);
            server.delete("endpointslices", "default", &slice);
        }
        for node in NODES {
            self.until("deleted", || {
                let frontends = self.frontends(node);
                !Family::ALL.into_iter().any(|family| {
                    let address = service.at(Kind::ClusterIp, family).ip();
                    frontends.to_string().contains(&format!("\"{address}\""))
                })
            });
        }
    }

    /// Waits until a node's new flows go to a Service's endpoints that are ready.
    pub(crate) fn expect_in_force(&self, node: usize, service: &Service) {
        let what = format!("{service:?} in force on node {node}");
        self.until(&what, || {
            let frontends = self.frontends(node);
            Family::ALL.into_iter().all(|family| {
                let address = service.at(Kind::ClusterIp, family).ip().to_string();
                let is_near =
                    |pod: &&Pod| service.local != Some(Local::Internal) || node_of(pod) == node;
                let ready = service.endpoints.iter().filter(is_near);
                let addresses = ready.map(|pod| pod.address(family).to_string());
                let expected: BTreeSet<_> = addresses.collect();
                let all = frontends.as_array().into_iter().flatten();
                let ours: Vec<_> = all.filter(|it| it["address"] == address).collect();
                ours.len() == Speak::ALL.len() && ours.iter().all(|it| backends(it) == expected)
            })
        });
    }

    fn frontends(&self, node: usize) -> Value {
        self.beeline(node).json(["services"]).unwrap()
    }

    /// Waits until a condition holds.
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            let logs = || NODES.map(|node| self.daemon(node).log()).join("\n");
            assert!(start.elapsed() < IN_FORCE, "{what}\n{}", logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The backends of a frontend in what `beeline services -o json` says.
fn backends(frontend: &Value) -> BTreeSet<String> {
    let backends = frontend["backends"].as_array().into_iter().flatten();
    let addresses = backends.filter_map(|it| it["address"].as_str());
    addresses.map(str::to_owned).collect()
}

fn node_object(node: usize) -> Value {
    let addresses = Family::ALL
        .map(|family| json!({ "type": "InternalIP", "address": node_address(node, family) }));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NAMES[node] },
        "spec": {},
        "status": { "addresses": addresses },
    })
}
