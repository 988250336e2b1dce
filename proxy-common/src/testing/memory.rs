//! The maps, in memory.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use bytemuck::Zeroable as _;

use super::sockets::SocketMemory;
use crate::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, BackendFlags, BackendState, Device, Flow,
    FlowKey, FragmentKey, FragmentPorts, Frontend, FrontendFlags, FrontendKey, NetworkFlags,
    NetworkKey, Port, Protocol, ServiceCounters, Settings, SourceRangeKey,
};
use crate::datapath::{Claim, Count, Draft, Tables, crc32c};

/// Maps and clock, with everything open to the test.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The map `FRONTENDS`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// The map `ADDRESSES`.
    pub addresses: HashMap<Addr, AddressFlags>,
    /// The map `NETWORKS`.
    pub networks: BTreeMap<NetworkKey, NetworkFlags>,
    /// The map `SOURCE_RANGES`.
    pub source_ranges: BTreeSet<SourceRangeKey>,
    /// The map `DEVICES`.
    pub devices: HashMap<u32, Device>,
    /// The routing table: networks and the devices that lead to them.
    pub routes: BTreeMap<NetworkKey, u32>,
    /// The map `SLOTS`.
    pub slots: Vec<u32>,
    /// The map `BACKENDS`.
    pub backends: Vec<Backend>,
    /// The map `FLOWS`.
    pub flows: RefCell<HashMap<FlowKey, Flow>>,
    /// The map `POD_FLOWS`: the entries that are not 0.
    pub pod_flows: RefCell<BTreeSet<u32>>,
    /// The map `AFFINITY`.
    pub affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    /// The map `FRAGMENTS`.
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    /// The map `SERVICE_COUNTERS`.
    pub counters: RefCell<HashMap<u32, ServiceCounters>>,
    /// The entry of the map `SETTINGS`.
    pub settings: Settings,
    /// The maps of the socket edge.
    pub sockets: SocketMemory,
    /// The time.
    pub now: Cell<u64>,
}

impl Memory {
    /// Adds a frontend whose cluster set has these backends, all active and remote.
    /// Returns the service id.
    pub fn serve(
        &mut self,
        frontend: SocketAddr,
        protocol: Protocol,
        backends: &[SocketAddr],
    ) -> u32 {
        let service = u32::try_from(self.frontends.len()).expect("few frontends") + 1;
        let value = Frontend {
            service,
            flags: FrontendFlags::NONE,
            first_slot: 0,
            n_local: 0,
            cluster_offset: 0,
            n_cluster: 0,
            affinity_seconds: 0,
        };
        let known = self.frontends.insert(key(frontend, protocol), value);
        assert!(known.is_none(), "the frontend is there already");
        let _known = self
            .addresses
            .insert(frontend.ip().into(), AddressFlags::CLUSTER_IP);
        self.point(frontend, protocol, backends);
        service
    }

    /// The frontend at this address.
    pub fn frontend_mut(&mut self, frontend: SocketAddr, protocol: Protocol) -> &mut Frontend {
        self.frontends
            .get_mut(&key(frontend, protocol))
            .expect("a frontend at this address")
    }

    /// Gives a frontend a new block of slots with these backends as its cluster set. Known ones
    /// keep their ids, others are added, active and remote.
    pub fn point(&mut self, frontend: SocketAddr, protocol: Protocol, backends: &[SocketAddr]) {
        let service = self.frontend_mut(frontend, protocol).service;
        let first_slot = u32::try_from(self.slots.len()).expect("few slots");
        for backend in backends {
            let id = self.backend_id(*backend, service);
            self.slots.push(id);
        }
        let frontend = self.frontend_mut(frontend, protocol);
        frontend.first_slot = first_slot;
        frontend.n_cluster = u32::try_from(backends.len()).expect("few backends");
        frontend.flags = if backends.is_empty() {
            FrontendFlags::REJECT
        } else {
            FrontendFlags::NONE
        };
    }

    fn backend_id(&mut self, at: SocketAddr, service: u32) -> u32 {
        let wanted = Backend {
            addr: at.ip().into(),
            service,
            generation: 1,
            joined: 1,
            port: Port::new(at.port()),
            state: BackendState::Active as u8,
            flags: BackendFlags::IN_CLUSTER_SET,
        };
        let known = self.backends.iter().position(|backend| {
            (backend.addr, backend.port, backend.service) == (wanted.addr, wanted.port, service)
                && backend.state != BackendState::Gone as u8
        });
        let id = known.unwrap_or_else(|| {
            self.backends.push(wanted);
            self.backends.len() - 1
        });
        u32::try_from(id).expect("few backends")
    }

    /// The backends with this address.
    pub fn backends_at(&mut self, ip: IpAddr) -> impl Iterator<Item = &mut Backend> {
        self.backends
            .iter_mut()
            .filter(move |backend| backend.addr == Addr::from(ip))
    }

    /// The endpoint with this address is removed: its backends begin another life.
    pub fn remove_backends_at(&mut self, ip: IpAddr) {
        for backend in self.backends_at(ip) {
            backend.state = BackendState::Gone as u8;
            backend.flags = backend.flags.when_gone();
            backend.generation += 1;
            backend.joined += 1;
        }
    }

    /// The endpoint with this address leaves both sets and has this state.
    pub fn retire_backends_at(&mut self, ip: IpAddr, state: BackendState) {
        for backend in self.backends_at(ip) {
            backend.state = state as u8;
            backend.flags = BackendFlags::NONE;
            backend.joined += 1;
        }
    }

    /// What the tick counter grows by in so many nanoseconds.
    pub fn ticks(nanoseconds: u64) -> u32 {
        const TICK: u64 = 4_000_000;
        (nanoseconds / TICK) as u32
    }

    /// Lets time pass.
    pub fn advance(&self, nanoseconds: u64) {
        self.now.set(self.now.get() + nanoseconds);
    }
}

fn key(frontend: SocketAddr, protocol: Protocol) -> FrontendKey {
    FrontendKey::exact(frontend.ip().into(), Port::new(frontend.port()), protocol)
}

/// The key of a network such as `10.0.0.0/8`.
pub fn network(text: &str) -> NetworkKey {
    let (addr, len) = text.split_once('/').expect("address and length");
    let addr: Addr = addr.parse::<IpAddr>().expect("an address").into();
    let len: u32 = len.parse().expect("a length");
    NetworkKey {
        prefix_len: if addr.is_v4() { len + 96 } else { len },
        addr,
    }
}

/// The value of the longest prefix that `addr` belongs to.
pub(super) fn longest<V: Copy>(networks: &BTreeMap<NetworkKey, V>, addr: &Addr) -> Option<V> {
    networks
        .iter()
        .filter(|(key, _)| contains(&key.addr, key.prefix_len, addr))
        .max_by_key(|(key, _)| key.prefix_len)
        .map(|(_, &value)| value)
}

fn contains(network: &Addr, prefix_len: u32, addr: &Addr) -> bool {
    let bits = |addr: &Addr| u128::from_be_bytes(bytemuck::cast(addr.words()));
    let mask = !u128::MAX.checked_shr(prefix_len).unwrap_or(0);
    (bits(network) ^ bits(addr)) & mask == 0
}

impl Tables for Memory {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn tick(&self) -> u32 {
        Self::ticks(self.now.get())
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    fn address(&self, addr: &Addr) -> AddressFlags {
        self.addresses.get(addr).copied().unwrap_or_default()
    }

    fn network(&self, addr: &Addr) -> NetworkFlags {
        longest(&self.networks, addr).unwrap_or_default()
    }

    fn is_in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        self.source_ranges.iter().any(|range| {
            range.service == service && contains(&range.addr, range.prefix_len - 32, addr)
        })
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.devices.get(&index)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn has_flows(&self, pod: &Addr) -> bool {
        self.pod_flows.borrow().contains(&pod.pod_slot())
    }

    fn note_flows(&self, pod: &Addr) {
        let _is_new = self.pod_flows.borrow_mut().insert(pod.pod_slot());
    }

    fn with_flow<R>(&self, key: &FlowKey, act: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        let mut flow = self.flows.borrow().get(key).copied()?;
        let result = act(&mut flow);
        let _before = self.flows.borrow_mut().insert(*key, flow);
        Some(result)
    }

    fn with_draft<R>(&self, act: impl FnOnce(&mut Draft) -> R) -> Option<R> {
        Some(act(&mut Draft::zeroed()))
    }

    fn claim_flow(&self, key: &FlowKey, flow: &Flow) -> Claim {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Claim::Taken;
        }
        let _none = flows.insert(*key, *flow);
        Claim::Ours
    }

    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> bool {
        let _before = self.flows.borrow_mut().insert(*key, *flow);
        true
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        self.flows.borrow_mut().remove(key).is_some()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }

    fn put_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        let _before = self.affinity.borrow_mut().insert(*key, *affinity);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) -> bool {
        let _before = self.fragments.borrow_mut().insert(*key, *ports);
        true
    }

    fn crc_shift(&self, len: u32) -> Option<u32> {
        crc32c::shifts().nth(len as usize)
    }

    fn count(&self, service: u32, bytes: u32, what: Count) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(service).or_default();
        match what {
            Count::Refused(reason) => counters.refuse(reason),
            Count::Flow => counters.flows += 1,
            Count::Packet => {
                counters.packets += 1;
                counters.bytes += u64::from(bytes);
            }
        }
    }
}
