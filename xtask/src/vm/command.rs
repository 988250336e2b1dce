//! Running other programs, and the lock files that keep two invocations apart.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program with our own standard error and without its standard output.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("{}: not started", name(command)))?;
    if !status.success() {
        bail!("{}: {status}", name(command));
    }
    Ok(())
}

/// Runs a program and returns what it wrote to standard output.
pub(super) fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", name(command), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program whose failure is an answer too.
pub(super) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{}: not started", name(command)))
}

/// Takes the lock of a folder, creating both, and says so when it has to wait.
pub(super) fn lock(folder: &Path) -> Result<File> {
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

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
