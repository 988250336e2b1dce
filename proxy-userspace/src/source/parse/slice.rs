//! EndpointSlices.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as k8s;
use proxy_common::abi::Family;

use super::{Errors, FieldError, Item, Parsed, Strings, address, each, label, not_empty};
use crate::model::{ChangedAt, Endpoint, EndpointSlice, Hints, ObjectName, SlicePort};

/// What matters of an EndpointSlice. None of ours are those without the label of a Service
/// (rule R20), those of headless Services (rule R4) and those of host names (rule R21).
pub fn endpoint_slice(
    strings: &mut Strings,
    name: ObjectName,
    object: &k8s::EndpointSlice,
) -> Parsed<EndpointSlice> {
    let Some(service) = not_empty(label(&object.metadata, "kubernetes.io/service-name")) else {
        return Parsed::NOT_OURS;
    };
    if label(&object.metadata, "service.kubernetes.io/headless").is_some() {
        return Parsed::NOT_OURS;
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::Ipv4,
        "IPv6" => Family::Ipv6,
        "FQDN" => return Parsed::NOT_OURS,
        "" => return Parsed::malformed(FieldError::new("addressType", "missing")),
        other => {
            let message = format!("unknown address type '{other}'");
            return Parsed::malformed(FieldError::new("addressType", message));
        }
    };
    let mut errors = Errors::default();
    let namespace = Arc::clone(&name.namespace);
    let slice = EndpointSlice {
        name,
        service: ObjectName {
            namespace,
            name: strings.share(service),
        },
        family,
        ports: ports(strings, object, &mut errors),
        endpoints: endpoints(strings, object, family, &mut errors),
        changed_at: changed_at(object),
    };
    Parsed {
        object: Some(slice),
        errors: errors.0,
    }
}

/// By the annotation of the endpoint controllers. One that can't be read counts as none: it is only
/// there to be measured by (rule R175).
fn changed_at(object: &k8s::EndpointSlice) -> ChangedAt {
    let annotations = object.metadata.annotations.as_ref();
    let text =
        annotations.and_then(|all| all.get("endpoints.kubernetes.io/last-change-trigger-time"));
    let time = text.and_then(|text| text.parse::<Timestamp>().ok());
    ChangedAt(time.and_then(|time| Duration::try_from(time.as_duration()).ok()))
}

/// Ports without name or number are skipped (rule R14).
fn ports(
    strings: &mut Strings,
    object: &k8s::EndpointSlice,
    errors: &mut Errors,
) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (i, entry) in each(object.ports.as_ref()) {
        let (Some(name), Some(number)) = (&entry.name, entry.port.filter(|&port| port != 0)) else {
            continue;
        };
        let item = Item("ports", i);
        let number = errors.check(format_args!("{item}.port"), super::port(number));
        let protocol = super::protocol(entry.protocol.as_deref());
        let protocol = errors.check(format_args!("{item}.protocol"), protocol);
        if let (Some(port), Some(protocol)) = (number, protocol) {
            ports.push(SlicePort {
                name: strings.share(name),
                protocol,
                port,
            });
        }
    }
    ports
}

fn endpoints(
    strings: &mut Strings,
    object: &k8s::EndpointSlice,
    family: Family,
    errors: &mut Errors,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (i, entry) in object.endpoints.iter().enumerate() {
        let path = format_args!("{}.addresses[0]", Item("endpoints", i)).to_string();
        // Only the first address is used (rule R26).
        let address = entry.addresses.first().ok_or_else(|| "missing".to_owned());
        let address = address.and_then(|text| {
            let address = address::address(text)?;
            if Family::of(address) == family {
                Ok(address)
            } else {
                Err(format!("'{text}' is not an {family} address"))
            }
        });
        if let Some(address) = errors.check(path, address) {
            endpoints.push(endpoint(strings, address, entry));
        }
    }
    endpoints
}

fn endpoint(strings: &mut Strings, address: std::net::IpAddr, entry: &k8s::Endpoint) -> Endpoint {
    let conditions = entry.conditions.as_ref();
    Endpoint {
        address,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: not_empty(entry.node_name.as_deref()).map(|node| strings.share(node)),
        hints: entry.hints.as_ref().and_then(|entry| hints(strings, entry)),
    }
}

fn hints(strings: &mut Strings, entry: &k8s::EndpointHints) -> Option<Box<Hints>> {
    let zones = each(entry.for_zones.as_ref());
    let nodes = each(entry.for_nodes.as_ref());
    let hints = Hints {
        zones: zones.map(|(_, zone)| strings.share(&zone.name)).collect(),
        nodes: nodes.map(|(_, node)| strings.share(&node.name)).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}
