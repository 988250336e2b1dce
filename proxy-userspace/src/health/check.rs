//! What a Service's health check counts. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::abi::Family;

use super::HealthCheck;
use crate::model::{Endpoint, EndpointSlice, Service};

/// The health check that a Service asks for on the node of this name, if any (rules R120 to R126).
pub fn check(service: &Service, slices: &[EndpointSlice], node: &str) -> Option<HealthCheck> {
    let port = service.health_check_node_port?;
    // Without a cluster IP of a family, nothing of it is there (rule R6).
    let families: BTreeSet<_> = service
        .cluster_ips
        .iter()
        .map(|&ip| Family::of(ip))
        .collect();
    let local = families
        .into_iter()
        .map(|family| (family, n_local(slices, family, node)))
        .collect();
    Some(HealthCheck { port, local })
}

/// Distinct addresses of local ready endpoints, over all ports of all slices (rules R124, R126).
fn n_local(slices: &[EndpointSlice], family: Family, node: &str) -> u32 {
    let counted = entries(slices, family).into_iter();
    let local = counted.filter(|it| it.ready && it.node.as_deref() == Some(node));
    let addresses: BTreeSet<IpAddr> = local.map(|it| it.address).collect();
    u32::try_from(addresses.len()).unwrap_or(u32::MAX)
}

/// Each address and port once; an entry that is not terminating wins (rule R23).
fn entries(slices: &[EndpointSlice], family: Family) -> Vec<&Endpoint> {
    let mut entries: BTreeMap<_, &Endpoint> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for endpoint in &slice.endpoints {
            for port in &slice.ports {
                let key = (endpoint.address, &port.name, port.protocol, port.port);
                let entry = entries.entry(key).or_insert(endpoint);
                if rank(endpoint) < rank(entry) {
                    *entry = endpoint;
                }
            }
        }
    }
    entries.into_values().collect()
}

/// Smaller is better. Only the first criterion is a rule; the second makes the order of the slices
/// indifferent.
fn rank(endpoint: &Endpoint) -> (bool, bool) {
    (endpoint.terminating, !endpoint.ready)
}
