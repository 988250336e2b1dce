//! What the servers answer from: pure, the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_common::abi::Family;

use crate::model::{Node, ObjectName};

/// How far the kernel is behind, whether the node is to stay, and each Service's health check.
#[derive(Clone, Debug)]
pub struct State {
    /// For how long a change may wait.
    patience: Duration,
    families: BTreeMap<Family, Progress>,
    /// Of the Node object, once it was seen.
    is_eligible: bool,
    /// Whether what was known first is in force.
    is_in_force: bool,
    checks: BTreeMap<ObjectName, HealthCheck>,
    addresses: BTreeSet<IpAddr>,
    version: u64,
}

/// One family's way from changes to the kernel.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// When the oldest change came that is not in force.
    waiting: Option<Instant>,
    /// When all that was known was in force last.
    synced: Option<Instant>,
}

/// A Service's health check node port (rule R120).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Per family that the Service has, how many distinct local addresses are ready (rules R124,
    /// R126).
    pub local: BTreeMap<Family, u32>,
}

/// A socket that the state asks for, and the Service that it speaks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Listener {
    /// The Service.
    pub service: ObjectName,
    /// Where to listen.
    pub address: SocketAddr,
}

/// Whether the proxy is up to date, for `/healthz` and `/livez` (rules R130 to R135).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyHealth {
    /// In no family has a change waited too long.
    pub is_healthy: bool,
    /// The node is there and not about to go (rule R134).
    pub is_node_eligible: bool,
    /// Per family, whether it is healthy, and for how long what was known then is in force.
    pub families: BTreeMap<Family, (bool, Option<Duration>)>,
}

/// What a Service's health check node port has to say (rules R122, R123).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckAnswer {
    /// Distinct local addresses that are ready.
    pub n_local: u32,
    /// Whether the proxy is up to date, whatever becomes of the node (rule R127).
    pub is_proxy_healthy: bool,
}

impl State {
    /// Nothing waits, no Node was seen, and health check node ports are open on all addresses.
    ///
    /// A change may wait for twice `sync_period` (rule R132).
    pub fn new(sync_period: Duration) -> Self {
        Self {
            patience: 2 * sync_period,
            families: BTreeMap::from(Family::ALL.map(|family| (family, Progress::default()))),
            is_eligible: false,
            is_in_force: false,
            checks: BTreeMap::new(),
            addresses: [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].into(),
            version: 0,
        }
    }

    /// A change came that the kernel has to follow.
    pub fn changed(&mut self, family: Family, now: Instant) {
        let progress = self.families.entry(family).or_default();
        progress.waiting = progress.waiting.or(Some(now));
    }

    /// What was known first is in force.
    pub fn set_in_force(&mut self) {
        self.is_in_force = true;
    }

    /// Whether what was known first is in force.
    pub const fn is_in_force(&self) -> bool {
        self.is_in_force
    }

    /// All that is known is in force (rule R133).
    pub fn synced(&mut self, family: Family, now: Instant) {
        let progress = Progress {
            waiting: None,
            synced: Some(now),
        };
        self.families.insert(family, progress);
    }

    /// This node's Node object is there, new or changed. Its deletion changes nothing (rule R136).
    pub fn set_node(&mut self, node: &Node) {
        self.is_eligible = !node.to_be_deleted;
    }

    /// What is in force of a Service asks for this check, or for none.
    pub fn set_check(&mut self, service: &ObjectName, check: Option<HealthCheck>) {
        let place = |check: &HealthCheck| (check.port, check.local.keys().copied().collect());
        let asked: Option<(_, Vec<_>)> = check.as_ref().map(place);
        let before = match check {
            Some(check) => self.checks.insert(service.clone(), check),
            None => self.checks.remove(service),
        };
        self.version += u64::from(before.as_ref().map(place) != asked);
    }

    /// The addresses that accept NodePorts, where the checks listen (rule R121). An unspecified
    /// address stands for all of its family.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.version += u64::from(self.addresses != addresses);
        self.addresses = addresses;
    }

    /// Whether the proxy is up to date.
    pub fn proxy(&self, now: Instant) -> ProxyHealth {
        let families: BTreeMap<_, _> = self
            .families
            .iter()
            .map(|(&family, progress)| (family, self.judge(progress, now)))
            .collect();
        ProxyHealth {
            is_healthy: families.values().all(|&(is_healthy, _)| is_healthy),
            is_node_eligible: self.is_eligible,
            families,
        }
    }

    /// What a Service's check says of one family; without endpoints if there is no such check.
    pub fn check(&self, service: &ObjectName, family: Family, now: Instant) -> CheckAnswer {
        let check = self.checks.get(service);
        CheckAnswer {
            n_local: check
                .and_then(|check| check.local.get(&family))
                .copied()
                .unwrap_or(0),
            is_proxy_healthy: self.proxy(now).is_healthy,
        }
    }

    /// The sockets of all checks: each on the addresses of the families that the Service has.
    pub fn listeners(&self) -> BTreeSet<Listener> {
        let listeners = |(service, check): (&ObjectName, &HealthCheck)| {
            let addresses = self.addresses.iter();
            let served =
                addresses.filter(|&&address| check.local.contains_key(&Family::of(address)));
            let listener = |&address| Listener {
                service: service.clone(),
                address: SocketAddr::new(address, check.port),
            };
            served.map(listener).collect::<Vec<_>>()
        };
        self.checks.iter().flat_map(listeners).collect()
    }

    /// Changes whenever [`State::listeners`] may yield something else.
    pub fn listeners_version(&self) -> u64 {
        self.version
    }

    fn judge(&self, progress: &Progress, now: Instant) -> (bool, Option<Duration>) {
        let since = |then| now.saturating_duration_since(then);
        let is_late = progress.waiting.map(since) > Some(self.patience);
        (!is_late, progress.synced.map(since))
    }
}

impl ProxyHealth {
    /// For how long what is in force has been so: that of the family that is behind furthest; zero
    /// if none is (rule R135). `None` if a late family never was up to date.
    pub fn age(&self) -> Option<Duration> {
        let late = self.families.values().filter(|(is_healthy, _)| !is_healthy);
        let ages = late.map(|&(_, age)| age);
        ages.reduce(|one, other| Some(one?.max(other?)))
            .unwrap_or(Some(Duration::ZERO))
    }
}

impl CheckAnswer {
    /// Whether load balancers may send traffic here (rule R122).
    pub fn is_good(self) -> bool {
        self.n_local > 0 && self.is_proxy_healthy
    }
}

#[cfg(test)]
mod tests;
