//! Tells the library where the compiled kernel programs are, as `env!("BEELINE_BPF_OBJECT")`.

use std::env;
use std::path::{Path, PathBuf};

const VARIABLE: &str = "BEELINE_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    match object() {
        Some(object) if object.is_file() => {
            println!("cargo::rerun-if-changed={}", object.display());
            println!("cargo::rustc-env={VARIABLE}={}", object.display());
        }
        Some(object) => println!(
            "cargo::error={VARIABLE}: {} is no file: run `cargo xtask build`",
            object.display()
        ),
        None => println!(
            "cargo::error=the kernel programs are not built yet: run `cargo xtask build` once"
        ),
    }
}

/// The file that the variable names, else what `cargo xtask build` leaves in the target folder.
fn object() -> Option<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE) {
        return Some(PathBuf::from(named));
    }
    // With `--target` cargo's output is one folder deeper, so no fixed number of steps will do.
    let out = env::var_os("OUT_DIR")?;
    Path::new(&out)
        .ancestors()
        .map(|folder| folder.join("bpf/beeline.bpf.o"))
        .find(|object| object.is_file())
}
