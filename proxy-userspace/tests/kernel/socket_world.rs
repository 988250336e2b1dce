//! A node with a Service that has a port for each of several programs, and backends that run
//! them; with the socket edge on, or without.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::{
    Beeline, Daemon, Layout, NODE_IPV4, NODE_IPV6, NODE_NAME, Namespace, Pod, Program, Serve,
    Server, Testbed, in_namespace,
};

use crate::client::PATIENCE;
use crate::cluster::{beeline, put};

/// How long a change of manifests may take until it is in force.
const IN_FORCE: Duration = Duration::from_secs(20);
/// How long a server may take until it listens.
const LISTENING: Duration = Duration::from_secs(20);

/// The name of which DNS servers have their own address and, as text, their own name.
pub(crate) const WHO: &str = "who.test";

/// Where traffic to Services is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Edges {
    /// At devices alone.
    Packets,
    /// At sockets where that can be. Pods have no route to a Service, so that nothing that they
    /// send can be to its address.
    Sockets,
}

impl Edges {
    const fn socket_lb(self) -> &'static str {
        match self {
            Self::Packets => "off",
            Self::Sockets => "all",
        }
    }
}

const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";

/// The ranges that all addresses of Services but node addresses are from.
const SERVICE_RANGES: [&str; 6] = [
    "10.96.0.0/16",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "fd00:10:96::/112",
    "2001:db8:1::/64",
    "2001:db8:2::/64",
];

/// A port of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Port {
    /// [`Serve::Echo`], for TCP and UDP.
    Echo,
    /// [`Serve::Http`].
    Http,
    /// dnsmasq, for TCP and UDP.
    Dns,
    /// redis-server.
    Redis,
    /// One of several iperf3 servers, each of which serves one client at a time. TCP and UDP.
    Iperf(u8),
}

/// Number of iperf3 servers.
pub(crate) const IPERFS: u8 = 8;

impl Port {
    fn all() -> impl Iterator<Item = Self> {
        let fixed = [Self::Echo, Self::Http, Self::Dns, Self::Redis];
        fixed.into_iter().chain((0..IPERFS).map(Self::Iperf))
    }

    /// What clients dial at all addresses but a node's.
    fn dialled(self) -> u16 {
        match self {
            Self::Echo => 7,
            Self::Http => 80,
            Self::Dns => 53,
            Self::Redis => 6_379,
            Self::Iperf(number) => 5_201 + u16::from(number),
        }
    }

    /// What servers listen at.
    pub(crate) fn target(self) -> u16 {
        7_000 + self.number()
    }

    fn number(self) -> u16 {
        match self {
            Self::Echo => 0,
            Self::Http => 1,
            Self::Dns => 2,
            Self::Redis => 3,
            Self::Iperf(number) => 4 + u16::from(number),
        }
    }

    fn protocols(self) -> &'static [&'static str] {
        match self {
            Self::Http | Self::Redis => &["TCP"],
            Self::Echo | Self::Dns | Self::Iperf(_) => &["TCP", "UDP"],
        }
    }
}

/// The kinds of address at which a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ClusterIp,
    ExternalIp,
    /// Of a load balancer.
    Vip,
    /// At the node's address.
    NodePort,
    /// At a loopback address, from the node.
    Localhost,
}

impl Kind {
    /// Those that any client can dial.
    pub(crate) const ANYWHERE: [Self; 4] =
        [Self::ClusterIp, Self::ExternalIp, Self::Vip, Self::NodePort];
}

/// A Service with all ports at all kinds of address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Service {
    /// Tells its addresses and node ports from other Services'; from 1 on.
    pub(crate) number: u8,
}

/// The Service that tests use most.
pub(crate) const SHOP: Service = Service { number: 1 };

impl Service {
    /// Where a client finds a port.
    pub(crate) fn at(self, port: Port, kind: Kind, family: Family) -> SocketAddr {
        let number = self.number;
        let (v4, v6) = match kind {
            Kind::ClusterIp => ([10, 96, 0, number], [0xfd00, 0x10, 0x96]),
            Kind::ExternalIp => ([198, 51, 100, number], [0x2001, 0xdb8, 1]),
            Kind::Vip => ([203, 0, 113, number], [0x2001, 0xdb8, 2]),
            Kind::NodePort => {
                let node: [IpAddr; 2] = [NODE_IPV4.into(), NODE_IPV6.into()];
                return SocketAddr::new(of(family, node), self.node_port(port));
            }
            Kind::Localhost => {
                let node = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                return SocketAddr::new(of(family, node), self.node_port(port));
            }
        };
        let [a, b, c] = v6;
        let v6 = Ipv6Addr::new(a, b, c, 0, 0, 0, 0, number.into());
        SocketAddr::new(of(family, [v4.into(), v6.into()]), port.dialled())
    }

    /// A port's cluster IP.
    pub(crate) fn cluster(self, port: Port, family: Family) -> SocketAddr {
        self.at(port, Kind::ClusterIp, family)
    }

    fn node_port(self, port: Port) -> u16 {
        30_000 + 20 * u16::from(self.number) + port.number()
    }

    fn name(self) -> String {
        format!("shop-{}", self.number)
    }

    fn to_json(self) -> Value {
        let ips = |kind| Family::ALL.map(|family| self.at(Port::Echo, kind, family).ip());
        let ports = Port::all().flat_map(|port| {
            port.protocols().iter().map(move |protocol| {
                json!({
                    "name": port_name(port, protocol),
                    "protocol": protocol,
                    "port": port.dialled(),
                    "nodePort": self.node_port(port),
                })
            })
        });
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name(), "namespace": "default" },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": ips(Kind::ClusterIp)[0],
                "clusterIPs": ips(Kind::ClusterIp),
                "externalIPs": ips(Kind::ExternalIp),
                "ipFamilies": Family::ALL.map(Family::name),
                "ports": ports.collect::<Vec<_>>(),
            },
            "status": {
                "loadBalancer": { "ingress": ips(Kind::Vip).map(|ip| json!({ "ip": ip })) },
            },
        })
    }

    fn slice(self, family: Family, pods: &[&Pod]) -> Value {
        let ports = Port::all().flat_map(|port| {
            port.protocols().iter().map(move |protocol| {
                let name = port_name(port, protocol);
                json!({ "name": name, "protocol": protocol, "port": port.target() })
            })
        });
        let endpoints = pods.iter().map(|pod| {
            json!({
                "addresses": [pod.address(family)],
                "nodeName": NODE_NAME,
                "conditions": { "ready": true },
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name(), family.name().to_lowercase()),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name() },
            },
            "addressType": family.name(),
            "ports": ports.collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

fn port_name(port: Port, protocol: &str) -> String {
    format!("p{}-{}", port.number(), protocol.to_lowercase())
}

fn of(family: Family, [v4, v6]: [IpAddr; 2]) -> IpAddr {
    match family {
        Family::Ipv4 => v4,
        Family::Ipv6 => v6,
    }
}

/// A pod that serves.
#[derive(Debug)]
pub(crate) struct Backend {
    /// Its own programs, each at its port. They and the others are dropped before the testbed is.
    programs: Vec<(Port, Program)>,
    _servers: [Server; 2],
    pub(crate) pod: Pod,
}

impl Backend {
    fn new(testbed: &Testbed, name: &str) -> Self {
        let pod = testbed.pod(name).unwrap();
        let serve = |what, port: Port| pod.serve(what, port.target()).unwrap();
        Self {
            programs: Vec::new(),
            _servers: [
                serve(Serve::Echo, Port::Echo),
                serve(Serve::Http, Port::Http),
            ],
            pod,
        }
    }

    /// Starts the program that serves at a port, and waits until it listens.
    fn serve(&mut self, testbed: &Testbed, port: Port) {
        let program = testbed
            .start(&self.pod.namespace, server(port, &self.pod))
            .unwrap();
        for family in Family::ALL {
            let address = SocketAddr::new(self.pod.address(family), port.target());
            let what = format!("{port:?} of {}", self.pod.name);
            until(&what, LISTENING, || {
                assert!(program.ended().unwrap().is_none(), "{}", program.said());
                self.pod.run(|| TcpStream::connect(address)).is_ok()
            });
        }
        if port == Port::Redis {
            let target = SocketAddr::new(self.pod.ipv4.into(), port.target());
            let set = redis_cli(target, &["set", WHO, &self.pod.name]);
            let done = testbed.call(&self.pod.namespace, set, LISTENING).unwrap();
            assert_eq!(done.said.trim(), "OK");
        }
        self.programs.push((port, program));
    }

    /// Its program at a port.
    pub(crate) fn program(&self, port: Port) -> &Program {
        let (_, program) = self.programs.iter().find(|(at, _)| *at == port).unwrap();
        program
    }
}

fn server(port: Port, pod: &Pod) -> Command {
    let (v4, v6) = (pod.ipv4.to_string(), pod.ipv6.to_string());
    let target = port.target().to_string();
    let (mut command, args) = match port {
        Port::Echo | Port::Http => unreachable!("{port:?} is served by the test itself"),
        Port::Dns => (
            Command::new("dnsmasq"),
            vec![
                "--keep-in-foreground".to_owned(),
                "--conf-file=/dev/null".into(),
                "--user=root".into(),
                "--pid-file=".into(),
                "--log-facility=-".into(),
                "--no-resolv".into(),
                "--no-hosts".into(),
                "--bind-interfaces".into(),
                "--except-interface=lo".into(),
                format!("--listen-address={v4},{v6}"),
                format!("--port={target}"),
                format!("--txt-record={WHO},{}", pod.name),
                format!("--host-record={WHO},{v4}"),
            ],
        ),
        Port::Redis => {
            // One file is redis-server and what checks its files; which one, its name decides.
            let mut command = Command::new("redis-check-rdb");
            command.arg0("redis-server");
            let words = ["--save", "", "--appendonly", "no", "--protected-mode", "no"];
            let args = words.map(str::to_owned).into_iter();
            let place = ["--port".to_owned(), target, "--bind".to_owned(), v4, v6];
            (command, args.chain(place).collect())
        }
        Port::Iperf(_) => (
            Command::new("iperf3"),
            vec!["--server".to_owned(), "--port".into(), target],
        ),
    };
    command.args(args).current_dir("/");
    command
}

/// A call of `redis-cli`.
pub(crate) fn redis_cli(server: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new("redis-cli");
    command
        .args(["-h", &server.ip().to_string()])
        .args(["-p", &server.port().to_string()])
        .args(args);
    command
}

/// Waits until a condition holds.
pub(crate) fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not in {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Who dials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    Pod,
    Node,
}

impl Who {
    pub(crate) const ALL: [Self; 2] = [Self::Pod, Self::Node];

    /// Both in both families.
    pub(crate) fn in_families() -> impl Iterator<Item = (Self, Family)> {
        Self::ALL
            .into_iter()
            .flat_map(|who| Family::ALL.map(|family| (who, family)))
    }
}

/// A node with Beeline, a client, and [`SHOP`]. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct SocketWorld {
    pub(crate) daemon: Option<Daemon>,
    pub(crate) backends: Vec<Backend>,
    /// A pod that is no backend.
    pub(crate) pod: Pod,
    pub(crate) edges: Edges,
    pub(crate) testbed: Testbed,
}

impl SocketWorld {
    /// Makes a node with backends `shop-0`, `shop-1`, …, which run the programs for these ports
    /// besides the echo and HTTP servers, and waits until Beeline has programmed [`SHOP`] with
    /// all of them.
    pub(crate) fn new(edges: Edges, n_backends: usize, ports: &[Port]) -> Self {
        let mut world = Self::without_beeline(edges, n_backends, ports);
        world.start_beeline();
        world
    }

    /// The same without Beeline.
    pub(crate) fn without_beeline(edges: Edges, n_backends: usize, ports: &[Port]) -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        let pod = testbed.pod("client").unwrap();
        let mut backends: Vec<_> = (0..n_backends)
            .map(|at| Backend::new(&testbed, &format!("shop-{at}")))
            .collect();
        for backend in &mut backends {
            ports.iter().for_each(|port| backend.serve(&testbed, *port));
            if edges == Edges::Sockets {
                without_way_to_services(&backend.pod);
            }
        }
        if edges == Edges::Sockets {
            without_way_to_services(&pod);
        }
        let world = Self {
            daemon: None,
            backends,
            pod,
            edges,
            testbed,
        };
        world.write(SHOP, &(0..n_backends).collect::<Vec<_>>());
        world
    }

    /// Gives the client's pod its routes to addresses of Services back.
    pub(crate) fn open_ways(&self) {
        if self.edges == Edges::Sockets {
            let commands = SERVICE_RANGES.map(|range| format!("route delete unreachable {range}"));
            self.pod.namespace.ip(commands).unwrap();
        }
    }

    /// Starts `beeline run`.
    pub(crate) fn start_beeline(&mut self) {
        let beeline = self.beeline().socket_lb(self.edges.socket_lb());
        let args = ["--nodeport-addresses", "", "--cluster-cidr", CLUSTER_CIDR];
        self.daemon = Some(beeline.run(args).unwrap());
    }

    /// The `beeline` command on the node.
    pub(crate) fn beeline(&self) -> Beeline<'_> {
        beeline(&self.testbed)
    }

    /// Where a client's processes run.
    pub(crate) fn place(&self, who: Who) -> &Namespace {
        match who {
            Who::Pod => &self.pod.namespace,
            Who::Node => &self.testbed.node().namespace,
        }
    }

    /// Runs `work` as a process of a client would.
    pub(crate) fn run<T: Send>(&self, who: Who, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(self.place(who), work)
    }

    /// Writes a Service with these backends, in place of what was there.
    pub(crate) fn write(&self, service: Service, backends: &[usize]) {
        let pods: Vec<_> = backends.iter().map(|at| &self.backends[*at].pod).collect();
        let [v4, v6] = Family::ALL.map(|family| service.slice(family, &pods));
        let items = [v4, v6, service.to_json()];
        put(&self.testbed, &format!("{}.json", service.name()), &items);
    }

    /// The same, and waits until new flows go to exactly these.
    pub(crate) fn apply(&self, service: Service, backends: &[usize]) {
        self.write(service, backends);
        let what = format!("{service:?} with backends {backends:?}");
        until(&what, IN_FORCE, || {
            self.has(&self.frontends(), service, backends)
        });
    }

    /// The same for several Services with one backend each.
    pub(crate) fn apply_all(&self, services: &[(Service, usize)]) {
        for (service, backend) in services {
            self.write(*service, &[*backend]);
        }
        until("all Services in force", IN_FORCE, || {
            let all = |frontends: &Value| {
                let mut each = services.iter();
                each.all(|(service, backend)| self.has(frontends, *service, &[*backend]))
            };
            all(&self.frontends())
        });
    }

    fn frontends(&self) -> Value {
        self.beeline().json(["services"]).unwrap()
    }

    fn has(&self, frontends: &Value, service: Service, backends: &[usize]) -> bool {
        Family::ALL.into_iter().all(|family| {
            let address = service.cluster(Port::Echo, family).ip().to_string();
            let expected: BTreeSet<_> = backends
                .iter()
                .map(|at| self.backends[*at].pod.address(family).to_string())
                .collect();
            let ours = frontends.as_array().into_iter().flatten();
            let mut ours = ours.filter(|it| it["address"] == address).peekable();
            ours.peek().is_some() && ours.all(|it| backends_of(it) == expected)
        })
    }

    /// What `beeline status` says; it need not be content.
    fn status(&self) -> Value {
        let status = self.beeline().call(["status", "-o", "json"]).unwrap();
        serde_json::from_slice(&status.stdout).unwrap()
    }

    /// How many entries a map has.
    pub(crate) fn entries(&self, map: &str) -> u64 {
        let status = self.status();
        let maps = status["maps"].as_array().into_iter().flatten();
        let fill = maps.into_iter().find(|it| it["map"] == map);
        let entries = fill.and_then(|it| it["entries"].as_u64());
        entries.unwrap_or_else(|| panic!("no map {map:?} in {status}"))
    }

    /// How often the programs came to a verdict, by its reason.
    pub(crate) fn count(&self, reason: &str) -> u64 {
        let status = self.status();
        let outcomes = status["outcomes"].as_array().into_iter().flatten();
        let ours = outcomes.filter(|it| it["reason"] == reason);
        let counts: Vec<_> = ours.filter_map(|it| it["packets"].as_u64()).collect();
        assert!(!counts.is_empty(), "no outcome {reason:?} in {status}");
        counts.iter().sum()
    }
}

fn backends_of(frontend: &Value) -> BTreeSet<String> {
    let backends = frontend["backends"].as_array().into_iter().flatten();
    let addresses = backends.filter_map(|it| it["address"].as_str());
    addresses.map(str::to_owned).collect()
}

/// Takes a pod's routes to addresses of Services away: what still reaches one was never sent to
/// its address.
fn without_way_to_services(pod: &Pod) {
    let commands = SERVICE_RANGES.map(|range| format!("route add unreachable {range}"));
    pod.namespace.ip(commands).unwrap();
}

/// Connects to a server, which has to accept in good time.
pub(crate) fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}
