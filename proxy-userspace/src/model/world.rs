//! Everything that is known, indexed so that one event touches one Service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::{EndpointSlice, Event, Node, ObjectName, Service};

/// The objects that events told of, latest version of each.
#[derive(Default, Debug)]
pub struct World {
    services: BTreeMap<ObjectName, Entry>,
    /// The Service that each slice belongs to.
    owners: BTreeMap<ObjectName, ObjectName>,
    node: Option<Node>,
    service_cidrs: Vec<IpNet>,
    names: Names,
}

/// What must be compiled again after an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Affected {
    /// Nothing.
    Nothing,
    /// These Services, be they there or gone. Two if a slice went from one to another.
    Services(Vec<ObjectName>),
    /// Every Service (rule R46).
    All,
}

/// A Service and its slices; either may come first or outlive the other (rule R169).
#[derive(Default, Debug)]
struct Entry {
    service: Option<Box<Service>>,
    /// Ordered by name, so that the order of events decides nothing (rule R168).
    slices: Vec<EndpointSlice>,
}

impl World {
    /// Nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an event and says what it may have changed. An object that comes again as it was
    /// affects nothing (rule R170).
    pub fn apply(&mut self, event: Event) -> Affected {
        match event {
            Event::Service(service) => self.put_service(service),
            Event::ServiceGone(name) => self.remove_service(&name),
            Event::Slice(slice) => self.put_slice(slice),
            Event::SliceGone(name) => self.remove_slice(&name),
            Event::Node(node) => self.put_node(node),
            Event::ServiceCidrs(ranges) => {
                self.service_cidrs = ranges;
                Affected::Nothing
            }
            // Pods decide about the socket edge only, not about Services.
            Event::Pod(_)
            | Event::PodGone(_)
            | Event::PodsKnown
            | Event::Synced
            | Event::Problem(_)
            | Event::Solved(_) => Affected::Nothing,
        }
    }

    /// A Service, and its slices of both families.
    pub fn service(&self, name: &ObjectName) -> Option<(&Service, &[EndpointSlice])> {
        self.services.get(name)?.complete()
    }

    /// Whether this slice is known.
    pub fn has_slice(&self, name: &ObjectName) -> bool {
        self.owners.contains_key(name)
    }

    /// All Services with their slices, ordered by name.
    pub fn services(&self) -> impl Iterator<Item = (&Service, &[EndpointSlice])> {
        self.services.values().filter_map(Entry::complete)
    }

    /// This node's Node object, if it was ever seen; its deletion changes nothing (rule R46).
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The zone that this node is in.
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.node.as_ref()?.zone.as_ref()
    }

    /// The cluster's ServiceCIDRs; empty if they are not known (rules R16, R186).
    pub fn service_cidrs(&self) -> &[IpNet] {
        &self.service_cidrs
    }

    fn put_service(&mut self, mut service: Service) -> Affected {
        self.names.share_service(&mut service);
        let name = service.name.clone();
        let entry = self.services.entry(name.clone()).or_default();
        if entry.service.as_deref() == Some(&service) {
            return Affected::Nothing;
        }
        entry.service = Some(Box::new(service));
        Affected::Services(vec![name])
    }

    fn remove_service(&mut self, name: &ObjectName) -> Affected {
        let Some(entry) = self.services.get_mut(name) else {
            return Affected::Nothing;
        };
        if entry.service.take().is_none() {
            return Affected::Nothing;
        }
        if entry.slices.is_empty() {
            self.services.remove(name);
        }
        Affected::Services(vec![name.clone()])
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) -> Affected {
        self.names.share_slice(&mut slice);
        let mut affected = Vec::new();
        if self
            .owners
            .get(&slice.name)
            .is_some_and(|owner| *owner != slice.service)
        {
            affected.extend(self.take_slice(&slice.name));
        }
        // The Service's own copy of its name, so that it is stored once.
        if let Some((name, _)) = self.services.get_key_value(&slice.service) {
            slice.service = name.clone();
        }
        let owner = slice.service.clone();
        self.owners.insert(slice.name.clone(), owner.clone());
        let entry = self.services.entry(owner.clone()).or_default();
        if entry.put(slice) && entry.service.is_some() {
            affected.push(owner);
        }
        Affected::services(affected)
    }

    fn remove_slice(&mut self, name: &ObjectName) -> Affected {
        Affected::services(self.take_slice(name).into_iter().collect())
    }

    /// Forgets a slice; yields its Service if that is there.
    fn take_slice(&mut self, name: &ObjectName) -> Option<ObjectName> {
        let owner = self.owners.remove(name)?;
        let entry = self.services.get_mut(&owner)?;
        entry.slices.retain(|slice| slice.name != *name);
        let has_service = entry.service.is_some();
        if !has_service && entry.slices.is_empty() {
            self.services.remove(&owner);
        }
        has_service.then_some(owner)
    }

    fn put_node(&mut self, node: Node) -> Affected {
        let before = self.node.replace(node);
        let (zone, addresses) = before.map_or((None, vec![]), |it| (it.zone, it.addresses));
        if self.zone() != zone.as_ref() {
            return Affected::All;
        }
        if self.node().is_some_and(|it| it.addresses != addresses) {
            return Affected::services(self.guarded());
        }
        Affected::Nothing
    }

    /// The Services for which this node's addresses matter (rule R105).
    fn guarded(&self) -> Vec<ObjectName> {
        let guarded = self
            .services()
            .filter(|(it, _)| !it.source_ranges.is_empty());
        guarded.map(|(service, _)| service.name.clone()).collect()
    }
}

impl Affected {
    fn services(names: Vec<ObjectName>) -> Self {
        if names.is_empty() {
            Self::Nothing
        } else {
            Self::Services(names)
        }
    }
}

impl Entry {
    fn complete(&self) -> Option<(&Service, &[EndpointSlice])> {
        Some((self.service.as_deref()?, &self.slices))
    }

    /// Stores a slice; false if it is there already, as it is.
    fn put(&mut self, slice: EndpointSlice) -> bool {
        match self.slices.binary_search_by(|it| it.name.cmp(&slice.name)) {
            Ok(index) if self.slices[index] == slice => return false,
            Ok(index) => self.slices[index] = slice,
            Err(index) => {
                self.slices.reserve_exact(1);
                self.slices.insert(index, slice);
            }
        }
        true
    }
}

/// One copy of each text that many objects repeat: namespaces, nodes, zones, ports.
#[derive(Default, Debug)]
struct Names {
    known: BTreeSet<Arc<str>>,
    /// How many may be known before the unused ones are looked for.
    sweep_at: usize,
}

impl Names {
    /// Below this number nobody looks for unused names.
    const FEW: usize = 1024;

    fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.known.get(&**name) {
            *name = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.sweep_at.max(Self::FEW) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = 2 * self.known.len();
        }
        self.known.insert(Arc::clone(name));
    }

    fn share_service(&mut self, service: &mut Service) {
        self.share(&mut service.name.namespace);
        for port in &mut service.ports {
            self.share(&mut port.name);
        }
        service.cluster_ips.shrink_to_fit();
        service.ports.shrink_to_fit();
    }

    fn share_slice(&mut self, slice: &mut EndpointSlice) {
        self.share(&mut slice.name.namespace);
        self.share(&mut slice.service.namespace);
        for port in &mut slice.ports {
            self.share(&mut port.name);
        }
        for endpoint in &mut slice.endpoints {
            if let Some(name) = &mut endpoint.node {
                self.share(name);
            }
            if let Some(hints) = &mut endpoint.hints {
                for name in hints.zones.iter_mut().chain(&mut hints.nodes) {
                    self.share(name);
                }
                hints.zones.shrink_to_fit();
                hints.nodes.shrink_to_fit();
            }
        }
        slice.ports.shrink_to_fit();
        slice.endpoints.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Family;

    use super::*;
    use crate::model::{Endpoint, TrafficPolicy};

    fn object(name: &str) -> ObjectName {
        ObjectName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn service(name: &str) -> Service {
        Service {
            name: object(name),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
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

    fn slice(name: &str, service: &str, node: &str) -> EndpointSlice {
        let endpoint = Endpoint {
            address: "10.0.0.1".parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some(node.into()),
            hints: None,
        };
        EndpointSlice {
            name: object(name),
            service: object(service),
            family: Family::Ipv4,
            ports: vec![],
            endpoints: vec![endpoint],
            changed_at: Default::default(),
        }
    }

    fn node(zone: Option<&str>, address: &str) -> Event {
        Event::Node(Node {
            name: "here".into(),
            zone: zone.map(Into::into),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![],
            to_be_deleted: false,
        })
    }

    fn only(name: &str) -> Affected {
        Affected::Services(vec![object(name)])
    }

    #[test]
    fn r169_slices_come_before_their_service_and_outlive_it() {
        let mut world = World::new();
        assert_eq!(
            world.apply(Event::Slice(slice("web-1", "web", "a"))),
            Affected::Nothing
        );
        assert!(world.service(&object("web")).is_none());
        assert_eq!(world.apply(Event::Service(service("web"))), only("web"));
        assert_eq!(world.service(&object("web")).unwrap().1.len(), 1);
        assert_eq!(world.apply(Event::ServiceGone(object("web"))), only("web"));
        assert_eq!(world.services().count(), 0);
        assert_eq!(world.apply(Event::Service(service("web"))), only("web"));
        assert_eq!(world.service(&object("web")).unwrap().1.len(), 1);
    }

    #[test]
    fn r170_what_is_known_already_affects_nothing() {
        let mut world = World::new();
        let events = [
            Event::Service(service("web")),
            Event::Slice(slice("web-1", "web", "a")),
            node(Some("z"), "192.0.2.1"),
        ];
        for event in &events {
            assert_ne!(world.apply(event.clone()), Affected::Nothing);
        }
        for event in events {
            assert_eq!(world.apply(event), Affected::Nothing);
        }
        assert_eq!(
            world.apply(Event::ServiceGone(object("other"))),
            Affected::Nothing
        );
        assert_eq!(
            world.apply(Event::SliceGone(object("other"))),
            Affected::Nothing
        );
    }

    #[test]
    fn a_slice_may_go_from_one_service_to_another() {
        let mut world = World::new();
        for name in ["a", "b"] {
            world.apply(Event::Service(service(name)));
        }
        assert_eq!(world.apply(Event::Slice(slice("s", "a", "n"))), only("a"));
        let both = Affected::Services(vec![object("a"), object("b")]);
        assert_eq!(world.apply(Event::Slice(slice("s", "b", "n"))), both);
        assert!(world.service(&object("a")).unwrap().1.is_empty());
        assert_eq!(world.apply(Event::SliceGone(object("s"))), only("b"));
        assert!(world.service(&object("b")).unwrap().1.is_empty());
    }

    #[test]
    fn slices_are_ordered_by_name_whatever_came_first() {
        let mut world = World::new();
        world.apply(Event::Service(service("web")));
        for name in ["web-2", "web-3", "web-1"] {
            world.apply(Event::Slice(slice(name, "web", "n")));
        }
        let (_, slices) = world.service(&object("web")).unwrap();
        let names: Vec<_> = slices.iter().map(|slice| &*slice.name.name).collect();
        assert_eq!(names, ["web-1", "web-2", "web-3"]);
    }

    #[test]
    fn r46_only_the_zone_of_the_node_affects_all() {
        let mut world = World::new();
        assert_eq!(world.apply(node(None, "192.0.2.1")), Affected::Nothing);
        assert_eq!(world.apply(node(Some("a"), "192.0.2.1")), Affected::All);
        assert_eq!(world.apply(node(Some("a"), "192.0.2.2")), Affected::Nothing);
        assert_eq!(world.apply(node(None, "192.0.2.2")), Affected::All);
        assert_eq!(world.zone(), None);
    }

    #[test]
    fn service_cidrs_replace_those_before_and_affect_no_service() {
        let mut world = World::new();
        world.apply(Event::Service(service("a")));
        for ranges in [vec!["10.96.0.0/16".parse().unwrap()], vec![]] {
            let affected = world.apply(Event::ServiceCidrs(ranges.clone()));
            assert_eq!(affected, Affected::Nothing);
            assert_eq!(world.service_cidrs(), ranges);
        }
    }

    #[test]
    fn r105_other_addresses_of_the_node_affect_who_has_source_ranges() {
        let mut world = World::new();
        let mut guarded = service("guarded");
        guarded.source_ranges = vec!["10.0.0.0/8".parse().unwrap()];
        world.apply(Event::Service(guarded));
        world.apply(Event::Service(service("open")));
        let affected = Affected::Services(vec![object("guarded")]);
        assert_eq!(world.apply(node(None, "10.0.0.1")), affected);
        assert_eq!(world.apply(node(None, "10.0.0.1")), Affected::Nothing);
        assert_eq!(world.apply(node(None, "10.0.0.2")), affected);
    }

    #[test]
    fn nothing_is_left_of_what_is_gone() {
        let mut world = World::new();
        world.apply(Event::Slice(slice("s", "a", "n")));
        world.apply(Event::Service(service("a")));
        world.apply(Event::ServiceGone(object("a")));
        world.apply(Event::SliceGone(object("s")));
        assert!(world.services.is_empty() && world.owners.is_empty());
    }

    #[test]
    fn names_are_stored_once_and_forgotten_when_unused() {
        let mut world = World::new();
        for round in 0..10 * Names::FEW {
            world.apply(Event::Slice(slice("s", "a", &format!("node-{round}"))));
            world.apply(Event::Slice(slice("t", "a", &format!("node-{round}"))));
        }
        assert!(world.names.known.len() <= Names::FEW);
        let nodes: Vec<_> = world.services[&object("a")]
            .slices
            .iter()
            .map(|slice| slice.endpoints[0].node.clone().unwrap())
            .collect();
        assert!(Arc::ptr_eq(&nodes[0], &nodes[1]));
    }
}
