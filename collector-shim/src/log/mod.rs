//! The queue on disk: a log of requests in segments, each record with its checksums.
//!
//! [`writer`] is the one thread that writes: many requests, one fdatasync, and then they are
//! acknowledged. [`reader`] hands them to the sender in order, from the files. [`cursor`] marks how
//! far the backend has answered; segments before it are removed. [`recovery`] reads all that again
//! after a start. [`state`] is what they share, [`segment`] and [`record`] the format, and
//! [`dead_letters`] where requests end that the backend will never take. [`inspect`] reads all of it
//! for people.
//!
//! A record is delivered at least once: after a crash, what was delivered since the cursor was last
//! written is delivered again.

mod cursor;
pub(crate) mod dead_letters;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod inspect;
mod reader;
mod record;
mod recovery;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lantern_telemetry::LimitedLog;
use tokio::sync::oneshot;

use crate::config::Ack;
use crate::counts::Counters;
use crate::queue::{Batch, Level, OfferError, Payload};
use dead_letters::DeadLetters;
use reader::Reader;
pub use recovery::QueueDirError;
pub(crate) use recovery::lock;
use state::{Job, Shared};
use writer::Writer;

/// How long the sender pauses when the disk cannot be read.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    ack: Ack,
    shared: Arc<Shared>,
    reader: Arc<Mutex<Reader>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    dead_letters: Arc<Mutex<DeadLetters>>,
    counters: Arc<Counters>,
    failure_log: LimitedLog,
}

impl Log {
    /// Opens the log in `dir` and finds what it holds. No other process can have it open.
    pub(crate) fn open(
        dir: PathBuf,
        max_bytes: usize,
        ack: Ack,
        counters: Arc<Counters>,
    ) -> Result<Log, QueueDirError> {
        let found = recovery::recover(&dir)?;
        let Level { bytes, spans } = found.held;
        counters.recovered_spans.add(spans);
        counters.torn_bytes.add(found.torn_bytes);
        if bytes > 0 || found.torn_bytes > 0 {
            let torn_bytes = found.torn_bytes;
            tracing::info!(
                dir = %dir.display(), spans, bytes, torn_bytes, "the queue holds spans of an earlier run"
            );
        }
        let shared = Arc::new(Shared::new(max_bytes as u64, found.state));
        let writer = Writer::new(
            dir.clone(),
            Arc::clone(&shared),
            found.next_number,
            found.lock,
        );
        let writer = thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(|| writer.run())
            .map_err(|source| QueueDirError::Io {
                dir: dir.clone(),
                action: "start its writer",
                source,
            })?;
        let reader = Reader::new(dir.clone(), Arc::clone(&shared), Arc::clone(&counters));
        Ok(Log {
            ack,
            shared,
            reader: Arc::new(Mutex::new(reader)),
            writer: Mutex::new(Some(writer)),
            dead_letters: Arc::new(Mutex::new(DeadLetters::new(&dir, dead_letters::MAX_BYTES))),
            counters,
            failure_log: LimitedLog::default(),
            dir,
        })
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.shared.max_bytes as usize
    }

    /// Takes all of `payloads`, or none of them. Returns when they may be acknowledged.
    pub(crate) async fn offer(&self, payloads: Vec<Payload>) -> Result<(), OfferError> {
        match self.ack {
            Ack::Memory => self.shared.enqueue(Job::new(payloads, None)),
            Ack::Disk => {
                let (reply, written) = oneshot::channel();
                self.shared.enqueue(Job::new(payloads, Some(reply)))?;
                written.await.unwrap_or(Err(OfferError::Closed))
            }
        }
    }

    /// Waits for records that are on disk. To be called by one task, after it has settled all that
    /// the call before gave it.
    pub(crate) async fn take(&self, max_batch_bytes: usize) -> Option<Batch> {
        loop {
            let mut readable = std::pin::pin!(self.shared.readable.notified());
            // Registers before the look, so that a change right after it is not missed.
            readable.as_mut().enable();
            let is_complete = self.shared.is_complete();
            match self.read(max_batch_bytes).await {
                Ok(Some(batch)) => return Some(batch),
                Ok(None) if is_complete => return None,
                Ok(None) => readable.await,
                Err(error) => {
                    self.warn("cannot read the queue", &error);
                    tokio::time::sleep(READ_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn read(&self, max_batch_bytes: usize) -> io::Result<Option<Batch>> {
        let reader = Arc::clone(&self.reader);
        beside(move || {
            let mut reader = reader
                .lock()
                .expect("no holder of the reader's lock panics");
            reader.read(max_batch_bytes)
        })
        .await
    }

    /// The backend has answered for `payload`, and for all before it.
    pub(crate) fn settle(&self, payload: &Payload) {
        self.shared.settle(payload);
    }

    /// Writes `payload` to the dead letters. When that fails it is counted, and gone.
    pub(crate) async fn bury(&self, payload: &Payload, reason: &str) {
        let letters = Arc::clone(&self.dead_letters);
        let (payload, reason) = (payload.clone(), reason.to_owned());
        let written = beside(move || {
            let mut letters = letters
                .lock()
                .expect("no holder of the letters' lock panics");
            letters.write(&payload, &reason)
        });
        match written.await {
            Ok(()) => self.counters.dead_letters.add(1),
            Err(error) => {
                self.counters.lost_letters.add(1);
                self.warn("cannot write a dead letter", &error);
            }
        }
    }

    /// Takes nothing more; what waits can still be taken out.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    /// Writes the cursor and gives the directory up.
    pub(crate) async fn finish(&self) {
        self.shared.stop();
        let writer = self.writer.lock().expect("no holder panics").take();
        if let Some(writer) = writer {
            let joined = beside(move || writer.join().map_err(|_| io::Error::other("it panicked")));
            if let Err(error) = joined.await {
                self.warn("the queue's writer failed", &error);
            }
        }
    }

    pub(crate) fn level(&self) -> Level {
        self.shared.level()
    }

    fn warn(&self, what: &str, error: &io::Error) {
        if let Some(failures) = self.failure_log.due(1) {
            let dir = self.dir.display();
            tracing::error!(%dir, %error, failures, "{what}");
        }
    }
}

impl Drop for Log {
    /// A shim that is dropped without having run leaves no thread and no lock behind.
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Disks are waited for beside the threads that serve connections.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
