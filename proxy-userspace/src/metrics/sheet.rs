//! Metrics that are put together when they are asked for, row by row.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;

/// What metrics are written to.
pub(super) struct Sheet<'a>(pub(super) DescriptorEncoder<'a>);

impl Sheet<'_> {
    /// Counters with labels. The encoder adds `_total` to the name.
    pub(super) fn counters<L: EncodeLabelSet, N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Counter, |mut metric| {
            for (labels, value) in rows {
                let mut row = metric.encode_family(&labels)?;
                row.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
            Ok(())
        })
    }

    /// A counter without labels.
    pub(super) fn counter<N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        value: N,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Counter, |mut metric| {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// Gauges with labels.
    pub(super) fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge, |mut metric| {
            for (labels, value) in rows {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
            Ok(())
        })
    }

    /// A gauge without labels, if it is known.
    pub(super) fn gauge<N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        value: Option<N>,
    ) -> fmt::Result {
        self.metric(name, help, MetricType::Gauge, |mut metric| {
            value.map_or(Ok(()), |value| metric.encode_gauge(&value))
        })
    }

    fn metric(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let help = format!("{help}.");
        write(self.0.encode_descriptor(name, &help, None, kind)?)
    }
}
