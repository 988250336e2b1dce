//! Nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;

use super::{Errors, Item, Parsed, Strings, address, each, label, not_empty};
use crate::model::{Node, ObjectName};

/// What matters of a Node (rules R46, R48, R51, R134, R181).
pub fn node(strings: &mut Strings, name: ObjectName, object: &k8s::Node) -> Parsed<Node> {
    let mut errors = Errors::default();
    let zone = not_empty(label(&object.metadata, "topology.kubernetes.io/zone"));
    let node = Node {
        name: name.name,
        zone: zone.map(|zone| strings.share(zone)),
        addresses: addresses(object, &mut errors),
        pod_cidrs: pod_cidrs(object, &mut errors),
        to_be_deleted: is_to_be_deleted(object),
    };
    Parsed {
        object: Some(node),
        errors: errors.0,
    }
}

/// InternalIP before ExternalIP; host names and other types are none (rule R181).
fn addresses(object: &k8s::Node, errors: &mut Errors) -> Vec<IpAddr> {
    let all = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    let mut internal = Vec::new();
    let mut external = Vec::new();
    for (i, entry) in each(all) {
        let addresses = match entry.type_.as_str() {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut external,
            _ => continue,
        };
        let path = format_args!("{}.address", Item("status.addresses", i)).to_string();
        addresses.extend(errors.check(path, address::address(&entry.address)));
    }
    internal.append(&mut external);
    internal
}

/// Whether the cluster autoscaler or somebody else has marked the Node for deletion (rule R134).
fn is_to_be_deleted(object: &k8s::Node) -> bool {
    let spec = object.spec.as_ref();
    let mut taints = each(spec.and_then(|spec| spec.taints.as_ref()));
    object.metadata.deletion_timestamp.is_some()
        || taints.any(|(_, taint)| taint.key == "ToBeDeletedByClusterAutoscaler")
}

fn pod_cidrs(object: &k8s::Node, errors: &mut Errors) -> Vec<IpNet> {
    let Some(spec) = &object.spec else {
        return Vec::new();
    };
    let mut ranges = Vec::new();
    for (i, text) in each(spec.pod_cidrs.as_ref()) {
        ranges.extend(errors.check(Item("spec.podCIDRs", i), address::range(text)));
    }
    // Objects from before dual stack have the one field only.
    if spec.pod_cidrs.is_none()
        && let Some(text) = not_empty(spec.pod_cidr.as_deref())
    {
        ranges.extend(errors.check("spec.podCIDR", address::range(text)));
    }
    ranges
}
