//! How this node is to treat traffic, and how flags say so.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use ipnet::IpNet;
use proxy_common::abi::{Family, Port, Settings};

/// How this node treats traffic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// The name of this node's Node object (rule R181).
    pub name: Arc<str>,
    /// Which of this node's addresses accept NodePorts (rule R86).
    pub node_port_addresses: NodePortAddresses,
    /// Whether this node's own processes reach NodePorts at loopback addresses (rule R88).
    pub localhost_node_ports: bool,
    /// How clients are told to be local pods (rule R51).
    pub detect_local: DetectLocal,
    /// Whether all traffic to cluster IPs gets an address of this node as source (rule R78).
    pub masquerade_all: bool,
    /// When the source is rewritten otherwise.
    pub source_nat: SourceNat,
    /// What becomes of TCP and SCTP flows to a removed backend.
    pub gone_backends: GoneBackends,
    /// What becomes of a TCP or SCTP packet in mid-flow that nothing is known of.
    pub mid_flow: MidFlow,
    /// Whether hints for nodes count (rule R45).
    pub same_node_hints: bool,
    /// ServiceCIDRs given by hand, besides the cluster's (rule R186).
    pub service_cidrs: Vec<IpNet>,
    /// Ports that rewritten sources get.
    pub source_ports: SourcePorts,
}

impl NodeConfig {
    /// The node called `name`, with the default of every setting.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            node_port_addresses: NodePortAddresses::Primary,
            localhost_node_ports: true,
            detect_local: DetectLocal::PodDevices,
            masquerade_all: false,
            source_nat: SourceNat::WhenNeeded,
            gone_backends: GoneBackends::Reset,
            mid_flow: MidFlow::Pass,
            same_node_hints: true,
            service_cidrs: Vec::new(),
            source_ports: SourcePorts::default(),
        }
    }
}

/// Which of this node's addresses accept NodePorts; loopback never does (rule R88).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The Node object's first address of each family; every address of a family of which it has
    /// none (rule R87).
    Primary,
    /// Those inside these ranges; every address of a family that has no range, or a zero range
    /// (rule R86).
    Ranges(Vec<IpNet>),
}

/// How clients are told to be local pods (rule R51).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DetectLocal {
    /// By a source address in this range, at most one for each family. A family without range
    /// has no detection.
    ClusterCidr(Vec<IpNet>),
    /// By a source address in the Node object's first `podCIDR` of the family.
    NodeCidr,
    /// By the bridge that the packet came in by, itself or one of its ports.
    BridgeInterface(Arc<str>),
    /// By how the name of the device begins that the packet came in by; a port of a bridge counts
    /// by the bridge's name, too.
    InterfaceNamePrefix(Arc<str>),
    /// By the device that the packet came in by: one that leads to a pod. kube-proxy, which knows no
    /// devices, does not have it.
    PodDevices,
}

impl DetectLocal {
    /// The name of the mode, as kube-proxy has it if it does.
    pub const fn mode(&self) -> &'static str {
        match self {
            Self::ClusterCidr(_) => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface(_) => "BridgeInterface",
            Self::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
            Self::PodDevices => "PodDevices",
        }
    }
}

/// When a client's address is replaced by one of this node.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum SourceNat {
    /// Only where the reply would not come back by this node otherwise
    WhenNeeded,
    /// Wherever kube-proxy does
    LikeKubeProxy,
}

/// What becomes of TCP and SCTP flows to a backend that was removed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Debug)]
pub enum GoneBackends {
    /// Their next packet is answered with a reset
    Reset,
    /// They are left alone, as kube-proxy does
    Keep,
}

/// What becomes of a TCP or SCTP packet in mid-flow that nothing is known of.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum MidFlow {
    /// Leave it to netfilter, which may know it from kube-proxy's time
    Pass,
    /// Take it for the start of a flow
    Adopt,
}

/// Ports that rewritten sources get, the last one included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourcePorts {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A flag's value that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a range of addresses.
    #[error("{0:?} is no range of addresses such as 10.0.0.0/8 or fd00::/64")]
    Network(String),
    /// `primary` beside something else.
    #[error("`primary` cannot be combined with ranges, as in {0:?}")]
    PrimaryAndRanges(String),
    /// More than one range of a family.
    #[error("{0:?} has two {1} ranges; at most one of each family is possible")]
    TwoOfAFamily(String, Family),
    /// Not a range of ports.
    #[error("{0:?} is no range of ports such as 10000-29999, between 1024 and 65535")]
    Ports(String),
    /// Too few ports to tell flows apart.
    #[error("{0:?} has fewer than {MIN_PORTS} ports, too few to keep flows apart")]
    FewPorts(String),
}

/// Fewest ports for rewritten sources: with fewer, a busy backend soon has no more.
const MIN_PORTS: u16 = 64;

/// Reads ranges between commas; none if the text is empty. Blanks around them do not matter.
///
/// # Errors
/// If one is not a range.
pub fn networks(text: &str) -> Result<Vec<IpNet>, ConfigError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let network = |part: &str| {
        let network: Result<IpNet, _> = part.trim().parse();
        network.map_err(|_| ConfigError::Network(part.trim().to_owned()))
    };
    text.split(',').map(network).collect()
}

/// Reads `--cluster-cidr`: ranges between commas, in either order, one for each family at most
/// (rule R51).
///
/// # Errors
/// If one is not a range, or there are two of a family.
pub fn cluster_cidrs(text: &str) -> Result<Vec<IpNet>, ConfigError> {
    let ranges = networks(text)?;
    for family in Family::ALL {
        let of_family = ranges.iter().filter(|range| family_of(range) == family);
        if of_family.count() > 1 {
            return Err(ConfigError::TwoOfAFamily(text.to_owned(), family));
        }
    }
    Ok(ranges)
}

/// The family of a range.
pub(super) const fn family_of(network: &IpNet) -> Family {
    match network {
        IpNet::V4(_) => Family::Ipv4,
        IpNet::V6(_) => Family::Ipv6,
    }
}

impl FromStr for NodePortAddresses {
    type Err = ConfigError;

    /// Reads `primary`, or ranges between commas. Empty: every address.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text.trim() == "primary" {
            return Ok(Self::Primary);
        }
        if text.split(',').any(|part| part.trim() == "primary") {
            return Err(ConfigError::PrimaryAndRanges(text.to_owned()));
        }
        networks(text).map(Self::Ranges)
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Ranges(ranges) => join(f, ranges),
        }
    }
}

impl fmt::Display for DetectLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mode())?;
        match self {
            Self::ClusterCidr(ranges) if ranges.is_empty() => f.write_str(" (no range)"),
            Self::ClusterCidr(ranges) => {
                f.write_str(" ")?;
                join(f, ranges)
            }
            Self::NodeCidr | Self::PodDevices => Ok(()),
            Self::BridgeInterface(name) | Self::InterfaceNamePrefix(name) => write!(f, " {name}"),
        }
    }
}

fn join(f: &mut fmt::Formatter<'_>, ranges: &[IpNet]) -> fmt::Result {
    let texts: Vec<_> = ranges.iter().map(IpNet::to_string).collect();
    f.write_str(&texts.join(","))
}

impl SourceNat {
    /// The flag's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WhenNeeded => "when-needed",
            Self::LikeKubeProxy => "like-kube-proxy",
        }
    }
}

impl GoneBackends {
    /// The flag's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Keep => "keep",
        }
    }
}

impl MidFlow {
    /// The flag's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Adopt => "adopt",
        }
    }
}

impl Default for SourcePorts {
    fn default() -> Self {
        Self {
            first: Settings::DEFAULT.first_port.number(),
            last: Settings::DEFAULT.last_port.number(),
        }
    }
}

impl SourcePorts {
    /// First and last, as the datapath has them.
    pub(super) const fn ports(self) -> (Port, Port) {
        (Port::new(self.first), Port::new(self.last))
    }
}

impl FromStr for SourcePorts {
    type Err = ConfigError;

    /// Reads `FIRST-LAST`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Ports(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |part: &str| part.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first < 1024 || last < first {
            return Err(wrong());
        }
        if last - first < MIN_PORTS - 1 {
            return Err(ConfigError::FewPorts(text.to_owned()));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for SourcePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_are_primary_or_ranges() {
        for (text, shown) in [
            ("primary", "primary"),
            (" primary ", "primary"),
            ("", ""),
            ("192.0.2.0/24", "192.0.2.0/24"),
            (" 192.0.2.0/24, ::/0", "192.0.2.0/24,::/0"),
        ] {
            let read: NodePortAddresses = text.parse().unwrap();
            assert_eq!(read.to_string(), shown, "{text:?}");
            assert_eq!(shown.parse(), Ok(read));
        }
        for (text, named) in [
            ("primary,192.0.2.0/24", "primary,192.0.2.0/24"),
            ("192.0.2.0/33", "192.0.2.0/33"),
            ("192.0.2.1", "\"192.0.2.1\""),
            ("192.0.2.0/24,", "\"\""),
            ("localhost", "localhost"),
        ] {
            let error = text.parse::<NodePortAddresses>().unwrap_err().to_string();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_cluster_has_one_range_of_each_family_in_either_order() {
        for text in [
            "",
            "10.0.0.0/8",
            "fd00::/64,10.0.0.0/8",
            "10.0.0.0/8, fd00::/64",
        ] {
            assert!(cluster_cidrs(text).is_ok(), "{text:?}");
        }
        for (text, named) in [
            ("10.0.0.0/8,10.1.0.0/16", "two IPv4"),
            ("10.0.0.0/8,fd00::/64,fd01::/64", "two IPv6"),
            ("10.0.0.0", "\"10.0.0.0\""),
        ] {
            let error = cluster_cidrs(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }

    #[test]
    fn source_ports_are_a_range_above_the_privileged_ones() {
        let ports: SourcePorts = "10000-29999".parse().unwrap();
        assert_eq!(ports, SourcePorts::default());
        assert_eq!(ports.to_string(), "10000-29999");
        for wrong in [
            "",
            "10000",
            "80-90",
            "29999-10000",
            "10000-70000",
            "1024-1030",
            "a-b",
        ] {
            let error = wrong.parse::<SourcePorts>().unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn names_are_the_flags_words() {
        for value in SourceNat::value_variants() {
            assert_eq!(SourceNat::from_str(value.name(), false), Ok(*value));
        }
        for value in GoneBackends::value_variants() {
            assert_eq!(GoneBackends::from_str(value.name(), false), Ok(*value));
        }
        for value in MidFlow::value_variants() {
            assert_eq!(MidFlow::from_str(value.name(), false), Ok(*value));
        }
    }

    #[test]
    fn modes_are_shown_with_what_they_go_by() {
        let range = || cluster_cidrs("10.0.0.0/8").unwrap();
        for (mode, shown) in [
            (
                DetectLocal::ClusterCidr(Vec::new()),
                "ClusterCIDR (no range)",
            ),
            (DetectLocal::ClusterCidr(range()), "ClusterCIDR 10.0.0.0/8"),
            (DetectLocal::NodeCidr, "NodeCIDR"),
            (
                DetectLocal::BridgeInterface("cni0".into()),
                "BridgeInterface cni0",
            ),
            (
                DetectLocal::InterfaceNamePrefix("cali".into()),
                "InterfaceNamePrefix cali",
            ),
        ] {
            assert_eq!(mode.to_string(), shown);
        }
    }
}
