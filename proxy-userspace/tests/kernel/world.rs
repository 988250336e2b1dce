//! A node with every kind of client around it, and Services at every kind of address.
//!
//! ```text
//!   pod, local ── node ── outside ── remote node ── far
//!                              └──── client
//! ```

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::{
    Beeline, Daemon, Layout, NODE_IPV4, NODE_IPV6, NODE_NAME, Namespace, Pod, REMOTE_NODE_NAME,
    Serve, Server, Testbed, in_namespace, sctp,
};

use crate::client::{Connection, udp, udp_echo};
use crate::cluster::{TARGET_PORT, beeline, put, put_object};

/// The node's second address: its last number.
const SECONDARY: u8 = 77;
/// The node's second addresses, with the lengths of their networks.
const SECONDARY_ADDRESSES: [&str; 2] = ["172.18.0.77/24", "fd00:172:18::77/64"];

/// The ranges of cluster IPs.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// The ranges of all nodes' pods.
const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";

/// How long a change of manifests may take until it is in force.
const IN_FORCE: Duration = Duration::from_secs(10);

/// The kinds of address at which a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ClusterIp,
    ExternalIp,
    /// Of a load balancer.
    Vip,
    /// At the node's first address.
    NodePort,
    /// At its second one.
    SecondaryNodePort,
    /// An external IP that is the node's own.
    OwnExternalIp,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::ClusterIp,
        Self::ExternalIp,
        Self::Vip,
        Self::NodePort,
        Self::SecondaryNodePort,
        Self::OwnExternalIp,
    ];
}

/// What clients speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speak {
    Tcp,
    Udp,
    Sctp,
}

impl Speak {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// An endpoint of a Service.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    addresses: [IpAddr; 2],
    node: &'static str,
    pub(crate) terminating: bool,
}

impl Endpoint {
    pub(crate) fn new(pod: &Pod, node: &'static str) -> Self {
        Self {
            addresses: [pod.ipv4.into(), pod.ipv6.into()],
            node,
            terminating: false,
        }
    }

    /// Whether it is this pod.
    pub(crate) fn is_of(&self, pod: &Pod) -> bool {
        Family::ALL.map(|family| pod.address(family)) == self.addresses
    }

    fn address(&self, family: Family) -> IpAddr {
        self.addresses[family_index(family)]
    }

    fn to_json(&self, family: Family) -> Value {
        let terminating = self.terminating;
        json!({
            "addresses": [self.address(family)],
            "nodeName": self.node,
            "conditions": { "ready": !terminating, "serving": true, "terminating": terminating },
        })
    }
}

/// A Service with an address of every kind in both families, and a port of every protocol.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    /// Tells its addresses and ports from other Services'; 1 to 99.
    pub(crate) number: u8,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Service {
    /// Where a client finds it.
    pub(crate) fn at(&self, kind: Kind, family: Family) -> SocketAddr {
        let number = self.number;
        let own = match family {
            Family::Ipv4 => IpAddr::V4(NODE_IPV4),
            Family::Ipv6 => IpAddr::V6(NODE_IPV6),
        };
        match kind {
            Kind::ClusterIp => (
                of(family, [10, 96, 0, number], [0xfd00, 0x10, 0x96]),
                self.port(),
            ),
            Kind::ExternalIp => (
                of(family, [198, 51, 100, number], [0x2001, 0xdb8, 1]),
                self.port(),
            ),
            Kind::Vip => (
                of(family, [203, 0, 113, number], [0x2001, 0xdb8, 2]),
                self.port(),
            ),
            Kind::NodePort => (own, self.node_port()),
            Kind::SecondaryNodePort => (secondary(family), self.node_port()),
            Kind::OwnExternalIp => (own, self.port()),
        }
        .into()
    }

    const fn port(&self) -> u16 {
        8_000 + self.number as u16
    }

    pub(crate) const fn node_port(&self) -> u16 {
        30_000 + self.number as u16
    }

    pub(crate) const fn health_check_port(&self) -> u16 {
        31_000 + self.number as u16
    }

    fn ips(&self, kind: Kind) -> [IpAddr; 2] {
        Family::ALL.map(|family| self.at(kind, family).ip())
    }

    fn to_json(&self) -> Value {
        let ports = Speak::ALL.map(|protocol| {
            let protocol = protocol.name();
            json!({
                "name": protocol.to_lowercase(),
                "protocol": protocol,
                "port": self.port(),
                "nodePort": self.node_port(),
            })
        });
        let cluster_ips = self.ips(Kind::ClusterIp);
        let external = [Kind::ExternalIp, Kind::OwnExternalIp].map(|kind| self.ips(kind));
        let ingress = self.ips(Kind::Vip).map(|ip| json!({ "ip": ip }));
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": cluster_ips[0],
                "clusterIPs": cluster_ips,
                "externalIPs": external.concat(),
                "ipFamilies": Family::ALL.map(Family::name),
                "ports": ports,
            },
            "status": { "loadBalancer": { "ingress": ingress } },
        })
    }

    fn slice(&self, family: Family) -> Value {
        let ports = Speak::ALL.map(|protocol| {
            let protocol = protocol.name();
            json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET_PORT })
        });
        let endpoints = self.endpoints.iter().map(|it| it.to_json(family));
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
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

fn family_index(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

/// An address: all of an IPv4 one, of which an IPv6 one gets the last number, and its network.
fn of(family: Family, v4: [u8; 4], v6: [u16; 3]) -> IpAddr {
    let [a, b, c] = v6;
    match family {
        Family::Ipv4 => v4.into(),
        Family::Ipv6 => Ipv6Addr::new(a, b, c, 0, 0, 0, 0, v4[3].into()).into(),
    }
}

fn secondary(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::from([172, 18, 0, SECONDARY]),
        Family::Ipv6 => IpAddr::from([0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x77]),
    }
}

/// Whether an address is the node's own.
pub(crate) fn is_nodes(address: IpAddr) -> bool {
    let primary = [NODE_IPV4.into(), NODE_IPV6.into()];
    let bridge = ["10.244.0.1", "fd00:10:244::1"].map(|it| it.parse::<IpAddr>().unwrap());
    let all = [primary, Family::ALL.map(secondary), bridge];
    all.as_flattened().contains(&address)
}

/// Who answered, and whom it saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) backend: String,
    pub(crate) client: IpAddr,
}

impl Answer {
    /// Reads a witness's name for itself.
    pub(crate) fn parse(line: &str) -> io::Result<Self> {
        let parts = line.split_once(' ');
        let parsed = parts.and_then(|(backend, client)| {
            let client = client.parse().ok()?;
            let backend = backend.to_owned();
            Some(Self { backend, client })
        });
        parsed.ok_or_else(|| io::Error::other(format!("no witness: {line:?}")))
    }
}

/// Asks a witness, which has to answer within `patience`.
pub(crate) fn ask(speak: Speak, server: SocketAddr, patience: Duration) -> io::Result<Answer> {
    let start = Instant::now();
    let message = [b'x'; 1_000];
    let said = match speak {
        Speak::Tcp => {
            let stream = TcpStream::connect_timeout(&server, patience)?;
            let mut connection = Connection::greet(stream)?;
            connection.echo(&message)?;
            connection.backend
        }
        Speak::Udp => {
            let socket = udp(0, server)?;
            socket.set_read_timeout(Some(patience))?;
            udp_echo(&socket, &message)?
        }
        Speak::Sctp => {
            let mut association = sctp::Association::open(0, server, patience)?;
            let said = association.exchange(&message)?;
            association.close()?;
            String::from_utf8_lossy(&said)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        }
    };
    let took = start.elapsed();
    if took > patience {
        return Err(io::Error::other(format!("only after {took:?}")));
    }
    Answer::parse(&said)
}

/// A node with Beeline and what is around it. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) daemon: Daemon,
    pub(crate) servers: Vec<Server>,
    /// A machine outside.
    pub(crate) client: Pod,
    /// A pod of the node that is no backend.
    pub(crate) pod: Pod,
    /// A backend on the node.
    pub(crate) local: Pod,
    /// A backend on the remote node.
    pub(crate) far: Pod,
    /// A backend in the node's own namespace.
    pub(crate) host: Pod,
    /// Whose sockets Beeline serves.
    socket_lb: &'static str,
    /// The arguments that Beeline was started with.
    args: Vec<String>,
    pub(crate) testbed: Testbed,
}

impl World {
    /// Makes a world with Services of each of these names, backed by the pod of that name, and
    /// waits until Beeline has programmed them. The link to the remote node has this MTU.
    pub(crate) fn new(layout: Layout, mtu: u32, args: &[&str]) -> Self {
        Self::with_sockets("off", layout, mtu, args)
    }

    /// The same with these sockets of the node served (`--socket-lb`).
    pub(crate) fn with_sockets(
        socket_lb: &'static str,
        layout: Layout,
        mtu: u32,
        args: &[&str],
    ) -> Self {
        let testbed = Testbed::new(layout).unwrap();
        testbed.add_remote_node(layout, mtu).unwrap();
        let client = testbed.machine("client", 20).unwrap();
        let [pod, local] = ["pod", "local"].map(|name| testbed.pod(name).unwrap());
        let far = testbed.remote_pod("far").unwrap();
        let host = Pod {
            name: "host".to_owned(),
            namespace: testbed.node().namespace.clone(),
            ipv4: NODE_IPV4,
            ipv6: NODE_IPV6,
            device: "lo".to_owned(),
        };
        make_routes(&testbed);
        let servers = [&local, &far, &host].into_iter().flat_map(witness);
        let servers = servers.collect();
        for service in services(&local, &far, &host) {
            write(&testbed, &service);
        }
        let args = arguments(args);
        let daemon = beeline(&testbed).socket_lb(socket_lb).run(&args).unwrap();
        Self {
            daemon,
            servers,
            client,
            pod,
            local,
            far,
            host,
            socket_lb,
            args,
            testbed,
        }
    }

    /// The Services, one with each backend.
    pub(crate) fn services(&self) -> [Service; 3] {
        services(&self.local, &self.far, &self.host)
    }

    /// The node's namespace.
    pub(crate) fn node(&self) -> &Namespace {
        &self.testbed.node().namespace
    }

    /// Runs `work` on the node.
    pub(crate) fn on_node<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(self.node(), work)
    }

    /// Starts `beeline run` again, after it has ended, with the same arguments.
    pub(crate) fn start_again(&mut self) {
        self.daemon = self.beeline().run(&self.args).unwrap();
    }

    /// The same, but does not wait until it is ready.
    pub(crate) fn launch(&mut self) {
        self.daemon = self.beeline().start(&self.args).unwrap();
    }

    /// Ends `beeline run` as `end` does, and starts another with the same arguments.
    pub(crate) fn replace_daemon(
        &mut self,
        end: impl FnOnce(&Daemon),
        other: impl FnOnce(Beeline<'_>) -> Beeline<'_>,
    ) {
        end(&self.daemon);
        self.daemon = other(self.beeline()).run(&self.args).unwrap();
    }

    /// The arguments that `beeline run` has.
    pub(crate) fn args(&self) -> &[String] {
        &self.args
    }

    /// The `beeline` command on the node.
    pub(crate) fn beeline(&self) -> Beeline<'_> {
        beeline(&self.testbed).socket_lb(self.socket_lb)
    }

    /// Ends `beeline run` and starts it again with these arguments.
    pub(crate) fn start_again_with(&mut self, args: &[&str]) {
        assert!(self.daemon.stop().is_some());
        self.args = arguments(args);
        self.start_again();
    }

    /// Writes a Service and waits until new flows go to exactly its ready endpoints.
    pub(crate) fn apply(&self, service: &Service) {
        self.put(service);
        self.expect_in_force(service);
    }

    /// Writes a Service, whether or not anybody reads it.
    pub(crate) fn put(&self, service: &Service) {
        write(&self.testbed, service);
    }

    /// Waits until new flows go to exactly a Service's ready endpoints.
    pub(crate) fn expect_in_force(&self, service: &Service) {
        let ready = |family| {
            let ready = service.endpoints.iter().filter(|it| !it.terminating);
            let addresses = ready.map(|it| it.address(family).to_string());
            addresses.collect::<BTreeSet<_>>()
        };
        self.wait_until_in_force(service, &|family| Some(ready(family)));
    }

    /// The same with the external traffic policy Local, and a health check.
    pub(crate) fn apply_local(&self, service: &Service) {
        write_local(&self.testbed, service);
        let all = |family| {
            let addresses = service
                .endpoints
                .iter()
                .map(|it| it.address(family).to_string());
            addresses.collect::<BTreeSet<_>>()
        };
        self.wait_until_in_force(service, &|family| Some(all(family)));
    }

    /// Writes an object to a file of the manifests.
    pub(crate) fn write(&self, name: &str, object: &Value) {
        put_object(&self.testbed, name, object);
    }

    /// Deletes a Service and waits until it has no address left.
    pub(crate) fn delete(&self, service: &Service) {
        std::fs::remove_file(file(&self.testbed, service)).unwrap();
        self.wait_until_in_force(service, &|_| None);
    }

    fn wait_until_in_force(
        &self,
        service: &Service,
        expected: &dyn Fn(Family) -> Option<BTreeSet<String>>,
    ) {
        let start = Instant::now();
        while !Family::ALL.into_iter().all(|family| {
            let address = service.at(Kind::ClusterIp, family).ip();
            let found = self.backends(address);
            let protocols = expected(family).map_or(0, |_| Speak::ALL.len());
            found.len() == protocols && found.into_iter().all(|it| Some(it) == expected(family))
        }) {
            assert!(start.elapsed() < IN_FORCE, "{service:?} is not in force");
        }
    }

    /// The backends of each frontend at an address.
    fn backends(&self, address: IpAddr) -> Vec<BTreeSet<String>> {
        let frontends = self.beeline().json(["services"]).unwrap();
        let frontends = frontends.as_array().into_iter().flatten();
        let ours = frontends.filter(|it| it["address"] == address.to_string());
        let backends = ours.map(|frontend| {
            let backends = frontend["backends"].as_array().into_iter().flatten();
            let addresses = backends.filter_map(|it| it["address"].as_str());
            addresses.map(str::to_owned).collect()
        });
        backends.collect()
    }
}

/// `beeline run`'s arguments: NodePorts at all addresses, unless told otherwise.
fn arguments(more: &[&str]) -> Vec<String> {
    let ranges = SERVICE_CIDRS.map(|range| ["--service-cidr", range]);
    let mut args = ranges.as_flattened().to_vec();
    args.extend(["--cluster-cidr", CLUSTER_CIDR]);
    if !more.contains(&"--nodeport-addresses") {
        args.extend(["--nodeport-addresses", ""]);
    }
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

/// The node's second address, and the way from outside to everything that it serves.
fn make_routes(testbed: &Testbed) {
    let node = &testbed.node().namespace;
    node.ip([
        format!("address add {} dev eth0", SECONDARY_ADDRESSES[0]),
        format!("address add {} dev eth0 nodad", SECONDARY_ADDRESSES[1]),
    ])
    .unwrap();
    for device in ["all", "default", "eth0"] {
        node.set(&format!("net/ipv4/conf/{device}/rp_filter"), "1")
            .unwrap();
    }
    let v4 = [SERVICE_CIDRS[0], "198.51.100.0/24", "203.0.113.0/24"];
    let v6 = [SERVICE_CIDRS[1], "2001:db8:1::/64", "2001:db8:2::/64"];
    let v4 = v4.map(|range| format!("route add {range} via {NODE_IPV4}"));
    let v6 = v6.map(|range| format!("route add {range} via {NODE_IPV6}"));
    testbed.outside().ip([v4, v6].as_flattened()).unwrap();
}

fn services(local: &Pod, far: &Pod, host: &Pod) -> [Service; 3] {
    let of = |name, number, endpoint| Service {
        name,
        number,
        endpoints: vec![endpoint],
    };
    [
        of("local", 1, Endpoint::new(local, NODE_NAME)),
        of("far", 2, Endpoint::new(far, REMOTE_NODE_NAME)),
        of("host", 3, Endpoint::new(host, NODE_NAME)),
    ]
}

/// Starts a backend's servers.
pub(crate) fn witness(pod: &Pod) -> [Server; 2] {
    [Serve::Echo, Serve::Sctp].map(|what| pod.serve_as_witness(what, TARGET_PORT).unwrap())
}

fn file(testbed: &Testbed, service: &Service) -> PathBuf {
    testbed.manifests().join(format!("{}.json", service.name))
}

/// Writes a Service and its EndpointSlices to the manifests, in place of what was there.
fn write(testbed: &Testbed, service: &Service) {
    put_service(testbed, service, service.to_json());
}

fn write_local(testbed: &Testbed, service: &Service) {
    let mut object = service.to_json();
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    object["spec"]["healthCheckNodePort"] = service.health_check_port().into();
    put_service(testbed, service, object);
}

fn put_service(testbed: &Testbed, service: &Service, object: Value) {
    let slices = Family::ALL.map(|family| service.slice(family));
    let items = [slices.to_vec(), vec![object]].concat();
    put(testbed, &format!("{}.json", service.name), &items);
}
