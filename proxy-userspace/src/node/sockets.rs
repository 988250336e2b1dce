//! Whose sockets are pointed at backends.

use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy_common::abi::SocketFlags;

use super::{NodeConfig, NodePortAddresses};

/// Whose sockets are pointed at backends when they dial a Service.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum SocketLb {
    /// Those of pods and of this node's own processes
    All,
    /// Those of this node's own processes
    Host,
    /// Nobody's
    Off,
}

impl SocketLb {
    /// Whether anybody's are.
    pub const fn is_on(self) -> bool {
        matches!(self, Self::All | Self::Host)
    }

    /// Its value on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// The switches of the socket edge, but for those about single pods.
pub fn socket_flags(served: SocketLb, config: &NodeConfig) -> SocketFlags {
    let flags = match served {
        SocketLb::All => SocketFlags::NODE.union(SocketFlags::PODS),
        SocketLb::Host => SocketFlags::NODE,
        SocketLb::Off => return SocketFlags::NONE,
    };
    if config.localhost_node_ports && may_be_loopback(&config.node_port_addresses) {
        flags.union(SocketFlags::LOCALHOST_NODE_PORTS)
    } else {
        flags
    }
}

/// Whether no range of addresses for NodePorts was given, or one with loopback addresses.
fn may_be_loopback(addresses: &NodePortAddresses) -> bool {
    match addresses {
        NodePortAddresses::Primary => true,
        NodePortAddresses::Ranges(ranges) => ranges.is_empty() || ranges.iter().any(has_loopback),
    }
}

fn has_loopback(range: &IpNet) -> bool {
    match range {
        IpNet::V4(range) => {
            let loopback = Ipv4Net::new_assert([127, 0, 0, 0].into(), 8);
            range.contains(&loopback) || loopback.contains(range)
        }
        IpNet::V6(range) => range.contains(&Ipv6Net::from(std::net::Ipv6Addr::LOCALHOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_says_whose_sockets_are_served() {
        let config = NodeConfig {
            localhost_node_ports: false,
            ..NodeConfig::new("n")
        };
        let both = SocketFlags::NODE.union(SocketFlags::PODS);
        assert_eq!(socket_flags(SocketLb::All, &config), both);
        assert_eq!(socket_flags(SocketLb::Host, &config), SocketFlags::NODE);
        assert_eq!(socket_flags(SocketLb::Off, &config), SocketFlags::NONE);
    }

    #[test]
    fn localhost_has_node_ports_unless_ranges_leave_it_out() {
        let has = |text: &str| {
            let config = NodeConfig {
                node_port_addresses: text.parse().unwrap(),
                ..NodeConfig::new("n")
            };
            let flags = socket_flags(SocketLb::Host, &config);
            flags.contains(SocketFlags::LOCALHOST_NODE_PORTS)
        };
        for with in [
            "primary",
            "",
            "127.0.0.1/32",
            "0.0.0.0/0",
            "10.0.0.0/8,::1/128",
            "::/0",
        ] {
            assert!(has(with), "{with}");
        }
        for without in ["10.0.0.0/8", "10.0.0.0/8,fd00::/8"] {
            assert!(!has(without), "{without}");
        }
        let config = NodeConfig::new("n");
        assert_eq!(socket_flags(SocketLb::Off, &config), SocketFlags::NONE);
    }
}
