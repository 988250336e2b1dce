//! What the maps hold, indexed by Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytemuck::Zeroable;
use ipnet::{IpNet, Ipv4Net};
use proxy_common::abi::{
    Addr, AddressFlags, Backend, BackendState, Family, Frontend, FrontendFlags, FrontendKey, Port,
    Scope, ServiceName,
};

use super::blocks::Block;
use super::refusal::Refusal;
use super::target::Write;
use crate::desired::DesiredPort;
use crate::model::ObjectName;

/// A copy of the maps' contents. It changes only by [`Self::apply`], after the target has carried
/// out the same write, so the two are equal at every moment.
#[derive(Default, Debug)]
pub(super) struct Actual {
    /// Boxed, since half of a map's nodes may be empty.
    pub(super) ports: BTreeMap<u32, Box<HeldPort>>,
    pub(super) owners: BTreeMap<ObjectName, Vec<u32>>,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) slots: Vec<u32>,
    pub(super) backends: Vec<Backend>,
    pub(super) addresses: BTreeMap<Addr, AddressFlags>,
    /// Service id and range.
    pub(super) source_ranges: BTreeSet<(u32, IpNet)>,
    /// How many frontends each address has.
    uses: BTreeMap<Addr, Uses>,
}

/// No range is before this one.
const FIRST_NET: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

/// How many frontends an address has, NodePorts aside, which are at no address.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Uses {
    n_cluster_ip: u32,
    n_external: u32,
}

/// A service port that has an id.
#[derive(Debug)]
pub(super) struct HeldPort {
    pub(super) owner: ObjectName,
    name: Arc<str>,
    protocol: u8,
    family: u8,
    /// Its frontends in force.
    pub(super) frontends: Vec<FrontendKey>,
    /// Ids of its backends, all but the gone ones, ordered by address and port.
    pub(super) backends: Vec<u32>,
}

impl HeldPort {
    pub(super) fn is_of(&self, family: Family) -> bool {
        self.family == family_number(family)
    }

    pub(super) fn new(owner: ObjectName, desired: &DesiredPort) -> Self {
        Self {
            owner,
            name: Arc::clone(&desired.name),
            protocol: desired.protocol.number(),
            family: family_number(desired.family),
            frontends: Vec::new(),
            backends: Vec::new(),
        }
    }

    /// The reverse of [`service_name`]. A text that it can't have made is a Service's that nobody
    /// has.
    pub(super) fn parse(name: &ServiceName) -> Self {
        let (namespace, rest) = name.text().split_once('/').unwrap_or(("", name.text()));
        let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
        Self {
            owner: ObjectName {
                namespace: namespace.into(),
                name: service.into(),
            },
            name: port.into(),
            protocol: name.protocol,
            family: name.family,
            frontends: Vec::new(),
            backends: Vec::new(),
        }
    }

    /// Whether this is the same service port (rule R5).
    pub(super) fn is(&self, desired: &DesiredPort) -> bool {
        self.name == desired.name
            && self.protocol == desired.protocol.number()
            && self.family == family_number(desired.family)
    }
}

/// What `SERVICES` shall say of a service port.
pub(super) fn service_name(
    owner: &ObjectName,
    desired: &DesiredPort,
) -> Result<ServiceName, Refusal> {
    let text = if desired.name.is_empty() {
        owner.to_string()
    } else {
        format!("{owner}:{}", desired.name)
    };
    ServiceName::new(
        &text,
        desired.protocol.number(),
        family_number(desired.family),
    )
    .ok_or(Refusal::LongName { length: text.len() })
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 6,
    }
}

impl Actual {
    /// The service port with this id.
    pub(super) fn port(&self, id: u32) -> Option<&HeldPort> {
        self.ports.get(&id).map(Box::as_ref)
    }

    /// Ids of the service ports of a Service.
    pub(super) fn ids_of(&self, owner: &ObjectName) -> &[u32] {
        self.owners.get(owner).map_or(&[], Vec::as_slice)
    }

    /// The id of a service port.
    pub(super) fn find_port(&self, owner: &ObjectName, desired: &DesiredPort) -> Option<u32> {
        let is_same = |id: &u32| self.port(*id).is_some_and(|port| port.is(desired));
        self.ids_of(owner).iter().copied().find(is_same)
    }

    /// The id of one of a service port's backends.
    pub(super) fn find_backend(&self, port: &HeldPort, socket: (Addr, Port)) -> Option<u32> {
        let index = port
            .backends
            .binary_search_by_key(&socket, |&id| self.socket(id))
            .ok()?;
        port.backends.get(index).copied()
    }

    /// The entry of a backend id; never used ones are all zero.
    pub(super) fn backend(&self, id: u32) -> Backend {
        self.backends
            .get(id as usize)
            .copied()
            .unwrap_or(Backend::zeroed())
    }

    /// The block in force at a service port that holds exactly these backends.
    pub(super) fn find_block(&self, port: &HeldPort, ids: &[u32]) -> Option<u32> {
        let blocks = self.frontends_of(port).map(Block::of);
        blocks
            .filter(|it| it.of_slots(&self.slots) == Some(ids))
            .map(|block| block.first)
            .next()
    }

    /// Whether a frontend of this service port names the block that begins there.
    pub(super) fn names_block(&self, service: u32, first: u32) -> bool {
        self.port(service).is_some_and(|port| {
            self.frontends_of(port)
                .any(|it| it.first_slot == first && Block::of(it).len > 0)
        })
    }

    /// Adds a service port that `SERVICES` now has.
    pub(super) fn add_port(&mut self, id: u32, port: HeldPort) {
        self.owners.entry(port.owner.clone()).or_default().push(id);
        self.ports.insert(id, Box::new(port));
    }

    /// Repeats a write that the target has carried out. Yields the block that a frontend does not
    /// name any more because of it, and whose block that was.
    pub(super) fn apply(&mut self, write: Write) -> Option<(u32, Block)> {
        match write {
            // Only the caller knows the port in full: see `add_port`.
            Write::Service { .. } => None,
            Write::Backend { id, backend } => {
                self.apply_backend(id, backend);
                None
            }
            Write::Slots { first, ids } => {
                self.apply_slots(first, &ids);
                None
            }
            Write::Frontend { key, value } => self.apply_frontend(key, value),
            Write::RemoveFrontend { key } => {
                let old = self.frontends.remove(&key)?;
                self.count_use(&key, &old, -1);
                self.detach(&key, &old);
                Some((old.service, Block::of(&old)))
            }
            Write::RemoveService { id } => {
                self.remove_port(id);
                None
            }
            Write::Address { addr, flags } => {
                self.addresses.insert(addr, flags);
                None
            }
            Write::RemoveAddress { addr } => {
                self.addresses.remove(&addr);
                None
            }
            Write::SourceRange { service, net } => {
                self.source_ranges.insert((service, net));
                None
            }
            Write::RemoveSourceRange { service, net } => {
                self.source_ranges.remove(&(service, net));
                None
            }
        }
    }

    fn apply_backend(&mut self, id: u32, backend: Backend) {
        let index = id as usize;
        if index >= self.backends.len() {
            self.backends.resize(index + 1, Backend::zeroed());
        }
        let was_live = is_live(&self.backends[index]);
        self.backends[index] = backend;
        let Some(port) = self.ports.get_mut(&backend.service) else {
            return;
        };
        match (was_live, is_live(&backend)) {
            (false, true) => {
                let socket = |id: u32| socket(self.backends.get(id as usize));
                let at = port.backends.partition_point(|&it| socket(it) < socket(id));
                port.backends.insert(at, id);
            }
            (true, false) => port.backends.retain(|&it| it != id),
            (true, true) | (false, false) => {}
        }
    }

    fn apply_slots(&mut self, first: u32, ids: &[u32]) {
        let (first, end) = (first as usize, first as usize + ids.len());
        if end > self.slots.len() {
            self.slots.resize(end, 0);
        }
        self.slots[first..end].copy_from_slice(ids);
    }

    fn apply_frontend(&mut self, key: FrontendKey, value: Frontend) -> Option<(u32, Block)> {
        let old = self.frontends.insert(key, value);
        self.count_use(&key, &value, 1);
        if let Some(old) = &old {
            self.count_use(&key, old, -1);
        }
        if old.is_none_or(|old| old.service != value.service) {
            if let Some(old) = old {
                self.detach(&key, &old);
            }
            if let Some(port) = self.ports.get_mut(&value.service) {
                port.frontends.reserve_exact(1);
                port.frontends.push(key);
            }
        }
        old.map(|old| (old.service, Block::of(&old)))
    }

    /// Counts one frontend more or less at its address.
    pub(super) fn count_use(&mut self, key: &FrontendKey, value: &Frontend, change: i32) {
        let Some(kind) = address_kind(key, value.flags) else {
            return;
        };
        let uses = self.uses.entry(key.addr).or_default();
        let count = if kind == AddressFlags::EXTERNAL {
            &mut uses.n_external
        } else {
            &mut uses.n_cluster_ip
        };
        *count = count.saturating_add_signed(change);
        if *uses == Uses::default() {
            self.uses.remove(&key.addr);
        }
    }

    /// What its frontends make of an address.
    pub(super) fn used_as(&self, addr: Addr) -> AddressFlags {
        let uses = self.uses.get(&addr).copied().unwrap_or_default();
        let kinds = [
            (uses.n_cluster_ip, AddressFlags::CLUSTER_IP),
            (uses.n_external, AddressFlags::EXTERNAL),
        ];
        let used = kinds.into_iter().filter(|(count, _)| *count > 0);
        used.fold(AddressFlags::NONE, |all, (_, kind)| all.union(kind))
    }

    /// From where connections to a service port's guarded frontends are taken.
    pub(super) fn ranges_of(&self, service: u32) -> impl Iterator<Item = IpNet> {
        let from_first = self.source_ranges.range((service, FIRST_NET)..);
        from_first
            .take_while(move |(owner, _)| *owner == service)
            .map(|(_, net)| *net)
    }

    /// The entry of an address; empty if it has none.
    pub(super) fn address(&self, addr: Addr) -> AddressFlags {
        self.addresses.get(&addr).copied().unwrap_or_default()
    }

    fn detach(&mut self, key: &FrontendKey, old: &Frontend) {
        if let Some(port) = self.ports.get_mut(&old.service) {
            port.frontends.retain(|it| it != key);
        }
    }

    fn remove_port(&mut self, id: u32) {
        let Some(port) = self.ports.remove(&id) else {
            return;
        };
        if let Some(ids) = self.owners.get_mut(&port.owner) {
            ids.retain(|&it| it != id);
            if ids.is_empty() {
                self.owners.remove(&port.owner);
            }
        }
    }

    pub(super) fn frontends_of(&self, port: &HeldPort) -> impl Iterator<Item = &Frontend> {
        port.frontends
            .iter()
            .filter_map(|key| self.frontends.get(key))
    }

    /// Address and port of a backend.
    pub(super) fn socket(&self, id: u32) -> (Addr, Port) {
        socket(self.backends.get(id as usize))
    }
}

/// What a frontend makes of its address; nothing if it is a NodePort, which is at no address.
pub(super) fn address_kind(key: &FrontendKey, flags: FrontendFlags) -> Option<AddressFlags> {
    if key.scope == Scope::NodePort as u8 {
        None
    } else if flags.contains(FrontendFlags::EXTERNAL) {
        Some(AddressFlags::EXTERNAL)
    } else {
        Some(AddressFlags::CLUSTER_IP)
    }
}

fn socket(backend: Option<&Backend>) -> (Addr, Port) {
    backend.map_or((Addr::UNSPECIFIED, Port::ZERO), |backend| {
        (backend.addr, backend.port)
    })
}

/// Whether an endpoint of a service port that is there has this id.
pub(super) fn is_live(backend: &Backend) -> bool {
    !is_gone(backend) && backend.state != BackendState::Detached as u8
}

/// Whether nothing has this id.
pub(super) fn is_gone(backend: &Backend) -> bool {
    backend.state == BackendState::Gone as u8
}
