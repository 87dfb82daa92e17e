//! What is made of files and made again when they change: certificates, keys.
//!
//! The files are looked at from time to time. inotify lost: a secret that Kubernetes mounts changes by a
//! link two directories up, and network file systems tell of nothing. What cannot be used is a warning, and
//! the old stays.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::error::FileError;

type Load<T> = Box<dyn Fn() -> Result<T, FileError> + Send + Sync>;

/// A `T` made of files.
pub(crate) struct Reloaded<T> {
    current: RwLock<Arc<T>>,
    load: Load<T>,
    files: Vec<PathBuf>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq)]
struct Version {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Loads it for the first time.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        Ok(Self {
            current: RwLock::new(Arc::new(load()?)),
            load: Box::new(load),
            files,
        })
    }

    pub(crate) fn current(&self) -> Arc<T> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Looks at the files every `interval`, until it is dropped.
    pub(crate) async fn watch(self: Arc<Self>, interval: Duration) {
        let mut seen = None;
        loop {
            let watched = Arc::clone(&self);
            // A file system may hang.
            let looked = tokio::task::spawn_blocking(move || watched.look(seen)).await;
            let Ok(now) = looked else { return };
            seen = Some(now);
            tokio::time::sleep(interval).await;
        }
    }

    fn look(&self, seen: Option<Vec<Option<Version>>>) -> Vec<Option<Version>> {
        let now: Vec<_> = self.files.iter().map(Version::of).collect();
        // Nothing was seen before the first look, and something may have changed since the first load.
        if seen.is_some_and(|seen| seen == now) {
            return now;
        }
        match (self.load)() {
            Ok(loaded) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                tracing::debug!(files = ?self.files, "loaded");
            }
            Err(error) => {
                tracing::warn!(%error, "a changed file cannot be used, the old one stays");
            }
        }
        now
    }
}

impl Version {
    fn of(path: &PathBuf) -> Option<Self> {
        let version = |metadata: Metadata| Self {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            inode: metadata.ino(),
        };
        std::fs::metadata(path).ok().map(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_leaves_the_old_until_the_file_changes_again() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("number");
        std::fs::write(&path, "1").expect("it can be written");
        let file = path.clone();
        let load = move || {
            let text = std::fs::read_to_string(&file).map_err(|e| FileError::new(&file, e))?;
            text.parse::<u32>().map_err(|e| FileError::new(&file, e))
        };
        let number = Reloaded::new(vec![path.clone()], load).expect("a number");
        let mut seen = None;
        for (text, expect) in [("1", 1), ("22", 22), ("none", 22), ("333", 333)] {
            std::fs::write(&path, text).expect("it can be written");
            seen = Some(number.look(seen));
            assert_eq!(*number.current(), expect, "{text}");
        }
    }
}
