//! Which frontends lead to which backends: all that kube-proxy's rules say about objects. What they
//! say about packets is in the datapath.
//!
//! [`compile`] is a pure function of a Service, its EndpointSlices and what this node is. It
//! knows nothing of maps, ids or what was in force before; [`crate::sync`] does.

mod choose;
mod endpoints;
mod frontends;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::abi::{
    Addr, BackendFlags, BackendState, Family, FrontendFlags, FrontendKey, Port, Protocol,
};

use crate::model::{EndpointSlice, Service, ServicePort};
use crate::node::GoneBackends;

/// What of this node decides about endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFacts {
    /// The name that `nodeName` of local endpoints equals (rule R25).
    pub name: Arc<str>,
    /// The zone that hints are compared with (rules R46, R48).
    pub zone: Option<Arc<str>>,
    /// Its primary address of each family, at most two (rule R105).
    pub primary: Vec<IpAddr>,
    /// Whether hints for nodes are followed (rule R45).
    pub same_node_hints: bool,
}

/// A service port in one family: frontends that share one set of backends (rule R5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPort {
    /// The port's name, "" if it has none.
    pub name: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
    /// Session affinity time-out in seconds; 0: no affinity (rule R111).
    pub affinity_seconds: u32,
    /// What becomes of TCP and SCTP flows to a backend that is removed; `None`: what is usual on
    /// the node.
    pub gone_backends: Option<GoneBackends>,
    /// From where connections to frontends with [`FrontendFlags::SOURCE_RANGES`] are taken, in
    /// order; empty if there are none such (rules R102 to R105).
    pub source_ranges: Vec<IpNet>,
    /// Where clients find the port.
    pub frontends: Vec<DesiredFrontend>,
    /// Every endpoint that may have flows. Those that get new ones come first, in the order of
    /// the block that [`proxy_common::abi::Frontend`] describes.
    pub backends: Vec<DesiredBackend>,
    /// Size of the local set (rule R32), the head of `backends`.
    pub n_local: u32,
    /// Index of the cluster set's first member in `backends`.
    pub cluster_offset: u32,
    /// Size of the cluster set (rule R31).
    pub n_cluster: u32,
}

/// One address and port that clients dial, and what is special about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredFrontend {
    /// Address, port and protocol.
    pub key: FrontendKey,
    /// The policy that governs it, and whether it rejects.
    pub flags: FrontendFlags,
}

/// One endpoint of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    /// Its address.
    pub addr: Addr,
    /// The number to send to (rule R11).
    pub port: Port,
    /// What it is good for.
    pub state: BackendState,
    /// Whether it is on this node (rule R25).
    pub is_local: bool,
}

impl DesiredPort {
    /// How many of `backends` are in a set, the others only keep the flows they have.
    pub fn n_slots(&self) -> u32 {
        self.n_local.max(self.cluster_offset + self.n_cluster)
    }

    /// What the maps are to say of the backend at this index.
    pub fn backend_flags(&self, index: usize) -> BackendFlags {
        let cluster_set = self.cluster_offset..self.cluster_offset + self.n_cluster;
        let position = u32::try_from(index).unwrap_or(u32::MAX);
        let flags = [
            (
                self.backends.get(index).is_some_and(|it| it.is_local),
                BackendFlags::IS_LOCAL,
            ),
            (position < self.n_local, BackendFlags::IN_LOCAL_SET),
            (
                cluster_set.contains(&position),
                BackendFlags::IN_CLUSTER_SET,
            ),
            (
                self.gone_backends == Some(GoneBackends::Reset),
                BackendFlags::RESET_WHEN_GONE,
            ),
            (
                self.gone_backends == Some(GoneBackends::Keep),
                BackendFlags::KEEP_WHEN_GONE,
            ),
        ];
        let set = flags.into_iter().filter(|(is_set, _)| *is_set);
        set.fold(BackendFlags::NONE, |all, (_, flag)| all.union(flag))
    }
}

/// Computes what the maps should say about one Service: an entry for each service port and family.
///
/// The order of `slices` decides nothing but which of two equally good entries for the same
/// address and port counts (rule R23).
pub fn compile(service: &Service, slices: &[EndpointSlice], node: &NodeFacts) -> Vec<DesiredPort> {
    let ports = distinct_ports(service);
    Family::ALL
        .into_iter()
        .filter_map(|family| Some((family, cluster_ip(service, family)?)))
        .flat_map(|(family, ip)| ports.iter().map(move |port| (family, ip, *port)))
        .map(|(family, ip, port)| compile_port(service, port, (family, ip), slices, node))
        .collect()
}

/// Without a cluster IP of its family nothing of that family is served (rules R1, R6).
fn cluster_ip(service: &Service, family: Family) -> Option<IpAddr> {
    service
        .cluster_ips
        .iter()
        .copied()
        .find(|&ip| Addr::from(ip).family() == family)
}

/// The ports of a Service; of two with the same name or number the first.
///
/// The API server refuses such Services, but a manifest file can hold one.
fn distinct_ports(service: &Service) -> Vec<&ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let (name, number) = ((port.protocol, &port.name), (port.protocol, port.port));
        if names.contains(&name) || numbers.contains(&number) {
            continue;
        }
        names.insert(name);
        numbers.insert(number);
        ports.push(port);
    }
    ports
}

fn compile_port(
    service: &Service,
    port: &ServicePort,
    (family, cluster_ip): (Family, IpAddr),
    slices: &[EndpointSlice],
    node: &NodeFacts,
) -> DesiredPort {
    let candidates = endpoints::collect(port, family, slices, node);
    let choice = choose::choose(candidates, node);
    // Rule R35: the local set is part of what the cluster set could fall back on, so an empty
    // cluster set says that there is no usable endpoint anywhere.
    let has_endpoints = choice.n_cluster > 0;
    let ranges = frontends::source_ranges(service, family, node);
    let frontends =
        frontends::of_port(service, port, cluster_ip, has_endpoints, !ranges.is_empty());
    let is_guarded = |it: &DesiredFrontend| it.flags.contains(FrontendFlags::SOURCE_RANGES);
    // Not so if the only VIPs are cluster IPs as well.
    let source_ranges = if frontends.iter().any(is_guarded) {
        ranges
    } else {
        vec![]
    };
    DesiredPort {
        name: Arc::clone(&port.name),
        protocol: port.protocol,
        family,
        affinity_seconds: service.affinity_seconds.unwrap_or(0),
        gone_backends: service.gone_backends,
        frontends,
        source_ranges,
        backends: choice.backends,
        n_local: choice.n_local,
        cluster_offset: choice.cluster_offset,
        n_cluster: choice.n_cluster,
    }
}
