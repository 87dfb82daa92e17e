//! The queue on disk: a log of requests in segments, each record with its checksums.
//!
//! [`writer`] is the one thread that writes: many requests, one fdatasync, and then they are
//! acknowledged; [`active`] is where to. [`reader`] hands them to a backend's sender in order. [`cursor`] marks how far each
//! backend has answered; segments before the last of them are
//! removed, or written over. [`recovery`] reads all that again
//! after a start. [`state`] is what they share, [`segment`] and [`record`] the format, and
//! [`dead_letters`] where requests end that the backend will never take. [`inspect`] reads all of it
//! for people.
//!
//! A record is delivered at least once: after a crash, what was delivered since the cursor was last
//! written is delivered again.

mod active;
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

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lantern_telemetry::LimitedLog;
use tokio::sync::{Notify, oneshot};

use crate::config::{LogAck, QueueDir};
use crate::counts::Counters;
use crate::queue::{Batch, Level, OfferError, Payload};
use crate::signal::Signal;
use dead_letters::DeadLetters;
use reader::Reader;
pub use recovery::QueueDirError;
pub(crate) use recovery::lock;
use state::{Job, Shared};
use writer::Writer;

/// Requests may hold what only those who run the shim are to read.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

const READER_LOCK: &str = "no holder of the reader's lock panics";
/// How long the sender pauses when the disk cannot be read.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    ack: LogAck,
    shared: Arc<Shared>,
    /// Of each backend.
    readers: Vec<Arc<Mutex<Reader>>>,
    backends: Vec<String>,
    writer: Mutex<Option<JoinHandle<()>>>,
    dead_letters: Arc<Mutex<DeadLetters>>,
    counters: Arc<Counters>,
    failure_log: LimitedLog,
}

impl Log {
    /// Opens the log of the named `backends` in `dir` and finds what it holds. No other process can
    /// have it open.
    pub(crate) fn open(
        QueueDir { path: dir, ack }: QueueDir,
        max_bytes: usize,
        backends: Vec<String>,
        counters: Arc<Counters>,
    ) -> Result<Log, QueueDirError> {
        let found = recovery::recover(&dir, &backends)?;
        for signal in Signal::ALL {
            counters
                .recovered
                .of(signal)
                .add(*found.held.items.of(signal));
        }
        counters.torn_bytes.add(found.torn_bytes);
        let (bytes, torn_bytes) = (found.held.bytes, found.torn_bytes);
        if bytes > 0 || torn_bytes > 0 {
            let items = found.held.total_items();
            tracing::info!(
                dir = %dir.display(), items, bytes, torn_bytes, "the queue holds data of an earlier run"
            );
        }
        let shared = Arc::new(Shared::new(max_bytes as u64, found.state));
        let writer = Writer::new(
            dir.clone(),
            Arc::clone(&shared),
            backends.clone(),
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
        let reader = |backend| {
            let (shared, counters) = (Arc::clone(&shared), Arc::clone(&counters));
            let reader = Reader::new(dir.clone(), shared, counters, backend);
            Arc::new(Mutex::new(reader))
        };
        Ok(Log {
            ack,
            readers: (0..backends.len()).map(reader).collect(),
            backends,
            shared,
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
            LogAck::Memory => self.shared.enqueue(Job::new(payloads, None)),
            LogAck::Disk => {
                let (reply, written) = oneshot::channel();
                self.shared.enqueue(Job::new(payloads, Some(reply)))?;
                written.await.unwrap_or(Err(OfferError::Closed))
            }
        }
    }

    /// Tells that there is room again, or that there never will be.
    pub(crate) fn freed(&self) -> &Notify {
        &self.shared.freed
    }

    /// Waits for records that are on disk. To be called by one task for each backend, after it has
    /// settled all that the call before gave it.
    pub(crate) async fn take(&self, backend: usize, max_batch_bytes: usize) -> Option<Batch> {
        loop {
            let mut readable = std::pin::pin!(self.shared.readable.notified());
            // Registers before the look, so that a change right after it is not missed.
            readable.as_mut().enable();
            let is_complete = self.shared.is_complete();
            match self.read(backend, max_batch_bytes).await {
                Ok(Some(batch)) => {
                    self.shared.hand_out(backend, batch.payloads().len());
                    return Some(batch);
                }
                Ok(None) if is_complete => return None,
                Ok(None) => readable.await,
                Err(error) => {
                    self.warn("cannot read the queue", &error);
                    tokio::time::sleep(READ_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn read(&self, backend: usize, max_batch_bytes: usize) -> io::Result<Option<Batch>> {
        let reader = Arc::clone(&self.readers[backend]);
        let recent = reader
            .lock()
            .expect(READER_LOCK)
            .read_recent(max_batch_bytes);
        if recent.is_some() {
            return Ok(recent);
        }
        if !self.shared.has_more(backend) {
            return Ok(None);
        }
        beside(move || {
            let mut reader = reader.lock().expect(READER_LOCK);
            reader.read(max_batch_bytes)
        })
        .await
    }

    /// Nothing is left to do with `payload` for `backend`, nor with any before it.
    pub(crate) fn settle(&self, backend: usize, payload: &Payload) {
        self.shared.settle(backend, payload);
    }

    /// Writes `payload` to the dead letters. When that fails it is counted, and gone.
    pub(crate) async fn bury(&self, backend: usize, payload: &Payload, reason: &str) {
        let letters = Arc::clone(&self.dead_letters);
        let (payload, reason) = (payload.clone(), reason.to_owned());
        let backend = self.backends[backend].clone();
        let written = beside(move || {
            let mut letters = letters
                .lock()
                .expect("no holder of the letters' lock panics");
            letters.write(&backend, &payload, &reason)
        });
        match written.await {
            Ok(dropped) => {
                self.counters.dead_letters.add(1);
                self.counters.lost_letters.add(dropped);
            }
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

    pub(crate) fn level(&self, backend: usize) -> Level {
        self.shared.level(backend)
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.shared.held_bytes()
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

/// For writing to a file of the queue's directory, one that is made included.
fn writing() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    options
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
