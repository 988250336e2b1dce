//! Services for a benchmark: one that is dialled, and as many others as wanted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::{NODE_NAME, REMOTE_NODE_NAME};

/// Endpoints of each Service.
pub(super) const ENDPOINTS: u8 = 4;
/// The last number of the address of the first pod behind the Service that is dialled.
pub(super) const FIRST_POD: u8 = 11;
/// The namespace of all Services.
const NAMESPACE: &str = "bench";
/// The name of the one that is dialled.
const DIALLED: &str = "dialled";

/// A port of the Service that is dialled.
#[derive(Clone, Copy)]
pub(super) struct ServicePort {
    name: &'static str,
    protocol: &'static str,
    /// The Service's port.
    pub(super) port: u16,
    /// The pods' port.
    pub(super) target: u16,
}

/// Answers one byte to one byte, over TCP.
pub(super) const STREAM: ServicePort = ServicePort {
    name: "stream",
    protocol: "TCP",
    port: 80,
    target: 8080,
};
/// Sends datagrams back.
pub(super) const ECHO: ServicePort = ServicePort {
    name: "echo",
    protocol: "UDP",
    port: 53,
    target: 5353,
};
/// Takes datagrams and does nothing.
pub(super) const SINK: ServicePort = ServicePort {
    name: "sink",
    protocol: "UDP",
    port: 9,
    target: 9009,
};

/// The address of the Service that is dialled.
pub(super) fn dialled(family: Family) -> IpAddr {
    service_address(family, 80)
}

/// The name of its TCP port, as `beeline services` has it.
pub(super) fn name_of_stream() -> String {
    format!("{NAMESPACE}/{DIALLED}:{}", STREAM.name)
}

/// The manifests of `count` Services, one of which is dialled: one JSON document a line.
pub(super) fn text(family: Family, count: u32) -> String {
    let mut text = String::new();
    for object in dialled_service(family)
        .into_iter()
        .chain((1..count).flat_map(|number| other_service(family, number)))
    {
        text.push_str(&object.to_string());
        text.push('\n');
    }
    text
}

/// Frontends of UDP Services that nobody is behind, among those of [`text`] for `count`; and for
/// each an address of one of its endpoints, so that both can be dialled alike.
pub(super) fn others(family: Family, count: u32) -> Vec<(SocketAddr, SocketAddr)> {
    (1..count)
        .filter(|&number| is_udp(number))
        .map(|number| {
            let endpoint =
                endpoint_address(family, number, (number / 2 % u32::from(ENDPOINTS)) as u8);
            (
                SocketAddr::new(other_address(family, number), SINK.port),
                SocketAddr::new(endpoint, SINK.target),
            )
        })
        .collect()
}

fn dialled_service(family: Family) -> [Value; 2] {
    let pods = (0..ENDPOINTS).map(|at| pod_address(family, FIRST_POD + at));
    objects(
        family,
        DIALLED,
        dialled(family),
        &[STREAM, ECHO, SINK],
        pods.map(|pod| (pod, NODE_NAME)),
    )
}

/// A Service of the rest of the cluster: every second one is a UDP Service.
fn other_service(family: Family, number: u32) -> [Value; 2] {
    let port = if is_udp(number) { SINK } else { STREAM };
    let endpoints = (0..ENDPOINTS).map(|at| endpoint_address(family, number, at));
    objects(
        family,
        &format!("other-{number}"),
        other_address(family, number),
        &[port],
        endpoints.map(|endpoint| (endpoint, REMOTE_NODE_NAME)),
    )
}

fn is_udp(number: u32) -> bool {
    number.is_multiple_of(2)
}

/// A Service and its EndpointSlice.
fn objects(
    family: Family,
    name: &str,
    address: IpAddr,
    ports: &[ServicePort],
    endpoints: impl Iterator<Item = (IpAddr, &'static str)>,
) -> [Value; 2] {
    let family = match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    };
    let service_ports: Vec<_> = ports
        .iter()
        .map(|port| {
            json!({"name": port.name, "protocol": port.protocol,
                   "port": port.port, "targetPort": port.target})
        })
        .collect();
    let slice_ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.target}))
        .collect();
    let endpoints: Vec<_> = endpoints
        .map(|(address, node)| {
            json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
        })
        .collect();
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ipFamilies": [family],
                 "ports": service_ports},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": NAMESPACE, "name": format!("{name}-1"),
                     "labels": {"kubernetes.io/service-name": name}},
        "addressType": family,
        "ports": slice_ports,
        "endpoints": endpoints,
    });
    [service, slice]
}

/// An address of the testbed's pods.
fn pod_address(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 244, 0, number).into(),
        // Reads like the IPv4 one, though it is hexadecimal.
        Family::Ipv6 => {
            let group = u16::from(number / 10) << 4 | u16::from(number % 10);
            Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, group).into()
        }
    }
}

fn other_address(family: Family, number: u32) -> IpAddr {
    service_address(family, 256 + number)
}

fn service_address(family: Family, number: u32) -> IpAddr {
    of_range(family, Ipv4Addr::new(10, 96, 0, 0), 0x96, number)
}

/// An address of an endpoint elsewhere, where there is none.
fn endpoint_address(family: Family, service: u32, at: u8) -> IpAddr {
    let number = service * u32::from(ENDPOINTS) + u32::from(at);
    of_range(family, Ipv4Addr::new(10, 128, 0, 0), 0x128, number)
}

fn of_range(family: Family, v4: Ipv4Addr, group: u16, number: u32) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::from_bits(v4.to_bits() + number).into(),
        Family::Ipv6 => {
            let range = Ipv6Addr::new(0xfd00, 0x10, group, 0, 0, 0, 0, 0);
            Ipv6Addr::from_bits(range.to_bits() + u128::from(number)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_has_an_address_and_endpoints_of_its_own() {
        let text = text(Family::Ipv4, 1_000);
        let objects: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let addresses: BTreeSet<_> = objects
            .iter()
            .filter_map(|object| object["spec"]["clusterIP"].as_str())
            .collect();
        assert_eq!(addresses.len(), 1_000);
        assert!(addresses.contains("10.96.0.80"), "{addresses:?}");
        let endpoints: BTreeSet<_> = objects
            .iter()
            .filter_map(|object| object["endpoints"].as_array())
            .flatten()
            .map(|endpoint| endpoint["addresses"].to_string())
            .collect();
        assert_eq!(endpoints.len(), 4_000);
    }

    #[test]
    fn the_rest_is_dialled_like_its_endpoints() {
        for family in [Family::Ipv4, Family::Ipv6] {
            let text = text(family, 10);
            let others = others(family, 10);
            assert_eq!(others.len(), 4);
            for (frontend, endpoint) in others {
                for address in [frontend.ip(), endpoint.ip()] {
                    assert!(text.contains(&format!("\"{address}\"")), "{address}");
                }
            }
        }
    }
}
