//! The queue in memory: what waits is lost with the process.
//!
//! It holds requests as the bytes that came in. What is on its way out still counts against the
//! bound, until the backend has answered for it: memory is held just as long.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use super::{Batch, Level, OfferError, Payload};

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryQueue {
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

impl MemoryQueue {
    pub(crate) fn new(max_bytes: usize) -> MemoryQueue {
        MemoryQueue {
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
    use bytes::Bytes;

    use super::*;

    fn payload(length: usize) -> Payload {
        Payload::new(Bytes::from(vec![0; length]), 1)
    }

    #[tokio::test]
    async fn batches_fill_up_to_the_bound_and_a_larger_payload_goes_alone() {
        let queue = MemoryQueue::new(1_000);
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
        let queue = MemoryQueue::new(10);
        queue.offer(vec![payload(8)]).expect("room");
        let full = OfferError::Full {
            held_bytes: 8,
            max_bytes: 10,
        };
        assert_eq!(queue.offer(vec![payload(1), payload(2)]), Err(full.clone()));
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
        let queue = std::sync::Arc::new(MemoryQueue::new(10));
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
