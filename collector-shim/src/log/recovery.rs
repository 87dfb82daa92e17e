//! What a start finds in the queue's directory, made ready to be read and added to.
//!
//! Every segment is read once, so that its checksums say what waits. Nothing is ever appended to a
//! segment of an earlier run. What a crash tore at the end of the last one is cut off: it was never
//! acknowledged, unless the disk itself lost it.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::active;
use super::cursor::{self, Cursors};
use super::segment::{Scanner, SegmentName};
use super::state::{Segment, State};
use super::{DIR_MODE, writing};
use crate::queue::{Level, Payload};

const LOCK_FILE: &str = "lock";

/// Why a queue's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueDirError {
    /// Two processes would take each other's records for damage.
    #[error("--queue-dir {}: another shim is using it", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// It cannot be made, read or written.
    #[error("--queue-dir {}: cannot {action}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl QueueDirError {
    /// What becomes of an error of the system when `action` was tried in `dir`.
    pub(super) fn io(
        dir: &Path,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> QueueDirError + use<> {
        let dir = dir.to_owned();
        move |source| QueueDirError::Io {
            dir,
            action,
            source,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) lock: File,
    pub(super) state: State,
    pub(super) next_number: u64,
    /// Waits for one backend or more.
    pub(super) held: Level,
    /// Cut off the end of the last segment.
    pub(super) torn_bytes: u64,
}

/// Locks `dir`, which is made if need be, and reads what is in it.
pub(super) fn recover(dir: &Path, backends: &[String]) -> Result<Recovered, QueueDirError> {
    let failed = |action| QueueDirError::io(dir, action);
    make(dir).map_err(failed("make it"))?;
    let lock = lock(dir)?;
    active::remove_old(dir).map_err(failed("remove a spare segment"))?;
    let names = list(dir).map_err(failed("list it"))?;
    let known = cursor::read(dir).map_err(failed("read its cursors"))?;
    warn_of_gone(dir, &known, backends);
    let next_number = names.last().map_or(0, |last| last.number + 1);
    // Segments are removed in order and only once they are delivered: where the first one begins,
    // all before it has been, and all of it when there is none. A backend that is new gets what is
    // there.
    let newest = || known.values().copied().max().unwrap_or(0);
    let first_seq = names.first().map_or_else(newest, |first| first.base_seq);
    let cursor = |backend| {
        let cursor = known.get(backend).copied();
        cursor.unwrap_or(first_seq).max(first_seq)
    };
    let mut scan = Scan {
        dir,
        cursors: backends.iter().map(cursor).collect(),
        held: vec![Level::default(); backends.len()],
        held_by_any: Level::default(),
        torn_bytes: 0,
    };
    let mut segments = VecDeque::new();
    for (at, name) in names.iter().enumerate() {
        let next = names.get(at + 1);
        segments.extend(
            scan.segment(*name, next)
                .map_err(failed("read a segment"))?,
        );
    }
    let next_seq = segments.back().map_or(0, |last: &Segment| last.end_seq);
    let newest_cursor = scan.cursors.iter().copied().max();
    let next_seq = next_seq.max(newest_cursor.unwrap_or(first_seq));
    Ok(Recovered {
        lock,
        next_number,
        held: scan.held_by_any,
        torn_bytes: scan.torn_bytes,
        state: State::recovered(segments, scan.cursors, next_seq, scan.held),
    })
}

/// What waits for a backend that is no longer named is not kept for it.
fn warn_of_gone(dir: &Path, known: &Cursors, backends: &[String]) {
    for backend in known.keys().filter(|name| !backends.contains(name)) {
        tracing::warn!(
            dir = %dir.display(),
            backend,
            "the queue is no longer for this backend: what waited for it is not sent to it"
        );
    }
}

/// Makes `dir` and what is missing above it, so that a power cut does not take them back.
fn make(dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIR_MODE).create(dir)?;
    for parent in missing.iter().filter_map(|made| made.parent()) {
        let is_here = parent.as_os_str().is_empty();
        File::open(if is_here { Path::new(".") } else { parent })?.sync_all()?;
    }
    Ok(())
}

/// The system gives the lock back whatever way the process ends.
pub(crate) fn lock(dir: &Path) -> Result<File, QueueDirError> {
    let file = writing()
        .create(true)
        .truncate(false)
        .open(lock_path(dir))
        .map_err(QueueDirError::io(dir, "lock it"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(QueueDirError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(QueueDirError::io(dir, "lock it")(source)),
    }
}

pub(super) fn lock_path(dir: &Path) -> PathBuf {
    dir.join(LOCK_FILE)
}

/// Oldest first.
pub(super) fn list(dir: &Path) -> io::Result<Vec<SegmentName>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().to_str().and_then(SegmentName::parse));
    }
    names.sort_unstable();
    Ok(names)
}

struct Scan<'a> {
    dir: &'a Path,
    cursors: Vec<u64>,
    held: Vec<Level>,
    held_by_any: Level,
    torn_bytes: u64,
}

impl Scan<'_> {
    fn hold(&mut self, payload: &Payload) {
        let mut is_wanted = false;
        for (held, cursor) in self.held.iter_mut().zip(&self.cursors) {
            if payload.seq >= *cursor {
                held.add(payload);
                is_wanted = true;
            }
        }
        if is_wanted {
            self.held_by_any.add(payload);
        }
    }

    /// None when nothing is left in it.
    fn segment(
        &mut self,
        name: SegmentName,
        next: Option<&SegmentName>,
    ) -> io::Result<Option<Segment>> {
        let path = name.path(self.dir);
        let bytes = fs::metadata(&path)?.len();
        let limit_seq = next.map_or(u64::MAX, |next| next.base_seq);
        if self.cursors.iter().all(|cursor| limit_seq <= *cursor) {
            fs::remove_file(&path)?;
            return Ok(None);
        }
        let mut scanner = Scanner::open(self.dir, name, limit_seq)?;
        scanner.read_to(bytes);
        while let Some(found) = scanner.next()? {
            if let Some(payload) = &found.payload {
                self.hold(payload);
            }
        }
        let (sound_end, end_seq) = scanner.sound_end();
        let mut segment = Segment {
            name,
            bytes,
            end_seq,
            is_finished: true,
        };
        if next.is_some() || sound_end == bytes {
            return Ok(Some(segment));
        }
        self.torn_bytes = scanner.torn_bytes()?;
        let file = writing().open(&path)?;
        file.set_len(sound_end)?;
        file.sync_all()?;
        segment.bytes = sound_end;
        Ok(Some(segment))
    }
}
