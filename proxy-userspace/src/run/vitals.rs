//! Tells the servers for health and metrics what the daemon's loop knows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_common::abi::Family;
use tokio::task::JoinHandle;

use crate::desired::DesiredPort;
use crate::health::{self, Health, NodePorts, Problems, State, check};
use crate::metrics::{self, Metrics, NoLocalTotals, no_local};
use crate::model::{ObjectName, World};
use crate::sync::Sync;

/// The signs of life: the servers that tell them, and what they answer from.
pub(super) struct Vitals {
    health: Health,
    metrics: Arc<Metrics>,
    pub(super) problems: Problems,
    no_local: NoLocalTotals,
    /// Services that are in force as of late, or will be.
    due: BTreeSet<ObjectName>,
    node_ports: JoinHandle<()>,
    _healthz: Option<health::Server>,
    _metrics: Option<metrics::Server>,
}

impl Vitals {
    /// Starts the servers. `None` in place of an address leaves its server out. A change may wait
    /// for twice `sync_period` (rule R183).
    pub(super) fn start(
        healthz: Option<SocketAddr>,
        metrics: Option<SocketAddr>,
        sync_period: Duration,
    ) -> Self {
        allow_sockets();
        let (address_of_metrics, metrics) = (metrics, Metrics::new());
        let health = Health::new(State::new(sync_period), Instant::now);
        let problems = Problems::default();
        let serve_healthz =
            |bind| health::Server::start(bind, health.clone(), metrics.clone(), problems.clone());
        let serve_metrics = |bind| metrics::Server::start(bind, metrics.clone(), problems.clone());
        Self {
            node_ports: tokio::spawn(NodePorts::new(health.clone(), problems.clone()).run()),
            _healthz: healthz.map(serve_healthz),
            _metrics: address_of_metrics.map(serve_metrics),
            health,
            metrics,
            problems,
            no_local: NoLocalTotals::default(),
            due: BTreeSet::new(),
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
    pub(super) fn concluded(&mut self, world: &World, node: &str, sync: &Sync) {
        let (behind, in_force) = std::mem::take(&mut self.due)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|name| sync.is_behind(name));
        self.due = behind;
        self.metrics.set_no_local(self.no_local.total());
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
            if !sync.has_failed_writes() {
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
            let vitals = Vitals::start(None, None, SYNC_PERIOD);
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
            self.vitals.concluded(&self.world, HERE, &self.sync);
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
            zone_hints: vec![],
            node_hints: vec![],
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
