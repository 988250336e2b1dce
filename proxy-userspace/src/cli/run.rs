//! `beeline run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use proxy_common::abi::{SettingsFlags, limits};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use super::Paths;
use crate::conntrack_gc::Timeouts;
use crate::devices::PodDevices;
use crate::loader::attach::Method;
use crate::loader::sizes::Sizes;
use crate::run::{Options, Origin};

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    /// Where Services come from.
    #[arg(long, value_enum)]
    source: SourceArg,
    /// Folders and files of Kubernetes YAML or JSON, with --source file.
    #[arg(
        long,
        value_name = "PATH",
        num_args = 1..,
        required_if_eq("source", "file")
    )]
    manifests: Vec<PathBuf>,
    /// The kubeconfig, with --source kubernetes. If not given: $KUBECONFIG, ~/.kube/config or the
    /// pod's service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The name of this node's Node object. If not given: the host name in lower case.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Host-side devices of pods, such as `veth*,cali*` or `!eth0`. If not given: every end of a
    /// veth or netkit pair whose other end is in another network namespace. If all patterns are of
    /// the form `!NAME`: those, but for the ones that match.
    #[arg(long, value_name = "PATTERN,…")]
    pod_devices: Option<PodDevices>,
    /// How to attach the programs. If not given: by TCX where the kernel has it.
    #[arg(long, value_enum)]
    attach: Option<AttachArg>,
    /// How long a flow may be silent in a state, such as `tcp-established=86400s`; s, m, h and d
    /// are understood. May be given several times; other states have Linux conntrack's defaults.
    #[arg(long, value_name = "STATE=TIME", value_parser = timeout)]
    timeout: Vec<String>,
    /// What becomes of a TCP or SCTP packet in mid-flow that nothing is known of: `pass` leaves
    /// it to netfilter, which may know it from kube-proxy's time; `adopt` sends it to a backend.
    #[arg(long, value_enum, default_value = "pass")]
    tcp_mid_flow: MidFlowArg,
    /// What to log: error, warn, info, debug or trace, or directives such as
    /// `info,beeline::sync=debug`. A single word is about Beeline itself, not about what it is
    /// made of.
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
    /// Where to answer load balancers and the kubelet at /healthz and /livez; empty: nowhere.
    /// 0.0.0.0 and [::] stand for all addresses of both families.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    healthz_bind_address: crate::health::Bind,
    /// Where to serve /metrics; empty: nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    metrics_bind_address: crate::health::Bind,
    /// How to log.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    // Last: what follows would come under its heading.
    #[command(flatten)]
    sizes: SizeArgs,
}

impl RunArgs {
    /// Why these arguments do not belong together, if they do not.
    pub(super) fn conflict(&self) -> Option<&'static str> {
        match self.source {
            SourceArg::File if self.kubeconfig.is_some() => {
                Some("--kubeconfig goes with --source kubernetes only")
            }
            SourceArg::Kubernetes if !self.manifests.is_empty() => {
                Some("--manifests goes with --source file only")
            }
            SourceArg::File | SourceArg::Kubernetes => None,
        }
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum MidFlowArg {
    /// Leave it alone.
    Pass,
    /// Take it for the start of a flow.
    Adopt,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A running node's maps can grow, not shrink.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sizes of the maps, in entries (they can grow, not shrink)")]
struct SizeArgs {
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Addresses × ports × protocols that clients dial", limits::FRONTENDS)
    )]
    max_frontends: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries(
            "Backends of all frontends; an update needs room for old and new",
            limits::SLOTS
        )
    )]
    max_slots: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Endpoints × service ports", limits::BACKENDS)
    )]
    max_backends: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Service ports × families", limits::SERVICES)
    )]
    max_services: Option<u32>,
    /// Flow records, two for each conversation. If not given: a 400th of the memory.
    #[arg(long, value_name = "N", value_parser = size())]
    max_flows: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Clients × service ports with session affinity", limits::AFFINITY)
    )]
    max_affinity: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Datagrams in fragments at one time", limits::FRAGMENTS)
    )]
    max_fragments: Option<u32>,
}

/// A text with the size that a map has if none is asked for.
fn entries(what: &str, default: u32) -> String {
    format!("{what} [default: {default}]")
}

/// What no map can hold is not worth asking the kernel for.
fn size() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 28)
}

/// Checks the option; it is read again together with the others.
fn timeout(option: &str) -> Result<String, String> {
    let option = option.to_owned();
    match Timeouts::with(std::slice::from_ref(&option)) {
        Ok(_) => Ok(option),
        Err(error) => Err(error.to_string()),
    }
}

fn filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(directives(text)) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn directives(text: &str) -> String {
    match text.parse::<LevelFilter>() {
        // What kube has to say is among the problems of the source already.
        Ok(level) => {
            let others = level.min(LevelFilter::WARN);
            format!("{others},kube_client=off,beeline={level}")
        }
        Err(_) => text.to_owned(),
    }
}

/// Runs the daemon until it is told to stop.
pub(super) fn run(paths: Paths, args: RunArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr(&args);
    let options = options(paths, args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let end = runtime.block_on(crate::run::run(options));
    // A file that is being read, or an API server that is silent, holds nobody up.
    runtime.shutdown_background();
    end.map(|()| ExitCode::SUCCESS)
}

fn options(paths: Paths, args: RunArgs) -> anyhow::Result<Options> {
    let node = match args.node_name {
        Some(name) => name,
        None => host_name()?,
    };
    let origin = match args.source {
        SourceArg::File => Origin::Files(args.manifests),
        SourceArg::Kubernetes => Origin::Kubernetes(args.kubeconfig),
    };
    Ok(Options {
        origin,
        node: Arc::from(node),
        bpffs: paths.bpffs,
        state_dir: paths.state_dir,
        pod_devices: args.pod_devices.unwrap_or_default(),
        sizes: args.sizes.into(),
        timeouts: Timeouts::with(&args.timeout)?,
        flags: match args.tcp_mid_flow {
            MidFlowArg::Pass => SettingsFlags::NONE,
            MidFlowArg::Adopt => SettingsFlags::ADOPT_MID_FLOW,
        },
        method: args.attach.map(|attach| match attach {
            AttachArg::Tcx => Method::Tcx,
            AttachArg::Clsact => Method::Clsact,
        }),
        healthz: args.healthz_bind_address,
        metrics: args.metrics_bind_address,
    })
}

impl From<SizeArgs> for Sizes {
    fn from(args: SizeArgs) -> Self {
        Self {
            frontends: args.max_frontends,
            slots: args.max_slots,
            backends: args.max_backends,
            services: args.max_services,
            flows: args.max_flows,
            affinity: args.max_affinity,
            fragments: args.max_fragments,
        }
    }
}

/// The host name in lower case (rule R181).
fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("cannot read the host name; give --node-name")?;
    Ok(name.trim().to_lowercase())
}

fn log_to_stderr(args: &RunArgs) {
    use std::io::{IsTerminal as _, stderr};
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives(&args.log)))
        .with_writer(stderr);
    match args.log_format {
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(stderr().is_terminal())
            .init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_level_is_about_ourselves() {
        assert_eq!(directives("debug"), "warn,kube_client=off,beeline=debug");
        assert_eq!(directives("error"), "error,kube_client=off,beeline=error");
        assert_eq!(directives("info,aya=debug"), "info,aya=debug");
        assert!(filter("beeline=loud").is_err());
    }
}
