//! The cgroup whose sockets the socket edge serves: its own and those of all cgroups below.

mod links;
mod mounts;
pub(super) mod syscall;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

pub use self::links::{Attached, Changes, LinkError, attach, attached, detach, detach_connect};

const MOUNTS: &str = "/proc/self/mountinfo";

/// There is no such cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// What `--cgroup-path` names is something else.
    #[error("--cgroup-path {}: no folder of a cgroup v2 file system; `mount -t cgroup2` shows where there is one", path.display())]
    NotCgroup2 {
        /// The folder.
        path: PathBuf,
    },
    /// What `--cgroup-path` names cannot be looked at.
    #[error("--cgroup-path {}: cannot be opened", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mounts cannot be read.
    #[error("cannot read {MOUNTS}")]
    Mounts(#[source] io::Error),
    /// None is mounted, and none can be.
    #[error("no cgroup v2 file system is mounted, and it cannot be mounted at {}; mount one and name it with --cgroup-path", path.display())]
    NoMount {
        /// Where it was tried.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A folder of a cgroup v2 file system.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    folder: File,
    id: u64,
    is_mounted_anew: bool,
}

impl Cgroup {
    /// The one that `--cgroup-path` names.
    ///
    /// # Errors
    /// If it is none.
    pub fn at(path: &Path) -> Result<Self, CgroupError> {
        let unreadable = |source| CgroupError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let folder = File::open(path).map_err(unreadable)?;
        let metadata = folder.metadata().map_err(unreadable)?;
        if !is_cgroup2(path).map_err(unreadable)? || !metadata.is_dir() {
            return Err(CgroupError::NotCgroup2 {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            folder,
            id: metadata.ino(),
            is_mounted_anew: false,
        })
    }

    /// The root of the cgroup v2 file system that is mounted already and shows most of the tree.
    /// If none is, one is mounted in the state folder; it works beside cgroup v1.
    ///
    /// # Errors
    /// If there is none and none can be mounted.
    pub fn find(state_dir: &Path) -> Result<Self, CgroupError> {
        let mounts = std::fs::read_to_string(MOUNTS).map_err(CgroupError::Mounts)?;
        let found = mounts::cgroup2(&mounts)
            .into_iter()
            // Another mount may hide it.
            .find(|path| is_cgroup2(path).unwrap_or(false));
        match found {
            Some(path) => Self::at(&path),
            None => Ok(Self {
                is_mounted_anew: true,
                ..Self::at(&mount_own(state_dir)?)?
            }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's number of it.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is the root of the whole tree, as far as can be seen: the root alone has no
    /// state that could change.
    pub fn is_root(&self) -> bool {
        !self.path.join("cgroup.events").exists()
    }

    /// Whether it was mounted to be found.
    pub const fn is_mounted_anew(&self) -> bool {
        self.is_mounted_anew
    }

    const fn folder(&self) -> &File {
        &self.folder
    }
}

fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Where [`Cgroup::find`] mounts one if there is none.
pub fn own_mount(state_dir: &Path) -> PathBuf {
    state_dir.join("cgroup")
}

fn mount_own(state_dir: &Path) -> Result<PathBuf, CgroupError> {
    let path = own_mount(state_dir);
    let failed = |source| CgroupError::NoMount {
        path: own_mount(state_dir),
        source,
    };
    std::fs::create_dir_all(&path).map_err(failed)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("cgroup2"), &path, Some("cgroup2"), flags, None::<&str>);
    if let Err(error) = mounted {
        drop(std::fs::remove_dir(&path));
        return Err(failed(error.into()));
    }
    tracing::info!(
        "no cgroup v2 file system was mounted: {} is one now",
        path.display()
    );
    Ok(path)
}

/// Unmounts what [`Cgroup::find`] has mounted; tells where, if there was something.
///
/// # Errors
/// If the kernel refuses.
pub fn unmount_own(state_dir: &Path) -> io::Result<Option<PathBuf>> {
    let path = own_mount(state_dir);
    // Detached at once, freed when nobody has it open any more.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) => {}
        // No mount, or not even a folder.
        Err(Errno::EINVAL | Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    std::fs::remove_dir(&path)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cgroup_is_named_with_its_option() {
        for (path, words) in [
            ("/proc", "no folder of a cgroup v2 file system"),
            ("/nowhere/at/all", "cannot be opened"),
        ] {
            let error = Cgroup::at(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(&format!("--cgroup-path {path}")), "{error}");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn nothing_is_unmounted_that_is_not_there() {
        let state_dir = tempfile::tempdir().unwrap();
        assert_eq!(unmount_own(state_dir.path()).unwrap(), None);
    }
}
