//! Lock files that keep two invocations apart.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

/// Takes the lock of a folder, creating both, and says so when it has to wait.
pub(super) fn take(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder)
        .with_context(|| format!("folder {}: not created", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("{}: not opened", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("vm: waiting for {}", path.display()),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    file.lock()
        .with_context(|| format!("{}: not locked", path.display()))?;
    Ok(file)
}
