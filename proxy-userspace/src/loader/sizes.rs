//! The maps, their shapes and how many entries each may hold.

use aya::maps::MapType;
use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, NetworkKey, PodFlags,
    ServiceCounters, ServiceName, Settings, SocketClient, SocketRecord, SocketSettings,
    SourceRangeKey, limits,
};

use crate::setting::Setting;

/// What a map is made of; what a pinned one must agree with.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shape {
    /// Its kind.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
}

/// One of Beeline's maps.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spec {
    /// Its name in the object and among the pins.
    pub name: &'static str,
    /// What it is made of.
    pub shape: Shape,
    /// The option that sets its size; `None`: the size is given.
    pub option: Option<&'static str>,
    /// Entries that are there from the start, or that nobody counts: arrays.
    pub is_array: bool,
}

const fn hash<K, V>(name: &'static str, option: Option<&'static str>) -> Spec {
    spec::<K, V>(name, MapType::Hash, option)
}

const fn lru<K, V>(name: &'static str, option: &'static str) -> Spec {
    spec::<K, V>(name, MapType::LruHash, Some(option))
}

const fn trie<K, V>(name: &'static str, option: Option<&'static str>) -> Spec {
    spec::<K, V>(name, MapType::LpmTrie, option)
}

const fn array<V>(name: &'static str, option: Option<&'static str>) -> Spec {
    spec::<u32, V>(name, MapType::Array, option)
}

const fn per_cpu<V>(name: &'static str, option: Option<&'static str>) -> Spec {
    spec::<u32, V>(name, MapType::PerCpuArray, option)
}

const fn spec<K, V>(name: &'static str, map_type: MapType, option: Option<&'static str>) -> Spec {
    let is_array = matches!(map_type, MapType::Array | MapType::PerCpuArray);
    let shape = Shape {
        map_type,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
    };
    Spec {
        name,
        shape,
        option,
        is_array,
    }
}

/// All maps that are pinned, in the order in which `beeline status` shows them.
pub const MAPS: [Spec; 21] = [
    hash::<FrontendKey, Frontend>("FRONTENDS", Some("--max-frontends")),
    hash::<Addr, AddressFlags>("ADDRESSES", Some("--max-addresses")),
    trie::<SourceRangeKey, u32>("SOURCE_RANGES", Some("--max-source-ranges")),
    trie::<NetworkKey, NetworkFlags>("NETWORKS", Some("--max-networks")),
    hash::<u32, Device>("DEVICES", Some("--max-devices")),
    array::<u32>("SLOTS", Some("--max-slots")),
    array::<Backend>("BACKENDS", Some("--max-backends")),
    hash::<u32, ServiceName>("SERVICES", Some("--max-services")),
    per_cpu::<ServiceCounters>("SERVICE_COUNTERS", Some("--max-services")),
    lru::<FlowKey, Flow>("FLOWS", "--max-flows"),
    array::<u32>("POD_FLOWS", None),
    lru::<AffinityKey, Affinity>("AFFINITY", "--max-affinity"),
    lru::<FragmentKey, FragmentPorts>("FRAGMENTS", "--max-fragments"),
    hash::<u64, SocketRecord>("SOCKETS", Some("--max-sockets")),
    lru::<DatagramKey, SocketRecord>("DATAGRAMS", "--max-datagrams"),
    hash::<u64, SocketClient>("CLIENTS", Some("--max-clients")),
    hash::<u64, PodFlags>("PODS", Some("--max-pods")),
    array::<SocketSettings>("SOCKET_SETTINGS", None),
    array::<Settings>("SETTINGS", None),
    array::<u32>("CRC_SHIFTS", None),
    per_cpu::<u64>("OUTCOMES", None),
];

/// What sets the size of the map `name`; `None`: nothing does.
pub fn setting(name: &str) -> Option<Setting> {
    let spec = MAPS.iter().find(|spec| spec.name == name)?;
    spec.option.map(Setting)
}

/// Whether the map `name` forgets the least recently used for new ones.
pub fn is_lru(name: &str) -> bool {
    let spec = MAPS.iter().find(|spec| spec.name == name);
    spec.is_some_and(|spec| spec.shape.map_type == MapType::LruHash)
}

/// Sizes that were asked for; `None`: the default.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sizes {
    /// Entries of `FRONTENDS`.
    pub frontends: Option<u32>,
    /// Entries of `ADDRESSES`.
    pub addresses: Option<u32>,
    /// Entries of `SOURCE_RANGES`.
    pub source_ranges: Option<u32>,
    /// Entries of `NETWORKS`.
    pub networks: Option<u32>,
    /// Entries of `DEVICES`.
    pub devices: Option<u32>,
    /// Entries of `CLIENTS`.
    pub clients: Option<u32>,
    /// Entries of `PODS`.
    pub pods: Option<u32>,
    /// Entries of `SLOTS`.
    pub slots: Option<u32>,
    /// Entries of `BACKENDS`.
    pub backends: Option<u32>,
    /// Entries of `SERVICES` and `SERVICE_COUNTERS`.
    pub services: Option<u32>,
    /// Entries of `FLOWS`, two for each conversation.
    pub flows: Option<u32>,
    /// Entries of `AFFINITY`.
    pub affinity: Option<u32>,
    /// Entries of `FRAGMENTS`.
    pub fragments: Option<u32>,
    /// Entries of `SOCKETS`.
    pub sockets: Option<u32>,
    /// Entries of `DATAGRAMS`, two for each correspondence.
    pub datagrams: Option<u32>,
}

impl Sizes {
    /// The size that was asked for the map `name`.
    pub fn asked(&self, name: &str) -> Option<u32> {
        match name {
            "FRONTENDS" => self.frontends,
            "ADDRESSES" => self.addresses,
            "SOURCE_RANGES" => self.source_ranges,
            "NETWORKS" => self.networks,
            "DEVICES" => self.devices,
            "CLIENTS" => self.clients,
            "PODS" => self.pods,
            "SLOTS" => self.slots,
            "BACKENDS" => self.backends,
            "SERVICES" | "SERVICE_COUNTERS" => self.services,
            "FLOWS" => self.flows,
            "AFFINITY" => self.affinity,
            "FRAGMENTS" => self.fragments,
            "SOCKETS" => self.sockets,
            "DATAGRAMS" => self.datagrams,
            _ => None,
        }
    }
}

/// The size of the map `name` on a machine with `memory` bytes, if nothing else is asked for.
pub fn default_size(name: &str, memory: u64) -> u32 {
    match name {
        "FRONTENDS" => limits::FRONTENDS,
        "ADDRESSES" => limits::ADDRESSES,
        "SOURCE_RANGES" => limits::SOURCE_RANGES,
        "NETWORKS" => limits::NETWORKS,
        "DEVICES" => limits::DEVICES,
        "SLOTS" => limits::SLOTS,
        "BACKENDS" => limits::BACKENDS,
        "SERVICES" | "SERVICE_COUNTERS" => limits::SERVICES,
        "FLOWS" => flows_for(memory),
        "SOCKETS" => sockets_for(memory),
        "DATAGRAMS" => datagrams_for(memory),
        "CLIENTS" => limits::CLIENTS,
        "PODS" => limits::PODS,
        "AFFINITY" => limits::AFFINITY,
        "FRAGMENTS" => limits::FRAGMENTS,
        "POD_FLOWS" => limits::POD_FLOWS,
        "CRC_SHIFTS" => limits::CRC_SHIFTS,
        "OUTCOMES" => limits::OUTCOMES,
        _ => 1,
    }
}

/// A 400th of the memory, at 192 bytes a record.
fn flows_for(memory: u64) -> u32 {
    records(memory / 400 / 192).clamp(limits::FLOWS_MIN, limits::FLOWS * 4)
}

/// A 1000th of the memory, at 136 bytes a socket.
fn sockets_for(memory: u64) -> u32 {
    records(memory / 1000 / 136).clamp(limits::SOCKETS / 4, limits::SOCKETS * 4)
}

/// A 2000th of the memory, at 160 bytes a record.
fn datagrams_for(memory: u64) -> u32 {
    records(memory / 2000 / 160).clamp(limits::DATAGRAMS / 4, limits::DATAGRAMS * 4)
}

fn records(wanted: u64) -> u32 {
    u32::try_from(wanted).unwrap_or(u32::MAX)
}

/// Bytes of memory of this machine; 0 if the kernel does not tell.
pub fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    total_memory(&text).unwrap_or(0)
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A map that is pinned already.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pinned {
    /// What it is made of.
    pub shape: Shape,
    /// How many entries it may hold.
    pub size: u32,
}

/// What becomes of a map at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// It does not exist: make it with this size.
    Create(u32),
    /// It stays.
    Keep(u32),
    /// A larger one takes over its entries and its place.
    Grow(u32),
}

impl Plan {
    /// The size that the map will have.
    pub const fn size(self) -> u32 {
        match self {
            Self::Create(size) | Self::Keep(size) | Self::Grow(size) => size,
        }
    }
}

/// A pinned map that cannot be used.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PlanError {
    /// It was made by a version that counts the same layout but has another.
    #[error(
        "map {name}: the pinned one has another layout ({found:?} instead of {wanted:?}); \
         end the old flows and start anew with `beeline cleanup`"
    )]
    Shape {
        /// The map.
        name: &'static str,
        /// Of the pinned one.
        found: Shape,
        /// Of ours.
        wanted: Shape,
    },
    /// It would have to shrink.
    #[error(
        "map {name}: the pinned one has room for {found} entries and cannot shrink to {asked}; \
         start with {found} as {}, or end the old flows and start anew with `beeline cleanup`",
        Setting(option)
    )]
    Shrink {
        /// The map.
        name: &'static str,
        /// Room in the pinned one.
        found: u32,
        /// What was asked for.
        asked: u32,
        /// The option that asked.
        option: &'static str,
    },
}

/// Decides what becomes of the map `spec`. A pinned one keeps its size unless another is asked for.
///
/// # Errors
/// If the pinned map cannot be used.
pub fn plan(
    spec: &Spec,
    asked: Option<u32>,
    default: u32,
    pinned: Option<Pinned>,
) -> Result<Plan, PlanError> {
    let Some(pinned) = pinned else {
        return Ok(Plan::Create(asked.unwrap_or(default)));
    };
    if pinned.shape != spec.shape {
        return Err(PlanError::Shape {
            name: spec.name,
            found: pinned.shape,
            wanted: spec.shape,
        });
    }
    match (asked, spec.option) {
        (Some(asked), Some(_)) if asked > pinned.size => Ok(Plan::Grow(asked)),
        (Some(asked), Some(option)) if asked < pinned.size => Err(PlanError::Shrink {
            name: spec.name,
            found: pinned.size,
            asked,
            option,
        }),
        _ => Ok(Plan::Keep(pinned.size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(name: &str) -> &'static Spec {
        MAPS.iter().find(|spec| spec.name == name).unwrap()
    }

    #[test]
    fn records_follow_the_memory_within_bounds() {
        const GIB: u64 = 1 << 30;
        assert_eq!(sockets_for(0), limits::SOCKETS / 4);
        assert_eq!(sockets_for(16 * GIB), (16 * GIB / 1000 / 136) as u32);
        assert_eq!(sockets_for(u64::MAX), limits::SOCKETS * 4);
        assert_eq!(datagrams_for(0), limits::DATAGRAMS / 4);
        assert_eq!(datagrams_for(u64::MAX), limits::DATAGRAMS * 4);
        assert_eq!(flows_for(0), limits::FLOWS_MIN);
        assert_eq!(flows_for(GIB), limits::FLOWS_MIN);
        assert_eq!(flows_for(16 * GIB), (16 * GIB / 400 / 192) as u32);
        assert_eq!(flows_for(1024 * GIB), limits::FLOWS * 4);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let text = "MemTotal:       24628720 kB\nMemFree:         1 kB\n";
        assert_eq!(total_memory(text), Some(24_628_720 * 1024));
        assert_eq!(total_memory(""), None);
    }

    #[test]
    fn a_pinned_map_keeps_its_size_unless_more_is_asked_for() {
        let spec = spec_of("FLOWS");
        let pinned = Some(Pinned {
            shape: spec.shape,
            size: 1000,
        });
        assert_eq!(plan(spec, None, 7, None), Ok(Plan::Create(7)));
        assert_eq!(plan(spec, Some(9), 7, None), Ok(Plan::Create(9)));
        assert_eq!(plan(spec, None, 7, pinned), Ok(Plan::Keep(1000)));
        assert_eq!(plan(spec, Some(1000), 7, pinned), Ok(Plan::Keep(1000)));
        assert_eq!(plan(spec, Some(2000), 7, pinned), Ok(Plan::Grow(2000)));
    }

    #[test]
    fn a_map_that_would_shrink_is_refused_with_the_fix() {
        let spec = spec_of("FLOWS");
        let pinned = Some(Pinned {
            shape: spec.shape,
            size: 1000,
        });
        let error = plan(spec, Some(500), 7, pinned).unwrap_err().to_string();
        assert!(
            error.contains("start with 1000 as --max-flows (maxFlows)")
                && error.contains("beeline cleanup"),
            "{error}"
        );
    }

    #[test]
    fn a_map_of_another_shape_is_refused() {
        let spec = spec_of("FLOWS");
        let shape = Shape {
            key_size: 1,
            ..spec.shape
        };
        let error = plan(spec, None, 7, Some(Pinned { shape, size: 7 })).unwrap_err();
        assert!(matches!(error, PlanError::Shape { name: "FLOWS", .. }));
    }

    #[test]
    fn every_map_has_a_size() {
        const SINGLE: [&str; 2] = ["SETTINGS", "SOCKET_SETTINGS"];
        const GIVEN: [&str; 3] = ["POD_FLOWS", "CRC_SHIFTS", "OUTCOMES"];
        for spec in MAPS {
            let is_single = SINGLE.contains(&spec.name);
            assert!(default_size(spec.name, 0) > 0);
            assert_eq!(
                spec.option.is_none(),
                is_single || GIVEN.contains(&spec.name)
            );
            assert_eq!(default_size(spec.name, 0) == 1, is_single, "{}", spec.name);
        }
    }
}
