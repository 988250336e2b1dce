//! The maps, and the datapath's questions to them.
//!
//! Sizes are defaults; the loader sets those in force.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, PodFlags, ServiceCounters,
    ServiceName, Settings, SocketClient, SocketFlags, SocketRecord, SocketSettings, Verdict,
    limits,
};
use proxy_common::datapath::{Claim, Count, Draft, Sockets, Tables};

use crate::kernel;

#[map]
static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(limits::FRONTENDS, 0);
#[map]
static ADDRESSES: HashMap<Addr, AddressFlags> = HashMap::with_max_entries(limits::ADDRESSES, 0);
/// Keys are [`NetworkKey`](proxy_common::abi::NetworkKey)s.
#[map]
static NETWORKS: LpmTrie<Addr, NetworkFlags> =
    LpmTrie::with_max_entries(limits::NETWORKS, BPF_F_NO_PREALLOC);
/// Keys are [`SourceRangeKey`](proxy_common::abi::SourceRangeKey)s.
#[map]
static SOURCE_RANGES: LpmTrie<Ranged, u32> =
    LpmTrie::with_max_entries(limits::SOURCE_RANGES, BPF_F_NO_PREALLOC);
#[map]
static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(limits::DEVICES, 0);
#[map]
static SLOTS: Array<u32> = Array::with_max_entries(limits::SLOTS, 0);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(limits::BACKENDS, 0);
/// For people and tools: no program reads it.
#[map]
static SERVICES: HashMap<u32, ServiceName> = HashMap::with_max_entries(limits::SERVICES, 0);
#[map]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(limits::FLOWS, 0);
/// By [`Addr::pod_slot`]: not 0 if programs at a pod's device may find records. Most traffic of pods
/// goes by sockets or to no Service, and need not be looked for in the much larger map above.
#[map]
static POD_FLOWS: Array<u32> = Array::with_max_entries(limits::POD_FLOWS, 0);
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> =
    LruHashMap::with_max_entries(limits::AFFINITY, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> =
    LruHashMap::with_max_entries(limits::FRAGMENTS, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static CRC_SHIFTS: Array<u32> = Array::with_max_entries(limits::CRC_SHIFTS, 0);
#[map]
static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> =
    PerCpuArray::with_max_entries(limits::SERVICES, 0);
#[map]
static DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);
#[map]
static OUTCOMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(limits::OUTCOMES, 0);

/// By socket cookie. Not LRU: nobody but its release ends a connection, and a socket for which
/// there is no room is served by its packets.
#[map]
static SOCKETS: HashMap<u64, SocketRecord> = HashMap::with_max_entries(limits::SOCKETS, 0);
#[map]
static DATAGRAMS: LruHashMap<DatagramKey, SocketRecord> =
    LruHashMap::with_max_entries(limits::DATAGRAMS, 0);
/// By the cookie of a network namespace.
#[map]
static CLIENTS: HashMap<u64, SocketClient> = HashMap::with_max_entries(limits::CLIENTS, 0);
/// By the id of a cgroup.
#[map]
static PODS: HashMap<u64, PodFlags> = HashMap::with_max_entries(limits::PODS, 0);
#[map]
static SOCKET_SETTINGS: Array<SocketSettings> = Array::with_max_entries(1, 0);

/// A service port and an address: the data of a key of `SOURCE_RANGES`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ranged(u32, Addr);

/// Never used: an array always has its entries. The compiler cannot know.
static DEFAULT_SETTINGS: Settings = Settings::DEFAULT;

/// Likewise.
static DEFAULT_SOCKET_SETTINGS: SocketSettings = SocketSettings {
    node_netns: 0,
    flags: SocketFlags::NONE,
    pod_levels: 0,
};

/// Counts what was decided about a packet or a socket. Returns how often that was so before, on this CPU.
#[inline(always)]
pub(crate) fn count_outcome(verdict: Verdict) -> u64 {
    let Some(counter) = OUTCOMES.get_ptr_mut(verdict.index()) else {
        return 0;
    };
    // SAFETY: this CPU's own value; programs at the same hook do not interrupt each other.
    unsafe {
        let before = *counter;
        *counter = before + 1;
        before
    }
}

/// The maps as the datapath sees them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        kernel::now()
    }

    #[inline(always)]
    fn tick(&self) -> u32 {
        kernel::tick()
    }

    #[inline(always)]
    fn settings(&self) -> &Settings {
        entry(SETTINGS.get_ptr(0)).unwrap_or(&DEFAULT_SETTINGS)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        entry(FRONTENDS.get_ptr(key))
    }

    #[inline(always)]
    fn address(&self, addr: &Addr) -> AddressFlags {
        copy(ADDRESSES.get_ptr(addr)).unwrap_or_default()
    }

    #[inline(never)]
    fn network(&self, addr: &Addr) -> NetworkFlags {
        let key = Key::new(128, *addr);
        NETWORKS.get(&key).copied().unwrap_or_default()
    }

    #[inline(never)]
    fn is_in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        let key = Key::new(160, Ranged(service, *addr));
        SOURCE_RANGES.get(&key).is_some()
    }

    #[inline(always)]
    fn device(&self, index: u32) -> Option<&Device> {
        entry(DEVICES.get_ptr(index))
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        copy(SLOTS.get_ptr(index))
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        entry(BACKENDS.get_ptr(id))
    }

    #[inline(always)]
    fn has_flows(&self, pod: &Addr) -> bool {
        copy(POD_FLOWS.get_ptr(pod.pod_slot())) != Some(0)
    }

    #[inline(never)]
    fn note_flows(&self, pod: &Addr) {
        if let Some(note) = POD_FLOWS.get_ptr_mut(pod.pod_slot()) {
            // SAFETY: a word of its own, which is never anything but 0 and 1.
            unsafe { note.write(1) };
        }
    }

    #[inline(always)]
    fn with_flow<R>(&self, key: &FlowKey, act: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        let flow = FLOWS.get_ptr_mut(key)?;
        // SAFETY: the entry outlives the program (RCU). Another CPU may write it at the same time:
        // every field is a word of its own, and each of its values is meaningful alone.
        Some(act(unsafe { &mut *flow }))
    }

    #[inline(always)]
    fn with_draft<R>(&self, act: impl FnOnce(&mut Draft) -> R) -> Option<R> {
        let draft = DRAFT.get_ptr_mut(0)?;
        // SAFETY: this CPU's own value; programs at the same hook do not interrupt each other.
        Some(act(unsafe { &mut *draft }))
    }

    #[inline(always)]
    fn claim_flow(&self, key: &FlowKey, flow: &Flow) -> Claim {
        const EEXIST: i32 = -17;
        match FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)) {
            Ok(()) => Claim::Ours,
            Err(EEXIST) => Claim::Taken,
            Err(_) => Claim::Failed,
        }
    }

    #[inline(always)]
    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        FLOWS.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) -> bool {
        FLOWS.remove(key).is_ok()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        copy(AFFINITY.get_ptr(key))
    }

    #[inline(always)]
    fn put_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        // A client that cannot be remembered is served all the same.
        let _kept = AFFINITY.insert(key, affinity, 0);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        copy(FRAGMENTS.get_ptr(key))
    }

    #[inline(always)]
    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) -> bool {
        FRAGMENTS.insert(key, ports, 0).is_ok()
    }

    #[inline(always)]
    fn crc_shift(&self, len: u32) -> Option<u32> {
        copy(CRC_SHIFTS.get_ptr(len))
    }

    #[inline(always)]
    fn count(&self, service: u32, bytes: u32, what: Count) {
        let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service) else {
            return;
        };
        // SAFETY: as in `count_outcome`.
        let counters = unsafe { &mut *counters };
        if let Count::Refused(reason) = what {
            counters.refuse(reason);
            return;
        }
        if what == Count::Flow {
            counters.flows += 1;
            return;
        }
        counters.packets += 1;
        counters.bytes += u64::from(bytes);
    }
}

impl Sockets for Maps {
    #[inline(always)]
    fn socket_settings(&self) -> &SocketSettings {
        entry(SOCKET_SETTINGS.get_ptr(0)).unwrap_or(&DEFAULT_SOCKET_SETTINGS)
    }

    #[inline(never)]
    fn pod(&self) -> Option<PodFlags> {
        /// Deeper than any cgroup of a pod.
        const DEPTHS: u32 = 16;
        let levels = self.socket_settings().pod_levels;
        for level in 1..DEPTHS {
            if levels & (1 << level) != 0
                && let Some(pod) = copy(PODS.get_ptr(kernel::ancestor_cgroup(level)))
            {
                return Some(pod);
            }
        }
        None
    }

    #[inline(always)]
    fn client(&self, netns: u64) -> Option<&SocketClient> {
        entry(CLIENTS.get_ptr(netns))
    }

    #[inline(always)]
    fn with_connected<R>(&self, cookie: u64, act: impl FnOnce(&SocketRecord) -> R) -> Option<R> {
        entry(SOCKETS.get_ptr(cookie)).map(act)
    }

    #[inline(always)]
    fn put_connected(&self, cookie: u64, record: &SocketRecord) -> bool {
        SOCKETS.insert(cookie, record, 0).is_ok()
    }

    #[inline(always)]
    fn remove_connected(&self, cookie: u64) {
        let _was_there = SOCKETS.remove(cookie);
    }

    #[inline(always)]
    fn with_datagrams<R>(
        &self,
        key: &DatagramKey,
        act: impl FnOnce(&mut SocketRecord) -> R,
    ) -> Option<R> {
        let record = DATAGRAMS.get_ptr_mut(key)?;
        // SAFETY: as in `with_flow`.
        Some(act(unsafe { &mut *record }))
    }

    #[inline(always)]
    fn put_datagrams(&self, key: &DatagramKey, record: &SocketRecord) -> bool {
        DATAGRAMS.insert(key, record, 0).is_ok()
    }

    #[inline(always)]
    fn remove_datagrams(&self, key: &DatagramKey) {
        let _was_there = DATAGRAMS.remove(key);
    }
}

/// A map's value where it lies.
#[inline(always)]
fn entry<'a, T>(value: Option<*const T>) -> Option<&'a T> {
    // SAFETY: the memory outlives the program (RCU), and all its bit patterns are valid. User space
    // may write it meanwhile: every field is a word of its own, and what is read of a frontend is
    // checked against its backend.
    value.map(|value| unsafe { &*value })
}

/// A copy of a map's value.
#[inline(always)]
fn copy<T: Copy>(value: Option<*const T>) -> Option<T> {
    entry(value).copied()
}
