//! kube-proxy's flags that are no options of Beeline's: they stand for fields of kube-proxy's file.
//!
//! Those of one name and meaning with an option are that option ([`SAME`]).

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Value, json};

use super::go::{GoDuration, parse_bool};

/// A flag.
#[derive(Debug)]
pub(super) struct Flag {
    /// Without dashes.
    pub(super) name: &'static str,
    kind: Kind,
    /// The field that it stands for, by its path; empty if none does.
    pub(super) path: &'static str,
    /// Whether it counts beside `--config`.
    pub(super) is_of_logs: bool,
}

/// What a flag's value is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Bool,
    Int,
    Float,
    Time,
    /// Between commas.
    List,
}

impl Kind {
    const fn value_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Bool => BOOL,
            Self::Int | Self::Float => "N",
            Self::Time => "TIME",
            Self::List => "TEXT,…",
        }
    }
}

/// What kube-proxy's flags are shown under.
pub const HEADING: &str = "kube-proxy's flags: what they mean here is in docs/configuration.md";

/// kube-proxy's flags that are options: beside `--config` they do not count.
pub(super) const SAME: [&str; 12] = [
    "bind-address-hard-fail",
    "cluster-cidr",
    "detect-local-mode",
    "feature-gates",
    "healthz-bind-address",
    "kubeconfig",
    "masquerade-all",
    "metrics-bind-address",
    "nodeport-addresses",
    "oom-score-adj",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
];

/// The flag that would name the API server, were it possible.
pub(super) const MASTER: &str = "master";

const fn flag(name: &'static str, kind: Kind, path: &'static str) -> Flag {
    Flag {
        name,
        kind,
        path,
        is_of_logs: false,
    }
}

const fn of_logs(name: &'static str, kind: Kind, path: &'static str) -> Flag {
    Flag {
        is_of_logs: true,
        ..flag(name, kind, path)
    }
}

/// Of kube-proxy 1.28 to 1.36.
pub(super) const FLAGS: [Flag; 41] = [
    flag("bind-address", Kind::Text, "bindAddress"),
    flag("boot-id-file", Kind::Text, ""),
    flag("config-sync-period", Kind::Time, "configSyncPeriod"),
    flag("conntrack-max-per-core", Kind::Int, "conntrack.maxPerCore"),
    flag("conntrack-min", Kind::Int, "conntrack.min"),
    flag(
        "conntrack-tcp-be-liberal",
        Kind::Bool,
        "conntrack.tcpBeLiberal",
    ),
    flag(
        "conntrack-tcp-timeout-close-wait",
        Kind::Time,
        "conntrack.tcpCloseWaitTimeout",
    ),
    flag(
        "conntrack-tcp-timeout-established",
        Kind::Time,
        "conntrack.tcpEstablishedTimeout",
    ),
    flag("conntrack-udp-timeout", Kind::Time, "conntrack.udpTimeout"),
    flag(
        "conntrack-udp-timeout-stream",
        Kind::Time,
        "conntrack.udpStreamTimeout",
    ),
    flag("healthz-port", Kind::Int, ""),
    flag(
        "iptables-localhost-nodeports",
        Kind::Bool,
        "iptables.localhostNodePorts",
    ),
    flag(
        "iptables-masquerade-bit",
        Kind::Int,
        "iptables.masqueradeBit",
    ),
    flag(
        "iptables-min-sync-period",
        Kind::Time,
        "iptables.minSyncPeriod",
    ),
    flag("iptables-sync-period", Kind::Time, "iptables.syncPeriod"),
    flag("ipvs-exclude-cidrs", Kind::List, "ipvs.excludeCIDRs"),
    flag("ipvs-min-sync-period", Kind::Time, "ipvs.minSyncPeriod"),
    flag("ipvs-scheduler", Kind::Text, "ipvs.scheduler"),
    flag("ipvs-strict-arp", Kind::Bool, "ipvs.strictARP"),
    flag("ipvs-sync-period", Kind::Time, "ipvs.syncPeriod"),
    flag("ipvs-tcp-timeout", Kind::Time, "ipvs.tcpTimeout"),
    flag("ipvs-tcpfin-timeout", Kind::Time, "ipvs.tcpFinTimeout"),
    flag("ipvs-udp-timeout", Kind::Time, "ipvs.udpTimeout"),
    flag("kube-api-burst", Kind::Int, "clientConnection.burst"),
    flag(
        "kube-api-content-type",
        Kind::Text,
        "clientConnection.contentType",
    ),
    flag("kube-api-qps", Kind::Float, "clientConnection.qps"),
    of_logs("log-flush-frequency", Kind::Time, "logging.flushFrequency"),
    of_logs(
        "log-json-info-buffer-size",
        Kind::Text,
        "logging.options.json.infoBufferSize",
    ),
    of_logs(
        "log-json-split-stream",
        Kind::Bool,
        "logging.options.json.splitStream",
    ),
    of_logs(
        "log-text-info-buffer-size",
        Kind::Text,
        "logging.options.text.infoBufferSize",
    ),
    of_logs(
        "log-text-split-stream",
        Kind::Bool,
        "logging.options.text.splitStream",
    ),
    of_logs("logging-format", Kind::Text, "logging.format"),
    flag("machine-id-file", Kind::Text, ""),
    flag(MASTER, Kind::Text, ""),
    flag("metrics-port", Kind::Int, ""),
    flag("profiling", Kind::Bool, "enableProfiling"),
    flag("proxy-mode", Kind::Text, "mode"),
    flag("proxy-port-range", Kind::Text, "portRange"),
    flag(
        "show-hidden-metrics-for-version",
        Kind::Text,
        "showHiddenMetricsForVersion",
    ),
    of_logs("v", Kind::Int, "logging.verbosity"),
    of_logs("vmodule", Kind::Text, "logging.vmodule"),
];

/// The flag of this name.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    const ALL: &[Flag] = &FLAGS;
    ALL.iter().find(|flag| flag.name == name)
}

impl Flag {
    /// The field's value that a text says.
    pub(super) fn read(&self, text: &str) -> Result<Value, String> {
        let number = "not a number";
        Ok(match self.kind {
            Kind::Text => json!(text),
            Kind::Bool => json!(parse_bool(text)?),
            Kind::Int => json!(text.parse::<i32>().map_err(|_| number)?),
            Kind::Float => Value::Number(serde_json::from_str(text).map_err(|_| number)?),
            Kind::Time => {
                let time: Result<GoDuration, _> = text.parse();
                json!(time.map_err(|error| error.to_string())?)
            }
            Kind::List => json!(text.split(',').collect::<Vec<_>>()),
        })
    }

    fn arg(&'static self) -> Arg {
        let arg = Arg::new(self.name)
            .long(self.name)
            .action(ArgAction::Set)
            .value_name(self.kind.value_name())
            .help(match self.path {
                "" => "See docs/configuration.md".to_owned(),
                path => format!("The field {path}"),
            })
            .help_heading(HEADING)
            .hide_short_help(true)
            .value_parser(|text: &str| self.read(text).map(|_| text.to_owned()));
        match self.kind {
            Kind::Bool => switch(arg),
            _ if self.name == "v" => arg.short('v'),
            Kind::Text | Kind::Int | Kind::Float | Kind::Time | Kind::List => arg,
        }
    }
}

/// An option that is on or off, and on if no value is given, as Go has it.
pub fn switch(arg: Arg) -> Arg {
    arg.value_name(BOOL)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .hide_possible_values(true)
}

/// The name of a switch's value.
pub(super) const BOOL: &str = "BOOL";

/// Has a command take [`FLAGS`]. They are read by name from its matches.
#[derive(Clone, Copy, Debug)]
pub struct KubeProxyFlags;

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        const ALL: &[Flag] = &FLAGS;
        command.args(ALL.iter().map(Flag::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}
