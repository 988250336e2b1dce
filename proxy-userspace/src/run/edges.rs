//! Keeps the programs on the devices that lead to pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::devices::monitor::{self, MonitorError};
use crate::devices::{Device, Devices, Event, PodDevices, Task};
use crate::loader::attach::{AttachError, Attacher, Change};
use crate::model::Problem;

/// Until devices that failed are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What others need to know of the devices.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct View {
    /// Names of those that lead to pods.
    pub(super) edges: Vec<String>,
    /// What could not be attached.
    pub(super) problems: Vec<Problem>,
    /// This node's addresses as its devices tell.
    pub(super) addresses: Vec<IpAddr>,
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
    /// Devices that could not be attached, and why.
    failed: BTreeMap<Device, String>,
    view: watch::Sender<View>,
}

impl Edges {
    /// Attaches the programs to all devices that lead to pods, and takes them off all others.
    pub(super) async fn start(attacher: Attacher, pods: PodDevices) -> Result<Self, EdgesError> {
        let (sender, events) = mpsc::channel(1024);
        let mut edges = Self {
            devices: Devices::new(pods),
            attacher,
            events,
            monitor: tokio::spawn(monitor::run(sender)),
            failed: BTreeMap::new(),
            view: watch::Sender::default(),
        };
        let Some(event) = edges.events.recv().await else {
            edges.monitor.await.map_err(|_| EdgesError::Ended)??;
            return Err(EdgesError::Ended);
        };
        edges.clear_others(&event).await?;
        edges.attach_first(event).await?;
        edges.publish();
        Ok(edges)
    }

    /// What the devices are, now and whenever it changes.
    pub(super) fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Follows the devices until the monitor ends.
    pub(super) async fn run(mut self) {
        loop {
            let retry = tokio::time::sleep(RETRY);
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.follow(event).await,
                    None => return,
                },
                () = retry, if !self.failed.is_empty() => {
                    for device in self.failed.keys().cloned().collect::<Vec<_>>() {
                        self.attach(device).await;
                    }
                }
            }
            self.publish();
        }
    }

    /// Removes what an earlier start left where it does not belong any more.
    async fn clear_others(&mut self, event: &Event) -> Result<(), EdgesError> {
        let Event::Everything(everything) = event else {
            return Ok(());
        };
        let present: Vec<_> = everything.links.iter().map(|link| &link.device).collect();
        for index in self.attacher.pinned()? {
            if !present.iter().any(|device| device.index == index) {
                let _was_there = self.attacher.forget(index)?;
            }
        }
        for link in &everything.links {
            let is_edge = self.devices.would_be_edge(link, &everything.uplinks);
            if !is_edge && self.attacher.detach(&link.device).await? {
                tracing::info!("device {}: leads to no pod, detached", link.device.name);
            }
        }
        Ok(())
    }

    async fn attach_first(&mut self, event: Event) -> Result<(), EdgesError> {
        let tasks = self.devices.apply(event);
        let (total, start) = (tasks.len(), Instant::now());
        let mut shown = start;
        let mut created = Vec::new();
        let (mut n_unchanged, mut n_replaced) = (0, 0);
        for (done, task) in tasks.into_iter().enumerate() {
            let Task::Attach(device) = task else { continue };
            match self.attacher.attach(&device).await {
                Ok(changes) => {
                    n_unchanged += usize::from(changes == [Change::Unchanged; 2]);
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
        for task in self.devices.apply(event) {
            match task {
                Task::Attach(device) => self.attach(device).await,
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
    }

    async fn attach(&mut self, device: Device) {
        match self.attacher.attach(&device).await {
            Ok(changes) => {
                tracing::debug!("device {}: attached, {changes:?}", device.name);
                let _was_failed = self.failed.remove(&device);
            }
            Err(error) if is_gone(&device) => {
                tracing::debug!("{error}: it is gone");
                let _was_failed = self.failed.remove(&device);
            }
            Err(error) => {
                let message = format!("{:#}", anyhow::Error::from(error));
                if self.failed.get(&device) != Some(&message) {
                    tracing::warn!("{message}; trying again");
                }
                let _old = self.failed.insert(device, message);
            }
        }
    }

    fn publish(&self) {
        let problem = |(device, message): (&Device, &String)| Problem {
            subject: format!("device {}", device.name),
            message: message.clone(),
        };
        let address = |family| self.devices.node_address(family, &[]);
        let view = View {
            edges: self
                .devices
                .edges()
                .map(|device| device.name.to_string())
                .collect(),
            problems: self.failed.iter().map(problem).collect(),
            addresses: Family::ALL.into_iter().filter_map(address).collect(),
        };
        let _is_changed = self.view.send_if_modified(|old| {
            let is_changed = *old != view;
            *old = view;
            is_changed
        });
    }
}

/// Whether the device went away meanwhile; its removal is still to be heard of then.
fn is_gone(device: &Device) -> bool {
    nix::net::if_::if_nametoindex(&*device.name) != Ok(device.index)
}
