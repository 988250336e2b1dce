//! Larger maps in the place of smaller ones, entries included.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Pod;
use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, PodFlags, ServiceName,
    SocketClient, SocketRecord,
};

use super::pins::Pins;
use super::sizes::{Plan, Spec};
use super::{LoadError, io_error};
use crate::maps::{List, MapFailure, Table, Trie};

/// Copies once more what programs have written into the old map since.
type Again = Box<dyn FnMut() -> Result<u64, MapFailure> + Send>;

/// Maps that have been replaced by larger ones, while the programs of the old ones still run.
#[derive(Default)]
pub(super) struct Growth {
    again: Vec<(&'static str, Again)>,
}

impl Growth {
    /// Copies the entries of each map that is to grow into its larger one, which takes its pin.
    pub(super) fn begin(pins: &Pins, plans: &[(Spec, Plan)]) -> Result<Self, LoadError> {
        let mut growth = Self::default();
        for (spec, plan) in plans {
            if matches!(plan, Plan::Grow(_)) {
                growth.replace(pins, spec.name, plan.size())?;
            }
        }
        Ok(growth)
    }

    fn replace(&mut self, pins: &Pins, name: &'static str, size: u32) -> Result<(), LoadError> {
        tracing::info!("map {name}: growing to {size} entries");
        let mut copy = copier(pins, name)?;
        let n_entries = copy()?;
        tracing::info!("map {name}: grown, {n_entries} entries carried over");
        let (new, old) = (pins.grown_map(name), pins.map(name));
        std::fs::rename(&new, &old).map_err(io_error("rename", &new))?;
        self.again.push((name, copy));
        Ok(())
    }

    /// Carries over what has been added since; to be called when no program uses the old maps.
    pub(super) fn finish(self) -> Result<(), MapFailure> {
        for (name, mut copy) in self.again {
            let n_entries = copy()?;
            tracing::debug!("map {name}: {n_entries} late entries carried over");
        }
        Ok(())
    }
}

/// What carries the entries of the map `name` over, as often as it is called.
fn copier(pins: &Pins, name: &'static str) -> Result<Again, MapFailure> {
    match name {
        "FRONTENDS" => table::<FrontendKey, Frontend>(pins, name),
        "ADDRESSES" => table::<Addr, AddressFlags>(pins, name),
        "SOURCE_RANGES" => trie::<[u32; 5], u32>(pins, name),
        "NETWORKS" => trie::<[u32; 4], NetworkFlags>(pins, name),
        "DEVICES" => table::<u32, Device>(pins, name),
        "CLIENTS" => table::<u64, SocketClient>(pins, name),
        "PODS" => table::<u64, PodFlags>(pins, name),
        "SERVICES" => table::<u32, ServiceName>(pins, name),
        "FLOWS" => table::<FlowKey, Flow>(pins, name),
        "AFFINITY" => table::<AffinityKey, Affinity>(pins, name),
        "FRAGMENTS" => table::<FragmentKey, FragmentPorts>(pins, name),
        "SOCKETS" => sockets(pins, name),
        "DATAGRAMS" => table::<DatagramKey, SocketRecord>(pins, name),
        "BACKENDS" => list::<Backend>(pins, name),
        "SLOTS" => list::<u32>(pins, name),
        // Counters start anew.
        _ => Ok(Box::new(|| Ok(0))),
    }
}

fn table<K, V>(pins: &Pins, name: &'static str) -> Result<Again, MapFailure>
where
    K: Pod + Send,
    V: Pod + Send,
{
    let old: Table<K, V> = Table::open(pins, name)?;
    let mut new: Table<K, V> = Table::open_at(&pins.grown_map(name), name)?;
    Ok(Box::new(move || {
        let mut n_new = 0;
        for entry in old.entries() {
            let (key, value) = entry?;
            n_new += u64::from(new.insert_if_absent(&key, &value)?);
        }
        Ok(n_new)
    }))
}

/// Nothing but the end of its socket removes a record, and until the programs are replaced that
/// removes it from the old map only: the second time those go, too.
fn sockets(pins: &Pins, name: &'static str) -> Result<Again, MapFailure> {
    let old: Table<u64, SocketRecord> = Table::open(pins, name)?;
    let mut new: Table<u64, SocketRecord> = Table::open_at(&pins.grown_map(name), name)?;
    let mut copied = BTreeSet::new();
    Ok(Box::new(move || {
        let held: BTreeMap<_, _> = old.entries().collect::<Result<_, _>>()?;
        for cookie in &copied {
            if !held.contains_key(cookie) {
                let _was_there = new.remove(cookie)?;
            }
        }
        let mut n_new = 0;
        for (cookie, record) in held {
            if copied.insert(cookie) {
                n_new += u64::from(new.insert_if_absent(&cookie, &record)?);
            }
        }
        Ok(n_new)
    }))
}

/// Only the daemon writes tries, so the second time there is nothing to do.
fn trie<K, V>(pins: &Pins, name: &'static str) -> Result<Again, MapFailure>
where
    K: Pod + Send,
    V: Pod + Send,
{
    let old: Trie<K, V> = Trie::open(pins, name)?;
    let mut new: Trie<K, V> = Trie::open_at(&pins.grown_map(name), name)?;
    let mut is_done = false;
    Ok(Box::new(move || {
        if std::mem::replace(&mut is_done, true) {
            return Ok(0);
        }
        let mut n_entries = 0;
        for entry in old.entries() {
            let (length, key, value) = entry?;
            new.insert(length, &key, &value)?;
            n_entries += 1;
        }
        Ok(n_entries)
    }))
}

/// Only the daemon writes lists, so the second time there is nothing to do.
fn list<V: Pod + Send>(pins: &Pins, name: &'static str) -> Result<Again, MapFailure> {
    let old: List<V> = List::open(pins, name)?;
    let mut new: List<V> = List::open_at(&pins.grown_map(name), name)?;
    let mut is_done = false;
    Ok(Box::new(move || {
        if std::mem::replace(&mut is_done, true) {
            return Ok(0);
        }
        let mut n_used = 0;
        for index in 0..old.size() {
            let value = old.get(index)?;
            // The new one begins with zeroes.
            if bytemuck::bytes_of(&value).iter().any(|byte| *byte != 0) {
                new.set(index, &value)?;
                n_used += 1;
            }
        }
        Ok(n_used)
    }))
}
