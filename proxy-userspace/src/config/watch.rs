//! Notices that a configuration file has another content.
//!
//! The folder is watched, not the file: a mounted ConfigMap changes by a link that is renamed. News
//! can be missed, so the content is looked at now and then, too.

use std::path::Path;
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

/// Looks after files.
pub struct Watch {
    files: Vec<File>,
    news: mpsc::Receiver<()>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Starts to.
    pub fn start(files: &[File]) -> Self {
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
        for file in files {
            let folder = file.path.parent().filter(|it| !it.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let watched = watcher.as_mut();
            let watched = watched.map(|it| it.watch(folder, RecursiveMode::NonRecursive));
            if let Some(Err(error)) = watched {
                tracing::warn!(folder = %folder.display(), %error, "not watched");
            }
        }
        Self {
            files: files.to_vec(),
            news,
            _watcher: watcher,
        }
    }

    /// Waits until a file has another content, and says which. One that is gone or cannot be read
    /// has not: whoever writes it has not finished.
    pub async fn changed(&mut self) -> File {
        loop {
            if let Ok(Some(())) = timeout(POLL, self.news.recv()).await {
                sleep(DEBOUNCE).await;
            } else if self.news.is_closed() {
                sleep(POLL).await;
            }
            if let Some(file) = self.look() {
                return file;
            }
        }
    }

    fn look(&mut self) -> Option<File> {
        self.files.iter_mut().find_map(|file| {
            let now = File::read(&file.path).ok().filter(|now| now != file)?;
            *file = now.clone();
            Some(now)
        })
    }
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
