//! Tells the servers for health and metrics what the daemon's loop knows.

mod programming;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_common::abi::Family;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::programming::Programming;
use super::Options;
use crate::clock::wall;
use crate::conntrack_gc::Passed;
use crate::desired::DesiredPort;
use crate::health::{self, Health, NodePorts, Problems, State, check};
use crate::loader::pins::Pins;
use crate::metrics::{
    self, Change, Metrics, NoLocalTotals, Reader, SocketEdgeView, Synced, no_local,
};
use crate::model::{Affected, Event, ObjectName, World};
use crate::sockets::Counts;
use crate::source::SourceState;
use crate::status::Status;
use crate::sync::Sync;

/// The signs of life: the servers that tell them, and what they answer from.
pub(super) struct Vitals {
    health: Health,
    metrics: Arc<Metrics>,
    pub(super) problems: Problems,
    no_local: NoLocalTotals,
    programming: Programming,
    /// How many changes wait to be brought into force.
    waiting: Waiting,
    /// Services that are in force as of late, or will be.
    due: BTreeSet<ObjectName>,
    node_ports: JoinHandle<()>,
    _healthz: Option<health::Server>,
    _metrics: Option<metrics::Server>,
}

#[derive(Default)]
struct Waiting {
    services: usize,
    endpoints: usize,
}

/// Where the servers are and what they need to know from the start.
struct Places {
    /// `None`: nowhere.
    healthz: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    /// Whether an address that can't be had is an error.
    is_hard: bool,
    /// Twice this a change may wait (rule R183).
    sync_period: Duration,
    configz: Value,
}

/// An event, as far as it is counted.
pub(super) struct Noted {
    change: Change,
    /// When the change was made that a slice tells of; `None` if the slice is gone.
    slice: Option<(Family, Option<SystemTime>)>,
}

impl Noted {
    /// What is counted of this event, if anything is.
    pub(super) fn of(event: &Event) -> Option<Self> {
        let (change, slice) = match event {
            Event::Service(_) | Event::ServiceGone(_) => (Change::Service, None),
            Event::Slice(slice) => (
                Change::Endpoints,
                Some((
                    slice.family,
                    slice.changed_at.0.map(|at| SystemTime::UNIX_EPOCH + at),
                )),
            ),
            Event::SliceGone(_) => (Change::Endpoints, None),
            Event::Node(_)
            | Event::ServiceCidrs(_)
            | Event::Pod(_)
            | Event::PodGone(_)
            | Event::PodsKnown
            | Event::Synced
            | Event::Problem(_)
            | Event::Solved(_) => return None,
        };
        Some(Self { change, slice })
    }
}

impl Vitals {
    /// Starts the servers. What the kernel counts is read from the pinned maps.
    ///
    /// # Errors
    /// If a map is not there; or if an address can't be had and that is to be an error.
    pub(super) fn start(options: &Options) -> anyhow::Result<Self> {
        let reader = Reader::open(&Pins::new(&options.bpffs), options.metrics_max_services)?;
        let vitals = Self::serve(Places {
            healthz: options.healthz.0,
            metrics: options.metrics.0,
            is_hard: options.bind_address_hard_fail,
            sync_period: options.sync_period,
            configz: options.config.configz(),
        })?;
        vitals.metrics.read_with(reader);
        Ok(vitals)
    }

    fn serve(places: Places) -> Result<Self, health::BindError> {
        allow_sockets();
        let metrics = Metrics::new();
        metrics.set_configured(wall());
        let health = Health::new(State::new(places.sync_period), Instant::now);
        let problems = Problems::default();
        let serve_healthz = |bind| {
            let (health, metrics) = (health.clone(), Arc::clone(&metrics));
            let server = health::Server::start(bind, health, metrics, problems.clone());
            if places.is_hard {
                server.at_once()
            } else {
                Ok(server)
            }
        };
        let serve_metrics = |bind| {
            let metrics = Arc::clone(&metrics);
            let server = metrics::Server::start(bind, metrics, &places.configz, problems.clone());
            if places.is_hard {
                server.at_once()
            } else {
                Ok(server)
            }
        };
        Ok(Self {
            _healthz: places.healthz.map(serve_healthz).transpose()?,
            _metrics: places.metrics.map(serve_metrics).transpose()?,
            node_ports: tokio::spawn(NodePorts::new(health.clone(), problems.clone()).run()),
            health,
            metrics,
            problems,
            no_local: NoLocalTotals::default(),
            programming: Programming::new(wall()),
            waiting: Waiting::default(),
            due: BTreeSet::new(),
        })
    }

    /// Where to look how the source gets on.
    pub(super) fn watch_source(&self, state: watch::Receiver<SourceState>) {
        self.metrics.watch_source(state.clone());
        self.health.watch_source(state);
    }

    /// Where to look what the passes over all flow records see.
    pub(super) fn watch_passes(&self, passed: watch::Receiver<Option<Passed>>) {
        self.metrics.watch_passes(passed);
    }

    /// Where to look how many sockets left backends that were gone.
    pub(super) fn watch_parted(&self, counts: watch::Receiver<Counts>) {
        self.metrics.watch_parted(counts);
    }

    /// An event affects these Services.
    pub(super) fn note(&mut self, noted: Option<Noted>, affected: &Affected) {
        let Some(Noted { change, slice }) = noted else {
            return;
        };
        self.metrics.count_change(change);
        let Affected::Services(names) = affected else {
            return;
        };
        match change {
            Change::Service => self.waiting.services += 1,
            Change::Endpoints => self.waiting.endpoints += 1,
        }
        match (change, slice) {
            (Change::Endpoints, Some((family, Some(at)))) => {
                for name in names {
                    self.programming.note(name, family, at);
                }
            }
            // What a slice that is gone had told of says nothing about when it went.
            (Change::Endpoints, None) => self.programming.forget(names),
            (Change::Endpoints, Some((_, None))) | (Change::Service, _) => {}
        }
        self.tell_waiting();
    }

    fn tell_waiting(&self) {
        let Waiting {
            services,
            endpoints,
        } = self.waiting;
        self.metrics.set_pending(Change::Service, services);
        self.metrics.set_pending(Change::Endpoints, endpoints);
    }

    /// What `beeline status` shows may have changed.
    pub(super) fn tell_status(&self, status: &Status) {
        self.metrics.set_problems(&status.problems);
        self.metrics.set_in_force(status.synced);
        self.metrics.set_socket_edge(&SocketEdgeView {
            serves: status.socket_edge.serves.clone(),
            is_attached: status.socket_edge.cgroup.is_some(),
        });
        if status.synced {
            self.health.update(|state, _| state.set_in_force());
        }
    }

    /// What is known of the node may have changed.
    pub(super) fn tell_node(&self, world: &World) {
        if let Some(node) = world.node() {
            self.health.update(|state, _| state.set_node(node));
        }
    }

    /// Where health check node ports listen.
    pub(super) fn set_addresses(&self, addresses: BTreeSet<IpAddr>) {
        self.health
            .update(|state, _| state.set_addresses(addresses));
    }

    /// The kernel has something to follow.
    pub(super) fn changed(&self) {
        self.metrics.queued(wall());
        self.health.update(|state, now| {
            for family in Family::ALL {
                state.changed(family, now);
            }
        });
    }

    /// A Service is to be so.
    pub(super) fn desired(&mut self, name: &ObjectName, ports: &[DesiredPort]) {
        self.no_local.set(name, no_local(ports));
        self.due.insert(name.clone());
    }

    /// The kernel has followed as far as it can.
    ///
    /// A Service that does not fit keeps its old version and its old health check, but does not
    /// make the node unhealthy: it would on every node, and the rest is up to date. A write that
    /// fails does (rule R171).
    pub(super) fn concluded(&mut self, world: &World, node: &str, sync: &Sync, synced: &Synced) {
        let now = wall();
        self.metrics.synced(synced, now);
        self.metrics.set_fill(sync.fill());
        self.waiting = Waiting::default();
        self.tell_waiting();
        let (behind, in_force) = std::mem::take(&mut self.due)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|name| sync.is_behind(name));
        self.due = behind;
        self.metrics.set_no_local(self.no_local.total());
        for (family, took) in self.programming.take(now, |name| sync.is_behind(name)) {
            self.metrics.programmed(family, took);
        }
        let checks: Vec<_> = in_force
            .iter()
            .map(|name| {
                let service = world.service(name);
                (
                    name,
                    service.and_then(|(it, slices)| check(it, slices, node)),
                )
            })
            .collect();
        self.health.update(|state, now| {
            for (name, check) in checks {
                state.set_check(name, check);
            }
            if synced.is_success {
                for family in Family::ALL {
                    state.synced(family, now);
                }
            }
        });
    }
}

/// As many sockets as the hard limit permits: health check node ports may need thousands.
fn allow_sockets() {
    let raise = |(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    if let Err(error) = getrlimit(Resource::RLIMIT_NOFILE).and_then(raise) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

impl Drop for Vitals {
    fn drop(&mut self) {
        self.node_ports.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::abi::Protocol;

    use super::*;
    use crate::desired::{NodeFacts, compile};
    use crate::model::{
        Endpoint, EndpointSlice, Event, Service, ServicePort, SlicePort, TrafficPolicy,
    };
    use crate::sync::{Capacity, Contents, Target, Write};

    const HERE: &str = "here";
    const SYNC_PERIOD: Duration = Duration::from_secs(30);

    #[derive(Debug, thiserror::Error)]
    #[error("out of order")]
    struct OutOfOrder;

    /// Maps that take every write, or none.
    struct Kernel {
        works: bool,
    }

    impl Target for Kernel {
        type Error = OutOfOrder;

        fn write(&mut self, _: &Write) -> Result<(), OutOfOrder> {
            if self.works { Ok(()) } else { Err(OutOfOrder) }
        }

        fn grace_period(&mut self) {}
    }

    /// A daemon's loop, reduced to what they see of it.
    struct Scene {
        world: World,
        sync: Sync,
        kernel: Kernel,
        vitals: Vitals,
    }

    impl Scene {
        fn new(slots: u32) -> Self {
            let capacity = Capacity {
                frontends: 10,
                slots,
                backends: 10,
                services: 10,
                addresses: 10,
                source_ranges: 10,
            };
            let vitals = Vitals::serve(Places {
                healthz: None,
                metrics: None,
                is_hard: true,
                sync_period: SYNC_PERIOD,
                configz: Value::Null,
            });
            let vitals = vitals.unwrap();
            let nowhere = BTreeSet::new();
            vitals
                .health
                .update(|state, _| state.set_addresses(nowhere));
            Self {
                world: World::new(),
                sync: Sync::new(capacity, Contents::default()),
                kernel: Kernel { works: true },
                vitals,
            }
        }

        /// The Service has this many endpoints from now on.
        fn follow(&mut self, n_endpoints: u8) {
            self.world.apply(Event::Service(service()));
            self.world.apply(Event::Slice(slice(n_endpoints)));
            self.vitals.changed();
            let facts = NodeFacts {
                name: HERE.into(),
                zone: None,
                primary: vec![],
                same_node_hints: true,
            };
            let (service, slices) = self.world.service(&name()).unwrap();
            let ports = compile(service, slices, &facts);
            self.vitals.desired(&name(), &ports);
            self.sync.apply([(name(), ports)], &mut self.kernel);
            self.conclude();
        }

        fn retry(&mut self) {
            self.sync.retry(&mut self.kernel);
            self.conclude();
        }

        fn conclude(&mut self) {
            let synced = Synced {
                took: Duration::ZERO,
                is_full: false,
                n_writes: 1,
                n_pending: 0,
                is_success: !self.sync.has_failed_writes(),
            };
            self.vitals
                .concluded(&self.world, HERE, &self.sync, &synced);
        }

        fn n_local(&self) -> u32 {
            let check = |state: &State, now| state.check(&name(), Family::Ipv4, now).n_local;
            self.vitals.health.look(check)
        }

        /// Whether no change waits.
        fn will_be_healthy(&self) -> bool {
            let later = 3 * SYNC_PERIOD;
            let is_healthy = |state: &State, now| state.proxy(now + later).is_healthy;
            self.vitals.health.look(is_healthy)
        }
    }

    fn name() -> ObjectName {
        ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        }
    }

    fn service() -> Service {
        Service {
            name: name(),
            cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
            ports: vec![ServicePort {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Local,
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            affinity_seconds: None,
            gone_backends: None,
            health_check_node_port: Some(30_100),
        }
    }

    fn slice(n_endpoints: u8) -> EndpointSlice {
        let endpoint = |number| Endpoint {
            address: IpAddr::from([10, 0, 0, number]),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(HERE.into()),
            hints: None,
        };
        EndpointSlice {
            name: name(),
            service: name(),
            family: Family::Ipv4,
            ports: vec![SlicePort {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
            }],
            endpoints: (1..=n_endpoints).map(endpoint).collect(),
            changed_at: Default::default(),
        }
    }

    #[tokio::test]
    async fn r171_a_failed_write_keeps_the_count_and_makes_it_late() {
        let mut scene = Scene::new(10);
        scene.follow(1);
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (1, true));
        scene.kernel.works = false;
        scene.follow(2);
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (1, false));
        scene.retry();
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (1, false));
        scene.kernel.works = true;
        scene.retry();
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (2, true));
    }

    #[tokio::test]
    async fn what_does_not_fit_keeps_its_count_but_makes_nothing_late() {
        let mut scene = Scene::new(4);
        scene.follow(2);
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (2, true));
        scene.follow(5);
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (2, true));
        scene.follow(1);
        assert_eq!((scene.n_local(), scene.will_be_healthy()), (1, true));
    }
}
