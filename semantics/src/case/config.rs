//! The node's configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// The node, as kube-proxy would be told.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Own name.
    pub node_name: String,
    /// The zone at the start, as the Node object says too.
    pub zone: Option<String>,
    /// Every address on the node's interfaces except loopback.
    #[serde(rename = "nodeIPs")]
    pub node_ips: Vec<IpAddr>,
    /// The Node object's addresses, at most one of each family.
    #[serde(rename = "primaryNodeIPs")]
    pub primary_node_ips: Vec<IpAddr>,
    /// How local pods are recognised (rule R51).
    pub detect_local: DetectLocal,
    /// Rule R78.
    #[serde(default)]
    pub masquerade_all: bool,
    /// Rule R86.
    pub node_port_addresses: NodePortAddresses,
    /// The cluster's ServiceCIDRs; empty: not known.
    #[serde(rename = "serviceCIDRs", default)]
    pub service_cidrs: Vec<IpNet>,
    /// Only iptables mode looks at it.
    #[serde(default)]
    pub localhost_node_ports: bool,
    /// Health fails after twice this.
    #[serde(default = "half_a_minute")]
    pub sync_period_seconds: u64,
    /// Absent: as in 1.35, all on.
    #[serde(default)]
    pub feature_gates: BTreeMap<String, bool>,
}

const fn half_a_minute() -> u64 {
    30
}

/// How local pods are recognised (rule R51).
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(try_from = "RawDetectLocal")]
pub enum DetectLocal {
    /// By these source ranges; a family without one has no detection.
    ClusterCidr(Vec<IpNet>),
    /// By the Node's `spec.podCIDRs`.
    NodeCidr,
    /// By the bridge that they are ports of.
    BridgeInterface(String),
    /// By how their interfaces' names begin.
    InterfaceNamePrefix(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawDetectLocal {
    mode: Mode,
    #[serde(rename = "clusterCIDRs", default)]
    cluster_cidrs: Option<Vec<IpNet>>,
    #[serde(default)]
    bridge_interface: Option<String>,
    #[serde(default)]
    interface_name_prefix: Option<String>,
}

#[derive(Deserialize)]
enum Mode {
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

impl TryFrom<RawDetectLocal> for DetectLocal {
    type Error = String;

    fn try_from(raw: RawDetectLocal) -> Result<Self, String> {
        let missing = |field| format!("missing field `{field}` for this mode");
        let mode = match raw.mode {
            Mode::ClusterCidr => {
                Self::ClusterCidr(raw.cluster_cidrs.ok_or_else(|| missing("clusterCIDRs"))?)
            }
            Mode::NodeCidr => Self::NodeCidr,
            Mode::BridgeInterface => Self::BridgeInterface(
                raw.bridge_interface
                    .ok_or_else(|| missing("bridgeInterface"))?,
            ),
            Mode::InterfaceNamePrefix => Self::InterfaceNamePrefix(
                raw.interface_name_prefix
                    .ok_or_else(|| missing("interfaceNamePrefix"))?,
            ),
        };
        Ok(mode)
    }
}

/// The addresses that accept NodePorts (rule R86).
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(try_from = "Vec<String>")]
pub enum NodePortAddresses {
    /// The first address of each family in the Node object (rule R87).
    Primary,
    /// Those in the ranges; none: every address.
    Ranges(Vec<IpNet>),
}

impl TryFrom<Vec<String>> for NodePortAddresses {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        if texts == ["primary"] {
            return Ok(Self::Primary);
        }
        let range = |text: &String| {
            text.parse()
                .map_err(|_| format!("'{text}' is neither a range nor `primary` alone"))
        };
        Ok(Self::Ranges(
            texts.iter().map(range).collect::<Result<_, _>>()?,
        ))
    }
}
