//! Tail decisions: of traces only those are sent on that turn out to be worth it ([`policy`]).
//!
//! Off unless asked for. Then this stands between a queue and the senders: [`buffer`] takes requests
//! apart, holds the spans of traces that nothing is known in favour of, and lets out the others with
//! their bytes as they came, under the same resources and scopes.
//!
//! An acknowledgement still means that the request is in the queue. It leaves the queue when each of
//! its spans is either answered for by the backend or dropped by decision, so that on disk what is
//! undecided outlives a crash and a restart, and is decided then. What was sent in between is sent
//! again after that: a request is kept until the last of its traces is decided.

mod buffer;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::counts::Counters;
use crate::queue::{Batch, Payload, Queue};
use buffer::{Buffer, Outcome};
pub(crate) use policy::RULES;
pub use policy::{Rules, TailPolicy};

/// What senders for one backend take from.
#[derive(Debug)]
pub(crate) enum Source {
    /// All that is in the queue.
    Whole(Arc<Queue>),
    /// What is kept of it.
    Kept(Box<TailQueue>),
}

/// A queue out of which only what is kept comes for one backend. Each backend has decisions of its
/// own, which come out the same but where there was too little room.
#[derive(Debug)]
pub(crate) struct TailQueue {
    queue: Arc<Queue>,
    backend: usize,
    counters: Arc<Counters>,
    buffer: Mutex<Buffer>,
    taking: tokio::sync::Mutex<Taking>,
}

/// What is on its way from the queue to the buffer.
#[derive(Debug, Default)]
struct Taking {
    /// The look into the queue that is under way: what it finds must not be lost when a deadline
    /// comes first.
    look: Option<JoinHandle<Option<Batch>>>,
    /// Out of the queue, and not in the buffer yet: what a request lets out may be much longer than
    /// itself, and has to be sent before the next.
    taken: VecDeque<Payload>,
}

impl TailQueue {
    pub(crate) fn new(
        queue: Arc<Queue>,
        backend: usize,
        policy: TailPolicy,
        counters: Arc<Counters>,
    ) -> TailQueue {
        TailQueue {
            queue,
            backend,
            counters,
            buffer: Mutex::new(Buffer::new(policy)),
            taking: tokio::sync::Mutex::default(),
        }
    }

    /// Waits for kept spans. None once the queue is closed and nothing waits but what is undecided.
    async fn take(&self, max_batch_bytes: usize) -> Option<Batch> {
        let mut taking = self.taking.lock().await;
        loop {
            self.buffer_taken(&mut taking.taken, max_batch_bytes);
            let (batch, deadline) = {
                let mut buffer = self.buffer();
                (buffer.next_batch(max_batch_bytes), buffer.next_deadline())
            };
            if batch.is_some() {
                return batch;
            }
            let look = taking.look.get_or_insert_with(|| {
                let (queue, backend) = (Arc::clone(&self.queue), self.backend);
                tokio::spawn(async move { queue.take(backend, max_batch_bytes).await })
            });
            let expiry = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                found = look => {
                    taking.look = None;
                    let Some(batch) = found.expect("taking from a queue does not panic") else {
                        self.end();
                        return None;
                    };
                    taking.taken.extend(batch.into_payloads());
                }
                () = expiry => {
                    let outcome = self.buffer().expire(Instant::now());
                    self.apply(&outcome);
                }
            }
        }
    }

    /// Buffers what was taken, until there is a batch to be sent.
    fn buffer_taken(&self, taken: &mut VecDeque<Payload>, max_batch_bytes: usize) {
        loop {
            let is_enough = self.buffer().ready_bytes() >= max_batch_bytes;
            let Some(payload) = taken.pop_front_if(|_| !is_enough) else {
                return;
            };
            let outcome = self.buffer().add(payload, Instant::now());
            self.apply(&outcome);
        }
    }

    /// On disk the undecided waits for the next start. In memory nothing does.
    fn end(&self) {
        if let Queue::Memory(_) = *self.queue {
            let outcome = self.buffer().give_up();
            self.apply(&outcome);
        }
    }

    fn settle(&self, payload: &Payload) {
        let done = self.buffer().confirm(payload.seq, payload.items);
        self.settle_all(&done);
    }

    fn apply(&self, outcome: &Outcome) {
        let counters = &self.counters.backends[self.backend].tail;
        counters.dropped_spans.add(outcome.dropped_spans);
        counters.dropped_traces.add(outcome.dropped_traces);
        counters.early_traces.add(outcome.early_traces);
        self.settle_all(&outcome.done);
    }

    fn settle_all(&self, done: &[Payload]) {
        for payload in done {
            self.queue.settle(self.backend, payload);
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        let buffer = self.buffer.lock();
        buffer.expect("no holder of the buffer's lock panics")
    }
}

impl Source {
    pub(crate) fn queue(&self) -> &Queue {
        match self {
            Source::Whole(queue) => queue,
            Source::Kept(tail) => &tail.queue,
        }
    }

    /// How many may take at once. Decisions are made one after the other.
    pub(crate) fn senders(&self) -> usize {
        match self {
            Source::Whole(queue) => queue.senders(),
            Source::Kept(_) => 1,
        }
    }

    /// As [`Queue::take`].
    pub(crate) async fn take(&self, backend: usize, max_batch_bytes: usize) -> Option<Batch> {
        match self {
            Source::Whole(queue) => queue.take(backend, max_batch_bytes).await,
            Source::Kept(tail) => tail.take(max_batch_bytes).await,
        }
    }

    /// `backend` has answered for `payload`, which was taken from here.
    pub(crate) fn settle(&self, backend: usize, payload: &Payload) {
        match self {
            Source::Whole(queue) => queue.settle(backend, payload),
            Source::Kept(tail) => tail.settle(payload),
        }
    }
}

impl From<Arc<Queue>> for Source {
    fn from(queue: Arc<Queue>) -> Source {
        Source::Whole(queue)
    }
}
