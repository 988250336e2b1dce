//! Control groups of nodes and pods.
//!
//! ```text
//!   <group of this process> ── beeline-<pid>-<number> ┬ node ── kubepods ┬ pod<uid>
//!                                                     └ remote …         └ pod<uid>
//! ```
//!
//! They are "threaded" groups of the unified hierarchy (cgroup v2), so that single threads can be
//! members. A socket belongs to the group of the thread that makes it, a process to that of the
//! thread that starts it.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::gettid;

use super::traces::Id;

/// Where kubelet keeps the groups of pods, below the node's.
const PODS: &str = "kubepods";
/// How long a group may take to become empty.
const PATIENCE: Duration = Duration::from_secs(2);

/// A control group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Cgroup {
    folder: PathBuf,
    /// Its name in the hierarchy, as `/proc/<process>/cgroup` has it.
    path: PathBuf,
}

impl Cgroup {
    /// The group of this process: its threads are there unless they have joined another.
    ///
    /// # Errors
    /// The kernel has no cgroup v2, or it cannot be mounted.
    pub(super) fn own(id: &Id) -> Result<Self> {
        let path = group_in(&read("/proc/self/cgroup")?)?;
        let folder = match folder_in(&read("/proc/self/mountinfo")?, &path) {
            Some(folder) => folder,
            None => mount_privately(id)?.join(path.strip_prefix("/").unwrap_or(&path)),
        };
        Ok(Self { folder, path })
    }

    /// Makes the group of a testbed, and a link to it in the testbed's folder: by that it is
    /// found when it is removed.
    pub(super) fn testbed(&self, id: &Id) -> Result<Self> {
        let group = self.join(&id.to_string());
        symlink(&group.folder, link(id))
            .with_context(|| format!("link to cgroup {}", group.folder.display()))?;
        group.made()
    }

    /// Makes a group below this one.
    pub(super) fn child(&self, name: &str) -> Result<Self> {
        self.join(name).made()
    }

    /// Makes the group of a pod of the node that this group is.
    pub(super) fn pod(&self, uid: &str) -> Result<Self> {
        let pods = self.join(PODS);
        let pods = if pods.folder.exists() {
            pods
        } else {
            pods.made()?
        };
        pods.child(&format!("pod{uid}"))
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Moves the calling thread into it, unless it is there.
    pub(super) fn enter(&self) -> Result<()> {
        // Moving takes the kernel some milliseconds.
        if group_in(&read("/proc/thread-self/cgroup")?)? == self.path {
            return Ok(());
        }
        std::fs::write(self.folder.join("cgroup.threads"), gettid().to_string())
            .with_context(|| format!("enter cgroup {}", self.folder.display()))
    }

    /// Removes it, if nothing runs in it.
    pub(super) fn remove_if_empty(&self) -> Result<()> {
        match std::fs::remove_dir(&self.folder) {
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                Err(error).with_context(|| format!("remove cgroup {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }

    fn join(&self, name: &str) -> Self {
        Self {
            folder: self.folder.join(name),
            path: self.path.join(name),
        }
    }

    fn made(self) -> Result<Self> {
        std::fs::create_dir(&self.folder)
            .and_then(|()| std::fs::write(self.folder.join("cgroup.type"), "threaded"))
            .with_context(|| format!("make cgroup {}", self.folder.display()))?;
        Ok(self)
    }
}

/// Removes a testbed's groups, and its mount if it has one.
pub(super) fn remove(id: &Id) -> io::Result<()> {
    match std::fs::read_link(link(id)) {
        Ok(group) => {
            let above = group.parent().unwrap_or(&group);
            remove_tree(&group, above, Instant::now() + PATIENCE)?;
            std::fs::remove_file(link(id))?;
        }
        // It was not made yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mounted = private_mount(id);
    if mounted.exists() {
        match umount2(&mounted, MntFlags::MNT_DETACH) {
            // It was not mounted yet.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
        std::fs::remove_dir(&mounted)?;
    }
    Ok(())
}

fn remove_tree(group: &Path, above: &Path, deadline: Instant) -> io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path(), above, deadline)?;
        }
    }
    loop {
        match std::fs::remove_dir(group) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                evacuate(group, above)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

/// Moves threads that outlive their testbed.
fn evacuate(group: &Path, above: &Path) -> io::Result<()> {
    for thread in std::fs::read_to_string(group.join("cgroup.threads"))?.lines() {
        match std::fs::write(above.join("cgroup.threads"), thread) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

fn link(id: &Id) -> PathBuf {
    id.folder().join("cgroup")
}

fn private_mount(id: &Id) -> PathBuf {
    id.folder().join("cgroup2")
}

/// Mounts the hierarchy for one testbed. Only to be done where it is not mounted: the options of
/// a second mount would become those of the first.
fn mount_privately(id: &Id) -> Result<PathBuf> {
    let at = private_mount(id);
    std::fs::create_dir_all(&at).with_context(|| format!("create folder {}", at.display()))?;
    let kind = Some("cgroup2");
    mount(kind, &at, kind, MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount cgroup2 at {}", at.display()))?;
    Ok(at)
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {file}"))
}

/// The group in the unified hierarchy, of what `/proc/<process>/cgroup` says.
fn group_in(groups: &str) -> Result<PathBuf> {
    let mut lines = groups.lines();
    let group = lines.find_map(|line| line.strip_prefix("0::"));
    group
        .map(PathBuf::from)
        .context("this kernel has no cgroup v2")
}

/// The folder of a group, in the first mount of the unified hierarchy that has it and can be
/// written to; of what `/proc/<process>/mountinfo` says.
fn folder_in(mounts: &str, group: &Path) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, at, options) = (fields.next()?, fields.next()?, fields.next()?);
        if options.split(',').any(|option| option == "ro") {
            return None;
        }
        let below = group.strip_prefix(root).ok()?;
        Some(Path::new(at).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_mount_is_found_among_others() {
        let folder = folder_in(HYBRID, Path::new("/a/b")).unwrap();
        assert_eq!(folder, Path::new("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(group_in("1:cpu:/x\n0::/a/b\n").unwrap(), Path::new("/a/b"));
    }

    #[test]
    fn what_shows_another_part_or_is_read_only_is_passed_over() {
        let mounts = "\
1 0 0:38 / /ro ro,relatime - cgroup2 cgroup2 rw
2 0 0:38 /other /other rw,relatime - cgroup2 cgroup2 rw
3 0 0:38 /slice /slice rw,relatime - cgroup2 cgroup2 rw
";
        let folder = folder_in(mounts, Path::new("/slice/one")).unwrap();
        assert_eq!(folder, Path::new("/slice/one"));
        assert_eq!(folder_in(mounts, Path::new("/third")), None);
    }
}
