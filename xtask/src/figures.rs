//! What a benchmark measured: one document, which `cargo xtask bench --json` writes and which is
//! all that its tables and its page are made of.
//!
//! Times are nanoseconds and sizes bytes, unless a field's name says otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything of one run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// The command that was run.
    pub command: String,
    /// The day on which it was, as `2026-01-31`, in UTC.
    pub day: String,
    /// What it was run on.
    pub machine: Machine,
    /// What was measured how often.
    pub settings: Settings,
    /// Nodes that were made, without the one that has no proxy.
    pub nodes: Vec<Node>,
    /// What was asked for but not measured, and why, in plain words.
    pub left_out: Vec<String>,
    /// What clients met.
    pub traffic: Vec<Traffic>,
    /// How often Beeline's programs were called meanwhile.
    pub calls: Vec<Calls>,
    /// What a packet costs in Beeline's programs, by test run.
    pub packets: Vec<Packet>,
    /// Beeline's programs as the kernel loaded them.
    pub programs: Vec<Program>,
    /// What changes of the cluster cost; nothing if that was not measured.
    pub control: Option<Control>,
    /// What the real kube-proxy's control plane needed elsewhere, beside [`Self::control`].
    pub peers: Vec<Peer>,
}

/// A machine, without its name.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel, without whose build it is.
    pub kernel: String,
    /// What the processor calls itself.
    pub processor: String,
    /// Processors that are online.
    pub processors: usize,
    /// Mean number of threads that ran or wanted to, before and after.
    pub load: [f64; 2],
}

/// How it was measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How often everything had its turn.
    pub rounds: u32,
    /// Length of a turn in milliseconds.
    pub turn_ms: u64,
}

/// Who translates a Service's address on a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// Nobody: the node has no rule and no program.
    Direct,
    /// kube-proxy's rules in `iptables-nft`.
    Iptables,
    /// kube-proxy's rules in `iptables-legacy`.
    IptablesLegacy,
    /// kube-proxy's rules in nftables.
    Nftables,
    /// Beeline.
    Beeline,
}

/// How a client gets to a pod.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// By the pod's address, whatever the node's proxy.
    Pod,
    /// By the Service's address, which kube-proxy's rules translate.
    Rules,
    /// By the Service's address, as a process whose sockets Beeline sees.
    SocketEdge,
    /// By the Service's address, as one whose packets Beeline sees, in TC programs.
    PacketEdge,
}

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In a pod.
    Pod,
    /// On the node itself.
    Node,
    /// Beyond the node's device; dials a NodePort with a backend on the node.
    OutsideToLocal,
    /// The same with a backend on another node. Without a Service the backend is dialled by its
    /// address, and its packets take the same way by the node, there and back.
    OutsideToRemote,
}

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// A TCP connection: open it, one byte each way, close it.
    TcpConnection,
    /// One byte each way on a TCP connection that stays open.
    TcpRequest,
    /// As much as one TCP connection carries; an operation is a byte.
    TcpBulk,
    /// A datagram and its answer on one connected UDP socket.
    UdpRequest,
    /// The same on one socket that is not connected.
    UdpUnconnected,
    /// The same with a new socket each time, as a resolver does it.
    UdpNewSocket,
    /// Datagrams one way; an operation is a datagram that arrived.
    UdpPackets,
    /// SCTP packets of one association one way, from a generator; an operation is a packet that
    /// arrived.
    SctpPackets,
    /// `connect` of one UDP socket, which sends nothing.
    Connect,
    /// `connect` to another Service, or another pod, each time.
    ConnectToEach,
    /// `socket`, `connect`, `close`.
    SocketConnectClose,
    /// `sendto` of a socket that is not connected, to where nobody reads.
    SendTo,
}

impl Place {
    /// All places, in the order of tables.
    pub const ALL: [Self; 4] = [
        Self::Pod,
        Self::Node,
        Self::OutsideToLocal,
        Self::OutsideToRemote,
    ];
}

impl Measure {
    /// System calls, which show what programs for sockets add to them.
    pub const CALLS: [Self; 4] = [
        Self::Connect,
        Self::ConnectToEach,
        Self::SocketConnectClose,
        Self::SendTo,
    ];
}

/// A node with a proxy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Which proxy.
    pub proxy: Proxy,
    /// How many Services it serves.
    pub services: u32,
    /// From the start of the daemon, or of the command that loads the rules, until all of them
    /// were served; in seconds.
    pub ready_s: f64,
}

/// What one client does in one way on one node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Where the client is.
    pub place: Place,
    /// What it does.
    pub measure: Measure,
    /// The proxy of its node.
    pub proxy: Proxy,
    /// Services on its node; `None` without a proxy.
    pub services: Option<u32>,
    /// How it gets to a pod.
    pub way: Way,
}

/// A number that was measured in several rounds: quartiles.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// A quarter of the rounds was below.
    pub low: f64,
    /// Half of them.
    pub median: f64,
    /// A quarter was above.
    pub high: f64,
}

/// What a case came to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// Which case.
    pub case: Case,
    /// Operations a second.
    pub rate: Spread,
    /// Processor time of an operation, of client, kernel and server together.
    pub cpu_ns: Spread,
    /// Of single operations, where they were timed.
    pub latency: Option<Latency>,
    /// Against [`Proxy::Direct`]: how close to no proxy at all.
    pub to_direct: Option<Comparison>,
    /// Against [`Way::Pod`] on a node with the same proxy (Beeline: one that serves sockets) and as
    /// many Services: what it costs to go by a Service there.
    pub to_pod: Option<Comparison>,
}

/// How long operations took at most, those of all rounds taken together.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them.
    pub p50_ns: f64,
    /// 99 of 100.
    pub p99_ns: f64,
    /// 999 of 1,000.
    pub p999_ns: f64,
}

/// One case against another, round by round.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The rate as a part of the other's.
    pub rate: Spread,
    /// The processor time of an operation as a part of the other's.
    pub cpu: Spread,
    /// Processor time more for an operation.
    pub added_cpu_ns: Spread,
}

/// How often a program of Beeline's was called in a case, as the kernel counts it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Calls {
    /// Which case.
    pub case: Case,
    /// The program's name.
    pub program: String,
    /// Calls for each operation.
    pub each: f64,
    /// A call, in which some 20 to 40 ns are the kernel's own counting.
    pub ns: f64,
}

/// What a packet costs in a program, by test run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Packet {
    /// The program's name.
    pub program: String,
    /// What the packet is, in plain words: `established`, `direct`, `not IP` and the like.
    pub what: String,
    /// `TCP`, `UDP` or `SCTP`; nothing for what is none of them.
    pub protocol: Option<String>,
    /// `IPv4` or `IPv6`; nothing for what is neither.
    pub family: Option<String>,
    /// The mean of the turn that nothing disturbed.
    pub least_ns: f64,
    /// The median of all turns' means.
    pub median_ns: f64,
}

/// A program as the kernel loaded it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// The program's name.
    pub name: String,
    /// Instructions that the verifier looked at; unknown before Linux 5.16.
    pub verified: Option<u32>,
    /// Its size when translated; unknown if the kernel does not tell.
    pub bytes: Option<u32>,
}

/// What changes of the cluster cost the daemon. Map writes are real ones.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Control {
    /// From complete lists in memory to the last map write.
    pub cold_start: Vec<ColdStart>,
    /// One endpoint of one Service replaced, from the event to the last map write.
    pub change: Vec<Change>,
    /// All endpoints of one Service replaced, one after the other.
    pub rolling_restart: Vec<RollingRestart>,
    /// Of a daemon that has all Services in the kernel.
    pub memory: Vec<Memory>,
}

/// See [`Control::cold_start`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ColdStart {
    /// How many Services.
    pub services: u32,
    /// How many endpoints each of them has.
    pub endpoints: u32,
    /// How long it took, in seconds.
    pub seconds: Spread,
    /// Map writes, by the map's name.
    pub writes: BTreeMap<String, u64>,
}

/// See [`Control::change`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// How many Services.
    pub services: u32,
    /// How many endpoints each of them has.
    pub endpoints: u32,
    /// How many changes were made.
    pub changes: u32,
    /// Half of them took at most so long.
    pub p50_ns: f64,
    /// 99 of 100.
    pub p99_ns: f64,
    /// The longest.
    pub max_ns: f64,
    /// Map writes of one of them, on average.
    pub writes: f64,
    /// Allocations of memory of one of them, on average.
    pub allocations: f64,
}

/// See [`Control::rolling_restart`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RollingRestart {
    /// How many endpoints.
    pub endpoints: u32,
    /// Events that it takes.
    pub events: u32,
    /// How long it took altogether, in seconds.
    pub seconds: f64,
    /// Half of the events took at most so long.
    pub p50_ns: f64,
    /// 99 of 100.
    pub p99_ns: f64,
}

/// See [`Control::memory`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// How many Services.
    pub services: u32,
    /// How many endpoints each of them has.
    pub endpoints: u32,
    /// What is resident of the daemon.
    pub resident: u64,
    /// The most that ever was.
    pub peak_resident: u64,
    /// What the kernel accounts for its maps.
    pub maps: u64,
}

/// What the control plane of the real kube-proxy needed, measured once: medians. Its Services have
/// five endpoints each.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Which mode of kube-proxy's, and flavour of iptables.
    pub mode: Proxy,
    /// How many Services.
    pub services: u32,
    /// From the start of the process to the last rule of all endpoints, in seconds.
    pub start_s: f64,
    /// One endpoint of one Service replaced, from the API call to the last commit of rules, in
    /// milliseconds.
    pub change_ms: f64,
    /// What is resident of the process once it has started, in MiB.
    pub resident_mib_after_start: f64,
    /// The same after ten changes, in MiB.
    pub resident_mib_after_changes: f64,
    /// kube-proxy's version.
    pub version: String,
    /// What it was measured on.
    pub machine: String,
}
