//! Notices that a configuration file has another content.
//!
//! The folder is watched, not the file: a mounted ConfigMap changes by a link that is renamed. News
//! can be missed, so the content is looked at now and then, too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::document::File;

/// How often to look without news.
const POLL: Duration = Duration::from_secs(10);
/// How long to wait for more of the same change: who writes a file may do so in pieces.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// A file as it was when it was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    path: PathBuf,
    /// `None`: it was not there.
    content: Option<Vec<u8>>,
}

impl From<File> for Seen {
    fn from(file: File) -> Self {
        Self {
            path: file.path,
            content: Some(file.content),
        }
    }
}

impl Seen {
    /// A file that is not there.
    pub fn missing(path: PathBuf) -> Self {
        Self {
            path,
            content: None,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn now(&self) -> Self {
        let file = File::read(&self.path).map(Self::from);
        file.unwrap_or_else(|_| Self::missing(self.path.clone()))
    }
}

/// Looks after files.
pub struct Watch {
    files: Vec<Seen>,
    news: mpsc::Receiver<()>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Starts to.
    pub fn start(files: Vec<Seen>) -> Self {
        let (sender, news) = mpsc::channel(1);
        let handler = move |event: notify::Result<notify::Event>| {
            // To look is no news, or looking would be followed by looking.
            if event.map_or(true, |event| !is_reading(&event.kind)) {
                // One that waits is enough.
                let _sent = sender.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| tracing::warn!(%error, "no news about configuration files"))
            .ok();
        let folders: BTreeSet<_> = files.iter().map(|file| folder(&file.path)).collect();
        for folder in folders {
            let watched = watcher.as_mut();
            let watched = watched.map(|it| it.watch(folder, RecursiveMode::NonRecursive));
            if let Some(Err(error)) = watched {
                tracing::warn!(folder = %folder.display(), %error, "not watched");
            }
        }
        Self {
            files,
            news,
            _watcher: watcher,
        }
    }

    /// Waits until a file has another content, is there or is gone, and says which.
    pub async fn changed(&mut self) -> PathBuf {
        loop {
            if let Ok(Some(())) = timeout(POLL, self.news.recv()).await {
                sleep(DEBOUNCE).await;
            } else if self.news.is_closed() {
                sleep(POLL).await;
            }
            if let Some(path) = self.look() {
                return path;
            }
        }
    }

    fn look(&mut self) -> Option<PathBuf> {
        let mut files = self.files.iter_mut();
        files.find_map(|file| {
            let now = file.now();
            let is_changed = now != *file;
            *file = now;
            is_changed.then(|| file.path.clone())
        })
    }
}

fn folder(path: &Path) -> &Path {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

const fn is_reading(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => false,
    }
}
