//! What the samples of all rounds say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::{Place, Way};
use super::measure::{Measure, Sample};
use super::programs::Calls;
use super::statistics::Spread;

/// What one client does in one way, again in every round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Case {
    /// Where the client is.
    pub(super) place: Place,
    /// What it does.
    pub(super) measure: Measure,
    /// Services on its node; `None`: no Beeline.
    pub(super) services: Option<u32>,
    /// How it gets to a pod.
    pub(super) way: Way,
}

impl Case {
    /// The same by another way on the same node.
    pub(super) fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// The same without a Service.
    fn direct(self) -> Self {
        let way = match self.way {
            Way::Bare => Way::Bare,
            Way::Direct | Way::SocketEdge | Way::PacketEdge => Way::Direct,
        };
        self.by(way)
    }

    /// The same without Beeline.
    fn bare(self) -> Self {
        Self {
            services: None,
            way: Way::Bare,
            ..self
        }
    }
}

/// Samples by case, one of each round, and calls of programs by case.
#[derive(Default)]
pub(super) struct Results {
    samples: BTreeMap<Case, Vec<Sample>>,
    calls: BTreeMap<Case, ProgramCalls>,
}

/// Calls of each program while something was done so many times.
pub(super) struct ProgramCalls {
    /// How often it was done.
    pub(super) operations: u64,
    /// By the program's name.
    pub(super) calls: BTreeMap<String, Calls>,
}

/// What a case's samples come to.
pub(super) struct Summary {
    /// Which case.
    pub(super) case: Case,
    /// Operations a second.
    pub(super) rate: Spread,
    /// Nanoseconds an operation, by the clock.
    pub(super) time: Spread,
    /// Nanoseconds of processor time an operation, of client, kernel and server together.
    pub(super) used: Spread,
    /// Medians over the rounds of what half of the operations, and 99 of 100, took at most; in
    /// nanoseconds.
    pub(super) latency: Option<(f64, f64)>,
    /// Against the way without a Service.
    pub(super) to_direct: Comparison,
    /// Against the node without Beeline.
    pub(super) to_bare: Comparison,
}

/// One case against another, round by round.
pub(super) struct Comparison {
    /// The rate, as a part of the other's.
    pub(super) rate: Spread,
    /// The processor time of an operation, as a part of the other's.
    pub(super) used: Spread,
    /// Nanoseconds more an operation, by the clock.
    pub(super) added: Spread,
    /// Nanoseconds of processor time more an operation.
    pub(super) added_used: Spread,
}

impl Results {
    /// Adds what a case came to in the present round.
    pub(super) fn add(&mut self, case: Case, sample: Sample) {
        self.samples.entry(case).or_default().push(sample);
    }

    /// Adds the calls of programs in a case.
    pub(super) fn add_calls(&mut self, case: Case, calls: ProgramCalls) {
        self.calls.insert(case, calls);
    }

    /// All cases with calls of programs.
    pub(super) fn calls(&self) -> impl Iterator<Item = (&Case, &ProgramCalls)> {
        self.calls.iter()
    }

    /// The calls of programs in a case.
    pub(super) fn calls_in(&self, case: Case) -> Option<&ProgramCalls> {
        self.calls.get(&case)
    }

    /// All numbers of Services, in order.
    pub(super) fn services(&self) -> BTreeSet<u32> {
        self.samples
            .keys()
            .filter_map(|case| case.services)
            .collect()
    }

    /// What all cases come to.
    pub(super) fn summaries(&self) -> Vec<Summary> {
        let cases = self.samples.keys();
        cases.filter_map(|&case| self.summary(case)).collect()
    }

    /// What a case comes to; `None` if it was not measured, or what it is compared with was not.
    pub(super) fn summary(&self, case: Case) -> Option<Summary> {
        let samples = self.samples.get(&case)?;
        let times = samples.iter().map(Sample::time);
        let latencies = || samples.iter().filter_map(|sample| sample.latency);
        let half = Spread::of(latencies().map(|(half, _)| half));
        let most = Spread::of(latencies().map(|(_, most)| most));
        Some(Summary {
            case,
            rate: Spread::of(times.clone().map(|time| 1e9 / time))?,
            time: Spread::of(times)?,
            used: Spread::of(samples.iter().map(Sample::used))?,
            latency: half
                .zip(most)
                .map(|(half, most)| (half.median, most.median)),
            to_direct: self.compare(samples, case.direct())?,
            to_bare: self.compare(samples, case.bare())?,
        })
    }

    fn compare(&self, samples: &[Sample], with: Case) -> Option<Comparison> {
        let others = self.samples.get(&with)?;
        let paired = |value: fn(&Sample) -> f64, combine: fn(f64, f64) -> f64| {
            let pairs = samples.iter().zip(others);
            Spread::of(pairs.map(|(ours, theirs)| combine(value(ours), value(theirs))))
        };
        Some(Comparison {
            rate: paired(Sample::time, |ours, theirs| theirs / ours)?,
            used: paired(Sample::used, |ours, theirs| ours / theirs)?,
            added: paired(Sample::time, |ours, theirs| ours - theirs)?,
            added_used: paired(Sample::used, |ours, theirs| ours - theirs)?,
        })
    }
}

impl Sample {
    /// Nanoseconds an operation, by the clock.
    fn time(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.operations as f64
    }

    /// Nanoseconds of processor time an operation.
    fn used(&self) -> f64 {
        self.used.as_nanos() as f64 / self.operations as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn case(services: Option<u32>, way: Way) -> Case {
        Case {
            place: Place::Pod,
            measure: Measure::TcpConnection,
            services,
            way,
        }
    }

    fn sample(operations: u64, used: Duration) -> Sample {
        Sample {
            operations,
            warm_up: 0,
            elapsed: Duration::from_secs(1),
            used,
            latency: Some((operations as f64, 10.0 * operations as f64)),
        }
    }

    #[test]
    fn each_case_is_compared_with_the_same_round_of_its_own_node() {
        let mut results = Results::default();
        let half = Duration::from_millis(500);
        // The second round met a machine half as fast, the third one a quarter as fast.
        for slowdown in [1, 2, 4] {
            for (services, way, rate) in [
                (None, Way::Bare, 2_000),
                (Some(10), Way::Direct, 1_600),
                (Some(10), Way::SocketEdge, 1_200),
                (Some(30_000), Way::Direct, 1_000),
                (Some(30_000), Way::SocketEdge, 1_000),
            ] {
                results.add(case(services, way), sample(rate / slowdown, half));
            }
        }
        let summary = |services, way| results.summary(case(services, way)).unwrap();
        let few = summary(Some(10), Way::SocketEdge);
        assert_eq!(few.rate.median, 600.0);
        assert_eq!(few.to_direct.rate.median, 0.75);
        assert_eq!((few.to_bare.rate.low, few.to_bare.rate.high), (0.6, 0.6));
        assert_eq!(few.latency, Some((600.0, 6_000.0)));
        let many = summary(Some(30_000), Way::SocketEdge);
        assert_eq!(many.to_direct.rate.median, 1.0);
        assert_eq!(many.to_direct.added.median, 0.0);
        let direct = summary(Some(30_000), Way::Direct);
        assert_eq!(direct.to_direct.rate.median, 1.0);
        assert_eq!(direct.to_bare.added.median, 1_000_000.0);
        assert_eq!(direct.to_bare.added_used.median, 500_000.0);
        assert_eq!(summary(None, Way::Bare).to_bare.used.median, 1.0);
        assert_eq!(results.services(), BTreeSet::from([10, 30_000]));
        assert_eq!(results.summaries().len(), 5);
    }

    #[test]
    fn what_has_nothing_to_be_compared_with_has_no_summary() {
        let mut results = Results::default();
        let used = Duration::from_secs(1);
        results.add(case(Some(10), Way::SocketEdge), sample(1, used));
        assert!(results.summary(case(Some(10), Way::SocketEdge)).is_none());
    }
}
