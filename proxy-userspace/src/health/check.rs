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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, SlicePort, TrafficPolicy};
    use proxy_common::abi::Protocol;

    const HERE: &str = "test-node";

    fn object(name: &str) -> ObjectName {
        ObjectName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn service(ips: &[&str], health_check_node_port: Option<u16>) -> Service {
        Service {
            name: object("web"),
            cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ports: vec![],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Local,
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            affinity_seconds: None,
            gone_backends: None,
            health_check_node_port,
        }
    }

    /// `flags`: R(eady), S(erving), T(erminating).
    fn endpoint(address: &str, flags: &str, node: &str) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            ready: flags.contains('R'),
            serving: flags.contains('S'),
            terminating: flags.contains('T'),
            node: Some(node.into()),
            hints: None,
        }
    }

    fn slice(ports: &[(&str, u16)], endpoints: Vec<Endpoint>) -> EndpointSlice {
        let port = |&(name, port): &(&str, u16)| SlicePort {
            name: name.into(),
            protocol: Protocol::Tcp,
            port,
        };
        EndpointSlice {
            name: object("web-1"),
            service: object("web"),
            family: Family::of(endpoints[0].address),
            ports: ports.iter().map(port).collect(),
            endpoints,
            changed_at: Default::default(),
        }
    }

    fn v4_count(slices: &[EndpointSlice]) -> u32 {
        let check = check(&service(&["172.30.0.42"], Some(30100)), slices, HERE).unwrap();
        assert_eq!(check.port, 30100);
        check.local[&Family::Ipv4]
    }

    const TWO_PORTS: &[(&str, u16)] = &[("a", 80), ("b", 443)];

    #[test]
    fn r120_only_a_service_that_asks_for_it_has_a_check() {
        let slices = [slice(TWO_PORTS, vec![endpoint("10.0.1.1", "RS", HERE)])];
        assert_eq!(check(&service(&["172.30.0.42"], None), &slices, HERE), None);
    }

    #[test]
    fn r124_distinct_local_ready_addresses_count() {
        let endpoints = vec![
            endpoint("10.0.1.1", "RS", HERE),
            endpoint("10.0.1.2", "RS", HERE),
            endpoint("10.0.1.3", "RS", HERE),
            endpoint("10.0.1.4", "", HERE),
            endpoint("10.0.2.1", "RS", "remote"),
        ];
        let slices = [slice(TWO_PORTS, endpoints)];
        assert_eq!(v4_count(&slices), 3);
        let twice = [slices[0].clone(), slices[0].clone()];
        assert_eq!(v4_count(&twice), 3);
    }

    #[test]
    fn r124_terminating_ones_do_not_count_though_they_serve() {
        let endpoints = vec![
            endpoint("10.0.1.1", "S", HERE),
            endpoint("10.0.1.2", "ST", HERE),
            endpoint("10.0.1.4", "T", HERE),
            endpoint("10.0.2.1", "RS", "remote"),
        ];
        assert_eq!(v4_count(&[slice(TWO_PORTS, endpoints)]), 0);
    }

    #[test]
    fn r23_an_old_entry_for_the_same_address_does_not_count() {
        let old = slice(TWO_PORTS, vec![endpoint("10.0.1.1", "RST", HERE)]);
        let new = slice(TWO_PORTS, vec![endpoint("10.0.1.1", "S", HERE)]);
        assert_eq!(v4_count(&[old.clone(), new.clone()]), 0);
        assert_eq!(v4_count(&[new, old.clone()]), 0);
        assert_eq!(v4_count(&[old]), 1);
    }

    #[test]
    fn r14_a_slice_without_ports_yields_nothing() {
        let endpoints = vec![endpoint("10.0.1.1", "RS", HERE)];
        assert_eq!(v4_count(&[slice(&[], endpoints)]), 0);
        assert_eq!(v4_count(&[]), 0);
    }

    #[test]
    fn r126_the_families_of_the_service_count_apart() {
        let slices = [
            slice(TWO_PORTS, vec![endpoint("10.0.1.1", "RS", HERE)]),
            slice(TWO_PORTS, vec![endpoint("fd00:10::1", "RS", "remote")]),
        ];
        let both = service(&["172.30.0.42", "fd00:10:96::42"], Some(30100));
        let counts = check(&both, &slices, HERE).unwrap().local;
        assert_eq!(
            counts,
            BTreeMap::from([(Family::Ipv4, 1), (Family::Ipv6, 0)])
        );
        let single = service(&["fd00:10:96::42"], Some(30100));
        let counts = check(&single, &slices, HERE).unwrap().local;
        assert_eq!(counts, BTreeMap::from([(Family::Ipv6, 0)]));
    }
}
