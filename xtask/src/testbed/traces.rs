//! What testbeds leave on the machine, and how it goes away again: at the end, on a signal, and
//! when a run that was killed left something behind.
//!
//! Everything a testbed makes has a name that starts with its id, `beeline-<pid>-<number>`:
//! namespaces, control groups, and one folder with the bpffs and all files. So whatever happened, the id is
//! enough to remove it.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;
use super::namespace::{self, FOLDER};

/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that a testbed started.
pub(super) type SharedChild = Arc<Mutex<Child>>;

/// The id of a testbed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Id {
    pid: u32,
    number: u32,
}

impl Id {
    /// An id that no other testbed has.
    fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            pid: std::process::id(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Reads the id that a name starts with.
    fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("beeline-")?.splitn(3, '-');
        let pid = parts.next()?.parse().ok()?;
        let number = parts.next()?.parse().ok()?;
        Some(Self { pid, number })
    }

    /// The folder for everything that is a file or a mount.
    pub(super) fn folder(&self) -> PathBuf {
        std::env::temp_dir().join(self.to_string())
    }

    /// Where the bpffs of node number `node` is mounted.
    pub(super) fn bpffs(&self, node: u8) -> PathBuf {
        self.folder().join(["bpf", "bpf-1"][usize::from(node)])
    }

    /// The full name of a namespace.
    pub(super) fn namespace(&self, name: &str) -> String {
        format!("{self}-{name}")
    }

    fn is_dead(&self) -> bool {
        !Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "beeline-{}-{}", self.pid, self.number)
    }
}

/// The testbeds of this process that are up.
static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());

struct Live {
    id: Id,
    children: Vec<SharedChild>,
}

/// Nothing may be made while a signal takes everything down: hold this while making it.
pub(super) struct Making {
    live: MutexGuard<'static, Vec<Live>>,
}

/// Waits for the right to make things.
pub(super) fn making() -> Making {
    Making {
        live: LIVE.lock().unwrap_or_else(PoisonError::into_inner),
    }
}

impl Making {
    /// Records a testbed, and returns its id.
    pub(super) fn testbed(&mut self) -> Id {
        let id = Id::next();
        self.live.push(Live {
            id: id.clone(),
            children: Vec::new(),
        });
        id
    }

    /// Records a process of a testbed.
    pub(super) fn child(&mut self, id: &Id, child: Child) -> SharedChild {
        let shared = Arc::new(Mutex::new(child));
        if let Some(live) = self.live.iter_mut().find(|live| live.id == *id) {
            live.children.push(Arc::clone(&shared));
        }
        shared
    }
}

/// Takes one testbed down.
pub(super) fn release(id: &Id) {
    // Held to the end: a signal in between must not end the process half-way.
    let mut live = making().live;
    if let Some(at) = live.iter().position(|live| live.id == *id) {
        take_down(&live.remove(at));
    }
}

/// Takes all testbeds of this process down and ends it with exit code `code`. For a signal
/// handler's thread: whatever other threads do, nothing is left behind.
pub fn release_all_and_exit(code: i32) -> ! {
    let live = making().live;
    live.iter().for_each(take_down);
    std::process::exit(code)
}

/// From now on Ctrl-C, SIGTERM and SIGHUP take all testbeds down and end the process; but not
/// if it has a handler of its own (of the `ctrlc` crate).
pub(super) fn release_on_signal() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Also where a shell has them ignored, as it does for what runs in the background.
        match ctrlc::set_handler(|| release_all_and_exit(130)) {
            Ok(()) | Err(ctrlc::Error::MultipleHandlers) => {}
            Err(error) => eprintln!("warning: Ctrl-C will leave namespaces behind: {error}"),
        };
    });
}

/// Removes what testbeds of processes that are no more left behind.
pub(super) fn remove_leftovers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut dead: Vec<Id> = names_in(Path::new(FOLDER))
            .into_iter()
            .chain(names_in(&std::env::temp_dir()))
            .filter_map(|name| Id::of(&name))
            .filter(Id::is_dead)
            .collect();
        dead.dedup();
        for id in dead {
            end_processes_of(&id);
            remove_files_and_namespaces(&id);
        }
    });
}

fn take_down(testbed: &Live) {
    for child in &testbed.children {
        stop(child, Signal::SIGTERM);
    }
    remove_files_and_namespaces(&testbed.id);
}

/// Ends a process with `signal`, and with SIGKILL if that does not help. Returns how it ended.
pub(super) fn stop(child: &SharedChild, signal: Signal) -> Option<std::process::ExitStatus> {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let sent = i32::try_from(child.id()).map(|pid| kill(Pid::from_raw(pid), signal));
    let deadline = Instant::now() + PATIENCE;
    while matches!(sent, Ok(Ok(()))) && Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match child.kill() {
        Ok(()) => child.wait().ok(),
        Err(_) => None,
    }
}

fn remove_files_and_namespaces(id: &Id) {
    if id.folder().exists()
        && let Err(error) = remove_files(id)
    {
        eprintln!("warning: remove {}: {error}", id.folder().display());
    }
    let commands: Vec<String> = namespaces_of(id)
        .into_iter()
        .map(|name| format!("netns delete {name}"))
        .collect();
    if !commands.is_empty()
        && let Err(error) = namespace::ip(None, &commands)
    {
        eprintln!("warning: {error:#}");
    }
}

fn remove_files(id: &Id) -> std::io::Result<()> {
    cgroup::remove(id)?;
    for bpffs in [0, 1].map(|node| id.bpffs(node)) {
        if !bpffs.exists() {
            continue;
        }
        match umount2(&bpffs, MntFlags::MNT_DETACH) {
            // It was not mounted yet.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
        // Fails if it is still mounted: what is in it is not to be removed file by file.
        std::fs::remove_dir(&bpffs)?;
    }
    std::fs::remove_dir_all(id.folder())
}

fn namespaces_of(id: &Id) -> Vec<String> {
    let mut names = names_in(Path::new(FOLDER));
    names.retain(|name| Id::of(name).as_ref() == Some(id));
    names
}

/// Processes of a dead run's namespaces: found by the namespace, since nobody knows their ids.
fn end_processes_of(id: &Id) {
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &Path| {
        std::fs::metadata(path)
            .ok()
            .map(|data| (data.dev(), data.ino()))
    };
    let theirs: Vec<_> = namespaces_of(id)
        .iter()
        .filter_map(|name| inode(&Path::new(FOLDER).join(name)))
        .collect();
    for pid in names_in(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse::<i32>().ok())
    {
        let namespace = inode(&PathBuf::from(format!("/proc/{pid}/ns/net")));
        if namespace.is_some_and(|namespace| theirs.contains(&namespace))
            && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
        {
            eprintln!("warning: end process {pid} of {id}: {error}");
        }
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_names_and_nothing_else_is() {
        let id = Id { pid: 12, number: 3 };
        assert_eq!(Id::of(&id.namespace("client")), Some(id.clone()));
        assert_eq!(Id::of(&id.to_string()), Some(id));
        assert_eq!(Id::of("beeline-web-3-x"), None);
        assert_eq!(Id::of("cni-12-3-client"), None);
    }
}
