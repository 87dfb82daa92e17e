//! The bounded queue between the receivers and the senders.
//!
//! It holds requests as the bytes that came in. What is on its way out still counts against the
//! bound, until the backend has answered for it: memory is held just as long.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// One accepted request, or a part of a large one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    /// An `ExportTraceServiceRequest`, uncompressed.
    pub(crate) bytes: Bytes,
    pub(crate) spans: u64,
}

/// Payloads that leave together.
#[derive(Debug)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OfferError {
    #[error("the queue is full: {held_bytes} of {max_bytes} bytes are waiting for the backend")]
    Full { held_bytes: usize, max_bytes: usize },
    #[error("the shim is shutting down")]
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    max_bytes: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Payload>,
    /// Waiting and on their way out.
    held_bytes: usize,
    held_spans: u64,
    closed: bool,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) bytes: usize,
    pub(crate) spans: u64,
}

impl Queue {
    pub(crate) fn new(max_bytes: usize) -> Queue {
        Queue {
            max_bytes,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Takes all of `payloads`, or none of them.
    pub(crate) fn offer(&self, payloads: Vec<Payload>) -> Result<(), OfferError> {
        let offered_bytes: usize = payloads.iter().map(|payload| payload.bytes.len()).sum();
        let mut state = self.lock();
        if state.closed {
            return Err(OfferError::Closed);
        }
        let held_bytes = state.held_bytes;
        if held_bytes + offered_bytes > self.max_bytes {
            return Err(OfferError::Full {
                held_bytes,
                max_bytes: self.max_bytes,
            });
        }
        state.held_bytes += offered_bytes;
        state.held_spans += payloads.iter().map(|payload| payload.spans).sum::<u64>();
        let count = payloads.len();
        state.waiting.extend(payloads);
        drop(state);
        (0..count).for_each(|_| self.changed.notify_one());
        Ok(())
    }

    /// Waits for a batch: the first payload, and those behind it while all fit into
    /// `max_batch_bytes`. None once the queue is closed and nothing waits.
    pub(crate) async fn take(&self, max_batch_bytes: usize) -> Option<Batch> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registers before the look, so that a change right after it is not missed.
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(batch) = state.take(max_batch_bytes) {
                    return Some(batch);
                }
                if state.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Frees what `payload` held: the backend has answered for it.
    pub(crate) fn settle(&self, payload: &Payload) {
        let mut state = self.lock();
        state.held_bytes -= payload.bytes.len();
        state.held_spans -= payload.spans;
    }

    /// Takes nothing more; what waits can still be taken out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    pub(crate) fn level(&self) -> Level {
        let state = self.lock();
        Level {
            bytes: state.held_bytes,
            spans: state.held_spans,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no holder of the queue's lock panics")
    }
}

impl State {
    fn take(&mut self, max_batch_bytes: usize) -> Option<Batch> {
        let first = self.waiting.pop_front()?;
        let mut bytes = first.bytes.len();
        let mut payloads = vec![first];
        while let Some(next) = self.waiting.front()
            && bytes + next.bytes.len() <= max_batch_bytes
        {
            bytes += next.bytes.len();
            payloads.extend(self.waiting.pop_front());
        }
        Some(Batch { payloads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(length: usize) -> Payload {
        Payload {
            bytes: Bytes::from(vec![0; length]),
            spans: 1,
        }
    }

    #[tokio::test]
    async fn batches_fill_up_to_the_bound_and_a_larger_payload_goes_alone() {
        let queue = Queue::new(1_000);
        queue
            .offer([3, 3, 3, 20, 1].map(payload).to_vec())
            .expect("room");
        let mut sizes = Vec::new();
        queue.close();
        while let Some(batch) = queue.take(6).await {
            sizes.push(batch.bytes());
            assert_eq!(batch.merged().len(), batch.bytes());
        }
        assert_eq!(sizes, [6, 3, 20, 1]);
    }

    #[test]
    fn the_bound_holds_until_the_backend_has_answered() {
        let queue = Queue::new(10);
        queue.offer(vec![payload(8)]).expect("room");
        let full = OfferError::Full {
            held_bytes: 8,
            max_bytes: 10,
        };
        assert_eq!(queue.offer(vec![payload(1), payload(2)]), Err(full));
        assert_eq!(queue.level(), Level { bytes: 8, spans: 1 });
        let batch = queue.lock().take(100).expect("one waits");
        assert_eq!(queue.offer(vec![payload(3)]), Err(full));
        batch
            .payloads
            .iter()
            .for_each(|payload| queue.settle(payload));
        assert_eq!(queue.level(), Level { bytes: 0, spans: 0 });
        assert_eq!(queue.offer(vec![payload(3)]), Ok(()));
    }

    #[tokio::test]
    async fn takers_wake_for_what_arrives_and_for_the_end() {
        let queue = std::sync::Arc::new(Queue::new(10));
        let taker = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move {
                let first = queue.take(10).await.map(|batch| batch.spans());
                (first, queue.take(10).await.map(|batch| batch.spans()))
            }
        });
        queue.offer(vec![payload(1)]).expect("room");
        queue.close();
        assert_eq!(taker.await.expect("no panic"), (Some(1), None));
        assert_eq!(queue.offer(vec![payload(1)]), Err(OfferError::Closed));
    }
}
