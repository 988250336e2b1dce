//! Services from manifest files.
//!
//! Files are YAML (`.yaml`, `.yml`) or JSON (`.json`), with one or several documents or lists.
//! Folders are read without their subfolders, and hidden files are passed over: that is how
//! Kubernetes lays out a mounted ConfigMap, whose real files lie in hidden folders.

mod discover;
mod locate;
mod manifest;
mod merge;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use self::discover::{Files, Root};
use self::manifest::Wanted;
use self::merge::{Manifests, Update};
use self::watch::{Look, Watch};
use crate::model::Event;

/// Yields what manifest files say, and follows their changes.
#[derive(Clone, Debug)]
pub struct FileSource {
    /// Folders and files to read. Of an object that several files define, the first in the order
    /// of their paths counts.
    pub paths: Vec<PathBuf>,
    /// This node's name; Nodes and Pods of others are passed over.
    pub node: Arc<str>,
    /// Whether to tell of this node's Pods.
    pub pods: bool,
}

/// Why manifests can't be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A folder or file is not there, or must not be read.
    #[error("manifests {kind} {}: {}", path.display(), reason(error))]
    Unreadable {
        /// "folder" or "file".
        kind: &'static str,
        /// As it was given.
        path: PathBuf,
        /// What reading it gave.
        error: io::Error,
    },
    /// No folder and no file was named.
    #[error("no manifests folder or file given")]
    NoPaths,
}

impl FileSource {
    /// Sends what the files say, then [`Event::Synced`], then what changes in them, until the
    /// receiver is dropped.
    ///
    /// A file that can't be read or parsed keeps its last good content in force and is reported;
    /// so is a folder that has vanished.
    ///
    /// # Errors
    ///
    /// One of the paths can't be read at the start.
    pub async fn run(self, events: mpsc::Sender<Event>) -> Result<(), FileError> {
        let roots = Root::all(&self.paths)?;
        let mut watch = Watch::start(&roots);
        let files = Files::new(
            roots,
            Wanted {
                node: self.node,
                pods: self.pods,
            },
        );
        let mut reader = Reader {
            files,
            manifests: Manifests::default(),
            has_read: false,
        };
        let mut look = Look::Everything;
        let mut synced = false;
        loop {
            let Some((news, back)) = reader.read(look).await else {
                return Ok(());
            };
            reader = back;
            let pods_known = (!synced && self.pods).then_some(Event::PodsKnown);
            let first = (!synced).then_some(Event::Synced);
            synced = true;
            for event in news.into_iter().chain(pods_known).chain(first) {
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
            look = tokio::select! {
                look = watch.next() => look,
                () = events.closed() => return Ok(()),
            };
        }
    }
}

/// What reads the files and knows what they said.
struct Reader {
    files: Files,
    manifests: Manifests,
    has_read: bool,
}

impl Reader {
    /// The news from where `look` points, and the reader back. `None` if the runtime shuts down.
    async fn read(mut self, look: Look) -> Option<(Vec<Event>, Self)> {
        let task = tokio::task::spawn_blocking(move || (self.news(&look), self));
        match task.await {
            Ok(result) => Some(result),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
        }
    }

    fn news(&mut self, look: &Look) -> Vec<Event> {
        let changes = self.files.look(look);
        let mut update = if self.has_read {
            self.manifests.update(changes.collect())
        } else {
            // Nothing can move between files yet, and all of them at once may be large.
            let mut all = Update::default();
            changes.for_each(|change| all.append(self.manifests.update(vec![change])));
            all
        };
        self.has_read = true;
        let mut events = update.events;
        while !update.wanted.is_empty() {
            update = self.manifests.update(self.files.read_again(update.wanted));
            events.append(&mut update.events);
        }
        events
    }
}

/// The system's words in our style: lower case, without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().to_string() + letters.as_str())
        .unwrap_or_default()
}
