//! The bounded queue between the receivers and the senders: in memory ([`memory`]) or on disk
//! ([`crate::log`]). Each backend takes from it at its own pace.

mod memory;
mod patience;

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::coding::{self, Coding};
use crate::counts::PerSignal;
use crate::log::Log;
use crate::signal::Signal;
pub(crate) use memory::MemoryQueue;
pub(crate) use patience::Patience;

/// Batches on their way at once to one backend where order does not matter.
const MEMORY_SENDERS: usize = 4;
/// The log is delivered in order, so each batch waits for the answer to the one before it.
const LOG_SENDERS: usize = 1;

/// One accepted request, or a part of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) signal: Signal,
    pub(crate) coding: Coding,
    /// The export request of `signal`, compressed by `coding`.
    pub(crate) bytes: Bytes,
    /// How many spans, data points, log records or profiles are in it.
    pub(crate) items: u64,
    /// Its place in the queue, once it has one.
    pub(crate) seq: u64,
}

impl Payload {
    /// One that is not compressed and has no place in a queue yet.
    pub(crate) fn plain(signal: Signal, bytes: Bytes, items: u64) -> Payload {
        Payload {
            signal,
            coding: Coding::Identity,
            bytes,
            items,
            seq: 0,
        }
    }

    /// The request itself. The receiver has decompressed it before, within its bound.
    pub(crate) fn decompressed(&self) -> Bytes {
        if self.coding == Coding::Identity {
            return self.bytes.clone();
        }
        let unbounded = |_| Ok::<_, Infallible>(());
        let decompressed = coding::decompress(self.coding, &self.bytes, usize::MAX, unbounded);
        let decompressed = decompressed.expect("it was decompressed when it came");
        decompressed.plain.into()
    }

    /// Whether `other` may follow in the same request. Compressed ones may not: receivers read the
    /// first of several gzip members and take it for all.
    fn can_be_joined_with(&self, other: &Payload) -> bool {
        let is_plain = |payload: &Payload| payload.coding == Coding::Identity;
        is_plain(self)
            && is_plain(other)
            && self.signal == other.signal
            && self.signal.is_divisible()
    }
}

/// Payloads that leave together; at least one.
#[derive(Debug)]
pub(crate) struct Batch {
    payloads: Vec<Payload>,
    bytes: usize,
}

impl Batch {
    pub(crate) fn of(payload: Payload) -> Batch {
        Batch {
            bytes: payload.bytes.len(),
            payloads: vec![payload],
        }
    }

    pub(crate) fn has_room_for(&self, next: &Payload, max_bytes: usize) -> bool {
        self.bytes + next.bytes.len() <= max_bytes && self.payloads[0].can_be_joined_with(next)
    }

    pub(crate) fn push(&mut self, payload: Payload) {
        self.bytes += payload.bytes.len();
        self.payloads.push(payload);
    }

    pub(crate) fn payloads(&self) -> &[Payload] {
        &self.payloads
    }

    pub(crate) fn into_payloads(self) -> Vec<Payload> {
        self.payloads
    }

    /// In parts, each of payloads that can be merged.
    pub(crate) fn joinable(self) -> Vec<Batch> {
        let mut parts: Vec<Batch> = Vec::new();
        for payload in self.payloads {
            match parts.last_mut() {
                Some(part) if part.has_room_for(&payload, usize::MAX) => part.push(payload),
                _ => parts.push(Batch::of(payload)),
            }
        }
        parts
    }

    pub(crate) fn items(&self) -> u64 {
        self.payloads.iter().map(|payload| payload.items).sum()
    }

    /// All payloads as one. Every field of the request types is repeated, but for those that are
    /// never joined, so that protobuf's merge of several is their bytes in a row.
    pub(crate) fn merged(&self) -> Payload {
        let first = self.payloads[0].clone();
        if self.payloads.len() == 1 {
            return first;
        }
        let mut bytes = BytesMut::with_capacity(self.bytes);
        self.payloads
            .iter()
            .for_each(|payload| bytes.extend_from_slice(&payload.bytes));
        Payload {
            bytes: bytes.freeze(),
            items: self.items(),
            ..first
        }
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

impl OfferError {
    /// Whether there may be room in a moment.
    fn may_pass(&self) -> bool {
        matches!(self, OfferError::Full { .. } | OfferError::Behind { .. })
    }
}

/// What is held for one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Level {
    pub(crate) bytes: usize,
    pub(crate) items: PerSignal<u64>,
}

impl Level {
    pub(crate) fn total_items(&self) -> u64 {
        let items = Signal::ALL.map(|signal| *self.items.of(signal));
        items.iter().sum()
    }

    pub(crate) fn add(&mut self, payload: &Payload) {
        self.bytes += payload.bytes.len();
        *self.items.of_mut(payload.signal) += payload.items;
    }

    pub(crate) fn subtract(&mut self, payload: &Payload) {
        self.bytes = self.bytes.saturating_sub(payload.bytes.len());
        let items = self.items.of_mut(payload.signal);
        *items = items.saturating_sub(payload.items);
    }
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

    /// How many may take from it at once for one backend.
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

    /// Tells that there is room again, or that there never will be.
    fn freed(&self) -> &Notify {
        match self {
            Queue::Memory(queue) => queue.freed(),
            Queue::Disk(log) => log.freed(),
        }
    }

    /// Waits for a batch for `backend`: the first payload, and those behind it while they can be
    /// merged with it into `max_batch_bytes`. None once the queue is closed and nothing waits.
    pub(crate) async fn take(&self, backend: usize, max_batch_bytes: usize) -> Option<Batch> {
        match self {
            Queue::Memory(queue) => queue.take(backend, max_batch_bytes).await,
            Queue::Disk(log) => log.take(backend, max_batch_bytes).await,
        }
    }

    /// Frees what `payload` held for `backend`, which has answered for it.
    pub(crate) fn settle(&self, backend: usize, payload: &Payload) {
        match self {
            Queue::Memory(queue) => queue.settle(backend, payload),
            Queue::Disk(log) => log.settle(backend, payload),
        }
    }

    /// Keeps `payload`, which `backend` will never take, where there is a place for it.
    pub(crate) async fn bury(&self, backend: usize, payload: &Payload, reason: &str) {
        match self {
            Queue::Memory(_) => {}
            Queue::Disk(log) => log.bury(backend, payload, reason).await,
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

    /// What waits or is on its way to any backend, each request once.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Queue::Memory(queue) => queue.held_bytes(),
            Queue::Disk(log) => log.held_bytes(),
        }
    }

    pub(crate) fn level(&self, backend: usize) -> Level {
        match self {
            Queue::Memory(queue) => queue.level(backend),
            Queue::Disk(log) => log.level(backend),
        }
    }
}
