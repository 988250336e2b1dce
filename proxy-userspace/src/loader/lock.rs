//! One daemon at a time.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock that is held is tried again: `beeline status` holds it for a moment.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// A lock that was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another beeline is running: it holds {}", path.display())]
    Held {
        /// The file or folder.
        path: PathBuf,
    },
    /// The file cannot be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A lock on a file or folder; the kernel frees it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the existing file or folder `path`.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Err(LockError::Held {
            path: path.to_owned(),
        })
    }

    /// Whether another process has locked `path`; one that does not exist is free.
    ///
    /// # Errors
    /// If the file is there but cannot be opened.
    pub fn is_held(path: &Path) -> Result<bool, LockError> {
        let failed = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_lets_go() {
        let folder = std::env::temp_dir().join(format!("beeline-lock-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let first = Lock::take(&folder).unwrap();
        assert!(Lock::is_held(&folder).unwrap());
        assert!(matches!(Lock::take(&folder), Err(LockError::Held { .. })));
        drop(first);
        assert!(!Lock::is_held(&folder).unwrap());
        drop(Lock::take(&folder).unwrap());
        std::fs::remove_dir(&folder).unwrap();
    }
}
