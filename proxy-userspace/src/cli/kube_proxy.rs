//! Being called as kube-proxy: its flags without a command, as its DaemonSet gives them.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::run::{Fault, RunArgs, complete};
use super::{Invocation, Paths};

/// Sends traffic for Kubernetes Services straight to pods, in the kernel, in place of kube-proxy.
///
/// Understands kube-proxy's flags; the others are those of `beeline run`.
#[derive(Parser, Debug)]
#[command(name = NAME, version, disable_version_flag = true)]
struct KubeProxy {
    #[command(flatten)]
    paths: Paths,
    /// Print the version and end.
    #[arg(
        long,
        value_name = "FORM",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    version: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

const NAME: &str = "kube-proxy";

/// Whether these arguments begin with kube-proxy's name.
pub(super) fn is_called(arguments: &[OsString]) -> bool {
    let name = arguments
        .first()
        .and_then(|path| Path::new(path).file_name());
    name == Some(OsStr::new(NAME))
}

/// Reads kube-proxy's arguments and the files that they name.
pub(super) fn read(arguments: Vec<OsString>) -> Result<Invocation, Fault> {
    let command = complete(KubeProxy::command());
    let arguments = arguments.into_iter().map(with_dashes);
    let matches = command.clone().try_get_matches_from(arguments)?;
    let called = KubeProxy::from_arg_matches(&matches)?;
    if called.version.is_some_and(|form| form != "false") {
        return Ok(Invocation::Version(command.render_version()));
    }
    let args = RunArgs::resolve(&matches, true)?;
    Ok(Invocation::KubeProxy(called.paths, Box::new(args)))
}

/// kube-proxy takes `_` for `-` in the names of its flags.
fn with_dashes(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else {
        return argument;
    };
    match text.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}
