//! What became of a load.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

/// Of how many losses the details are kept.
const DETAILS: usize = 20;

/// What became of one stream.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Sockets that the clock has begun with.
    pub opened: u64,
    /// Messages that came back.
    pub exchanges: u64,
    /// Sockets that found no server, by what happened.
    pub failed: BTreeMap<String, u64>,
    /// Sockets that had found one and then lost it, by what happened.
    pub broken: BTreeMap<String, u64>,
    /// Datagrams of which the first try was not answered, but the second one was.
    pub lost: u64,
    /// Datagrams of which the first try was answered after the second was sent.
    pub late: u64,
    /// Connections that took so long that a packet must have been lost.
    pub slow: u64,
    /// Long-lived UDP sockets that were answered by another backend than before, how often.
    pub moved: u64,
    /// The longest that anything took from when it was due until it was answered.
    pub longest: Duration,
    /// How late the load itself was at most.
    pub behind: Duration,
    /// New sockets that found a server, by its name.
    pub backends: BTreeMap<String, u64>,
    /// When the first losses were, since the load was started, and what happened.
    pub details: Vec<(Duration, String)>,
}

impl Tally {
    /// How many failed.
    pub fn n_failed(&self) -> u64 {
        self.failed.values().sum()
    }

    /// How many broke.
    pub fn n_broken(&self) -> u64 {
        self.broken.values().sum()
    }

    pub(super) fn begun(&mut self, due: Instant) {
        self.opened += 1;
        self.behind = self.behind.max(due.elapsed());
    }

    pub(super) fn waited(&mut self, due: Instant) {
        self.longest = self.longest.max(due.elapsed());
    }

    pub(super) fn failed(&mut self, at: Duration, what: &str, why: &io::Error) {
        let reason = self.detail(at, what, why);
        *self.failed.entry(reason).or_default() += 1;
    }

    pub(super) fn broken(&mut self, at: Duration, what: &str, why: &io::Error) {
        let reason = self.detail(at, what, why);
        *self.broken.entry(reason).or_default() += 1;
    }

    pub(super) fn slow(&mut self, at: Duration, took: Duration) {
        self.slow += 1;
        self.note(at, format!("connect: only after {took:?}"));
    }

    fn detail(&mut self, at: Duration, what: &str, why: &io::Error) -> String {
        let reason = format!("{what}: {why}");
        self.note(at, reason.clone());
        reason
    }

    fn note(&mut self, at: Duration, what: String) {
        if self.details.len() < DETAILS {
            self.details.push((at, what));
        }
    }

    fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.exchanges += other.exchanges;
        self.lost += other.lost;
        self.late += other.late;
        self.slow += other.slow;
        self.moved += other.moved;
        self.longest = self.longest.max(other.longest);
        self.behind = self.behind.max(other.behind);
        for (to, from) in [
            (&mut self.failed, &other.failed),
            (&mut self.broken, &other.broken),
            (&mut self.backends, &other.backends),
        ] {
            for (key, count) in from {
                *to.entry(key.clone()).or_default() += count;
            }
        }
        self.details.extend_from_slice(&other.details);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, broken) = (self.n_failed(), self.n_broken());
        write!(
            f,
            "{} opened, {} exchanges, {failed} failed, {broken} broken, {} lost, {} late, \
             {} slow, {} moved; longest {:.3} s, load behind {:.3} s",
            self.opened,
            self.exchanges,
            self.lost,
            self.late,
            self.slow,
            self.moved,
            self.longest.as_secs_f64(),
            self.behind.as_secs_f64(),
        )?;
        for (at, what) in &self.details {
            write!(f, "\n  {:.3} s: {what}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

/// What became of a load, by its streams' names.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Counts(BTreeMap<String, Tally>);

impl Counts {
    /// What became of the stream of this name; nothing if there is none.
    pub fn of(&self, name: &str) -> Tally {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// All streams, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tally)> {
        self.0.iter().map(|(name, tally)| (name.as_str(), tally))
    }

    /// All streams together.
    pub fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        self.0.values().for_each(|tally| sum.add(tally));
        sum
    }
}

impl FromIterator<(String, Tally)> for Counts {
    fn from_iter<T: IntoIterator<Item = (String, Tally)>>(tallies: T) -> Self {
        Self(tallies.into_iter().collect())
    }
}

impl fmt::Display for Counts {
    /// A line for each stream, and for all together.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, tally) in &self.0 {
            writeln!(f, "{name}: {tally}")?;
        }
        let mut sum = self.sum();
        sum.details.clear();
        write!(f, "all: {sum}")
    }
}
