//! What is allowed and seldom meant (rule R189).

use ipnet::IpNet;

use super::Setting;
use crate::node;

/// Warnings about what is in force.
pub(super) fn all(settings: &[Setting]) -> Vec<String> {
    let value = |name: &str| {
        let setting = settings.iter().find(|it| it.setting == name);
        setting.and_then(|it| it.value.as_deref())
    };
    let node_ports = value("nodeport-addresses").unwrap_or_default();
    let cluster = value("cluster-cidr").unwrap_or_default();
    let mut warnings = Vec::new();
    warnings.extend(open_node_ports(node_ports, cluster));
    if value("detect-local-mode") == Some("ClusterCIDR") && cluster.is_empty() {
        let message = "detect-local-mode is ClusterCIDR, and there is no cluster-cidr: no client \
                       is taken for a pod of this node";
        warnings.push(message.to_owned());
    }
    warnings
}

/// Whether NodePorts are open at addresses that were hardly meant.
fn open_node_ports(node_ports: &str, cluster: &str) -> Option<String> {
    if node_ports.trim().is_empty() {
        let message = "nodeport-addresses is unset: NodePorts are accepted at all addresses of \
                       this node; consider `primary`";
        return Some(message.to_owned());
    }
    let ranges = node::networks(node_ports).ok()?;
    let cluster = node::networks(cluster).unwrap_or_default();
    let has = |ranges: &[IpNet], is_v6| ranges.iter().any(|range| is_v6 == is_ipv6(range));
    let families = [(false, "IPv4"), (true, "IPv6")];
    let open = families
        .into_iter()
        .find(|(is_v6, _)| has(&cluster, *is_v6) && !has(&ranges, *is_v6));
    open.map(|(_, family)| {
        format!(
            "nodeport-addresses has no {family} range, and the cluster has {family}: NodePorts \
             are accepted at all {family} addresses of this node"
        )
    })
}

const fn is_ipv6(range: &IpNet) -> bool {
    matches!(range, IpNet::V6(_))
}
