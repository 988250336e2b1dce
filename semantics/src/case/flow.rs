//! One packet and what becomes of it.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

/// One packet.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Flow {
    /// For reports.
    pub name: String,
    /// By which `stickTo` names it.
    #[serde(default)]
    pub id: Option<String>,
    /// Where it comes from.
    pub from: From,
    /// What it is sent to.
    pub to: Dialled,
    /// Whether it opens a connection.
    #[serde(default)]
    pub packet: Packet,
    /// Its connection: the same five-tuple each time.
    #[serde(default)]
    pub conn: Option<String>,
    /// A remark.
    #[serde(default)]
    pub note: Option<String>,
    /// What becomes of it.
    pub expect: Expect,
    /// What other modes of kube-proxy do instead; for information.
    #[serde(default)]
    pub expect_by_mode: Option<ExpectByMode>,
}

/// Where a packet comes from.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// Whose it is.
    pub kind: Kind,
    /// Source address before any rewriting.
    pub ip: IpAddr,
    /// The interface by which it comes in.
    #[serde(default)]
    pub iface: Option<String>,
}

/// Whose packet it is.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A pod on this node.
    Pod,
    /// A pod elsewhere; the packet arrives from the network.
    PodOtherNode,
    /// A process in this node's own network namespace.
    Node,
    /// Such a process of another node.
    OtherNode,
    /// Off the cluster.
    External,
}

/// What a packet is sent to.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Dialled {
    /// Destination address.
    pub ip: IpAddr,
    /// Destination port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Debug)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Whether a packet opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Packet {
    /// The first of a connection, with a source port not used before.
    #[default]
    New,
    /// A further one of `conn`.
    Established,
}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expect {
    /// What happens.
    pub verdict: Verdict,
    /// The full set that may be chosen from; with `forward` only.
    #[serde(default)]
    pub backends: Vec<SocketAddr>,
    /// Whether the backend sees an address of this node in place of the client's.
    #[serde(default)]
    pub snat: Option<bool>,
    /// Backends for which the source is rewritten although `snat` is false.
    #[serde(default)]
    pub snat_for: Vec<SocketAddr>,
    /// The flow whose backend it has to be.
    #[serde(default)]
    pub stick_to: Option<String>,
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Sent to a backend of a Service.
    Forward,
    /// Not forwarded, and the client learns at once.
    Reject,
    /// Not forwarded, no answer of any kind.
    Drop,
    /// Nothing is done; it goes wherever routing takes it.
    Pass,
}

/// What other modes of kube-proxy do instead.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct ExpectByMode {
    /// The iptables mode.
    #[serde(default)]
    pub iptables: Option<Expect>,
}
