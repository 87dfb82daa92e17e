//! What came in and what became of it, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::signal::Signal;

/// Spans at one moment, as [`crate::ShimHandle::counts`] tells them; or the items of another signal,
/// as [`crate::ShimHandle::counts_of`] does.
///
/// Every span received or recovered is then delivered, rejected, unsent, dropped or queued, but for those of
/// records that the disk damaged. With several backends, each of them counts.
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
    /// Not sent to a backend, because it does not take their signal.
    pub unsent_spans: u64,
    /// Dropped by tail decisions.
    pub dropped_spans: u64,
    /// Waiting or on their way out.
    pub queued_spans: u64,
    /// Bytes of all requests that wait or are on their way out, whatever their signal.
    pub queued_bytes: u64,
    /// Attempts to send that failed and are made again, whatever their signal.
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

/// What only ever grows. Items are spans, data points, log records or profiles.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: PerSignal<PerTransport>,
    pub(crate) refused: PerSignal<PerTransport>,
    pub(crate) refused_requests: PerTransport,
    pub(crate) enqueue_failed: PerSignal<Counter>,
    /// Put into the embedded store.
    pub(crate) stored_spans: Counter,
    /// Of each backend, in their order.
    pub(crate) backends: Vec<BackendCounters>,
    pub(crate) recovered: PerSignal<Counter>,
    pub(crate) damaged_records: Counter,
    pub(crate) torn_bytes: Counter,
    pub(crate) dead_letters: Counter,
    /// Requests that could not be kept as dead letters, or had to go to make room for newer ones.
    pub(crate) lost_letters: Counter,
}

/// What became of items on their way to one backend.
#[derive(Debug, Default)]
pub(crate) struct BackendCounters {
    pub(crate) delivered: PerSignal<Counter>,
    pub(crate) rejected: PerSignal<Counter>,
    pub(crate) unsent: PerSignal<Counter>,
    pub(crate) tail: TailCounters,
    pub(crate) retries: Counter,
}

/// What tail decisions have dropped of what was for one backend.
#[derive(Debug, Default)]
pub(crate) struct TailCounters {
    pub(crate) dropped_spans: Counter,
    pub(crate) dropped_traces: Counter,
    /// Of those, for lack of room before their time was over.
    pub(crate) early_traces: Counter,
}

impl Counters {
    pub(crate) fn new(backends: usize) -> Counters {
        Counters {
            backends: (0..backends).map(|_| BackendCounters::default()).collect(),
            ..Counters::default()
        }
    }
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

/// Something for each [`Signal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PerSignal<T>([T; Signal::ALL.len()]);

impl<T> PerSignal<T> {
    pub(crate) fn of(&self, signal: Signal) -> &T {
        &self.0[signal as usize]
    }

    pub(crate) fn of_mut(&mut self, signal: Signal) -> &mut T {
        &mut self.0[signal as usize]
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
