//! What Prometheus asks, under kube-proxy's names where they mean the same (rules R175, R176), and
//! what only Beeline can tell. `docs/metrics.md` describes every metric.
//!
//! What changes by what the daemon does is counted when it happens. What the kernel counts is read
//! when it is asked for, by a [`Reader`] with map handles of its own, so that no scrape makes the
//! daemon's loop wait; nothing is read while nobody asks.

mod exposition;
mod gathered;
mod kube_proxy;
mod no_local;
mod problem;
mod process;
mod reader;
mod server;
mod services;
mod sheet;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use proxy_common::abi::Family;
use tokio::sync::watch;

pub use self::exposition::Format;
use self::gathered::Gathered;
pub use self::gathered::SocketEdgeView;
use self::kube_proxy::KubeProxy;
pub use self::no_local::{NoLocal, NoLocalTotals, no_local};
pub use self::problem::ProblemKind;
pub use self::reader::{MapCount, Reader, Readings};
pub use self::server::Server;
pub use self::services::{Key, Rows, Totals};
use crate::conntrack_gc::Passed;
use crate::model::Problem;
use crate::sockets::Counts;
use crate::source::SourceState;
use crate::sync::Fill;

/// Every metric.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kube_proxy: KubeProxy,
    gathered: Arc<Gathered>,
}

/// Who asked for the proxy's health.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// A change of what the kernel has to follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Of a Service.
    Service,
    /// Of an EndpointSlice.
    Endpoints,
}

/// One synchronisation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Synced {
    /// How long it took.
    pub took: Duration,
    /// Whether every Service was looked at, and not only those that had changed.
    pub is_full: bool,
    /// Writes to maps.
    pub n_writes: usize,
    /// What is not in force as desired.
    pub n_pending: usize,
    /// Whether every write succeeded.
    pub is_success: bool,
}

impl Metrics {
    /// All at 0.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let kube_proxy = KubeProxy::register(registry.sub_registry_with_prefix("kubeproxy"));
        let gathered = Arc::new(Gathered::default());
        registry.register_collector(Box::new(Arc::clone(&gathered)));
        let metrics = Self {
            registry,
            kube_proxy,
            gathered,
        };
        metrics.set_no_local(NoLocal::default());
        Arc::new(metrics)
    }

    /// How many service ports lack local endpoints (rule R176).
    pub fn set_no_local(&self, counts: NoLocal) {
        self.kube_proxy.set_no_local(counts);
    }

    /// A probe was answered so.
    pub fn count_probe(&self, probe: Probe, code: StatusCode) {
        self.kube_proxy.count_probe(probe, code);
    }

    /// Something changed that may have to be brought into force.
    pub fn count_change(&self, change: Change) {
        self.kube_proxy.count_change(change);
    }

    /// So many changes are not in force yet.
    pub fn set_pending(&self, change: Change, n_pending: usize) {
        self.kube_proxy.set_pending(change, n_pending);
    }

    /// A synchronisation is wanted.
    pub fn queued(&self, now: SystemTime) {
        self.kube_proxy.queued(now);
    }

    /// A synchronisation came to its end.
    pub fn synced(&self, synced: &Synced, now: SystemTime) {
        self.kube_proxy.synced(synced, now);
        self.gathered.edit(|it| {
            it.n_writes += synced.n_writes as u64;
            it.n_pending = synced.n_pending as u64;
            it.has_failed_writes = !synced.is_success;
        });
    }

    /// From a change of endpoints to its being in force it took so long.
    pub fn programmed(&self, family: Family, took: Duration) {
        self.kube_proxy.programmed(family, took);
    }

    /// What is not as it should be.
    pub fn set_problems(&self, problems: &[Problem]) {
        self.gathered.edit(|it| it.set_problems(problems));
    }

    /// Where to look how the source gets on.
    pub fn watch_source(&self, state: watch::Receiver<SourceState>) {
        self.gathered.edit(|it| it.source = Some(state));
    }

    /// Whether the first lists are in force.
    pub fn set_in_force(&self, is_in_force: bool) {
        self.gathered.edit(|it| it.is_in_force = is_in_force);
    }

    /// The socket edge.
    pub fn set_socket_edge(&self, view: &SocketEdgeView) {
        self.gathered.edit(|it| it.socket_edge = view.clone());
    }

    /// Where to look how many sockets left backends that were gone.
    pub fn watch_parted(&self, counts: watch::Receiver<Counts>) {
        self.gathered.edit(|it| it.parted = Some(counts));
    }

    /// How much room the Services take in the maps.
    pub fn set_fill(&self, fill: Fill) {
        self.gathered.edit(|it| it.fill = Some(fill));
    }

    /// Where to look what the latest pass over all flow records saw.
    pub fn watch_passes(&self, passed: watch::Receiver<Option<Passed>>) {
        self.gathered.edit(|it| it.passed = Some(passed));
    }

    /// When the configuration was read.
    pub fn set_configured(&self, at: SystemTime) {
        self.gathered.edit(|it| it.configured = Some(at));
    }

    /// What the kernel counts is read by `reader` from now on.
    pub fn read_with(&self, reader: Reader) {
        self.gathered.read_with(reader);
    }

    /// What was read, in place of a reader: for tests and for those who read otherwise.
    pub fn set_readings(&self, readings: Readings) {
        self.gathered.set_readings(readings);
    }

    /// Reads what the kernel counts. This may take a while.
    pub fn refresh(&self) {
        self.gathered.refresh();
    }

    /// All of them in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail, nor does any of these metrics.
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(fmt::Error) => String::new(),
        }
    }

    /// All of them in one of the text formats.
    pub fn text_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.text(),
            Format::Plain => exposition::plain(&self.text()),
        }
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
