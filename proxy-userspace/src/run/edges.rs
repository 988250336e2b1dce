//! Keeps the programs on the devices they belong on, and the host edge in order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::at;
use crate::devices::monitor::{self, MonitorError};
use crate::devices::routes::{self, Route};
use crate::devices::{Device, Devices, Event, Patterns, Role, Task, host_edge};
use crate::loader::attach::{AttachError, Attacher, Change};
use crate::model::Problem;
use crate::node::LocalDevice;

/// Until what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Until a route or the host edge is put back that somebody else took away: they may want to do
/// more than that.
const PATIENCE: Duration = Duration::from_millis(100);

/// What others need to know of the devices.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct View {
    /// Names of the devices with programs, by role.
    pub(super) edges: BTreeMap<Role, Vec<String>>,
    /// What is not as it should be.
    pub(super) problems: Vec<Problem>,
    /// All devices, in order of preference.
    pub(super) local: Vec<LocalDevice>,
    /// Index of the host edge, 0 if there is none.
    pub(super) host_device: u32,
    /// The routes to it that were wanted when they were last looked after.
    pub(super) routes: Option<BTreeSet<Route>>,
}

/// The start failed; what it attached is detached.
#[derive(Debug, thiserror::Error)]
pub(super) enum EdgesError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("the monitor of devices ended")]
    Ended,
}

/// The devices, their programs, and what happens to them.
pub(super) struct Edges {
    devices: Devices,
    attacher: Attacher,
    events: mpsc::Receiver<Event>,
    monitor: JoinHandle<Result<(), MonitorError>>,
    /// Devices that could not be attached, in which role and why.
    failed: BTreeMap<Device, (Role, String)>,
    host: Host,
    view: watch::Sender<Arc<View>>,
}

/// The host edge and the routes to it.
pub(super) struct Host {
    netlink: rtnetlink::Handle,
    state_dir: PathBuf,
    /// The routes that there should be; `None`: not known yet, so that those of a predecessor stay.
    routes: watch::Receiver<Option<BTreeSet<Route>>>,
    /// When the device is to be looked after.
    device_due: Option<Instant>,
    /// When the routes are.
    routes_due: Option<Instant>,
    /// The routes that were wanted when they were last looked after.
    settled: Option<BTreeSet<Route>>,
    /// What is wrong, by subject.
    problems: BTreeMap<&'static str, String>,
}

impl Host {
    /// Makes the host edge if it is not there. Failures are problems that will be tried again, not
    /// errors: pods and the outside do without. Says whether it was made, too.
    pub(super) async fn start(
        netlink: rtnetlink::Handle,
        state_dir: PathBuf,
        routes: watch::Receiver<Option<BTreeSet<Route>>>,
    ) -> (Self, bool) {
        let mut host = Self {
            netlink,
            state_dir,
            routes,
            device_due: None,
            routes_due: None,
            settled: None,
            problems: BTreeMap::new(),
        };
        let is_made = host.ensure_device().await;
        (host, is_made)
    }

    async fn ensure_device(&mut self) -> bool {
        self.device_due = None;
        let made = host_edge::ensure(&self.netlink).await;
        let is_made = made.as_ref().is_ok_and(|is_made| *is_made);
        if is_made {
            tracing::info!("device {}: made", host_edge::HOST_DEVICE);
            self.routes_due = Some(Instant::now());
        }
        if made.is_err() {
            self.device_due = Some(Instant::now() + RETRY);
        }
        let made = made.map(drop).map_err(anyhow::Error::from);
        self.note("device beeline0", made.map(|()| Vec::new()));
        let set = host_edge::set_sysctls(&self.state_dir).map_err(anyhow::Error::from);
        self.note("kernel settings", set);
        is_made
    }

    async fn set_routes(&mut self) {
        self.routes_due = None;
        let Some(wanted) = self.routes.borrow_and_update().clone() else {
            return;
        };
        let set = routes::set(&self.netlink, &wanted).await;
        match &set {
            Ok(0) => {}
            Ok(n_changes) => tracing::info!("routes to Services: {n_changes} changed"),
            Err(_) => self.routes_due = Some(Instant::now() + RETRY),
        }
        let set = set.map_err(anyhow::Error::from);
        self.note("routes to Services", set.map(|_| Vec::new()));
        self.settled = Some(wanted);
    }

    /// Takes note of how something went; says so if that is news.
    fn note(&mut self, subject: &'static str, went: anyhow::Result<Vec<String>>) {
        let wrong = went.unwrap_or_else(|error| vec![format!("{error:#}")]);
        if wrong.is_empty() {
            if self.problems.remove(subject).is_some() {
                tracing::info!("{subject}: solved");
            }
            return;
        }
        let message = wrong.join("; ");
        let old = self.problems.insert(subject, message.clone());
        if old.as_ref() != Some(&message) {
            tracing::warn!("{subject}: {message}");
        }
    }

    fn routes_in(&mut self, pause: Duration) {
        let due = Instant::now() + pause;
        self.routes_due = Some(self.routes_due.map_or(due, |old| old.min(due)));
    }
}

impl Edges {
    /// Attaches the programs to all devices where they belong, and takes them off all others.
    pub(super) async fn start(
        attacher: Attacher,
        patterns: Patterns,
        host: Host,
    ) -> Result<Self, EdgesError> {
        let (sender, events) = mpsc::channel(1024);
        let mut edges = Self {
            devices: Devices::new(patterns),
            attacher,
            events,
            monitor: tokio::spawn(monitor::run(sender)),
            failed: BTreeMap::new(),
            host,
            view: watch::Sender::default(),
        };
        let Some(event) = edges.events.recv().await else {
            edges.monitor.await.map_err(|_| EdgesError::Ended)??;
            return Err(EdgesError::Ended);
        };
        let tasks = edges.devices.apply(event);
        edges.clear_others().await?;
        edges.attach_first(tasks).await?;
        edges.publish();
        Ok(edges)
    }

    /// What the devices are, now and whenever it changes.
    pub(super) fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Follows the devices until the monitor ends.
    pub(super) async fn run(mut self) {
        let mut has_routes = true;
        loop {
            let retry = (!self.failed.is_empty()).then(|| Instant::now() + RETRY);
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.follow(event).await,
                    None => return,
                },
                changed = self.host.routes.changed(), if has_routes => {
                    has_routes = changed.is_ok();
                    self.host.routes_in(Duration::ZERO);
                }
                () = at(self.host.device_due) => {
                    let _is_made = self.host.ensure_device().await;
                }
                () = at(self.host.routes_due) => self.host.set_routes().await,
                () = at(retry) => {
                    for (device, (role, _)) in self.failed.clone() {
                        self.attach(device, role).await;
                    }
                }
            }
            self.publish();
        }
    }

    /// Removes what an earlier start left where it does not belong any more.
    async fn clear_others(&mut self) -> Result<(), EdgesError> {
        let edges: BTreeSet<u32> = self
            .devices
            .edges()
            .map(|(device, _)| device.index)
            .collect();
        let others: Vec<_> = self.devices.others().cloned().collect();
        for index in self.attacher.pinned()? {
            let is_present = edges.contains(&index) || others.iter().any(|it| it.index == index);
            if !is_present {
                let _was_there = self.attacher.forget(index)?;
            }
        }
        for device in others {
            if self.attacher.detach(&device).await? {
                tracing::info!("device {}: no edge any more, detached", device.name);
            }
        }
        Ok(())
    }

    async fn attach_first(&mut self, tasks: Vec<Task>) -> Result<(), EdgesError> {
        let (total, start) = (tasks.len(), Instant::now());
        let mut shown = start;
        let mut created = Vec::new();
        let (mut n_unchanged, mut n_replaced) = (0, 0);
        for (done, task) in tasks.into_iter().enumerate() {
            let Task::Attach(device, role) = task else {
                continue;
            };
            match self.attacher.attach(&device, role.programs()).await {
                Ok(changes) => {
                    let is_unchanged = changes.iter().all(|it| *it == Change::Unchanged);
                    n_unchanged += usize::from(is_unchanged);
                    n_replaced += usize::from(changes.contains(&Change::Replaced));
                    if changes.contains(&Change::Created) {
                        created.push(device);
                    }
                }
                Err(error) if is_gone(&device) => tracing::debug!("{error}: it is gone"),
                Err(error) => {
                    created.push(device);
                    self.take_back(&created).await;
                    return Err(error.into());
                }
            }
            if shown.elapsed() > Duration::from_secs(1) {
                shown = Instant::now();
                tracing::info!("attaching: {} of {total} devices", done + 1);
            }
        }
        tracing::info!(
            "attached by {} to {} devices: {} new, {n_replaced} replaced, {n_unchanged} unchanged",
            self.attacher.method().name(),
            self.devices.edges().count(),
            created.len(),
        );
        Ok(())
    }

    async fn take_back(&self, created: &[Device]) {
        for device in created {
            if let Err(error) = self.attacher.detach(device).await {
                tracing::warn!("taking the programs back: {error}");
            }
        }
    }

    async fn follow(&mut self, event: Event) {
        if matches!(event, Event::RouteGone) {
            self.host.routes_in(PATIENCE);
        }
        // With an address the kernel removes the routes whose source it was.
        if matches!(event, Event::AddressGone(..) | Event::Everything(_)) {
            self.host.routes_in(Duration::ZERO);
        }
        for task in self.devices.apply(event) {
            match task {
                Task::Attach(device, role) => self.attach(device, role).await,
                Task::Detach(device) => {
                    let _was_failed = self.failed.remove(&device);
                    match self.attacher.detach(&device).await {
                        Ok(_) => tracing::info!("device {}: detached", device.name),
                        Err(error) => tracing::warn!("{error}"),
                    }
                }
                Task::Forget(device) => {
                    let _was_failed = self.failed.remove(&device);
                    tracing::debug!("device {}: gone", device.name);
                    if let Err(error) = self.attacher.forget(device.index) {
                        tracing::warn!("{error}");
                    }
                }
            }
        }
        if !self.devices.has_host_edge() && self.host.device_due.is_none() {
            self.host.device_due = Some(Instant::now() + PATIENCE);
        }
    }

    async fn attach(&mut self, device: Device, role: Role) {
        match self.attacher.attach(&device, role.programs()).await {
            Ok(changes) => {
                tracing::debug!("device {}: attached as {role:?}, {changes:?}", device.name);
                let _was_failed = self.failed.remove(&device);
            }
            Err(error) if is_gone(&device) => {
                tracing::debug!("{error}: it is gone");
                let _was_failed = self.failed.remove(&device);
            }
            Err(error) => {
                let message = format!("{:#}", anyhow::Error::from(error));
                let old = self.failed.get(&device);
                if old.is_none_or(|(_, old)| *old != message) {
                    tracing::warn!("{message}; trying again");
                }
                let _old = self.failed.insert(device, (role, message));
            }
        }
    }

    fn publish(&self) {
        let mut edges: BTreeMap<Role, Vec<String>> = BTreeMap::new();
        for (device, role) in self.devices.edges() {
            edges.entry(role).or_default().push(device.name.to_string());
        }
        let of_device = |(device, (_, message)): (&Device, &(Role, String))| Problem {
            subject: format!("device {}", device.name),
            message: message.clone(),
        };
        let of_host = |(subject, message): (&&str, &String)| Problem {
            subject: (*subject).to_owned(),
            message: message.clone(),
        };
        let problems = self.failed.iter().map(of_device);
        let view = View {
            edges,
            problems: problems
                .chain(self.host.problems.iter().map(of_host))
                .collect(),
            local: self.devices.local(),
            host_device: self.devices.host_device().unwrap_or(0),
            routes: self.host.settled.clone(),
        };
        let _is_changed = self.view.send_if_modified(|old| {
            let is_changed = **old != view;
            if is_changed {
                *old = Arc::new(view);
            }
            is_changed
        });
    }
}

/// Whether the device went away meanwhile; its removal is still to be heard of then.
fn is_gone(device: &Device) -> bool {
    nix::net::if_::if_nametoindex(&*device.name) != Ok(device.index)
}
