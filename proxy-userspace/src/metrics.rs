//! What Prometheus asks, under kube-proxy's names where they mean the same (rules R175, R176).
//!
//! | metric | type | labels |
//! | --- | --- | --- |
//! | `kubeproxy_sync_proxy_rules_no_local_endpoints_total` | gauge | `ip_family`, `traffic_policy` |
//! | `kubeproxy_proxy_healthz_total` | counter | `code` |
//! | `kubeproxy_proxy_livez_total` | counter | `code` |

mod no_local;
mod server;

use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use proxy_common::abi::Family;

pub use self::no_local::{NoLocal, NoLocalTotals, no_local};
pub use self::server::Server;

/// Every metric.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    no_local: Labelled<PolicyLabels, Gauge>,
    healthz: Labelled<CodeLabel, Counter>,
    livez: Labelled<CodeLabel, Counter>,
}

/// Who asked for the proxy's health.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
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

impl Metrics {
    /// All at 0.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("kubeproxy");
        let no_local = Labelled::default();
        let (healthz, livez) = (Labelled::default(), Labelled::default());
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports that have endpoints, but none for their policy Local on this node",
            no_local.clone(),
        );
        // The encoder adds _total to the names of counters.
        registry.register("proxy_healthz", "Answers of /healthz", healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", livez.clone());
        let metrics = Self {
            registry,
            no_local,
            healthz,
            livez,
        };
        metrics.set_no_local(NoLocal::default());
        Arc::new(metrics)
    }

    /// How many service ports lack local endpoints (rule R176).
    pub fn set_no_local(&self, counts: NoLocal) {
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

    /// A probe was answered so.
    pub fn count_probe(&self, probe: Probe, code: StatusCode) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.get_or_create(&CodeLabel(code)).inc();
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
}

#[cfg(test)]
mod tests;
