//! Reads back what is on disk and not delivered, in order, a batch at a time.
//!
//! All of it is read from files, also what came in a moment ago: the page cache has that, and
//! memory then holds no more than the batch that is on its way.

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
    /// The segment's number goes with it.
    scanner: Option<(u64, Scanner)>,
    /// The number of the record to be read next.
    next_seq: u64,
    /// Read, but without room in the batch before.
    carried: Option<Payload>,
    damage_log: LimitedLog,
}

impl Reader {
    pub(super) fn new(dir: PathBuf, shared: Arc<Shared>, counters: Arc<Counters>) -> Reader {
        let next_seq = shared.lock().cursor;
        Reader {
            dir,
            shared,
            counters,
            scanner: None,
            next_seq,
            carried: None,
            damage_log: LimitedLog::default(),
        }
    }

    /// The next records, while they fit. Whatever was read before has been settled.
    pub(super) fn read(&mut self, max_batch_bytes: usize) -> io::Result<Option<Batch>> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        loop {
            let payload = match self.next() {
                Ok(Some(payload)) => payload,
                Ok(None) => break,
                // What was read before must leave first: settling what comes later passes over it.
                Err(_) if !batch.payloads.is_empty() => break,
                Err(error) => return Err(error),
            };
            if bytes > 0 && bytes + payload.bytes.len() > max_batch_bytes {
                self.carried = Some(payload);
                break;
            }
            bytes += payload.bytes.len();
            batch.payloads.push(payload);
        }
        if batch.payloads.is_empty() {
            // All that may have been stepped over was damaged, and holds nothing up.
            self.shared.pass_over(self.next_seq);
            return Ok(None);
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
