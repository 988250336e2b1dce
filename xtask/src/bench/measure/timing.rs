//! Turns: something is done again and again, and clocks and counters are looked at before and
//! after.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::super::processor::Meter;
use super::Arrivals;

/// Operations between two looks at the clock, where one takes far less than a microsecond.
const BATCH: usize = 64;
/// The part of a turn that comes first and does not count: caches and predictors get used to it.
const WARM_UP: u32 = 8;

/// A client's turn.
pub(in super::super) struct Turn<'a> {
    /// How long it takes, without the time to get warm.
    pub(in super::super) duration: Duration,
    /// What tells the processor time.
    pub(in super::super) meter: &'a Meter,
    /// What has arrived.
    pub(in super::super) arrivals: &'a Arrivals,
    /// A port for what the kernel gives none.
    pub(in super::super) port: u16,
}

/// A turn's result.
#[derive(Clone, Debug)]
pub(in super::super) struct Sample {
    /// How often it was done.
    pub(in super::super) operations: u64,
    /// And before, to get warm.
    pub(in super::super) warm_up: u64,
    /// How long that took.
    pub(in super::super) elapsed: Duration,
    /// The processor time that client and servers used meanwhile.
    pub(in super::super) used: Duration,
    /// What each operation took, in nanoseconds, where it was measured.
    pub(in super::super) latencies: Vec<f32>,
}

impl Turn<'_> {
    /// Looks at the clock after each operation.
    pub(super) fn each_timed(&self, mut operation: impl FnMut() -> Result<()>) -> Result<Sample> {
        let warm_up = self.get_warm(&mut operation)?;
        let mut latencies = Vec::with_capacity(1 << 14);
        let used = self.meter.used()?;
        let start = Instant::now();
        let (end, mut now) = (start + self.duration, start);
        while now < end {
            operation()?;
            let then = std::mem::replace(&mut now, Instant::now());
            latencies.push((now - then).as_nanos() as f32);
        }
        Ok(Sample {
            operations: latencies.len() as u64,
            warm_up,
            elapsed: now - start,
            used: self.meter.used()? - used,
            latencies,
        })
    }

    /// Looks at the clock now and then.
    pub(super) fn batches_timed(
        &self,
        mut operation: impl FnMut() -> Result<()>,
    ) -> Result<Sample> {
        let done = Cell::new(0);
        let counting = || {
            operation()?;
            done.set(done.get() + 1);
            Ok(())
        };
        self.counted(BATCH, || Ok(done.get()), counting)
    }

    /// Counts the packets that arrive at pods.
    pub(super) fn arriving(&self, mut send: impl FnMut() -> Result<()>) -> Result<Sample> {
        let mut sent = 0;
        let counting = || {
            send()?;
            sent += 1;
            Ok(())
        };
        let sample = self.counted(BATCH, || self.arrivals.packets(), counting)?;
        let arrived = sample.operations + sample.warm_up;
        // A packet or two may be of something else.
        ensure!(
            arrived.abs_diff(sent) <= sent / 10 + 2,
            "of {sent} packets {arrived} arrived"
        );
        ensure!(sample.operations > 0, "nothing arrived");
        Ok(sample)
    }

    /// Counts the bytes that servers read.
    pub(super) fn reading(&self, write: impl FnMut() -> Result<()>) -> Result<Sample> {
        let sample = self.counted(1, || Ok(self.arrivals.bytes()), write)?;
        ensure!(sample.operations > 0, "nothing arrived");
        Ok(sample)
    }

    /// Looks at the clock after each batch. The operations are those that `count` has counted.
    fn counted(
        &self,
        batch: usize,
        count: impl Fn() -> Result<u64>,
        mut operation: impl FnMut() -> Result<()>,
    ) -> Result<Sample> {
        let cold = count()?;
        self.get_warm(&mut operation)?;
        let (warm, used) = (count()?, self.meter.used()?);
        let start = Instant::now();
        while start.elapsed() < self.duration {
            for _ in 0..batch {
                operation()?;
            }
        }
        let (elapsed, used) = (start.elapsed(), self.meter.used()? - used);
        Ok(Sample {
            operations: count()? - warm,
            warm_up: warm - cold,
            elapsed,
            used,
            latencies: Vec::new(),
        })
    }

    fn get_warm(&self, operation: &mut impl FnMut() -> Result<()>) -> Result<u64> {
        let end = Instant::now() + self.duration / WARM_UP;
        let mut operations = 0;
        while Instant::now() < end {
            operation()?;
            operations += 1;
        }
        Ok(operations)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::server::Bulk;
    use super::*;

    fn turn<T>(duration: Duration, run: impl FnOnce(&Turn<'_>) -> T) -> T {
        let arrivals = Arrivals::at(&[], Bulk::default()).unwrap();
        run(&Turn {
            duration,
            meter: &Meter::on(0).unwrap(),
            arrivals: &arrivals,
            port: 0,
        })
    }

    #[test]
    fn operations_are_counted_without_the_warm_up() {
        let mut done = 0;
        let mut operation = || {
            done += 1;
            Ok(())
        };
        let [each, batches] = turn(Duration::from_millis(2), |turn| {
            [
                turn.each_timed(&mut operation).unwrap(),
                turn.batches_timed(&mut operation).unwrap(),
            ]
        });
        assert_eq!(each.latencies.len() as u64, each.operations);
        assert!(batches.operations > 0 && batches.operations.is_multiple_of(BATCH as u64));
        assert!(each.warm_up > 0 && batches.warm_up > 0);
        assert!(each.used > Duration::ZERO);
        let counted = [each, batches].map(|sample| sample.operations + sample.warm_up);
        assert_eq!(counted.iter().sum::<u64>(), done);
    }

    #[test]
    fn the_first_failure_ends_a_turn() {
        let fail = || Err(anyhow::anyhow!("refused"));
        turn(Duration::from_secs(60), |turn| {
            turn.each_timed(fail).unwrap_err();
            turn.batches_timed(fail).unwrap_err();
        });
    }

    #[test]
    fn what_is_sent_but_does_not_arrive_is_no_result() {
        turn(Duration::from_millis(1), |turn| {
            turn.arriving(|| Ok(())).unwrap_err();
            turn.reading(|| Ok(())).unwrap_err();
        });
    }
}
