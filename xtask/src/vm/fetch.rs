//! Debian packages of other suites, unpacked into a cache of our own.
//!
//! apt runs on private lists and private state throughout: the system's sources, lists and
//! installed packages neither change nor matter.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::qemu::Qemu;
use super::sources::Archive;
use super::{Kernel, lock, only_entry};
use crate::{process, workspace};

const QEMU_SUITE: &str = "bookworm-backports";
const QEMU_PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// A stock kernel, unpacked.
#[derive(Debug)]
pub(super) struct KernelFiles {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// `lib/modules/RELEASE`, with `modules.dep`.
    pub(super) modules: PathBuf,
    /// What `uname -r` says inside.
    pub(super) release: String,
    version: String,
}

impl KernelFiles {
    fn of_tree(tree: &Path) -> Result<Self> {
        let modules = only_entry(&tree.join("lib/modules"))?;
        let release = file_name(&modules);
        let image = tree.join("boot").join(format!("vmlinuz-{release}"));
        Ok(Self {
            image,
            modules,
            release,
            version: file_name(tree),
        })
    }
}

impl fmt::Display for KernelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.release, self.version)
    }
}

/// The folder of unpacked packages, one version of each kept; locked while open.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens `vm` in Beeline's cache folder.
    pub(super) fn open() -> Result<Self> {
        let folder = workspace::cache_dir()?.join("vm");
        let lock = lock::take(&folder)?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// The newest kernel of a series, or the cached one.
    pub(super) fn kernel(&self, kernel: Kernel, refresh: bool) -> Result<KernelFiles> {
        let home = self.folder.join(format!("kernel-{kernel}"));
        let tree = match cached(&home) {
            Some(tree) if !refresh => tree,
            _ => self.fetch_kernel(kernel, &home)?,
        };
        let files = KernelFiles::of_tree(&tree)?;
        eprintln!("vm: kernel {files}");
        Ok(files)
    }

    fn fetch_kernel(&self, kernel: Kernel, home: &Path) -> Result<PathBuf> {
        let suite = self.suite(kernel.suite())?;
        let latest = suite.show("linux-image-cloud-amd64")?;
        let package = first_dependency(&latest).context("linux-image-cloud-amd64: no Depends")?;
        if !package.starts_with(&format!("linux-image-{kernel}.")) {
            bail!(
                "suite {}: carries {package}, no longer {kernel}",
                kernel.suite()
            );
        }
        suite.unpack(home, &[&package], depmod)
    }

    /// The system's QEMU where it is good enough, else one unpacked beside it.
    pub(super) fn qemu(&self, refresh: bool) -> Result<Qemu> {
        let qemu = match Qemu::of_system() {
            Some(qemu) => qemu,
            None => Qemu::of_tree(&self.qemu_tree(refresh)?)?,
        };
        eprintln!("vm: {qemu}");
        Ok(qemu)
    }

    fn qemu_tree(&self, refresh: bool) -> Result<PathBuf> {
        let home = self.folder.join("qemu");
        match cached(&home) {
            Some(tree) if !refresh => Ok(tree),
            _ => self
                .suite(QEMU_SUITE)?
                .unpack(&home, &QEMU_PACKAGES, |_| Ok(())),
        }
    }

    fn suite(&self, name: &'static str) -> Result<Suite> {
        let suite = Suite {
            name,
            folder: self.folder.join("apt").join(name),
        };
        suite.update(&Archive::of_system()?)?;
        Ok(suite)
    }
}

/// One suite of the archive with apt lists of its own, so that no other suite's versions win.
struct Suite {
    name: &'static str,
    folder: PathBuf,
}

impl Suite {
    fn update(&self, archive: &Archive) -> Result<()> {
        for part in ["lists/partial", "cache/archives/partial"] {
            create_folder(&self.folder.join(part))?;
        }
        fs::write(
            self.folder.join("sources.list"),
            archive.list_line(self.name),
        )?;
        eprintln!("vm: apt-get update for {} (private lists)", self.name);
        process::run(self.apt("apt-get").args(["update", "-qq"]))
    }

    fn show(&self, package: &str) -> Result<String> {
        process::output(
            self.apt("apt-cache")
                .args(["show", "--no-all-versions", package]),
        )
    }

    /// Unpacks packages to `home/VERSION` and removes other versions; the first names the version.
    ///
    /// `finish` completes the tree before it becomes visible.
    fn unpack(
        &self,
        home: &Path,
        packages: &[&str],
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let version = field(&self.show(packages[0])?, "Version")
            .with_context(|| format!("package {}: no Version", packages[0]))?
            .to_owned();
        let tree = home.join(&version);
        if tree.is_dir() {
            return Ok(tree);
        }
        eprintln!(
            "vm: fetching {} {version} from {}",
            packages.join(" "),
            self.name
        );
        let partial = home.join(format!("{version}{PARTIAL}"));
        remove_folder(&partial)?;
        self.download(packages, &partial)?;
        finish(&partial)?;
        for old in versions(home) {
            remove_folder(&old)?;
        }
        fs::rename(&partial, &tree).with_context(|| format!("{}: not renamed", tree.display()))?;
        Ok(tree)
    }

    fn download(&self, packages: &[&str], tree: &Path) -> Result<()> {
        let folder = self.folder.join("download");
        remove_folder(&folder)?;
        create_folder(&folder)?;
        process::run(
            self.apt("apt-get")
                .args(["download", "-qq"])
                .args(packages)
                .current_dir(&folder),
        )?;
        create_folder(tree)?;
        for package in fs::read_dir(&folder)? {
            process::run(
                Command::new("dpkg")
                    .arg("-x")
                    .arg(package?.path())
                    .arg(tree),
            )?;
        }
        remove_folder(&folder)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::Lists={folder}/lists"),
            // Else installed versions would win over the suite's own.
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={folder}/cache"),
            "Acquire::Languages=none".to_owned(),
            // apt's own user cannot enter the cache of root.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Suffix of a tree that is not complete.
const PARTIAL: &str = ".partial";

/// Writes the `modules.dep` that the packages lack.
fn depmod(tree: &Path) -> Result<()> {
    let release = file_name(&only_entry(&tree.join("lib/modules"))?);
    process::run(
        Command::new("depmod")
            .arg("--basedir")
            .arg(tree)
            .arg(release),
    )
}

fn cached(home: &Path) -> Option<PathBuf> {
    versions(home).into_iter().next()
}

/// The complete trees below `home`.
fn versions(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| !file_name(path).ends_with(PARTIAL))
        .collect()
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("folder {}: not created", path.display()))
}

fn remove_folder(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)
            .with_context(|| format!("folder {}: not removed", path.display()))?;
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The value of a field in the output of `apt-cache show`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The name of the first package that a package depends on.
fn first_dependency(text: &str) -> Option<String> {
    let name = field(text, "Depends")?.split([' ', ',', '|']).next()?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: linux-image-cloud-amd64\n\
        Version: 6.1.176-1\n\
        Pre-Depends: dpkg (>= 1.17.14)\n\
        Depends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1), other\n";

    #[test]
    fn version_and_dependency_of_a_package() {
        assert_eq!(field(SHOWN, "Version"), Some("6.1.176-1"));
        assert_eq!(
            first_dependency(SHOWN).as_deref(),
            Some("linux-image-6.1.0-50-cloud-amd64")
        );
        assert_eq!(first_dependency("Package: x\n"), None);
    }

    #[test]
    fn an_unfinished_tree_is_not_cached() {
        let home = std::env::temp_dir().join(format!("beeline-xtask-{}", std::process::id()));
        fs::create_dir_all(home.join("6.1.176-1.partial")).unwrap();
        assert_eq!(cached(&home), None);
        fs::create_dir_all(home.join("6.1.175-1")).unwrap();
        assert_eq!(cached(&home), Some(home.join("6.1.175-1")));
        fs::remove_dir_all(home).unwrap();
    }
}
