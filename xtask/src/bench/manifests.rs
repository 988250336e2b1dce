//! Services for a benchmark: two that are dialled, and as many others as wanted. They are the same
//! for everybody: Beeline gets them as manifests, kube-proxy's rules are made of a list of ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use proxy_common::abi::{Family, Protocol};
use serde_json::{Value, json};
use xtask::kube_proxy::Port;
use xtask::testbed::{NODE_NAME, REMOTE_NODE_NAME};

/// Endpoints of each Service, but for one that is dialled.
pub(super) const ENDPOINTS: u8 = 4;
/// The last number of the address of the first pod behind the Service that is dialled.
pub(super) const FIRST_POD: u8 = 11;
/// The least number of Services: both that are dialled, and others of both kinds.
pub(super) const LEAST: u32 = 4;
/// The namespace of all Services.
const NAMESPACE: &str = "bench";
/// The name of the one that is dialled.
const DIALLED: &str = "dialled";
/// The name of the one with a pod on the other node, which is dialled from outside.
const FAR: &str = "far";

/// A port of a Service.
#[derive(Clone, Copy)]
pub(super) struct ServicePort {
    name: &'static str,
    protocol: Protocol,
    /// The Service's port.
    pub(super) port: u16,
    /// The pods' port.
    pub(super) target: u16,
    /// The nodes' port.
    pub(super) node_port: Option<u16>,
}

/// Answers one byte to one byte, over TCP, and closes.
pub(super) const STREAM: ServicePort = ServicePort {
    name: "stream",
    protocol: Protocol::Tcp,
    port: 80,
    target: 8080,
    node_port: Some(30_080),
};
/// The same on the other node.
pub(super) const FAR_STREAM: ServicePort = ServicePort {
    node_port: Some(30_081),
    ..STREAM
};
/// Answers bytes over TCP until the client closes.
pub(super) const TALK: ServicePort = cluster_port("talk", Protocol::Tcp, 81, 8081);
/// Takes what comes over TCP.
pub(super) const BULK: ServicePort = cluster_port("bulk", Protocol::Tcp, 82, 8082);
/// Sends datagrams back.
pub(super) const ECHO: ServicePort = cluster_port("echo", Protocol::Udp, 53, 5353);
/// Takes datagrams and does nothing.
pub(super) const SINK: ServicePort = cluster_port("sink", Protocol::Udp, 9, 9009);
/// Opens associations and takes no data.
pub(super) const ASSOCIATION: ServicePort = cluster_port("association", Protocol::Sctp, 84, 8084);

const fn cluster_port(
    name: &'static str,
    protocol: Protocol,
    port: u16,
    target: u16,
) -> ServicePort {
    ServicePort {
        name,
        protocol,
        port,
        target,
        node_port: None,
    }
}

/// A Service and what is behind it.
struct Service {
    name: String,
    address: IpAddr,
    ports: Vec<ServicePort>,
    endpoints: Vec<IpAddr>,
    /// The node of all endpoints.
    node: &'static str,
}

/// The address of the Service that is dialled.
pub(super) fn dialled(family: Family) -> IpAddr {
    service_address(family, 80)
}

/// The names of the TCP ports that are dialled, as `beeline services` has them.
pub(super) fn names_of_streams() -> [String; 2] {
    [DIALLED, FAR].map(|service| format!("{NAMESPACE}/{service}:{}", STREAM.name))
}

/// The manifests of `count` Services, those that are dialled among them: one JSON document a line.
/// The pod on the other node has the address `far`.
pub(super) fn text(family: Family, count: u32, far: IpAddr) -> String {
    let mut text = String::new();
    for object in services(family, count, far).flat_map(|service| service.objects(family)) {
        text.push_str(&object.to_string());
        text.push('\n');
    }
    text
}

/// The ports of the same Services.
pub(super) fn ports(family: Family, count: u32, far: IpAddr) -> Vec<Port> {
    services(family, count, far)
        .flat_map(|service| service.kube_proxy_ports())
        .collect()
}

/// Frontends of UDP Services that nobody is behind, among those of [`text`] for `count`; and for
/// each an address of one of its endpoints, so that both can be dialled alike.
pub(super) fn others(family: Family, count: u32) -> Vec<(SocketAddr, SocketAddr)> {
    numbers(count)
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

fn services(family: Family, count: u32, far: IpAddr) -> impl Iterator<Item = Service> {
    let dialled = Service {
        name: DIALLED.to_owned(),
        address: dialled(family),
        ports: vec![STREAM, TALK, BULK, ECHO, SINK, ASSOCIATION],
        endpoints: (0..ENDPOINTS)
            .map(|at| pod_address(family, FIRST_POD + at))
            .collect(),
        node: NODE_NAME,
    };
    let far = Service {
        name: FAR.to_owned(),
        address: service_address(family, 81),
        ports: vec![FAR_STREAM],
        endpoints: vec![far],
        node: REMOTE_NODE_NAME,
    };
    let numbers = numbers(count);
    let middle = numbers.end / 2;
    let others =
        move |numbers: Range<u32>| numbers.map(move |number| other_service(family, number));
    // Those that are dialled are in the middle of the rules, where on average they would be.
    others(numbers.start..middle)
        .chain([dialled, far])
        .chain(others(middle..numbers.end))
}

/// The numbers of the Services that are not dialled.
fn numbers(count: u32) -> Range<u32> {
    1..count.saturating_sub(1)
}

/// A Service of the rest of the cluster: every second one is a UDP Service.
fn other_service(family: Family, number: u32) -> Service {
    Service {
        name: format!("other-{number}"),
        address: other_address(family, number),
        ports: vec![if is_udp(number) {
            SINK
        } else {
            ServicePort {
                node_port: None,
                ..STREAM
            }
        }],
        endpoints: (0..ENDPOINTS)
            .map(|at| endpoint_address(family, number, at))
            .collect(),
        node: REMOTE_NODE_NAME,
    }
}

fn is_udp(number: u32) -> bool {
    number.is_multiple_of(2)
}

impl Service {
    /// It and its EndpointSlice.
    fn objects(&self, family: Family) -> [Value; 2] {
        let Self { name, address, .. } = self;
        let port = |port: &ServicePort| {
            let mut object = json!({"name": port.name, "protocol": port.protocol.name(),
                                    "port": port.port, "targetPort": port.target});
            if let Some(number) = port.node_port {
                object["nodePort"] = number.into();
            }
            object
        };
        let slice_port = |port: &ServicePort| json!({"name": port.name, "protocol": port.protocol.name(), "port": port.target});
        let endpoint = |address: &IpAddr| json!({"addresses": [address], "nodeName": self.node, "conditions": {"ready": true}});
        let has_node_port = self.ports.iter().any(|port| port.node_port.is_some());
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": NAMESPACE, "name": name},
            "spec": {"type": if has_node_port { "NodePort" } else { "ClusterIP" },
                     "clusterIP": address, "clusterIPs": [address],
                     "ipFamilies": [family.name()],
                     "ports": self.ports.iter().map(port).collect::<Vec<_>>()},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"namespace": NAMESPACE, "name": format!("{name}-1"),
                         "labels": {"kubernetes.io/service-name": name}},
            "addressType": family.name(),
            "ports": self.ports.iter().map(slice_port).collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        });
        [service, slice]
    }

    fn kube_proxy_ports(self) -> impl Iterator<Item = Port> {
        self.ports.into_iter().map(move |port| Port {
            name: format!("{NAMESPACE}/{}:{}", self.name, port.name),
            protocol: port.protocol,
            cluster_ip: self.address,
            port: port.port,
            node_port: port.node_port,
            endpoints: self
                .endpoints
                .iter()
                .map(|&address| SocketAddr::new(address, port.target))
                .collect(),
        })
    }
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

    const FAR_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 101));

    #[test]
    fn every_service_has_an_address_and_endpoints_of_its_own() {
        let text = text(Family::Ipv4, 1_000, FAR_POD);
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
        assert_eq!(endpoints.len(), 999 * usize::from(ENDPOINTS) + 1);
    }

    #[test]
    fn rules_are_made_of_the_same_services() {
        let text = text(Family::Ipv4, 10, FAR_POD);
        let ports = ports(Family::Ipv4, 10, FAR_POD);
        let services: BTreeSet<_> = ports.iter().map(|port| port.cluster_ip).collect();
        assert_eq!(services.len(), 10);
        for port in &ports {
            let (service, name) = port.name.rsplit_once(':').unwrap();
            let service = service.strip_prefix("bench/").unwrap();
            assert!(text.contains(&format!("\"{service}\"")), "{service}");
            assert!(text.contains(&format!("\"{name}\"")), "{name}");
            assert!(text.contains(&format!("\"{}\"", port.endpoints[0].ip())));
        }
        let node_ports: Vec<_> = ports.iter().filter_map(|port| port.node_port).collect();
        assert_eq!(node_ports, [30_080, 30_081]);
        let before = |port: &&Port| port.name.starts_with("bench/other-");
        assert_eq!(ports.iter().take_while(before).count(), 3);
        assert_eq!(ports.iter().rev().take_while(before).count(), 5);
    }

    #[test]
    fn the_rest_is_dialled_like_its_endpoints() {
        for family in [Family::Ipv4, Family::Ipv6] {
            let text = text(family, 10, FAR_POD);
            let others = others(family, 10);
            assert_eq!(others.len(), 4);
            for (frontend, endpoint) in others {
                for address in [frontend.ip(), endpoint.ip()] {
                    assert!(text.contains(&format!("\"{address}\"")), "{address}");
                }
            }
        }
        assert_eq!(others(Family::Ipv4, LEAST).len(), 1);
    }
}
