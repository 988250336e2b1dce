//! The `beeline` command.

fn main() -> std::process::ExitCode {
    beeline::cli::main()
}
