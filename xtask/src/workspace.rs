//! Where things are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the workspace's `Cargo.toml`.
///
/// Cargo says at run time where the package is: a tree that was moved along with its target
/// folder keeps a binary that remembers the old place.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package)
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default()
}

/// The folder in which cargo put this program: `target`, or what `CARGO_TARGET_DIR` or cargo's
/// configuration says.
///
/// # Errors
/// If the program was started from outside a target folder.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("own path is unknown")?;
    let target = program
        .ancestors()
        .nth(2)
        .context("program is in no target folder")?;
    Ok(target.to_path_buf())
}

/// Beeline's folder in the user's cache: for what is too dear to go with a target folder.
///
/// # Errors
/// If there is no such place.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|cache| cache.is_absolute())
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place for a cache")?;
    Ok(cache.join("beeline"))
}

/// The kernel programs as `cargo xtask build` leaves them, where the library looks for them.
///
/// # Errors
/// As [`target_dir`].
pub(crate) fn bpf_object() -> Result<PathBuf> {
    Ok(target_dir()?.join("bpf/beeline.bpf.o"))
}
