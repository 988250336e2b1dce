//! The nodes that take part, and the clients on them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proxy_common::abi::Family;
use xtask::figures::{Case, Measure, Place, Proxy, Way};
use xtask::kube_proxy::{self, Flavour};
use xtask::testbed::{
    Beeline, Daemon, Layout, Namespace, Pod, PodOptions, Server, Testbed, on_network,
};

use super::client::{Client, Group};
use super::manifests::{self, ENDPOINTS, FAR_STREAM, FIRST_POD, STREAM};
use super::measure::{Arrivals, Sample, Targets};
use super::programs::Programs;
use super::server;

/// The last number of the address of the pod with the clients.
const CLIENT_POD: u8 = 2;
/// The machine from which a pod on the other node is dialled, and a byte of its addresses.
const VISITOR: (&str, u8) = ("visitor", 30);
/// A routing table of the outside router, for what takes its way by the node.
const BY_NODE: &str = "100";
/// How long each way is gone to see whether it is the right one.
const CHECK: Duration = Duration::from_millis(5);
/// How long an answer is waited for where there should be none.
const SILENCE: Duration = Duration::from_millis(100);

/// What a proxy is called in messages.
pub(super) fn proxy_name(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Direct => "no proxy",
        Proxy::Iptables => "iptables",
        Proxy::IptablesLegacy => "iptables-legacy",
        Proxy::Nftables => "nftables",
        Proxy::Beeline => "Beeline",
    }
}

/// What a way is called in messages.
pub(super) fn way_name(way: Way) -> &'static str {
    match way {
        Way::Pod => "by the pod's address",
        Way::Rules => "by rules",
        Way::SocketEdge => "by the socket edge",
        Way::PacketEdge => "by the packet edge",
    }
}

/// What a place is called in messages.
pub(super) fn place_name(place: Place) -> &'static str {
    match place {
        Place::Pod => "from a pod",
        Place::Node => "from the node",
        Place::OutsideToLocal => "from outside to a pod of the node",
        Place::OutsideToRemote => "from outside to a pod of another node",
    }
}

fn group(way: Way) -> Group {
    match way {
        Way::Pod | Way::SocketEdge => Group::Own,
        Way::Rules | Way::PacketEdge => Group::Outside,
    }
}

fn flavour(proxy: Proxy) -> Option<Flavour> {
    match proxy {
        Proxy::Iptables => Some(Flavour::Iptables),
        Proxy::IptablesLegacy => Some(Flavour::IptablesLegacy),
        Proxy::Nftables => Some(Flavour::Nftables),
        Proxy::Direct | Proxy::Beeline => None,
    }
}

/// Where Beeline translates on a node. A node that serves sockets spares its pods' packets most
/// look-ups, as long as none of them goes by packets: so each edge has nodes of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Edge {
    /// At sockets, of pods and of the node.
    Sockets,
    /// At packets only.
    Packets,
}

impl Edge {
    /// What it is called in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sockets => "socket edge",
            Self::Packets => "packet edge",
        }
    }
}

/// A node to be made.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    /// What is spoken.
    pub(super) family: Family,
    /// Who serves Services there.
    pub(super) proxy: Proxy,
    /// How many; without a proxy as many addresses are dialled.
    pub(super) services: u32,
    /// The program of Beeline.
    pub(super) beeline: &'a Path,
    /// Where it translates; `None`: it does not serve there.
    pub(super) edge: Option<Edge>,
}

/// A node with pods that serve and clients that dial.
pub(super) struct Site {
    /// Who serves Services there.
    pub(super) proxy: Proxy,
    /// How many; `None` without a proxy.
    pub(super) services: Option<u32>,
    /// How long it took until all of them were served, from the proxy's start; told of one of
    /// several nodes alike.
    pub(super) ready_after: Option<Duration>,
    edge: Option<Edge>,
    targets: Vec<(Place, bool, Targets)>,
    clients: Vec<(Place, Group, Client)>,
    binary: PathBuf,
    // What follows ends in this order.
    _daemon: Option<Daemon>,
    _servers: Vec<Server>,
    network: Network,
}

/// A node and what is around it.
struct Network {
    testbed: Testbed,
    pods: Vec<Pod>,
    client: Pod,
    /// On the other node.
    far: Pod,
    visitor: Pod,
}

/// What Beeline has counted at the TCP ports that are dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counters {
    flows: u64,
    packets: u64,
}

impl Site {
    /// Makes a node and starts everything on it.
    ///
    /// # Errors
    /// Without root's privileges, or if something cannot be made, loaded or started.
    pub(super) fn new(plan: Plan<'_>) -> Result<Self> {
        let Plan { family, .. } = plan;
        let network = Network::new()?;
        let bulk = server::Bulk::default();
        let servers = network
            .pods
            .iter()
            .map(|pod| server::start(pod, family, &bulk));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        server::start_stream(&network.far, family)?;
        let targets = network.targets(plan);
        for (place, _, targets) in targets.iter().filter(|(_, by_service, _)| *by_service) {
            network.expect_silence(*place, targets)?;
        }
        let (daemon, ready_after) = network.start_proxy(plan)?;
        let arrivals = Arc::new(Arrivals::at(&network.pods, bulk)?);
        Ok(Self {
            proxy: plan.proxy,
            services: (plan.proxy != Proxy::Direct).then_some(plan.services),
            ready_after: ready_after.filter(|_| plan.edge != Some(Edge::Packets)),
            edge: plan.edge,
            targets,
            clients: network.clients(&arrivals)?,
            binary: plan.beeline.to_owned(),
            _daemon: daemon,
            _servers: servers,
            network,
        })
    }

    /// Whether clients here go this way.
    pub(super) fn has(&self, way: Way) -> bool {
        let is_by_packets = way == Way::PacketEdge;
        self.edge
            .is_none_or(|edge| is_by_packets == (edge == Edge::Packets))
    }

    /// Has a client measure a case of this node.
    ///
    /// # Errors
    /// An operation of the client's fails, or does not end.
    pub(super) fn take(&self, case: Case, duration: Duration) -> Result<Sample> {
        let Case { place, way, .. } = case;
        let by_service = way != Way::Pod;
        let (_, _, targets) = self
            .targets
            .iter()
            .find(|(at, service, _)| (*at, *service) == (place, by_service))
            .context("there is nothing to dial")?;
        let (_, _, client) = self
            .clients
            .iter()
            .find(|(at, of, _)| (*at, *of) == (place, group(way)))
            .context("there is no such client")?;
        client.take(case.measure, targets, duration)
    }

    /// Goes a way once, for a moment. Beeline's ways are told apart by what it counts; that others
    /// are answered means that rules translate, since nobody answered before there were any.
    ///
    /// # Errors
    /// It is another way, or cannot be gone.
    pub(super) fn try_out(&self, case: Case) -> Result<()> {
        let is_told = case.proxy == Proxy::Beeline && case.measure == Measure::TcpConnection;
        if !is_told {
            return self.take(case, CHECK).map(drop);
        }
        let beeline = Beeline::new(&self.network.testbed, &self.binary);
        let before = counters(&beeline)?;
        let _sample = self.take(case, CHECK)?;
        let after = counters(&beeline)?;
        let (by_service, by_packet) = (after.flows > before.flows, after.packets > before.packets);
        ensure!(
            by_service == (case.way != Way::Pod) && by_packet == (case.way == Way::PacketEdge),
            "it went another way: {before:?}, then {after:?}"
        );
        Ok(())
    }

    /// The programs in the kernel that serve this node.
    ///
    /// # Errors
    /// What is pinned cannot be read.
    pub(super) fn programs(&self) -> Result<Programs> {
        Programs::pinned_at(&self.network.testbed.bpffs())
    }
}

impl Network {
    fn new() -> Result<Self> {
        let testbed = Testbed::new(Layout::Routed)?;
        let pods = (0..ENDPOINTS)
            .map(|at| add_pod(&testbed, &format!("server-{at}"), FIRST_POD + at))
            .collect::<Result<Vec<Pod>>>()?;
        let client = add_pod(&testbed, "client", CLIENT_POD)?;
        testbed.add_remote_node(Layout::Routed, 1500)?;
        let far = testbed.remote_pod("far")?;
        let (name, net) = VISITOR;
        let visitor = testbed.machine(name, net)?;
        let network = Self {
            testbed,
            pods,
            client,
            far,
            visitor,
        };
        network.lead_by_node()?;
        Ok(network)
    }

    /// Leads packets between the machine outside and the pod of the other node by the node, there
    /// and back, which is the way that a NodePort's take.
    fn lead_by_node(&self) -> Result<()> {
        let outside = self.testbed.outside();
        for family in Family::ALL {
            let node = self.testbed.node().address(family);
            outside.ip([format!("route add default via {node} table {BY_NODE}")])?;
            for device in [VISITOR.0, "remote"] {
                let version = match family {
                    Family::Ipv4 => "-4",
                    Family::Ipv6 => "-6",
                };
                outside.ask_ip(&format!("{version} rule add iif {device} lookup {BY_NODE}"))?;
            }
        }
        Ok(())
    }

    /// What is dialled from each place, by pods' addresses and by Services'.
    fn targets(&self, plan: Plan<'_>) -> Vec<(Place, bool, Targets)> {
        let family = plan.family;
        let pods: Vec<IpAddr> = self.pods.iter().map(|pod| pod.address(family)).collect();
        let far = SocketAddr::new(self.far.address(family), STREAM.target);
        let node = self.testbed.node().address(family);
        let node_port = |port: Option<u16>| SocketAddr::new(node, port.unwrap_or_default());
        let (frontends, endpoints): (Vec<_>, Vec<_>) =
            manifests::others(family, plan.services).into_iter().unzip();
        let near = Targets::pods(pods, endpoints);
        let service = Targets::service(manifests::dialled(family), frontends);
        vec![
            (Place::Pod, false, near.clone()),
            (Place::Pod, true, service.clone()),
            (Place::Node, false, near.clone()),
            (Place::Node, true, service),
            (Place::OutsideToLocal, false, near),
            (
                Place::OutsideToLocal,
                true,
                Targets::port(node_port(STREAM.node_port)),
            ),
            (Place::OutsideToRemote, false, Targets::port(far)),
            (
                Place::OutsideToRemote,
                true,
                Targets::port(node_port(FAR_STREAM.node_port)),
            ),
        ]
    }

    /// Where clients of a place are.
    fn at(&self, place: Place) -> &Namespace {
        match place {
            Place::Pod => &self.client.namespace,
            Place::Node => &self.testbed.node().namespace,
            Place::OutsideToLocal => self.testbed.outside(),
            Place::OutsideToRemote => &self.visitor.namespace,
        }
    }

    /// Makes sure that nobody answers yet: later, whoever is answered is so by the proxy's doing.
    fn expect_silence(&self, place: Place, targets: &Targets) -> Result<()> {
        for address in targets.of(Measure::TcpConnection) {
            let connect = || TcpStream::connect_timeout(&address, SILENCE);
            if on_network(self.at(place), connect).is_ok() {
                bail!("{}: {address} answers without a proxy", place_name(place));
            }
        }
        Ok(())
    }

    /// Starts a proxy, and waits until it serves all Services; how long that took.
    fn start_proxy(&self, plan: Plan<'_>) -> Result<(Option<Daemon>, Option<Duration>)> {
        let Plan {
            family, services, ..
        } = plan;
        let far = self.far.address(family);
        if let Some(flavour) = flavour(plan.proxy) {
            let ports = manifests::ports(family, services, far);
            let node = &self.testbed.node().namespace;
            let took = kube_proxy::load(node, flavour, family, &ports)?;
            return Ok((None, Some(took)));
        }
        if plan.proxy == Proxy::Direct {
            return Ok((None, None));
        }
        let file = self.testbed.manifests().join("services.json");
        std::fs::write(&file, manifests::text(family, services, far))
            .with_context(|| format!("write {}", file.display()))?;
        let sockets = match plan.edge {
            Some(Edge::Sockets) => "all",
            Some(Edge::Packets) | None => "off",
        };
        let beeline = Beeline::new(&self.testbed, plan.beeline).socket_lb(sockets);
        let started = Instant::now();
        let daemon = beeline.run::<&str>([])?;
        Ok((Some(daemon), Some(started.elapsed())))
    }

    fn clients(&self, arrivals: &Arc<Arrivals>) -> Result<Vec<(Place, Group, Client)>> {
        let mut clients = Vec::new();
        for place in Place::ALL {
            for group in [Group::Own, Group::Outside] {
                let client = Client::start(self.at(place), group, arrivals)?;
                clients.push((place, group, client));
            }
        }
        Ok(clients)
    }
}

fn add_pod(testbed: &Testbed, name: &str, number: u8) -> Result<Pod> {
    let options = PodOptions {
        number: Some(number),
        ..PodOptions::default()
    };
    testbed.pod_with(name, &options)
}

fn counters(beeline: &Beeline<'_>) -> Result<Counters> {
    let mut sum = Counters {
        flows: 0,
        packets: 0,
    };
    for name in manifests::names_of_streams() {
        let services = beeline.json(["services", "--service", &name])?;
        let frontends = services.as_array().filter(|all| !all.is_empty());
        for frontend in frontends.with_context(|| format!("`beeline services` without {name}"))? {
            let count = |name: &str| {
                let count = frontend[name].as_u64();
                count.with_context(|| format!("`beeline services` tells no {name}: {services}"))
            };
            sum.flows += count("flows")?;
            sum.packets += count("packets")?;
        }
    }
    Ok(sum)
}
