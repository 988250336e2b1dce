//! Objects in few words.

use std::net::IpAddr;

use beeline::desired::NodeFacts;
use beeline::model::{
    Endpoint, EndpointSlice, Event, Hints, Node, ObjectName, Service, ServicePort, SlicePort,
    TrafficPolicy,
};
use ipnet::IpNet;
use proxy_common::abi::{Family, Protocol};

/// The name of the node that everything runs on.
pub(crate) const HERE: &str = "here";

/// `namespace/name`.
pub(crate) fn object(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

pub(crate) fn facts(zone: Option<&str>) -> NodeFacts {
    NodeFacts {
        name: HERE.into(),
        zone: zone.map(Into::into),
        primary: vec![],
        same_node_hints: true,
    }
}

pub(crate) fn node(zone: Option<&str>, addresses: &[&str]) -> Event {
    let zone = zone.map(Into::into);
    Event::Node(Node {
        name: HERE.into(),
        zone,
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        pod_cidrs: vec![],
        to_be_deleted: false,
    })
}

/// A Service without ports at these cluster IPs, separated by blanks.
pub(crate) fn service(name: &str, cluster_ips: &str) -> Service {
    Service {
        name: object(name),
        cluster_ips: ips(cluster_ips),
        ports: vec![],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        affinity_seconds: None,
        gone_backends: None,
        health_check_node_port: None,
    }
}

/// Ports as `name:number/protocol[@node port]`, separated by blanks; `:80/TCP` has no name.
fn ports(text: &str) -> impl Iterator<Item = (&str, u16, Protocol, Option<u16>)> {
    text.split_whitespace().map(|port| {
        let (name, rest) = port.split_once(':').unwrap();
        let (number, rest) = rest.split_once('/').unwrap();
        let (protocol, node_port) = match rest.split_once('@') {
            Some((protocol, node_port)) => (protocol, Some(node_port.parse().unwrap())),
            None => (rest, None),
        };
        (
            name,
            number.parse().unwrap(),
            protocol_named(protocol),
            node_port,
        )
    })
}

/// Addresses, separated by blanks.
pub(crate) fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace()
        .map(|ip| ip.parse().unwrap())
        .collect()
}

/// Ranges, separated by blanks.
pub(crate) fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace()
        .map(|net| net.parse().unwrap())
        .collect()
}

fn protocol_named(name: &str) -> Protocol {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter()
        .find(|protocol| protocol.name() == name)
        .unwrap()
}

pub(crate) trait Build: Sized {
    /// Adds ports such as `http:80/TCP`.
    fn ports(self, text: &str) -> Self;
    fn event(self) -> Event;
}

impl Build for Service {
    fn ports(mut self, text: &str) -> Self {
        self.ports.extend(
            ports(text).map(|(name, port, protocol, node_port)| ServicePort {
                name: name.into(),
                protocol,
                port,
                node_port,
            }),
        );
        self
    }

    fn event(self) -> Event {
        Event::Service(self)
    }
}

impl Build for EndpointSlice {
    fn ports(mut self, text: &str) -> Self {
        self.ports
            .extend(ports(text).map(|(name, port, protocol, _)| SlicePort {
                name: name.into(),
                protocol,
                port,
            }));
        self
    }

    fn event(self) -> Event {
        Event::Slice(self)
    }
}

/// The slice `name` of `service`, with no ports; for the endpoints see [`endpoint`].
pub(crate) fn slice(
    name: &str,
    service: &str,
    family: Family,
    endpoints: &[&str],
) -> EndpointSlice {
    let endpoints = endpoints.iter().map(|line| endpoint(line)).collect();
    EndpointSlice {
        name: object(name),
        service: object(service),
        family,
        ports: vec![],
        endpoints,
        changed_at: Default::default(),
    }
}

/// `address[@node]`, then any of `unready`, `unserving`, `terminating` (not ready either),
/// `leaving` (ready and terminating), `zone=z`, `node=n`.
pub(crate) fn endpoint(line: &str) -> Endpoint {
    let mut words = line.split(' ');
    let place = words.next().unwrap();
    let (address, node) = match place.split_once('@') {
        Some((address, node)) => (address, Some(node.into())),
        None => (place, None),
    };
    let mut endpoint = Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node,
        hints: None,
    };
    for word in words {
        describe(&mut endpoint, word);
    }
    endpoint
}

fn hints(endpoint: &mut Endpoint) -> &mut Hints {
    endpoint.hints.get_or_insert_default()
}

fn describe(endpoint: &mut Endpoint, word: &str) {
    match (word, word.split_once('=')) {
        ("unready", _) => endpoint.ready = false,
        ("unserving", _) => endpoint.serving = false,
        ("terminating", _) => (endpoint.ready, endpoint.terminating) = (false, true),
        ("leaving", _) => endpoint.terminating = true,
        (_, Some(("zone", zone))) => hints(endpoint).zones.push(zone.into()),
        (_, Some(("node", node))) => hints(endpoint).nodes.push(node.into()),
        _ => panic!("{word}"),
    }
}
