//! Tells the servers for health and metrics what the daemon's loop knows.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use tokio::task::JoinHandle;

use crate::desired::DesiredPort;
use crate::health::{self, Health, NodePorts, Problems, State, check};
use crate::metrics::{self, Metrics, NoLocalTotals, no_local};
use crate::model::{ObjectName, World};
use crate::sync::Sync;

/// kube-proxy's default (rule R183); twice this a change may wait.
const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// The servers, and what they answer from.
pub(super) struct Probes {
    health: Health,
    metrics: Arc<Metrics>,
    pub(super) problems: Problems,
    no_local: NoLocalTotals,
    /// Services that are in force as of late, or will be.
    due: BTreeSet<ObjectName>,
    _node_ports: JoinHandle<()>,
    _healthz: Option<health::Server>,
    _metrics: Option<metrics::Server>,
}

impl Probes {
    /// Starts the servers. `None` in place of an address leaves its server out.
    pub(super) fn start(healthz: Option<SocketAddr>, metrics: Option<SocketAddr>) -> Self {
        let (address_of_metrics, metrics) = (metrics, Metrics::new());
        let health = Health::new(State::new(SYNC_PERIOD), Instant::now);
        let problems = Problems::default();
        let serve_healthz =
            |bind| health::Server::start(bind, health.clone(), metrics.clone(), problems.clone());
        let serve_metrics = |bind| metrics::Server::start(bind, metrics.clone(), problems.clone());
        Self {
            _node_ports: tokio::spawn(NodePorts::new(health.clone(), problems.clone()).run()),
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

impl Drop for Probes {
    fn drop(&mut self) {
        self._node_ports.abort();
    }
}
