//! Debian packages: which are there, and installing the others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process;

/// Whether packages can be installed on this machine by apt.
pub(crate) fn is_here() -> bool {
    [
        "/etc/debian_version",
        "/usr/bin/dpkg-query",
        "/usr/bin/apt-get",
    ]
    .into_iter()
    .all(|path| Path::new(path).exists())
}

/// Installs `packages` unless all are there; `purpose` says what for.
///
/// All of them are passed to apt, so that packages that must have one version are brought to it
/// together.
///
/// # Errors
/// If apt fails, or root is needed and can't be had: then with the command to type.
pub(crate) fn require(packages: &[&str], purpose: &str) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let install = apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat());
    let Some(prefix) = prefix() else {
        bail!(
            "{} missing ({purpose}); run as root: {}",
            missing.join(" "),
            install.join(" ")
        );
    };
    println!("setup: apt installs {} ({purpose})", missing.join(" "));
    let start = Instant::now();
    // One broken third-party source must not stop a package that another source has.
    if let Err(error) = process::output(&mut command(prefix, &apt(&["update"]))) {
        eprintln!("warning: {error:#}");
    }
    process::output(&mut command(prefix, &install))
        .with_context(|| format!("packages for {purpose} can't be installed"))?;
    println!("setup: done in {:.0?}", start.elapsed());
    Ok(())
}

/// Whether apt knows a package of this name.
pub(crate) fn offers(package: &str) -> bool {
    is_here()
        && process::output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
            .is_ok_and(|text| !text.is_empty())
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails if one package is unknown, and still lists the others.
    let query = process::finish(
        Command::new("dpkg-query")
            .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
            .args(packages),
    )?;
    let installed = installed(&String::from_utf8_lossy(&query.stdout));
    Ok(packages
        .iter()
        .filter(|name| !installed.contains(**name))
        .copied()
        .collect())
}

fn installed(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, status)| *status == "installed")
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The words before a command that give it root's rights without a question; `None` if none do.
fn prefix() -> Option<&'static [&'static str]> {
    const SUDO: [&str; 2] = ["sudo", "-n"];
    if nix::unistd::geteuid().is_root() {
        return Some(&[]);
    }
    process::output(Command::new("sudo").args(["-n", "true"]))
        .is_ok()
        .then_some(&SUDO)
}

fn apt<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [
        // Another apt may be at work, such as a fresh machine's own first update.
        &[
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
        ],
        args,
    ]
    .concat()
}

fn command(prefix: &[&str], words: &[&str]) -> Command {
    let words = [prefix, words].concat();
    let mut command = Command::new(words.first().copied().unwrap_or_default());
    command.args(words.iter().skip(1));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_packages_are_missing() {
        let listing = "gcc installed\nllvm-22-dev config-files\niproute2 not-installed\n";
        assert_eq!(installed(listing), BTreeSet::from(["gcc".to_owned()]));
    }

    #[test]
    fn commands_start_with_the_prefix() {
        let words = apt(&["update"]);
        assert_eq!(process::line(&command(&["sudo", "-n"], &words)), {
            "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 update"
        });
        assert_eq!(command(&[], &words).get_program(), "env");
    }
}
