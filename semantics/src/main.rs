//! The command `semantics`; `cargo xtask semantics` builds what it needs, and calls it.

use std::process::ExitCode;

fn main() -> ExitCode {
    semantics::cli::main()
}
