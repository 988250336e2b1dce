//! Where the kernel's settings can be written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::statvfs::{FsFlags, statvfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

const PLAIN: &str = "/proc/sys";

/// The folder of this network namespace's settings.
///
/// Container runtimes show `/proc/sys` read-only, also to a container in the node's network. So a
/// proc file system of our own serves in its place, which no path leads to and which ends with the
/// process.
pub(super) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        if !is_read_only(Path::new(PLAIN)) {
            return PathBuf::from(PLAIN);
        }
        match mount_own() {
            Ok(root) => root,
            Err(error) => {
                tracing::debug!("{PLAIN} is read-only, and there is no other: {error}");
                PathBuf::from(PLAIN)
            }
        }
    })
}

fn is_read_only(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

/// Mounts a proc file system nowhere; stays for as long as the process lives.
fn mount_own() -> io::Result<PathBuf> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = File::from(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?);
    let path = PathBuf::from(format!("/proc/self/fd/{}/sys", root.as_raw_fd()));
    static OWN: OnceLock<File> = OnceLock::new();
    let _kept_open = OWN.get_or_init(|| root);
    Ok(path)
}
