//! bpf-linker: from the compiler's bitcode to a BPF object.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{debian, process, toolchain, workspace};

/// The version that is installed, and the oldest that is good enough.
const VERSION: [u32; 3] = [0, 13, 0];
/// The LLVM versions that it can be built with.
const LLVM_VERSIONS: std::ops::RangeInclusive<u32> = 21..=23;

/// A good bpf-linker with the compiler's LLVM: from PATH, else one that was installed before.
pub(crate) fn find(llvm: u32) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join("bpf-linker"))
        .chain(folder(llvm).map(|folder| folder.join("bin/bpf-linker")))
        .find(|linker| is_good(linker, llvm))
}

/// Whether [`find`] finds one or [`install`] could install one.
pub(crate) fn is_within_reach(llvm: u32) -> bool {
    find(llvm).is_some()
        || LLVM_VERSIONS.contains(&llvm)
            && (toolchain::llvm_prefix(llvm).is_some()
                || debian::offers(&format!("llvm-{llvm}-dev")))
}

/// Compiles a bpf-linker with this LLVM, outside any target folder: emptying one should not cost
/// this again.
///
/// # Errors
/// If LLVM's development files are missing and can't be installed, or the compilation fails.
pub(crate) fn install(llvm: u32) -> Result<PathBuf> {
    let version = VERSION.map(|part| part.to_string()).join(".");
    ensure!(
        LLVM_VERSIONS.contains(&llvm),
        "bpf-linker {version} can't be built with LLVM {llvm}, only with {LLVM_VERSIONS:?}"
    );
    if debian::is_here() {
        let names = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
        let packages = [&names[0], &names[1], "zlib1g-dev", "libzstd-dev"];
        debian::require(&packages, "bpf-linker")?;
    }
    let prefix = toolchain::llvm_prefix(llvm)
        .with_context(|| format!("LLVM {llvm}'s development files (llvm-config) are missing"))?;
    let folder = folder(llvm)?;
    println!("setup: cargo installs bpf-linker {version} (takes about a minute)");
    let start = Instant::now();
    let cargo = env::var_os("CARGO")
        .map(PathBuf::from)
        .context("CARGO is not set")?;
    process::run(
        process::foreign_cargo(&cargo)
            .args(["install", "--quiet", "--locked", "--force", "--root"])
            .arg(&folder)
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ])
            .arg(format!("bpf-linker@{version}"))
            .current_dir("/")
            // Not rustup's proxy: that obeys the rust-toolchain.toml files of dependencies.
            .env("RUSTC", cargo.with_file_name("rustc"))
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", path_with(&prefix.join("bin"))),
    )?;
    let linker = folder.join("bin/bpf-linker");
    ensure!(
        is_good(&linker, llvm),
        "{} was built and does not run",
        linker.display()
    );
    println!("setup: done in {:.0?}", start.elapsed());
    Ok(linker)
}

/// Where a bpf-linker with this LLVM is installed.
fn folder(llvm: u32) -> Result<PathBuf> {
    let version = VERSION.map(|part| part.to_string()).join(".");
    Ok(workspace::cache_dir()?.join(format!("bpf-linker-{version}-llvm-{llvm}")))
}

/// Whether the linker runs (its LLVM may have been removed), is new enough and has this LLVM.
fn is_good(linker: &Path, llvm: u32) -> bool {
    let ask = |args: &[&str]| process::output(Command::new(linker).args(args)).unwrap_or_default();
    linker.is_file()
        && version_of(&ask(&["--version"])).is_some_and(|version| version >= VERSION)
        // Its own --version does not name its LLVM; LLVM's does, before it looks at any file.
        && llvm_of(&ask(&["--llvm-args=--version", "--output=/dev/null", "/dev/null"]))
            == Some(llvm)
}

fn version_of(text: &str) -> Option<[u32; 3]> {
    let mut parts = text
        .trim()
        .strip_prefix("bpf-linker ")?
        .splitn(3, '.')
        .map(str::parse);
    Some([
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    ])
}

fn llvm_of(text: &str) -> Option<u32> {
    text.split("LLVM version ")
        .nth(1)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn path_with(first: &Path) -> OsString {
    let mut path = first.as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(version_of("bpf-linker 0.13.0\n"), Some([0, 13, 0]));
        assert_eq!(version_of("bpf-linker 0.9.15\n"), Some([0, 9, 15]));
        assert_eq!(version_of("ld 2.40\n"), None);
        assert_eq!(
            llvm_of("Debian LLVM version 22.1.8\n  Optimized build.\n"),
            Some(22)
        );
        assert_eq!(
            llvm_of("LLVM (http://llvm.org/):\n  LLVM version 21.1.0\n"),
            Some(21)
        );
        assert_eq!(llvm_of("error: no such option"), None);
    }

    #[test]
    fn a_program_that_is_no_linker_is_not_good() {
        assert!(!is_good(Path::new("/bin/true"), 22));
        assert!(!is_good(Path::new("/nonexistent/bpf-linker"), 22));
    }
}
