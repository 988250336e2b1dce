//! The nodes that take part, and the clients on them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proxy_common::abi::Family;
use xtask::testbed::{Beeline, Daemon, Layout, Pod, PodOptions, Testbed};

use super::client::{Client, Group};
use super::manifests::{self, ENDPOINTS, FIRST_POD};
use super::measure::{Measure, Sample, Targets};
use super::programs::Programs;
use super::server;

/// The last number of the address of the pod with the clients.
const CLIENT_POD: u8 = 2;
/// How long each way is gone to see whether it is the right one.
const CHECK: Duration = Duration::from_millis(5);

/// Where clients are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    /// In a pod.
    Pod,
    /// On the node itself.
    Node,
}

/// The way from a client to a pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Way {
    /// By the pod's address, on a node without Beeline.
    Bare,
    /// By the pod's address.
    Direct,
    /// By a ClusterIP, as a process whose sockets Beeline sees.
    SocketEdge,
    /// By a ClusterIP, as a process whose packets Beeline sees.
    PacketEdge,
}

impl Place {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Pod, Self::Node];

    /// What it is called in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
        }
    }
}

impl Way {
    /// What it is called in messages.
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "direct, no Beeline",
            Self::Direct => "direct",
            Self::SocketEdge => "ClusterIP, socket edge",
            Self::PacketEdge => "ClusterIP, packet edge",
        }
    }

    /// What it is called in JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Bare => "no-beeline",
            Self::Direct => "direct",
            Self::SocketEdge => "socket-edge",
            Self::PacketEdge => "packet-edge",
        }
    }

    fn group(self) -> Group {
        match self {
            Self::Bare | Self::Direct | Self::SocketEdge => Group::Own,
            Self::PacketEdge => Group::Outside,
        }
    }

    fn dials_services(self) -> bool {
        matches!(self, Self::SocketEdge | Self::PacketEdge)
    }
}

/// A node with pods that serve and clients that dial.
pub(super) struct Site {
    /// How many Services Beeline has there; `None`: no Beeline.
    pub(super) services: Option<u32>,
    /// How long it took until Beeline had all Services in the kernel, from its start.
    pub(super) ready_after: Option<Duration>,
    pods: Targets,
    service: Targets,
    clients: Vec<(Place, Group, Client)>,
    binary: Option<PathBuf>,
    // What follows ends in this order.
    _daemon: Option<Daemon>,
    testbed: Testbed,
}

/// What Beeline has counted at the Service's TCP port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counters {
    flows: u64,
    packets: u64,
}

impl Site {
    /// Makes a node. With `services`, `beeline` runs on it and has as many; the program to run is
    /// part of it. Without, the same addresses are dialled as with `alike` Services.
    ///
    /// # Errors
    /// Without root's privileges, or if something cannot be made or started.
    pub(super) fn new(family: Family, services: Option<(u32, &Path)>, alike: u32) -> Result<Self> {
        let testbed = Testbed::new(Layout::Routed)?;
        let pods = (0..ENDPOINTS)
            .map(|at| add_pod(&testbed, &format!("server-{at}"), FIRST_POD + at))
            .collect::<Result<Vec<Pod>>>()?;
        for pod in &pods {
            server::start(pod, family)?;
        }
        let client_pod = add_pod(&testbed, "client", CLIENT_POD)?;
        let started = Instant::now();
        let daemon = services
            .map(|(count, beeline)| start_beeline(&testbed, family, count, beeline))
            .transpose()?;
        let ready_after = daemon.as_ref().map(|_| started.elapsed());
        let addresses: Vec<IpAddr> = pods.iter().map(|pod| pod.address(family)).collect();
        let (frontends, endpoints) = manifests::others(family, services.map_or(alike, |it| it.0))
            .into_iter()
            .unzip();
        Ok(Self {
            services: services.map(|(count, _)| count),
            ready_after,
            pods: Targets::pods(addresses, endpoints),
            service: Targets::service(manifests::dialled(family), frontends),
            clients: clients(&testbed, &client_pod)?,
            binary: services.map(|(_, beeline)| beeline.to_owned()),
            _daemon: daemon,
            testbed,
        })
    }

    /// The ways that there are here.
    pub(super) fn ways(&self) -> &'static [Way] {
        match self.services {
            None => &[Way::Bare],
            Some(_) => &[Way::Direct, Way::SocketEdge, Way::PacketEdge],
        }
    }

    /// Has a client measure.
    ///
    /// # Errors
    /// An operation of the client's fails, or does not end.
    pub(super) fn take(
        &self,
        place: Place,
        way: Way,
        measure: Measure,
        duration: Duration,
    ) -> Result<Sample> {
        let targets = if way.dials_services() {
            &self.service
        } else {
            &self.pods
        };
        let (_, _, client) = self
            .clients
            .iter()
            .find(|(at, group, _)| (*at, *group) == (place, way.group()))
            .context("there is no such client")?;
        client
            .take(measure, targets, duration)
            .with_context(|| format!("{} from a {}", way.name(), place.name()))
    }

    /// Makes sure that the ways are what they are called: what Beeline counts tells them apart.
    ///
    /// # Errors
    /// They are not, or cannot be gone.
    pub(super) fn check_ways(&self) -> Result<()> {
        let Some(binary) = &self.binary else {
            return Ok(());
        };
        let beeline = Beeline::new(&self.testbed, binary);
        for place in Place::ALL {
            for way in [Way::SocketEdge, Way::PacketEdge] {
                let before = counters(&beeline)?;
                let _sample = self.take(place, way, Measure::TcpConnection, CHECK)?;
                let after = counters(&beeline)?;
                let by_packet = after.packets > before.packets;
                ensure!(
                    after.flows > before.flows && by_packet == (way == Way::PacketEdge),
                    "{} from a {} went another way: {before:?}, then {after:?}",
                    way.name(),
                    place.name()
                );
            }
        }
        Ok(())
    }

    /// The programs in the kernel that serve this node.
    ///
    /// # Errors
    /// What is pinned cannot be read.
    pub(super) fn programs(&self) -> Result<Programs> {
        Programs::pinned_at(&self.testbed.bpffs())
    }
}

fn add_pod(testbed: &Testbed, name: &str, number: u8) -> Result<Pod> {
    let options = PodOptions {
        number: Some(number),
        ..PodOptions::default()
    };
    testbed.pod_with(name, &options)
}

fn start_beeline(testbed: &Testbed, family: Family, count: u32, beeline: &Path) -> Result<Daemon> {
    ensure!(count > 0, "no Services: there has to be one to dial");
    let file = testbed.manifests().join("services.json");
    std::fs::write(&file, manifests::text(family, count))
        .with_context(|| format!("write {}", file.display()))?;
    let beeline = Beeline::new(testbed, beeline).socket_lb("all");
    beeline.run::<&str>([])
}

fn counters(beeline: &Beeline<'_>) -> Result<Counters> {
    let services = beeline.json(["services", "--service", &manifests::name_of_stream()])?;
    let count = |name: &str| {
        let count = services[0][name].as_u64();
        count.with_context(|| format!("`beeline services` tells no {name}: {services}"))
    };
    Ok(Counters {
        flows: count("flows")?,
        packets: count("packets")?,
    })
}

fn clients(testbed: &Testbed, pod: &Pod) -> Result<Vec<(Place, Group, Client)>> {
    let mut clients = Vec::new();
    for place in Place::ALL {
        let namespace = match place {
            Place::Pod => &pod.namespace,
            Place::Node => &testbed.node().namespace,
        };
        for group in [Group::Own, Group::Outside] {
            clients.push((place, group, Client::start(namespace, group)?));
        }
    }
    Ok(clients)
}
