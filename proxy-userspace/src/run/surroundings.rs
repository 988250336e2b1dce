//! Has the maps follow this node's configuration, Node object, ServiceCIDRs and devices.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proxy_common::abi::{Addr, AddressFlags, Family, NetworkKey, Settings, SettingsFlags};
use tokio::sync::watch;

use super::edges::View;
use crate::devices::host_edge;
use crate::devices::routes::{self, Route};
use crate::loader::sizes;
use crate::maps::{MapFailure, Maps};
use crate::model::{Node, Problem, World};
use crate::node::{NodeConfig, NodeTables, node_port_ranges, tables};
use crate::status::NodeAddress;
use crate::sync::{Report, Sync};

/// How long after the first lists of Services an API server's of Nodes and ServiceCIDRs may come:
/// until then what a predecessor knew of them stays in force.
const LATE: Duration = Duration::from_secs(3);
/// Until what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What there is to see.
pub(super) struct Seen<'a> {
    pub(super) view: &'a Arc<View>,
    pub(super) world: &'a World,
    /// Whether the first lists of Services are complete.
    pub(super) is_complete: bool,
    /// Whether the maps hold what the first lists told.
    pub(super) is_in_force: bool,
}

/// What was seen last.
struct Last {
    view: Arc<View>,
    node: Option<Node>,
    service_cidrs: Vec<IpNet>,
    is_complete: bool,
    is_in_force: bool,
}

impl Seen<'_> {
    fn is_as(&self, last: &Last) -> bool {
        Arc::ptr_eq(self.view, &last.view)
            && self.world.node() == last.node.as_ref()
            && self.world.service_cidrs() == last.service_cidrs
            && self.is_complete == last.is_complete
            && self.is_in_force == last.is_in_force
    }

    fn keep(&self) -> Last {
        Last {
            view: self.view.clone(),
            node: self.world.node().cloned(),
            service_cidrs: self.world.service_cidrs().to_vec(),
            is_complete: self.is_complete,
            is_in_force: self.is_in_force,
        }
    }
}

/// What is around the datapath, as far as the maps have it.
pub(super) struct Surroundings {
    config: NodeConfig,
    routes: watch::Sender<Option<BTreeSet<Route>>>,
    /// Whether a predecessor wrote settings, which, and what it knew then stays for a while.
    inherited: Option<Settings>,
    /// Whether traffic is left to the stack until all is in force: there is no predecessor, so that
    /// kube-proxy may be serving, and half a table would refuse what it serves; or a predecessor has
    /// handed it back, and what the maps hold may be old.
    begins_anew: bool,
    /// Whether Node and ServiceCIDRs may become known after the Services.
    is_piecemeal: bool,
    /// When the first lists were complete.
    complete: Option<Instant>,
    last: Option<Last>,
    /// What the maps hold.
    held: Option<NodeTables>,
    due: Option<Instant>,
    failure: Option<String>,
    /// Devices and networks for which there is no room.
    crowds: [Option<Problem>; 2],
}

impl Surroundings {
    /// Goes on from what the maps hold.
    pub(super) fn new(
        config: NodeConfig,
        is_piecemeal: bool,
        maps: &Maps,
        routes: watch::Sender<Option<BTreeSet<Route>>>,
    ) -> Result<Self, MapFailure> {
        let settings = maps.settings.get(0)?;
        let is_fresh = settings == bytemuck::Zeroable::zeroed();
        Ok(Self {
            config,
            routes,
            inherited: (!is_fresh).then_some(settings),
            begins_anew: is_fresh || settings.flags.contains(SettingsFlags::HANDED_BACK),
            is_piecemeal,
            complete: None,
            last: None,
            held: None,
            due: None,
            failure: None,
            crowds: [None, None],
        })
    }

    /// How this node treats traffic.
    pub(super) const fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// When there is something to do without anything having changed.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What could not be written.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let failure = self.failure.as_ref().map(|message| Problem {
            subject: "this node's tables".to_owned(),
            message: message.clone(),
        });
        failure
            .into_iter()
            .chain(self.crowds.iter().flatten().cloned())
    }

    /// This node's addresses, as the maps hold them.
    pub(super) fn node_addresses(&self) -> Vec<NodeAddress> {
        let addresses = self.held.iter().flat_map(|held| &held.addresses);
        let address = |(addr, flags): (&Addr, &AddressFlags)| NodeAddress {
            address: addr.to_string(),
            node_ports: flags.contains(AddressFlags::NODE_PORTS),
        };
        addresses.map(address).collect()
    }

    /// The addresses that accept NodePorts; an unspecified one stands for all of its family.
    pub(super) fn node_port_addresses(&self, world: &World) -> BTreeSet<IpAddr> {
        let accepted = &self.config.node_port_addresses;
        let of_family = |family: Family| match node_port_ranges(accepted, world.node(), family) {
            None => vec![family.unspecified()],
            Some(_) => self.accepting(family).collect(),
        };
        Family::ALL.into_iter().flat_map(of_family).collect()
    }

    fn accepting(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let addresses = self.held.iter().flat_map(|held| &held.addresses);
        addresses
            .filter(|(_, flags)| flags.contains(AddressFlags::NODE_PORTS))
            .map(|(addr, _)| IpAddr::from(*addr))
            .filter(move |ip| Family::of(*ip) == family)
    }

    /// Whether the routes have been looked after that were asked for.
    pub(super) fn has_routes(&self, view: &View) -> bool {
        let wanted = self.routes.borrow();
        wanted.is_none() || *wanted == view.routes
    }

    /// Writes what has changed; what the sync said to it, if it was asked.
    pub(super) fn follow(
        &mut self,
        seen: &Seen<'_>,
        maps: &mut Maps,
        sync: &mut Sync,
    ) -> Option<Report> {
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        if !is_due && self.last.as_ref().is_some_and(|last| seen.is_as(last)) {
            return None;
        }
        self.last = Some(seen.keep());
        self.due = None;
        let new = self.tables(seen);
        let written = self.write(seen, new, maps, sync);
        match written {
            Ok(report) => {
                self.failure = None;
                report
            }
            Err(error) => {
                let message = format!("{:#}", anyhow::Error::from(error));
                if self.failure.as_ref() != Some(&message) {
                    tracing::warn!("this node's tables: {message}; trying again");
                }
                self.failure = Some(message);
                self.due = Some(Instant::now() + RETRY);
                None
            }
        }
    }

    fn tables(&self, seen: &Seen<'_>) -> NodeTables {
        let Seen { view, world, .. } = seen;
        let cidrs = world.service_cidrs();
        let mut tables = tables(
            &self.config,
            world.node(),
            cidrs,
            &view.local,
            view.host_device,
        );
        if self.begins_anew && !seen.is_in_force {
            let flags = &mut tables.settings.flags;
            *flags = flags.union(SettingsFlags::HANDED_BACK);
        }
        tables
    }

    fn write(
        &mut self,
        seen: &Seen<'_>,
        new: NodeTables,
        maps: &mut Maps,
        sync: &mut Sync,
    ) -> Result<Option<Report>, MapFailure> {
        if self.held.as_ref() == Some(&new) && self.failure.is_none() {
            return Ok(None);
        }
        if self
            .held
            .as_ref()
            .is_none_or(|held| held.devices != new.devices)
        {
            let left_out = maps.set_devices(&new.devices)?.left_out;
            let name = |index: &u32| {
                let mut devices = seen.view.local.iter();
                let device = devices.find(|device| device.index == *index);
                device.map_or_else(|| index.to_string(), |device| device.name.to_string())
            };
            let size = maps.devices.size();
            let crowd = crowd("device", "DEVICES", size, &left_out, name);
            replace(&mut self.crowds[0], crowd);
        }
        if self.is_early(seen, &new.settings) {
            return Ok(None);
        }
        if new.settings.flags.contains(SettingsFlags::HANDED_BACK) {
            // Before anything is there that packets could be refused by.
            let _is_new = maps.set_settings(&new.settings)?;
        }
        let left_out = maps.set_networks(&new.networks)?.left_out;
        let size = maps.networks.size();
        let crowd = crowd("network", "NETWORKS", size, &left_out, network);
        replace(&mut self.crowds[1], crowd);
        let report = sync.set_node_addresses(new.addresses.clone(), maps);
        if maps.set_settings(&new.settings)? {
            say(&new.settings);
        }
        self.ask_for_routes(seen, &new);
        self.inherited = None;
        self.held = Some(new);
        Ok(Some(report))
    }

    /// Whether what a predecessor knew may be known again soon.
    fn is_early(&mut self, seen: &Seen<'_>, new: &Settings) -> bool {
        if !seen.is_complete {
            // Without frontends nobody misses anything; with a predecessor's it goes on.
            return seen.world.node().is_none() || self.inherited.is_some();
        }
        let Some(old) = self.inherited.as_ref().filter(|_| self.is_piecemeal) else {
            return false;
        };
        let knew_more = old.flags.contains(SettingsFlags::SERVICE_CIDRS)
            && !new.flags.contains(SettingsFlags::SERVICE_CIDRS);
        let deadline = *self.complete.get_or_insert_with(Instant::now) + LATE;
        let is_early = (seen.world.node().is_none() || knew_more) && Instant::now() < deadline;
        self.due = is_early.then_some(deadline);
        is_early
    }

    fn ask_for_routes(&self, seen: &Seen<'_>, new: &NodeTables) {
        let networks = self
            .config
            .service_cidrs
            .iter()
            .chain(seen.world.service_cidrs());
        let has_ipv6 = host_edge::has_ipv6();
        let networks = networks.filter(|network| has_ipv6 || matches!(network, IpNet::V4(_)));
        let device = seen.view.host_device;
        let wanted = if device == 0 {
            BTreeSet::new()
        } else {
            routes::wanted(networks.copied(), &sources(new), device)
        };
        let _is_changed = self.routes.send_if_modified(|old| {
            let is_changed = old.as_ref() != Some(&wanted);
            *old = Some(wanted);
            is_changed
        });
    }
}

/// Says a problem that is new.
fn replace(known: &mut Option<Problem>, problem: Option<Problem>) {
    if let Some(problem) = &problem
        && known.as_ref() != Some(problem)
    {
        tracing::warn!("{}: {}", problem.subject, problem.message);
    }
    *known = problem;
}

/// That there is no room for these, if there are any.
fn crowd<K>(
    noun: &str,
    map: &'static str,
    size: u32,
    left_out: &[K],
    name: impl Fn(&K) -> String,
) -> Option<Problem> {
    /// More are only counted.
    const NAMED: usize = 4;
    let names: Vec<_> = left_out.iter().take(NAMED).map(name).collect();
    let more = match left_out.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let plural = if left_out.len() > 1 { "s" } else { "" };
    let raise = sizes::setting(map).map(|setting| format!("; raise {setting}"));
    let problem = Problem {
        subject: format!("{noun}{plural} {}{more}", names.join(", ")),
        message: format!(
            "map {map} is full: {} more needed than the {size} entries it has{}",
            left_out.len(),
            raise.unwrap_or_default()
        ),
    };
    (!left_out.is_empty()).then_some(problem)
}

/// `10.0.0.0/8`.
fn network(key: &NetworkKey) -> String {
    let of_family = if key.addr.is_v4() { 96 } else { 0 };
    format!("{}/{}", key.addr, key.prefix_len.saturating_sub(of_family))
}

/// This node's address of each family, if a device has it: the kernel takes no other as a source.
fn sources(tables: &NodeTables) -> Vec<IpAddr> {
    let NodeTables {
        settings,
        addresses,
        ..
    } = tables;
    let sources = [settings.node_v4, settings.node_v6].into_iter();
    let own = sources.filter(|addr| addresses.contains_key(addr));
    own.map(IpAddr::from).collect()
}

fn say(settings: &Settings) {
    let known = |address: Addr| {
        if address.is_unspecified() {
            "unknown".to_owned()
        } else {
            address.to_string()
        }
    };
    tracing::info!(
        "addresses of this node: IPv4 {}, IPv6 {}",
        known(settings.node_v4),
        known(settings.node_v6)
    );
}
