//! New maps in the place of old ones, entries included, without a packet noticing.
//!
//! Maps are replaced when they grow, or when a newer layout has other entries. The programs that
//! use the old ones cannot use the new ones, so for a moment both are at work: the new programs
//! are attached behind the old ones and see what those leave alone. Then
//!
//! 1. the old programs are told to hand back what is new ([`HANDED_BACK`](proxy_common::abi::SettingsFlags::HANDED_BACK)), so that
//!    every new flow is opened by a new program, in a new map;
//! 2. all entries are copied, of which there are no more from now on;
//! 3. the old programs go. Every packet of an old flow finds its record in the new map;
//! 4. what the old programs noted of these flows until then is taken over.
//!
//! What is left to do can be told from the pins alone: an old map is pinned until all of this is
//! done. So a start that is killed anywhere is finished by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use bytemuck::Pod;
use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FlowState, FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, PodFlags,
    ServiceName, Settings, SocketClient, SocketRecord,
};
use proxy_common::datapath::conntrack::is_over;

use super::attach::AttachError;
use super::migrate::{self, Origin};
use super::pins::Pins;
use super::sizes::{MAPS, Plan, Spec};
use super::{LoadError, map_info, pin_map, remove_file};
use crate::conntrack_gc::now;
use crate::hand_back::tell;
use crate::maps::{List, MapFailure, Table, Trie, wait_for_programs};

/// The map by which programs are told to hand back: old and new ones each need their own.
pub(super) const SETTINGS: &str = "SETTINGS";

/// Copies what is missing in the new map, or further along in the old one; says how much that was.
pub(super) type Copier = Box<dyn FnMut() -> Result<u64, MapFailure> + Send>;

/// How programs are told to hand back, by their map `SETTINGS`.
pub(super) type HandBack = fn(&Path) -> Result<(), MapFailure>;

/// Maps whose successors are in force, while the programs that use them still run.
#[derive(Default)]
pub(super) struct Handover {
    copiers: Vec<(&'static str, Copier)>,
    settings: Vec<(PathBuf, HandBack)>,
    outgrown: Vec<PathBuf>,
}

/// Puts the larger maps that were made in the place of those that are to grow.
pub(super) fn replace_grown(pins: &Pins, plans: &[(Spec, Plan)]) -> Result<(), LoadError> {
    for (spec, plan) in plans {
        if let Plan::Grow(size) = plan {
            tracing::info!("map {}: growing to {size} entries", spec.name);
            let (new, pin) = (pins.grown_map(spec.name), pins.map(spec.name));
            pin_map(spec.name, &pin, &pins.outgrown_map(spec.name))?;
            migrate::step("outgrown");
            std::fs::rename(&new, &pin).map_err(super::io_error("rename", &new))?;
            migrate::step("grown");
        }
    }
    Ok(())
}

impl Handover {
    /// Whether there is nothing to hand over.
    pub(super) fn is_empty(&self) -> bool {
        self.copiers.is_empty()
    }

    /// Finds out which old maps there still are, and copies their entries.
    pub(super) fn begin(pins: &Pins, origin: Option<&Origin>) -> Result<Self, LoadError> {
        let mut handover = Self::default();
        for spec in MAPS {
            if let Some(outgrown) = outgrown(pins, spec.name)? {
                handover.add(
                    spec.name,
                    copier(spec.name, &outgrown, &pins.map(spec.name))?,
                );
                if spec.name == SETTINGS {
                    handover.settings.push((outgrown.clone(), hand_back));
                }
                handover.outgrown.push(outgrown);
            }
        }
        if let Some(origin) = origin {
            for (name, copier) in origin.copiers(pins)? {
                handover.add(name, copier);
            }
            handover.settings.extend(origin.settings()?);
        }
        for (name, copy) in &mut handover.copiers {
            let n_entries = copy()?;
            tracing::info!("map {name}: {n_entries} entries carried over");
            migrate::step("copied");
        }
        Ok(handover)
    }

    fn add(&mut self, name: &'static str, copier: Copier) {
        self.copiers.push((name, copier));
    }

    /// Lets the new programs, which `settle` does, take the place of the old ones.
    pub(super) async fn finish(
        mut self,
        settle: impl Future<Output = Result<(), AttachError>>,
    ) -> Result<(), LoadError> {
        for (settings, hand_back) in &self.settings {
            hand_back(settings)?;
            migrate::step("handed-back");
        }
        if !self.is_empty() {
            // Some may just be opening a flow.
            wait_for_programs();
            self.copy()?;
            migrate::step("copied-again");
        }
        settle.await?;
        migrate::step("settled");
        if !self.is_empty() {
            wait_for_programs();
            self.copy()?;
            migrate::step("copied-late");
        }
        for path in &self.outgrown {
            remove_file(path)?;
            migrate::step("forgotten");
        }
        Ok(())
    }

    fn copy(&mut self) -> Result<(), LoadError> {
        for (name, copy) in &mut self.copiers {
            let n_entries = copy()?;
            tracing::debug!("map {name}: {n_entries} late entries carried over");
        }
        Ok(())
    }
}

/// The pin of the map that has been outgrown by the map `name`, if there is one.
fn outgrown(pins: &Pins, name: &'static str) -> Result<Option<PathBuf>, LoadError> {
    let path = pins.outgrown_map(name);
    let id = |path: &Path| Ok::<_, LoadError>(map_info(name, path)?.map(|info: MapInfo| info.id()));
    let Some(old) = id(&path)? else {
        return Ok(None);
    };
    if id(&pins.map(name))? == Some(old) {
        // Killed before the larger one took its place.
        remove_file(&path)?;
        return Ok(None);
    }
    Ok(Some(path))
}

/// Tells the programs that use this map `SETTINGS` to open no flow any more.
pub(super) fn hand_back(settings: &Path) -> Result<(), MapFailure> {
    tell(&mut List::open_at(settings, SETTINGS)?)
}

/// What carries the entries of the map `name` over to one of the same shape.
pub(super) fn copier(name: &'static str, old: &Path, new: &Path) -> Result<Copier, MapFailure> {
    match name {
        "FRONTENDS" => table::<FrontendKey, Frontend, _>(name, old, new, same, Rules::KEEP),
        "ADDRESSES" => table::<Addr, AddressFlags, _>(name, old, new, same, Rules::KEEP),
        "SOURCE_RANGES" => trie::<[u32; 5], u32>(name, old, new),
        "NETWORKS" => trie::<[u32; 4], NetworkFlags>(name, old, new),
        "DEVICES" => table::<u32, Device, _>(name, old, new, same, Rules::KEEP),
        "CLIENTS" => table::<u64, SocketClient, _>(name, old, new, same, Rules::KEEP),
        "PODS" => table::<u64, PodFlags, _>(name, old, new, same, Rules::KEEP),
        "SERVICES" => table::<u32, ServiceName, _>(name, old, new, same, Rules::KEEP),
        "FLOWS" => table::<FlowKey, Flow, _>(name, old, new, same, FLOWS),
        "AFFINITY" => table::<AffinityKey, Affinity, _>(name, old, new, same, Rules::KEEP),
        "FRAGMENTS" => table::<FragmentKey, FragmentPorts, _>(name, old, new, same, Rules::KEEP),
        "SOCKETS" => sockets(name, old, new),
        "DATAGRAMS" => table::<DatagramKey, SocketRecord, _>(name, old, new, same, Rules::KEEP),
        "BACKENDS" => list::<Backend, _>(name, old, new, same),
        "SLOTS" => list::<u32, _>(name, old, new, same),
        SETTINGS => list::<Settings, _>(name, old, new, same),
        // Counters start anew.
        _ => Ok(Box::new(|| Ok(0))),
    }
}

const fn same<V>(value: V) -> V {
    value
}

/// What is carried over of a hash map.
pub(super) struct Rules<V> {
    /// Whether a value is wanted that the new map does not have.
    is_wanted: fn(&V) -> bool,
    /// What is to become of the new map's value, if anything, given the old map's and it.
    merge: fn(&V, &V) -> Option<V>,
}

impl<V> Rules<V> {
    /// All is wanted, but what the new map has stays.
    pub(super) const KEEP: Self = Self {
        is_wanted: |_| true,
        merge: |_, _| None,
    };
}

/// Those for flows.
pub(super) const FLOWS: Rules<Flow> = Rules {
    is_wanted,
    merge: further,
};

/// For how long a flow that is over may get a last packet: nanoseconds.
const LAST_PACKETS: u64 = 1_000_000_000;

/// One that is over needs no record, which might be in the way of another's by now.
fn is_wanted(flow: &Flow) -> bool {
    let is_over = FlowState::from_number(flow.state).is_none_or(is_over);
    !is_over || flow.last_seen.saturating_add(LAST_PACKETS) > now()
}

/// A flow record as it is to be, if not as in the new map: the later conversation counts, and of
/// one conversation what has come further, since a record was copied before the old programs saw
/// its last packets.
fn further(old: &Flow, new: &Flow) -> Option<Flow> {
    if old.created < new.created {
        return None;
    }
    let merged = if old.created > new.created {
        *old
    } else {
        Flow {
            // Numbers of states follow the course of a conversation.
            state: old.state.max(new.state),
            last_seen: old.last_seen.max(new.last_seen),
            ..*new
        }
    };
    (merged != *new).then_some(merged)
}

/// Carries a hash map over, each value as `convert` makes it, by these rules.
pub(super) fn table<K, New, Old>(
    name: &'static str,
    old: &Path,
    new: &Path,
    convert: fn(Old) -> New,
    rules: Rules<New>,
) -> Result<Copier, MapFailure>
where
    K: Pod + Send,
    Old: Pod + Send,
    New: Pod + Send,
{
    let old: Table<K, Old> = Table::open_at(old, name)?;
    let mut new: Table<K, New> = Table::open_at(new, name)?;
    Ok(Box::new(move || {
        let mut n_new = 0;
        for entry in old.entries() {
            let (key, value) = entry?;
            let value = convert(value);
            if let Some(held) = new.get(&key)? {
                if let Some(merged) = (rules.merge)(&value, &held) {
                    new.insert(&key, &merged)?;
                    n_new += 1;
                }
            } else if (rules.is_wanted)(&value) {
                n_new += u64::from(new.insert_if_absent(&key, &value)?);
            }
        }
        Ok(n_new)
    }))
}

/// Nothing but the end of its socket removes a record, and until the programs are replaced that
/// removes it from the old map only: the second time those go, too.
fn sockets(name: &'static str, old: &Path, new: &Path) -> Result<Copier, MapFailure> {
    let old: Table<u64, SocketRecord> = Table::open_at(old, name)?;
    let mut new: Table<u64, SocketRecord> = Table::open_at(new, name)?;
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
fn trie<K, V>(name: &'static str, old: &Path, new: &Path) -> Result<Copier, MapFailure>
where
    K: Pod + Send,
    V: Pod + Send,
{
    let old: Trie<K, V> = Trie::open_at(old, name)?;
    let mut new: Trie<K, V> = Trie::open_at(new, name)?;
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

/// Only the daemon writes lists, so the second time there is nothing to do. What stands in the new
/// one already was written by a daemon that was killed later than this.
pub(super) fn list<New, Old>(
    name: &'static str,
    old: &Path,
    new: &Path,
    convert: fn(Old) -> New,
) -> Result<Copier, MapFailure>
where
    Old: Pod + Send,
    New: Pod + Send,
{
    let old: List<Old> = List::open_at(old, name)?;
    let mut new: List<New> = List::open_at(new, name)?;
    let mut is_done = false;
    Ok(Box::new(move || {
        if std::mem::replace(&mut is_done, true) {
            return Ok(0);
        }
        let mut n_used = 0;
        for index in 0..old.size() {
            let value = old.get(index)?;
            if !is_zero(&value) && is_zero(&new.get(index)?) {
                new.set(index, &convert(value))?;
                n_used += 1;
            }
        }
        Ok(n_used)
    }))
}

fn is_zero<V: Pod>(value: &V) -> bool {
    bytemuck::bytes_of(value).iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn flow(created: u64, state: FlowState, last_seen: u64) -> Flow {
        Flow {
            created,
            state: state as u8,
            last_seen,
            ..Flow::zeroed()
        }
    }

    #[test]
    fn of_two_records_of_a_flow_the_one_that_has_come_further_counts() {
        let (sent, open) = (FlowState::TcpSynSent, FlowState::TcpEstablished);
        let copied = flow(5, sent, 5);
        assert_eq!(further(&copied, &copied), None);
        let later = flow(5, open, 9);
        assert_eq!(further(&later, &copied), Some(later));
        // The new program has seen the end of it.
        let closed = flow(5, FlowState::TcpTimeWait, 8);
        let merged = flow(5, FlowState::TcpTimeWait, 9);
        assert_eq!(further(&later, &closed), Some(merged));
        assert_eq!(further(&copied, &closed), None);
    }

    #[test]
    fn a_flow_that_is_over_is_left_behind() {
        assert!(is_wanted(&flow(1, FlowState::TcpEstablished, 1)));
        assert!(is_wanted(&flow(1, FlowState::TcpTimeWait, now())));
        let long_ago = now().saturating_sub(2 * LAST_PACKETS);
        assert!(!is_wanted(&flow(1, FlowState::TcpTimeWait, long_ago)));
    }

    #[test]
    fn of_two_flows_with_one_key_the_later_counts() {
        let (old, new) = (
            flow(5, FlowState::TcpClose, 6),
            flow(7, FlowState::TcpSynSent, 7),
        );
        assert_eq!(further(&old, &new), None);
        assert_eq!(further(&new, &old), Some(new));
    }

    #[test]
    fn every_map_that_can_grow_has_its_copier() {
        // Of counters nothing is carried over, which does not open any map.
        let nowhere = Path::new("/nowhere");
        for spec in MAPS.iter().filter(|spec| spec.option.is_some()) {
            let is_counter = spec.name == "SERVICE_COUNTERS";
            let copier = copier(spec.name, nowhere, nowhere);
            assert_eq!(copier.is_ok(), is_counter, "{}", spec.name);
        }
    }
}
