//! The cgroup tree, as far as pods are in it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::names;

/// How deep below the place where one looks the cgroup of all pods may be. Nodes that are
/// containers themselves have it deepest.
const DEEPEST: u32 = 10;
/// How many levels there may be above a cgroup namespace, from within which one can't tell.
const MOST_HIDDEN: u32 = 10;
/// The kernel's id of a hierarchy's root.
const ROOT_ID: u64 = 1;

/// The cgroup of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cgroup {
    /// The kernel's id of it.
    pub(super) id: u64,
    /// The levels at which it may be in the whole hierarchy, a bit each. Those of the root's
    /// children is 1.
    pub(super) levels: u32,
}

/// Where to look for pods' cgroups.
pub(super) struct Tree {
    root: PathBuf,
    /// The levels at which the root may be.
    root_levels: RangeInclusive<u32>,
    /// The cgroups of all pods that were found, and how deep below the root they are. More than
    /// one where nodes are containers of this one.
    holders: Vec<(PathBuf, u32)>,
}

impl Tree {
    /// The cgroup at `root` and all below.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let root = fs::canonicalize(root)?;
        Ok(Self {
            root_levels: levels(&root)?,
            root,
            holders: Vec::new(),
        })
    }

    /// Where it begins.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The cgroups of pods by uid. All of the tree is searched for them only if those where pods
    /// have been found lack one that `is_all` asks for.
    pub(super) fn look(
        &mut self,
        has_all: impl Fn(&BTreeMap<String, Cgroup>) -> bool,
    ) -> BTreeMap<String, Cgroup> {
        let found = self.pods();
        if has_all(&found) {
            return found;
        }
        self.holders.clear();
        let root = self.root.clone();
        self.find_holders(&root, 0);
        self.pods()
    }

    fn pods(&self) -> BTreeMap<String, Cgroup> {
        let mut pods = BTreeMap::new();
        for (path, depth) in &self.holders {
            self.collect(path, *depth, true, &mut pods);
        }
        pods
    }

    /// Adds the pods in the folder at `path`, and in those of classes in it.
    fn collect(
        &self,
        path: &Path,
        depth: u32,
        has_classes: bool,
        pods: &mut BTreeMap<String, Cgroup>,
    ) {
        for folder in folders(path) {
            if let Some(uid) = names::pod_uid(&folder.name) {
                let levels = self.levels(depth + 1);
                let _twice = pods.insert(
                    uid,
                    Cgroup {
                        id: folder.id,
                        levels,
                    },
                );
            } else if has_classes && names::is_class(&folder.name) {
                self.collect(&path.join(&folder.name), depth + 1, false, pods);
            }
        }
    }

    fn find_holders(&mut self, path: &Path, depth: u32) {
        for folder in folders(path) {
            let path = path.join(&folder.name);
            if names::is_pods(&folder.name) {
                self.holders.push((path, depth + 1));
            } else if depth + 1 < DEEPEST {
                self.find_holders(&path, depth + 1);
            }
        }
    }

    /// The levels at which a cgroup may be that is `depth` below the root.
    fn levels(&self, depth: u32) -> u32 {
        let (first, last) = (self.root_levels.start(), self.root_levels.end());
        let bits = (first + depth..=last + depth).filter(|level| *level < u32::BITS);
        bits.fold(0, |levels, level| levels | 1 << level)
    }
}

struct Folder {
    name: String,
    id: u64,
}

/// The folders in a folder; none if it has gone.
fn folders(path: &Path) -> Vec<Folder> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let folder = |entry: fs::DirEntry| Folder {
        name: entry.file_name().to_string_lossy().into_owned(),
        id: entry.ino(),
    };
    folders.map(folder).collect()
}

/// The levels at which the cgroup at `path` may be in its hierarchy. It is one level if the whole
/// hierarchy can be seen; of what is mounted of it in a cgroup namespace, the upper part can't.
fn levels(path: &Path) -> io::Result<RangeInclusive<u32>> {
    let metadata = fs::metadata(path)?;
    let (mut top, mut depth) = (metadata.ino(), 0);
    for ancestor in path.ancestors().skip(1) {
        let above = fs::metadata(ancestor)?;
        if above.dev() != metadata.dev() {
            break;
        }
        (top, depth) = (above.ino(), depth + 1);
    }
    Ok(if top == ROOT_ID {
        depth..=depth
    } else {
        depth + 1..=depth + MOST_HIDDEN
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any folder will do: they have ids and depths, too.
    fn tree(paths: &[&str]) -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let tree = Tree {
            root: folder.path().to_owned(),
            root_levels: 0..=0,
            holders: Vec::new(),
        };
        (folder, tree)
    }

    fn found(folder: &tempfile::TempDir, pods: &BTreeMap<String, Cgroup>) -> Vec<String> {
        let line = |(uid, cgroup): (&String, &Cgroup)| {
            let mut all = walk(folder.path());
            let path = all.find(|(id, _)| *id == cgroup.id).unwrap().1;
            let path = path.strip_prefix(folder.path()).unwrap().to_owned();
            format!("{uid} {:b} {}", cgroup.levels, path.display())
        };
        pods.iter().map(line).collect()
    }

    fn walk(path: &Path) -> Box<dyn Iterator<Item = (u64, PathBuf)>> {
        let path = path.to_owned();
        Box::new(folders(&path).into_iter().flat_map(move |folder| {
            let inner = path.join(&folder.name);
            std::iter::once((folder.id, inner.clone())).chain(walk(&inner))
        }))
    }

    #[test]
    fn pods_are_found_wherever_the_kubelet_puts_them() {
        let (folder, mut tree) = tree(&[
            "kubepods/pod1/container/kubepods/pod9",
            "kubepods/burstable/pod2",
            "system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice/\
             kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod3_4.slice",
            "podman/pod7",
        ]);
        assert_eq!(
            found(&folder, &tree.look(|_| false)),
            [
                "1 100 kubepods/pod1",
                "2 1000 kubepods/burstable/pod2",
                "3-4 1000000 system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod3_4.slice",
            ]
        );
    }

    #[test]
    fn all_is_searched_only_if_one_is_lacking() {
        let (folder, mut tree) = tree(&["kubepods/pod1"]);
        let has = |uid: &'static str| move |pods: &BTreeMap<_, _>| pods.contains_key(uid);
        assert_eq!(tree.look(has("1")).len(), 1);
        fs::create_dir_all(folder.path().join("kubepods/pod2")).unwrap();
        fs::create_dir_all(folder.path().join("other/kubepods/pod3")).unwrap();
        assert_eq!(tree.look(has("2")).len(), 2);
        assert_eq!(tree.look(has("3")).len(), 3);
        fs::remove_dir_all(folder.path().join("kubepods")).unwrap();
        assert_eq!(Vec::from_iter(tree.look(|_| true).into_keys()), ["3"]);
    }

    #[test]
    fn levels_that_cant_be_told_are_all_possible() {
        let tree = Tree {
            root: PathBuf::new(),
            root_levels: 2..=4,
            holders: Vec::new(),
        };
        assert_eq!(tree.levels(1), 0b11_1000);
        assert_eq!(tree.levels(28), 0b1100_0000 << 24);
    }

    #[test]
    fn the_top_of_the_hierarchy_is_told_by_its_id() {
        // procfs numbers its root so, as cgroup2 does.
        assert_eq!(levels(Path::new("/proc")).unwrap(), 0..=0);
        assert_eq!(levels(Path::new("/proc/sys/net")).unwrap(), 2..=2);
        let folder = tempfile::tempdir().unwrap();
        let hidden = levels(folder.path()).unwrap();
        assert_eq!(hidden.end() - hidden.start() + 1, MOST_HIDDEN);
    }
}
