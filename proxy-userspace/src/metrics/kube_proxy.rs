//! The metrics that kube-proxy has, too (rules R175, R176): names, labels and buckets are its own.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;
use proxy_common::abi::Family;

use super::{Change, NoLocal, Probe, Synced, seconds};

type Histograms = Labelled<FamilyLabel, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct FamilyLabel {
    ip_family: &'static str,
}

/// A family and the traffic policy that is meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PolicyLabels {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct CodeLabel(StatusCode);

impl EncodeLabelSet for CodeLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelSet::encode(&[("code", self.0.as_str())], encoder)
    }
}

/// Their present values.
#[derive(Debug)]
pub(super) struct KubeProxy {
    sync: Histograms,
    full_sync: Histograms,
    partial_sync: Histograms,
    last_queued: Labelled<FamilyLabel, Seconds>,
    last_synced: Labelled<FamilyLabel, Seconds>,
    programming: Histograms,
    service_changes: Changes,
    endpoint_changes: Changes,
    no_local: Labelled<PolicyLabels, Gauge>,
    healthz: Labelled<CodeLabel, Counter>,
    livez: Labelled<CodeLabel, Counter>,
}

#[derive(Default, Debug)]
struct Changes {
    total: Counter,
    pending: Gauge,
}

impl KubeProxy {
    /// The encoder adds `_total` to the names of counters.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let it = Self {
            sync: histograms(sync_buckets),
            full_sync: histograms(sync_buckets),
            partial_sync: histograms(sync_buckets),
            last_queued: Labelled::default(),
            last_synced: Labelled::default(),
            programming: histograms(programming_buckets),
            service_changes: Changes::default(),
            endpoint_changes: Changes::default(),
            no_local: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        };
        for (name, help, metric) in [
            (
                "sync_proxy_rules_duration_seconds",
                "How long one synchronisation took; one serves both families",
                &it.sync,
            ),
            (
                "sync_full_proxy_rules_duration_seconds",
                "How long one synchronisation of all Services took",
                &it.full_sync,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "How long one synchronisation of the Services that had changed took",
                &it.partial_sync,
            ),
            (
                "network_programming_duration_seconds",
                "From the change of a pod or Service to the kernel, for changes since the start",
                &it.programming,
            ),
        ] {
            registry.register(name, help, metric.clone());
        }
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a synchronisation was asked for last",
            it.last_queued.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When a synchronisation succeeded last",
            it.last_synced.clone(),
        );
        it.service_changes.register(registry, "service", "Services");
        it.endpoint_changes
            .register(registry, "endpoint", "EndpointSlices");
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports that have endpoints, but none for their policy Local on this node",
            it.no_local.clone(),
        );
        registry.register("proxy_healthz", "Answers of /healthz", it.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", it.livez.clone());
        it.create_rows();
        it
    }

    /// Has every row there from the start.
    fn create_rows(&self) {
        for label in Family::ALL.map(label) {
            for histograms in [
                &self.sync,
                &self.full_sync,
                &self.partial_sync,
                &self.programming,
            ] {
                drop(histograms.get_or_create(&label));
            }
            drop(self.last_queued.get_or_create(&label));
            drop(self.last_synced.get_or_create(&label));
        }
        for code in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
            drop(self.healthz.get_or_create(&CodeLabel(code)));
            drop(self.livez.get_or_create(&CodeLabel(code)));
        }
    }

    pub(super) fn set_no_local(&self, counts: NoLocal) {
        for family in Family::ALL {
            let of_family = counts.of(family);
            for (traffic_policy, count) in [
                ("internal", of_family.internal),
                ("external", of_family.external),
            ] {
                let labels = PolicyLabels {
                    ip_family: family.name(),
                    traffic_policy,
                };
                self.no_local.get_or_create(&labels).set(count.into());
            }
        }
    }

    pub(super) fn count_probe(&self, probe: Probe, code: StatusCode) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.get_or_create(&CodeLabel(code)).inc();
    }

    pub(super) fn count_change(&self, change: Change) {
        self.changes(change).total.inc();
    }

    pub(super) fn set_pending(&self, change: Change, n_pending: usize) {
        let n_pending = i64::try_from(n_pending).unwrap_or(i64::MAX);
        self.changes(change).pending.set(n_pending);
    }

    fn changes(&self, change: Change) -> &Changes {
        match change {
            Change::Service => &self.service_changes,
            Change::Endpoints => &self.endpoint_changes,
        }
    }

    pub(super) fn queued(&self, now: SystemTime) {
        for label in Family::ALL.map(label) {
            self.last_queued.get_or_create(&label).set(seconds(now));
        }
    }

    pub(super) fn synced(&self, synced: &Synced, now: SystemTime) {
        let of_kind = if synced.is_full {
            &self.full_sync
        } else {
            &self.partial_sync
        };
        for label in Family::ALL.map(label) {
            for histograms in [&self.sync, of_kind] {
                let histogram = histograms.get_or_create(&label);
                histogram.observe(synced.took.as_secs_f64());
            }
            if synced.is_success {
                self.last_synced.get_or_create(&label).set(seconds(now));
            }
        }
    }

    pub(super) fn programmed(&self, family: Family, took: Duration) {
        let histogram = self.programming.get_or_create(&label(family));
        histogram.observe(took.as_secs_f64());
    }
}

impl Changes {
    fn register(&self, registry: &mut Registry, of: &str, objects: &str) {
        registry.register(
            format!("sync_proxy_rules_{of}_changes"),
            format!("Changes of {objects} that were told of"),
            self.total.clone(),
        );
        registry.register(
            format!("sync_proxy_rules_{of}_changes_pending"),
            format!("Changes of {objects} that are not in force yet"),
            self.pending.clone(),
        );
    }
}

fn histograms(make: fn() -> Histogram) -> Histograms {
    Labelled::new_with_constructor(make)
}

fn label(family: Family) -> FamilyLabel {
    FamilyLabel {
        ip_family: family.name(),
    }
}

fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// 0.25 s, 0.5 s, every second of the first minute, every five of the second, then every thirty.
fn programming_buckets() -> Histogram {
    let seconds = linear_buckets(0.25, 0.25, 2)
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7));
    Histogram::new(seconds)
}
