//! A queue's directory as it lies there, read and left as it is: what `lantern-shim queue` shows.
//!
//! A shim may be using it meanwhile: what it removes is then missing, and what it is writing at this
//! moment looks torn.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::QueueDirError;
use super::cursor::{self, Cursors};
use super::recovery::{list, lock_path};
use super::segment::{Found, Scanner, SegmentName};
use crate::queue::{Level, Payload};

/// All that is in a directory.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Whether a shim is running on it.
    pub(crate) is_in_use: bool,
    /// The number of the first record that each backend has not answered for; none when nobody knows.
    pub(crate) cursors: Cursors,
    /// Oldest first.
    pub(crate) segments: Vec<SegmentSurvey>,
}

/// What is in one segment.
#[derive(Debug)]
pub(crate) struct SegmentSurvey {
    pub(crate) file_name: String,
    pub(crate) bytes: u64,
    /// The number of its first record, and the one after its last.
    pub(crate) base_seq: u64,
    pub(crate) end_seq: u64,
    pub(crate) records: u64,
    pub(crate) items: u64,
    /// Of those, what waits for a backend.
    pub(crate) waiting_records: u64,
    pub(crate) waiting: Level,
    /// Records that are missing between sound ones, or whose bytes are not what was written.
    pub(crate) damaged_records: u64,
    /// After the last sound record.
    pub(crate) torn_bytes: u64,
}

/// Reads all of `dir` once.
pub(crate) fn survey(dir: &Path) -> Result<Survey, QueueDirError> {
    let names = list(dir).map_err(QueueDirError::io(dir, "list it"))?;
    let cursors = cursor::read(dir).map_err(QueueDirError::io(dir, "read its cursors"))?;
    let mut segments = Vec::new();
    for (name, limit_seq) in with_limits(&names) {
        let waits_from = oldest(&cursors);
        let surveyed = survey_segment(dir, name, limit_seq, waits_from);
        let there = if_there(surveyed).map_err(QueueDirError::io(dir, "read a segment"))?;
        segments.extend(there);
    }
    Ok(Survey {
        is_in_use: is_in_use(dir).map_err(QueueDirError::io(dir, "look at its lock"))?,
        cursors,
        segments,
    })
}

fn survey_segment(
    dir: &Path,
    name: SegmentName,
    limit_seq: u64,
    waits_from: u64,
) -> io::Result<SegmentSurvey> {
    let (mut scanner, bytes) = open(dir, name, limit_seq)?;
    let mut survey = SegmentSurvey {
        file_name: name.file_name(),
        bytes,
        base_seq: name.base_seq,
        end_seq: name.base_seq,
        records: 0,
        items: 0,
        waiting_records: 0,
        waiting: Level::default(),
        damaged_records: 0,
        torn_bytes: 0,
    };
    while let Some(Found { seq, payload }) = scanner.next()? {
        survey.damaged_records += seq - survey.end_seq;
        survey.end_seq = seq + 1;
        let Some(payload) = payload else {
            survey.damaged_records += 1;
            continue;
        };
        survey.records += 1;
        survey.items += payload.items;
        if seq >= waits_from {
            survey.waiting_records += 1;
            survey.waiting.add(&payload);
        }
    }
    survey.torn_bytes = scanner.torn_bytes()?;
    // One that was delivered meanwhile may have been written over as it was read.
    fs::metadata(name.path(dir))?;
    Ok(survey)
}

/// The sound records of a directory, in order.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    from_seq: u64,
    ahead: VecDeque<(SegmentName, u64)>,
    scanner: Option<Scanner>,
}

impl Records {
    /// Those from `from_seq` on; without one, those that wait for a backend.
    pub(crate) fn open(dir: &Path, from_seq: Option<u64>) -> Result<Records, QueueDirError> {
        let names = list(dir).map_err(QueueDirError::io(dir, "list it"))?;
        let from_seq = match from_seq {
            Some(seq) => seq,
            None => {
                let cursors = cursor::read(dir);
                oldest(&cursors.map_err(QueueDirError::io(dir, "read its cursors"))?)
            }
        };
        Ok(Records {
            dir: dir.to_owned(),
            from_seq,
            ahead: with_limits(&names).collect(),
            scanner: None,
        })
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> Result<Option<Payload>, QueueDirError> {
        let read = self.read();
        read.map_err(QueueDirError::io(&self.dir, "read a segment"))
    }

    fn read(&mut self) -> io::Result<Option<Payload>> {
        loop {
            let found = self.scanner.as_mut().map(Scanner::next).transpose()?;
            match found.flatten() {
                Some(Found { seq, payload }) if seq >= self.from_seq && payload.is_some() => {
                    return Ok(payload);
                }
                Some(_) => {}
                None => {
                    let Some((name, limit_seq)) = self.ahead.pop_front() else {
                        return Ok(None);
                    };
                    let opened = if_there(open(&self.dir, name, limit_seq))?;
                    self.scanner = opened.map(|(scanner, _)| scanner);
                }
            }
        }
    }
}

/// From where on something may wait.
fn oldest(cursors: &Cursors) -> u64 {
    cursors.values().copied().min().unwrap_or(0)
}

/// Each segment, and where the next one begins.
fn with_limits(names: &[SegmentName]) -> impl Iterator<Item = (SegmentName, u64)> {
    let limits = names.iter().skip(1).map(|next| next.base_seq);
    names
        .iter()
        .copied()
        .zip(limits.chain(std::iter::once(u64::MAX)))
}

fn open(dir: &Path, name: SegmentName, limit_seq: u64) -> io::Result<(Scanner, u64)> {
    let bytes = fs::metadata(name.path(dir))?.len();
    let mut scanner = Scanner::open(dir, name, limit_seq)?;
    scanner.read_to(bytes);
    Ok((scanner, bytes))
}

/// A shim that is running removes what is delivered.
fn if_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn is_in_use(dir: &Path) -> io::Result<bool> {
    let Some(file) = if_there(File::open(lock_path(dir)))? else {
        return Ok(false);
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}
