//! The start of the socket edge, and what keeps it from starting.
//!
//! Packets are served without it. So whatever keeps it away is a problem to be shown, but no
//! reason not to start, unless it is wrong what was asked for.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytemuck::Pod;
use proxy_common::abi::{DatagramKey, SocketRecord};

use super::Options;
use super::known_pods::KnownPods;
use crate::loader::cgroup::{self, Cgroup, CgroupError};
use crate::loader::pins::Pins;
use crate::loader::socket_settings::SocketSettingsMap;
use crate::loader::{LoadError, SocketPrograms, node_netns};
use crate::maps::{MapFailure, Table, wait_for_programs};
use crate::node::{SocketLb, socket_flags};
use crate::sockets::{Counts, Keeper, KeeperConfig, KeeperHandle};
use crate::status::SocketEdgeStatus;

/// Where sockets are to be served.
pub(super) enum Site {
    /// Nowhere: `--socket-lb off`.
    Off,
    /// Nowhere, for want of a cgroup.
    Missing(CgroupError),
    /// In the cgroup that was asked for.
    Given(Cgroup),
    /// In the one that was found.
    Found(Cgroup),
}

impl Site {
    /// Finds it.
    ///
    /// # Errors
    /// If `--cgroup-path` names something else.
    pub(super) fn find(options: &Options) -> Result<Self, CgroupError> {
        Ok(match (options.socket_lb, &options.cgroup_path) {
            (SocketLb::Off, _) => Self::Off,
            (_, Some(path)) => Self::Given(Cgroup::at(path)?),
            (_, None) => Cgroup::find(&options.state_dir).map_or_else(Self::Missing, Self::Found),
        })
    }

    /// The cgroup, if there is one.
    pub(super) const fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Off | Self::Missing(_) => None,
            Self::Given(cgroup) | Self::Found(cgroup) => Some(cgroup),
        }
    }

    /// What does not bode well.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Off | Self::Given(_) => None,
            Self::Missing(error) => Some(error_chain(error)),
            Self::Found(cgroup) => (!cgroup.is_root()).then(|| partial(cgroup.path())),
        }
    }

    /// Unmounts what was mounted for it.
    pub(super) fn undo(&self, state_dir: &Path) {
        if self.cgroup().is_some_and(Cgroup::is_mounted_anew)
            && let Err(error) = cgroup::unmount_own(state_dir)
        {
            tracing::warn!("unmounting the cgroup file system: {error}");
        }
    }
}

/// The socket edge as it came to be.
pub(super) struct SocketEdge {
    /// What `beeline status` shows.
    pub(super) status: SocketEdgeStatus,
    /// What is not as it should be.
    pub(super) problem: Option<String>,
    /// Looks after the sockets that are served.
    pub(super) keeper: Option<KeeperHandle>,
    /// The pods that it tells apart, if there is reason to.
    pub(super) pods: Option<KnownPods>,
}

impl SocketEdge {
    /// Attaches the programs; or, if nobody's sockets are to be served or something keeps them
    /// from it, takes those of a predecessor off.
    pub(super) fn start(
        options: &Options,
        pins: &Pins,
        site: &Site,
        programs: Option<Result<SocketPrograms, LoadError>>,
    ) -> Self {
        let mut problems = Vec::new();
        let served = site.cgroup().zip(programs).and_then(|(cgroup, programs)| {
            let served = serve(options, pins, cgroup, programs);
            served
                .map_err(|error| problems.push(format!("{error:#}")))
                .ok()
        });
        if served.is_none()
            && let Err(error) = take_off(pins)
        {
            problems.push(format!("taking it off: {error:#}"));
        }
        problems.extend(site.problem());
        let cgroup = site.cgroup().filter(|_| served.is_some());
        let (keeper, pods) = served.unzip();
        Self {
            status: SocketEdgeStatus {
                serves: options.socket_lb.name().to_owned(),
                cgroup: cgroup.map(|cgroup| cgroup.path().to_owned()),
                left: Counts::default(),
                pods: None,
            },
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            keeper,
            pods: pods.flatten(),
        }
    }
}

fn serve(
    options: &Options,
    pins: &Pins,
    cgroup: &Cgroup,
    programs: Result<SocketPrograms, LoadError>,
) -> anyhow::Result<(KeeperHandle, Option<KnownPods>)> {
    let mut programs = programs?;
    let node_netns = node_netns().context("cannot tell the node's network namespace")?;
    let flags = socket_flags(options.socket_lb, &options.node);
    let mut settings = SocketSettingsMap::open(pins)?;
    settings.set_served(node_netns, flags)?;
    // Before the programs are there: they must not serve a pod that is to be left out.
    let pods = KnownPods::start(pins, &options.skip, cgroup.path(), settings)?;
    let changes = cgroup::attach(pins, cgroup, &mut programs)?;
    tracing::info!(
        "attached to cgroup {}: {} new, {} replaced, {} unchanged",
        cgroup.path().display(),
        changes.created,
        changes.replaced,
        changes.unchanged
    );
    let config = KeeperConfig {
        gone_backends: options.node.gone_backends,
        timeouts: options.timeouts.clone(),
        proc: PathBuf::from("/proc"),
    };
    Ok((Keeper::start(pins, config)?, pods))
}

/// Detaches the programs and forgets what they knew of sockets.
fn take_off(pins: &Pins) -> anyhow::Result<()> {
    if cgroup::detach(pins)? > 0 {
        tracing::info!("the socket edge is off: detached");
        wait_for_programs();
    }
    clear::<u64, SocketRecord>(pins, "SOCKETS")?;
    clear::<DatagramKey, SocketRecord>(pins, "DATAGRAMS")?;
    Ok(())
}

fn clear<K: Pod, V: Pod>(pins: &Pins, name: &'static str) -> Result<(), MapFailure> {
    let mut table: Table<K, V> = Table::open(pins, name)?;
    let keys: Vec<_> = table.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| table.remove(key).map(drop))
}

fn partial(path: &Path) -> String {
    format!(
        "{} shows a part of the cgroup tree only: of this node's processes, those below it are \
         served by the socket edge, all others by their packets; mount the node's /sys/fs/cgroup \
         into the container and name it with --cgroup-path",
        path.display()
    )
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
