//! Which devices lead to pods, and which addresses are this node's.
//!
//! [`monitor`] turns rtnetlink into events; [`Devices`] turns events into tasks, purely.

pub mod monitor;
mod pattern;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::abi::Family;

pub use self::pattern::{PatternError, PodDevices};
pub use crate::loader::attach::Device;

/// What is known of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number and name.
    pub device: Device,
    /// Whether it is one end of a pair: veth or netkit.
    pub is_pair: bool,
    /// Whether its other end, if it has one, is in another network namespace.
    pub is_peer_elsewhere: bool,
}

/// What a device is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// A pod is behind it.
    PodEdge,
    /// Anything else.
    Other,
}

/// Names of devices that Beeline makes itself begin so.
const OURS: &str = "beeline";

/// The role of `link`. On its own, a device leads to a pod if it is one end of a pair whose other
/// end is in another network namespace, unless it carries a default route: then this is a node
/// that is itself a container, and the device its way out. `pods` overrides that by name.
pub fn role(link: &Link, is_uplink: bool, pods: &PodDevices) -> Role {
    let is_edge = link.is_pair && link.is_peer_elsewhere && !is_uplink;
    let name = &link.device.name;
    let is_chosen = pods.verdict(name).unwrap_or(is_edge);
    if is_chosen && !name.starts_with(OURS) {
        Role::PodEdge
    } else {
        Role::Other
    }
}

/// A change of links or addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A link is there, new or changed.
    Link(Link),
    /// The link with this number is gone.
    LinkGone(u32),
    /// The link has this global address.
    Address(u32, IpAddr),
    /// The link has it no more.
    AddressGone(u32, IpAddr),
    /// All there is: at start, and after changes were missed.
    Everything(Everything),
}

/// All links and addresses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Everything {
    /// All links.
    pub links: Vec<Link>,
    /// All global addresses, with the link that has each.
    pub addresses: BTreeSet<(u32, IpAddr)>,
    /// Links that carry a default route.
    pub uplinks: BTreeSet<u32>,
}

/// What is to be done about a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Task {
    /// Programs belong on it.
    Attach(Device),
    /// No programs belong on it any more.
    Detach(Device),
    /// It is gone: remove what it left behind.
    Forget(Device),
}

/// What is known of devices, and which ones lead to pods.
#[derive(Debug)]
pub struct Devices {
    pods: PodDevices,
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpAddr)>,
    uplinks: BTreeSet<u32>,
    edges: BTreeMap<u32, Device>,
}

impl Devices {
    /// Knows nothing yet; pods' devices are those that `pods` says.
    pub const fn new(pods: PodDevices) -> Self {
        Self {
            pods,
            links: BTreeMap::new(),
            addresses: BTreeSet::new(),
            uplinks: BTreeSet::new(),
            edges: BTreeMap::new(),
        }
    }

    /// Whether `link` would lead to a pod, given the devices that carry default routes.
    pub fn would_be_edge(&self, link: &Link, uplinks: &BTreeSet<u32>) -> bool {
        role(link, uplinks.contains(&link.device.index), &self.pods) == Role::PodEdge
    }

    /// The devices that lead to pods.
    pub fn edges(&self) -> impl Iterator<Item = &Device> {
        self.edges.values()
    }

    /// Takes note of `event`, and tells what is to be done.
    pub fn apply(&mut self, event: Event) -> Vec<Task> {
        match event {
            Event::Link(link) => self.link(link).into_iter().collect(),
            Event::LinkGone(index) => self.link_gone(index).into_iter().collect(),
            Event::Address(index, address) => {
                let _is_new = self.addresses.insert((index, address));
                Vec::new()
            }
            Event::AddressGone(index, address) => {
                let _was_there = self.addresses.remove(&(index, address));
                Vec::new()
            }
            Event::Everything(everything) => self.replace(everything),
        }
    }

    fn link(&mut self, link: Link) -> Option<Task> {
        let device = link.device.clone();
        let role = role(&link, self.uplinks.contains(&device.index), &self.pods);
        let _old = self.links.insert(device.index, link);
        match role {
            Role::PodEdge => {
                let old = self.edges.insert(device.index, device.clone());
                (old.as_ref() != Some(&device)).then_some(Task::Attach(device))
            }
            Role::Other => self
                .edges
                .remove(&device.index)
                .map(|_| Task::Detach(device)),
        }
    }

    fn link_gone(&mut self, index: u32) -> Option<Task> {
        let _old = self.links.remove(&index);
        self.addresses.retain(|(link, _)| *link != index);
        self.edges.remove(&index).map(Task::Forget)
    }

    /// All edges are to be attached anew: a number may have gone from one device to another.
    fn replace(&mut self, everything: Everything) -> Vec<Task> {
        let Everything {
            links,
            addresses,
            uplinks,
        } = everything;
        let gone: BTreeSet<u32> = self.links.keys().copied().collect();
        let present: BTreeSet<u32> = links.iter().map(|link| link.device.index).collect();
        let mut tasks: Vec<_> = gone
            .difference(&present)
            .filter_map(|index| self.link_gone(*index))
            .collect();
        self.addresses = addresses;
        self.uplinks = uplinks;
        for link in links {
            let device = link.device.clone();
            let task = self.link(link);
            let is_edge = self.edges.contains_key(&device.index);
            tasks.extend(task.or_else(|| is_edge.then_some(Task::Attach(device))));
        }
        tasks
    }

    /// The address of this node in `family`: the first of `preferred` (the Node object's), else
    /// the first global one on a device that carries a default route, else on any that leads to
    /// no pod.
    pub fn node_address(&self, family: Family, preferred: &[IpAddr]) -> Option<IpAddr> {
        let is_wanted = |address: &IpAddr| Family::of(*address) == family;
        let own = || {
            let others = |(index, _): &&(u32, IpAddr)| !self.edges.contains_key(index);
            let wanted = |(_, address): &&(u32, IpAddr)| is_wanted(address);
            self.addresses.iter().filter(others).filter(wanted)
        };
        let by_uplink = || own().find(|(index, _)| self.uplinks.contains(index));
        let preferred = preferred.iter().copied().find(is_wanted);
        preferred.or_else(|| {
            by_uplink()
                .or_else(|| own().next())
                .map(|(_, address)| *address)
        })
    }
}

impl Link {
    /// A link, for tests and monitors.
    pub fn new(index: u32, name: &str, is_pair: bool, is_peer_elsewhere: bool) -> Self {
        let device = Device {
            index,
            name: Arc::from(name),
        };
        Self {
            device,
            is_pair,
            is_peer_elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto() -> Devices {
        Devices::new(PodDevices::default())
    }

    fn veth(index: u32, name: &str) -> Link {
        Link::new(index, name, true, true)
    }

    #[test]
    fn a_pair_with_its_peer_elsewhere_leads_to_a_pod() {
        let pods = PodDevices::default();
        let cases = [
            (veth(2, "veth1"), false, Role::PodEdge),
            (Link::new(2, "veth1", true, false), false, Role::Other),
            (Link::new(2, "eth0", false, false), false, Role::Other),
            // A macvlan on a device of another namespace.
            (Link::new(2, "mac0", false, true), false, Role::Other),
            // The way out of a node that is a container.
            (veth(2, "eth0"), true, Role::Other),
            (veth(2, "beeline0"), false, Role::Other),
        ];
        for (link, is_uplink, expected) in cases {
            assert_eq!(role(&link, is_uplink, &pods), expected, "{link:?}");
        }
    }

    #[test]
    fn names_override_what_the_link_looks_like() {
        let pods: PodDevices = "tap*,!veth-infra".parse().unwrap();
        let tap = Link::new(2, "tap7", false, false);
        assert_eq!(role(&tap, false, &pods), Role::PodEdge);
        assert_eq!(role(&veth(3, "veth7"), false, &pods), Role::Other);
        let pods: PodDevices = "!veth-infra".parse().unwrap();
        assert_eq!(role(&veth(3, "veth-infra"), false, &pods), Role::Other);
        assert_eq!(role(&veth(3, "veth7"), false, &pods), Role::PodEdge);
    }

    #[test]
    fn a_veth_becomes_an_edge_when_its_peer_moves_to_a_pod() {
        let mut devices = auto();
        assert_eq!(
            devices.apply(Event::Link(Link::new(5, "veth5", true, false))),
            []
        );
        let link = veth(5, "veth5");
        let device = link.device.clone();
        assert_eq!(
            devices.apply(Event::Link(link.clone())),
            [Task::Attach(device.clone())]
        );
        assert_eq!(devices.apply(Event::Link(link)), []);
        assert_eq!(devices.apply(Event::LinkGone(5)), [Task::Forget(device)]);
        assert_eq!(devices.apply(Event::LinkGone(5)), []);
    }

    #[test]
    fn an_edge_that_is_none_any_more_is_detached() {
        let mut devices = auto();
        let _tasks = devices.apply(Event::Link(veth(5, "veth5")));
        let changed = Link::new(5, "veth5", true, false);
        let device = changed.device.clone();
        assert_eq!(devices.apply(Event::Link(changed)), [Task::Detach(device)]);
        assert_eq!(devices.edges().count(), 0);
    }

    #[test]
    fn after_missed_changes_all_edges_are_attached_and_lost_ones_forgotten() {
        let mut devices = auto();
        let _tasks = devices.apply(Event::Link(veth(5, "veth5")));
        let _tasks = devices.apply(Event::Link(veth(6, "veth6")));
        let links = vec![veth(6, "veth6"), Link::new(1, "lo", false, false)];
        let tasks = devices.apply(Event::Everything(Everything {
            links,
            ..Everything::default()
        }));
        let expected = [
            Task::Forget(veth(5, "veth5").device),
            Task::Attach(veth(6, "veth6").device),
        ];
        assert_eq!(tasks, expected);
    }

    #[test]
    fn the_nodes_address_is_the_node_objects_or_the_uplinks_or_any() {
        let mut devices = auto();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = [
            (2, "192.0.2.2"),
            (3, "192.0.2.3"),
            (7, "192.0.2.7"),
            (3, "2001:db8::3"),
        ];
        let everything = Everything {
            links: vec![
                veth(2, "veth2"),
                Link::new(3, "br0", false, false),
                Link::new(7, "eth0", false, false),
            ],
            addresses: addresses
                .into_iter()
                .map(|(index, text)| (index, ip(text)))
                .collect(),
            uplinks: BTreeSet::from([7]),
        };
        let _tasks = devices.apply(Event::Everything(everything));
        let preferred = [ip("2001:db8::1")];
        assert_eq!(
            devices.node_address(Family::Ipv4, &preferred),
            Some(ip("192.0.2.7"))
        );
        assert_eq!(
            devices.node_address(Family::Ipv6, &preferred),
            Some(ip("2001:db8::1"))
        );
        let _tasks = devices.apply(Event::AddressGone(7, ip("192.0.2.7")));
        assert_eq!(
            devices.node_address(Family::Ipv4, &[]),
            Some(ip("192.0.2.3"))
        );
        let _tasks = devices.apply(Event::LinkGone(3));
        assert_eq!(devices.node_address(Family::Ipv4, &[]), None);
    }
}
