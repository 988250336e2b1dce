//! Clusters of many Services, and the daemon's way from events to map writes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use beeline::desired::{NodeFacts, compile};
use beeline::model::{
    Affected, Endpoint, EndpointSlice, Event, Hints, ObjectName, Service, ServicePort, SlicePort,
    TrafficPolicy, World,
};
use beeline::sync::{Capacity, Contents, Report, Sync, Target};
use proxy_common::abi::{Family, Protocol};

/// Services that the daemon compiles at a time.
const CHUNK: usize = 4096;
/// Addresses that are set aside for the endpoints of a Service.
const ADDRESSES: u32 = 256;

/// What the daemon knows, and the maps that follow.
pub(crate) struct Way<T> {
    world: World,
    sync: Sync,
    node: NodeFacts,
    /// Where writes go.
    pub(crate) target: T,
}

impl<T: Target> Way<T> {
    /// Knows nothing yet; the maps are empty.
    pub(crate) fn new(capacity: Capacity, target: T) -> Self {
        Self {
            world: World::new(),
            sync: Sync::new(capacity, Contents::default()),
            node: NodeFacts {
                name: "node-0".into(),
                zone: None,
                primary: vec![],
                same_node_hints: true,
            },
            target,
        }
    }

    /// Takes a batch of events in and has the maps follow, as the daemon's loop does it.
    pub(crate) fn take(&mut self, events: impl IntoIterator<Item = Event>) -> Report {
        let mut changed = BTreeSet::new();
        for event in events {
            match self.world.apply(event) {
                Affected::Nothing => {}
                Affected::Services(names) => changed.extend(names),
                Affected::All => {
                    let all = self.world.services();
                    changed.extend(all.map(|(service, _)| service.name.clone()));
                }
            }
        }
        let names: Vec<_> = changed.into_iter().collect();
        let mut report = Report::default();
        for chunk in names.chunks(CHUNK) {
            let desired = |name: &ObjectName| match self.world.service(name) {
                Some((service, slices)) => compile(service, slices, &self.node),
                None => vec![],
            };
            let changes: Vec<_> = chunk
                .iter()
                .map(|name| (name.clone(), desired(name)))
                .collect();
            let Report {
                n_writes,
                n_pending,
            } = self.sync.apply(changes, &mut self.target);
            report.n_writes += n_writes;
            report.n_pending = n_pending;
        }
        report
    }
}

/// Lists of `n_services` Services and their slices, with `n_endpoints` each.
pub(crate) fn lists(n_services: u32, n_endpoints: u32) -> Vec<Event> {
    let services = (0..n_services).map(service);
    let slices = (0..n_services).map(|index| replaced(index, n_endpoints, 0));
    services.chain(slices).collect()
}

/// A Service of one port.
pub(crate) fn service(index: u32) -> Event {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    Event::Service(Service {
        name: name(index),
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0001 + index))],
        ports: vec![port],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        affinity_seconds: None,
        gone_backends: None,
        health_check_node_port: None,
    })
}

/// The only slice of a Service, after `times` endpoints have been replaced, one after the other.
pub(crate) fn replaced(index: u32, n_endpoints: u32, times: u32) -> Event {
    let address = |at: u32| {
        let life = (times + n_endpoints - 1 - at) / n_endpoints;
        index * ADDRESSES + at + n_endpoints * (life % 3)
    };
    slice(
        index,
        0,
        (0..n_endpoints).map(|at| endpoint(address(at))).collect(),
    )
}

/// One slice of a Service.
pub(crate) fn slice(index: u32, number: u32, endpoints: Vec<Endpoint>) -> Event {
    let service = name(index);
    let port = SlicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 8080,
    };
    Event::Slice(EndpointSlice {
        name: ObjectName {
            namespace: service.namespace.clone(),
            name: format!("{}-{number:05}", service.name).into(),
        },
        service,
        family: Family::Ipv4,
        ports: vec![port],
        endpoints,
        changed_at: Default::default(),
    })
}

/// A ready endpoint.
pub(crate) fn endpoint(number: u32) -> Endpoint {
    Endpoint {
        address: IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + number)),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node-{}", number % 1000).into()),
        hints: Some(Box::new(Hints {
            zones: vec![format!("zone-{}", number % 3).into()],
            nodes: vec![],
        })),
    }
}

fn name(index: u32) -> ObjectName {
    ObjectName {
        namespace: format!("namespace-{}", index % 500).into(),
        name: format!("service-{index}").into(),
    }
}
