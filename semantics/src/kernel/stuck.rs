//! Cases whose updates of the kernel hang.
//!
//! The real daemon's can't be made to. So the control plane runs in memory, where they can and
//! where time is an argument; the daemon's own servers answer for it, in the node's namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use beeline::health::{Health, NodePorts, Problems, Server, State};
use beeline::metrics::Metrics;
use tokio::runtime::Runtime;
use xtask::testbed::{Testbed, in_namespace};

use super::plan::Plan;
use super::world::World;
use super::{START, checks};
use crate::case::Case;
use crate::outcome::Failure;
use crate::pure::HealthOf;

/// Where the proxy's own health is asked for, on every address.
const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10_256);

/// Runs a case without flows.
pub(super) fn failures(case: &Case) -> Vec<Failure> {
    let world = Testbed::bare().and_then(|testbed| World::build(Plan::new(case), testbed, false));
    let result = world.and_then(|world| play(case, &world));
    result.unwrap_or_else(|error| vec![START.fails(format!("{error:#}"))])
}

fn play(case: &Case, world: &World) -> Result<Vec<Failure>> {
    let testbed = &world.testbed;
    in_namespace(&testbed.node().namespace, || {
        let mut control = HealthOf::start(case);
        let mut servers = Servers::start(&control)?;
        let mut failures = checks::failures(testbed, None, &case.checks);
        for (index, step) in case.steps.iter().enumerate() {
            control.step(step);
            servers.follow(&control);
            failures.extend(checks::failures(testbed, Some(index), &step.checks));
        }
        Ok(failures)
    })
}

/// The daemon's servers, in the caller's namespace.
struct Servers {
    node_ports: NodePorts,
    _healthz: Server,
    health: Health,
    clock: Arc<Mutex<Instant>>,
    // Dropped last: the servers live in it.
    runtime: Runtime,
}

impl Servers {
    fn start(control: &HealthOf) -> Result<Self> {
        // Its threads are in the same namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start the asynchronous runtime")?;
        let (state, now): (State, _) = control.now();
        let clock = Arc::new(Mutex::new(now));
        let shown = Arc::clone(&clock);
        let health = Health::new(state, move || {
            *shown.lock().unwrap_or_else(PoisonError::into_inner)
        });
        let problems = Problems::default();
        let (healthz, node_ports) = runtime.block_on(async {
            let of = health.clone();
            let healthz = Server::start(HEALTHZ, of, Metrics::new(), problems.clone());
            (healthz, NodePorts::new(health.clone(), problems))
        });
        let mut servers = Self {
            node_ports,
            _healthz: healthz,
            health,
            clock,
            runtime,
        };
        servers.follow(control);
        Ok(servers)
    }

    fn follow(&mut self, control: &HealthOf) {
        let (state, now) = control.now();
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.health.update(|shared, _| *shared = state);
        self.runtime.block_on(self.node_ports.settle());
    }
}
