//! A daemon without its shells: events in, maps out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use beeline::desired::{DesiredPort, compile};
use beeline::model::{Affected, Event, ObjectName, World};
use beeline::sync::{Capacity, Report, Sync, dump};
use proxy_common::abi::{Addr, AddressFlags, Family};

use super::build::{Build, facts, service, slice};
use super::maps::{Backends, Maps, View, desired_backends, desired_view};

/// Room for everything.
pub(crate) const ROOMY: Capacity = Capacity {
    frontends: 256,
    slots: 1024,
    backends: 512,
    services: 64,
    addresses: 64,
    source_ranges: 128,
};

pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) sync: Sync,
    pub(crate) maps: Maps,
    own: BTreeMap<Addr, AddressFlags>,
    capacity: Capacity,
}

impl Cluster {
    pub(crate) fn new(capacity: Capacity) -> Self {
        let maps = Maps::new(capacity);
        let sync = Sync::new(capacity, maps.contents());
        Self {
            world: World::new(),
            sync,
            maps,
            own: BTreeMap::new(),
            capacity,
        }
    }

    /// Takes in events and brings what they changed into force, in one batch.
    pub(crate) fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Report {
        let mut names = BTreeSet::new();
        for event in events {
            match self.world.apply(event) {
                Affected::Nothing => {}
                Affected::Services(some) => names.extend(some),
                Affected::All => names.extend(self.names()),
            }
        }
        let changes: Vec<_> = names.into_iter().map(|name| self.compiled(name)).collect();
        self.sync.apply(changes, &mut self.maps)
    }

    /// Makes these the node's addresses: `192.0.2.1` accepts NodePorts, `-192.0.2.2` does not.
    pub(crate) fn set_own(&mut self, addresses: &[&str]) -> Report {
        let flags = |text: &&str| match text.strip_prefix('-') {
            Some(ip) => (ip.parse::<IpAddr>().unwrap().into(), AddressFlags::NODE),
            None => {
                let both = AddressFlags::NODE.union(AddressFlags::NODE_PORTS);
                (text.parse::<IpAddr>().unwrap().into(), both)
            }
        };
        self.own = addresses.iter().map(flags).collect();
        self.sync
            .set_node_addresses(self.own.clone(), &mut self.maps)
    }

    /// Everything is as desired, and as if it had been so from the start.
    pub(crate) fn assert_settled(&self) {
        assert_eq!(self.sync.problems(), []);
        assert_eq!(self.maps.view(), self.desired());
        self.maps.assert_addresses(&self.own);
        let ports = |name: ObjectName| {
            let (name, ports) = self.compiled(name);
            desired_backends(&name, &ports)
        };
        let backends: Backends = self.names().into_iter().flat_map(ports).collect();
        assert_eq!(self.maps.backends(), backends);
    }

    pub(crate) fn retry(&mut self) -> Report {
        self.sync.retry(&mut self.maps)
    }

    /// Ends the daemon and starts another on the same maps; yields the writes that it made.
    pub(crate) fn restart(&mut self) -> usize {
        self.sync = Sync::new(self.capacity, self.maps.contents());
        self.first_pass()
    }

    /// The maps of a daemon that was ended, in the hands of another.
    pub(crate) fn starting_on(maps: Maps, world: World, capacity: Capacity) -> Self {
        let mut cluster = Self::new(capacity);
        (cluster.maps, cluster.world) = (maps, world);
        cluster.restart();
        cluster
    }

    /// Ends the daemon and starts another with larger maps.
    pub(crate) fn grow(&mut self, capacity: Capacity) {
        self.capacity = capacity;
        self.maps.grow(capacity);
        self.restart();
    }

    /// Brings all that is known into force and the start to its end.
    pub(crate) fn first_pass(&mut self) -> usize {
        let changes: Vec<_> = self
            .names()
            .into_iter()
            .map(|name| self.compiled(name))
            .collect();
        let pass = self.sync.apply(changes, &mut self.maps);
        let own = self.own.clone();
        let own = self.sync.set_node_addresses(own, &mut self.maps);
        pass.n_writes + own.n_writes + self.sync.finish_start(|_| false, &mut self.maps).n_writes
    }

    /// Deletes everything. Nothing may have been lost on the way: one Service can have all the
    /// room there is.
    pub(crate) fn empty_and_fill(&mut self) {
        let gone: Vec<_> = self.names().into_iter().map(Event::ServiceGone).collect();
        self.apply(gone);
        self.set_own(&[]);
        assert!(self.maps.is_empty(), "{}", dump(&self.maps.contents()));
        self.sync.release_detached(&BTreeSet::new(), &mut self.maps);
        assert!(self.sync.detached().is_empty());
        assert!(self.maps.contents().backends.iter().all(|it| it.state == 0));
        self.apply(self.filling());
        assert_eq!(self.sync.problems(), []);
        assert_eq!(self.maps.view(), self.desired());
    }

    fn filling(&self) -> [Event; 2] {
        let Capacity {
            frontends,
            slots,
            backends,
            services,
            ..
        } = self.capacity;
        let address = |index| format!("10.1.{}.{}", index / 250, index % 250);
        let endpoints: Vec<_> = (0..slots.min(backends)).map(address).collect();
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
        let idle = (1..frontends.min(services)).map(|number| format!(" p{number}:{number}/TCP"));
        let ports = idle.fold("all:9999/TCP".to_owned(), |ports, port| ports + &port);
        let all = service("ns/all", "10.96.9.9").ports(&ports);
        let all_slice = slice("ns/all-1", "ns/all", Family::Ipv4, &endpoints).ports("all:80/TCP");
        [all.event(), all_slice.event()]
    }

    /// What packets should see if every Service were in force; of two that claim the same
    /// frontend the last by name.
    pub(crate) fn desired(&self) -> View {
        let names = self.names();
        names
            .into_iter()
            .flat_map(|name| self.desired_of(&name))
            .collect()
    }

    /// What packets should see of each Service if it were alone.
    pub(crate) fn desired_each(&self) -> Vec<View> {
        let names = self.names().into_iter();
        names.map(|name| self.desired_of(&name)).collect()
    }

    /// What packets should see of one Service.
    pub(crate) fn desired_of(&self, name: &ObjectName) -> View {
        desired_view(name, &self.compiled(name.clone()).1)
    }

    pub(crate) fn names(&self) -> Vec<ObjectName> {
        self.world
            .services()
            .map(|(service, _)| service.name.clone())
            .collect()
    }

    fn compiled(&self, name: ObjectName) -> (ObjectName, Vec<DesiredPort>) {
        let mut node = facts(None);
        node.zone = self.world.zone().cloned();
        node.primary = self
            .world
            .node()
            .map(|it| it.addresses.clone())
            .unwrap_or_default();
        let ports = match self.world.service(&name) {
            Some((service, slices)) => compile(service, slices, &node),
            None => vec![],
        };
        (name, ports)
    }
}
