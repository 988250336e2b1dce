//! Starting other programs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// The cargo that runs this program, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(workspace::root());
    forget(&mut command, is_of_this_package);
    command
}

/// Another cargo than the one that runs this program: nothing of that one's compiler, flags and
/// folders reaches it.
pub(crate) fn foreign_cargo(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    forget(&mut command, |name| {
        is_of_this_package(name) || chooses_a_compiler(name)
    });
    command
}

fn forget(command: &mut Command, matches: impl Fn(&str) -> bool) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(&matches) {
            command.env_remove(name);
        }
    }
}

/// Whether `cargo run` set the variable to describe the package `xtask`.
///
/// Some build scripts watch such variables: inherited, they make `cargo xtask build` and a plain
/// `cargo build` undo each other's work.
fn is_of_this_package(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    const NAMES: [&str; 4] = [
        "CARGO",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the variable chooses a compiler, its flags or its target.
fn chooses_a_compiler(name: &str) -> bool {
    const PREFIXES: [&str; 7] = [
        "RUSTC",
        "RUSTDOC",
        "CARGO_BUILD_",
        "CARGO_ENCODED_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
    ];
    const NAMES: [&str; 4] = [
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
    ];
    name != "CARGO_BUILD_JOBS"
        && (NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// Runs a command to its end; what it prints is seen.
///
/// # Errors
/// If it can't be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .status()
        .with_context(|| format!("`{line}` can't be started"))?;
    ensure!(status.success(), "`{line}` failed: {status}");
    Ok(())
}

/// Runs a command to its end and returns what it prints on standard output.
///
/// # Errors
/// If it can't be started or fails; with what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` failed: {}\n{text}{error}",
            line(command),
            output.status
        );
    }
    Ok(text)
}

/// Runs a command to its end and returns what it prints on standard output; what it prints on
/// standard error is seen.
///
/// # Errors
/// If it can't be started or fails.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = finish(command.stderr(Stdio::inherit()))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        line(command),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whose failure may be an answer too.
///
/// # Errors
/// If it can't be started.
pub(crate) fn finish(command: &mut Command) -> Result<Output> {
    let line = line(command);
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{line}` can't be started"))
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words: Vec<OsString> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(Into::into)
        .collect();
    words.join(OsStr::new(" ")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_cargo_inherits_no_compiler() {
        for name in [
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(chooses_a_compiler(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "RUSTUP_HOME",
            "CARGO_BUILD_JOBS",
            "CARGO_NET_OFFLINE",
            "PATH",
        ] {
            assert!(
                !chooses_a_compiler(name) && !is_of_this_package(name),
                "{name}"
            );
        }
    }

    #[test]
    fn a_failure_names_the_command_and_shows_its_output() {
        let error = output(Command::new("sh").args(["-c", "echo reason >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("`sh -c") && text.contains("reason") && text.contains('3'),
            "{text}"
        );
    }
}
