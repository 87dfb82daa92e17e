//! What came in and what became of it, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Spans at one moment, as [`crate::ShimHandle::counts`] tells them.
///
/// Every span received or recovered is then delivered, rejected, or queued, but for those of records
/// that the disk damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Acknowledged to their senders.
    pub received_spans: u64,
    /// Refused, for their senders to keep or to send again.
    pub refused_spans: u64,
    /// Accepted by the backend, or put into the embedded store.
    pub delivered_spans: u64,
    /// Refused by the backend for good.
    pub rejected_spans: u64,
    /// Waiting or on their way out.
    pub queued_spans: u64,
    /// Bytes of the requests that hold them.
    pub queued_bytes: u64,
    /// Attempts to send that failed and are made again.
    pub retries: u64,
    /// Found waiting in the queue's directory at the start.
    pub recovered_spans: u64,
    /// Records of the queue's log that were damaged on disk, and so are lost.
    pub damaged_records: u64,
    /// Cut off the log's end at the start: what a crash had left unfinished.
    pub torn_bytes: u64,
    /// Requests rejected by the backend for good that were kept as dead letters.
    pub dead_letters: u64,
    /// Dropped from the embedded store to make room.
    pub evicted_spans: u64,
    /// Traces that they belonged to.
    pub evicted_traces: u64,
}

/// The way a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Grpc,
    Http,
}

impl Transport {
    pub(crate) const ALL: [Transport; 2] = [Transport::Grpc, Transport::Http];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Transport::Grpc => "grpc",
            Transport::Http => "http",
        }
    }
}

/// What only ever grows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted_spans: PerTransport,
    pub(crate) refused_spans: PerTransport,
    pub(crate) refused_requests: PerTransport,
    pub(crate) enqueue_failed_spans: Counter,
    pub(crate) delivered_spans: Counter,
    pub(crate) rejected_spans: Counter,
    pub(crate) retries: Counter,
    pub(crate) recovered_spans: Counter,
    pub(crate) damaged_records: Counter,
    pub(crate) torn_bytes: Counter,
    pub(crate) dead_letters: Counter,
    /// Requests that could not be kept as dead letters.
    pub(crate) lost_letters: Counter,
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter for each [`Transport`].
#[derive(Debug, Default)]
pub(crate) struct PerTransport([Counter; 2]);

impl PerTransport {
    pub(crate) fn of(&self, transport: Transport) -> &Counter {
        &self.0[transport as usize]
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}
