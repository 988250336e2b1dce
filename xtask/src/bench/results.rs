//! What the samples of all rounds say. Pure.

use std::collections::BTreeMap;

use xtask::figures::{Case, Comparison, Latency, Proxy, Traffic, Way};

use super::measure::Sample;
use super::statistics::{quantile, spread};

/// Samples by case, one of each round.
#[derive(Default)]
pub(super) struct Results {
    samples: BTreeMap<Case, Vec<Sample>>,
}

impl Results {
    /// Adds what a case came to in the present round.
    pub(super) fn add(&mut self, case: Case, sample: Sample) {
        self.samples.entry(case).or_default().push(sample);
    }

    /// Forgets a case, which failed.
    pub(super) fn remove(&mut self, case: Case) {
        drop(self.samples.remove(&case));
    }

    /// What all cases come to.
    pub(super) fn traffic(&self) -> Vec<Traffic> {
        let cases = self.samples.iter();
        cases
            .filter_map(|(&case, samples)| self.summary(case, samples))
            .collect()
    }

    fn summary(&self, case: Case, samples: &[Sample]) -> Option<Traffic> {
        let direct = Case {
            proxy: Proxy::Direct,
            services: None,
            way: Way::Pod,
            ..case
        };
        let pod = Case {
            way: Way::Pod,
            ..case
        };
        Some(Traffic {
            case,
            rate: spread(samples.iter().map(Sample::rate))?,
            cpu_ns: spread(samples.iter().map(Sample::cpu))?,
            latency: latency(samples),
            to_direct: self.compare(case, samples, direct),
            to_pod: self.compare(case, samples, pod),
        })
    }

    /// Compares samples with another case's; `None` if that is the same case, or was not measured.
    fn compare(&self, case: Case, samples: &[Sample], with: Case) -> Option<Comparison> {
        let others = self.samples.get(&with).filter(|_| with != case)?;
        let paired = |value: fn(&Sample) -> f64, combine: fn(f64, f64) -> f64| {
            let pairs = samples.iter().zip(others);
            spread(pairs.map(|(ours, theirs)| combine(value(ours), value(theirs))))
        };
        Some(Comparison {
            rate: paired(Sample::rate, |ours, theirs| ours / theirs)?,
            cpu: paired(Sample::cpu, |ours, theirs| ours / theirs)?,
            added_cpu_ns: paired(Sample::cpu, |ours, theirs| ours - theirs)?,
        })
    }
}

/// Of all operations of all rounds.
fn latency(samples: &[Sample]) -> Option<Latency> {
    let all = samples.iter().flat_map(|sample| &sample.latencies);
    let mut all: Vec<f64> = all.copied().map(f64::from).collect();
    all.sort_unstable_by(f64::total_cmp);
    Some(Latency {
        p50_ns: quantile(&all, 0.5)?,
        p99_ns: quantile(&all, 0.99)?,
        p999_ns: quantile(&all, 0.999)?,
    })
}

impl Sample {
    /// Operations a second.
    fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// Nanoseconds of processor time an operation.
    fn cpu(&self) -> f64 {
        self.used.as_nanos() as f64 / self.operations as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use xtask::figures::{Measure, Place};

    use super::*;

    type Node = (Proxy, Option<u32>, Way);

    const DIRECT: Node = (Proxy::Direct, None, Way::Pod);
    const BY_POD: Node = (Proxy::Beeline, Some(10), Way::Pod);
    const BY_SERVICE: Node = (Proxy::Beeline, Some(10), Way::SocketEdge);

    fn case((proxy, services, way): Node) -> Case {
        Case {
            place: Place::Pod,
            measure: Measure::TcpConnection,
            proxy,
            services,
            way,
        }
    }

    /// The second round met a machine half as fast, the third one a quarter as fast.
    fn results() -> Results {
        let mut results = Results::default();
        for slowdown in [1, 2, 4] {
            for (node, rate) in [(DIRECT, 2_000), (BY_POD, 1_600), (BY_SERVICE, 1_200)] {
                let sample = Sample {
                    operations: rate / slowdown,
                    warm_up: 0,
                    elapsed: Duration::from_secs(1),
                    used: Duration::from_millis(600),
                    latencies: vec![1e9 / (rate / slowdown) as f32],
                };
                results.add(case(node), sample);
            }
        }
        results
    }

    fn traffic(of: &Results, node: Node) -> Traffic {
        let all = of.traffic();
        let found = all.into_iter().find(|each| each.case == case(node));
        found.unwrap()
    }

    #[test]
    fn each_case_is_compared_with_the_same_round() {
        let results = results();
        let service = traffic(&results, BY_SERVICE);
        assert_eq!((service.rate.low, service.rate.median), (450.0, 600.0));
        assert_eq!(service.cpu_ns.median, 1e6);
        let to_pod = service.to_pod.unwrap();
        assert_eq!((to_pod.rate.low, to_pod.rate.high), (0.75, 0.75));
        let to_direct = service.to_direct.unwrap();
        assert_eq!((to_direct.rate.low, to_direct.rate.high), (0.6, 0.6));
        assert_eq!(to_direct.added_cpu_ns.median, 400_000.0);
        assert_eq!(results.traffic().len(), 3);
    }

    #[test]
    fn nothing_is_compared_with_itself_or_with_what_failed() {
        let mut results = results();
        let pod = traffic(&results, BY_POD);
        assert!(pod.to_direct.is_some() && pod.to_pod.is_none());
        let direct = traffic(&results, DIRECT);
        assert!(direct.to_direct.is_none() && direct.to_pod.is_none());
        results.remove(case(BY_POD));
        assert!(traffic(&results, BY_SERVICE).to_pod.is_none());
    }

    #[test]
    fn latencies_are_those_of_all_rounds() {
        let latency = traffic(&results(), BY_SERVICE).latency.unwrap();
        assert!((latency.p50_ns - 1_666_666.6).abs() < 1.0);
        assert!(latency.p999_ns > latency.p99_ns && latency.p99_ns > 3_000_000.0);
    }
}
