//! How traffic is treated.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::config::SAME_NODE_HINTS;
use crate::config::go::parse_bool;
use crate::node::{
    self, DetectLocal, GoneBackends, MidFlow, NodeConfig, NodePortAddresses, SourceNat, SourcePorts,
};

/// How traffic is treated. Names and meanings are kube-proxy's where it has the same.
#[derive(Args, Debug)]
#[command(next_help_heading = "Traffic")]
pub(super) struct TrafficArgs {
    /// Which addresses of this node accept NodePorts: `primary`, which is the Node object's first
    /// address of each family, or ranges. Empty: all of them. A family without range is not
    /// limited, loopback addresses never accept.
    #[arg(long, value_name = "RANGE,…", default_value = "primary", value_parser = parsed::<NodePortAddresses>)]
    nodeport_addresses: Vec<NodePortAddresses>,
    /// How clients are told to be pods of this node. If not given: ClusterCIDR with --cluster-cidr,
    /// else PodDevices.
    #[arg(long, value_enum, value_name = "MODE")]
    detect_local_mode: Option<DetectArg>,
    /// The range of all pods' addresses, at most one for each family: what the mode ClusterCIDR
    /// goes by. In a family without range no client is taken for a pod.
    #[arg(long, value_name = "RANGE,…", value_parser = cluster_cidrs)]
    cluster_cidr: Option<ClusterCidrs>,
    /// The bridge of this node's pods, with --detect-local-mode BridgeInterface.
    #[arg(long, value_name = "NAME")]
    pod_bridge_interface: Option<String>,
    /// How the names of devices begin that pods' packets come in by, with --detect-local-mode
    /// InterfaceNamePrefix.
    #[arg(long, value_name = "TEXT")]
    pod_interface_name_prefix: Option<String>,
    /// Give all traffic to cluster IPs an address of this node as source.
    #[arg(long)]
    masquerade_all: bool,
    /// When a client's address is replaced by one of this node otherwise.
    #[arg(long, value_enum, default_value = "when-needed")]
    source_nat: SourceNat,
    /// What becomes of TCP and SCTP connections to an endpoint that was removed.
    #[arg(long, value_enum, default_value = "reset")]
    gone_backends: GoneBackends,
    /// A range of cluster IPs, besides those that the cluster's ServiceCIDRs name. Packets to
    /// addresses in it that no Service has are dropped. May be given several times.
    #[arg(long, value_name = "RANGE")]
    service_cidr: Vec<IpNet>,
    /// Ports that rewritten sources get. They must not be those that this node's own connections
    /// get (net.ipv4.ip_local_port_range).
    #[arg(long, value_name = "FIRST-LAST", default_value_t, value_parser = parsed::<SourcePorts>)]
    pub(super) source_ports: SourcePorts,
    /// Kubernetes feature gates, such as `PreferSameTrafficDistribution=false`: hints for nodes do
    /// not count. Others have no meaning here.
    #[arg(long, value_name = "GATE=BOOL,…")]
    feature_gates: Vec<FeatureGates>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum DetectArg {
    /// By an address in --cluster-cidr
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By an address in the Node object's podCIDRs
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By the bridge that their packets come in by
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By the name of the device that their packets come in by
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
    /// By a device of --pod-devices that their packets come in by
    #[value(name = "PodDevices")]
    PodDevices,
}

/// At most one of each family. A type of its own: clap takes a list for several values.
#[derive(Clone, Debug)]
struct ClusterCidrs(Vec<IpNet>);

impl TrafficArgs {
    /// Why these arguments do not belong together, if they do not.
    pub(super) fn conflict(&self) -> Option<&'static str> {
        let mode = self.mode();
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_bridge = is_set(&self.pod_bridge_interface);
        let has_prefix = is_set(&self.pod_interface_name_prefix);
        let cases = [
            (
                combined(&self.nodeport_addresses).is_none(),
                "--nodeport-addresses primary cannot be combined with ranges",
            ),
            (
                mode == DetectArg::BridgeInterface && !has_bridge,
                "--detect-local-mode BridgeInterface needs --pod-bridge-interface",
            ),
            (
                mode == DetectArg::InterfaceNamePrefix && !has_prefix,
                "--detect-local-mode InterfaceNamePrefix needs --pod-interface-name-prefix",
            ),
            (
                mode != DetectArg::BridgeInterface && has_bridge,
                "--pod-bridge-interface goes with --detect-local-mode BridgeInterface only",
            ),
            (
                mode != DetectArg::InterfaceNamePrefix && has_prefix,
                "--pod-interface-name-prefix goes with --detect-local-mode InterfaceNamePrefix only",
            ),
        ];
        let conflict = cases.into_iter().find(|(is_wrong, _)| *is_wrong);
        conflict.map(|(_, message)| message)
    }

    /// The name of the mode.
    pub(super) fn mode_name(&self) -> &'static str {
        self.detect_local().mode()
    }

    fn same_node_hints(&self) -> bool {
        let gates = self.feature_gates.iter().rev();
        let mut given = gates.filter_map(|gates| gates.0.get(SAME_NODE_HINTS));
        given.next().copied().unwrap_or(true)
    }

    fn mode(&self) -> DetectArg {
        match (self.detect_local_mode, &self.cluster_cidr) {
            (Some(mode), _) => mode,
            (None, Some(ranges)) if !ranges.0.is_empty() => DetectArg::ClusterCidr,
            (None, _) => DetectArg::PodDevices,
        }
    }

    fn detect_local(&self) -> DetectLocal {
        let name = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
        match self.mode() {
            DetectArg::PodDevices => DetectLocal::PodDevices,
            DetectArg::ClusterCidr => {
                let ranges = self.cluster_cidr.clone();
                DetectLocal::ClusterCidr(ranges.map(|ranges| ranges.0).unwrap_or_default())
            }
            DetectArg::NodeCidr => DetectLocal::NodeCidr,
            DetectArg::BridgeInterface => {
                DetectLocal::BridgeInterface(name(&self.pod_bridge_interface))
            }
            DetectArg::InterfaceNamePrefix => {
                DetectLocal::InterfaceNamePrefix(name(&self.pod_interface_name_prefix))
            }
        }
    }

    /// With `mid_flow`, which is older than this group.
    pub(super) fn config(self, name: String, mid_flow: MidFlow) -> NodeConfig {
        NodeConfig {
            detect_local: self.detect_local(),
            node_port_addresses: combined(&self.nodeport_addresses)
                .unwrap_or(NodePortAddresses::Primary),
            masquerade_all: self.masquerade_all,
            source_nat: self.source_nat,
            gone_backends: self.gone_backends,
            mid_flow,
            same_node_hints: self.same_node_hints(),
            service_cidrs: self.service_cidr,
            source_ports: self.source_ports,
            ..NodeConfig::new(name)
        }
    }
}

/// Reads a value, with the error's whole text.
fn parsed<T: std::str::FromStr<Err = node::ConfigError>>(
    text: &str,
) -> Result<T, node::ConfigError> {
    text.parse()
}

fn cluster_cidrs(text: &str) -> Result<ClusterCidrs, node::ConfigError> {
    node::cluster_cidrs(text).map(ClusterCidrs)
}

/// Several times the option is as one with all their ranges; `primary` stands alone.
fn combined(given: &[NodePortAddresses]) -> Option<NodePortAddresses> {
    let mut ranges = Vec::new();
    let mut n_primary = 0;
    for addresses in given {
        match addresses {
            NodePortAddresses::Primary => n_primary += 1,
            NodePortAddresses::Ranges(more) => ranges.extend(more),
        }
    }
    match n_primary {
        0 => Some(NodePortAddresses::Ranges(ranges)),
        _ if n_primary == given.len() => Some(NodePortAddresses::Primary),
        _ => None,
    }
}

/// Kubernetes feature gates, on or off. Their names are not checked: they are those of any release.
#[derive(Clone, Debug)]
struct FeatureGates(BTreeMap<String, bool>);

impl FromStr for FeatureGates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let gates = text.split(',').map(str::trim);
        gates
            .filter(|gate| !gate.is_empty())
            .map(gate)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn gate(text: &str) -> Result<(String, bool), String> {
    let parts = text
        .split_once('=')
        .map(|(name, on)| (name.trim(), on.trim()));
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric())
    };
    let Some((name, on)) = parts.filter(|(name, _)| is_name(name)) else {
        return Err(format!("{text:?} is not of the form GATE=BOOL"));
    };
    let on = parse_bool(on).map_err(|_| format!("{text:?} is neither true nor false"))?;
    Ok((name.to_owned(), on))
}
