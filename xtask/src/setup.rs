//! `cargo xtask setup`: what building and testing needs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::toolchain::{self, Compiler};
use crate::{bpf_linker, debian, process};

/// Installs what building and testing needs: Debian packages, a compiler and a linker for the
/// BPF target, rustfmt and clippy
///
/// Asks nothing, says what it installs, and does nothing if all is there. Packages need root, or
/// sudo that asks for no password.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// What compiles for the BPF target.
pub(crate) struct BpfToolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// Path of its bpf-linker.
    pub(crate) linker: PathBuf,
}

/// Packages that the host's side needs.
const HOST_PACKAGES: [&str; 5] = [
    // Compile ring and jemalloc, link everything.
    "gcc",
    "libc6-dev",
    "make",
    // Crates come over TLS.
    "ca-certificates",
    // Namespaces of the tests and the demonstration.
    "iproute2",
];

/// Packages of the programs that kernel tests start. None of them starts a service: the server of
/// `redis-tools` is there as `redis-check-rdb`, and iperf3's asks first.
pub(crate) const TEST_PACKAGES: [&str; 8] = [
    "bind9-dnsutils",
    "curl",
    "dnsmasq-base",
    "iperf3",
    "iptables",
    "netcat-openbsd",
    "nftables",
    "redis-tools",
];

/// Runs the command.
///
/// # Errors
/// As [`ensure`] and [`test_programs`].
pub(crate) fn run(Args {}: &Args) -> Result<ExitCode> {
    let bpf = ensure()?;
    test_programs()?;
    println!("compiler for BPF: {}", bpf.compiler.rustc().display());
    println!("linker for BPF:   {}", bpf.linker.display());
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing.
///
/// # Errors
/// If something can't be installed: with what to do.
pub(crate) fn ensure() -> Result<BpfToolchain> {
    let is_debian = debian::is_here();
    if is_debian {
        debian::require(&HOST_PACKAGES, "host tools")?;
    }
    rust_components()?;
    let compiler = toolchain::choose(toolchain::nightly(), bpf_linker::is_within_reach, is_debian)?;
    if compiler == Compiler::Debian {
        debian::require(&toolchain::DEBIAN_PACKAGES, "compiler for BPF").context(
            "no Debian compiler for the BPF target (Debian 12 has it in its security updates); \
             the other way is `rustup toolchain install nightly --component rust-src`",
        )?;
    }
    let llvm = compiler.llvm()?;
    let linker = match bpf_linker::find(llvm) {
        Some(linker) => linker,
        None => bpf_linker::install(llvm)?,
    };
    Ok(BpfToolchain { compiler, linker })
}

/// Installs the programs that kernel tests start.
///
/// # Errors
/// If they can't be installed. On other systems than Debian, the tests name what is missing.
pub(crate) fn test_programs() -> Result<()> {
    if debian::is_here() {
        debian::require(&TEST_PACKAGES, "programs for the kernel tests")?;
    }
    Ok(())
}

/// Installs what loads kube-proxy's rules, to compare with.
///
/// # Errors
/// If it can't be installed. On other systems than Debian, the benchmark says what is missing.
pub(crate) fn rule_programs() -> Result<()> {
    if debian::is_here() {
        debian::require(&["iptables", "nftables"], "what loads kube-proxy's rules")?;
    }
    Ok(())
}

/// Installs rustfmt and clippy, which rustup's minimal profile leaves out.
///
/// # Errors
/// If rustup can't.
pub(crate) fn rust_components() -> Result<()> {
    let missing: Vec<&str> = [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")]
        .into_iter()
        .filter(|(_, program)| !stands_beside_cargo(program))
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: rustup installs {}", missing.join(" "));
    process::run(
        Command::new("rustup")
            .args(["component", "add"])
            .args(&missing),
    )
}

fn stands_beside_cargo(program: &str) -> bool {
    let cargo = env::var_os("CARGO").unwrap_or_default();
    Path::new(&cargo).with_file_name(program).exists()
}
