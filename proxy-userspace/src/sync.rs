//! From what is desired to what the maps hold, by the fewest writes.
//!
//! There is what is desired (of a Service that is not in force yet: nothing else is kept), there
//! is what the maps hold (`actual`, an exact copy), and nothing else. Ids and blocks are found
//! in the maps, not remembered, so after a restart an unchanged cluster costs no writes.
//!
//! # What a packet sees
//! A Service goes into force by publishing its new version and then withdrawing the old one.
//! Backends and slots are written where no frontend leads yet; then each frontend changes by the
//! replacement of its one entry. So a packet finds the old set or the new one, whole. In a batch
//! all Services are published before the first is withdrawn; a cluster IP that goes from one
//! Service to another is therefore replaced and never missing.
//!
//! An address is in `ADDRESSES` before the first frontend there, and source ranges before the
//! frontends that they guard; both go after the last.
//!
//! A freed block, backend id or service id rests until a grace period has passed, since a program
//! that is running now may still hold it. [`Target::grace_period`] is called only when a Service
//! does not fit into what is free without resting, and before a service port loses source ranges.
//!
//! The backends of a deleted service port are detached: their flows go on, and their ids are free
//! when [`Sync::release_detached`] is told that there are none left.
//!
//! # What goes wrong
//! A Service that does not fit, or whose write fails, is pending: what is in force of it stays,
//! and [`Sync::problems`] names it. Room is checked before the first write, and if one fails those
//! before it are taken back (`undo`), so it keeps its old version entirely. Who lacks room gets in
//! at the end of the first update that leaves enough (`room`); what else failed waits for
//! [`Sync::retry`].
//!
//! If two Services claim the same frontend, the one that has it in force keeps it as long as it
//! wants it, so that no newcomer can take what others use; the other's remaining frontends are
//! served, and it takes over at once when the frontend is given up. Of several who wait, those
//! in force go first, then the first by name. A Service that a predecessor left and of which
//! nothing is known gives way at once.

mod actual;
mod addresses;
mod adopt;
mod blocks;
mod detached;
mod dump;
mod fill;
mod ids;
mod plan;
mod publish;
mod ranges;
mod refusal;
mod room;
mod target;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::abi::{Addr, AddressFlags, FrontendKey};

use self::actual::{Actual, is_gone};
use self::adopt::{Adopted, adopt};
use self::blocks::{Block, Blocks};
use self::detached::Detached;
pub use self::dump::dump;
pub use self::fill::Fill;
use self::ids::Ids;
use self::plan::Plan;
use self::publish::Writer;
use self::refusal::Refusal;
use self::room::{Place, Queue};
pub use self::target::{Capacity, Contents, Target, Write, source_range, source_range_key};
use crate::desired::DesiredPort;
use crate::model::{ObjectName, Problem};

/// Keeps the maps as desired.
#[derive(Debug)]
pub struct Sync {
    capacity: Capacity,
    actual: Actual,
    service_ids: Ids,
    backend_ids: Ids,
    blocks: Blocks,
    detached: Detached,
    /// Blocks that frontends have left in the course of an update, each with its service id.
    left: BTreeSet<(u32, Block)>,
    /// What this node's own addresses are, frontends aside.
    node_addresses: BTreeMap<Addr, AddressFlags>,
    /// Addresses whose entry may say more than it should, or less.
    loose: BTreeSet<Addr>,
    /// Why some of them could not be brought up to date.
    address_refusals: BTreeMap<Addr, Refusal>,
    /// Removals of damaged entries that a predecessor left.
    repairs: Vec<Write>,
    /// Services that a predecessor left and nobody has asked for yet.
    unclaimed: BTreeSet<ObjectName>,
    /// Whether all Services that are known have been asked for.
    has_started: bool,
    /// Services that are not in force as desired.
    pending: BTreeMap<ObjectName, Pending>,
    /// Who waits for a frontend that another Service has.
    waiting: BTreeMap<FrontendKey, BTreeSet<ObjectName>>,
    /// Who waits for room.
    queue: Queue,
    /// What would take back the writes of the update that is being made, if one is.
    journal: Option<Vec<Write>>,
}

/// What a Service should be, and why it isn't.
#[derive(Debug)]
struct Pending {
    desired: Arc<[DesiredPort]>,
    refusal: Option<Refusal>,
    /// Where it waits for room, if it does.
    place: Option<Place>,
    /// What tells how long it has waited for room, if it ever has.
    ticket: Option<u64>,
}

/// What an update came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// Writes that were carried out.
    pub n_writes: usize,
    /// What is not in force as desired: Services, and one more if the maps hold what they should
    /// not; see [`Sync::problems`].
    pub n_pending: usize,
}

impl Sync {
    /// Goes on from what the maps hold. Writes nothing.
    pub fn new(capacity: Capacity, contents: Contents) -> Self {
        let Adopted {
            actual,
            blocks,
            repairs,
        } = adopt(contents, &capacity);
        let detached = Detached::adopt(&actual);
        let mut sync = Self {
            service_ids: Self::free_service_ids(&actual, &detached, capacity.services),
            backend_ids: Self::free_backend_ids(&actual, capacity.backends),
            blocks: Blocks::new(capacity.slots, &blocks),
            unclaimed: actual.owners.keys().cloned().collect(),
            has_started: false,
            left: BTreeSet::new(),
            detached,
            capacity,
            node_addresses: Self::adopted_node_addresses(&actual.addresses),
            loose: BTreeSet::new(),
            address_refusals: BTreeMap::new(),
            actual,
            repairs,
            pending: BTreeMap::new(),
            waiting: BTreeMap::new(),
            queue: Queue::default(),
            journal: None,
        };
        sync.loose = sync.unsettled_addresses();
        sync
    }

    fn free_service_ids(actual: &Actual, detached: &Detached, capacity: u32) -> Ids {
        let used = actual.ports.keys().copied().chain(detached.services());
        let fresh = used.max().map_or(0, |last| last.saturating_add(1));
        let free = (0..fresh.min(capacity))
            .filter(|id| !actual.ports.contains_key(id) && !detached.names(*id))
            .collect();
        Ids::new(capacity, fresh, free)
    }

    fn free_backend_ids(actual: &Actual, capacity: u32) -> Ids {
        let ids = 0..;
        let gone = ids
            .zip(&actual.backends)
            .filter(|(_, backend)| is_gone(backend));
        let free = gone.map(|(id, _)| id).collect();
        Ids::new(
            capacity,
            u32::try_from(actual.backends.len()).unwrap_or(u32::MAX),
            free,
        )
    }

    /// Brings one Service into force; without ports it is removed.
    pub fn update<T: Target>(
        &mut self,
        name: &ObjectName,
        ports: Vec<DesiredPort>,
        target: &mut T,
    ) -> Report {
        self.apply([(name.clone(), ports)], target)
    }

    /// Removes one Service.
    pub fn remove<T: Target>(&mut self, name: &ObjectName, target: &mut T) -> Report {
        self.update(name, Vec::new(), target)
    }

    /// Brings a batch of Services into force; those without ports are removed. The order within
    /// the batch decides nothing; of two versions of one Service the last counts.
    ///
    /// Ports differ in name, protocol or family (rule R5), as [`crate::desired::compile`] has it.
    pub fn apply<T: Target>(
        &mut self,
        changes: impl IntoIterator<Item = (ObjectName, Vec<DesiredPort>)>,
        target: &mut T,
    ) -> Report {
        let mut names = Vec::new();
        for (name, ports) in changes {
            self.unclaimed.remove(&name);
            self.stop_waiting(&name);
            let ticket = self.pending.get(&name).and_then(|pending| pending.ticket);
            self.pending.insert(
                name.clone(),
                Pending {
                    desired: ports.into(),
                    refusal: None,
                    place: None,
                    ticket,
                },
            );
            names.push(name);
        }
        self.run(names, target)
    }

    /// Removes the Services that a predecessor left and nobody asked for since, but for those
    /// that `may_be_there`. To be called after the first complete pass over all Services (rule
    /// R7), and again when more is known.
    ///
    /// What is left then is kept as long as no Service that is there claims its frontends.
    pub fn finish_start<T: Target>(
        &mut self,
        may_be_there: impl Fn(&ObjectName) -> bool,
        target: &mut T,
    ) -> Report {
        self.has_started = true;
        let (kept, gone) = std::mem::take(&mut self.unclaimed)
            .into_iter()
            .partition::<BTreeSet<_>, _>(may_be_there);
        self.unclaimed = kept;
        let removed = self.apply(gone.into_iter().map(|name| (name, Vec::new())), target);
        let heirs = self.unclaimed.iter().flat_map(|name| self.heirs(name));
        let inherited = self.run(heirs.cloned().collect(), target);
        Report {
            n_writes: removed.n_writes + inherited.n_writes,
            n_pending: inherited.n_pending,
        }
    }

    /// The Services that a predecessor left and nobody has asked for, ordered by name.
    pub fn unclaimed(&self) -> &BTreeSet<ObjectName> {
        &self.unclaimed
    }

    /// Tries again what is pending, but for who waits for room, unless there is some.
    pub fn retry<T: Target>(&mut self, target: &mut T) -> Report {
        let due = self.pending.iter().filter(|(_, it)| it.place.is_none());
        self.run(due.map(|(name, _)| name.clone()).collect(), target)
    }

    /// Whether a write failed that is still to be done.
    pub fn has_failed_writes(&self) -> bool {
        let services = self.pending.values().map(|pending| &pending.refusal);
        let mut refusals = services.flatten().chain(self.address_refusals.values());
        !self.repairs.is_empty() || refusals.any(|it| matches!(it, Refusal::Write { .. }))
    }

    /// Whether an older version of a Service is in force. Where others have one of its frontends,
    /// the rest is as desired.
    pub fn is_behind(&self, name: &ObjectName) -> bool {
        self.pending
            .get(name)
            .is_some_and(|pending| !matches!(pending.refusal, Some(Refusal::Taken(_))))
    }

    /// Every Service that is not in force as desired, and why, ordered by name.
    pub fn problems(&self) -> Vec<Problem> {
        let problem = |(name, pending): (&ObjectName, &Pending)| {
            let message = pending.refusal.as_ref()?.to_string();
            Some(Problem {
                subject: format!("Service {name}"),
                message,
            })
        };
        self.damage()
            .into_iter()
            .chain(self.address_problem())
            .chain(self.pending.iter().filter_map(problem))
            .collect()
    }

    /// What is wrong with the maps that is no single object's trouble.
    fn damage(&self) -> Option<Problem> {
        let n_damaged = self.repairs.len();
        (n_damaged > 0).then(|| Problem {
            subject: "maps".to_owned(),
            message: format!("{n_damaged} damaged entries are still to be removed"),
        })
    }

    fn run<T: Target>(&mut self, names: Vec<ObjectName>, target: &mut T) -> Report {
        let mut writer = Writer {
            target,
            n_writes: 0,
        };
        self.repair(&mut writer);
        let _n_settled = self.bring(names, &mut writer);
        self.settle_addresses(&mut writer);
        self.let_in(&mut writer);
        self.report(&writer)
    }

    /// Publishes all these Services and then withdraws what they had before. Yields how many are
    /// in force as far as possible.
    fn bring<T: Target>(&mut self, names: Vec<ObjectName>, writer: &mut Writer<'_, T>) -> usize {
        let mut published = Vec::new();
        for name in self.in_order(self.with_heirs(names)) {
            self.stop_waiting(&name);
            match self.publish(&name, writer) {
                Ok(plan) => published.push((name, plan)),
                Err(refusal) => self.refuse(&name, refusal),
            }
            self.rest_left_blocks();
        }
        if published.iter().any(|(_, plan)| self.sheds_ranges(plan)) {
            self.pass_grace_period(writer);
        }
        let mut n_settled = 0;
        for (name, plan) in published {
            match self.withdraw(&name, &plan, writer) {
                Ok(()) => n_settled += usize::from(self.settle_service(&name, plan)),
                Err(refusal) => self.refuse(&name, refusal),
            }
            self.rest_left_blocks();
        }
        n_settled
    }

    /// Those that are in force first: room goes to them before it goes to new ones.
    fn in_order(&self, names: BTreeSet<ObjectName>) -> impl Iterator<Item = ObjectName> + use<> {
        let is_in_force = |name: &ObjectName| !self.actual.ids_of(name).is_empty();
        let (old, new): (Vec<_>, Vec<_>) = names.into_iter().partition(is_in_force);
        old.into_iter().chain(new)
    }

    fn report<T>(&self, writer: &Writer<'_, T>) -> Report {
        Report {
            n_writes: writer.n_writes,
            n_pending: self.pending.len()
                + usize::from(!self.repairs.is_empty())
                + usize::from(!self.address_refusals.is_empty()),
        }
    }

    /// The Services to be published, in order of their names: these and all who wait for a
    /// frontend that one of them gives up.
    fn with_heirs(&self, mut names: Vec<ObjectName>) -> BTreeSet<ObjectName> {
        let mut all = BTreeSet::new();
        while let Some(name) = names.pop() {
            if !self.waiting.is_empty() {
                names.extend(
                    self.heirs(&name)
                        .filter(|heir| !all.contains(*heir))
                        .cloned(),
                );
            }
            all.insert(name);
        }
        all
    }

    fn heirs(&self, name: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        let ports = self
            .actual
            .ids_of(name)
            .iter()
            .filter_map(|&id| self.actual.port(id));
        ports
            .flat_map(|port| port.frontends.iter().map(move |key| (port, key)))
            .filter_map(|(port, key)| Some((port, key, self.waiting.get(key)?)))
            .filter(|(port, key, _)| !self.keeps(port, key))
            .flat_map(|(_, _, heirs)| heirs)
    }

    /// All that could be done for a Service is done. Yields whether it is in force as far as
    /// possible.
    fn settle_service(&mut self, name: &ObjectName, plan: Plan) -> bool {
        if let Some((_, refusal)) = plan.failed.into_iter().next() {
            self.refuse(name, refusal);
            return false;
        }
        if plan.clashes.is_empty() {
            self.pending.remove(name);
            return true;
        }
        for clash in &plan.clashes {
            self.waiting
                .entry(clash.key)
                .or_default()
                .insert(name.clone());
        }
        self.refuse(name, Refusal::Taken(plan.clashes));
        true
    }

    fn refuse(&mut self, name: &ObjectName, refusal: Refusal) {
        let is_new = self.actual.ids_of(name).is_empty();
        let free = self.free_in_the_end();
        let Some(pending) = self.pending.get_mut(name) else {
            return;
        };
        if let Refusal::Full(shortage) = &refusal {
            let who = (name, shortage.needed);
            let place = self.queue.wait(who, free, is_new, pending.ticket);
            pending.ticket = Some(place.ticket());
            pending.place = Some(place);
        }
        pending.refusal = Some(refusal);
    }

    /// Takes a Service out of the queues: it is about to be tried, or replaced by another version.
    fn stop_waiting(&mut self, name: &ObjectName) {
        if let Some(pending) = self.pending.get_mut(name)
            && let Some(place) = pending.place.take()
        {
            self.queue.leave(place);
        }
        let refusal = self
            .pending
            .get(name)
            .and_then(|pending| pending.refusal.as_ref());
        let Some(Refusal::Taken(clashes)) = refusal else {
            return;
        };
        for clash in clashes {
            if let Some(names) = self.waiting.get_mut(&clash.key) {
                names.remove(name);
                if names.is_empty() {
                    self.waiting.remove(&clash.key);
                }
            }
        }
    }
}
