//! The bounded queue between the receivers and the senders: in memory ([`memory`]) or on disk
//! ([`crate::log`]).

mod memory;

use bytes::{Bytes, BytesMut};

use crate::log::Log;
pub(crate) use memory::MemoryQueue;

/// Batches on their way at once where order does not matter.
const MEMORY_SENDERS: usize = 4;
/// The log is delivered in order, so each batch waits for the answer to the one before it.
const LOG_SENDERS: usize = 1;

/// One accepted request, or a part of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    /// An `ExportTraceServiceRequest`, uncompressed.
    pub(crate) bytes: Bytes,
    pub(crate) spans: u64,
    /// Its place in the log, once it has one.
    pub(crate) seq: u64,
}

impl Payload {
    /// One that has no place in a log yet.
    pub(crate) fn new(bytes: Bytes, spans: u64) -> Payload {
        Payload {
            bytes,
            spans,
            seq: 0,
        }
    }
}

/// Payloads that leave together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) payloads: Vec<Payload>,
}

impl Batch {
    pub(crate) fn spans(&self) -> u64 {
        self.payloads.iter().map(|payload| payload.spans).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.payloads
            .iter()
            .map(|payload| payload.bytes.len())
            .sum()
    }

    /// All payloads as one request. Every field of the request type is repeated, so protobuf's
    /// merge of several is their bytes in a row.
    pub(crate) fn merged(&self) -> Bytes {
        if let [only] = &self.payloads[..] {
            return only.bytes.clone();
        }
        let mut merged = BytesMut::with_capacity(self.bytes());
        self.payloads
            .iter()
            .for_each(|payload| merged.extend_from_slice(&payload.bytes));
        merged.freeze()
    }
}

/// Why the queue takes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OfferError {
    #[error("the queue is full: {held_bytes} of {max_bytes} bytes are waiting for the backend")]
    Full { held_bytes: usize, max_bytes: usize },
    #[error("the disk is behind: {pending_bytes} bytes are waiting to be written to it")]
    Behind { pending_bytes: usize },
    #[error("the queue's disk does not take it: {0}")]
    Disk(String),
    #[error("the shim is shutting down")]
    Closed,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Level {
    pub(crate) bytes: usize,
    pub(crate) spans: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) enum Queue {
    Memory(MemoryQueue),
    Disk(Log),
}

impl Queue {
    pub(crate) fn max_bytes(&self) -> usize {
        match self {
            Queue::Memory(queue) => queue.max_bytes(),
            Queue::Disk(log) => log.max_bytes(),
        }
    }

    /// How many may take from it at once.
    pub(crate) fn senders(&self) -> usize {
        match self {
            Queue::Memory(_) => MEMORY_SENDERS,
            Queue::Disk(_) => LOG_SENDERS,
        }
    }

    /// Takes all of `payloads`, or none of them. Once it returns, they may be acknowledged.
    pub(crate) async fn offer(&self, payloads: Vec<Payload>) -> Result<(), OfferError> {
        match self {
            Queue::Memory(queue) => queue.offer(payloads),
            Queue::Disk(log) => log.offer(payloads).await,
        }
    }

    /// Waits for a batch: the first payload, and those behind it while all fit into
    /// `max_batch_bytes`. None once the queue is closed and nothing waits.
    pub(crate) async fn take(&self, max_batch_bytes: usize) -> Option<Batch> {
        match self {
            Queue::Memory(queue) => queue.take(max_batch_bytes).await,
            Queue::Disk(log) => log.take(max_batch_bytes).await,
        }
    }

    /// Frees what `payload` held: the backend has answered for it.
    pub(crate) fn settle(&self, payload: &Payload) {
        match self {
            Queue::Memory(queue) => queue.settle(payload),
            Queue::Disk(log) => log.settle(payload),
        }
    }

    /// Keeps `payload`, which the backend will never take, where there is a place for it.
    pub(crate) async fn bury(&self, payload: &Payload, reason: &str) {
        match self {
            Queue::Memory(_) => {}
            Queue::Disk(log) => log.bury(payload, reason).await,
        }
    }

    /// Takes nothing more; what waits can still be taken out.
    pub(crate) fn close(&self) {
        match self {
            Queue::Memory(queue) => queue.close(),
            Queue::Disk(log) => log.close(),
        }
    }

    /// After the last [`Queue::settle`]: whatever must outlive the process has been written.
    pub(crate) async fn finish(&self) {
        match self {
            Queue::Memory(_) => {}
            Queue::Disk(log) => log.finish().await,
        }
    }

    pub(crate) fn level(&self) -> Level {
        match self {
            Queue::Memory(queue) => queue.level(),
            Queue::Disk(log) => log.level(),
        }
    }
}
