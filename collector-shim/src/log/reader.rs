//! Reads back what is on disk and not delivered, in order, a batch at a time.
//!
//! There is one for each backend. What came in a moment ago is still in memory; all else is read from
//! files, so that a backend that is behind takes no memory but for the batch on its way.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use lantern_telemetry::LimitedLog;

use super::segment::{Found, Scanner};
use super::state::{Segment, Shared};
use crate::counts::Counters;
use crate::queue::{Batch, Payload};

/// See the module.
#[derive(Debug)]
pub(super) struct Reader {
    dir: PathBuf,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    /// Whose records they are to be.
    backend: usize,
    /// The number of the segment that is being read, or was passed over.
    segment: Option<u64>,
    scanner: Option<Scanner>,
    /// The number of the record to be read next.
    next_seq: u64,
    /// Read, but without room in the batch before.
    carried: Option<Payload>,
    damage_log: LimitedLog,
}

impl Reader {
    pub(super) fn new(
        dir: PathBuf,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
        backend: usize,
    ) -> Reader {
        let next_seq = shared.lock().cursors[backend];
        Reader {
            dir,
            shared,
            counters,
            backend,
            segment: None,
            scanner: None,
            next_seq,
            carried: None,
            damage_log: LimitedLog::default(),
        }
    }

    /// The next records, while they can be merged and are in memory. Whatever was read before has
    /// been settled, or will be in the same order.
    pub(super) fn read_recent(&mut self, max_batch_bytes: usize) -> Option<Batch> {
        let state = self.shared.lock();
        let first = match self.carried.take() {
            Some(carried) => carried,
            None => state.recent(self.next_seq)?.clone(),
        };
        self.next_seq = first.seq + 1;
        let mut batch = Batch::of(first);
        while let Some(next) = state.recent(self.next_seq)
            && batch.has_room_for(next, max_batch_bytes)
        {
            batch.push(next.clone());
            self.next_seq += 1;
        }
        // A segment that is gone keeps its room on disk for as long as it is open.
        let first_segment = state.segments.front().map(|segment| segment.name.number);
        drop(state);
        if first_segment.is_none_or(|first| self.segment < Some(first)) {
            self.scanner = None;
        }
        Some(batch)
    }

    /// The same from the files. To be called where a disk may be waited for.
    pub(super) fn read(&mut self, max_batch_bytes: usize) -> io::Result<Option<Batch>> {
        let Some(first) = self.next()? else {
            // All that may have been stepped over was damaged, and holds nothing up.
            self.shared.pass_over(self.backend, self.next_seq);
            return Ok(None);
        };
        let mut batch = Batch::of(first);
        loop {
            match self.next() {
                Ok(Some(payload)) if batch.has_room_for(&payload, max_batch_bytes) => {
                    batch.push(payload);
                }
                Ok(carried) => {
                    self.carried = carried;
                    break;
                }
                // What was read before leaves first: settling what comes later passes over it.
                Err(_) => break,
            }
        }
        Ok(Some(batch))
    }

    fn next(&mut self) -> io::Result<Option<Payload>> {
        if let Some(payload) = self.carried.take() {
            return Ok(Some(payload));
        }
        while let Some(found) = self.found()? {
            // Delivered before the last start.
            if found.seq < self.next_seq {
                continue;
            }
            let is_damaged = found.payload.is_none();
            let lost = found.seq - self.next_seq + u64::from(is_damaged);
            self.next_seq = found.seq + 1;
            self.count_damaged(lost);
            if found.payload.is_some() {
                return Ok(found.payload);
            }
        }
        Ok(None)
    }

    /// The next record of this segment or of those behind it.
    fn found(&mut self) -> io::Result<Option<Found>> {
        loop {
            // Both at once: when there is a next one, nothing more comes into the current one.
            let (current, next) = self.shared.lock().segments_from(self.segment);
            if let Some(scanner) = &mut self.scanner {
                if let Some(segment) = current {
                    scanner.read_to(segment.bytes);
                }
                match scanner.next() {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(error) if is_gone(&error) => self.pass_over(current),
                    Err(error) => return Err(error),
                }
            }
            let Some(next) = next else {
                return Ok(None);
            };
            let limit_seq = self.shared.lock().limit_seq(next.name.number);
            match Scanner::open(&self.dir, next.name, limit_seq) {
                Ok(scanner) => self.scanner = Some(scanner),
                Err(error) if is_gone(&error) => self.pass_over(Some(next)),
                Err(error) => return Err(error),
            }
            self.segment = Some(next.name.number);
        }
    }

    /// Whoever has removed `segment`, or cut it off, has taken what was not read of it yet.
    fn pass_over(&mut self, segment: Option<Segment>) {
        self.scanner = None;
        if let Some(segment) = segment {
            self.count_damaged(segment.end_seq.saturating_sub(self.next_seq));
            self.next_seq = self.next_seq.max(segment.end_seq);
        }
    }

    fn count_damaged(&self, records: u64) {
        if records == 0 {
            return;
        }
        self.counters.damaged_records.add(records);
        if let Some(damaged_records) = self.damage_log.due(records) {
            let dir = self.dir.display();
            tracing::error!(%dir, damaged_records, "records of the queue are damaged and lost");
        }
    }
}

/// Whether there will not be more of the file, however often it is read.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
    )
}
