//! Beeline's automation: `cargo xtask --help`.

mod bpf_linker;
mod bpf_object;
mod build;
mod debian;
mod process;
mod setup;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Beeline's automation: each command does the set-up that it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
