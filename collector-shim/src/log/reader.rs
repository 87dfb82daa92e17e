//! Reads back what is on disk and not delivered, in order, a batch at a time.
//!
//! There is one for each backend. What came in a moment ago is still in memory; all else is read from
//! files, so that a backend that is behind takes no memory but for the batch on its way.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use lantern_telemetry::LimitedLog;

use super::segment::{Found, Scanner};
use super::state::Shared;
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
    /// The segment's number goes with it.
    scanner: Option<(u64, Scanner)>,
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
        self.scanner
            .take_if(|(number, _)| first_segment.is_none_or(|first| *number < first));
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
            let number = self.scanner.as_ref().map(|(number, _)| *number);
            // Both at once: when there is a next one, nothing more comes into the current one.
            let (current, next) = self.shared.lock().segments_from(number);
            if let Some((_, scanner)) = &mut self.scanner {
                if let Some(segment) = current {
                    scanner.read_to(segment.bytes);
                }
                if let Some(found) = scanner.next()? {
                    return Ok(Some(found));
                }
            }
            let Some(next) = next else {
                return Ok(None);
            };
            let limit_seq = self.shared.lock().limit_seq(next.name.number);
            let scanner = Scanner::open(&self.dir, next.name, limit_seq)?;
            self.scanner = Some((next.name.number, scanner));
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
