//! What a start finds in the queue's directory, made ready to be read and added to.
//!
//! Every segment is read once, so that its checksums say what waits. Nothing is ever appended to a
//! segment of an earlier run. What a crash tore at the end of the last one is cut off: it was never
//! acknowledged, unless the disk itself lost it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::cursor;
use super::segment::{Scanner, SegmentName};
use super::state::{Segment, State};
use crate::queue::Level;

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
    /// Waits for the backend.
    pub(super) held: Level,
    /// Cut off the end of the last segment.
    pub(super) torn_bytes: u64,
}

/// Locks `dir`, which is made if need be, and reads what is in it.
pub(super) fn recover(dir: &Path) -> Result<Recovered, QueueDirError> {
    let failed = |action| QueueDirError::io(dir, action);
    make(dir).map_err(failed("make it"))?;
    let lock = lock(dir)?;
    let names = list(dir).map_err(failed("list it"))?;
    let cursor = cursor::read(dir).map_err(failed("read its cursor"))?;
    let next_number = names.last().map_or(0, |last| last.number + 1);
    let first_seq = names.first().map_or(0, |first| first.base_seq);
    // Segments are removed in order and only once they are delivered: where the first one begins,
    // all before it has been.
    let cursor = cursor.unwrap_or(first_seq).max(first_seq);
    let mut scan = Scan {
        dir,
        cursor,
        held: Level::default(),
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
    let next_seq = segments
        .back()
        .map_or(cursor, |last: &Segment| last.end_seq.max(cursor));
    Ok(Recovered {
        lock,
        next_number,
        held: scan.held,
        torn_bytes: scan.torn_bytes,
        state: State::recovered(segments, cursor, next_seq, scan.held),
    })
}

/// Makes `dir` and what is missing above it, so that a power cut does not take them back.
fn make(dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(dir)?;
    for parent in missing.iter().filter_map(|made| made.parent()) {
        let is_here = parent.as_os_str().is_empty();
        File::open(if is_here { Path::new(".") } else { parent })?.sync_all()?;
    }
    Ok(())
}

/// The system gives the lock back whatever way the process ends.
pub(crate) fn lock(dir: &Path) -> Result<File, QueueDirError> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true);
    let file = file
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
    cursor: u64,
    held: Level,
    torn_bytes: u64,
}

impl Scan<'_> {
    /// None when nothing is left in it.
    fn segment(
        &mut self,
        name: SegmentName,
        next: Option<&SegmentName>,
    ) -> io::Result<Option<Segment>> {
        let path = name.path(self.dir);
        let bytes = fs::metadata(&path)?.len();
        let limit_seq = next.map_or(u64::MAX, |next| next.base_seq);
        if limit_seq <= self.cursor {
            fs::remove_file(&path)?;
            return Ok(None);
        }
        let mut scanner = Scanner::open(self.dir, name, limit_seq)?;
        scanner.read_to(bytes);
        while let Some(found) = scanner.next()? {
            if let Some(payload) = found.payload.filter(|_| found.seq >= self.cursor) {
                self.held.bytes += payload.bytes.len();
                self.held.spans += payload.spans;
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
        self.torn_bytes = bytes - sound_end;
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(sound_end)?;
        file.sync_all()?;
        segment.bytes = sound_end;
        Ok(Some(segment))
    }
}
