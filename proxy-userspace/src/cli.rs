//! The `beeline` command: its arguments, and what becomes of them.

mod cleanup;
mod config;
mod flows;
mod kube_proxy;
mod migrate;
mod progress;
mod run;
mod services;
mod sockets;
mod status;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use self::run::Fault;
use crate::devices::host_edge::HostEdgeError;
use crate::devices::monitor::MonitorError;
use crate::devices::routes::RouteError;
use crate::kube_proxy::KubeProxyError;
use crate::loader::attach::AttachError;
use crate::loader::cgroup::LinkError;
use crate::loader::checks::CheckError;
use crate::loader::lock::LockError;
use crate::loader::pins::Pins;
use crate::maps::{MapFailure, Maps};
use crate::status::StatusError;

/// Sends traffic for Kubernetes Services straight to pods, in the kernel.
#[derive(Parser, Debug)]
#[command(name = "beeline", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve this node until stopped
    ///
    /// Needs root. SIGTERM or Ctrl-C stops it; programs, flows and Services stay in force in the
    /// kernel, for the next run to take over or `beeline cleanup` to remove.
    Run(Box<run::RunArgs>),
    /// Show the configuration that `run` would have, and where each value comes from
    ///
    /// Takes the options of `run`.
    Config(Box<config::ConfigArgs>),
    /// Show whether all is well on this node
    ///
    /// Shows, too, what is attached where, how full the maps are and what became of packets. The
    /// exit code is 1 if all is not well.
    Status(ReadArgs),
    /// Show the Services' frontends with their backends, as the kernel has them
    Services(services::ServicesArgs),
    /// Show the flows that the kernel tracks
    ///
    /// A flow is one conversation of a client with a Service.
    Flows(flows::FlowsArgs),
    /// Show the sockets that are pointed at backends
    ///
    /// Their packets need no translation, so that they are no flows.
    Sockets(sockets::SocketsArgs),
    /// Remove kube-proxy's rules from the kernel, once Beeline serves in its place
    ///
    /// A daemon must be running and have everything in force. Connections that kube-proxy opened
    /// live on.
    Migrate(migrate::MigrateArgs),
    /// Take everything of Beeline off this node
    ///
    /// New connections are left to the stack, and so to kube-proxy, at once. When those that
    /// Beeline serves are over, programs, maps and the daemon's files go.
    Cleanup(cleanup::CleanupArgs),
}

/// Options of all commands come after a command's own.
const AFTER_OTHERS: usize = 100;

/// Where the kernel's and the daemon's state is.
#[derive(Args, Clone, Debug)]
struct Paths {
    /// Where bpffs is mounted.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/sys/fs/bpf",
        display_order = AFTER_OTHERS
    )]
    bpffs: PathBuf,
    /// Where the daemon keeps its lock and its status.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/beeline",
        display_order = AFTER_OTHERS
    )]
    state_dir: PathBuf,
}

/// How to show things.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What every command that shows something takes.
#[derive(Args, Clone, Debug)]
struct ReadArgs {
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Map(#[from] MapFailure),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    HostEdge(#[from] HostEdgeError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    SocketLink(#[from] LinkError),
    #[error(transparent)]
    KubeProxy(#[from] KubeProxyError),
    #[error("a daemon is running; stop it first, or take everything away under it with --force")]
    Running,
    #[error("a daemon has started meanwhile and serves again; nothing was removed")]
    ServedAgain,
    #[error("no maps under {}: no daemon has run here, or `beeline cleanup` has", .0.display())]
    NoMaps(PathBuf),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot start the asynchronous runtime")]
    Runtime(#[source] std::io::Error),
}

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let done = match Invocation::read(std::env::args_os()) {
        Ok(Invocation::Beeline(cli)) => cli.run(),
        Ok(Invocation::KubeProxy(paths, args)) => run::run(paths, *args),
        Ok(Invocation::Version(text)) => {
            print_text(&text);
            Ok(ExitCode::SUCCESS)
        }
        Err(Fault::Usage(error)) => error.exit(),
        Err(Fault::Config(error)) => Err(error.into()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was called, by the name that it was called by.
enum Invocation {
    Beeline(Cli),
    /// kube-proxy, which has no commands.
    KubeProxy(Paths, Box<run::RunArgs>),
    /// kube-proxy, asked for its version.
    Version(String),
}

impl Invocation {
    fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Fault> {
        let arguments: Vec<_> = arguments.into_iter().collect();
        if kube_proxy::is_called(&arguments) {
            kube_proxy::read(arguments)
        } else {
            Cli::read(arguments).map(Self::Beeline)
        }
    }
}

fn report(done: Result<ExitCode, Error>) -> anyhow::Result<ExitCode> {
    Ok(done?)
}

impl Cli {
    /// Reads arguments and the files that they name, and sees to it that they agree.
    fn read<T: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Self, Fault> {
        let matches = Self::complete().try_get_matches_from(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        if let Some((_, matches)) = matches.subcommand() {
            match &mut cli.command {
                Command::Run(args) => **args = run::RunArgs::resolve(matches, false)?,
                Command::Config(args) => args.run = run::RunArgs::resolve(matches, false)?,
                Command::Status(_)
                | Command::Services(_)
                | Command::Flows(_)
                | Command::Sockets(_)
                | Command::Migrate(_)
                | Command::Cleanup(_) => {}
            }
        }
        Ok(cli)
    }

    fn complete() -> clap::Command {
        let command = Self::command().mut_subcommand("run", run::complete);
        command.mut_subcommand("config", run::complete)
    }

    fn run(self) -> anyhow::Result<ExitCode> {
        let paths = self.paths;
        match self.command {
            Command::Run(args) => run::run(paths, *args),
            Command::Config(args) => config::config(&args),
            Command::Status(args) => report(status::status(&paths, &args)),
            Command::Services(args) => report(services::services(&paths, &args)),
            Command::Flows(args) => report(flows::flows(&paths, &args)),
            Command::Sockets(args) => report(sockets::sockets(&paths, &args)),
            Command::Migrate(args) => migrate::migrate(&paths, &args),
            Command::Cleanup(args) => report(cleanup::cleanup(&paths, &args)),
        }
    }
}

impl Paths {
    fn pins(&self) -> Pins {
        Pins::new(&self.bpffs)
    }

    /// The pinned maps.
    fn maps(&self) -> Result<Maps, Error> {
        let pins = self.pins();
        crate::loader::checks::privileges()?;
        crate::loader::checks::is_bpffs(&self.bpffs)?;
        if !pins.map("FRONTENDS").exists() {
            return Err(Error::NoMaps(pins.maps()));
        }
        Ok(Maps::open(&pins)?)
    }
}

/// Prints a value as JSON, or what `table` makes of it.
fn print<T: Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) {
    let text = match output {
        Output::Table => table(value),
        Output::Json => serde_json::to_string_pretty(value).unwrap_or_default() + "\n",
    };
    print_text(&text);
}

/// A reader that has seen enough, such as `head`, is no error.
fn print_text(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Runs what needs netlink.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(Error::Runtime)?.block_on(work)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn usage(read: Result<Cli, Fault>) -> clap::Error {
        match read {
            Err(Fault::Usage(error)) => error,
            other => panic!("no error of usage: {other:?}"),
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        Cli::complete().debug_assert();
    }

    /// `beeline run` with one more option.
    fn file<'a>(option: &'a str, value: &'a str) -> [&'a str; 8] {
        let [a, b, c, d, e, f] = ["beeline", "run", "--source", "file", "--manifests", "x"];
        [a, b, c, d, e, f, option, value]
    }

    #[test]
    fn traffic_is_treated_as_asked() {
        for arguments in [
            file("--nodeport-addresses", ""),
            file("--nodeport-addresses", "192.0.2.0/24, ::/0"),
            file("--detect-local-mode", "NodeCIDR"),
            file("--cluster-cidr", "fd00::/64,10.0.0.0/8"),
            file("--source-nat", "like-kube-proxy"),
            file("--gone-backends", "keep"),
            file("--feature-gates", "PreferSameTrafficDistribution=false"),
            file("--node-devices", "eth*,!eth1"),
            file("--service-cidr", "10.96.0.0/16"),
            file("--socket-lb", "host"),
            file("--cgroup-path", "/sys/fs/cgroup"),
            file("--max-sockets", "10"),
        ] {
            assert!(Cli::read(arguments).is_ok(), "{arguments:?}");
        }
        for flag in [
            "--masquerade-all",
            "--masquerade-all=false",
            "--localhost-nodeports",
            "--iptables-localhost-nodeports=false",
            "--feature-gates=SCTPSupport=true",
        ] {
            let arguments = [
                "beeline",
                "run",
                "--source",
                "file",
                "--manifests",
                "x",
                flag,
            ];
            assert!(Cli::read(arguments).is_ok(), "{flag}");
        }
    }

    #[test]
    fn pods_are_left_out_only_where_pods_are_served() {
        let skip = file("--socket-lb-skip-namespaces", "mesh");
        assert!(Cli::read(skip).is_ok());
        for served in ["host", "off"] {
            let arguments = [&skip[..], &["--socket-lb", served]].concat();
            let error = usage(Cli::read(arguments));
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{served}");
        }
    }

    #[test]
    fn what_cannot_be_is_a_usage_error() {
        for arguments in [
            &["beeline", "run", "--source", "file"][..],
            &[
                "beeline",
                "run",
                "--source",
                "kubernetes",
                "--manifests",
                "x",
            ],
            &[
                "beeline",
                "run",
                "--source",
                "file",
                "--manifests",
                "x",
                "--timeout",
                "tcp=1",
            ],
            &[
                "beeline",
                "run",
                "--source",
                "file",
                "--manifests",
                "x",
                "--max-flows",
                "0",
            ],
            &[
                "beeline",
                "run",
                "--source",
                "file",
                "--manifests",
                "x",
                "--pod-devices",
                ",",
            ],
            &["beeline", "status", "--no-such-flag"],
            &file("--detect-local-mode", "BridgeInterface"),
            &file("--detect-local-mode", "InterfaceNamePrefix"),
            &file("--pod-bridge-interface", "cni0"),
            &file("--pod-interface-name-prefix", "cali"),
            &file("--detect-local-mode", "Magic"),
            &file("--cluster-cidr", "10.0.0.0/8,10.1.0.0/16"),
            &file("--nodeport-addresses", "primary,10.0.0.0/8"),
            &file("--source-nat", "never"),
            &file("--service-cidr", "10.96.0.1"),
            &file("--source-ports", "80-90"),
            &file("--feature-gates", "SCTPSupport"),
            &file("--feature-gates", "sctp=true"),
            &file("--masquerade-all", "true"),
            &file("--socket-lb", "none"),
            &file("--max-datagrams", "0"),
        ] {
            let error = usage(Cli::read(arguments));
            assert_eq!(error.exit_code(), 2, "{arguments:?}: {error}");
        }
    }
}
