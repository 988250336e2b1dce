//! The kinds of maps, typed, with failures that name the map.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::sys::SyscallError;
use bytemuck::Pod;

use super::batch;
use crate::loader::pins::Pins;
use crate::loader::sizes;

/// Plain data as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `aya::Pod` asks for types that may be copied to and from the kernel byte by byte. That
// is what `bytemuck::Pod` promises of `T` (any bits valid, no padding), and `Raw` is transparent.
unsafe impl<T: Pod> aya::Pod for Raw<T> {}

/// Insert only if the key is new (`BPF_NOEXIST`).
const NO_EXIST: u64 = 1;

/// An operation on a map that failed.
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(map, operation, source))]
pub struct MapFailure {
    /// The map.
    pub map: &'static str,
    /// What was tried.
    pub operation: &'static str,
    /// Why.
    pub source: MapError,
}

impl MapFailure {
    /// Whether the map has no room for another entry, or the kernel no memory for it.
    pub fn is_for_want_of_room(&self) -> bool {
        is_full(&self.source) || errno(&self.source) == Some(libc::ENOMEM)
    }
}

/// What failed; of a full map what to raise.
fn describe(map: &str, operation: &str, source: &MapError) -> String {
    if is_full(source) {
        let raise = sizes::setting(map).map(|setting| format!(": raise {setting}"));
        format!("map {map} is full{}", raise.unwrap_or_default())
    } else {
        format!("map {map}: {operation} failed")
    }
}

/// Hash maps and tries say so with different numbers.
fn is_full(error: &MapError) -> bool {
    matches!(errno(error), Some(libc::E2BIG | libc::ENOSPC))
}

fn errno(error: &MapError) -> Option<i32> {
    if let MapError::SyscallError(error) = error {
        error.io_error.raw_os_error()
    } else {
        None
    }
}

/// What has become of a map that was to hold certain entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held<K> {
    /// Entries that had to be written or removed.
    pub n_writes: usize,
    /// For these there is no room.
    pub left_out: Vec<K>,
}

/// A hash map, plain or LRU.
pub struct Table<K, V> {
    name: &'static str,
    size: u32,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// The pinned map `name`.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFailure> {
        Self::open_at(&pins.map(name), name)
    }

    /// The map that is pinned at `path`, called `name` in messages.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open_at(path: &Path, name: &'static str) -> Result<Self, MapFailure> {
        let (map, size) = open(path, name)?;
        let map = HashMap::try_from(map).map_err(failed(name, "open"))?;
        Ok(Self { name, size, map })
    }

    /// How many entries it may hold.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// If the kernel refuses the look-up.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapFailure> {
        match self.map.get(&Raw(*key), 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(failed(self.name, "look-up")(source)),
        }
    }

    /// Makes `value` the value of `key`.
    ///
    /// # Errors
    /// If the kernel refuses, for instance because the map is full.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), MapFailure> {
        self.map
            .insert(Raw(*key), Raw(*value), 0)
            .map_err(failed(self.name, "update"))
    }

    /// Makes `value` the value of `key` if it has none; says whether it did.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than the key's presence.
    pub fn insert_if_absent(&mut self, key: &K, value: &V) -> Result<bool, MapFailure> {
        match self.map.insert(Raw(*key), Raw(*value), NO_EXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(source) => Err(failed(self.name, "update")(source)),
        }
    }

    /// Removes `key`; says whether it was there.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than the key's absence.
    pub fn remove(&mut self, key: &K) -> Result<bool, MapFailure> {
        match self.map.remove(&Raw(*key)) {
            Ok(()) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(source) => Err(failed(self.name, "removal")(source)),
        }
    }

    /// Makes `wanted` the contents, but for keys that `stay` though nobody wants them. What is gone
    /// goes first, since that may make room, then what is there is brought up to date; of the new
    /// ones the first have what room there is.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than want of room; what is written stays.
    pub fn hold(
        &mut self,
        wanted: &BTreeMap<K, V>,
        stay: impl Fn(&K) -> bool,
    ) -> Result<Held<K>, MapFailure>
    where
        K: Ord,
        V: PartialEq,
    {
        let held: BTreeMap<K, V> = self.entries().collect::<Result<_, _>>()?;
        let mut n_writes = 0;
        for key in held.keys() {
            if !wanted.contains_key(key) && !stay(key) {
                let _was_there = self.remove(key)?;
                n_writes += 1;
            }
        }
        let is_there = |(key, _): &(&K, &V)| held.contains_key(*key);
        let (old, new): (Vec<_>, Vec<_>) = wanted.iter().partition(is_there);
        for (key, value) in old {
            if held.get(key) != Some(value) {
                self.insert(key, value)?;
                n_writes += 1;
            }
        }
        let mut left_out = Vec::new();
        for (key, value) in new {
            match self.insert(key, value) {
                Ok(()) => n_writes += 1,
                Err(failure) if failure.is_for_want_of_room() => left_out.push(*key),
                Err(failure) => return Err(failure),
            }
        }
        Ok(Held { n_writes, left_out })
    }

    /// The keys, in no order. Keys that come and go meanwhile may be missed or seen twice: the
    /// kernel starts over when the key it stands at is removed, so this ends after as many keys
    /// as the map may hold.
    pub fn keys(&self) -> impl Iterator<Item = Result<K, MapFailure>> {
        let keys = self.map.keys().take(self.size as usize);
        keys.map(|key| key.map(|Raw(key)| key).map_err(failed(self.name, "walk")))
    }

    /// The entries, with the same reservation as [`Self::keys`].
    pub fn entries(&self) -> impl Iterator<Item = Result<(K, V), MapFailure>> {
        let entries = self.map.iter().take(self.size as usize);
        entries.map(|entry| {
            entry
                .map(|(Raw(key), Raw(value))| (key, value))
                .map_err(failed(self.name, "walk"))
        })
    }
}

/// A longest-prefix trie.
pub struct Trie<K: Pod, V: Pod> {
    name: &'static str,
    size: u32,
    map: LpmTrie<MapData, Raw<K>, Raw<V>>,
}

impl<K: Pod, V: Pod> Trie<K, V> {
    /// The pinned map `name`.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFailure> {
        Self::open_at(&pins.map(name), name)
    }

    /// The map that is pinned at `path`, called `name` in messages.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open_at(path: &Path, name: &'static str) -> Result<Self, MapFailure> {
        let (map, size) = open(path, name)?;
        let map = LpmTrie::try_from(map).map_err(failed(name, "open"))?;
        Ok(Self { name, size, map })
    }

    /// How many entries it may hold.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Makes `value` the value of this prefix.
    ///
    /// # Errors
    /// If the kernel refuses, for instance because the map is full.
    pub fn insert(&mut self, length: u32, key: &K, value: &V) -> Result<(), MapFailure> {
        self.map
            .insert(&Key::new(length, Raw(*key)), Raw(*value), 0)
            .map_err(failed(self.name, "update"))
    }

    /// Removes this prefix; says nothing if it is not there.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than the prefix's absence.
    pub fn remove(&mut self, length: u32, key: &K) -> Result<(), MapFailure> {
        match self.map.remove(&Key::new(length, Raw(*key))) {
            Ok(()) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(source) => Err(failed(self.name, "removal")(source)),
        }
    }

    /// The prefixes: their length and all their bits.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn keys(&self) -> impl Iterator<Item = Result<(u32, K), MapFailure>> {
        self.map.keys().map(|key| {
            let key = key.map_err(failed(self.name, "walk"))?;
            let Raw(data) = key.data();
            Ok((key.prefix_len(), data))
        })
    }

    /// The prefixes with their values.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn entries(&self) -> impl Iterator<Item = Result<(u32, K, V), MapFailure>> {
        self.map.iter().map(|entry| {
            let (key, Raw(value)) = entry.map_err(failed(self.name, "walk"))?;
            let Raw(data) = key.data();
            Ok((key.prefix_len(), data, value))
        })
    }
}

/// An array.
pub struct List<V: Pod> {
    name: &'static str,
    map: Array<MapData, Raw<V>>,
    /// The same map: aya keeps its own to itself.
    fd: OwnedFd,
}

impl<V: Pod> List<V> {
    /// The pinned map `name`.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFailure> {
        Self::open_at(&pins.map(name), name)
    }

    /// The map that is pinned at `path`, called `name` in messages.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open_at(path: &Path, name: &'static str) -> Result<Self, MapFailure> {
        let data = MapData::from_pin(path).map_err(failed(name, "open"))?;
        let fd = data.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| failed(name, "open")(error.into()))?;
        let map = Map::from_map_data(data).map_err(failed(name, "open"))?;
        Ok(Self {
            name,
            map: Array::try_from(map).map_err(failed(name, "open"))?,
            fd,
        })
    }

    /// How many entries it has.
    pub fn size(&self) -> u32 {
        self.map.len()
    }

    /// The entry at `index`.
    ///
    /// # Errors
    /// If there is no such entry.
    pub fn get(&self, index: u32) -> Result<V, MapFailure> {
        self.map
            .get(&index, 0)
            .map(|Raw(value)| value)
            .map_err(failed(self.name, "look-up"))
    }

    /// Sets the entry at `index`.
    ///
    /// # Errors
    /// If there is no such entry.
    pub fn set(&mut self, index: u32, value: &V) -> Result<(), MapFailure> {
        self.map
            .set(index, Raw(*value), 0)
            .map_err(failed(self.name, "update"))
    }

    /// Sets the entries from `first` on, by one call of the kernel.
    ///
    /// # Errors
    /// If one of them does not exist; others may be set then.
    pub fn set_all(&mut self, first: u32, values: &[V]) -> Result<(), MapFailure> {
        batch::set(self.fd.as_fd(), first, values).map_err(|io_error| {
            let call = "bpf_map_update_batch";
            failed(self.name, "update")(SyscallError { call, io_error }.into())
        })
    }
}

/// An array with a value for each CPU.
pub struct PerCpu<V: Pod> {
    name: &'static str,
    map: PerCpuArray<MapData, Raw<V>>,
}

impl<V: Pod> PerCpu<V> {
    /// The pinned map `name`.
    ///
    /// # Errors
    /// If it is not there or of another shape.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, MapFailure> {
        let (map, _) = open(&pins.map(name), name)?;
        Ok(Self {
            name,
            map: PerCpuArray::try_from(map).map_err(failed(name, "open"))?,
        })
    }

    /// How many entries it has.
    pub fn size(&self) -> u32 {
        self.map.len()
    }

    /// The entry at `index`, for each CPU.
    ///
    /// # Errors
    /// If there is no such entry.
    pub fn get(&self, index: u32) -> Result<Vec<V>, MapFailure> {
        let values = self
            .map
            .get(&index, 0)
            .map_err(failed(self.name, "look-up"))?;
        Ok(values.iter().map(|Raw(value)| *value).collect())
    }

    /// Sets the entry at `index` to zero on all CPUs.
    ///
    /// # Errors
    /// If there is no such entry.
    pub fn clear(&mut self, index: u32) -> Result<(), MapFailure> {
        let n_cpus = self.get(index)?.len();
        let zeroes = PerCpuValues::try_from(vec![Raw(V::zeroed()); n_cpus])
            .map_err(|error| failed(self.name, "update")(error.into()))?;
        self.map
            .set(index, zeroes, 0)
            .map_err(failed(self.name, "update"))
    }
}

fn open(path: &Path, name: &'static str) -> Result<(Map, u32), MapFailure> {
    let data = MapData::from_pin(path).map_err(failed(name, "open"))?;
    let size = data.info().map_err(failed(name, "open"))?.max_entries();
    Ok((
        Map::from_map_data(data).map_err(failed(name, "open"))?,
        size,
    ))
}

fn is_not_found(error: &MapError) -> bool {
    if let MapError::SyscallError(error) = error {
        return error.io_error.kind() == std::io::ErrorKind::NotFound;
    }
    matches!(error, MapError::KeyNotFound)
}

fn failed(map: &'static str, operation: &'static str) -> impl Fn(MapError) -> MapFailure {
    move |source| MapFailure {
        map,
        operation,
        source,
    }
}
