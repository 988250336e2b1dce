//! `cargo xtask build`: the kernel programs, then the command that carries them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::setup::BpfToolchain;
use crate::toolchain::Compiler;
use crate::{bpf_object, process, setup, workspace};

const BPF_TARGET: &str = "bpfel-unknown-none";

/// Builds the kernel programs, checks them, and builds the `beeline` command around them
///
/// The object ends up at `target/bpf/beeline.bpf.o`, the command in `target/debug` or
/// `target/release`. The kernel programs are always optimised.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimise the command too
    #[arg(long)]
    release: bool,
    /// Link it statically, for this target such as aarch64-unknown-linux-gnu: for an image; implies
    /// --release
    #[arg(long, value_name = "TARGET")]
    static_for: Option<String>,
    /// Build `beeline-next` as well, whose maps have another layout: for tests of upgrades
    #[arg(long)]
    next: bool,
}

/// What a build leaves behind.
pub(crate) struct Built {
    /// The kernel programs.
    pub(crate) object: PathBuf,
    /// The command.
    pub(crate) beeline: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// As [`build`].
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let built = match &args.static_for {
        Some(target) => build_static(target)?,
        None => build(args.release)?,
    };
    println!("kernel programs: {}", built.object.display());
    println!("command:         {}", built.beeline.display());
    if args.next {
        println!("the next one:    {}", next()?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets up what is missing and builds everything.
///
/// # Errors
/// If the set-up or a compilation fails, or the object is not one that a kernel could load.
pub(crate) fn build(release: bool) -> Result<Built> {
    let object = kernel_programs()?;
    process::run(
        process::cargo()
            .args(["build", "--package", "proxy-userspace", "--bin", "beeline"])
            .args(release.then_some("--release")),
    )?;
    let profile = if release { "release" } else { "debug" };
    Ok(Built {
        object,
        beeline: workspace::target_dir()?.join(profile).join("beeline"),
    })
}

/// Builds everything for a machine that has nothing: the command depends on no other file.
///
/// # Errors
/// As [`build`]; if the compiler or a linker for the target is missing.
fn build_static(target: &str) -> Result<Built> {
    let object = kernel_programs()?;
    process::run(
        process::cargo()
            .args(["build", "--package", "proxy-userspace", "--bin", "beeline"])
            .args(["--release", "--target", target])
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    )?;
    Ok(Built {
        object,
        beeline: workspace::target_dir()?
            .join(target)
            .join("release/beeline"),
    })
}

/// The feature that gives maps another layout.
pub(crate) const NEXT_LAYOUT: [&str; 2] = ["--features", "next-layout"];

/// Builds `beeline-next` beside `beeline`, unoptimised: the same, but its maps have another layout.
/// Only our own crates are compiled once more.
///
/// # Errors
/// As [`build`].
pub(crate) fn next() -> Result<PathBuf> {
    let object = next_kernel_programs()?;
    process::run(
        process::cargo()
            .args(["build", "--package", "proxy-userspace", "--bin", "beeline"])
            .args(NEXT_LAYOUT)
            .env("BEELINE_BPF_OBJECT", &object),
    )?;
    let folder = workspace::target_dir()?.join("debug");
    let next = folder.join("beeline-next");
    replace(&next, &read(&folder.join("beeline"))?)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("{}: can't be made executable", next.display()))?;
    Ok(next)
}

/// Sets up what is missing, builds the kernel programs and checks them; returns the object's
/// stable place.
///
/// # Errors
/// As [`build`].
pub(crate) fn kernel_programs() -> Result<PathBuf> {
    let stable = workspace::bpf_object()?;
    compile_kernel_programs(&[], &stable)?;
    Ok(stable)
}

/// The same for those of `beeline-next`.
///
/// # Errors
/// As [`build`].
pub(crate) fn next_kernel_programs() -> Result<PathBuf> {
    let object = workspace::bpf_object()?.with_file_name("beeline-next.bpf.o");
    compile_kernel_programs(&NEXT_LAYOUT, &object)?;
    Ok(object)
}

fn compile_kernel_programs(features: &[&str], stable: &Path) -> Result<()> {
    let bpf = setup::ensure()?;
    let mut cargo = process::foreign_cargo(bpf.compiler.cargo());
    process::run(bpf_cargo(&bpf, cargo.arg("build"))?.args(features))?;
    let bytes = read(
        &bpf_target_dir()?
            .join(BPF_TARGET)
            .join("release/beeline-ebpf"),
    )?;
    bpf_object::check(&bytes).context("kernel programs are unusable")?;
    replace(stable, &bytes)
}

/// Completes a command of cargo's, such as `build`, so that it works on the kernel programs.
///
/// # Errors
/// If there is no target folder.
pub(crate) fn bpf_cargo<'a>(
    bpf: &BpfToolchain,
    command: &'a mut Command,
) -> Result<&'a mut Command> {
    command
        .current_dir(workspace::root())
        .args([
            "--release",
            "--package",
            "proxy-ebpf",
            "--target",
            BPF_TARGET,
        ])
        .arg("--target-dir")
        .arg(bpf_target_dir()?)
        .env("RUSTC", bpf.compiler.rustc())
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&bpf.linker));
    Ok(match bpf.compiler {
        Compiler::Nightly(_) => command.args(["-Z", "build-std=core"]),
        // aya-ebpf needs an unstable feature for inline assembly.
        Compiler::Debian => command.env("RUSTC_BOOTSTRAP", "1"),
    })
}

/// A folder of its own: two compilers in one would undo each other's work.
fn bpf_target_dir() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("bpf"))
}

/// How the programs are compiled and linked, with the linker in full: another may be first on PATH.
///
/// - Full debug information and `--btf`: types of maps and functions for the kernel.
/// - `target-cpu=v3`: 32-bit arithmetic and jumps (Linux 5.1).
/// - `--disable-expand-memcpy-in-order`: copies and comparisons of structures are inline. Without it
///   they are calls of byte-by-byte loops, which cost a packet 20 ns and the verifier three times
///   the work.
fn rustflags(linker: &Path) -> OsString {
    let flags = [
        "-Cdebuginfo=2",
        "-Ctarget-cpu=v3",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Clinker=",
    ];
    let mut flags = OsString::from(flags.join("\x1f"));
    flags.push(linker);
    flags
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: can't be read", path.display()))
}

/// Replaces the file in one step, if it changes: its time of change makes cargo rebuild.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(OsStr::new(".new"));
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("{}: can't be written", path.display()))
}
