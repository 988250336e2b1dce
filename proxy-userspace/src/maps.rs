//! The pinned maps as user space sees them.

mod batch;
mod kinds;
mod node;
mod services;

use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, PodFlags, ServiceCounters,
    ServiceName, Settings, SocketClient, SocketRecord,
};

pub use self::kinds::{Held, List, MapFailure, PerCpu, Raw, Table, Trie};
use crate::loader::pins::Pins;

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
    /// [`Addr::pod_slot`]s → whether programs at a pod's device may find flow records: 0 or 1.
    pub pod_flows: List<u32>,
    /// Session affinity.
    pub affinity: Table<AffinityKey, Affinity>,
    /// Ports of fragmented datagrams.
    pub fragments: Table<FragmentKey, FragmentPorts>,
    /// Cookies of connected sockets → what they talk to instead.
    pub sockets: Table<u64, SocketRecord>,
    /// Correspondents of unconnected UDP sockets → the same.
    pub datagrams: Table<DatagramKey, SocketRecord>,
    /// Network namespaces of pods → the clients that sockets there are.
    pub clients: Table<u64, SocketClient>,
    /// Pods' cgroups → how their sockets are treated.
    pub pods: Table<u64, PodFlags>,
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
            pod_flows: List::open(pins, "POD_FLOWS")?,
            affinity: Table::open(pins, "AFFINITY")?,
            fragments: Table::open(pins, "FRAGMENTS")?,
            sockets: Table::open(pins, "SOCKETS")?,
            datagrams: Table::open(pins, "DATAGRAMS")?,
            clients: Table::open(pins, "CLIENTS")?,
            pods: Table::open(pins, "PODS")?,
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
