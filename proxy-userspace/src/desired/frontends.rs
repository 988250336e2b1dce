//! The frontends of a service port, and whom they serve (rules R52 to R60, R85 to R108).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::abi::{Addr, Family, FrontendFlags, FrontendKey, Port};

use super::{DesiredFrontend, NodeFacts};
use crate::model::{Service, ServicePort, TrafficPolicy};

/// All frontends of a port in the family of its cluster IP, each key once. An address that a
/// Service has in several roles is first of all its cluster IP, then a VIP, so that its source
/// ranges hold (rule R104).
pub(super) fn of_port(
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    has_endpoints: bool,
    has_source_ranges: bool,
) -> Vec<DesiredFrontend> {
    let family = Addr::from(cluster_ip).family();
    // Rules R65, R71: the same for every frontend.
    let fate = flag(!has_endpoints, FrontendFlags::REJECT);
    let internal = policy(service.internal_policy).union(fate);
    let external = policy(service.external_policy)
        .union(fate)
        .union(FrontendFlags::EXTERNAL);
    let guarded = external.union(flag(has_source_ranges, FrontendFlags::SOURCE_RANGES));
    let exact = |ip: IpAddr, flags| DesiredFrontend {
        key: FrontendKey::exact(ip.into(), Port::new(port.port), port.protocol),
        flags,
    };
    let vips = of_family(&service.load_balancer_ips, family).map(|ip| exact(ip, guarded));
    let external_ips = of_family(&service.external_ips, family).map(|ip| exact(ip, external));
    let node_port = port.node_port.map(|number| DesiredFrontend {
        key: FrontendKey::node_port(family, Port::new(number), port.protocol),
        flags: external,
    });
    let mut seen = BTreeSet::new();
    std::iter::once(exact(cluster_ip, internal))
        .chain(vips)
        .chain(external_ips)
        .chain(node_port)
        .filter(|frontend| seen.insert(frontend.key))
        .collect()
}

/// From where connections to the VIPs of this family are taken, in order; empty: from everywhere,
/// or there is no VIP (rules R102, R103).
///
/// If this node's primary address is within, the VIPs themselves are, too (rule R105).
pub(super) fn source_ranges(service: &Service, family: Family, node: &NodeFacts) -> Vec<IpNet> {
    let mut vips = of_family(&service.load_balancer_ips, family).peekable();
    let given = service.source_ranges.iter().map(IpNet::trunc);
    let mut ranges: BTreeSet<_> = given
        .filter(|range| Addr::from(range.addr()).family() == family)
        .collect();
    if vips.peek().is_none() || ranges.is_empty() {
        return vec![];
    }
    let is_within = |ip: &IpAddr| ranges.iter().any(|range| range.contains(ip));
    if node.primary.iter().any(is_within) {
        ranges.extend(vips.map(IpNet::from));
    }
    ranges.into_iter().collect()
}

/// Addresses of the other family are left to the other cluster IP (rule R152).
fn of_family(ips: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    ips.iter()
        .copied()
        .filter(move |&ip| Addr::from(ip).family() == family)
}

fn policy(policy: TrafficPolicy) -> FrontendFlags {
    flag(policy == TrafficPolicy::Local, FrontendFlags::LOCAL_ONLY)
}

const fn flag(is_set: bool, flag: FrontendFlags) -> FrontendFlags {
    if is_set { flag } else { FrontendFlags::NONE }
}
