//! bpf-linker: from the compiler's bitcode to a BPF object.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::tool::Tool;
use crate::{debian, process, toolchain};

const TOOL: Tool = Tool {
    name: "bpf-linker",
    version: [0, 13, 0],
};
/// The LLVM versions that it can be built with.
const LLVM_VERSIONS: std::ops::RangeInclusive<u32> = 21..=23;

/// A good bpf-linker with the compiler's LLVM: from PATH, else one that was installed before.
pub(crate) fn find(llvm: u32) -> Option<PathBuf> {
    TOOL.find(&folder(llvm), |linker| is_good(linker, llvm))
}

/// Whether [`find`] finds one or [`install`] could install one.
pub(crate) fn is_within_reach(llvm: u32) -> bool {
    find(llvm).is_some()
        || LLVM_VERSIONS.contains(&llvm)
            && (toolchain::llvm_prefix(llvm).is_some()
                || debian::offers(&format!("llvm-{llvm}-dev")))
}

/// Compiles a bpf-linker with this LLVM.
///
/// # Errors
/// If LLVM's development files are missing and can't be installed, or the compilation fails.
pub(crate) fn install(llvm: u32) -> Result<PathBuf> {
    ensure!(
        LLVM_VERSIONS.contains(&llvm),
        "bpf-linker {} can't be built with LLVM {llvm}, only with {LLVM_VERSIONS:?}",
        TOOL.version()
    );
    if debian::is_here() {
        let names = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
        let packages = [&names[0], &names[1], "zlib1g-dev", "libzstd-dev"];
        debian::require(&packages, "bpf-linker")?;
    }
    let prefix = toolchain::llvm_prefix(llvm)
        .with_context(|| format!("LLVM {llvm}'s development files (llvm-config) are missing"))?;
    let with_llvm = |command: &mut Command| {
        command
            .args(["--features", &format!("llvm-{llvm}")])
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", path_with(&prefix.join("bin")));
    };
    let is_good = |linker: &Path| is_good(linker, llvm);
    TOOL.install(&folder(llvm), "about a minute", with_llvm, is_good)
}

/// Where among the caches a bpf-linker with this LLVM is installed.
fn folder(llvm: u32) -> String {
    format!("{}-{}-llvm-{llvm}", TOOL.name, TOOL.version())
}

/// Whether the linker runs (its LLVM may have been removed), is new enough and has this LLVM.
fn is_good(linker: &Path, llvm: u32) -> bool {
    let ask = |args: &[&str]| process::output(Command::new(linker).args(args)).unwrap_or_default();
    TOOL.is_new_enough(linker)
        // Its own --version does not name its LLVM; LLVM's does, before it looks at any file.
        && llvm_of(&ask(&["--llvm-args=--version", "--output=/dev/null", "/dev/null"]))
            == Some(llvm)
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
        assert_eq!(TOOL.version_of("bpf-linker 0.13.0\n"), Some([0, 13, 0]));
        assert_eq!(TOOL.version_of("bpf-linker 0.9.15\n"), Some([0, 9, 15]));
        assert_eq!(TOOL.version_of("ld 2.40\n"), None);
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
