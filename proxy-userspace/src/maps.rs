//! The pinned maps as user space sees them.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use bytemuck::{Pod, Zeroable as _};
use ipnet::IpNet;
use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, NetworkKey, ServiceCounters,
    ServiceName, Settings, SocketRecord, SourceRangeKey,
};

use crate::loader::pins::Pins;
use crate::sync::{Capacity, Contents, Target, Write, source_range, source_range_key};

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
#[error("map {map}: {operation} failed")]
pub struct MapFailure {
    /// The map.
    pub map: &'static str,
    /// What was tried.
    pub operation: &'static str,
    /// Why.
    pub source: MapError,
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
        let (map, _) = open(path, name)?;
        Ok(Self {
            name,
            map: Array::try_from(map).map_err(failed(name, "open"))?,
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

/// All maps.
pub struct Maps {
    /// What clients dial → where it leads.
    pub frontends: Table<FrontendKey, Frontend>,
    /// Positions → backend ids.
    pub slots: List<u32>,
    /// Addresses → what they are.
    pub addresses: Table<Addr, AddressFlags>,
    /// From where connections to guarded frontends are taken.
    pub source_ranges: Trie<[u32; 5], u32>,
    /// Networks → what they are.
    pub networks: Trie<[u32; 4], NetworkFlags>,
    /// Interface indices → what the datapath has to know of the devices.
    pub devices: Table<u32, Device>,
    /// Backend ids → endpoints.
    pub backends: List<Backend>,
    /// Service ids → names.
    pub services: Table<u32, ServiceName>,
    /// Service ids → counters.
    pub service_counters: PerCpu<ServiceCounters>,
    /// Flow records.
    pub flows: Table<FlowKey, Flow>,
    /// Session affinity.
    pub affinity: Table<AffinityKey, Affinity>,
    /// Ports of fragmented datagrams.
    pub fragments: Table<FragmentKey, FragmentPorts>,
    /// Cookies of connected sockets → what they talk to instead.
    pub sockets: Table<u64, SocketRecord>,
    /// Correspondents of unconnected UDP sockets → the same.
    pub datagrams: Table<DatagramKey, SocketRecord>,
    /// The one entry of settings.
    pub settings: List<Settings>,
    /// Verdicts → packets.
    pub outcomes: PerCpu<u64>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// If one is not there or of another shape.
    pub fn open(pins: &Pins) -> Result<Self, MapFailure> {
        Ok(Self {
            frontends: Table::open(pins, "FRONTENDS")?,
            slots: List::open(pins, "SLOTS")?,
            addresses: Table::open(pins, "ADDRESSES")?,
            source_ranges: Trie::open(pins, "SOURCE_RANGES")?,
            networks: Trie::open(pins, "NETWORKS")?,
            devices: Table::open(pins, "DEVICES")?,
            backends: List::open(pins, "BACKENDS")?,
            services: Table::open(pins, "SERVICES")?,
            service_counters: PerCpu::open(pins, "SERVICE_COUNTERS")?,
            flows: Table::open(pins, "FLOWS")?,
            affinity: Table::open(pins, "AFFINITY")?,
            fragments: Table::open(pins, "FRAGMENTS")?,
            sockets: Table::open(pins, "SOCKETS")?,
            datagrams: Table::open(pins, "DATAGRAMS")?,
            settings: List::open(pins, "SETTINGS")?,
            outcomes: PerCpu::open(pins, "OUTCOMES")?,
        })
    }

    /// Packets and flows of a service port, all CPUs together.
    ///
    /// # Errors
    /// If there is no such service id.
    pub fn counters(&self, service: u32) -> Result<ServiceCounters, MapFailure> {
        let mut sum = ServiceCounters::default();
        for counters in self.service_counters.get(service)? {
            sum += counters;
        }
        Ok(sum)
    }

    /// Makes `settings` the datapath's; says whether they were others before.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<bool, MapFailure> {
        if self.settings.get(0)? == *settings {
            return Ok(false);
        }
        self.settings.set(0, settings).map(|()| true)
    }

    /// Makes `wanted` the contents of `NETWORKS`; says how many entries had to be written.
    ///
    /// A network that was there and is wanted is never missing meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses; what is written stays.
    pub fn set_networks(
        &mut self,
        wanted: &BTreeMap<NetworkKey, NetworkFlags>,
    ) -> Result<usize, MapFailure> {
        let held: BTreeMap<_, _> = self.held_networks()?;
        let mut n_writes = 0;
        for (key, flags) in wanted
            .iter()
            .filter(|(key, flags)| held.get(key) != Some(flags))
        {
            self.networks
                .insert(key.prefix_len, &key.addr.words(), flags)?;
            n_writes += 1;
        }
        for key in held.keys().filter(|key| !wanted.contains_key(key)) {
            self.networks.remove(key.prefix_len, &key.addr.words())?;
            n_writes += 1;
        }
        Ok(n_writes)
    }

    fn held_networks(&self) -> Result<BTreeMap<NetworkKey, NetworkFlags>, MapFailure> {
        let network = |entry: Result<(u32, [u32; 4], NetworkFlags), MapFailure>| {
            let (prefix_len, words, flags) = entry?;
            let addr = Addr::from_words(words);
            Ok((NetworkKey { prefix_len, addr }, flags))
        };
        self.networks.entries().map(network).collect()
    }

    /// Makes `wanted` the contents of `DEVICES`; says how many entries had to be written.
    ///
    /// # Errors
    /// If the kernel refuses, for instance because there are too many; what is written stays.
    pub fn set_devices(&mut self, wanted: &BTreeMap<u32, Device>) -> Result<usize, MapFailure> {
        let held: BTreeMap<_, _> = self.devices.entries().collect::<Result<_, _>>()?;
        let mut n_writes = 0;
        // First those that are gone: they may make room.
        for index in held.keys().filter(|index| !wanted.contains_key(index)) {
            let _was_there = self.devices.remove(index)?;
            n_writes += 1;
        }
        for (index, device) in wanted
            .iter()
            .filter(|(index, device)| held.get(index) != Some(device))
        {
            self.devices.insert(index, device)?;
            n_writes += 1;
        }
        Ok(n_writes)
    }
}

/// Waits until no program runs any more that began before the call.
///
/// Programs at TC run inside an RCU read-side section, and this `membarrier` waits for one RCU
/// grace period. Kernels with `nohz_full` CPUs refuse it; there a pause has to do, three orders
/// of magnitude longer than any program runs.
pub fn wait_for_programs() {
    use rustix::thread::{MembarrierCommand, membarrier};
    if membarrier(MembarrierCommand::Global).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

impl Maps {
    /// Everything that describes Services, for the sync to go on from.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn contents(&self) -> Result<Contents, MapFailure> {
        let frontends: Vec<_> = self.frontends.entries().collect::<Result<_, _>>()?;
        let end = |frontend: &Frontend| {
            let n_slots = frontend
                .n_local
                .max(frontend.cluster_offset + frontend.n_cluster);
            frontend.first_slot.saturating_add(n_slots)
        };
        let n_slots = frontends
            .iter()
            .map(|(_, frontend)| end(frontend))
            .max()
            .unwrap_or(0);
        let n_slots = n_slots.min(self.slots.size());
        Ok(Contents {
            services: self.services.entries().collect::<Result<_, _>>()?,
            frontends,
            slots: (0..n_slots)
                .map(|index| self.slots.get(index))
                .collect::<Result<_, _>>()?,
            backends: self.used_backends()?,
            addresses: self.addresses.entries().collect::<Result<_, _>>()?,
            source_ranges: self.source_ranges()?,
        })
    }

    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, MapFailure> {
        let mut ranges = Vec::new();
        for entry in self.source_ranges.keys() {
            let (prefix_len, [service, words @ ..]) = entry?;
            let key = SourceRangeKey {
                prefix_len,
                service,
                addr: Addr::from_words(words),
            };
            ranges.extend(source_range(&key));
        }
        Ok(ranges)
    }

    /// The backends by id. Ids are given out from 0 up and every entry that was ever used has a
    /// generation, so a long run of untouched ones is the end.
    fn used_backends(&self) -> Result<Vec<Backend>, MapFailure> {
        const UNTOUCHED: usize = 1024;
        let mut backends: Vec<Backend> = Vec::new();
        let mut n_used = 0;
        for id in 0..self.backends.size() {
            let backend = self.backends.get(id)?;
            backends.push(backend);
            if backend != Backend::zeroed() {
                n_used = backends.len();
            } else if backends.len() > n_used + UNTOUCHED {
                break;
            }
        }
        backends.truncate(n_used);
        Ok(backends)
    }

    /// How much the maps that describe Services can hold.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.size(),
            slots: self.slots.size(),
            backends: self.backends.size(),
            services: self.services.size().min(self.service_counters.size()),
            addresses: self.addresses.size(),
            source_ranges: self.source_ranges.size(),
        }
    }
}

/// A key of `SOURCE_RANGES` in the two parts that aya asks for.
fn prefix(service: u32, net: IpNet) -> (u32, [u32; 5]) {
    let key = source_range_key(service, net);
    let [a, b, c, d] = key.addr.words();
    (key.prefix_len, [service, a, b, c, d])
}

impl Target for Maps {
    type Error = MapFailure;

    fn write(&mut self, write: &Write) -> Result<(), MapFailure> {
        match write {
            Write::Service { id, name } => {
                self.service_counters.clear(*id)?;
                self.services.insert(id, name)
            }
            Write::Backend { id, backend } => self.backends.set(*id, backend),
            Write::Slots { first, ids } => (*first..)
                .zip(ids)
                .try_for_each(|(index, id)| self.slots.set(index, id)),
            Write::Frontend { key, value } => self.frontends.insert(key, value),
            Write::RemoveFrontend { key } => self.frontends.remove(key).map(drop),
            Write::RemoveService { id } => self.services.remove(id).map(drop),
            Write::Address { addr, flags } => self.addresses.insert(addr, flags),
            Write::RemoveAddress { addr } => self.addresses.remove(addr).map(drop),
            Write::SourceRange { service, net } => {
                let (length, data) = prefix(*service, *net);
                self.source_ranges.insert(length, &data, &1)
            }
            Write::RemoveSourceRange { service, net } => {
                let (length, data) = prefix(*service, *net);
                self.source_ranges.remove(length, &data)
            }
        }
    }

    fn grace_period(&mut self) {
        wait_for_programs();
    }
}
