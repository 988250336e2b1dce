//! Services.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;
use proxy_common::abi::Family;

use super::{Errors, Item, Parsed, Strings, address, each, label, not_empty};
use crate::model::{ObjectName, Service, ServicePort, TrafficPolicy};
use crate::node::GoneBackends;

/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds` (rule R111).
const AFFINITY_SECONDS: u32 = 10_800;
/// The longest affinity that the API allows: a day (rule R111).
const AFFINITY_SECONDS_MAX: u32 = 86_400;
/// The annotation that says what becomes of TCP and SCTP flows to endpoints that are removed.
const GONE_BACKENDS: &str = "beeline.io/gone-backends";

/// What matters of a Service. None of ours are those without cluster IP (rule R1), ExternalName
/// Services (rule R2) and those that belong to another proxy (rule R3).
pub fn service(strings: &mut Strings, name: ObjectName, object: &k8s::Service) -> Parsed<Service> {
    let Some(spec) = &object.spec else {
        return Parsed::NOT_OURS;
    };
    if !is_ours(object, spec) {
        return Parsed::NOT_OURS;
    }
    let mut errors = Errors::default();
    let kind = kind(spec, &mut errors);
    let external_policy = policy(
        "spec.externalTrafficPolicy",
        spec.external_traffic_policy.as_deref(),
        &mut errors,
    );
    let service = Service {
        name,
        cluster_ips: cluster_ips(spec, &mut errors),
        ports: ports(strings, spec, kind, &mut errors),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &mut errors,
        ),
        external_policy,
        external_ips: external_ips(spec, &mut errors),
        load_balancer_ips: load_balancer_ips(object, &mut errors),
        source_ranges: source_ranges(spec, &mut errors),
        affinity_seconds: affinity_seconds(spec, &mut errors),
        gone_backends: gone_backends(object, &mut errors),
        health_check_node_port: health_check_node_port(spec, kind, external_policy, &mut errors),
    };
    Parsed {
        object: Some(service),
        errors: errors.0,
    }
}

fn is_ours(object: &k8s::Service, spec: &k8s::ServiceSpec) -> bool {
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    !matches!(cluster_ip, "" | "None")
        && spec.type_.as_deref() != Some("ExternalName")
        && label(&object.metadata, "service.kubernetes.io/service-proxy-name").is_none()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

fn kind(spec: &k8s::ServiceSpec, errors: &mut Errors) -> Kind {
    match spec.type_.as_deref() {
        None | Some("ClusterIP") => Kind::ClusterIp,
        Some("NodePort") => Kind::NodePort,
        Some("LoadBalancer") => Kind::LoadBalancer,
        Some(other) => {
            errors.add("spec.type", format_args!("unknown type '{other}'"));
            Kind::ClusterIp
        }
    }
}

/// The first cluster IP of each family. Only if `ipFamilies` is empty does the family of
/// `clusterIP` decide (rule R151).
fn cluster_ips(spec: &k8s::ServiceSpec, errors: &mut Errors) -> Vec<IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() {
        let text = spec.cluster_ip.as_deref().unwrap_or_default();
        return errors
            .check("spec.clusterIP", address::address(text))
            .into_iter()
            .collect();
    }
    let addresses = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::with_capacity(families.len().min(2));
    for (i, (family, text)) in families.iter().zip(addresses).enumerate() {
        let family = errors.check(Item("spec.ipFamilies", i), self::family(family));
        let address = errors.check(Item("spec.clusterIPs", i), address::address(text));
        let (Some(family), Some(address)) = (family, address) else {
            continue;
        };
        if Family::of(address) != family {
            let message = format_args!("'{text}' is not an {family} address");
            errors.add(Item("spec.clusterIPs", i), message);
        } else if found.iter().any(|other| Family::of(*other) == family) {
            errors.add(
                Item("spec.clusterIPs", i),
                format_args!("a second {family} address"),
            );
        } else {
            found.push(address);
        }
    }
    for i in addresses.len()..families.len() {
        errors.add(Item("spec.clusterIPs", i), "missing");
    }
    found
}

fn family(text: &str) -> Result<Family, String> {
    match text {
        "IPv4" => Ok(Family::Ipv4),
        "IPv6" => Ok(Family::Ipv6),
        other => Err(format!("unknown family '{other}'")),
    }
}

fn ports(
    strings: &mut Strings,
    spec: &k8s::ServiceSpec,
    kind: Kind,
    errors: &mut Errors,
) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    // Name and protocol identify a port (rule R5), number and protocol its frontends (R10).
    let mut names = HashSet::new();
    let mut numbers = HashSet::new();
    for (i, entry) in each(spec.ports.as_ref()) {
        let item = Item("spec.ports", i);
        let Some(port) = service_port(strings, item, entry, kind, errors) else {
            continue;
        };
        let protocol = port.protocol;
        if !names.insert((protocol, Arc::clone(&port.name))) {
            let message = format_args!("a second {protocol} port '{}'", port.name);
            errors.add(format_args!("{item}.name"), message);
        } else if !numbers.insert((protocol, port.port)) {
            let message = format_args!("a second port {}/{protocol}", port.port);
            errors.add(format_args!("{item}.port"), message);
        } else {
            ports.push(port);
        }
    }
    ports
}

fn service_port(
    strings: &mut Strings,
    item: Item,
    entry: &k8s::ServicePort,
    kind: Kind,
    errors: &mut Errors,
) -> Option<ServicePort> {
    let protocol = super::protocol(entry.protocol.as_deref());
    let protocol = errors.check(format_args!("{item}.protocol"), protocol);
    let port = errors.check(format_args!("{item}.port"), super::port(entry.port));
    // A number left over in a Service of another type means nothing (rule R89).
    let node_port = entry
        .node_port
        .filter(|&port| port != 0 && kind != Kind::ClusterIp);
    let node_port =
        node_port.and_then(|port| errors.check(format_args!("{item}.nodePort"), super::port(port)));
    let name = strings.share(entry.name.as_deref().unwrap_or_default());
    Some(ServicePort {
        name,
        protocol: protocol?,
        port: port?,
        node_port,
    })
}

fn policy(path: &str, text: Option<&str>, errors: &mut Errors) -> TrafficPolicy {
    match not_empty(text) {
        None | Some("Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            errors.add(path, format_args!("unknown policy '{other}'"));
            TrafficPolicy::Cluster
        }
    }
}

fn external_ips(spec: &k8s::ServiceSpec, errors: &mut Errors) -> Vec<IpAddr> {
    each(spec.external_ips.as_ref())
        .filter_map(|(i, text)| errors.check(Item("spec.externalIPs", i), address::address(text)))
        .collect()
}

/// The addresses in mode VIP; host names and mode Proxy are none of ours (rules R100, R101).
fn load_balancer_ips(object: &k8s::Service, errors: &mut Errors) -> Vec<IpAddr> {
    let status = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let mut found = Vec::new();
    for (i, entry) in each(status.and_then(|status| status.ingress.as_ref())) {
        let item = Item("status.loadBalancer.ingress", i);
        let Some(text) = not_empty(entry.ip.as_deref()) else {
            continue;
        };
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => {
                found.extend(errors.check(format_args!("{item}.ip"), address::address(text)));
            }
            Some("Proxy") => {}
            Some(other) => {
                errors.add(
                    format_args!("{item}.ipMode"),
                    format_args!("unknown mode '{other}'"),
                );
            }
        }
    }
    found
}

fn source_ranges(spec: &k8s::ServiceSpec, errors: &mut Errors) -> Vec<IpNet> {
    each(spec.load_balancer_source_ranges.as_ref())
        .filter_map(|(i, text)| {
            errors.check(
                Item("spec.loadBalancerSourceRanges", i),
                address::range(text),
            )
        })
        .collect()
}

fn affinity_seconds(spec: &k8s::ServiceSpec, errors: &mut Errors) -> Option<u32> {
    match not_empty(spec.session_affinity.as_deref()) {
        None | Some("None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            errors.add(
                "spec.sessionAffinity",
                format_args!("unknown affinity '{other}'"),
            );
            return None;
        }
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|all| all.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
        return Some(AFFINITY_SECONDS);
    };
    match u32::try_from(seconds) {
        Ok(seconds) if (1..=AFFINITY_SECONDS_MAX).contains(&seconds) => Some(seconds),
        Ok(_) | Err(_) => {
            let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            errors.add(
                path,
                format_args!("{seconds} is not within 1 to {AFFINITY_SECONDS_MAX}"),
            );
            Some(AFFINITY_SECONDS)
        }
    }
}

fn gone_backends(object: &k8s::Service, errors: &mut Errors) -> Option<GoneBackends> {
    let annotations = object.metadata.annotations.as_ref()?;
    let word = not_empty(annotations.get(GONE_BACKENDS).map(String::as_str))?;
    let known = [GoneBackends::Reset, GoneBackends::Keep];
    let value = known.into_iter().find(|value| value.name() == word);
    if value.is_none() {
        errors.add(
            format_args!("metadata.annotations['{GONE_BACKENDS}']"),
            format_args!("neither 'reset' nor 'keep', but '{word}'"),
        );
    }
    value
}

/// Only a LoadBalancer with external policy Local is asked for its health (rule R120).
fn health_check_node_port(
    spec: &k8s::ServiceSpec,
    kind: Kind,
    external_policy: TrafficPolicy,
    errors: &mut Errors,
) -> Option<u16> {
    if kind != Kind::LoadBalancer || external_policy != TrafficPolicy::Local {
        return None;
    }
    let number = spec.health_check_node_port.filter(|&port| port != 0)?;
    errors.check("spec.healthCheckNodePort", super::port(number))
}
