//! The one thread that writes: requests in groups with one fdatasync each, the cursor now and
//! then, and segments out of the way once they are delivered.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lantern_telemetry::LimitedLog;

use super::record::Header;
use super::segment::SegmentName;
use super::state::{Job, Segment, Shared};
use super::{cursor, writing};
use crate::queue::OfferError;

/// How far the cursor on disk may lag behind. What lies between is sent twice after a crash.
const CURSOR_INTERVAL: Duration = Duration::from_millis(500);
/// How long the writer pauses before it tries again what nobody waits for.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Payloads from this size on are written from where they are, smaller ones together.
const COPIED_BYTES: usize = 64 * 1024;
/// The log is cut into so many segments, within bounds: what is delivered is freed by segments.
const SEGMENTS: u64 = 16;
const MIN_SEGMENT_BYTES: u64 = 16 * 1024;
const MAX_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// See the module.
pub(super) struct Writer {
    dir: PathBuf,
    shared: Arc<Shared>,
    active: Option<Active>,
    next_number: u64,
    next_seq: u64,
    segment_bytes: u64,
    buffer: Vec<u8>,
    /// The names that the cursors go by.
    backends: Vec<String>,
    written_cursors: Vec<u64>,
    cursor_written_at: Instant,
    failure_log: LimitedLog,
    /// Held as long as anything here may be written.
    _lock: File,
}

/// The segment that is written to: the last in the list.
struct Active {
    file: File,
    salt: u32,
}

impl Writer {
    pub(super) fn new(
        dir: PathBuf,
        shared: Arc<Shared>,
        backends: Vec<String>,
        next_number: u64,
        lock: File,
    ) -> Writer {
        let segment_bytes =
            (shared.max_bytes / SEGMENTS).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        let next_seq = shared.lock().durable_seq;
        Writer {
            dir,
            shared,
            active: None,
            next_number,
            next_seq,
            segment_bytes,
            buffer: Vec::new(),
            backends,
            written_cursors: Vec::new(),
            cursor_written_at: Instant::now(),
            failure_log: LimitedLog::default(),
            _lock: lock,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let (group, is_last) = self.shared.next_group(CURSOR_INTERVAL);
            if !group.is_empty() {
                self.commit(group, is_last);
            }
            self.remove_delivered();
            if is_last || self.cursor_written_at.elapsed() >= CURSOR_INTERVAL {
                self.write_cursors();
            }
            if is_last {
                return;
            }
        }
    }

    fn commit(&mut self, group: Vec<Job>, is_last: bool) {
        match self.write(&group) {
            Ok(end_seq) => {
                self.next_seq = end_seq;
                self.shared.committed(group, end_seq);
                self.finish_if_large();
            }
            Err(error) => {
                self.give_up_segment();
                self.warn("cannot write to the queue", &error);
                let error = OfferError::Disk(error.to_string());
                if self.shared.failed(group, &error) && !is_last {
                    thread::sleep(RETRY_DELAY);
                }
            }
        }
    }

    /// Writes and syncs `group`; the number after its last record's.
    fn write(&mut self, group: &[Job]) -> io::Result<u64> {
        if self.shared.must_replace(group) {
            self.finish_segment();
            self.remove_delivered();
        }
        let active = match &mut self.active {
            Some(active) => active,
            none => none.insert(create_segment(
                &self.dir,
                &self.shared,
                &mut self.next_number,
                self.next_seq,
            )?),
        };
        let mut seq = self.next_seq;
        self.buffer.clear();
        for payload in group.iter().flat_map(|job| &job.payloads) {
            let header = Header::new(seq, payload)
                .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
            self.buffer.extend_from_slice(&header.encode(active.salt));
            if payload.bytes.len() < COPIED_BYTES {
                self.buffer.extend_from_slice(&payload.bytes);
            }
            if self.buffer.len() >= COPIED_BYTES || payload.bytes.len() >= COPIED_BYTES {
                active.file.write_all(&self.buffer)?;
                self.buffer.clear();
            }
            if payload.bytes.len() >= COPIED_BYTES {
                active.file.write_all(&payload.bytes)?;
            }
            seq += 1;
        }
        active.file.write_all(&self.buffer)?;
        active.file.sync_data()?;
        // Whoever removed it has taken what was written now as well.
        if active.file.metadata()?.nlink() == 0 {
            return Err(io::Error::other("the segment's file was removed"));
        }
        Ok(seq)
    }

    fn finish_if_large(&mut self) {
        let bytes = self.shared.lock().segments.back().map(|last| last.bytes);
        if bytes.is_some_and(|bytes| bytes >= self.segment_bytes) {
            self.finish_segment();
        }
    }

    fn finish_segment(&mut self) {
        self.active = None;
        if let Some(segment) = self.shared.lock().segments.back_mut() {
            segment.is_finished = true;
        }
    }

    /// After a failed write nothing is known of the file beyond what was synced before, and after a
    /// failed sync not even the kernel knows: it is never written to again. What it may hold beyond
    /// its bound is not read, since the next segment begins with the same number.
    fn give_up_segment(&mut self) {
        let Some(Active { file, .. }) = self.active.take() else {
            return;
        };
        let mut state = self.shared.lock();
        let Some(segment) = state.segments.back_mut() else {
            return;
        };
        segment.is_finished = true;
        let (bytes, name) = (segment.bytes, segment.name);
        if bytes == 0 {
            state.segments.pop_back();
        }
        drop(state);
        // Both only free space.
        let freed = if bytes == 0 {
            fs::remove_file(name.path(&self.dir))
        } else {
            file.set_len(bytes)
        };
        if let Err(error) = freed {
            self.warn("cannot free what a failed write left", &error);
        }
    }

    fn remove_delivered(&mut self) {
        for name in self.shared.take_removable() {
            if let Err(error) = fs::remove_file(name.path(&self.dir)) {
                self.warn("cannot remove a delivered segment", &error);
            }
        }
    }

    fn write_cursors(&mut self) {
        let cursors = self.shared.lock().cursors.clone();
        self.cursor_written_at = Instant::now();
        if cursors == self.written_cursors {
            return;
        }
        let named = self.backends.iter().cloned().zip(cursors.iter().copied());
        match cursor::write(&self.dir, &named.collect()) {
            Ok(()) => self.written_cursors = cursors,
            Err(error) => self.warn("cannot write the queue's cursors", &error),
        }
    }

    fn warn(&self, what: &str, error: &io::Error) {
        if let Some(failures) = self.failure_log.due(1) {
            let dir = self.dir.display();
            tracing::error!(%dir, %error, failures, "{what}");
        }
    }
}

/// Makes the next segment and lists it.
fn create_segment(
    dir: &Path,
    shared: &Shared,
    next_number: &mut u64,
    base_seq: u64,
) -> io::Result<Active> {
    let name = SegmentName {
        number: *next_number,
        base_seq,
        salt: rand::random(),
    };
    *next_number += 1;
    let file = writing().create_new(true).open(name.path(dir))?;
    // Otherwise a power cut could take the file with all that was synced into it.
    File::open(dir)?.sync_all()?;
    shared.lock().segments.push_back(Segment {
        name,
        bytes: 0,
        end_seq: base_seq,
        is_finished: false,
    });
    let salt = name.salt;
    Ok(Active { file, salt })
}
