//! What the programs in the kernel cost, as the kernel itself counts it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};

/// Keeps the kernel counting, which itself costs each call of each program some 20 to 40 ns.
pub(super) struct Counting {
    _enabled: OwnedFd,
}

impl Counting {
    /// Starts it.
    ///
    /// # Errors
    /// The kernel cannot (before Linux 5.8), or root's privileges are missing.
    pub(super) fn start() -> Result<Self> {
        let enabled = enable_stats(Stats::RunTime).context("have the kernel time programs")?;
        Ok(Self { _enabled: enabled })
    }
}

/// The pinned programs of one daemon.
pub(super) struct Programs {
    pins: BTreeMap<String, PathBuf>,
}

/// Calls of one program.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(super) struct Calls {
    /// How often it was called.
    pub(super) count: u64,
    /// How long it ran altogether, in nanoseconds.
    pub(super) nanoseconds: u64,
}

impl Programs {
    /// Those that are pinned in a bpffs.
    pub(super) fn pinned_at(bpffs: &Path) -> Result<Self> {
        let mut pins = BTreeMap::new();
        for layout in folders(&bpffs.join("beeline"))? {
            for digest in folders(&layout.join("programs"))? {
                for program in entries(&digest)? {
                    if let Some(name) = program.file_name().and_then(|name| name.to_str()) {
                        pins.insert(name.to_owned(), program.clone());
                    }
                }
            }
        }
        Ok(Self { pins })
    }

    /// The calls while `work` was being done, of all programs that were called.
    ///
    /// # Errors
    /// Those of `work`, or a pin cannot be read.
    pub(super) fn calls_during<T>(
        &self,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, BTreeMap<String, Calls>)> {
        let before = self.read()?;
        let done = work()?;
        let mut calls = self.read()?;
        for (name, calls) in &mut calls {
            let before = before.get(name).copied().unwrap_or_default();
            calls.count -= before.count;
            calls.nanoseconds -= before.nanoseconds;
        }
        calls.retain(|_, calls| calls.count > 0);
        Ok((done, calls))
    }

    fn read(&self) -> Result<BTreeMap<String, Calls>> {
        self.pins
            .iter()
            .map(|(name, pin)| {
                let info = ProgramInfo::from_pin(pin).with_context(|| format!("program {name}"))?;
                let calls = Calls {
                    count: info.run_count(),
                    nanoseconds: info.run_time().as_nanos() as u64,
                };
                Ok((name.clone(), calls))
            })
            .collect()
    }
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = entries(folder)?;
    all.retain(|path| path.is_dir());
    Ok(all)
}

/// What is in a folder; nothing if there is no such folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("read folder {}", folder.display());
    if !folder.exists() {
        return Ok(Vec::new());
    }
    fs::read_dir(folder)
        .with_context(unreadable)?
        .map(|entry| Ok(entry.with_context(unreadable)?.path()))
        .collect()
}
