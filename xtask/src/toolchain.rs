//! The compiler for the BPF target: rustup's nightly with `rust-src`, or Debian's `rustc-web`.
//!
//! `core` for that target comes neither with a stable toolchain nor with a plain nightly. A
//! nightly can compile it from its source; Debian packages it compiled.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Debian's compiler with clippy, and `core` for the BPF target.
pub(crate) const DEBIAN_PACKAGES: [&str; 4] = [
    "rustc-web",
    "cargo-web",
    "rust-web-clippy",
    "libstd-rust-web-dev-bpf",
];

/// A compiler for the BPF target.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Compiler {
    /// rustup's nightly with this sysroot; it compiles `core` from its `rust-src`.
    Nightly(PathBuf),
    /// Debian's, from [`DEBIAN_PACKAGES`].
    Debian,
}

impl Compiler {
    /// Path of rustc.
    pub(crate) fn rustc(&self) -> PathBuf {
        self.program("rustc")
    }

    /// Path of cargo.
    pub(crate) fn cargo(&self) -> PathBuf {
        self.program("cargo")
    }

    /// Path of one of the programs that belong to it.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        match self {
            Self::Nightly(sysroot) => sysroot.join("bin").join(name),
            // In full: rustup's programs of the same name come first on PATH.
            Self::Debian => Path::new("/usr/bin").join(name),
        }
    }

    /// Major version of the LLVM that it generates code with.
    ///
    /// # Errors
    /// If it can't be run, or does not say.
    pub(crate) fn llvm(&self) -> Result<u32> {
        let rustc = self.rustc();
        let text = process::output(process::foreign_cargo(&rustc).arg("-vV"))?;
        llvm_of(&text).with_context(|| format!("`{} -vV` names no LLVM", rustc.display()))
    }
}

fn llvm_of(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// The compiler to use on this machine; Debian's may have to be installed yet.
///
/// A nightly with `rust-src` goes first, if `can_link` its LLVM version.
///
/// # Errors
/// If there is none: with what to install.
pub(crate) fn choose(
    nightly: Option<Compiler>,
    can_link: impl Fn(u32) -> bool,
    is_debian: bool,
) -> Result<Compiler> {
    let unusable = match nightly {
        Some(nightly) => {
            let llvm = nightly.llvm()?;
            if can_link(llvm) {
                return Ok(nightly);
            }
            Some((nightly, llvm))
        }
        None => None,
    };
    if is_debian {
        return Ok(Compiler::Debian);
    }
    match unusable {
        Some((nightly, llvm)) => bail!(
            "{} needs a bpf-linker for LLVM {llvm}: put a release of bpf-linker (0.13.0 or \
             newer) on PATH, or install LLVM {llvm} with its development files (llvm-config)",
            nightly.rustc().display()
        ),
        None => bail!(
            "no compiler for the BPF target: on any Linux, run \
             `rustup toolchain install nightly --component rust-src` and put a release of \
             bpf-linker (0.13.0 or newer) on PATH; on Debian 12, `cargo xtask setup` installs {}",
            DEBIAN_PACKAGES.join(", ")
        ),
    }
}

/// The nightly with `rust-src` among rustup's toolchains.
pub(crate) fn nightly() -> Option<Compiler> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".rustup")))?;
    nightly_in(&rustup.join("toolchains"))
}

/// The plain `nightly` if it has `rust-src`, else the newest `nightly-YYYY-MM-DD` that has.
fn nightly_in(toolchains: &Path) -> Option<Compiler> {
    let mut found: Vec<PathBuf> = fs::read_dir(toolchains)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|sysroot| nightly_name(sysroot).is_some() && has_source(sysroot))
        .collect();
    found.sort_by_key(|sysroot| (!is_dated(sysroot), sysroot.clone()));
    found.pop().map(Compiler::Nightly)
}

fn nightly_name(sysroot: &Path) -> Option<&str> {
    sysroot.file_name()?.to_str()?.strip_prefix("nightly")
}

fn is_dated(sysroot: &Path) -> bool {
    let rest = nightly_name(sysroot).and_then(|name| name.strip_prefix('-'));
    rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir() && sysroot.join("bin/rustc").exists()
}

/// The prefix of an installed LLVM with development files, by its `llvm-config`.
pub(crate) fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if debian.join("bin/llvm-config").exists() {
        return Some(debian);
    }
    [format!("llvm-config-{llvm}"), "llvm-config".to_owned()]
        .iter()
        .find_map(|program| {
            let text =
                process::output(Command::new(program).args(["--version", "--prefix"])).ok()?;
            let (version, prefix) = text.trim().split_once('\n')?;
            version
                .starts_with(&format!("{llvm}."))
                .then(|| PathBuf::from(prefix))
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder like rustup's `toolchains`; gone when dropped.
    struct Toolchains(PathBuf);

    impl Toolchains {
        fn new(test: &str) -> Self {
            let path = env::temp_dir().join(format!("xtask-{}-{test}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn add(&self, name: &str, with_source: bool, llvm: u32) -> &Self {
            let sysroot = self.0.join(name);
            fs::create_dir_all(sysroot.join("bin")).unwrap();
            let rustc = sysroot.join("bin/rustc");
            fs::write(
                &rustc,
                format!("#!/bin/sh\necho 'LLVM version: {llvm}.1.2'\n"),
            )
            .unwrap();
            fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
            if with_source {
                fs::create_dir_all(sysroot.join("lib/rustlib/src/rust/library/core")).unwrap();
            }
            self
        }

        fn compiler(&self, name: &str) -> Option<Compiler> {
            Some(Compiler::Nightly(self.0.join(name)))
        }
    }

    impl Drop for Toolchains {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn reads_the_llvm_version_of_a_compiler() {
        let text = "rustc 1.96.0\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_of(text), Some(22));
        assert_eq!(llvm_of("rustc 1.96.0\n"), None);
    }

    #[test]
    fn a_nightly_without_source_is_passed_over() {
        let toolchains = Toolchains::new("plain");
        toolchains.add("stable-x86_64-unknown-linux-gnu", true, 22);
        toolchains.add("nightly-x86_64-unknown-linux-gnu", false, 22);
        assert_eq!(nightly_in(&toolchains.0), None);
        assert_eq!(nightly_in(Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_plain_nightly_goes_before_dated_ones() {
        let toolchains = Toolchains::new("dated");
        toolchains.add("nightly-2026-03-01-x86_64-unknown-linux-gnu", true, 22);
        toolchains.add("nightly-2026-05-01-x86_64-unknown-linux-gnu", true, 22);
        toolchains.add("nightly-2026-06-01-x86_64-unknown-linux-gnu", false, 22);
        let newest = toolchains.compiler("nightly-2026-05-01-x86_64-unknown-linux-gnu");
        assert_eq!(nightly_in(&toolchains.0), newest);
        toolchains.add("nightly-x86_64-unknown-linux-gnu", true, 22);
        let plain = toolchains.compiler("nightly-x86_64-unknown-linux-gnu");
        assert_eq!(nightly_in(&toolchains.0), plain);
    }

    #[test]
    fn a_nightly_that_can_be_linked_goes_first() {
        let toolchains = Toolchains::new("first");
        toolchains.add("nightly", true, 23);
        let choice = |linkable: u32, is_debian| {
            choose(
                nightly_in(&toolchains.0),
                |llvm| llvm == linkable,
                is_debian,
            )
        };
        assert_eq!(choice(23, true).ok(), toolchains.compiler("nightly"));
        assert_eq!(choice(23, false).ok(), toolchains.compiler("nightly"));
        assert_eq!(choice(22, true).ok(), Some(Compiler::Debian));
        let error = choice(22, false).unwrap_err().to_string();
        assert!(error.contains("bpf-linker for LLVM 23"), "{error}");
    }

    #[test]
    fn without_a_nightly_only_debian_has_a_compiler() {
        assert_eq!(choose(None, |_| true, true).ok(), Some(Compiler::Debian));
        let error = choose(None, |_| true, false).unwrap_err().to_string();
        assert!(
            error.contains("--component rust-src") && error.contains("rustc-web"),
            "{error}"
        );
    }
}
