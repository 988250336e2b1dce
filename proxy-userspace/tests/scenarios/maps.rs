//! Maps in memory that check every write, and what a packet would see in them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use beeline::desired::{DesiredBackend, DesiredPort};
use beeline::model::ObjectName;
use beeline::sync::{Capacity, Contents, Target, Write};
use ipnet::IpNet;
use proxy_common::abi::{
    Addr, AddressFlags, Backend, BackendFlags, BackendState, Frontend, FrontendFlags, FrontendKey,
    Port, ServiceName,
};

/// What a packet to one frontend would see: everything that decides about it, without ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) service: String,
    pub(crate) flags: FrontendFlags,
    pub(crate) affinity_seconds: u32,
    pub(crate) local: Vec<SocketAddr>,
    pub(crate) cluster: Vec<SocketAddr>,
    /// From where connections are taken; empty: from everywhere.
    pub(crate) ranges: BTreeSet<IpNet>,
}

/// What packets would see, by frontend.
pub(crate) type View = BTreeMap<FrontendKey, Seen>;

/// What packets should see of a Service.
pub(crate) fn desired_view(name: &ObjectName, ports: &[DesiredPort]) -> View {
    let pairs = ports
        .iter()
        .flat_map(|port| port.frontends.iter().map(move |it| (port, it)));
    pairs
        .map(|(port, frontend)| {
            let cluster = port.cluster_offset as usize..port.n_slots() as usize;
            let colon = if port.name.is_empty() { "" } else { ":" };
            let seen = Seen {
                service: format!("{name}{colon}{}", port.name),
                flags: frontend.flags,
                affinity_seconds: port.affinity_seconds,
                local: port.backends[..port.n_local as usize]
                    .iter()
                    .map(desired_socket)
                    .collect(),
                cluster: port.backends[cluster].iter().map(desired_socket).collect(),
                ranges: if frontend.flags.contains(FrontendFlags::SOURCE_RANGES) {
                    port.source_ranges.iter().copied().collect()
                } else {
                    BTreeSet::new()
                },
            };
            (frontend.key, seen)
        })
        .collect()
}

/// By service port and address, what a backend is good for.
pub(crate) type Backends = BTreeMap<String, (u8, BackendFlags)>;

/// What there should be of the backends of a Service.
pub(crate) fn desired_backends(name: &ObjectName, ports: &[DesiredPort]) -> Backends {
    let of_port = |port: &DesiredPort| {
        let colon = if port.name.is_empty() { "" } else { ":" };
        let text = format!("{name}{colon}{} {}", port.name, port.protocol.number());
        let line = |(index, it): (usize, &DesiredBackend)| {
            let flags = port.backend_flags(index);
            (
                format!("{text} {}", desired_socket(it)),
                (it.state as u8, flags),
            )
        };
        port.backends
            .iter()
            .enumerate()
            .map(line)
            .collect::<Vec<_>>()
    };
    ports.iter().flat_map(of_port).collect()
}

fn desired_socket(backend: &DesiredBackend) -> SocketAddr {
    socket(backend.addr, backend.port)
}

fn socket(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), port.number())
}

#[derive(Debug, thiserror::Error)]
#[error("the kernel said no")]
pub(crate) struct Refused;

/// The four maps. A write that breaks the order, reuses what a running program may hold, or
/// exceeds a map's size is a failed assertion.
#[derive(Clone)]
pub(crate) struct Maps {
    capacity: Capacity,
    services: BTreeMap<u32, ServiceName>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    slots: Vec<u32>,
    backends: Vec<Backend>,
    addresses: BTreeMap<Addr, AddressFlags>,
    source_ranges: BTreeSet<(u32, IpNet)>,
    /// What programs that began before the next grace period may hold.
    held_slots: BTreeSet<u32>,
    held_backends: BTreeSet<u32>,
    held_services: BTreeSet<u32>,
    /// Every write that was carried out.
    pub(crate) log: Vec<Write>,
    /// The contents after each of them, if asked for.
    pub(crate) history: Option<Vec<Maps>>,
    pub(crate) n_grace_periods: usize,
    /// Whether the next writes fail, one after the other; then none does.
    pub(crate) faults: Vec<bool>,
    pub(crate) fault: Option<Fault>,
    /// The last write that failed for it.
    pub(crate) failed: Option<Write>,
}

/// Writes that fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    pub(crate) failing: Failing,
    /// How many writes are tried before.
    pub(crate) after: usize,
}

/// Which writes fail when the time has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failing {
    /// The next one.
    One,
    /// All that need an entry more, as if the kernel had less room than it said.
    NewEntries,
    /// All.
    All,
}

impl Maps {
    pub(crate) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            services: BTreeMap::new(),
            frontends: BTreeMap::new(),
            slots: vec![0; capacity.slots as usize],
            backends: vec![bytemuck::Zeroable::zeroed(); capacity.backends as usize],
            addresses: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            held_slots: BTreeSet::new(),
            held_backends: BTreeSet::new(),
            held_services: BTreeSet::new(),
            log: vec![],
            history: None,
            n_grace_periods: 0,
            faults: vec![],
            fault: None,
            failed: None,
        }
    }

    /// Makes the maps as large as this.
    pub(crate) fn grow(&mut self, capacity: Capacity) {
        self.capacity = capacity;
        self.slots.resize(capacity.slots as usize, 0);
        let never_used = bytemuck::Zeroable::zeroed();
        self.backends.resize(capacity.backends as usize, never_used);
    }

    fn fails(&mut self, write: &Write) -> bool {
        let needs_entry = self.needs_entry(write);
        let Some(fault) = &mut self.fault else {
            return false;
        };
        if fault.after > 0 {
            fault.after -= 1;
            return false;
        }
        let fails = fault.failing != Failing::NewEntries || needs_entry;
        if fails {
            self.failed = Some(write.clone());
        }
        if fault.failing == Failing::One {
            self.fault = None;
        }
        fails
    }

    fn needs_entry(&self, write: &Write) -> bool {
        match write {
            Write::Service { .. } | Write::SourceRange { .. } => true,
            Write::Frontend { key, .. } => !self.frontends.contains_key(key),
            Write::Address { addr, .. } => !self.addresses.contains_key(addr),
            Write::Backend { .. }
            | Write::Slots { .. }
            | Write::RemoveFrontend { .. }
            | Write::RemoveAddress { .. }
            | Write::RemoveSourceRange { .. }
            | Write::RemoveService { .. } => false,
        }
    }

    /// Maps that somebody else has written to.
    pub(crate) fn holding(capacity: Capacity, contents: Contents) -> Self {
        Self {
            services: contents.services.into_iter().collect(),
            frontends: contents.frontends.into_iter().collect(),
            slots: contents.slots,
            backends: contents.backends,
            addresses: contents.addresses.into_iter().collect(),
            source_ranges: contents.source_ranges.into_iter().collect(),
            ..Self::new(capacity)
        }
    }

    pub(crate) fn contents(&self) -> Contents {
        Contents {
            services: self.services.clone().into_iter().collect(),
            frontends: self.frontends.clone().into_iter().collect(),
            slots: self.slots.clone(),
            backends: self.backends.clone(),
            addresses: self.addresses.clone().into_iter().collect(),
            source_ranges: self.source_ranges.clone().into_iter().collect(),
        }
    }

    /// Fails where a frontend does not lead to live backends of its own service port.
    pub(crate) fn view(&self) -> View {
        self.frontends
            .iter()
            .map(|(key, value)| (*key, self.seen(value)))
            .collect()
    }

    /// The same of one Service.
    pub(crate) fn view_of(&self, name: &ObjectName) -> View {
        let is_own = |text: &str| text.split(':').next() == Some(&name.to_string());
        let mut view = self.view();
        view.retain(|_, it| is_own(&it.service));
        view
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.services.is_empty()
            && self.addresses.is_empty()
            && self.source_ranges.is_empty()
            && self.backends.iter().all(|backend| !is_live(backend))
    }

    fn seen(&self, value: &Frontend) -> Seen {
        let socket = |slot: u32| {
            let backend = self.backends[self.slots[slot as usize] as usize];
            assert!(
                is_live(&backend),
                "a frontend leads to a backend that is gone"
            );
            assert_ne!(backend.generation, 0, "a life begins with generation 0");
            assert_eq!(
                backend.service, value.service,
                "a frontend leads to another's backend"
            );
            socket(backend.addr, backend.port)
        };
        let cluster = value.first_slot + value.cluster_offset;
        Seen {
            service: self.services[&value.service].text().to_owned(),
            flags: value.flags,
            affinity_seconds: value.affinity_seconds,
            local: (value.first_slot..value.first_slot + value.n_local)
                .map(socket)
                .collect(),
            cluster: (cluster..cluster + value.n_cluster).map(socket).collect(),
            ranges: if value.flags.contains(FrontendFlags::SOURCE_RANGES) {
                let own = self.source_ranges.iter();
                let own = own.filter(|(service, _)| *service == value.service);
                own.map(|(_, net)| *net).collect()
            } else {
                BTreeSet::new()
            },
        }
    }

    /// The live backends, with what they are good for.
    pub(crate) fn backends(&self) -> Backends {
        let live = self.backends.iter().filter(|backend| is_live(backend));
        let line = |it: &Backend| {
            let name = &self.services[&it.service];
            let place = socket(it.addr, it.port);
            let port = format!("{} {} {place}", name.text(), name.protocol);
            (port, (it.state, it.flags))
        };
        live.map(line).collect()
    }

    /// What frontends and these addresses of the node make of every address.
    pub(crate) fn assert_addresses(&self, own: &BTreeMap<Addr, AddressFlags>) {
        let mut expected = own.clone();
        for key in self.frontends.keys().filter(|key| key.scope == 0) {
            let flags = own.get(&key.addr).copied().unwrap_or_default();
            expected.insert(key.addr, flags.union(self.used_as(key.addr)));
        }
        assert_eq!(self.addresses, expected);
    }

    /// Slots that frontends name.
    fn slots_in_force(&self) -> BTreeSet<u32> {
        self.frontends.values().flat_map(slots_of).collect()
    }

    fn backends_in_force(&self) -> BTreeSet<u32> {
        self.slots_in_force()
            .into_iter()
            .map(|slot| self.slots[slot as usize])
            .collect()
    }

    fn put_service(&mut self, id: u32, name: ServiceName) {
        assert!(id < self.capacity.services, "SERVICES: no such id");
        assert!(
            !self.held_services.contains(&id),
            "a service id is reused too early"
        );
        assert!(
            self.backends
                .iter()
                .all(|it| it.state != DETACHED || it.service != id),
            "a service id is reused that flows name"
        );
        assert!(
            self.services.insert(id, name).is_none(),
            "a service id is used twice"
        );
    }

    fn put_backend(&mut self, id: u32, new: Backend) {
        let old = self.backends[id as usize];
        match (old.state, new.state) {
            (0, 0) => panic!("a backend goes twice"),
            (0, _) => {
                assert!(
                    !self.held_backends.contains(&id),
                    "a backend id is reused too early"
                );
                assert_eq!(new.generation, old.generation.max(1), "a life's generation");
                assert!(
                    new.joined > old.joined,
                    "a life that affinity takes for the last one"
                );
            }
            (_, DETACHED) => {
                assert_ne!(old.state, DETACHED, "a backend is detached twice");
                assert!(
                    !self.backends_in_force().contains(&id),
                    "a backend in force is detached"
                );
                assert_eq!(identity(new), identity(old), "flows lose their backend");
            }
            (_, 0) => {
                assert_eq!(new.generation, old.generation + 1, "the next generation");
                assert!(
                    !self.backends_in_force().contains(&id),
                    "a backend in force goes"
                );
                self.held_backends.insert(id);
            }
            (_, _) => {
                assert_ne!(old.state, DETACHED, "a detached backend comes back");
                assert_eq!(
                    identity(new),
                    identity(old),
                    "an id changes hands in mid-life"
                );
            }
        }
        let is_member = new.flags.contains(BackendFlags::IN_LOCAL_SET)
            || new.flags.contains(BackendFlags::IN_CLUSTER_SET);
        assert!(is_live(&new) || !is_member, "what is no more is in a set");
        assert!(new.joined >= old.joined, "what affinity goes by is reset");
        self.backends[id as usize] = new;
    }

    fn put_slots(&mut self, first: u32, ids: &[u32]) {
        assert!(!ids.is_empty(), "no slots");
        let in_force = self.slots_in_force();
        for (slot, &id) in (first..).zip(ids) {
            assert!(!in_force.contains(&slot), "a block in force is overwritten");
            assert!(
                !self.held_slots.contains(&slot),
                "a block is reused too early"
            );
            self.slots[slot as usize] = id;
        }
    }

    fn put_frontend(&mut self, key: FrontendKey, value: Option<Frontend>) {
        let old = match value {
            Some(value) => self.frontends.insert(key, value),
            None => Some(
                self.frontends
                    .remove(&key)
                    .expect("a frontend is removed twice"),
            ),
        };
        assert_ne!(old, value, "a write that changes nothing");
        self.assert_found(key.addr);
        assert!(
            self.frontends.len() <= self.capacity.frontends as usize,
            "FRONTENDS: full"
        );
        self.held_slots.extend(old.iter().flat_map(slots_of));
    }

    fn put_address(&mut self, addr: Addr, flags: AddressFlags) {
        let old = if flags.is_empty() {
            self.addresses.remove(&addr)
        } else {
            self.addresses.insert(addr, flags)
        };
        assert_ne!(
            old.unwrap_or_default(),
            flags,
            "a write that changes nothing"
        );
        assert!(
            self.addresses.len() <= self.capacity.addresses as usize,
            "ADDRESSES: full"
        );
        self.assert_found(addr);
    }

    /// Whether every frontend at an address is found there.
    fn assert_found(&self, addr: Addr) {
        let flags = self.addresses.get(&addr).copied().unwrap_or_default();
        assert!(
            flags.contains(self.used_as(addr)),
            "a frontend at {addr} is not found by {flags:?}"
        );
    }

    /// What frontends make of an address.
    fn used_as(&self, addr: Addr) -> AddressFlags {
        let at = self
            .frontends
            .iter()
            .filter(|(key, _)| key.addr == addr && key.scope == 0);
        at.fold(AddressFlags::NONE, |all, (_, value)| {
            all.union(if value.flags.contains(FrontendFlags::EXTERNAL) {
                AddressFlags::EXTERNAL
            } else {
                AddressFlags::CLUSTER_IP
            })
        })
    }

    fn put_source_range(&mut self, service: u32, net: IpNet) {
        assert!(
            self.services.contains_key(&service),
            "a range of no service"
        );
        assert!(
            self.source_ranges.insert((service, net)),
            "a write that changes nothing"
        );
        assert!(
            self.source_ranges.len() <= self.capacity.source_ranges as usize,
            "SOURCE_RANGES: full"
        );
    }

    fn remove_service(&mut self, id: u32) {
        assert!(
            self.services.remove(&id).is_some(),
            "a service is removed twice"
        );
        assert!(
            self.frontends.values().all(|it| it.service != id),
            "frontends lose their service"
        );
        let live = self.backends.iter().filter(|backend| is_live(backend));
        assert!(
            live.into_iter().all(|it| it.service != id),
            "backends lose their service"
        );
        assert!(
            self.source_ranges.iter().all(|(service, _)| *service != id),
            "source ranges lose their service"
        );
        self.held_services.insert(id);
    }
}

const DETACHED: u8 = BackendState::Detached as u8;

/// Whether an endpoint of a service port that is there has this id.
fn is_live(backend: &Backend) -> bool {
    backend.state != 0 && backend.state != DETACHED
}

/// What stays the same for a backend's life.
fn identity(it: Backend) -> (Addr, Port, u32, u32) {
    (it.addr, it.port, it.service, it.generation)
}

/// The slots that a frontend names; its entry may be damaged.
fn slots_of(frontend: &Frontend) -> std::ops::Range<u32> {
    let cluster_end = frontend.cluster_offset.saturating_add(frontend.n_cluster);
    let len = frontend.n_local.max(cluster_end).min(1 << 16);
    frontend.first_slot..frontend.first_slot.saturating_add(len)
}

impl Target for Maps {
    type Error = Refused;

    fn write(&mut self, write: &Write) -> Result<(), Refused> {
        if self.faults.pop().unwrap_or(false) || self.fails(write) {
            return Err(Refused);
        }
        match write {
            Write::Service { id, name } => self.put_service(*id, *name),
            Write::Backend { id, backend } => self.put_backend(*id, *backend),
            Write::Slots { first, ids } => self.put_slots(*first, ids),
            Write::Frontend { key, value } => self.put_frontend(*key, Some(*value)),
            Write::RemoveFrontend { key } => self.put_frontend(*key, None),
            Write::RemoveService { id } => self.remove_service(*id),
            Write::Address { addr, flags } => self.put_address(*addr, *flags),
            Write::RemoveAddress { addr } => self.put_address(*addr, AddressFlags::NONE),
            Write::SourceRange { service, net } => self.put_source_range(*service, *net),
            Write::RemoveSourceRange { service, net } => {
                let was_there = self.source_ranges.remove(&(*service, *net));
                assert!(was_there, "a source range is removed twice");
            }
        }
        self.log.push(write.clone());
        if let Some(mut history) = self.history.take() {
            history.push(self.clone());
            self.history = Some(history);
        }
        Ok(())
    }

    fn grace_period(&mut self) {
        self.n_grace_periods += 1;
        self.held_slots.clear();
        self.held_backends.clear();
        self.held_services.clear();
    }
}
