//! Programs of the build's that cargo compiles where they are missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{process, workspace};

/// Such a program: the name of its crate and of itself, and the version that is installed, the
/// oldest that is good enough.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: [u32; 3],
}

impl Tool {
    /// One that `is_good`: from PATH, else from the folder where it is installed.
    pub(crate) fn find(&self, folder: &str, is_good: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .map(|folder| folder.join(self.name))
            .chain(self.installed(folder).ok())
            .find(|program| is_good(program))
    }

    /// Compiles it into a folder among the caches, outside any target folder: emptying one should
    /// not cost this again. `adjust` adds what is special to it.
    ///
    /// # Errors
    /// If the compilation fails, or what comes of it is not good.
    pub(crate) fn install(
        &self,
        folder: &str,
        time: &str,
        adjust: impl FnOnce(&mut Command),
        is_good: impl Fn(&Path) -> bool,
    ) -> Result<PathBuf> {
        let version = self.version();
        println!(
            "setup: cargo installs {} {version} (takes {time})",
            self.name
        );
        let start = Instant::now();
        let cargo = env::var_os("CARGO")
            .map(PathBuf::from)
            .context("CARGO is not set")?;
        let mut command = process::foreign_cargo(&cargo);
        command
            .args(["install", "--quiet", "--locked", "--force", "--root"])
            .arg(workspace::cache_dir()?.join(folder))
            .args(["--no-default-features"])
            .arg(format!("{}@{version}", self.name))
            .current_dir("/")
            // Not rustup's proxy: that obeys the rust-toolchain.toml files of dependencies.
            .env("RUSTC", cargo.with_file_name("rustc"));
        adjust(&mut command);
        process::run(&mut command)?;
        let program = self.installed(folder)?;
        ensure!(
            is_good(&program),
            "{} was built and does not run",
            program.display()
        );
        println!("setup: done in {:.0?}", start.elapsed());
        Ok(program)
    }

    /// Whether the program runs and is new enough.
    pub(crate) fn is_new_enough(&self, program: &Path) -> bool {
        program.is_file()
            && process::output(Command::new(program).arg("--version"))
                .ok()
                .and_then(|text| self.version_of(&text))
                .is_some_and(|version| version >= self.version)
    }

    /// What it says with `--version`.
    pub(crate) fn version_of(&self, text: &str) -> Option<[u32; 3]> {
        let mut parts = text
            .trim()
            .strip_prefix(self.name)?
            .strip_prefix(' ')?
            .splitn(3, '.')
            .map(|part| part.parse().ok());
        Some([parts.next()??, parts.next()??, parts.next()??])
    }

    /// Its version as text.
    pub(crate) fn version(&self) -> String {
        self.version.map(|part| part.to_string()).join(".")
    }

    fn installed(&self, folder: &str) -> Result<PathBuf> {
        Ok(workspace::cache_dir()?
            .join(folder)
            .join("bin")
            .join(self.name))
    }
}
