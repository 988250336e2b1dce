//! The daemon: from options to a node that serves, and on until it is told to stop.
//!
//! Everything is checked before the first program is attached. What is attached stays when the
//! daemon ends, however it ends.

mod control;
mod edges;
mod logs;
mod origin;
mod surroundings;
mod unread;
mod vitals;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use tokio::sync::watch;

use self::control::Control;
use self::edges::{Edges, Host};
pub use self::origin::Origin;
use self::origin::Source;
use crate::conntrack_gc::{Collector, Timeouts};
use crate::devices::{Patterns, host_edge, monitor};
use crate::loader::attach::{Attacher, Method};
use crate::loader::checks::{self, Features};
use crate::loader::lock::Lock;
use crate::loader::pins::Pins;
use crate::loader::sizes::Sizes;
use crate::loader::{self, Loaded, Programs};
use crate::maps::Maps;
use crate::node::NodeConfig;
use crate::status;

/// What the daemon is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where Services come from.
    pub origin: Origin,
    /// How this node treats traffic.
    pub node: NodeConfig,
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// For the lock and the status.
    pub state_dir: PathBuf,
    /// Which devices lead to pods, and by which traffic enters and leaves the node.
    pub devices: Patterns,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// How long flows may be silent.
    pub timeouts: Timeouts,
    /// How to attach; `None`: the best way that the kernel offers.
    pub method: Option<Method>,
    /// Where `/healthz` and `/livez` are (rule R130).
    pub healthz: crate::health::Bind,
    /// Where the metrics are (rule R137).
    pub metrics: crate::health::Bind,
}

/// The kernel programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BEELINE_BPF_OBJECT"));

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// If something that it needs is missing, or its source of Services ends.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let features = checks::check(&options.bpffs)?;
    let method = method(options.method, features)?;
    let pins = Pins::new(&options.bpffs);
    let _locks = locks(&pins, &options.state_dir)?;
    let started = start(&options, &pins, features, method).await;
    let Node {
        source,
        control,
        edges,
    } = started.inspect_err(|_| loader::remove_empty_folders(&pins))?;
    drop(tokio::spawn(edges.run()));
    control.run(source).await
}

/// What serves.
struct Node {
    source: Source,
    control: Control,
    edges: Edges,
}

/// Reads, loads and attaches, in this order.
async fn start(
    options: &Options,
    pins: &Pins,
    features: Features,
    method: Method,
) -> anyhow::Result<Node> {
    let source = Source::start(&options.origin, options.node.name.clone(), false).await?;
    let Loaded {
        maps,
        programs,
        rest,
    } = loader::load(OBJECT, pins, &options.sizes, features)?;
    match attach(options, pins, method, maps, programs).await {
        Ok((control, edges)) => {
            if let Err(error) = rest.finish(pins) {
                tracing::warn!("tidying up: {:#}", anyhow::Error::from(error));
            }
            Ok(Node {
                source,
                control,
                edges,
            })
        }
        Err(error) => {
            rest.undo(pins);
            Err(error)
        }
    }
}

async fn attach(
    options: &Options,
    pins: &Pins,
    method: Method,
    maps: Maps,
    programs: Programs,
) -> anyhow::Result<(Control, Edges)> {
    logs::forward(&programs);
    let collector = Collector::open(pins, options.timeouts.clone())?;
    let (routes, wanted_routes) = watch::channel(None);
    let control = Control::new(options, maps, method, routes)?;
    let netlink = monitor::connect()?;
    let attacher = Attacher::new(method, pins.clone(), netlink.clone(), programs);
    let state_dir = options.state_dir.clone();
    let (host, is_made) = Host::start(netlink.clone(), state_dir, wanted_routes).await;
    let edges = match Edges::start(attacher, options.devices.clone(), host).await {
        Ok(edges) => edges,
        Err(error) => {
            if is_made {
                undo_host_edge(&netlink, &options.state_dir).await;
            }
            return Err(error.into());
        }
    };
    Ok((control.with(edges.view(), collector)?, edges))
}

async fn undo_host_edge(netlink: &rtnetlink::Handle, state_dir: &Path) {
    let removed = host_edge::remove(netlink).await.map(drop);
    for done in [removed, host_edge::put_back(state_dir).map(drop)] {
        if let Err(error) = done {
            tracing::warn!(
                "taking the host edge back: {:#}",
                anyhow::Error::from(error)
            );
        }
    }
}

/// Until `due`; forever if there is nothing to wait for.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn method(wanted: Option<Method>, features: Features) -> anyhow::Result<Method> {
    match wanted {
        Some(Method::Tcx) if !features.tcx => {
            bail!("this kernel has no TCX (Linux 6.6); leave --attach out, or use --attach clsact")
        }
        Some(method) => Ok(method),
        None => Ok(Method::best(features)),
    }
}

/// One daemon for a bpffs, and one for a state folder.
fn locks(pins: &Pins, state_dir: &Path) -> anyhow::Result<[Lock; 2]> {
    std::fs::create_dir_all(pins.root())
        .with_context(|| format!("cannot create {}", pins.root().display()))?;
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("cannot create {}", state_dir.display()))?;
    let file = status::lock_file(state_dir);
    drop(std::fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?);
    Ok([Lock::take(pins.root())?, Lock::take(&file)?])
}
