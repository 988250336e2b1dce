//! Pauses before something is tried again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Pauses that double, with jitter, as client-go has them: of many nodes that lose their API server
/// at the same time, no two come back at the same time.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
    last: Option<Instant>,
}

impl Backoff {
    /// With the first pause and the longest one, jitter not counted.
    pub(super) fn new((first, most): (Duration, Duration)) -> Self {
        Self {
            first,
            most,
            next: first,
            last: None,
        }
    }

    /// The pause that is due at `now`. After a long time without one they begin anew.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since > 4 * self.most) {
            self.next = self.first;
        }
        self.last = Some(now);
        let pause = self.next;
        self.next = (2 * pause).min(self.most);
        pause + jitter(pause)
    }
}

/// Any time shorter than `most`.
pub(super) fn jitter(most: Duration) -> Duration {
    // Its keys are random.
    let random = RandomState::new().hash_one(0u8) >> 32;
    most.mul_f64(random as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_hour_without_an_api_server_costs_few_tries() {
        let start = Instant::now();
        let mut backoff = Backoff::new((SECOND, 30 * SECOND));
        let (mut time, mut n_tries) = (Duration::ZERO, 0);
        while time < 3600 * SECOND {
            let pause = backoff.next(start + time);
            assert!(pause <= 60 * SECOND, "{pause:?}");
            time += pause;
            n_tries += 1;
        }
        // Every 30 to 60 seconds but for the first ones.
        assert!((60..=125).contains(&n_tries), "{n_tries}");
    }

    #[test]
    fn they_begin_anew_when_all_has_been_well() {
        let start = Instant::now();
        let mut backoff = Backoff::new((SECOND, 30 * SECOND));
        for n in 0..10 {
            backoff.next(start + n * 30 * SECOND);
        }
        assert!(backoff.next(start + 300 * SECOND) >= 30 * SECOND);
        assert!(backoff.next(start + 900 * SECOND) <= 2 * SECOND);
        // Whatever the order of times.
        assert!(backoff.next(start) >= 2 * SECOND);
    }

    #[test]
    fn nodes_differ() {
        let some: Vec<_> = (0..100).map(|_| jitter(SECOND)).collect();
        assert!(some.iter().all(|it| *it <= SECOND));
        let early = some.iter().filter(|it| **it < SECOND / 2).count();
        assert!((10..=90).contains(&early), "{early}");
    }
}
