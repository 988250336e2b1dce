//! The network namespaces of this machine.
//!
//! Nothing is remembered of them: a handle that stays open would keep one alive, and its number
//! may be given to another once it is gone.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::netlink;
use crate::loader::netns_of;

/// Where container runtimes and `ip netns` keep names of network namespaces.
const NAMES: [&str; 2] = ["run/netns", "run/docker/netns"];

/// The namespace that the calling thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that the calling thread is in at the moment.
pub(super) struct Namespace {
    /// Its cookie; `None`: the kernel does not tell.
    pub(super) cookie: Option<u64>,
    /// Whether it is the one that the walk began in.
    pub(super) is_own: bool,
    /// A socket in it for questions about devices and addresses.
    pub(super) route: Socket,
}

/// Which file a namespace is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.st_dev(),
            inode: metadata.st_ino(),
        }
    }
}

/// A handle of the caller's network namespace.
///
/// # Errors
/// If there is no `/proc`.
pub(super) fn own() -> io::Result<File> {
    File::open(OWN)
}

/// Calls `work` once in every network namespace that can be found, on a thread of its own, until
/// it breaks. `proc` is where the `proc` of the machine is mounted.
///
/// Namespaces that go meanwhile are passed over, as are those that cannot be entered.
///
/// # Errors
/// If not even the caller's own namespace can be told.
pub(super) fn each(
    proc: &Path,
    work: impl FnMut(&Namespace) -> ControlFlow<()> + Send,
) -> io::Result<()> {
    let own = Id::of(&std::fs::metadata(OWN)?);
    let paths = paths(proc);
    std::thread::scope(|scope| {
        // Whoever enters another namespace stays there: this thread ends with its work.
        let walk = scope.spawn(move || walk(own, &paths, work));
        walk.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    Ok(())
}

fn walk(own: Id, paths: &[PathBuf], mut work: impl FnMut(&Namespace) -> ControlFlow<()>) {
    let mut seen = BTreeSet::new();
    for path in paths {
        // Most processes share a namespace with others, which is told without opening it.
        let is_new = std::fs::metadata(path).is_ok_and(|it| !seen.contains(&Id::of(&it)));
        if !is_new {
            continue;
        }
        match enter(path, own, &mut seen) {
            Ok(Some(namespace)) => {
                if work(&namespace).is_break() {
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!("cannot enter {}: {error}", path.display()),
        }
    }
}

/// Moves the calling thread there; `None` if the file has become another one that was seen.
fn enter(path: &Path, own: Id, seen: &mut BTreeSet<Id>) -> io::Result<Option<Namespace>> {
    let file = File::open(path)?;
    let id = Id::of(&file.metadata()?);
    if !seen.insert(id) {
        return Ok(None);
    }
    setns(&file, CloneFlags::CLONE_NEWNET)?;
    let route = netlink::open(NETLINK_ROUTE)?;
    Ok(Some(Namespace {
        cookie: netns_of(&route)?,
        is_own: id == own,
        route,
    }))
}

/// Files that may be network namespaces, many of them the same.
fn paths(proc: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for pid in super::holder::pids(proc) {
        paths.push(proc.join(format!("{pid}/ns/net")));
    }
    // In a container the names are those that the machine's first process sees.
    for root in [PathBuf::from("/"), proc.join("1/root")] {
        for names in NAMES {
            let Ok(entries) = std::fs::read_dir(root.join(names)) else {
                continue;
            };
            paths.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    paths
}
