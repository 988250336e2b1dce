//! What the way from events to map writes costs, with a target that takes everything.
//!
//! ```text
//! cargo run --release --package proxy-userspace --example sync_cost
//! ```

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use beeline::desired::{NodeFacts, compile};
use beeline::model::{
    Affected, Endpoint, EndpointSlice, Event, ObjectName, Service, ServicePort, SlicePort,
    TrafficPolicy, World,
};
use beeline::sync::{Capacity, Contents, Sync, Target, Write};
use proxy_common::abi::{Family, Protocol, limits};

const CAPACITY: Capacity = Capacity {
    frontends: limits::FRONTENDS,
    slots: limits::SLOTS,
    backends: limits::BACKENDS,
    services: limits::SERVICES,
    addresses: limits::ADDRESSES,
    source_ranges: limits::SOURCE_RANGES,
};
const CHANGES: u32 = 10_000;

/// Counts writes and forgets them.
#[derive(Default)]
struct Sink {
    n_writes: u32,
    n_grace_periods: u32,
}

impl Target for Sink {
    type Error = Infallible;

    fn write(&mut self, _: &Write) -> Result<(), Infallible> {
        self.n_writes += 1;
        Ok(())
    }

    fn grace_period(&mut self) {
        self.n_grace_periods += 1;
    }
}

struct Daemon {
    world: World,
    sync: Sync,
    node: NodeFacts,
    target: Sink,
}

impl Daemon {
    fn new(capacity: Capacity) -> Self {
        Self {
            world: World::new(),
            sync: Sync::new(capacity, Contents::default()),
            node: NodeFacts {
                name: "node-0".into(),
                zone: None,
                primary: vec![],
                same_node_hints: true,
            },
            target: Sink::default(),
        }
    }

    fn update(&mut self, name: &ObjectName) {
        let Some((service, slices)) = self.world.service(name) else {
            return;
        };
        let ports = compile(service, slices, &self.node);
        self.sync.update(name, ports, &mut self.target);
    }

    fn handle(&mut self, event: Event) {
        if let Affected::Services(names) = self.world.apply(event) {
            names.iter().for_each(|name| self.update(name));
        }
    }
}

fn name(index: u32) -> ObjectName {
    let namespace = format!("namespace-{}", index % 500).into();
    ObjectName {
        namespace,
        name: format!("service-{index}").into(),
    }
}

fn service(index: u32) -> Event {
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

/// One endpoint is new each round.
fn slice(index: u32, n_endpoints: u32, round: u32) -> Event {
    let service = name(index);
    let slice_name = format!("{}-abcde", service.name).into();
    let endpoint = |number: u32| Endpoint {
        address: IpAddr::V4(Ipv4Addr::from_bits(
            0x0b00_0000 + index * 64 + round % 8 + number,
        )),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node-{}", (index + number) % 1000).into()),
        zone_hints: vec![format!("zone-{}", number % 3).into()],
        node_hints: vec![],
    };
    let port = SlicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 8080,
    };
    Event::Slice(EndpointSlice {
        name: ObjectName {
            namespace: service.namespace.clone(),
            name: slice_name,
        },
        service,
        family: Family::Ipv4,
        ports: vec![port],
        endpoints: (0..n_endpoints).map(endpoint).collect(),
        changed_at: Default::default(),
    })
}

/// From the complete lists to the last write.
fn cold(n_services: u32, n_endpoints: u32) -> Daemon {
    let mut daemon = Daemon::new(CAPACITY);
    let lists: Vec<_> = (0..n_services).map(service).collect();
    let slices: Vec<_> = (0..n_services)
        .map(|index| slice(index, n_endpoints, 0))
        .collect();
    let start = Instant::now();
    lists
        .into_iter()
        .chain(slices)
        .for_each(|event| drop(daemon.world.apply(event)));
    let known = start.elapsed();
    (0..n_services).for_each(|index| daemon.update(&name(index)));
    println!(
        "cold {n_services} x {n_endpoints}: {:?}, of it {known:?} for the model; {} writes, {} grace periods",
        start.elapsed(),
        daemon.target.n_writes,
        daemon.target.n_grace_periods,
    );
    daemon
}

fn changes(daemon: &mut Daemon, n_services: u32, n_endpoints: u32) {
    let events: Vec<_> = (0..CHANGES)
        .map(|round| {
            slice(
                round.wrapping_mul(7919) % n_services,
                n_endpoints,
                1 + round / n_services,
            )
        })
        .collect();
    let n_writes = daemon.target.n_writes;
    let mut times: Vec<Duration> = events
        .into_iter()
        .map(|event| {
            let start = Instant::now();
            daemon.handle(event);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!(
        "one change among {n_services} x {n_endpoints}: median {:?}, p99 {:?}, worst {:?}; {} writes each",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1],
        (daemon.target.n_writes - n_writes) / CHANGES,
    );
}

fn resident_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// What the model and the copy of the maps take, objects coming one by one as from a watch.
fn memory(n_services: u32, n_endpoints: u32) {
    let start = resident_kib();
    let mut daemon = Daemon::new(CAPACITY);
    for index in 0..n_services {
        daemon.world.apply(service(index));
        daemon.world.apply(slice(index, n_endpoints, 0));
    }
    let known = resident_kib();
    (0..n_services).for_each(|index| daemon.update(&name(index)));
    let end = resident_kib();
    println!(
        "memory {n_services} x {n_endpoints}: {} MiB, of it {} MiB for the model",
        (end - start) / 1024,
        (known - start) / 1024
    );
}

/// What a crowd of Services costs that do not fit beside `n_services`, who have room to change.
fn full(n_services: u32, n_endpoints: u32, n_crowd: u32) {
    let mut daemon = Daemon::new(Capacity {
        frontends: n_services,
        ..CAPACITY
    });
    let all = n_services + n_crowd;
    (0..all).for_each(|index| drop(daemon.world.apply(service(index))));
    (0..all).for_each(|index| drop(daemon.world.apply(slice(index, n_endpoints, 0))));
    (0..n_services).for_each(|index| daemon.update(&name(index)));
    let timed = |what: &str, act: &mut dyn FnMut()| {
        let start = Instant::now();
        act();
        println!(
            "full, {n_crowd} of {all} wait: {what}: {:?}",
            start.elapsed()
        );
    };
    timed("they come one by one", &mut || {
        (n_services..all).for_each(|index| daemon.update(&name(index)));
    });
    let compiled = |daemon: &Daemon, index| {
        let (service, slices) = daemon.world.service(&name(index)).unwrap();
        (name(index), compile(service, slices, &daemon.node))
    };
    let crowd: Vec<_> = (n_services..all)
        .map(|index| compiled(&daemon, index))
        .collect();
    let Daemon { sync, target, .. } = &mut daemon;
    let mut crowd = Some(crowd);
    timed("they come in one batch", &mut || {
        let crowd = crowd.take().unwrap_or_default();
        let report = sync.apply(crowd, target);
        assert_eq!(report.n_pending, n_crowd as usize);
    });
    timed("a retry", &mut || {
        assert_eq!(sync.retry(target).n_pending, n_crowd as usize);
    });
    timed("their problems", &mut || drop(sync.problems()));
    timed("one goes, and the first of them comes in", &mut || {
        let report = sync.remove(&name(0), target);
        assert_eq!(report.n_pending, n_crowd as usize - 1);
    });
    changes(&mut daemon, n_services, n_endpoints);
}

fn main() {
    full(1_000, 4, 5_000);
    memory(30_000, 4);
    for (n_services, n_endpoints) in [(30_000, 4), (1_000, 4), (5_000, 50), (100, 1_000)] {
        let mut daemon = cold(n_services, n_endpoints);
        changes(&mut daemon, n_services, n_endpoints);
    }
}
