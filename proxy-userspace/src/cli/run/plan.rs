//! From a command line and the files that it names to the options in force.

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches as _};

use super::{JobArgs, RunArgs, SourceArg};
use crate::config::go::parse_bool;
use crate::config::{Asked, ConfigError, Resolved, Seen, Watch, switch};
use crate::loader::sizes;

/// A command line that asks for nothing possible.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Fault {
    /// By itself.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// By what its files say, or what kube-proxy would not take.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Has a command with [`RunArgs`] understand them as kube-proxy does its flags: what is on or off
/// needs no value, and of an option that is given twice the last one counts.
pub(in crate::cli) fn complete(command: Command) -> Command {
    command.args_override_self(true).mut_args(complete_arg)
}

fn complete_arg(arg: Arg) -> Arg {
    let is_switch = arg.get_value_parser().type_id() == ValueParser::bool().type_id();
    if !is_switch || matches!(arg.get_action(), ArgAction::Help | ArgAction::Version) {
        return arg;
    }
    let is_off = arg.get_default_values().is_empty();
    let arg = switch(arg.action(ArgAction::Set)).value_parser(parse_bool);
    if is_off {
        arg.default_value("false")
    } else {
        arg
    }
}

impl RunArgs {
    /// The options alone, by which files' values are read.
    pub(in crate::cli) fn command() -> Command {
        complete(Self::augment_args(Command::new("run")))
    }

    /// Reads the files that the command line names, and has the values that win.
    pub(in crate::cli) fn resolve(
        matches: &ArgMatches,
        is_kube_proxy: bool,
    ) -> Result<Self, Fault> {
        let command = Self::command();
        let asked = Asked {
            command: &command,
            matches,
            is_kube_proxy,
        };
        let Resolved {
            arguments,
            in_force,
        } = asked.resolve()?;
        let winning = command
            .clone()
            .no_binary_name(true)
            .try_get_matches_from(arguments)?;
        let mut args = Self::from_arg_matches(&winning)?;
        args.job = JobArgs::from_arg_matches(matches)?;
        args.in_force = in_force;
        args.say_what_was_found();
        match args.conflict() {
            Some(conflict) => Err(command
                .clone()
                .error(ErrorKind::ArgumentConflict, conflict)
                .into()),
            None => Ok(args),
        }
    }

    fn say_what_was_found(&mut self) {
        let source = match self.source() {
            SourceArg::File => "file",
            SourceArg::Kubernetes => "kubernetes",
        };
        self.in_force.found("source", source);
        let mode = self.traffic.mode_name();
        self.in_force.found("detect-local-mode", mode);
        self.in_force.kube_proxy.set_detect_local(mode);
        let given = self.node_name.clone().filter(|name| !name.is_empty());
        if let Some(name) = given.or_else(|| super::host_name().ok()) {
            self.in_force.show("node-name", &name);
        }
        let memory = sizes::memory();
        for spec in sizes::MAPS {
            let option = spec.option.and_then(|option| option.strip_prefix("--"));
            let size = sizes::default_size(spec.name, memory).to_string();
            self.in_force.found(option.unwrap_or_default(), &size);
        }
    }
}

/// Waits until a configuration file has another content that can be used, and says so: as
/// kube-proxy does, the daemon ends then, for whoever looks after it to start it anew. Content that
/// cannot be used changes nothing: better an old configuration than no daemon.
pub(super) async fn changed(files: Vec<Seen>) -> anyhow::Error {
    if files.is_empty() {
        std::future::pending::<()>().await;
    }
    let mut watch = Watch::start(files);
    loop {
        let path = watch.changed().await;
        match super::super::Invocation::read(std::env::args_os()) {
            Ok(_) => {
                let path = path.display();
                return anyhow::anyhow!("content of the configuration file {path} was updated");
            }
            Err(fault) => tracing::error!("the changed configuration does not count: {fault:#}"),
        }
    }
}
