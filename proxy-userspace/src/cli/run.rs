//! `beeline run`.

mod metrics;
mod skip;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use proxy_common::abi::limits;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use self::metrics::MetricsArgs;
use self::skip::SkipArgs;
use super::Paths;
use crate::config::go::{DurationError, GoDuration};
use crate::conntrack_gc::Timeouts;
use crate::devices::{DevicePatterns, Patterns};
use crate::loader::attach::Method;
use crate::loader::sizes::Sizes;
use crate::node::{
    self, DetectLocal, GoneBackends, MidFlow, NodeConfig, NodePortAddresses, SocketLb, SourceNat,
    SourcePorts,
};
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
    #[command(flatten)]
    of_metrics: MetricsArgs,
    /// Whether an address that a server cannot listen on ends the daemon.
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true
    )]
    bind_address_hard_fail: bool,
    /// After twice this time without success the node counts as unhealthy; what failed is tried
    /// again after this time at the latest.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    sync_period: Duration,
    /// After how long what failed is tried again at first.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    min_sync_period: Duration,
    /// How to log.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    // Last: what follows would come under their headings.
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    sockets: SocketArgs,
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
            SourceArg::File | SourceArg::Kubernetes => {
                self.traffic.conflict().or_else(|| self.sockets.conflict())
            }
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
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How traffic is treated. Names and meanings are kube-proxy's where it has the same.
#[derive(Args, Debug)]
#[command(next_help_heading = "Traffic")]
struct TrafficArgs {
    /// Which addresses of this node accept NodePorts: `primary`, which is the Node object's first
    /// address of each family, or ranges. Empty: all of them. A family without range is not
    /// limited, loopback addresses never accept.
    #[arg(long, value_name = "RANGE,…", default_value = "primary", value_parser = parsed::<NodePortAddresses>)]
    nodeport_addresses: NodePortAddresses,
    /// How clients are told to be pods of this node. If not given: ClusterCIDR with --cluster-cidr,
    /// else PodDevices.
    #[arg(long, value_enum, value_name = "MODE")]
    detect_local_mode: Option<DetectArg>,
    /// The range of all pods' addresses, at most one for each family: what the mode ClusterCIDR
    /// goes by. In a family without range no client is taken for a pod.
    #[arg(long, value_name = "RANGE,…", value_parser = cluster_cidrs)]
    cluster_cidr: Option<ClusterCidrs>,
    /// The bridge of this node's pods, with --detect-local-mode BridgeInterface.
    #[arg(long, value_name = "NAME")]
    pod_bridge_interface: Option<String>,
    /// How the names of devices begin that pods' packets come in by, with --detect-local-mode
    /// InterfaceNamePrefix.
    #[arg(long, value_name = "TEXT")]
    pod_interface_name_prefix: Option<String>,
    /// Give all traffic to cluster IPs an address of this node as source.
    #[arg(
        long,
        value_name = "BOOL",
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true
    )]
    masquerade_all: bool,
    /// When a client's address is replaced by one of this node otherwise.
    #[arg(long, value_enum, default_value = "when-needed")]
    source_nat: SourceNat,
    /// What becomes of TCP and SCTP connections to an endpoint that was removed.
    #[arg(long, value_enum, default_value = "reset")]
    gone_backends: GoneBackends,
    /// A range of cluster IPs, besides those that the cluster's ServiceCIDRs name. Packets to
    /// addresses in it that no Service has are dropped. May be given several times.
    #[arg(long, value_name = "RANGE")]
    service_cidr: Vec<IpNet>,
    /// Ports that rewritten sources get. They must not be those that this node's own connections
    /// get (net.ipv4.ip_local_port_range).
    #[arg(long, value_name = "FIRST-LAST", default_value_t, value_parser = parsed::<SourcePorts>)]
    source_ports: SourcePorts,
    /// Kubernetes feature gates, such as `PreferSameTrafficDistribution=false`: hints for nodes do
    /// not count. Others are not known here.
    #[arg(long, value_name = "GATE=BOOL,…", value_parser = same_node_hints)]
    feature_gates: Option<bool>,
}

/// Which sockets are pointed at backends, and where.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sockets")]
struct SocketArgs {
    /// Whose TCP and UDP sockets are pointed at a backend once, when they connect or send, so that
    /// no packet has to be translated. Everybody else is served packet by packet.
    #[arg(long, value_enum, default_value = "all")]
    socket_lb: SocketLb,
    /// The cgroup v2 folder whose processes' sockets are served, with all cgroups below. If not
    /// given: the root, wherever it is mounted; if it is not, in the state folder.
    #[arg(long, value_name = "DIR")]
    cgroup_path: Option<PathBuf>,
    /// Whether this node's own processes reach NodePorts at localhost, which needs --socket-lb.
    /// Never if --nodeport-addresses has ranges and none with loopback addresses.
    #[arg(
        long,
        alias = "iptables-localhost-nodeports",
        value_name = "BOOL",
        default_value = "true",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true
    )]
    localhost_nodeports: bool,
    #[command(flatten)]
    skip: SkipArgs,
}

impl SocketArgs {
    /// Why these arguments do not belong together, if they do not.
    fn conflict(&self) -> Option<&'static str> {
        let serves_pods = self.socket_lb == SocketLb::All;
        (self.skip.skip().is_some() && !serves_pods).then_some(
            "--socket-lb-skip-namespaces and --socket-lb-skip-pods go with --socket-lb all only",
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum DetectArg {
    /// By an address in --cluster-cidr
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// By an address in the Node object's podCIDRs
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// By the bridge that their packets come in by
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// By the name of the device that their packets come in by
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
    /// By a device of --pod-devices that their packets come in by
    #[value(name = "PodDevices")]
    PodDevices,
}

/// At most one of each family. A type of its own: clap takes a list for several values.
#[derive(Clone, Debug)]
struct ClusterCidrs(Vec<IpNet>);

impl TrafficArgs {
    /// Why these arguments do not belong together, if they do not.
    fn conflict(&self) -> Option<&'static str> {
        let mode = self.mode();
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_bridge = is_set(&self.pod_bridge_interface);
        let has_prefix = is_set(&self.pod_interface_name_prefix);
        let cases = [
            (
                mode == DetectArg::BridgeInterface && !has_bridge,
                "--detect-local-mode BridgeInterface needs --pod-bridge-interface",
            ),
            (
                mode == DetectArg::InterfaceNamePrefix && !has_prefix,
                "--detect-local-mode InterfaceNamePrefix needs --pod-interface-name-prefix",
            ),
            (
                mode != DetectArg::BridgeInterface && has_bridge,
                "--pod-bridge-interface goes with --detect-local-mode BridgeInterface only",
            ),
            (
                mode != DetectArg::InterfaceNamePrefix && has_prefix,
                "--pod-interface-name-prefix goes with --detect-local-mode InterfaceNamePrefix only",
            ),
        ];
        let conflict = cases.into_iter().find(|(is_wrong, _)| *is_wrong);
        conflict.map(|(_, message)| message)
    }

    fn mode(&self) -> DetectArg {
        match (self.detect_local_mode, &self.cluster_cidr) {
            (Some(mode), _) => mode,
            (None, Some(_)) => DetectArg::ClusterCidr,
            (None, None) => DetectArg::PodDevices,
        }
    }

    fn detect_local(&self) -> DetectLocal {
        let name = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
        match self.mode() {
            DetectArg::PodDevices => DetectLocal::PodDevices,
            DetectArg::ClusterCidr => {
                let ranges = self.cluster_cidr.clone();
                DetectLocal::ClusterCidr(ranges.map(|ranges| ranges.0).unwrap_or_default())
            }
            DetectArg::NodeCidr => DetectLocal::NodeCidr,
            DetectArg::BridgeInterface => {
                DetectLocal::BridgeInterface(name(&self.pod_bridge_interface))
            }
            DetectArg::InterfaceNamePrefix => {
                DetectLocal::InterfaceNamePrefix(name(&self.pod_interface_name_prefix))
            }
        }
    }

    /// With `mid_flow`, which is older than this group.
    fn config(self, name: String, mid_flow: MidFlow) -> NodeConfig {
        NodeConfig {
            detect_local: self.detect_local(),
            node_port_addresses: self.nodeport_addresses,
            masquerade_all: self.masquerade_all,
            source_nat: self.source_nat,
            gone_backends: self.gone_backends,
            mid_flow,
            same_node_hints: self.feature_gates.unwrap_or(true),
            service_cidrs: self.service_cidr,
            source_ports: self.source_ports,
            ..NodeConfig::new(name)
        }
    }
}

/// Reads a value, with the error's whole text.
fn parsed<T: std::str::FromStr<Err = node::ConfigError>>(
    text: &str,
) -> Result<T, node::ConfigError> {
    text.parse()
}

fn cluster_cidrs(text: &str) -> Result<ClusterCidrs, node::ConfigError> {
    node::cluster_cidrs(text).map(ClusterCidrs)
}

fn time(text: &str) -> Result<Duration, String> {
    let time: GoDuration = text
        .parse()
        .map_err(|error: DurationError| error.to_string())?;
    time.to_std().ok_or_else(|| "below zero".to_owned())
}

/// Reads the one feature gate that there is a choice about.
fn same_node_hints(text: &str) -> Result<bool, String> {
    const GATE: &str = "PreferSameTrafficDistribution";
    let mut value = true;
    for gate in text
        .split(',')
        .map(str::trim)
        .filter(|gate| !gate.is_empty())
    {
        let known = gate.split_once('=').filter(|(name, _)| *name == GATE);
        let Some((_, on)) = known else {
            return Err(format!("{gate:?} is not known; there is only {GATE}"));
        };
        let on = on.parse();
        value = on.map_err(|_| format!("{gate:?} is neither true nor false"))?;
    }
    Ok(value)
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
        help = entries("Addresses of frontends and of this node", limits::ADDRESSES)
    )]
    max_addresses: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("loadBalancerSourceRanges × service ports", limits::SOURCE_RANGES)
    )]
    max_source_ranges: Option<u32>,
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
    /// Sockets that are connected to Services. The default grows with the memory.
    #[arg(long, value_name = "N", value_parser = size())]
    max_sockets: Option<u32>,
    /// Records of UDP sockets that talk to Services without being connected, two for each. The
    /// default grows with the memory.
    #[arg(long, value_name = "N", value_parser = size())]
    max_datagrams: Option<u32>,
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
    check_source_ports(args.traffic.source_ports);
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
        config: Arc::default(),
    })
}

/// Warns if a connection of this node's own may get a port that is given to another's: answers
/// would go astray.
fn check_source_ports(ports: SourcePorts) {
    const FOLDER: &str = "/proc/sys/net/ipv4";
    let read = |name| std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap_or_default();
    let (own, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    if let Some(own) = own_ports(&own, &reserved, ports) {
        tracing::warn!(
            "--source-ports {ports}: this node's own connections get their ports from {own}, so \
             one may clash with a client's whose source is rewritten; choose others, narrow \
             net.ipv4.ip_local_port_range, or add them to net.ipv4.ip_local_reserved_ports"
        );
    }
}

/// The range that this node's own connections get their ports from, if some of `ports` are in it
/// and not reserved.
fn own_ports(own: &str, reserved: &str, ports: SourcePorts) -> Option<SourcePorts> {
    let mut numbers = own.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let own = SourcePorts { first, last };
    let reserved: Vec<(u16, u16)> = reserved
        .trim()
        .split(',')
        .filter_map(reserved_ports)
        .collect();
    let is_reserved = |port| {
        reserved
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    };
    let mut both = ports.first.max(own.first)..=ports.last.min(own.last);
    both.any(|port| !is_reserved(port)).then_some(own)
}

fn reserved_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

impl From<SizeArgs> for Sizes {
    fn from(args: SizeArgs) -> Self {
        Self {
            frontends: args.max_frontends,
            addresses: args.max_addresses,
            source_ranges: args.max_source_ranges,
            slots: args.max_slots,
            backends: args.max_backends,
            services: args.max_services,
            flows: args.max_flows,
            affinity: args.max_affinity,
            fragments: args.max_fragments,
            sockets: args.max_sockets,
            datagrams: args.max_datagrams,
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
    fn ports_of_this_nodes_own_connections_are_noticed_unless_they_are_reserved() {
        let ports = SourcePorts::default();
        for (own, reserved, is_clash) in [
            ("32768\t60999\n", "\n", false),
            ("", "", false),
            ("1024\t65535\n", "\n", true),
            ("1024\t65535\n", "10000-29999\n", false),
            ("1024\t65535\n", "8080,10000-20000,20001-29998\n", true),
            ("20000\t20001\n", "20000,20001\n", false),
        ] {
            let clash = own_ports(own, reserved, ports);
            assert_eq!(clash.is_some(), is_clash, "{own:?} {reserved:?}");
        }
    }

    #[test]
    fn a_single_level_is_about_ourselves() {
        assert_eq!(directives("debug"), "warn,kube_client=off,beeline=debug");
        assert_eq!(directives("error"), "error,kube_client=off,beeline=error");
        assert_eq!(directives("info,aya=debug"), "info,aya=debug");
        assert!(filter("beeline=loud").is_err());
    }
}
