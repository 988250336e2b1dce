//! cargo-deny: licences, sources and known faults of the crates that Beeline is made of, by the
//! rules of `deny.toml`.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::tool::Tool;
use crate::{process, workspace};

/// Older ones do not know all fields of `deny.toml`.
const TOOL: Tool = Tool {
    name: "cargo-deny",
    version: [0, 20, 2],
};

/// Checks the graph of crates.
///
/// Advisories come from a Git repository. Where it cannot be fetched they are not checked, which is
/// said; all the rest is.
///
/// # Errors
/// If something in the graph is against the rules, or cargo-deny can't be installed.
pub(crate) fn check() -> Result<()> {
    let folder = format!("{}-{}", TOOL.name, TOOL.version());
    let is_good = |deny: &Path| TOOL.is_new_enough(deny);
    let deny = match TOOL.find(&folder, is_good) {
        Some(deny) => deny,
        None => TOOL.install(&folder, "one or two minutes", unoptimised, is_good)?,
    };
    let rules = run(&deny, &["check", "licenses", "bans", "sources"]);
    let advisories = match fetch(&deny) {
        Ok(()) => run(&deny, &["check", "advisories"]),
        Err(why) => {
            println!("lint: ADVISORIES WERE NOT CHECKED: {why}");
            Ok(())
        }
    };
    rules.and(advisories)
}

fn run(deny: &Path, arguments: &[&str]) -> Result<()> {
    process::run(command(deny).args(arguments)).context("crates are against deny.toml")
}

/// Brings the list of known faults up to date; why not, in one line.
fn fetch(deny: &Path) -> Result<(), String> {
    let fetched = process::finish(command(deny).args(["fetch", "db"]));
    let output = fetched.map_err(|error| format!("{error:#}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(last_line(&said).to_owned())
}

/// What git says at last is the reason.
fn last_line(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim);
    lines
        .rfind(|line| !line.is_empty())
        .unwrap_or("cargo-deny says no reason")
}

fn command(deny: &Path) -> Command {
    // It asks cargo for the graph.
    let mut command = process::foreign_cargo(deny);
    command.current_dir(workspace::root());
    if let Some(cargo) = env::var_os("CARGO") {
        let _replaced = command.env("CARGO", cargo);
    }
    command
}

/// It works for a second.
fn unoptimised(command: &mut Command) {
    command.arg("--debug").env("CARGO_PROFILE_DEV_DEBUG", "0");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_version() {
        assert_eq!(TOOL.version_of("cargo-deny 0.20.2\n"), Some([0, 20, 2]));
        assert_eq!(TOOL.version_of("cargo-deny 0.20\n"), None);
        assert_eq!(TOOL.version_of("cargo 1.95.0\n"), None);
    }

    #[test]
    fn the_reason_is_what_was_said_last() {
        let said = "ERROR failed to fetch\nCloning into 'x'...\nfatal: no such host\n\n";
        assert_eq!(last_line(said), "fatal: no such host");
        assert!(!last_line("\n").is_empty());
    }
}
