//! ServiceCIDRs.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as k8s;

use super::{Errors, Item, Parsed, address, each};

/// The ranges of a ServiceCIDR (rule R186). One that is being deleted stays until it is gone: it
/// waits for the Services that have addresses of it.
pub fn service_cidr(object: &k8s::ServiceCIDR) -> Parsed<Vec<IpNet>> {
    let mut errors = Errors::default();
    let spec = object.spec.as_ref();
    let ranges = each(spec.and_then(|spec| spec.cidrs.as_ref()))
        .filter_map(|(i, text)| errors.check(Item("spec.cidrs", i), address::range(text)))
        .collect();
    Parsed {
        object: Some(ranges),
        errors: errors.0,
    }
}
