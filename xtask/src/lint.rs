//! `cargo xtask lint`: formatting, clippy on both sides, the project's own rules, and the crates
//! that it is made of.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::setup::BpfToolchain;
use crate::{build, cargo_deny, process, setup, tidy, workspace};

/// Checks formatting, runs clippy on the host's crates and on the kernel programs, and checks
/// the project's own rules (tidy) and the crates that it is made of (cargo-deny)
///
/// Runs all of them and fails if one does. Findings of tidy read `file:line: message`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
///
/// # Errors
/// If clippy has nothing to work on: set-up or build failed.
pub(crate) fn run(Args {}: &Args) -> Result<ExitCode> {
    // The library embeds the kernel programs: clippy sees nothing of it without them.
    build::kernel_programs()?;
    let results = [format(), lint()];
    let mut code = ExitCode::SUCCESS;
    for error in results.into_iter().filter_map(Result::err) {
        eprintln!("error: {error:#}");
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

/// Checks formatting.
///
/// # Errors
/// If a file is not formatted.
pub(crate) fn format() -> Result<()> {
    process::run(process::cargo().args(["fmt", "--all", "--check"]))
        .context("not formatted, `cargo fmt` mends it")
}

/// Runs clippy on everything, tidy and cargo-deny; the kernel programs must be built.
///
/// # Errors
/// What failed, after all of it has run.
pub(crate) fn lint() -> Result<()> {
    let results = [
        host_clippy(),
        kernel_tests_clippy(),
        bpf_clippy(&setup::ensure()?),
        tidy(),
        cargo_deny::check(),
    ];
    let failed: Vec<String> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\nerror: "));
    Ok(())
}

const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];

fn host_clippy() -> Result<()> {
    process::run(
        process::cargo()
            .args([
                "clippy",
                "--workspace",
                "--exclude",
                "proxy-ebpf",
                "--all-targets",
            ])
            .args(DENY_WARNINGS),
    )
}

/// The test target that `--all-targets` leaves out because it is not run by default.
fn kernel_tests_clippy() -> Result<()> {
    process::run(
        process::cargo()
            .args(["clippy", "--package", "proxy-userspace", "--test", "kernel"])
            .args(DENY_WARNINGS),
    )
}

/// The kernel programs on their own target: on the host's there is nothing of them to see.
fn bpf_clippy(bpf: &BpfToolchain) -> Result<()> {
    // Not `cargo clippy`: that finds rustup's clippy on PATH.
    let clippy = bpf.compiler.program("cargo-clippy");
    ensure!(
        clippy.exists(),
        "{} is missing: run `rustup component add clippy --toolchain nightly`",
        clippy.display()
    );
    let mut command = process::foreign_cargo(clippy);
    command.arg("clippy").env("CARGO", bpf.compiler.cargo());
    process::run(build::bpf_cargo(bpf, &mut command)?.args(DENY_WARNINGS))
}

fn tidy() -> Result<()> {
    let findings = tidy::check(&workspace::root())?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    ensure!(findings.is_empty(), "tidy: {} findings", findings.len());
    Ok(())
}
