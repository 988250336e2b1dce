//! `cargo xtask semantics`: cases of what becomes of packets to Services.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{build, process, workspace};

/// Runs cases: what becomes of packets to Services, described by example
///
/// Builds the kernel programs and the daemon first. `cargo xtask semantics --help` says what may follow:
/// [--level pure|kernel] [--socket-lb all|host|off] [--case ID]... [FOLDER]...
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Passed on as they are
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// If something can't be built or started. Cases that fail are no error here.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut command = prepared()?;
    let status = command
        .args(&args.args)
        .status()
        .with_context(|| format!("`{}` can't be started", process::line(&command)))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds what cases are run against, the daemon included. Yields the command that runs all cases
/// at both levels, unless arguments follow; folders are meant from where this program was started.
///
/// # Errors
/// If something can't be built.
pub(crate) fn prepared() -> Result<Command> {
    let _built = build::build(false)?;
    let mut command = process::cargo();
    command
        .current_dir(env::current_dir().context("the current folder is unknown")?)
        .args([
            "run",
            "--quiet",
            "--package",
            "semantics",
            "--manifest-path",
        ])
        .arg(workspace::root().join("Cargo.toml"))
        .arg("--");
    Ok(command)
}
