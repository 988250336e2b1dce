//! Where cgroup v2 file systems are mounted, by the text of `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// The folders at which cgroup v2 file systems are mounted; first those that show most of the
/// tree, and of these in the order in which they were mounted.
pub(super) fn cgroup2(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<_> = mountinfo.lines().filter_map(cgroup2_mount).collect();
    mounts.sort_by_key(|(depth, _)| *depth);
    mounts.into_iter().map(|(_, path)| path).collect()
}

/// How far below the root that this process knows its root is, and where it is mounted.
///
/// The line is `id parent major:minor root mount-point options [tag …] - type source options`.
fn cgroup2_mount(line: &str) -> Option<(i32, PathBuf)> {
    let (place, kind) = line.split_once(" - ")?;
    if kind.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = place.split(' ').skip(3);
    let (root, path) = (fields.next()?, fields.next()?);
    if root.ends_with("//deleted") {
        return None;
    }
    Some((depth(&unescaped(root)), unescaped(path)))
}

/// Folders below `/`; negative above it, where a mount shows more than a cgroup namespace.
fn depth(root: &Path) -> i32 {
    root.components()
        .fold(0, |depth, component| match component {
            Component::Normal(_) => depth + 1,
            Component::ParentDir => depth - 1,
            Component::RootDir | Component::CurDir | Component::Prefix(_) => depth,
        })
}

/// Blanks and the like are written as a backslash and three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(escaped.unwrap_or(*first));
        rest = tail
            .get(if escaped.is_some() { 3 } else { 0 }..)
            .unwrap_or_default();
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        30 22 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
        32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,name=systemd\n";

    fn found(mountinfo: &str) -> Vec<String> {
        let paths = cgroup2(mountinfo);
        paths
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn pure_v2_and_hybrid_trees_are_found() {
        let pure = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n";
        assert_eq!(found(pure), ["/sys/fs/cgroup"]);
        assert_eq!(found(HYBRID), ["/sys/fs/cgroup/unified"]);
        assert_eq!(found(""), [""; 0]);
        assert_eq!(
            found("30 22 0:26 / /sys/fs/cgroup ro - tmpfs cgroup2 ro\n"),
            [""; 0]
        );
    }

    #[test]
    fn what_shows_most_of_the_tree_comes_first() {
        let several = "\
            50 1 0:27 /kubepods/burstable /mnt/pods rw - cgroup2 cgroup2 rw\n\
            51 1 0:27 / /mnt/all rw - cgroup2 cgroup2 rw\n\
            52 1 0:27 /kubepods /mnt/kube rw - cgroup2 cgroup2 rw\n\
            53 1 0:27 /old//deleted /mnt/gone rw - cgroup2 cgroup2 rw\n\
            54 1 0:27 / /mnt/again rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            found(several),
            ["/mnt/all", "/mnt/again", "/mnt/kube", "/mnt/pods"]
        );
    }

    #[test]
    fn in_a_cgroup_namespace_the_hosts_mount_comes_before_the_containers_own() {
        let container = "\
            700 699 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n\
            701 699 0:26 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n\
            702 699 0:26 /../../../system.slice /host/system rw - cgroup2 cgroup rw\n";
        assert_eq!(
            found(container),
            ["/host/cgroup", "/host/system", "/sys/fs/cgroup"]
        );
    }

    #[test]
    fn escaped_characters_are_read() {
        let odd = r"50 1 0:27 / /mnt/a\040b\134c\011d\0 rw - cgroup2 cgroup2 rw";
        assert_eq!(found(odd), ["/mnt/a b\\c\td\\0"]);
    }
}
