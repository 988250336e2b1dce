//! Beeline's automation: `cargo xtask --help`.

mod bench;
mod bpf_linker;
mod bpf_object;
mod build;
mod cargo_deny;
mod debian;
mod lint;
mod manifests;
mod process;
mod run;
mod semantics;
mod setup;
mod test;
mod tidy;
mod tool;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Beeline's automation: each command does the set-up that it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Bench(bench::Args),
    Lint(lint::Args),
    Manifests(manifests::Args),
    Test(test::Args),
    Semantics(semantics::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Setup(args) => setup::run(&args),
        Command::Build(args) => build::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Manifests(args) => manifests::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Semantics(args) => semantics::run(&args),
        Command::Vm(args) => vm::run(args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
