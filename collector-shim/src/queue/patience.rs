//! Waiting for room in a queue that is full: bounded in time, and in the bytes that wait.
//!
//! A sender that is as fast as the backend allows would else be refused again and again; SDKs drop
//! what was refused a few times. What waits is in memory, so that beyond a bound the refusal comes at
//! once.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{OfferError, Queue};

/// Waiting requests of all senders together; one alone may be larger.
const MAX_WAITING_BYTES: usize = 8 * 1024 * 1024;
/// What a waiting request takes at least.
const LEAST_BYTES: usize = 4 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    room: Semaphore,
}

impl Patience {
    /// A request waits for `limit` at most.
    pub(crate) fn new(limit: Duration) -> Patience {
        Patience {
            limit,
            room: Semaphore::new(MAX_WAITING_BYTES),
        }
    }

    /// Lets `attempt` put `bytes` into `queue` as often as there may be room, until it has or the wait is
    /// over. Dropped meanwhile, as when the sender has gone away, it makes no further attempt.
    pub(crate) async fn offer<Attempt>(
        &self,
        queue: &Queue,
        bytes: usize,
        attempt: impl Fn() -> Attempt,
    ) -> Result<(), OfferError>
    where
        Attempt: Future<Output = Result<(), OfferError>>,
    {
        let deadline = Instant::now() + self.limit;
        let mut place = None;
        loop {
            let mut freed = pin!(queue.freed().notified());
            // Registers before the look, so that a change right after it is not missed.
            freed.as_mut().enable();
            let full = match attempt().await {
                Err(error) if error.may_pass() => error,
                offered => return offered,
            };
            if self.limit.is_zero() {
                return Err(full);
            }
            if place.is_none() {
                let bytes = bytes.clamp(LEAST_BYTES, MAX_WAITING_BYTES) as u32;
                place = self.room.try_acquire_many(bytes).ok();
            }
            if place.is_none() || timeout_at(deadline, freed).await.is_err() {
                return Err(full);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::{MemoryQueue, Payload};
    use super::*;
    use crate::signal::Signal;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn payload(bytes: usize) -> Payload {
        Payload::plain(Signal::Traces, Bytes::from(vec![0; bytes]), 1)
    }

    /// One that is full, and what it holds.
    async fn full() -> (Arc<Queue>, Payload) {
        let queue = Arc::new(Queue::Memory(MemoryQueue::new(1_000, 1)));
        queue.offer(vec![payload(1_000)]).await.expect("room");
        let batch = queue.take(0, 1_000).await.expect("one waits");
        let held = batch.payloads()[0].clone();
        (queue, held)
    }

    async fn offer(patience: &Patience, queue: &Queue, bytes: usize) -> Result<(), OfferError> {
        let attempt = || queue.offer(vec![payload(bytes)]);
        patience.offer(queue, bytes, attempt).await
    }

    #[tokio::test]
    async fn a_request_waits_until_there_is_room() {
        let (queue, held) = full().await;
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { offer(&Patience::new(HOUR), &queue, 10).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        queue.settle(0, &held);
        assert_eq!(waiting.await.expect("no panic"), Ok(()));
    }

    #[tokio::test]
    async fn it_is_refused_when_none_comes_in_time() {
        let (queue, _) = full().await;
        for limit in [Duration::ZERO, Duration::from_millis(20)] {
            let start = Instant::now();
            let offered = offer(&Patience::new(limit), &queue, 10).await;
            assert!(matches!(offered, Err(OfferError::Full { .. })));
            assert!(start.elapsed() >= limit);
        }
    }

    #[tokio::test]
    async fn the_end_of_the_queue_ends_the_wait() {
        let (queue, _) = full().await;
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { offer(&Patience::new(HOUR), &queue, 10).await }
        });
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(waiting.await.expect("no panic"), Err(OfferError::Closed));
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let (queue, _) = full().await;
        let patience = Arc::new(Patience::new(HOUR));
        let mut waiting = tokio::spawn({
            let (queue, patience) = (Arc::clone(&queue), Arc::clone(&patience));
            async move { offer(&patience, &queue, 2 * MAX_WAITING_BYTES).await }
        });
        let waits = tokio::time::timeout(Duration::ZERO, &mut waiting).await;
        assert!(waits.is_err());
        let offered = offer(&patience, &queue, 10).await;
        assert!(matches!(offered, Err(OfferError::Full { .. })));
        waiting.abort();
    }
}
