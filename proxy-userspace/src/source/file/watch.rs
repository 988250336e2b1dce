//! News from the kernel about files.
//!
//! Only what ends a change counts: a file closed after writing, renamed into place, linked or
//! removed. A file that is still being written is left alone. Besides, everything is looked
//! through at intervals, for what the kernel does not tell: files on network file systems, and
//! those that a link leads to elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::discover::{Root, is_manifest};

/// How long to wait for more of the same change.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How long to wait for a removed file to come back: some editors remove before they write.
const REMOVAL: Duration = Duration::from_millis(50);
/// How often to look through everything beside the kernel's news.
const SLOW_POLL: Duration = Duration::from_secs(10);
/// How often if there is no such news.
const POLL: Duration = Duration::from_secs(1);

/// Where to look for changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// At files of these names.
    Names {
        /// They were written.
        written: BTreeSet<OsString>,
        /// They were removed. If they are there again, whoever writes them has not finished.
        removed: BTreeSet<OsString>,
    },
    /// Everywhere.
    Everything,
    /// Everywhere, but nothing points to a change.
    Poll,
}

/// One piece of news.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Hint {
    Written(OsString),
    Removed(OsString),
    Everything,
}

/// Tells where to look.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// The folders to watch and, of those that are watched, which they were then: a folder may be
    /// replaced by another of the same name.
    folders: BTreeMap<PathBuf, Option<(u64, u64)>>,
    hints: mpsc::UnboundedReceiver<Hint>,
}

impl Watch {
    /// Watches the roots from now on.
    pub(super) fn start(roots: &[Root]) -> Self {
        let (sender, hints) = mpsc::unbounded_channel();
        let watched: BTreeSet<PathBuf> = roots.iter().flat_map(folders).collect();
        let names = Names::of(roots, &watched);
        let handler = move |event: notify::Result<notify::Event>| {
            for hint in names.hints(event) {
                // Nobody listens any more once the source has ended.
                drop(sender.send(hint));
            }
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| warn!(%error, "no news about files, looking every second"))
            .ok();
        let folders = roots
            .iter()
            .flat_map(folders)
            .map(|folder| (folder, None))
            .collect();
        let mut watch = Self {
            watcher,
            folders,
            hints,
        };
        watch.arm();
        watch
    }

    /// Where to look next.
    pub(super) async fn next(&mut self) -> Look {
        if self.watcher.is_none() {
            tokio::time::sleep(POLL).await;
            return Look::Poll;
        }
        let poll = if self.is_armed() { SLOW_POLL } else { POLL };
        let Ok(Some(hint)) = tokio::time::timeout(poll, self.hints.recv()).await else {
            self.arm();
            return Look::Poll;
        };
        let mut news = News::default();
        news.add(hint);
        tokio::time::sleep(DEBOUNCE).await;
        self.drain(&mut news);
        if !news.removed.is_empty() {
            tokio::time::sleep(REMOVAL).await;
            self.drain(&mut news);
        }
        if news.everything {
            self.arm();
            return Look::Everything;
        }
        Look::Names {
            written: news.written,
            removed: news.removed,
        }
    }

    fn drain(&mut self, news: &mut News) {
        while let Ok(hint) = self.hints.try_recv() {
            news.add(hint);
        }
    }

    fn is_armed(&self) -> bool {
        self.watcher.is_some() && self.folders.values().all(Option::is_some)
    }

    /// Watches the folders that are not watched yet, or are others than those watched.
    fn arm(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (folder, watched) in &mut self.folders {
            let now = fs::metadata(folder)
                .ok()
                .map(|folder| (folder.dev(), folder.ino()));
            if *watched == now {
                continue;
            }
            if watched.is_some()
                && let Err(error) = watcher.unwatch(folder)
            {
                debug!(folder = %folder.display(), %error, "was not watched any more");
            }
            *watched = now.filter(|_| {
                watcher
                    .watch(folder, RecursiveMode::NonRecursive)
                    .inspect_err(|error| warn!(folder = %folder.display(), %error, "not watched"))
                    .is_ok()
            });
        }
    }
}

/// The folders in which changes of a root are seen: itself, and the one that its name is in, for
/// it may be replaced as a whole.
fn folders(root: &Root) -> Vec<PathBuf> {
    let around = root
        .path
        .file_name()
        .and_then(|_| root.path.parent())
        .map(|parent| {
            if parent.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                parent.to_owned()
            }
        });
    let itself = root.is_folder.then(|| root.path.clone());
    itself.into_iter().chain(around).collect()
}

/// Hints that came together.
#[derive(Default)]
struct News {
    written: BTreeSet<OsString>,
    removed: BTreeSet<OsString>,
    everything: bool,
}

impl News {
    fn add(&mut self, hint: Hint) {
        match hint {
            Hint::Written(name) => drop(self.written.insert(name)),
            Hint::Removed(name) => drop(self.removed.insert(name)),
            Hint::Everything => self.everything = true,
        }
    }
}

/// The names that news may be about, beside those that look like manifests.
struct Names {
    folders: BTreeSet<OsString>,
    files: BTreeSet<OsString>,
}

impl Names {
    fn of(roots: &[Root], watched: &BTreeSet<PathBuf>) -> Self {
        let name = |path: &PathBuf| path.file_name().map(OsString::from);
        let files = roots.iter().filter(|root| !root.is_folder);
        Self {
            folders: watched.iter().filter_map(name).collect(),
            files: files.filter_map(|root| name(&root.path)).collect(),
        }
    }

    /// What an event says about files that matter.
    fn hints(&self, event: notify::Result<notify::Event>) -> Vec<Hint> {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => return vec![Hint::Everything],
            Err(error) => {
                warn!(%error, "news about files lost");
                return vec![Hint::Everything];
            }
        };
        event
            .paths
            .iter()
            .filter_map(|path| self.hint(&event.kind, path))
            .collect()
    }

    fn hint(&self, kind: &EventKind, path: &Path) -> Option<Hint> {
        let name = path.file_name()?;
        let change = change_of(kind, path)?;
        if is_new_content(name) || self.folders.contains(name) {
            return Some(Hint::Everything);
        }
        if !is_manifest(path) && !self.files.contains(name) {
            return None;
        }
        Some(match change {
            ChangeKind::Written => Hint::Written(name.to_owned()),
            ChangeKind::Removed => Hint::Removed(name.to_owned()),
        })
    }
}

/// Kubernetes replaces the content of a mounted ConfigMap by renaming a link to `..data`.
fn is_new_content(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"..")
}

enum ChangeKind {
    Written,
    Removed,
}

fn change_of(kind: &EventKind, path: &Path) -> Option<ChangeKind> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(ChangeKind::Written),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
            Some(ChangeKind::Removed)
        }
        // A new file is written next, but a new name of an old one or a new folder is all there is.
        EventKind::Create(_) => is_complete(path).then_some(ChangeKind::Written),
        EventKind::Any | EventKind::Access(_) | EventKind::Modify(_) | EventKind::Other => None,
    }
}

fn is_complete(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| !file.is_file() || file.nlink() > 1)
}
