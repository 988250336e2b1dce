//! What the host must have: packages from the system's own sources, and perhaps KVM.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::command;

/// `qemu-system-x86` is here for the libraries it pulls in, even where its own QEMU is too old.
const PACKAGES: [&str; 8] = [
    "busybox-static",
    "ca-certificates",
    "cpio",
    "ethtool",
    "iproute2",
    "kmod",
    "qemu-system-x86",
    "xz-utils",
];

/// Installs the packages that are missing and says which.
pub(super) fn install_packages() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!("packages missing: run `apt-get install --no-install-recommends {list}` as root");
    }
    eprintln!("vm: apt-get install {list}");
    // One broken source must not stop a package that another source has.
    if let Err(error) = command::run(Command::new("apt-get").args(["update", "-qq"])) {
        eprintln!("vm: {error:#}");
    }
    command::run(
        Command::new("apt-get")
            .args(["install", "-qq", "--yes", "--no-install-recommends"])
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn missing_packages() -> Result<Vec<&'static str>> {
    // dpkg-query fails when it does not know one of the names, and still lists the others.
    let known = command::output(
        Command::new("dpkg-query")
            .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
            .args(PACKAGES),
    )?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let installed: HashSet<&str> = known
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    Ok(PACKAGES
        .into_iter()
        .filter(|package| !installed.contains(package))
        .collect())
}

/// Whether KVM runs stock kernels here.
///
/// A `/dev/kvm` without the processor's own flag is a nested one that does not.
pub(super) fn has_kvm() -> bool {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    has_virtualization_flag(&cpu_info) && opens_for_writing(Path::new("/dev/kvm"))
}

fn has_virtualization_flag(cpu_info: &str) -> bool {
    cpu_info
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

fn opens_for_writing(path: &Path) -> bool {
    File::options().read(true).write(true).open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_flag_as_a_whole_word() {
        assert!(has_virtualization_flag(
            "processor\t: 0\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(has_virtualization_flag("flags\t\t: svm\n"));
        assert!(!has_virtualization_flag(
            "flags\t\t: fpu svm_lock\nbugs\t\t: vmx\n"
        ));
    }
}
