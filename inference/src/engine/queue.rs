//! The bounded queue of requests that wait for their first step, as places in it.
//!
//! Places are taken before a request is sent, so that the channel to the engine's thread needs no
//! bound of its own. Whoever will send one request after the other takes its places once and keeps
//! them: what has begun is not refused half-way because others came meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How full the queue is.
#[derive(Debug, Default)]
pub(super) struct Queue {
    taken: AtomicUsize,
    waiting: AtomicUsize,
}

impl Queue {
    /// Takes `count` places, unless that would make more than `limit`.
    pub(super) fn take(self: &Arc<Self>, count: usize, limit: usize) -> Option<Arc<Places>> {
        add_up_to(&self.taken, count, limit).then(|| {
            Arc::new(Places {
                queue: Arc::clone(self),
                count,
                in_use: AtomicUsize::new(0),
            })
        })
    }

    /// Requests that wait for their first step now.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Places taken together, given back together on drop.
#[derive(Debug)]
pub(super) struct Places {
    queue: Arc<Queue>,
    count: usize,
    in_use: AtomicUsize,
}

impl Places {
    /// Puts one request into one of these places, unless all are in use.
    pub(super) fn enter(self: &Arc<Self>) -> Option<QueueSlot> {
        add_up_to(&self.in_use, 1, self.count).then(|| {
            self.queue.waiting.fetch_add(1, Ordering::Relaxed);
            QueueSlot(Arc::clone(self))
        })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.queue.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// A request's place while it waits, given up on drop. Keeps all the places taken with it, so that
/// they outlive whoever took them until the engine has seen the request.
#[derive(Debug)]
pub(crate) struct QueueSlot(Arc<Places>);

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
        self.0.queue.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn add_up_to(counter: &AtomicUsize, count: usize, limit: usize) -> bool {
    let add = |taken: usize| taken.checked_add(count).filter(|&sum| sum <= limit);
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
        .is_ok()
}
