//! The daemon without its shells: events in, maps out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beeline::conntrack_gc::{self, Timeouts};
use beeline::desired::{DesiredPort, NodeFacts, compile};
use beeline::health::{self, State};
use beeline::metrics::{Metrics, NoLocalTotals, no_local};
use beeline::model::{Affected, Event, ObjectName, World};
use beeline::node::{self, GoneBackends, NodeConfig, SourceNat};
use beeline::sync::Sync;
use proxy_common::abi::{Addr, AddressFlags, Family};

use super::maps::{CAPACITY, Maps};
use super::network::{HOST, Network};
use super::objects::{Order, Store};
use crate::case::{self, Case, Config, Simulate, Step};

/// The one gate that decides about traffic (rule R45).
const SAME_NODE_GATE: &str = "PreferSameTrafficDistribution";

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// A daemon, its node and its maps.
pub(super) struct Proxy {
    order: Order,
    config: NodeConfig,
    service_cidrs: Vec<ipnet::IpNet>,
    sync_period: Duration,
    store: Store,
    world: World,
    sync: Sync,
    pub(super) maps: Maps,
    pub(super) network: Network,
    pub(super) health: State,
    pub(super) metrics: Arc<Metrics>,
    pub(super) no_local: NoLocalTotals,
    /// Services whose health checks are not up to date with the world.
    due: BTreeSet<ObjectName>,
    /// When the clock of the case stood at 0.
    start: Instant,
}

impl Proxy {
    /// Starts on an empty node, with what the API server holds.
    pub(super) fn start(case: &Case, order: Order) -> Self {
        let node = &case.config.node_name;
        let (store, events) = Store::new(&case.objects, node, order);
        let sync_period = Duration::from_secs(case.config.sync_period_seconds);
        let maps = Maps::default();
        let mut proxy = Self {
            order,
            config: node_config(&case.config),
            service_cidrs: case.config.service_cidrs.clone(),
            sync_period,
            store,
            world: World::new(),
            sync: Sync::new(CAPACITY, maps.contents()),
            maps,
            network: Network::new(case),
            health: State::new(sync_period),
            metrics: Metrics::new(),
            no_local: NoLocalTotals::default(),
            due: BTreeSet::new(),
            start: Instant::now(),
        };
        // Times of 0 could be taken for times that were never set.
        proxy.maps.memory.advance(1000 * SECOND);
        proxy.first_pass(events);
        proxy
    }

    /// The clock of health checks, which is the one of the datapath.
    pub(super) fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.maps.memory.now.get())
    }

    /// Carries out what a step says before its flows.
    pub(super) fn step(&mut self, step: &Step) {
        self.maps.memory.advance(step.advance_seconds * SECOND);
        self.collect();
        let simulate = step.simulate.as_ref();
        let news = self.store.change(&step.delete, &step.apply, self.order);
        if simulate.is_some_and(|it| it.restart) {
            self.restart();
        }
        if let Some(families) = simulate.and_then(Simulate::blocked) {
            self.maps.block(families);
            let _report = self.sync.retry(&mut self.maps);
            self.conclude();
        }
        if simulate.is_none_or(|it| !it.restart) {
            self.take(news);
        }
    }

    /// Another daemon takes over the maps.
    fn restart(&mut self) {
        let events = self.store.again(self.order);
        self.world = World::new();
        self.sync = Sync::new(CAPACITY, self.maps.contents());
        self.health = State::new(self.sync_period);
        self.metrics = Metrics::new();
        self.no_local = NoLocalTotals::default();
        self.due.clear();
        self.first_pass(events);
    }

    fn first_pass(&mut self, events: Vec<Event>) {
        let ranges = Event::ServiceCidrs(self.service_cidrs.clone());
        self.take([vec![ranges], events, vec![Event::Synced]].concat());
        let _report = self.sync.finish_start(|_| false, &mut self.maps);
    }

    /// Takes in events and brings what they changed into force, in one batch.
    fn take(&mut self, events: Vec<Event>) {
        let mut names = BTreeSet::new();
        for event in events {
            match self.world.apply(event) {
                Affected::Nothing => {}
                Affected::Services(some) => names.extend(some),
                Affected::All => names.extend(self.names()),
            }
        }
        if let Some(node) = self.world.node() {
            self.health.set_node(node);
        }
        self.follow_node();
        if names.is_empty() {
            return;
        }
        let now = self.now();
        for family in Family::ALL {
            self.health.changed(family, now);
        }
        let changes: Vec<_> = names.into_iter().map(|name| self.compiled(name)).collect();
        for (name, ports) in &changes {
            self.no_local.set(name, no_local(ports));
            let _new = self.due.insert(name.clone());
        }
        let _report = self.sync.apply(changes, &mut self.maps);
        self.conclude();
    }

    /// As the daemon tells its health, but for each family on its own.
    fn conclude(&mut self) {
        let now = self.now();
        let failed = self.sync.has_failed_writes();
        for family in Family::ALL {
            if !(failed && self.maps.is_blocked(family)) {
                self.health.synced(family, now);
            }
        }
        let (behind, done) = std::mem::take(&mut self.due)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|name| self.sync.is_behind(name));
        self.due = behind;
        for name in done {
            let service = self.world.service(&name);
            let check =
                service.and_then(|(it, slices)| health::check(it, slices, &self.config.name));
            self.health.set_check(&name, check);
        }
    }

    /// Brings settings, node addresses, networks and devices up to date.
    pub(super) fn follow_node(&mut self) {
        for ip in self.local_endpoints() {
            self.network.add_pod(ip);
        }
        let devices = self.network.devices();
        let tables = node::tables(
            &self.config,
            self.world.node(),
            self.world.service_cidrs(),
            &devices,
            HOST,
        );
        self.health
            .set_addresses(self.health_addresses(&tables.addresses));
        let memory = &mut self.maps.memory;
        memory.settings = tables.settings;
        memory.networks = tables.networks;
        memory.devices = tables.devices.into_iter().collect();
        let _report = self
            .sync
            .set_node_addresses(tables.addresses, &mut self.maps);
    }

    /// Where health check node ports listen: on the addresses that accept NodePorts (rule R121).
    fn health_addresses(&self, own: &BTreeMap<Addr, AddressFlags>) -> BTreeSet<IpAddr> {
        let accepted = &self.config.node_port_addresses;
        let mut addresses = BTreeSet::new();
        for family in Family::ALL {
            if node::node_port_ranges(accepted, self.world.node(), family).is_none() {
                let _new = addresses.insert(match family {
                    Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
                });
                continue;
            }
            let accepting = own.iter().filter(|(addr, flags)| {
                addr.family() == family && flags.contains(AddressFlags::NODE_PORTS)
            });
            addresses.extend(accepting.map(|(addr, _)| IpAddr::from(*addr)));
        }
        addresses
    }

    /// Endpoints that say that they are on this node.
    fn local_endpoints(&self) -> Vec<IpAddr> {
        let slices = self.world.services().flat_map(|(_, slices)| slices);
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        endpoints
            .filter(|it| it.node.as_deref() == Some(&*self.config.name))
            .map(|it| it.address)
            .collect()
    }

    fn names(&self) -> Vec<ObjectName> {
        let services = self.world.services();
        services.map(|(service, _)| service.name.clone()).collect()
    }

    fn compiled(&self, name: ObjectName) -> (ObjectName, Vec<DesiredPort>) {
        let facts = NodeFacts {
            name: self.config.name.clone(),
            zone: self.world.zone().cloned(),
            primary: node::primary_addresses(self.world.node()),
            same_node_hints: self.config.same_node_hints,
        };
        let ports = match self.world.service(&name) {
            Some((service, slices)) => compile(service, slices, &facts),
            None => Vec::new(),
        };
        (name, ports)
    }

    /// Forgets flows and affinities whose time is over, and deleted Services' backends that no flow
    /// uses, as the daemon's collector does.
    fn collect(&mut self) {
        self.expire();
        let flows = self.maps.memory.flows.borrow();
        let in_use = flows.values().map(|flow| flow.backend).collect();
        drop(flows);
        let _report = self.sync.release_detached(&in_use, &mut self.maps);
    }

    fn expire(&self) {
        let memory = &self.maps.memory;
        let (now, timeouts) = (memory.now.get(), Timeouts::default());
        let flows = memory.flows.borrow().clone();
        memory.flows.borrow_mut().retain(|key, flow| {
            let twin = flows.get(&conntrack_gc::twin_key(key, flow));
            !conntrack_gc::is_expired(flow, twin, now, &timeouts)
        });
        let seconds = |service| {
            let mut ports = memory.frontends.values().filter(|it| it.service == service);
            ports.next().map(|it| it.affinity_seconds)
        };
        memory.affinity.borrow_mut().retain(|key, affinity| {
            !conntrack_gc::is_affinity_expired(affinity, seconds(key.service), now)
        });
    }
}

impl Simulate {
    fn blocked(&self) -> Option<Vec<Family>> {
        let families = self.block_sync.as_ref()?;
        Some(families.iter().map(|family| (*family).into()).collect())
    }
}

impl From<case::Family> for Family {
    fn from(family: case::Family) -> Self {
        match family {
            case::Family::Ipv4 => Self::Ipv4,
            case::Family::Ipv6 => Self::Ipv6,
        }
    }
}

/// The node's configuration, with the settings that make Beeline do as kube-proxy does.
fn node_config(config: &Config) -> NodeConfig {
    let gates = &config.feature_gates;
    NodeConfig {
        node_port_addresses: match &config.node_port_addresses {
            case::NodePortAddresses::Primary => node::NodePortAddresses::Primary,
            case::NodePortAddresses::Ranges(ranges) => {
                node::NodePortAddresses::Ranges(ranges.clone())
            }
        },
        detect_local: match &config.detect_local {
            case::DetectLocal::ClusterCidr(ranges) => {
                node::DetectLocal::ClusterCidr(ranges.clone())
            }
            case::DetectLocal::NodeCidr => node::DetectLocal::NodeCidr,
            case::DetectLocal::BridgeInterface(name) => {
                node::DetectLocal::BridgeInterface(name.as_str().into())
            }
            case::DetectLocal::InterfaceNamePrefix(prefix) => {
                node::DetectLocal::InterfaceNamePrefix(prefix.as_str().into())
            }
        },
        masquerade_all: config.masquerade_all,
        source_nat: SourceNat::LikeKubeProxy,
        gone_backends: GoneBackends::Keep,
        same_node_hints: gates.get(SAME_NODE_GATE).copied().unwrap_or(true),
        ..NodeConfig::new(config.node_name.as_str())
    }
}
