//! `cargo xtask test`: everything that can be checked on this machine.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use xtask::tally::Tally;

use crate::{build, lint, process, semantics, setup};

/// Checks formatting and lints, runs all host tests, all kernel tests and all cases
///
/// Sets up and builds first what is missing. Runs every stage, also after one failed, and ends
/// with the number of tests that passed and failed; a stage that fails without a failing test
/// counts as one failure. The kernel tests and cases need root: they load programs and make network
/// namespaces.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run a single stage
    #[arg(long, value_name = "STAGE")]
    only: Option<Stage>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Formatting
    Fmt,
    /// Clippy and the project's own rules
    Lint,
    /// Tests that need no privileges
    Host,
    /// Tests that load the programs into the kernel
    Kernel,
    /// Cases of what becomes of packets to Services, on the host and in the kernel
    Semantics,
}

impl Stage {
    const fn title(self) -> &'static str {
        match self {
            Self::Fmt => "formatting",
            Self::Lint => "lints",
            Self::Host => "host tests",
            Self::Kernel => "kernel tests",
            Self::Semantics => "semantics",
        }
    }

    fn run(self) -> Result<Tally> {
        match self {
            Self::Fmt => lint::format().map(|()| Tally::default()),
            Self::Lint => lint::lint().map(|()| Tally::default()),
            Self::Host => host_tests(),
            Self::Kernel => kernel_tests(),
            Self::Semantics => semantics(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// None: failures are reported stage by stage.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let stages = args
        .only
        .as_ref()
        .map_or(Stage::value_variants(), std::slice::from_ref);
    let mut total = section("set-up and build", || prepare(stages));
    if total.failed == 0 {
        for stage in stages {
            total += section(stage.title(), || stage.run());
        }
    }
    println!("\none stage alone: cargo xtask test --only fmt|lint|host|kernel|semantics");
    println!("{total}");
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints a header, runs a stage, prints its result and duration.
fn section(title: &str, stage: impl FnOnce() -> Result<Tally>) -> Tally {
    println!("\n== {title}");
    let start = Instant::now();
    let (tally, text) = match stage() {
        Ok(tally) if tally.is_empty() => (tally, "ok".to_owned()),
        Ok(tally) => (tally, tally.to_string()),
        Err(error) => {
            eprintln!("error: {error:#}");
            (
                Tally {
                    failed: 1,
                    ..Tally::default()
                },
                "failed".to_owned(),
            )
        }
    };
    println!(
        "== {title}: {text} ({:.1} s)",
        start.elapsed().as_secs_f32()
    );
    tally
}

fn prepare(stages: &[Stage]) -> Result<Tally> {
    if stages == [Stage::Fmt] {
        setup::rust_components()?;
    } else {
        build::kernel_programs()?;
    }
    Ok(Tally::default())
}

fn host_tests() -> Result<Tally> {
    cargo_test(process::cargo().args(["test", "--workspace", "--exclude", "proxy-ebpf"]))
}

fn kernel_tests() -> Result<Tally> {
    need_root()?;
    setup::test_programs()?;
    build::next()?;
    cargo_test(process::cargo().args(["test", "--package", "proxy-userspace", "--test", "kernel"]))
}

/// All cases at all levels; then those of the kernel with real sockets, which are served.
fn semantics() -> Result<Tally> {
    need_root()?;
    let mut tally = tallied(&mut semantics::prepared()?, Tally::of_cases)?;
    let mut with_sockets = semantics::prepared()?;
    with_sockets.args(["--level", "kernel", "--socket-lb", "all"]);
    tally += tallied(&mut with_sockets, Tally::of_cases)?;
    Ok(tally)
}

fn need_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "kernel tests and cases need root; others run alone: cargo xtask test --only host"
    );
    Ok(())
}

/// Runs `cargo test`, shows what it prints and adds up its results.
fn cargo_test(command: &mut Command) -> Result<Tally> {
    tallied(command.arg("--no-fail-fast"), Tally::of)
}

/// Runs tests, shows what they print and adds up the results that `read` finds in it.
fn tallied(command: &mut Command, read: fn(&str) -> Option<Tally>) -> Result<Tally> {
    command.stdout(Stdio::piped());
    let line = process::line(command);
    let mut child = command
        .spawn()
        .with_context(|| format!("`{line}` can't be started"))?;
    let output = child.stdout.take().context("no pipe from cargo")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cargo's output is unreadable")?;
        println!("{line}");
        tally += read(&line).unwrap_or_default();
    }
    if !child.wait().context("cargo is lost")?.success() {
        // Nothing compiled, or a test program died before it could count.
        tally.failed = tally.failed.max(1);
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(script: &str) -> String {
        cargo_test(Command::new("sh").args(["-c", script]))
            .unwrap()
            .to_string()
    }

    #[test]
    fn a_run_that_dies_without_a_count_is_a_failure() {
        let one = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'";
        assert_eq!(died("exit 101"), "0 passed, 1 failed");
        assert_eq!(died(&format!("{one}; exit 101")), "3 passed, 1 failed");
        assert_eq!(died(&format!("{one}; {one}")), "6 passed, 0 failed");
    }

    #[test]
    fn a_failed_stage_counts_once() {
        let tally = section("stage", || anyhow::bail!("reason"));
        assert_eq!(tally.to_string(), "0 passed, 1 failed");
    }
}
