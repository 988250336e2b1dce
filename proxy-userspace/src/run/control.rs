//! The loop between what the source says and what the maps hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::edges::View;
use super::known_pods::KnownPods;
use super::origin::Source;
use super::socket_edge::SocketEdge;
use super::surroundings::Surroundings;
use super::take_over::TakeOver;
use super::unread::{Unread, lacks_slices};
use super::vitals::{Noted, Vitals};
use super::{Options, at};
use crate::conntrack_gc::{Collector, Inquiry};
use crate::desired::{DesiredPort, NodeFacts, compile};
use crate::devices::Role;
use crate::devices::routes::Route;
use crate::events::{Events, Trouble};
use crate::loader::attach::Method;
use crate::loader::pins::Pins;
use crate::maps::Maps;
use crate::metrics::Synced;
use crate::model::{Affected, Event, ObjectName, Problem, World};
use crate::node;
use crate::sockets::{Counts, KeeperHandle};
use crate::status::{self, LastSync, PodsStatus, SocketEdgeStatus, Status};
use crate::sync::{Report, Sync};

/// Most events that are taken in before the maps follow.
const BATCH: usize = 65_536;
/// Services that are compiled at a time, so that progress can be shown in between.
const CHUNK: usize = 4096;
/// After how long something shows that it is at work.
const PATIENCE: Duration = Duration::from_secs(1);
/// What failed is not tried again earlier, whatever is asked for.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// The status file is not written more often.
const STATUS_PAUSE: Duration = Duration::from_millis(100);

/// Services that are to be compiled anew.
#[derive(Default)]
struct Changed {
    names: BTreeSet<ObjectName>,
    is_all: bool,
}

/// What the daemon knows and keeps in order.
pub(super) struct Control {
    surroundings: Surroundings,
    state_dir: PathBuf,
    world: World,
    changed: Changed,
    /// Whether the first lists are complete.
    is_complete: bool,
    /// Whether what they told has been brought into force.
    is_in_force: bool,
    /// What they did not tell.
    unread: Unread,
    /// Services whose endpoints they did not tell: the maps keep what a predecessor knew.
    kept: BTreeSet<ObjectName>,
    vitals: Vitals,
    take_over: TakeOver,
    sync: Sync,
    maps: Maps,
    view: watch::Receiver<Arc<View>>,
    /// By subject, from the source.
    problems: BTreeMap<String, String>,
    /// Writes of some of them, with the Kubernetes API.
    events: Option<Events>,
    retry: Option<(Instant, Duration)>,
    /// Until what failed is tried again, at first and at most.
    backoff: (Duration, Duration),
    status: Status,
    written: Option<(Instant, Status)>,
    /// The pods that the socket edge tells apart.
    pods: Option<KnownPods>,
    /// Dropped, it ends the collector.
    collector: Option<mpsc::Sender<Inquiry>>,
    /// Looks after the sockets that are served, if any are.
    keeper: Option<KeeperHandle>,
    /// Detached backends that the collector has been asked for.
    asked: Option<BTreeSet<u32>>,
    /// What is to be done once, when all is in force.
    when_in_force: Option<Box<dyn FnOnce() + Send>>,
    /// Which of them are in use.
    answers: (
        UnboundedSender<BTreeSet<u32>>,
        UnboundedReceiver<BTreeSet<u32>>,
    ),
}

impl Control {
    /// Goes on from what the maps hold.
    pub(super) fn new(
        options: &Options,
        maps: Maps,
        method: Method,
        routes: watch::Sender<Option<BTreeSet<Route>>>,
    ) -> anyhow::Result<Self> {
        let contents = maps.contents()?;
        tracing::info!(
            "the maps hold {} frontends of {} service ports",
            contents.frontends.len(),
            contents.services.len()
        );
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: status::unix_time(),
            node: options.node.name.to_string(),
            source: options.origin.to_string(),
            resources: BTreeMap::new(),
            synced: false,
            last_sync: None,
            problems: Vec::new(),
            method,
            devices: Vec::new(),
            node_devices: Vec::new(),
            host_devices: Vec::new(),
            node_addresses: Vec::new(),
            socket_edge: SocketEdgeStatus::default(),
            modes: status::modes(&options.node),
            timeouts: options.timeouts.by_name(),
        };
        let vitals = Vitals::start(options)?;
        Ok(Self {
            take_over: TakeOver::new(
                Pins::new(&options.bpffs),
                options.replace_kube_proxy,
                vitals.problems.clone(),
            ),
            surroundings: Surroundings::new(
                options.node.clone(),
                matches!(options.origin, super::Origin::Kubernetes(_)),
                &maps,
                routes,
            )?,
            state_dir: options.state_dir.clone(),
            world: World::new(),
            changed: Changed::default(),
            is_complete: false,
            is_in_force: false,
            unread: Unread::default(),
            kept: BTreeSet::new(),
            vitals,
            sync: Sync::new(maps.capacity(), contents),
            maps,
            view: watch::channel(Arc::default()).1,
            problems: BTreeMap::new(),
            events: None,
            retry: None,
            backoff: (
                options.min_sync_period.max(LEAST_PAUSE),
                options.sync_period,
            ),
            status,
            written: None,
            pods: None,
            collector: None,
            keeper: None,
            asked: None,
            when_in_force: None,
            answers: unbounded_channel(),
        })
    }

    /// The same with devices to watch, records to collect, and the socket edge.
    pub(super) fn with(
        mut self,
        view: watch::Receiver<Arc<View>>,
        collector: Collector,
        socket_edge: SocketEdge,
    ) -> anyhow::Result<Self> {
        let (inquiries, inquired) = mpsc::channel();
        self.vitals.watch_passes(collector.passed());
        let collect = move || collector.run(&inquired);
        let thread = std::thread::Builder::new()
            .name("conntrack-gc".to_owned())
            .spawn(collect);
        drop(thread.context("cannot start the collector of flow records")?);
        self.vitals.problems.set("socket edge", socket_edge.problem);
        self.status.socket_edge = socket_edge.status;
        self.keeper = socket_edge.keeper;
        if let Some(keeper) = &self.keeper {
            self.vitals.watch_parted(keeper.counts());
        }
        self.pods = socket_edge.pods;
        self.view = view;
        self.collector = Some(inquiries);
        Ok(self)
    }

    /// Has this done once, when all that was known at first is in force.
    pub(super) fn when_in_force(&mut self, work: impl FnOnce() + Send + 'static) {
        self.when_in_force = Some(Box::new(work));
    }

    /// Follows the source until a signal comes.
    ///
    /// # Errors
    /// If the source or the devices' monitor ends.
    pub(super) async fn run(mut self, mut source: Source) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut trouble = self.vitals.problems.changes();
        let none = watch::channel(Counts::default()).1;
        let mut left = self.keeper.as_ref().map_or(none, KeeperHandle::counts);
        let mut waiting = tokio::time::interval(PATIENCE * 5);
        waiting.reset_after(PATIENCE);
        let mut batch = Vec::new();
        self.events = source.events(&self.surroundings.config().name);
        let mut source_state = source.state();
        self.vitals.watch_source(source_state.clone());
        self.status.resources = status::resources(&source_state.borrow_and_update());
        self.settle();
        loop {
            let (retry, status_due) = (self.retry.map(|(due, _)| due), self.status_due());
            tokio::select! {
                taken = source.take(&mut batch, BATCH) => {
                    taken?;
                    self.take(std::mem::take(&mut batch));
                }
                changed = pods_changed(self.pods.as_mut()) => {
                    changed.context("looking for pods' cgroups ended")?;
                }
                changed = self.view.changed() => {
                    changed.context("the monitor of devices ended")?;
                    if let Some(keeper) = &self.keeper {
                        keeper.devices_changed();
                    }
                }
                Some(in_use) = self.answers.1.recv() => self.release(in_use),
                () = at(retry) => self.again(),
                () = at(status_due) => {}
                () = at(self.surroundings.due()) => {}
                _ = waiting.tick(), if !self.is_complete => self.say_waiting(),
                Ok(()) = trouble.changed() => {}
                Ok(()) = source_state.changed() => {
                    self.status.resources = status::resources(&source_state.borrow_and_update());
                }
                Ok(()) = left.changed() => {
                    self.status.socket_edge.left = *left.borrow_and_update();
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            self.settle();
        }
        tracing::info!("stopping; programs, flows and Services stay in force");
        Ok(())
    }

    /// Asks for the backends of deleted service ports that flows still use.
    fn inquire(&mut self) {
        if self.asked.is_some() || !self.sync.has_detached() {
            return;
        }
        let backends = self.sync.detached();
        let inquiry = Inquiry {
            backends: backends.clone(),
            answer: self.answers.0.clone(),
        };
        let sent = self.collector.as_ref().map(|it| it.send(inquiry));
        if matches!(sent, Some(Ok(()))) {
            self.asked = Some(backends);
        }
    }

    /// Frees what was asked for and is not in use.
    fn release(&mut self, mut in_use: BTreeSet<u32>) {
        let asked = self.asked.take().unwrap_or_default();
        in_use.extend(self.sync.detached().difference(&asked));
        let report = self.sync.release_detached(&in_use, &mut self.maps);
        tracing::debug!("freed {} backends of deleted Services", report.n_writes);
        self.note(report);
    }

    /// Brings node and status up to date.
    fn settle(&mut self) {
        self.inquire();
        self.follow_node();
        self.follow_pods();
        let view = self.view.borrow().clone();
        let of_source = self.problems.iter().map(|(subject, message)| Problem {
            subject: subject.clone(),
            message: message.clone(),
        });
        let of_source: Vec<_> = of_source.collect();
        let (of_servers, of_maps) = (self.vitals.problems.all(), self.sync.problems());
        if let Some(events) = &self.events {
            events.tell([
                (Trouble::Source, &*of_source),
                (Trouble::Server, &of_servers),
                (Trouble::Maps, &of_maps),
            ]);
        }
        self.status.problems = of_source
            .into_iter()
            .chain(of_servers)
            .chain(self.start_problem())
            .chain(of_maps)
            .chain(self.surroundings.problems())
            .chain(view.problems.iter().cloned())
            .collect();
        let named = |roles: &[Role]| {
            let names = roles.iter().filter_map(|role| view.edges.get(role));
            names.flatten().cloned().collect()
        };
        self.status.devices = named(&[Role::PodEdge]);
        self.status.node_devices = named(&[Role::NodeEdge]);
        self.status.host_devices = named(&[Role::HostEdge, Role::Loopback]);
        self.status.node_addresses = self.surroundings.node_addresses();
        let is_synced = self.is_in_force && self.surroundings.has_routes(&view);
        if is_synced && let Some(work) = self.when_in_force.take() {
            tokio::task::block_in_place(work);
        }
        self.status.synced |= is_synced;
        if self.status.synced && self.retry.is_none() {
            self.take_over.is_in_force();
        }
        self.vitals.tell_status(&self.status);
        self.write_status();
    }

    /// Has the maps follow what is around.
    fn follow_node(&mut self) {
        let view = self.view.borrow_and_update().clone();
        let seen = super::surroundings::Seen {
            view: &view,
            world: &self.world,
            is_complete: self.is_complete,
            is_in_force: self.is_in_force,
        };
        let report = self
            .surroundings
            .follow(&seen, &mut self.maps, &mut self.sync);
        if let Some(report) = report {
            self.note(report);
        }
        self.vitals
            .set_addresses(self.surroundings.node_port_addresses(&self.world));
    }

    /// Has the socket edge follow the pods that it tells apart.
    fn follow_pods(&mut self) {
        let Some(pods) = &mut self.pods else { return };
        let (view, problem) = pods.follow();
        self.vitals.problems.set("socket edge's pods", problem);
        self.status.socket_edge.pods = Some(PodsStatus {
            served: view.n_served,
            left_out: view.n_left_out,
            not_found: view.n_not_found,
        });
    }

    /// Takes events in, and has the maps follow.
    fn take(&mut self, batch: Vec<Event>) {
        for event in batch {
            let completes = matches!(event, Event::Synced);
            self.take_problem(&event);
            if let Some(pods) = &self.pods {
                pods.tell(&event);
            }
            let noted = Noted::of(&event);
            let affected = self.world.apply(event);
            self.vitals.note(noted, &affected);
            match affected {
                Affected::Nothing => {}
                Affected::Services(names) => self.changed.names.extend(names),
                Affected::All => self.changed.is_all = true,
            }
            if completes && !self.is_complete {
                self.is_complete = true;
                self.changed.is_all = true;
                self.unread = Unread::new(self.problems.keys(), &self.world);
            }
        }
        self.unread.update(&self.problems, &self.world);
        self.vitals.tell_node(&self.world);
        if self.is_complete && (self.changed.is_some() || self.knows_more()) {
            self.vitals.changed();
            tokio::task::block_in_place(|| self.follow());
        }
    }

    /// Whether it is known now what should become of something that a predecessor left.
    fn knows_more(&self) -> bool {
        let mut left = self.sync.unclaimed().iter();
        left.any(|name| !self.unread.hides(name))
    }

    /// What is still kept because it could not be read.
    fn start_problem(&self) -> Option<Problem> {
        // Until the first sync, all that a predecessor left is unclaimed.
        if !self.is_in_force {
            return None;
        }
        self.unread.problem(self.sync.unclaimed())
    }

    fn take_problem(&mut self, event: &Event) {
        if let Event::Problem(problem) = event {
            let old = self
                .problems
                .insert(problem.subject.clone(), problem.message.clone());
            if old.as_ref() != Some(&problem.message) {
                tracing::warn!("{}: {}", problem.subject, problem.message);
            }
        }
        if let Event::Solved(subject) = event
            && self.problems.remove(subject).is_some()
        {
            tracing::info!("{subject}: solved");
        }
    }

    /// Compiles what has changed and brings it into force.
    fn follow(&mut self) {
        let start = Instant::now();
        self.follow_node();
        let is_first = !self.is_in_force;
        let is_full = self.changed.is_all;
        let names = self.due();
        let facts = NodeFacts {
            name: self.surroundings.config().name.clone(),
            zone: self.world.zone().cloned(),
            primary: node::primary_addresses(self.world.node()),
            same_node_hints: self.surroundings.config().same_node_hints,
        };
        let mut report = Report::default();
        let mut shown = start;
        for (index, chunk) in names.chunks(CHUNK).enumerate() {
            if shown.elapsed() > PATIENCE {
                shown = Instant::now();
                tracing::info!("syncing: {} of {} Services", index * CHUNK, names.len());
            }
            let changes: Vec<_> = chunk
                .iter()
                .map(|name| (name.clone(), desired(&self.world, &facts, name)))
                .collect();
            for (name, ports) in &changes {
                self.vitals.desired(name, ports);
            }
            report = sum(report, self.sync.apply(changes, &mut self.maps));
        }
        if !self.sync.unclaimed().is_empty() {
            let may_be_there = |name: &ObjectName| self.unread.hides(name);
            let finished = self.sync.finish_start(may_be_there, &mut self.maps);
            report = sum(report, finished);
        }
        self.is_in_force = true;
        if is_first {
            self.take_over.begin(&mut self.maps);
        }
        self.conclude(start, names.len(), is_full, report);
    }

    /// The Services that are to be compiled now. One whose endpoints may be in what could not be
    /// read waits until it can.
    fn due(&mut self) -> Vec<ObjectName> {
        self.changed.names.append(&mut self.kept);
        let names = self.changed.take(&self.world);
        let (kept, due) = names.into_iter().partition(|name| {
            self.sync.unclaimed().contains(name)
                && self.world.service(name).is_some_and(lacks_slices)
                && self.unread.hides(name)
        });
        self.kept = BTreeSet::from_iter::<Vec<_>>(kept);
        due
    }

    /// Tries again what is pending.
    fn again(&mut self) {
        let start = Instant::now();
        let report = tokio::task::block_in_place(|| self.sync.retry(&mut self.maps));
        if report.n_writes > 0 || report.n_pending == 0 {
            self.conclude(start, 0, false, report);
        } else {
            self.plan_retry(report.n_pending);
        }
    }

    /// Something else than a change of Services may have let one in that waited, or kept one out.
    fn note(&mut self, report: Report) {
        let last = self.status.last_sync.as_ref();
        if last.is_some_and(|last| last.pending != report.n_pending) {
            self.conclude(Instant::now(), 0, false, report);
        } else if self.retry.is_none() {
            self.plan_retry(report.n_pending);
        }
    }

    fn conclude(&mut self, start: Instant, n_services: usize, is_full: bool, report: Report) {
        let elapsed = start.elapsed();
        let synced = Synced {
            took: elapsed,
            is_full,
            n_writes: report.n_writes,
            n_pending: report.n_pending,
            is_success: !self.sync.has_failed_writes(),
        };
        let node = &self.surroundings.config().name;
        self.vitals
            .concluded(&self.world, node, &self.sync, &synced);
        tracing::info!(
            "synced {n_services} Services: {} writes, {} pending, in {elapsed:.1?}",
            report.n_writes,
            report.n_pending
        );
        let problems = self.start_problem().into_iter().chain(self.sync.problems());
        let known: BTreeSet<_> = self.status.problems.iter().collect();
        for problem in problems {
            if !known.contains(&problem) {
                tracing::warn!("{}: {}", problem.subject, problem.message);
            }
        }
        self.status.last_sync = Some(LastSync {
            at: status::unix_time(),
            services: n_services,
            writes: report.n_writes,
            pending: report.n_pending,
            micros: elapsed.as_micros() as u64,
        });
        if report.n_writes > 0 {
            self.retry = None;
            if let Some(keeper) = &self.keeper {
                keeper.backends_changed();
            }
        }
        self.plan_retry(report.n_pending);
    }

    fn plan_retry(&mut self, n_pending: usize) {
        self.retry = (n_pending > 0).then(|| {
            let (first, longest) = self.backoff;
            let pause = self
                .retry
                .map_or(first, |(_, pause)| (pause * 2).min(longest));
            (Instant::now() + pause, pause)
        });
    }

    fn say_waiting(&self) {
        tracing::info!(
            "waiting for the first complete lists: {} Services so far; what is in force stays",
            self.world.services().count()
        );
    }

    /// When the status file is to be written that waits for its time.
    fn status_due(&self) -> Option<Instant> {
        let (at, status) = self.written.as_ref()?;
        (*status != self.status).then(|| *at + STATUS_PAUSE)
    }

    fn write_status(&mut self) {
        let is_due = match &self.written {
            Some((at, status)) => *status != self.status && at.elapsed() >= STATUS_PAUSE,
            None => true,
        };
        if !is_due {
            return;
        }
        if let Err(error) = self.status.write(&self.state_dir) {
            tracing::warn!("{:#}", anyhow::Error::from(error));
        }
        self.written = Some((Instant::now(), self.status.clone()));
    }
}

impl Changed {
    fn is_some(&self) -> bool {
        self.is_all || !self.names.is_empty()
    }

    /// The Services that are to be compiled, by name; nothing is left to be.
    fn take(&mut self, world: &World) -> Vec<ObjectName> {
        let Self { mut names, is_all } = std::mem::take(self);
        if is_all {
            names.extend(world.services().map(|(service, _)| service.name.clone()));
        }
        names.into_iter().collect()
    }
}

/// Until something else has become of the pods; forever if none is told apart.
async fn pods_changed(pods: Option<&mut KnownPods>) -> anyhow::Result<()> {
    match pods {
        Some(pods) => pods.changed().await,
        None => std::future::pending().await,
    }
}

fn desired(world: &World, facts: &NodeFacts, name: &ObjectName) -> Vec<DesiredPort> {
    let compile = |(service, slices)| compile(service, slices, facts);
    world.service(name).map(compile).unwrap_or_default()
}

/// Writes add up; what is pending is so after the last.
const fn sum(earlier: Report, later: Report) -> Report {
    Report {
        n_writes: earlier.n_writes + later.n_writes,
        n_pending: later.n_pending,
    }
}
