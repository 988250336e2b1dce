//! Which devices lead where, and which addresses are this node's.
//!
//! [`monitor`] turns rtnetlink into events; [`Devices`] turns events into tasks, purely.
//! [`host_edge`] makes the device that this node's own processes reach Services by, [`routes`] the
//! routes to it.

pub mod host_edge;
pub mod monitor;
mod pattern;
mod role;
pub mod routes;
mod sysctls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use self::pattern::{DevicePatterns, PatternError};
pub use self::role::{Link, LinkKind, Patterns, Port, Role, roles};
pub use crate::loader::attach::Device;
use crate::node::LocalDevice;

/// An address that a device has and that may be used.
///
/// Tentative IPv6 addresses are not: nobody answers for them yet; nor are those that another host
/// turned out to have. All others are this node's, deprecated and temporary ones included; these
/// two only make the last sources, since flows should outlive them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Assigned {
    /// The address.
    pub ip: IpAddr,
    /// How well it suits as the source of a packet.
    pub standing: Standing,
}

/// How well an address suits as the source of a packet, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// Nothing is wrong with it.
    Preferred,
    /// The second of its network.
    Secondary,
    /// IPv6: made up for privacy and for some hours only.
    Temporary,
    /// IPv6: on its way out.
    Deprecated,
    /// Not for others: its scope is the link or this host.
    Narrow,
}

/// A change of links or addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A link is there, new or changed.
    Link(Link),
    /// The link with this number is gone.
    LinkGone(u32),
    /// The link has this address.
    Address(u32, Assigned),
    /// The link has it no more, or it may not be used.
    AddressGone(u32, IpAddr),
    /// One of our routes is gone.
    RouteGone,
    /// All there is: at start, and after changes were missed.
    Everything(Everything),
}

/// All links and addresses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Everything {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses that may be used, with the link that has each, in the kernel's order.
    pub addresses: Vec<(u32, Assigned)>,
    /// Links that carry a default route.
    pub uplinks: BTreeSet<u32>,
}

/// What is to be done about a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Task {
    /// The programs of this role belong on it.
    Attach(Device, Role),
    /// No programs belong on it any more.
    Detach(Device),
    /// It is gone: remove what it left behind.
    Forget(Device),
}

/// What is known of devices, and which ones have programs.
#[derive(Debug)]
pub struct Devices {
    patterns: Patterns,
    links: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<Assigned>>,
    uplinks: BTreeSet<u32>,
    edges: BTreeMap<u32, (Device, Role)>,
}

impl Devices {
    /// Knows nothing yet; names of devices override what they look like.
    pub const fn new(patterns: Patterns) -> Self {
        Self {
            patterns,
            links: BTreeMap::new(),
            addresses: BTreeMap::new(),
            uplinks: BTreeSet::new(),
            edges: BTreeMap::new(),
        }
    }

    /// The devices with programs.
    pub fn edges(&self) -> impl Iterator<Item = (&Device, Role)> {
        self.edges.values().map(|(device, role)| (device, *role))
    }

    /// The devices without programs.
    pub fn others(&self) -> impl Iterator<Item = &Device> {
        let devices = self.links.values().map(|link| &link.device);
        devices.filter(|device| !self.edges.contains_key(&device.index))
    }

    /// Takes note of `event`, and tells what is to be done.
    pub fn apply(&mut self, event: Event) -> Vec<Task> {
        match event {
            Event::Link(link) => self.link(link),
            Event::LinkGone(index) => self.link_gone(index),
            Event::Address(index, assigned) => {
                note(self.addresses.entry(index).or_default(), assigned);
                Vec::new()
            }
            Event::AddressGone(index, ip) => {
                if let Some(addresses) = self.addresses.get_mut(&index) {
                    addresses.retain(|assigned| assigned.ip != ip);
                }
                Vec::new()
            }
            Event::RouteGone => Vec::new(),
            Event::Everything(everything) => self.replace(everything),
        }
    }

    fn link(&mut self, link: Link) -> Vec<Task> {
        let index = link.device.index;
        if self.links.get(&index) == Some(&link) {
            return Vec::new();
        }
        let _old = self.links.insert(index, link);
        self.follow_roles()
    }

    fn link_gone(&mut self, index: u32) -> Vec<Task> {
        let _old = self.links.remove(&index);
        let _addresses = self.addresses.remove(&index);
        let gone = self.edges.remove(&index);
        let mut tasks = Vec::from_iter(gone.map(|(device, _)| Task::Forget(device)));
        tasks.extend(self.follow_roles());
        tasks
    }

    /// One device can change the role of another: a bridge is what its ports are.
    fn follow_roles(&mut self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (index, role) in roles(&self.links, &self.uplinks, &self.patterns) {
            let Some(link) = self.links.get(&index) else {
                continue;
            };
            let device = link.device.clone();
            if role == Role::Other {
                let was_edge = self.edges.remove(&index).is_some();
                tasks.extend(was_edge.then_some(Task::Detach(device)));
                continue;
            }
            let new = (device.clone(), role);
            if self.edges.get(&index) != Some(&new) {
                let _old = self.edges.insert(index, new);
                tasks.push(Task::Attach(device, role));
            }
        }
        tasks
    }

    /// All edges are to be attached anew: a number may have gone from one device to another.
    fn replace(&mut self, everything: Everything) -> Vec<Task> {
        let Everything {
            links,
            addresses,
            uplinks,
        } = everything;
        let links = links.into_iter().map(|link| (link.device.index, link));
        self.links = links.collect();
        self.uplinks = uplinks;
        self.addresses.clear();
        for (index, assigned) in addresses {
            note(self.addresses.entry(index).or_default(), assigned);
        }
        let (kept, gone) = std::mem::take(&mut self.edges)
            .into_iter()
            .partition(|(index, _)| self.links.contains_key(index));
        self.edges = kept;
        let gone: BTreeMap<u32, (Device, Role)> = gone;
        let forget = gone.into_values().map(|(device, _)| Task::Forget(device));
        let mut tasks: Vec<_> = forget.collect();
        let changes = self.follow_roles();
        let detach = changes
            .into_iter()
            .filter(|task| matches!(task, Task::Detach(_)));
        tasks.extend(detach);
        let edges = self.edges.values().cloned();
        tasks.extend(edges.map(|(device, role)| Task::Attach(device, role)));
        tasks
    }

    /// All devices, those first whose addresses suit best as this node's: the ways out, then what
    /// leads elsewhere, then what leads to pods or nowhere.
    pub fn local(&self) -> Vec<LocalDevice> {
        let mut links: Vec<_> = self.links.values().collect();
        links.sort_by_key(|link| {
            let index = link.device.index;
            let is_remote = link.kind.leads_elsewhere() && !self.leads_to_pod(index);
            (!self.uplinks.contains(&index), !is_remote, index)
        });
        links
            .into_iter()
            .map(|link| self.local_device(link))
            .collect()
    }

    fn leads_to_pod(&self, index: u32) -> bool {
        let edge = self.edges.get(&index);
        edge.is_some_and(|(_, role)| *role == Role::PodEdge)
    }

    fn local_device(&self, link: &Link) -> LocalDevice {
        let mut addresses = self
            .addresses
            .get(&link.device.index)
            .cloned()
            .unwrap_or_default();
        // Stable: among equals the kernel's order decides, as it does for its own packets.
        addresses.sort_by_key(|assigned| assigned.standing);
        let bridge = link.port.filter(|port| port.is_bridge);
        let master = bridge.and_then(|port| self.links.get(&port.master));
        LocalDevice {
            index: link.device.index,
            name: link.device.name.clone(),
            master: master.map(|master| master.device.name.clone()),
            mtu: link.mtu,
            mac: link.mac,
            addresses: addresses.into_iter().map(|assigned| assigned.ip).collect(),
            is_loopback: link.kind == LinkKind::Loopback,
            leads_to_pod: self.leads_to_pod(link.device.index),
        }
    }

    /// Whether the host edge is there, up, and lets packets through as large as the way out does.
    pub fn has_host_edge(&self) -> bool {
        let uplinks = self
            .uplinks
            .iter()
            .filter_map(|index| self.links.get(index));
        let mtu = uplinks.map(|link| link.mtu).min();
        let host = self.host_device().and_then(|index| self.links.get(&index));
        host.is_some_and(|link| link.is_up && mtu.is_none_or(|mtu| link.mtu == mtu))
    }

    /// Index of the device by which this node's own processes reach Services.
    pub fn host_device(&self) -> Option<u32> {
        let mut edges = self.edges.iter();
        let host = edges.find(|(_, (_, role))| *role == Role::HostEdge);
        host.map(|(index, _)| *index)
    }
}

/// An address that is there already keeps its place.
fn note(addresses: &mut Vec<Assigned>, new: Assigned) {
    match addresses.iter_mut().find(|old| old.ip == new.ip) {
        Some(old) => *old = new,
        None => addresses.push(new),
    }
}

#[cfg(test)]
mod tests;
