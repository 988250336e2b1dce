//! cargo-deny: licences, sources and known faults of the crates that Beeline is made of, by the
//! rules of `deny.toml`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{process, workspace};

/// The version that is installed, and the oldest that is good enough: older ones do not know all
/// fields of `deny.toml`.
const VERSION: [u32; 3] = [0, 20, 2];

/// Checks the graph of crates.
///
/// Advisories come from a Git repository. Where it cannot be fetched they are not checked, which is
/// said; all the rest is.
///
/// # Errors
/// If something in the graph is against the rules, or cargo-deny can't be installed.
pub(crate) fn check() -> Result<()> {
    let deny = match find() {
        Some(deny) => deny,
        None => install()?,
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

/// A good cargo-deny: from PATH, else one that was installed before.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join("cargo-deny"))
        .chain(folder().map(|folder| folder.join("bin/cargo-deny")))
        .find(|deny| is_good(deny))
}

fn is_good(deny: &Path) -> bool {
    deny.is_file()
        && process::output(Command::new(deny).arg("--version"))
            .ok()
            .and_then(|text| version_of(&text))
            .is_some_and(|version| version >= VERSION)
}

fn version_of(text: &str) -> Option<[u32; 3]> {
    let mut parts = text
        .trim()
        .strip_prefix("cargo-deny ")?
        .splitn(3, '.')
        .map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

/// Compiles it, outside any target folder, and without optimising: it works for a second.
fn install() -> Result<PathBuf> {
    let folder = folder().context("there is no folder for caches")?;
    println!(
        "setup: cargo installs cargo-deny {} (takes one or two minutes)",
        version()
    );
    let start = Instant::now();
    let cargo = env::var_os("CARGO")
        .map(PathBuf::from)
        .context("CARGO is not set")?;
    process::run(
        process::foreign_cargo(&cargo)
            .args(["install", "--quiet", "--locked", "--force", "--debug"])
            .args(["--no-default-features", "--root"])
            .arg(&folder)
            .arg(format!("cargo-deny@{}", version()))
            .current_dir("/")
            // Not rustup's proxy: that obeys the rust-toolchain.toml files of dependencies.
            .env("RUSTC", cargo.with_file_name("rustc"))
            .env("CARGO_PROFILE_DEV_DEBUG", OsString::from("0")),
    )?;
    let deny = folder.join("bin/cargo-deny");
    ensure!(
        is_good(&deny),
        "{} was built and does not run",
        deny.display()
    );
    println!("setup: done in {:.0?}", start.elapsed());
    Ok(deny)
}

fn folder() -> Option<PathBuf> {
    let cache = workspace::cache_dir().ok()?;
    Some(cache.join(format!("cargo-deny-{}", version())))
}

fn version() -> String {
    VERSION.map(|part| part.to_string()).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_version() {
        assert_eq!(version_of("cargo-deny 0.20.2\n"), Some([0, 20, 2]));
        assert_eq!(version_of("cargo-deny 0.20\n"), None);
        assert_eq!(version_of("cargo 1.95.0\n"), None);
    }

    #[test]
    fn the_reason_is_what_was_said_last() {
        let said = "ERROR failed to fetch\nCloning into 'x'...\nfatal: no such host\n\n";
        assert_eq!(last_line(said), "fatal: no such host");
        assert!(!last_line("\n").is_empty());
    }
}
