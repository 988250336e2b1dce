//! What the kernel counts, read when it is asked for.

use std::time::{Duration, Instant};

use bytemuck::Pod;
use proxy_common::abi::{
    Affinity, AffinityKey, DatagramKey, Device, FragmentKey, FragmentPorts, NetworkFlags, PodFlags,
    ServiceCounters, ServiceName, SocketClient, SocketRecord, Verdict,
};

use super::services::{Key, Rows, Totals};
use crate::loader::pins::Pins;
use crate::maps::{MapFailure, PerCpu, Table, Trie};

/// Nothing is read again before it is this old, however often it is asked for.
const FRESH: Duration = Duration::from_secs(1);
/// The entries of a map are not counted again before this time is over …
const COUNT_PAUSE: Duration = Duration::from_secs(5);
/// … nor before this many times what it took: so it costs a hundredth of one CPU at most.
const COUNT_SHARE: u32 = 100;

/// Reads the pinned maps by handles of its own.
pub struct Reader {
    services: Table<u32, ServiceName>,
    counters: PerCpu<ServiceCounters>,
    outcomes: PerCpu<u64>,
    counted: Vec<Counted>,
    rows: Rows,
    read: Option<Instant>,
    n_failures: u64,
}

/// What was read.
#[derive(Clone, Default, Debug)]
pub struct Readings {
    /// Of each service port.
    pub rows: Rows,
    /// How often each verdict was given.
    pub verdicts: Vec<(Verdict, u64)>,
    /// How full maps are.
    pub maps: Vec<MapCount>,
    /// Readings that failed since the start.
    pub n_failures: u64,
    /// How long this one took.
    pub took: Duration,
}

/// How full a map is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapCount {
    /// The map.
    pub name: &'static str,
    /// Its entries, and when they were counted; `None`: not yet, or not by this reader.
    pub entries: Option<(u64, Instant)>,
    /// How many it may hold.
    pub capacity: u32,
}

/// A map whose entries are counted one by one: the kernel does not tell how many there are.
struct Counted {
    name: &'static str,
    capacity: u32,
    count: Box<dyn Fn() -> Result<u64, MapFailure> + Send>,
    last: Option<Counting>,
}

#[derive(Clone, Copy)]
struct Counting {
    entries: u64,
    at: Instant,
    took: Duration,
}

impl Reader {
    /// Opens the pinned maps. At most `max_services` service ports get rows of their own.
    ///
    /// # Errors
    /// If a map is not there or of another shape.
    pub fn open(pins: &Pins, max_services: usize) -> Result<Self, MapFailure> {
        Ok(Self {
            services: Table::open(pins, "SERVICES")?,
            counters: PerCpu::open(pins, "SERVICE_COUNTERS")?,
            outcomes: PerCpu::open(pins, "OUTCOMES")?,
            counted: vec![
                networks(pins)?,
                hash::<u32, Device>(pins, "DEVICES")?,
                hash::<AffinityKey, Affinity>(pins, "AFFINITY")?,
                hash::<FragmentKey, FragmentPorts>(pins, "FRAGMENTS")?,
                hash::<u64, SocketRecord>(pins, "SOCKETS")?,
                hash::<DatagramKey, SocketRecord>(pins, "DATAGRAMS")?,
                hash::<u64, SocketClient>(pins, "CLIENTS")?,
                hash::<u64, PodFlags>(pins, "PODS")?,
            ],
            rows: Rows::new(max_services),
            read: None,
            n_failures: 0,
        })
    }

    /// Reads everything; `None` if the last reading is fresh still.
    pub fn read(&mut self) -> Option<Readings> {
        let start = Instant::now();
        if self.read.is_some_and(|read| start - read < FRESH) {
            return None;
        }
        if let Err(error) = self.read_services() {
            self.fail(&error);
        }
        let verdicts = self.verdicts();
        let verdicts = verdicts.unwrap_or_else(|error| {
            self.fail(&error);
            Vec::new()
        });
        for index in 0..self.counted.len() {
            if let Err(error) = self.counted[index].follow() {
                self.fail(&error);
            }
        }
        let end = Instant::now();
        self.read = Some(end);
        Some(Readings {
            rows: self.rows.clone(),
            verdicts,
            maps: self.counted.iter().map(Counted::view).collect(),
            n_failures: self.n_failures,
            took: end - start,
        })
    }

    fn read_services(&mut self) -> Result<(), MapFailure> {
        let mut ports = Vec::new();
        for entry in self.services.entries() {
            let (id, name) = entry?;
            let mut sum = ServiceCounters::default();
            for counters in self.counters.get(id)? {
                sum += counters;
            }
            ports.push((Key::new(&name), Totals::from(sum)));
        }
        self.rows.update(ports);
        Ok(())
    }

    fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, MapFailure> {
        let read = |verdict: Verdict| {
            let by_cpu = self.outcomes.get(verdict.index())?;
            Ok((verdict, by_cpu.iter().sum()))
        };
        Verdict::all().map(read).collect()
    }

    fn fail(&mut self, error: &MapFailure) {
        self.n_failures += 1;
        tracing::debug!("reading for metrics: {error:#}");
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl Counted {
    /// Counts, if it is time to.
    fn follow(&mut self) -> Result<(), MapFailure> {
        let start = Instant::now();
        if self.last.is_some_and(|last| !last.is_due(start)) {
            return Ok(());
        }
        let entries = (self.count)()?;
        let at = Instant::now();
        let took = at - start;
        self.last = Some(Counting { entries, at, took });
        Ok(())
    }

    fn view(&self) -> MapCount {
        MapCount {
            name: self.name,
            entries: self.last.map(|last| (last.entries, last.at)),
            capacity: self.capacity,
        }
    }
}

impl Counting {
    fn is_due(&self, now: Instant) -> bool {
        let pause = COUNT_PAUSE.max(self.took.saturating_mul(COUNT_SHARE));
        now.saturating_duration_since(self.at) >= pause
    }
}

fn hash<K: Pod + Send, V: Pod + Send>(
    pins: &Pins,
    name: &'static str,
) -> Result<Counted, MapFailure> {
    let table: Table<K, V> = Table::open(pins, name)?;
    Ok(Counted {
        name,
        capacity: table.size(),
        count: Box::new(move || count(table.keys())),
        last: None,
    })
}

fn networks(pins: &Pins) -> Result<Counted, MapFailure> {
    let trie: Trie<[u32; 4], NetworkFlags> = Trie::open(pins, "NETWORKS")?;
    Ok(Counted {
        name: "NETWORKS",
        capacity: trie.size(),
        count: Box::new(move || count(trie.keys())),
        last: None,
    })
}

fn count<T>(mut entries: impl Iterator<Item = Result<T, MapFailure>>) -> Result<u64, MapFailure> {
    entries.try_fold(0, |n, entry| entry.map(|_| n + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_costs_a_hundredth_of_the_time_at_most() {
        let at = Instant::now();
        let last = |took| Counting {
            entries: 1,
            at,
            took,
        };
        let after = |last: Counting, seconds| last.is_due(at + Duration::from_secs(seconds));
        assert!(!after(last(Duration::ZERO), 4));
        assert!(after(last(Duration::ZERO), 5));
        let slow = last(Duration::from_millis(300));
        assert!(!after(slow, 29) && after(slow, 30));
    }
}
