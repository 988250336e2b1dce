//! Which files there are, and which of them have changed.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::manifest::{self, Wanted};
use super::merge::{Change, subject};
use super::watch::Look;
use super::{FileError, reason};
use crate::clock::wall;
use crate::source::parse::Strings;

/// A file modified more recently may be modified again without a change of its times: clocks of
/// file systems tick slowly. Without news from the kernel, a writer may also be amid its work.
const SETTLED: Duration = Duration::from_secs(1);

/// A folder or file that was named to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) is_folder: bool,
}

impl Root {
    /// All of `paths`, which must be there and readable.
    pub(super) fn all(paths: &[PathBuf]) -> Result<Vec<Self>, FileError> {
        if paths.is_empty() {
            return Err(FileError::NoPaths);
        }
        paths.iter().map(|path| Self::new(path)).collect()
    }

    fn new(path: &Path) -> Result<Self, FileError> {
        // Without the slash at the end that would hide the name.
        let path: PathBuf = path.components().collect();
        let kind = if is_manifest(&path) { "file" } else { "folder" };
        let unreadable = |kind| {
            let path = path.clone();
            move |error| FileError::Unreadable { kind, path, error }
        };
        let is_folder = fs::metadata(&path).map_err(unreadable(kind))?.is_dir();
        if is_folder {
            fs::read_dir(&path)
                .map(drop)
                .map_err(unreadable("folder"))?;
        } else {
            fs::File::open(&path)
                .map(drop)
                .map_err(unreadable("file"))?;
        }
        Ok(Self { path, is_folder })
    }

    /// The files of it that should be read now.
    fn list(&self) -> io::Result<BTreeSet<PathBuf>> {
        if !self.is_folder {
            return Ok(BTreeSet::from([self.path.clone()]));
        }
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if is_manifest(&path) {
                files.insert(path);
            }
        }
        Ok(files)
    }

    /// The path that a file of this name has, if it is one to read.
    fn file(&self, name: &OsStr) -> Option<PathBuf> {
        if self.is_folder {
            Some(self.path.join(name)).filter(|path| is_manifest(path))
        } else {
            Some(self.path.clone()).filter(|path| path.file_name() == Some(name))
        }
    }

    fn holds(&self, path: &Path) -> bool {
        if self.is_folder {
            path.parent() == Some(&self.path)
        } else {
            path == self.path
        }
    }
}

/// Whether the name says so: not hidden, and of the right kind.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(OsStr::to_str);
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// What tells without reading it that a file is another or has been written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn is_settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().map(|time| wall().duration_since(time));
    // A time in the future is somebody's clock, not a writer at work.
    !matches!(age, Ok(Ok(age)) if age < SETTLED)
}

/// A file as it was when it was last read.
struct Seen {
    signature: Signature,
    /// Whether an equal signature means an equal content.
    settled: bool,
    /// Of the content, unless it should be read in any case.
    digest: Option<u64>,
}

/// The files below all roots, as they were last seen.
pub(super) struct Files {
    roots: Vec<Root>,
    wanted: Wanted,
    strings: Strings,
    seen: BTreeMap<PathBuf, Seen>,
}

impl Files {
    pub(super) fn new(roots: Vec<Root>, wanted: Wanted) -> Self {
        Self {
            roots,
            wanted,
            strings: Strings::default(),
            seen: BTreeMap::new(),
        }
    }

    /// Reads what has changed where `look` points, one file at a time.
    pub(super) fn look(&mut self, look: &Look) -> impl Iterator<Item = Change> {
        let mut changes = Vec::new();
        let visits = match look {
            Look::Names { written, removed } => {
                let removed = self.paths(removed.difference(written)).into_iter();
                let written = self.paths(written.iter()).into_iter();
                let removed = removed.map(|path| (path, Visit::IfGone));
                removed
                    .chain(written.map(|path| (path, Visit::Always)))
                    .collect()
            }
            Look::Everything => self.everywhere(Visit::IfChanged, &mut changes),
            Look::Poll => self.everywhere(Visit::IfSettled, &mut changes),
        };
        let visits = visits.into_iter();
        changes
            .into_iter()
            .chain(visits.filter_map(|(path, visit)| self.visit(&path, visit)))
    }

    /// Reads files even if they have not changed.
    pub(super) fn read_again(&mut self, paths: BTreeSet<Arc<Path>>) -> Vec<Change> {
        let again = |path: Arc<Path>| {
            self.forget(&path);
            self.visit(&path, Visit::Always)
        };
        paths.into_iter().filter_map(again).collect()
    }

    /// Lets the next look take the file for another one.
    fn forget(&mut self, path: &Path) {
        if let Some(seen) = self.seen.get_mut(path) {
            seen.settled = false;
            seen.digest = None;
        }
    }

    fn paths<'a>(&self, names: impl Iterator<Item = &'a OsString>) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        for name in names {
            paths.extend(self.roots.iter().filter_map(|root| root.file(name)));
        }
        paths
    }

    fn everywhere(&self, visit: Visit, changes: &mut Vec<Change>) -> Vec<(PathBuf, Visit)> {
        let mut paths = BTreeSet::new();
        for root in &self.roots {
            let subject = format!("folder {}", root.path.display());
            match root.list() {
                Ok(listed) => {
                    paths.extend(listed);
                    changes.push(Change::Solved(subject));
                }
                Err(error) => {
                    let message = format!("{}: {}", root.path.display(), reason(&error));
                    changes.push(Change::Trouble { subject, message });
                    // What was in it stays.
                    continue;
                }
            }
            paths.extend(self.seen.keys().filter(|path| root.holds(path)).cloned());
        }
        paths.into_iter().map(|path| (path, visit)).collect()
    }

    fn visit(&mut self, path: &Path, visit: Visit) -> Option<Change> {
        match self.read(path, visit) {
            Ok(Some(content)) => Some(self.parse(path, &content)),
            Ok(None) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.seen.remove(path).map(|_| Change::Removed(path.into()))
            }
            Err(error) => {
                self.forget(path);
                let message = format!("{}: {}", path.display(), reason(&error));
                Some(Change::Trouble {
                    subject: subject(path),
                    message,
                })
            }
        }
    }

    /// The content of a file, if it is another one than last time.
    fn read(&mut self, path: &Path, visit: Visit) -> io::Result<Option<Vec<u8>>> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let signature = Signature::of(&metadata);
        let settled = is_settled(&metadata);
        let known = self.seen.get(path);
        let same = known.is_some_and(|seen| seen.signature == signature);
        let needless = match visit {
            Visit::Always => false,
            Visit::IfGone => true,
            Visit::IfChanged => same && known.is_some_and(|seen| seen.settled),
            Visit::IfSettled => !settled || (same && known.is_some_and(|seen| seen.settled)),
        };
        if needless {
            return Ok(None);
        }
        let content = fs::read(path)?;
        let digest = Some(digest(&content));
        let same = known.is_some_and(|seen| seen.digest == digest);
        self.seen.insert(
            path.to_owned(),
            Seen {
                signature,
                settled,
                digest,
            },
        );
        Ok((!same).then_some(content))
    }

    fn parse(&mut self, path: &Path, content: &[u8]) -> Change {
        match manifest::read(path, content, &self.wanted, &mut self.strings) {
            Ok(definitions) => Change::Read(path.into(), definitions),
            Err(message) => Change::Trouble {
                subject: subject(path),
                message,
            },
        }
    }
}

/// When to read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// In any case.
    Always,
    /// Only to see whether it is there.
    IfGone,
    /// Unless it is surely the same as last time.
    IfChanged,
    /// Likewise, and only if nobody seems to be writing it.
    IfSettled,
}

fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without news from the kernel, a file counts once nobody seems to be writing it.
    #[test]
    fn polling_passes_over_a_file_that_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let wanted = Wanted {
            node: "n1".into(),
            pods: false,
        };
        let mut files = Files::new(Root::all(&[folder.path().into()]).unwrap(), wanted);
        let mut polled = || {
            let changes = files.look(&Look::Poll).map(|change| match change {
                Change::Read(..) => "read",
                Change::Removed(_) => "removed",
                Change::Trouble { .. } => "trouble",
                Change::Solved(_) => "",
            });
            changes.collect::<String>()
        };
        let wrote = |text: &str, age: Duration| {
            fs::write(&path, text).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(wall() - age).unwrap();
        };
        let hour = Duration::from_secs(3600);
        wrote("", Duration::ZERO);
        assert_eq!(polled(), "");
        wrote("", hour);
        assert_eq!(polled(), "read");
        assert_eq!(polled(), "");
        wrote("# the same, but for a comment", hour);
        assert_eq!(polled(), "read");
        wrote("[", hour);
        assert_eq!(polled(), "trouble");
        assert_eq!(polled(), "");
        fs::remove_file(&path).unwrap();
        assert_eq!(polled(), "removed");
    }
}
