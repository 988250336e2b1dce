//! kube-proxy 1.36: the rules that it would write for any number of Services, and what its control
//! plane needed.
//!
//! Text is as `iptables-save` and `nft list` show it, so that tests can compare it line by line
//! with what the real one had written. That did not serve NodePorts, nor Services without
//! endpoints, nor IPv6 in the iptables mode: these are as its sources and their tests have them
//! (`pkg/proxy/{iptables,nftables}/proxier{,_test}.go` of Kubernetes).

#[cfg(test)]
mod dumps;
mod iptables;
mod loading;
mod names;
mod nftables;
mod peers;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy_common::abi::{Family, Protocol};

use crate::testbed::{NODE_IPV4, NODE_IPV6};

pub use loading::load;
pub use peers::peers;

/// A port of a Service, in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// `namespace/name:port`, or `namespace/name` where the port has no name.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// The Service's address.
    pub cluster_ip: IpAddr,
    /// The port of that address.
    pub port: u16,
    /// The port of nodes' addresses, if there is one; `externalTrafficPolicy` is `Cluster`.
    pub node_port: Option<u16>,
    /// Who serves it.
    pub endpoints: Vec<SocketAddr>,
}

/// How kube-proxy writes its rules, and for which kernel tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Its iptables mode, where `iptables` makes nf_tables rules.
    Iptables,
    /// Its iptables mode, where `iptables` is the old one. The text is the same.
    IptablesLegacy,
    /// Its nftables mode.
    Nftables,
}

/// What rules know of the node that they are for, in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The range of all pods' addresses.
    pub pods: IpNet,
    /// The range of the Services' addresses.
    pub services: IpNet,
    /// The range of this node's pods' addresses.
    pub own_pods: IpNet,
    /// Addresses with NodePorts, in the nftables mode; `None`: all of the node's.
    pub addresses: Option<Vec<IpAddr>>,
    /// Whether the kernel has the counters of `nfacct`: kube-proxy counts with them, in the
    /// iptables mode.
    pub counts: bool,
}

impl Node {
    /// The node of a testbed. Kernels without counters are common, so it has none.
    pub fn of_testbed(family: Family) -> Self {
        let (pods, services, own_pods, address) = match family {
            Family::Ipv4 => (
                v4([10, 244, 0, 0], 16),
                v4([10, 96, 0, 0], 16),
                v4([10, 244, 0, 0], 24),
                NODE_IPV4.into(),
            ),
            Family::Ipv6 => (
                v6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 48),
                v6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 108),
                v6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 64),
                NODE_IPV6.into(),
            ),
        };
        Self {
            pods,
            services,
            own_pods,
            addresses: Some(vec![address]),
            counts: false,
        }
    }

    fn family(&self) -> Family {
        Family::of(self.pods.addr())
    }
}

fn v4(network: [u8; 4], length: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from(network), length).into()
}

fn v6(network: [u16; 8], length: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::from(network), length).into()
}

/// Writes the rules that kube-proxy would have on a node for these ports, all of the node's family.
///
/// kube-proxy goes through its Services in an order of chance, which matters in the iptables mode:
/// each packet of a new connection meets the Services one after the other. Here it is that of
/// `ports`.
///
/// # Errors
/// Those of `out`.
pub fn write_rules(
    flavour: Flavour,
    node: &Node,
    ports: &[Port],
    out: &mut impl Write,
) -> io::Result<()> {
    match flavour {
        Flavour::Iptables | Flavour::IptablesLegacy => iptables::write(node, ports, out),
        Flavour::Nftables => nftables::write(node, ports, out),
    }
}

/// Endpoints of a port, in kube-proxy's order: that of their text.
fn endpoints(port: &Port) -> Vec<SocketAddr> {
    let mut endpoints = port.endpoints.clone();
    endpoints.sort_by_cached_key(SocketAddr::to_string);
    endpoints
}

/// A protocol as rules have it.
fn lower(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
