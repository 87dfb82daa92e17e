//! The queue in memory: what waits is lost with the process.
//!
//! It holds requests as the bytes that came in, once, however many backends they are for. What is on
//! its way out still counts against the bound, until the last backend has answered for it: memory is
//! held just as long. A small one counts as more than its bytes, for what is kept beside them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use super::{Batch, Level, OfferError, Payload};

/// What a payload takes at least: its place in each lane, and what an allocator adds to its bytes.
const LEAST_BYTES: usize = 512;

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryQueue {
    max_bytes: usize,
    state: Mutex<State>,
    /// Of each backend.
    changed: Vec<Notify>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Lane>,
    /// For each payload that is held, from the number `first_seq` on.
    owed: VecDeque<Owed>,
    first_seq: u64,
    /// Waiting and on their way out.
    held_bytes: usize,
    closed: bool,
}

/// What waits for one backend.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Payload>,
    held: Level,
}

/// A payload that not all backends have answered for.
#[derive(Debug)]
struct Owed {
    backends: usize,
    bytes: usize,
}

impl MemoryQueue {
    pub(crate) fn new(max_bytes: usize, backends: usize) -> MemoryQueue {
        MemoryQueue {
            max_bytes,
            state: Mutex::new(State {
                lanes: (0..backends).map(|_| Lane::default()).collect(),
                owed: VecDeque::new(),
                first_seq: 0,
                held_bytes: 0,
                closed: false,
            }),
            changed: (0..backends).map(|_| Notify::new()).collect(),
            freed: Notify::new(),
        }
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Takes all of `payloads`, or none of them: also one request that is larger than the bound, when
    /// it is alone.
    pub(crate) fn offer(&self, payloads: Vec<Payload>) -> Result<(), OfferError> {
        let offered_bytes: usize = payloads.iter().map(held_bytes).sum();
        let mut state = self.lock();
        if state.closed {
            return Err(OfferError::Closed);
        }
        let held_bytes = state.held_bytes;
        if held_bytes > 0 && held_bytes + offered_bytes > self.max_bytes {
            return Err(OfferError::Full {
                held_bytes,
                max_bytes: self.max_bytes,
            });
        }
        let count = payloads.len();
        payloads.into_iter().for_each(|payload| state.push(payload));
        drop(state);
        for changed in &self.changed {
            (0..count).for_each(|_| changed.notify_one());
        }
        Ok(())
    }

    /// Waits for a batch for `backend`: the first payload, and those behind it while they can be
    /// merged with it into `max_batch_bytes`. None once the queue is closed and nothing waits.
    pub(crate) async fn take(&self, backend: usize, max_batch_bytes: usize) -> Option<Batch> {
        loop {
            let mut changed = std::pin::pin!(self.changed[backend].notified());
            // Registers before the look, so that a change right after it is not missed.
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(batch) = state.lanes[backend].take(max_batch_bytes) {
                    return Some(batch);
                }
                if state.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// `backend` has answered for `payload`: frees what it held, if no other still needs it.
    pub(crate) fn settle(&self, backend: usize, payload: &Payload) {
        self.lock().settle(backend, payload);
        self.freed.notify_waiters();
    }

    /// Tells that there is room again, or that there never will be.
    pub(crate) fn freed(&self) -> &Notify {
        &self.freed
    }

    /// Takes nothing more; what waits can still be taken out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.iter().for_each(Notify::notify_waiters);
        self.freed.notify_waiters();
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.lock().held_bytes
    }

    pub(crate) fn level(&self, backend: usize) -> Level {
        self.lock().lanes[backend].held
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no holder of the queue's lock panics")
    }
}

/// What `payload` counts as.
fn held_bytes(payload: &Payload) -> usize {
    payload.bytes.len().max(LEAST_BYTES)
}

impl State {
    fn push(&mut self, mut payload: Payload) {
        payload.seq = self.first_seq + self.owed.len() as u64;
        let bytes = held_bytes(&payload);
        self.held_bytes += bytes;
        self.owed.push_back(Owed {
            backends: self.lanes.len(),
            bytes,
        });
        for lane in &mut self.lanes {
            lane.held.add(&payload);
            lane.waiting.push_back(payload.clone());
        }
    }

    fn settle(&mut self, backend: usize, payload: &Payload) {
        self.lanes[backend].held.subtract(payload);
        let place = (payload.seq - self.first_seq) as usize;
        self.owed[place].backends -= 1;
        if self.owed[place].backends == 0 {
            self.held_bytes -= self.owed[place].bytes;
        }
        while self.owed.front().is_some_and(|owed| owed.backends == 0) {
            self.owed.pop_front();
            self.first_seq += 1;
        }
    }
}

impl Lane {
    fn take(&mut self, max_batch_bytes: usize) -> Option<Batch> {
        let mut batch = Batch::of(self.waiting.pop_front()?);
        let fits = |batch: &Batch, next: &Payload| batch.has_room_for(next, max_batch_bytes);
        while let Some(next) = self.waiting.pop_front_if(|next| fits(&batch, next)) {
            batch.push(next);
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::coding::Coding;
    use crate::signal::Signal;

    fn payload(length: usize) -> Payload {
        Payload::plain(Signal::Traces, Bytes::from(vec![0; length]), 1)
    }

    fn taken(queue: &MemoryQueue, backend: usize) -> Batch {
        let batch = queue.lock().lanes[backend].take(100);
        batch.expect("one waits")
    }

    fn settle(queue: &MemoryQueue, backend: usize, batch: &Batch) {
        let payloads = batch.payloads().iter();
        payloads.for_each(|payload| queue.settle(backend, payload));
    }

    #[tokio::test]
    async fn batches_fill_up_to_the_bound_and_a_larger_payload_goes_alone() {
        let queue = MemoryQueue::new(10_000, 1);
        queue
            .offer([3, 3, 3, 20, 1].map(payload).to_vec())
            .expect("room");
        let mut sizes = Vec::new();
        queue.close();
        while let Some(batch) = queue.take(0, 6).await {
            let merged = batch.merged();
            assert_eq!(merged.items, batch.payloads().len() as u64);
            sizes.push(merged.bytes.len());
        }
        assert_eq!(sizes, [6, 3, 20, 1]);
    }

    #[tokio::test]
    async fn only_what_is_alike_and_can_be_joined_leaves_together() {
        let queue = MemoryQueue::new(10_000, 1);
        let of = |signal, coding| Payload {
            signal,
            coding,
            ..payload(1)
        };
        let plain = |signal| of(signal, Coding::Identity);
        let offered = vec![
            plain(Signal::Traces),
            plain(Signal::Traces),
            plain(Signal::Logs),
            plain(Signal::Logs),
            of(Signal::Logs, Coding::Gzip),
            of(Signal::Logs, Coding::Gzip),
            plain(Signal::Profiles),
            plain(Signal::Profiles),
        ];
        queue.offer(offered).expect("room");
        queue.close();
        let mut sizes = Vec::new();
        while let Some(batch) = queue.take(0, 100).await {
            sizes.push(batch.payloads().len());
        }
        assert_eq!(sizes, [2, 2, 1, 1, 1, 1]);
    }

    #[test]
    fn the_bound_holds_until_the_backend_has_answered() {
        let queue = MemoryQueue::new(10_000, 1);
        queue.offer(vec![payload(8_000)]).expect("room");
        let full = OfferError::Full {
            held_bytes: 8_000,
            max_bytes: 10_000,
        };
        let two = || vec![payload(1_000), payload(2_000)];
        assert_eq!(queue.offer(two()), Err(full.clone()));
        assert_eq!(
            (queue.held_bytes(), queue.level(0).total_items()),
            (8_000, 1)
        );
        let batch = taken(&queue, 0);
        assert_eq!(queue.offer(two()), Err(full));
        settle(&queue, 0, &batch);
        assert_eq!((queue.held_bytes(), queue.level(0)), (0, Level::default()));
        assert_eq!(queue.offer(two()), Ok(()));
    }

    #[test]
    fn many_small_ones_are_bounded_too_and_a_large_one_is_taken_alone() {
        let queue = MemoryQueue::new(10 * LEAST_BYTES, 1);
        for _ in 0..10 {
            queue.offer(vec![payload(1)]).expect("room");
        }
        assert!(queue.offer(vec![payload(1)]).is_err());
        settle(&queue, 0, &taken(&queue, 0));
        assert_eq!(queue.held_bytes(), 0);
        let large = || vec![payload(20 * LEAST_BYTES)];
        assert_eq!(queue.offer(large()), Ok(()));
        assert!(queue.offer(vec![payload(1)]).is_err());
    }

    #[test]
    fn memory_is_freed_once_all_backends_have_answered_in_any_order() {
        let queue = MemoryQueue::new(10_000, 2);
        queue.offer(vec![payload(6_000)]).expect("room");
        let first = taken(&queue, 0);
        queue.offer(vec![payload(4_000)]).expect("room");
        let second = taken(&queue, 0);
        settle(&queue, 0, &second);
        settle(&queue, 0, &first);
        assert_eq!(queue.level(0), Level::default());
        assert_eq!((queue.held_bytes(), queue.level(1).bytes), (10_000, 10_000));
        let both = [taken(&queue, 1), taken(&queue, 1)];
        settle(&queue, 1, &both[1]);
        assert_eq!(queue.held_bytes(), 6_000);
        settle(&queue, 1, &both[0]);
        assert_eq!(queue.held_bytes(), 0);
    }

    #[tokio::test]
    async fn takers_wake_for_what_arrives_and_for_the_end() {
        let queue = std::sync::Arc::new(MemoryQueue::new(1_000, 1));
        let taker = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move {
                let first = queue.take(0, 10).await.map(|batch| batch.items());
                (first, queue.take(0, 10).await.map(|batch| batch.items()))
            }
        });
        queue.offer(vec![payload(1)]).expect("room");
        queue.close();
        assert_eq!(taker.await.expect("no panic"), (Some(1), None));
        assert_eq!(queue.offer(vec![payload(1)]), Err(OfferError::Closed));
    }
}
