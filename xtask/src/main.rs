//! Beeline's automation; `cargo xtask --help` lists the commands.

use clap::Parser;

mod vm;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Beeline's automation")]
enum Command {
    Vm(vm::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Vm(args) => vm::run(args),
    }
}
