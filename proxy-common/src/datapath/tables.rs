//! The questions that the datapath asks of maps and environment.

use bytemuck::{Pod, Zeroable};

use crate::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, DatagramKey, Device, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendKey, NetworkFlags, PodFlags, RefusalReason,
    Settings, SocketClient, SocketRecord, SocketSettings,
};

/// Outcome of [`Tables::claim_flow`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The record is in the table now.
    Ours,
    /// There was one already, and it stays.
    Taken,
    /// The table refused.
    Failed,
}

/// A flow record in the making.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Draft {
    /// The record, first that of the answers, then that of the packet.
    pub flow: Flow,
    /// The key of the answers.
    pub answer: FlowKey,
}

/// What is counted for a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// A translated packet.
    Packet,
    /// A flow that begins.
    Flow,
    /// A packet that would have opened a flow, but for this reason.
    Refused(RefusalReason),
}

/// Maps and clock.
///
/// All methods take `&self`: in the kernel there is nothing to borrow, other CPUs write too.
pub trait Tables {
    /// Nanoseconds of `CLOCK_MONOTONIC`, to within a few milliseconds.
    fn now(&self) -> u64;

    /// A counter that grows by 100 to 1,000 a second, for next to nothing.
    fn tick(&self) -> u32;

    /// This node's settings.
    fn settings(&self) -> &Settings;

    /// What this address is.
    fn address(&self, addr: &Addr) -> AddressFlags;

    /// What the smallest known network is that this address belongs to.
    fn network(&self, addr: &Addr) -> NetworkFlags;

    /// Whether a service port's source ranges have this address.
    fn is_in_source_ranges(&self, service: u32, addr: &Addr) -> bool;

    /// The device with this index.
    fn device(&self, index: u32) -> Option<&Device>;

    /// The frontend with this key.
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend>;

    /// Id of the backend at a position of a frontend's block.
    fn slot(&self, index: u32) -> Option<u32>;

    /// The backend with this id.
    fn backend(&self, id: u32) -> Option<&Backend>;

    /// Whether there may be a record for packets from or to the pod with this address, at its device.
    fn has_flows(&self, pod: &Addr) -> bool;

    /// Takes note that there is one, or is going to be.
    fn note_flows(&self, pod: &Addr);

    /// Runs `act` on the flow record in place.
    fn with_flow<R>(&self, key: &FlowKey, act: impl FnOnce(&mut Flow) -> R) -> Option<R>;

    /// Runs `act` on a record and its key that belong to nobody else meanwhile: the kernel's stack
    /// has no room for them.
    fn with_draft<R>(&self, act: impl FnOnce(&mut Draft) -> R) -> Option<R>;

    /// Inserts a flow record if there is none yet.
    fn claim_flow(&self, key: &FlowKey, flow: &Flow) -> Claim;

    /// Inserts or replaces a flow record; `false` if the table refused.
    fn put_flow(&self, key: &FlowKey, flow: &Flow) -> bool;

    /// Forgets a flow record; `false` if there was none.
    fn remove_flow(&self, key: &FlowKey) -> bool;

    /// What is remembered of a client with session affinity.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;

    /// Remembers a client's backend.
    fn put_affinity(&self, key: &AffinityKey, affinity: &Affinity);

    /// The ports of a datagram in pieces.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;

    /// Remembers the ports of a datagram in pieces; `false` if the table refused.
    fn put_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) -> bool;

    /// `x^(8 × len) mod P` for the CRC32c of an SCTP packet, see [`super::crc32c`].
    fn crc_shift(&self, len: u32) -> Option<u32>;

    /// Counts a packet of `bytes` bytes for a Service.
    fn count(&self, service: u32, bytes: u32, what: Count);
}

/// What the socket edge asks besides.
pub trait Sockets: Tables {
    /// The settings of this edge.
    fn socket_settings(&self) -> &SocketSettings;

    /// The pod that the caller is in, by its cgroup; `None` if it is none that is known.
    fn pod(&self) -> Option<PodFlags>;

    /// What is known of the pod with this network namespace.
    fn client(&self, netns: u64) -> Option<&SocketClient>;

    /// Runs `act` on the record of a connected socket that is pointed somewhere.
    fn with_connected<R>(&self, cookie: u64, act: impl FnOnce(&SocketRecord) -> R) -> Option<R>;

    /// Remembers where a connected socket is pointed; `false` if the table refused.
    fn put_connected(&self, cookie: u64, record: &SocketRecord) -> bool;

    /// Forgets where a socket is pointed.
    fn remove_connected(&self, cookie: u64);

    /// Runs `act` on the record of a correspondence in place.
    fn with_datagrams<R>(
        &self,
        key: &DatagramKey,
        act: impl FnOnce(&mut SocketRecord) -> R,
    ) -> Option<R>;

    /// Remembers a correspondence; `false` if the table refused.
    fn put_datagrams(&self, key: &DatagramKey, record: &SocketRecord) -> bool;

    /// Forgets a correspondence.
    fn remove_datagrams(&self, key: &DatagramKey);
}
