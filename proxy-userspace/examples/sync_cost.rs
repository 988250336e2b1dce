//! What changes of the cluster cost the daemon, from events in memory to the last write to the
//! kernel's maps, as JSON of `xtask::figures::Control` without memory.
//!
//! ```text
//! cargo xtask build && cargo run --release -p proxy-userspace --example sync_cost -- [--quick]
//! ```
//!
//! Needs root. The maps are those of the daemon, in sizes that it has by default; they are pinned in
//! a mount namespace of this process, and end with it.

#[path = "../tests/support/crowd.rs"]
mod crowd;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::EbpfLoader;
use beeline::loader::checks::ensure_bpffs;
use beeline::loader::pins::Pins;
use beeline::loader::sizes::{self, MAPS};
use beeline::maps::{MapFailure, Maps};
use beeline::model::{Endpoint, Event};
use beeline::sync::{Target, Write};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use xtask::figures::{Change, ColdStart, Control, RollingRestart, Spread};

use crowd::{Way, endpoint, lists, replaced, service, slice};

/// Endpoints in a slice, at most, as the controller of EndpointSlices has it.
const SLICE: u32 = 100;
/// Changes of one endpoint that are measured.
const CHANGES: u32 = 1_000;

fn main() -> Result<()> {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let _raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let folder = tempfile::tempdir()?;
    let bpffs = folder.path();
    private_bpffs(bpffs)?;
    let times = if is_quick { 3 } else { 5 };
    let mut control = Control::default();
    for (n_services, n_endpoints) in [(5_000, 50), (30_000, 4)] {
        let start = cold_start(bpffs, n_services, n_endpoints, times)?;
        control.cold_start.push(start);
    }
    for n_services in [10, 1_000, 30_000] {
        control.change.push(changes(bpffs, n_services, 4)?);
    }
    control.rolling_restart.push(rolling_restart(bpffs, 1_000)?);
    serde_json::to_writer(std::io::stdout().lock(), &control)?;
    println!();
    Ok(())
}

/// Mounts a bpffs that nobody else sees and that ends with this process.
fn private_bpffs(folder: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own: are you root?")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    ensure_bpffs(folder)?;
    Ok(())
}

/// The daemon's maps, empty. Those that have nothing to do with Services have a single entry.
fn new_maps(bpffs: &Path) -> Result<Maps> {
    let object = aya::include_bytes_aligned!(env!("BEELINE_BPF_OBJECT"));
    let pins = Pins::new(bpffs);
    if pins.maps().exists() {
        std::fs::remove_dir_all(pins.maps())?;
    }
    std::fs::create_dir_all(pins.maps())?;
    let mut loader = EbpfLoader::new();
    for spec in MAPS {
        let size = if Counted::NAMES.contains(&spec.name) {
            sizes::default_size(spec.name, 0)
        } else {
            1
        };
        loader
            .map_pin_path(spec.name, pins.map(spec.name))
            .map_max_entries(spec.name, size);
    }
    drop(loader.load(object).context("make the maps")?);
    Ok(Maps::open(&pins)?)
}

/// The daemon's maps, and how often each was written to.
struct Counted {
    maps: Maps,
    writes: [u64; Self::NAMES.len()],
}

impl Counted {
    const NAMES: [&str; 7] = [
        "SERVICES",
        "SERVICE_COUNTERS",
        "BACKENDS",
        "SLOTS",
        "FRONTENDS",
        "ADDRESSES",
        "SOURCE_RANGES",
    ];

    /// Indices of the maps that a write goes to, and entries.
    fn written(write: &Write) -> (&'static [usize], u64) {
        match write {
            Write::Service { .. } => (&[0, 1], 1),
            Write::RemoveService { .. } => (&[0], 1),
            Write::Backend { .. } => (&[2], 1),
            Write::Slots { ids, .. } => (&[3], ids.len() as u64),
            Write::Frontend { .. } | Write::RemoveFrontend { .. } => (&[4], 1),
            Write::Address { .. } | Write::RemoveAddress { .. } => (&[5], 1),
            Write::SourceRange { .. } | Write::RemoveSourceRange { .. } => (&[6], 1),
        }
    }
}

impl Target for Counted {
    type Error = MapFailure;

    fn write(&mut self, write: &Write) -> Result<(), MapFailure> {
        let (maps, entries) = Self::written(write);
        for &map in maps {
            self.writes[map] += entries;
        }
        self.maps.write(write)
    }

    fn grace_period(&mut self) {
        self.maps.grace_period();
    }
}

fn new_way(bpffs: &Path) -> Result<Way<Counted>> {
    let maps = new_maps(bpffs)?;
    let target = Counted {
        writes: Default::default(),
        maps,
    };
    Ok(Way::new(target.maps.capacity(), target))
}

/// Takes events in, all of which must come into force; how long that takes.
fn timed(way: &mut Way<Counted>, events: impl IntoIterator<Item = Event>) -> Result<Duration> {
    let start = Instant::now();
    let report = way.take(events);
    let took = start.elapsed();
    ensure!(report.n_pending == 0, "not everything came into force");
    Ok(took)
}

fn cold_start(bpffs: &Path, services: u32, endpoints: u32, times: usize) -> Result<ColdStart> {
    let mut seconds = Vec::new();
    let mut writes = BTreeMap::new();
    for _ in 0..times {
        let lists = lists(services, endpoints);
        let mut way = new_way(bpffs)?;
        seconds.push(timed(&mut way, lists)?.as_secs_f64());
        let all = Counted::NAMES.into_iter().zip(way.target.writes);
        writes = all
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
    }
    seconds.sort_by(f64::total_cmp);
    let quarter = |number| seconds[(seconds.len() - 1) * number / 4];
    let seconds = Spread {
        low: quarter(1),
        median: quarter(2),
        high: quarter(3),
    };
    Ok(ColdStart {
        services,
        endpoints,
        seconds,
        writes,
    })
}

/// Time, writes and allocations of single events.
#[derive(Default)]
struct Singles {
    times: Vec<Duration>,
    writes: u64,
    allocations: u64,
}

impl Singles {
    fn take(&mut self, way: &mut Way<Counted>, event: Event) -> Result<()> {
        let before: u64 = way.target.writes.iter().sum();
        let mut took = Ok(Duration::ZERO);
        let counted = allocation_counter::measure(|| took = timed(way, [event]));
        self.times.push(took?);
        self.writes += way.target.writes.iter().sum::<u64>() - before;
        self.allocations += counted.count_total;
        Ok(())
    }

    /// Nanoseconds that so many of a thousand took at most.
    fn at_most(&mut self, per_mille: usize) -> f64 {
        self.times.sort_unstable();
        let at = (self.times.len() - 1) * per_mille / 1_000;
        self.times[at].as_nanos() as f64
    }
}

fn changes(bpffs: &Path, services: u32, endpoints: u32) -> Result<Change> {
    let mut way = new_way(bpffs)?;
    timed(&mut way, lists(services, endpoints))?;
    let mut singles = Singles::default();
    for number in 0..CHANGES {
        // Now here, now there, each Service as often as any other.
        let index = number.wrapping_mul(7_919) % services;
        let event = replaced(index, endpoints, 1 + number / services);
        singles.take(&mut way, event)?;
    }
    let each = |sum: u64| sum as f64 / f64::from(CHANGES);
    Ok(Change {
        services,
        endpoints,
        changes: CHANGES,
        p50_ns: singles.at_most(500),
        p99_ns: singles.at_most(990),
        max_ns: singles.at_most(1_000),
        writes: each(singles.writes),
        allocations: each(singles.allocations),
    })
}

/// A Deployment replaces its pods one after the other: a new one is ready, an old one terminates,
/// and is gone. Each time the controller sends the one slice that changes. A new endpoint takes the
/// place that an old one has left; the first has a slice of its own.
fn rolling_restart(bpffs: &Path, endpoints: u32) -> Result<RollingRestart> {
    let mut slices: Vec<Vec<Endpoint>> = (0..endpoints)
        .collect::<Vec<_>>()
        .chunks(SLICE as usize)
        .map(|chunk| chunk.iter().map(|&number| endpoint(number)).collect())
        .collect();
    slices.push(vec![]);
    let mut free = slices.len() - 1;
    let event = |slices: &[Vec<Endpoint>], at: usize| slice(0, at as u32, slices[at].clone());
    let mut way = new_way(bpffs)?;
    let all = (0..slices.len()).map(|at| event(&slices, at));
    timed(&mut way, [service(0)].into_iter().chain(all))?;
    let mut singles = Singles::default();
    for number in 0..endpoints {
        let at = (number / SLICE) as usize;
        slices[free].push(endpoint(endpoints + number));
        singles.take(&mut way, event(&slices, free))?;
        let old = &mut slices[at][0];
        (old.ready, old.terminating) = (false, true);
        singles.take(&mut way, event(&slices, at))?;
        let _gone = slices[at].remove(0);
        free = at;
        singles.take(&mut way, event(&slices, at))?;
    }
    Ok(RollingRestart {
        endpoints,
        events: singles.times.len() as u32,
        seconds: singles.times.iter().sum::<Duration>().as_secs_f64(),
        p50_ns: singles.at_most(500),
        p99_ns: singles.at_most(990),
    })
}
