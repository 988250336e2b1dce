//! Loaded programs, handed on from case to case.
//!
//! Verifying the programs takes the kernel longer than most cases do. A daemon takes over the
//! programs that it finds pinned, so a case gets the bpffs of an earlier one: with its programs,
//! and with maps that are as empty as new ones.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use beeline::loader::pins::Pins;
use beeline::maps::{Maps, Table};
use bytemuck::{Pod, Zeroable as _};
use proxy_common::abi::{Backend, PodFlags, Settings, SocketClient};
use xtask::testbed::Testbed;

/// All pinned maps. Of those not named in [`wipe`], SLOTS holds nothing that counts without
/// frontends, CRC_SHIFTS is constant, DRAFT does not outlast a packet, and AYA_LOGS is on its way
/// to somebody's log.
const MAPS: [&str; 23] = [
    "ADDRESSES",
    "AFFINITY",
    "AYA_LOGS",
    "BACKENDS",
    "CLIENTS",
    "CRC_SHIFTS",
    "DATAGRAMS",
    "DEVICES",
    "DRAFT",
    "FLOWS",
    "FRAGMENTS",
    "FRONTENDS",
    "NETWORKS",
    "OUTCOMES",
    "PODS",
    "POD_FLOWS",
    "SERVICES",
    "SERVICE_COUNTERS",
    "SETTINGS",
    "SLOTS",
    "SOCKETS",
    "SOCKET_SETTINGS",
    "SOURCE_RANGES",
];

/// Testbeds of which the bpffs is used, by one case at a time.
static FREE: Mutex<Vec<Testbed>> = Mutex::new(Vec::new());

/// A bpffs for one case.
#[derive(Debug)]
pub(super) struct Kit(Testbed);

impl Kit {
    /// One that is free, or a new one.
    pub(super) fn take() -> Result<Self> {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.map_or_else(Testbed::bare, Ok).map(Self)
    }

    /// A testbed that uses it.
    pub(super) fn testbed(&self) -> Result<Testbed> {
        Testbed::bare_on(&self.0)
    }

    /// Hands it on. If it can't be made as new, it is never used again.
    pub(super) fn hand_on(self) {
        match wipe(&self.0.bpffs()) {
            Ok(()) => FREE
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(self.0),
            Err(error) => eprintln!("warning: the maps of a case are given up: {error:#}"),
        }
    }
}

/// Removes what no case needs any more.
pub(super) fn remove() {
    FREE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Leaves nothing but programs.
fn wipe(bpffs: &Path) -> Result<()> {
    let pins = Pins::new(bpffs);
    // A daemon that never came to pin anything leaves nothing.
    if !pins.maps().exists() {
        return Ok(());
    }
    for link in names(&pins.links())? {
        std::fs::remove_file(pins.links().join(link)).context("remove a link")?;
    }
    for name in names(&pins.maps())? {
        ensure!(MAPS.contains(&name.as_str()), "map {name} is unknown here");
    }
    let mut maps = Maps::open(&pins)?;
    let contents = maps.contents()?;
    for (index, _) in (0..).zip(&contents.backends) {
        maps.backends.set(index, &Backend::zeroed())?;
    }
    for (id, _) in &contents.services {
        maps.service_counters.clear(*id)?;
    }
    for index in 0..maps.outcomes.size() {
        maps.outcomes.clear(index)?;
    }
    clear(&mut maps.frontends)?;
    clear(&mut maps.services)?;
    clear(&mut maps.addresses)?;
    clear(&mut maps.flows)?;
    for slot in 0..maps.pod_flows.size() {
        maps.pod_flows.set(slot, &0)?;
    }
    clear(&mut maps.affinity)?;
    clear(&mut maps.fragments)?;
    clear(&mut maps.sockets)?;
    clear(&mut maps.datagrams)?;
    clear(&mut Table::<u64, SocketClient>::open(&pins, "CLIENTS")?)?;
    clear(&mut Table::<u64, PodFlags>::open(&pins, "PODS")?)?;
    let ranges: Vec<_> = maps.source_ranges.keys().collect::<Result<_, _>>()?;
    for (length, data) in ranges {
        maps.source_ranges.remove(length, &data)?;
    }
    let _n_writes = maps.set_networks(&Default::default())?;
    let _n_writes = maps.set_devices(&Default::default())?;
    let _is_changed = maps.set_settings(&Settings::zeroed())?;
    Ok(())
}

fn clear<K: Pod, V: Pod>(map: &mut Table<K, V>) -> Result<()> {
    let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        let _was_there = map.remove(&key)?;
    }
    ensure!(map.keys().next().is_none(), "a map does not get empty");
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    let name = |entry: io::Result<std::fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}
