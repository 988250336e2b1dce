//! Rules of kube-proxy.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use proxy_common::abi::{Family, Protocol};
use xtask::testbed::Namespace;

/// A port of a Service.
#[derive(Clone, Debug)]
pub(super) struct Port {
    /// As `namespace/service:port`.
    pub(super) name: String,
    /// Its protocol.
    pub(super) protocol: Protocol,
    /// The Service's address.
    pub(super) cluster_ip: IpAddr,
    /// Its number there.
    pub(super) port: u16,
    /// Its number at nodes.
    pub(super) node_port: Option<u16>,
    /// Who is behind it.
    pub(super) endpoints: Vec<SocketAddr>,
}

/// A mode of kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flavour {
    /// `iptables-nft`.
    Iptables,
    /// `iptables-legacy`.
    IptablesLegacy,
    /// nftables.
    Nftables,
}

/// Loads the rules for these ports into a namespace; how long the command took.
pub(super) fn load(
    place: &Namespace,
    flavour: Flavour,
    family: Family,
    ports: &[Port],
) -> Result<Duration> {
    bail!(
        "{flavour:?} rules of {} {family} ports for {}: there is no loader: {ports:?}",
        ports.len(),
        place.name()
    );
}
