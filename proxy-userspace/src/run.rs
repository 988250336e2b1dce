//! The daemon: from options to a node that serves, and on until it is told to stop.
//!
//! Everything is checked before the first program is attached. What is attached stays when the
//! daemon ends, however it ends.

mod control;
mod edges;
mod known_pods;
mod logs;
mod origin;
mod socket_edge;
mod surroundings;
mod take_over;
mod unread;
mod vitals;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::watch;

use self::control::Control;
use self::edges::{Edges, Host};
pub use self::origin::Origin;
use self::origin::Source;
use self::socket_edge::{Site, SocketEdge};
use crate::config::InForce;
use crate::conntrack_gc::{Collector, Timeouts};
use crate::devices::{Patterns, host_edge, monitor};
use crate::loader::attach::{Attacher, Method};
use crate::loader::checks::{self, Features};
use crate::loader::lock::Lock;
use crate::loader::pins::Pins;
use crate::loader::sizes::Sizes;
use crate::loader::{self, LoadError, Loaded, Place, Programs, Rest, SocketPrograms};
use crate::maps::Maps;
use crate::node::{NodeConfig, SocketLb};
use crate::pods::Skip;
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
    /// Whose sockets are pointed at backends.
    pub socket_lb: SocketLb,
    /// Pods whose sockets are not.
    pub skip: Skip,
    /// The cgroup of these sockets; `None`: the root, wherever it is mounted.
    pub cgroup_path: Option<PathBuf>,
    /// Where `/healthz` and `/livez` are (rule R130).
    pub healthz: crate::health::Bind,
    /// Where the metrics are (rule R137).
    pub metrics: crate::health::Bind,
    /// How many service ports have rows of their own in the metrics.
    pub metrics_max_services: usize,
    /// Twice this a change may wait until the node counts as unhealthy, and at most this long what
    /// failed waits until it is tried again (rule R183).
    pub sync_period: Duration,
    /// How long what failed waits at first (rule R183).
    pub min_sync_period: Duration,
    /// Whether an address that a server cannot listen on ends the daemon (rule R184).
    pub bind_address_hard_fail: bool,
    /// What all of this comes from.
    pub config: Arc<InForce>,
    /// Whether kube-proxy's rules are removed once everything is in force.
    pub replace_kube_proxy: bool,
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
    let site = Site::find(options)?;
    let started = start_at(options, pins, features, method, &site).await;
    started.inspect_err(|_| site.undo(&options.state_dir))
}

async fn start_at(
    options: &Options,
    pins: &Pins,
    features: Features,
    method: Method,
    site: &Site,
) -> anyhow::Result<Node> {
    let with_sockets = site.cgroup().is_some();
    let with_pods = with_sockets && options.skip.is_some();
    let node = options.node.name.clone();
    let source = Source::start(&options.origin, node, with_pods).await?;
    let Loaded {
        maps,
        programs,
        sockets,
        place,
        rest,
    } = loader::load(OBJECT, pins, &options.sizes, features, with_sockets)?;
    let needs_services = rest.needs_services();
    let job = Attach {
        options,
        pins,
        method,
        place,
        site,
    };
    match job.attach(maps, programs, sockets).await {
        Ok((mut control, edges)) => {
            let finish = finish(rest, pins.clone());
            if needs_services {
                let runtime = tokio::runtime::Handle::current();
                control.when_in_force(move || runtime.block_on(finish));
            } else {
                finish.await;
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

/// Lets our programs take the place of a predecessor's, and tidies up after them.
async fn finish(rest: Rest, pins: Pins) {
    let done = async {
        let netlink = monitor::connect()?;
        let links = monitor::read(&netlink).await?.links;
        let devices: Vec<_> = links.into_iter().map(|link| link.device).collect();
        rest.finish(&pins, &netlink, &devices).await?;
        anyhow::Ok(())
    };
    if let Err(error) = done.await {
        tracing::warn!("tidying up: {error:#}");
    }
}

/// How and where programs are to be attached.
struct Attach<'a> {
    options: &'a Options,
    pins: &'a Pins,
    method: Method,
    place: Place,
    site: &'a Site,
}

impl Attach<'_> {
    async fn attach(
        &self,
        maps: Maps,
        programs: Programs,
        sockets: Option<Result<SocketPrograms, LoadError>>,
    ) -> anyhow::Result<(Control, Edges)> {
        let options = self.options;
        logs::forward(&programs);
        let collector = Collector::open(self.pins, options.timeouts.clone())?;
        let (routes, wanted_routes) = watch::channel(None);
        let control = Control::new(options, maps, self.method, routes)?;
        let netlink = monitor::connect()?;
        let how = (self.method, self.place);
        let attacher = Attacher::new(how, self.pins.clone(), netlink.clone(), programs);
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
        // Last: what sockets leave alone has its packet edges by now.
        let socket_edge = SocketEdge::start(options, self.pins, self.site, sockets);
        let control = control.with(edges.view(), collector, socket_edge)?;
        Ok((control, edges))
    }
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
