//! What the metrics tell.

use clap::Args;

/// How much the metrics tell.
#[derive(Args, Debug)]
pub(super) struct MetricsArgs {
    /// How many service ports have rows of their own at /metrics, each family by itself; all
    /// others are added up in one row.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    metrics_max_services: u32,
}

impl MetricsArgs {
    /// How many service ports have rows.
    pub(super) const fn max_services(&self) -> usize {
        self.metrics_max_services as usize
    }
}
