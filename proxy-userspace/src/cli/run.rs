//! `beeline run`.

mod kubernetes;
mod logs;
mod metrics;
mod oom;
mod plan;
mod ports;
mod replace;
mod sizes;
mod skip;
mod sockets;
mod traffic;

use std::net::AddrParseError;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use self::kubernetes::KubernetesArgs;
use self::logs::LogArgs;
use self::metrics::MetricsArgs;
pub(super) use self::plan::{Fault, complete};
use self::replace::ReplaceArgs;
use self::sizes::SizeArgs;
use self::sockets::SocketArgs;
use self::traffic::TrafficArgs;
use super::Paths;
use crate::config::go::{DurationError, GoDuration};
use crate::config::kube_proxy::with_port;
use crate::config::{HEADING, InForce, KubeProxyFlags};
use crate::conntrack_gc::Timeouts;
use crate::devices::{DevicePatterns, Patterns};
use crate::health::Bind;
use crate::loader::attach::Method;
use crate::loader::checks;
use crate::node::{MidFlow, NodeConfig};
use crate::privileges;
use crate::run::{Options, Origin};

/// Options that are settings: a field of Beeline's file each. Those that are on or off take a value
/// or none (see [`complete`]).
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    _files: FileArgs,
    /// What the settings come from.
    #[arg(skip)]
    in_force: InForce,
    /// Where Services come from. If not given: from files if --manifests names some, else from
    /// Kubernetes.
    #[arg(long, value_enum)]
    source: Option<SourceArg>,
    /// Folders and files of Kubernetes YAML or JSON, with --source file.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    manifests: Vec<PathBuf>,
    /// The kubeconfig, with --source kubernetes. If not given: $KUBECONFIG, ~/.kube/config or the
    /// pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The name of this node's Node object. If not given: the host name in lower case.
    #[arg(long, value_name = "NAME", visible_alias = "hostname-override", value_parser = node_name)]
    node_name: Option<String>,
    /// Host-side devices of pods, such as `veth*,cali*` or `!eth0`. If not given: every end of a
    /// veth or netkit pair whose other end is in another network namespace. If all patterns are of
    /// the form `!NAME`: those, but for the ones that match.
    #[arg(long, value_name = "PATTERN,…")]
    pod_devices: Option<DevicePatterns>,
    /// Devices by which traffic enters and leaves this node, in the same form. If not given: every
    /// physical, bond, VLAN, bridge and tunnel device with an Ethernet header that leads elsewhere,
    /// as far as it is not a port of another one.
    #[arg(long, value_name = "PATTERN,…")]
    node_devices: Option<DevicePatterns>,
    /// How to attach the programs. If not given: by TCX where the kernel has it.
    #[arg(long, value_enum)]
    attach: Option<AttachArg>,
    /// How long a flow may be silent in a state, such as `tcp-established=86400s`; s, m, h and d
    /// are understood. May be given several times; other states have Linux conntrack's defaults.
    #[arg(long, value_name = "STATE=TIME", value_parser = timeout)]
    timeout: Vec<String>,
    /// What becomes of a TCP or SCTP packet in mid-flow that nothing is known of: `pass` leaves
    /// it to netfilter, which may know it from kube-proxy's time; `adopt` sends it to a backend.
    #[arg(long, value_enum, default_value = "pass", hide_possible_values = true)]
    tcp_mid_flow: MidFlow,
    #[command(flatten)]
    log: LogArgs,
    /// Where to answer load balancers and the kubelet at /healthz and /livez; empty: nowhere.
    /// 0.0.0.0 and [::] stand for all addresses of both families.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256", value_parser = bind::<10256>)]
    healthz_bind_address: Bind,
    /// Where to serve /metrics; empty: nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249", value_parser = bind::<10249>)]
    metrics_bind_address: Bind,
    #[command(flatten)]
    of_metrics: MetricsArgs,
    /// Whether an address that a server cannot listen on ends the daemon.
    #[arg(long)]
    bind_address_hard_fail: bool,
    /// After twice this time without success the node counts as unhealthy; what failed is tried
    /// again after this time at the latest.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    sync_period: Duration,
    /// After how long what failed is tried again at first.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    min_sync_period: Duration,
    /// How readily the kernel kills the daemon if memory is short: -1000 (never) to 1000. If not
    /// given: as it was started.
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000)
    )]
    oom_score_adj: Option<i32>,
    #[command(flatten)]
    replace: ReplaceArgs,
    // Last: what follows would come under their headings.
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    sockets: SocketArgs,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

/// Files with settings.
#[derive(Args, Debug)]
struct FileArgs {
    /// kube-proxy's configuration file, a KubeProxyConfiguration. Flags of kube-proxy's that it has
    /// fields for do not count then.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Beeline's own configuration file, a BeelineConfiguration. If not given: beeline.yaml in the
    /// folder of --config, if it is there.
    #[arg(long, value_name = "FILE")]
    beeline_config: Option<PathBuf>,
}

/// What to do instead of serving.
#[derive(Args, Debug)]
#[command(next_help_heading = HEADING)]
struct JobArgs {
    /// Write what is in force of kube-proxy's settings to this file, and end.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    write_config_to: Option<PathBuf>,
    /// Do what `beeline cleanup` does, and end.
    #[arg(long, hide_short_help = true)]
    cleanup: bool,
    /// Check that this node has what is needed, and end.
    #[arg(long, hide_short_help = true)]
    init_only: bool,
}

impl RunArgs {
    /// Why these arguments do not belong together, if they do not.
    fn conflict(&self) -> Option<&'static str> {
        let is_given = |name| {
            self.in_force
                .setting(name)
                .is_some_and(|it| it.from == format!("--{name}"))
        };
        match self.source() {
            SourceArg::File if is_given("kubeconfig") => {
                Some("--kubeconfig goes with --source kubernetes only")
            }
            SourceArg::File if self.kubernetes.is_set() => {
                Some("--kubernetes-server goes with --source kubernetes only")
            }
            SourceArg::File if self.manifests.is_empty() => Some("--source file needs --manifests"),
            SourceArg::Kubernetes if !self.manifests.is_empty() => {
                Some("--manifests goes with --source file only")
            }
            _ if self.sync_period.is_zero() => Some("--sync-period 0s is not possible"),
            _ if self.min_sync_period > self.sync_period => {
                Some("--min-sync-period is more than --sync-period")
            }
            SourceArg::File | SourceArg::Kubernetes => {
                self.traffic.conflict().or_else(|| self.sockets.conflict())
            }
        }
    }

    fn source(&self) -> SourceArg {
        match self.source {
            Some(source) => source,
            None if self.manifests.is_empty() => SourceArg::Kubernetes,
            None => SourceArg::File,
        }
    }

    /// What is in force, value by value.
    pub(super) fn in_force(&self) -> &InForce {
        &self.in_force
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum SourceArg {
    /// Manifest files.
    File,
    /// The Kubernetes API.
    Kubernetes,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum AttachArg {
    /// Links, from Linux 6.6 on.
    Tcx,
    /// Filters at the qdisc clsact.
    Clsact,
}

/// Checks the option; it is read again together with the others.
fn timeout(option: &str) -> Result<String, String> {
    let option = option.to_owned();
    match Timeouts::with(std::slice::from_ref(&option)) {
        Ok(_) => Ok(option),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads an address, with `PORT` if it has none.
fn bind<const PORT: u16>(text: &str) -> Result<Bind, AddrParseError> {
    with_port(text, PORT).parse()
}

fn time(text: &str) -> Result<Duration, String> {
    let time: GoDuration = text
        .parse()
        .map_err(|error: DurationError| error.to_string())?;
    time.to_std().ok_or_else(|| "below 0s".to_owned())
}

/// Nodes' names have no capital letters (rule R181). Empty: as if it were not given.
fn node_name(text: &str) -> Result<String, &'static str> {
    match text.trim().to_lowercase() {
        name if name.is_empty() && !text.is_empty() => Err("nothing but blanks"),
        name => Ok(name),
    }
}

/// Does what the arguments say: to run the daemon until it is told to stop, if nothing else.
pub(super) fn run(paths: Paths, args: RunArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.job.write_config_to {
        return write_config(path, &args.in_force);
    }
    if args.job.cleanup {
        return super::cleanup::by_default(&paths);
    }
    if args.job.init_only {
        checks::check(&paths.bpffs)?;
        return Ok(ExitCode::SUCCESS);
    }
    serve(paths, args)
}

fn serve(paths: Paths, args: RunArgs) -> anyhow::Result<ExitCode> {
    logs::log_to_stderr(&args.log);
    for note in &args.in_force.notes {
        tracing::warn!("configuration: {note}");
    }
    oom::adjust(args.oom_score_adj);
    let files = args.in_force.files.clone();
    let options = options(paths, args)?;
    // Before there is a second thread: each has rights of its own.
    privileges::give_up_others(options.socket_lb)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let end = runtime.block_on(async {
        tokio::select! {
            end = crate::run::run(options) => end,
            end = plan::changed(files) => Err(end),
        }
    });
    // A file that is being read, or an API server that is silent, holds nobody up.
    runtime.shutdown_background();
    end.map(|()| ExitCode::SUCCESS)
}

fn options(paths: Paths, args: RunArgs) -> anyhow::Result<Options> {
    let origin = match args.source() {
        SourceArg::File => Origin::Files(args.manifests),
        SourceArg::Kubernetes => Origin::Kubernetes(args.kubernetes.access(args.kubeconfig)),
    };
    let node = match args.node_name.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => host_name()?,
    };
    ports::check_source_ports(args.traffic.source_ports);
    Ok(Options {
        origin,
        node: NodeConfig {
            localhost_node_ports: args.sockets.localhost_nodeports,
            ..args.traffic.config(node, args.tcp_mid_flow)
        },
        bpffs: paths.bpffs,
        state_dir: paths.state_dir,
        devices: Patterns {
            pods: args.pod_devices.unwrap_or_default(),
            nodes: args.node_devices.unwrap_or_default(),
        },
        sizes: args.sizes.into(),
        timeouts: Timeouts::with(&args.timeout)?,
        method: args.attach.map(|attach| match attach {
            AttachArg::Tcx => Method::Tcx,
            AttachArg::Clsact => Method::Clsact,
        }),
        socket_lb: args.sockets.socket_lb,
        skip: args.sockets.skip.skip(),
        cgroup_path: args.sockets.cgroup_path,
        healthz: args.healthz_bind_address,
        metrics: args.metrics_bind_address,
        metrics_max_services: args.of_metrics.max_services(),
        sync_period: args.sync_period,
        min_sync_period: args.min_sync_period,
        bind_address_hard_fail: args.bind_address_hard_fail,
        config: Arc::new(args.in_force),
        replace_kube_proxy: args.replace.replace_kube_proxy,
    })
}

/// Writes kube-proxy's settings in the form of its file (rule R188).
fn write_config(path: &std::path::Path, in_force: &InForce) -> anyhow::Result<ExitCode> {
    let text = serde_saphyr::to_string(in_force.kube_proxy.values())?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The host name in lower case (rule R181).
fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("cannot read the host name; give --node-name")?;
    Ok(name.trim().to_lowercase())
}
