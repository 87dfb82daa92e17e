//! The one thread that writes: requests in groups with one fdatasync each, the cursor now and
//! then, and segments out of the way once they are delivered.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lantern_telemetry::LimitedLog;

use super::active::{Active, Spare};
use super::cursor;
use super::segment::SegmentName;
use super::state::{Job, Segment, Shared};
use crate::queue::OfferError;

/// How far the cursor on disk may lag behind. What lies between is sent twice after a crash.
const CURSOR_INTERVAL: Duration = Duration::from_millis(500);
/// How long the writer pauses before it tries again what nobody waits for.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// The log is cut into so many segments, within bounds: what is delivered is freed by segments.
const SEGMENTS: u64 = 16;
pub(super) const MIN_SEGMENT_BYTES: u64 = 16 * 1024;
const MAX_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// See the module.
pub(super) struct Writer {
    dir: PathBuf,
    shared: Arc<Shared>,
    active: Option<Active>,
    spare: Spare,
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
            spare: Spare::none(&dir),
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
                self.free_spare_bytes();
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
        self.make_room(group.iter().map(|job| job.record_bytes).sum());
        let mut active = match self.active.take() {
            Some(active) => active,
            None => self.create_segment()?,
        };
        let payloads = group.iter().flat_map(|job| &job.payloads);
        let written = active.append(payloads, self.next_seq, &mut self.buffer);
        self.active = Some(active);
        written
    }

    /// Makes the next segment and lists it.
    fn create_segment(&mut self) -> io::Result<Active> {
        let name = SegmentName {
            number: self.next_number,
            base_seq: self.next_seq,
            salt: rand::random(),
        };
        self.next_number += 1;
        let active = Active::create(&self.dir, name, &mut self.spare)?;
        self.shared.lock().segments.push_back(Segment {
            name,
            bytes: 0,
            end_seq: name.base_seq,
            is_finished: false,
        });
        Ok(active)
    }

    /// With what is only there to be written over, the directory holds a segment more than its bound
    /// and not more than that.
    fn make_room(&mut self, more: u64) {
        let in_spare = self.spare.bytes();
        let (written_over, kept) = match &self.active {
            Some(active) => (active.spare_bytes(), in_spare),
            None => (in_spare, 0),
        };
        let most = self.shared.max_bytes + self.segment_bytes;
        if self.shared.disk_bytes() + more.max(written_over) + kept > most {
            self.free_spare_bytes();
        }
    }

    fn free_spare_bytes(&mut self) {
        let trimmed = self.active.as_mut().map_or(Ok(()), Active::trim);
        if let Err(error) = self.spare.remove().and(trimmed) {
            self.warn("cannot free what was to be written over", &error);
        }
    }

    fn finish_if_large(&mut self) {
        let bytes = self.shared.lock().segments.back().map(|last| last.bytes);
        if bytes.is_some_and(|bytes| bytes >= self.segment_bytes) {
            self.finish_segment();
        }
    }

    fn finish_segment(&mut self) {
        if let Some(mut active) = self.active.take()
            && let Err(error) = active.trim()
        {
            self.warn("cannot free what was to be written over", &error);
        }
        if let Some(segment) = self.shared.lock().segments.back_mut() {
            segment.is_finished = true;
        }
    }

    /// After a failed write nothing is known of the file beyond what was synced before, and after a
    /// failed sync not even the kernel knows: it is never written to again. What it may hold beyond
    /// its bound is not read, since the next segment begins with the same number.
    fn give_up_segment(&mut self) {
        let Some(active) = self.active.take() else {
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
            active.cut_off(bytes)
        };
        if let Err(error) = freed {
            self.warn("cannot free what a failed write left", &error);
        }
    }

    fn remove_delivered(&mut self) {
        for segment in self.shared.take_removable() {
            let path = segment.name.path(&self.dir);
            // One record may have made it much larger than others will need it.
            let is_usual = segment.bytes <= 2 * self.segment_bytes;
            let removed = if is_usual && !self.spare.is_there() {
                self.spare.keep(&path, segment.bytes)
            } else {
                fs::remove_file(path)
            };
            if let Err(error) = removed {
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
