//! The text formats of Prometheus.

use http::HeaderMap;
use http::header::ACCEPT;

/// A text format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' older one, version 0.0.4.
    Plain,
}

impl Format {
    /// The one that who asks knows.
    pub fn asked(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(ACCEPT).iter();
        let knows_open_metrics = accepts
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("application/openmetrics-text"));
        if knows_open_metrics {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    /// The media type.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// OpenMetrics in Prometheus' older format. There a counter is described under the name that its
/// samples have, bounds of buckets are written as short as can be, and there is no end mark.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut help = None;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap_or((described, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                plain.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            plain.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            push_sample(&mut plain, line);
        }
    }
    plain
}

fn push_sample(plain: &mut String, line: &str) {
    const BOUND: &str = r#"_bucket{le=""#;
    let bucket = line.split_once(BOUND).and_then(|(name, rest)| {
        let (bound, rest) = rest.split_once('"')?;
        Some((name, bound.strip_suffix(".0")?, rest))
    });
    match bucket {
        Some((name, bound, rest)) => plain.extend([name, BOUND, bound, "\"", rest, "\n"]),
        None => plain.extend([line, "\n"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_describes_counters_by_the_names_of_their_samples() {
        let text = "# HELP a All.\n# TYPE a counter\na_total{b=\"x.0\"} 7\n\
                    # HELP h Times.\n# TYPE h histogram\nh_sum 1.0\nh_bucket{le=\"1.0\",x=\"y\"} 2\n\
                    h_bucket{le=\"+Inf\"} 2\n# EOF\n";
        let expected = "# HELP a_total All.\n# TYPE a_total counter\na_total{b=\"x.0\"} 7\n\
                        # HELP h Times.\n# TYPE h histogram\nh_sum 1.0\nh_bucket{le=\"1\",x=\"y\"} 2\n\
                        h_bucket{le=\"+Inf\"} 2\n";
        assert_eq!(plain(text), expected);
    }
}
