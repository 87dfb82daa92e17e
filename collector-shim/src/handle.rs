//! What a shim is made of behind its ports, and what it tells of itself.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::config::{Destination, Waiting};
use crate::counts::{Counters, Counts};
use crate::exporter::{Direct, Exporter, Outlet};
use crate::intake::Sink;
use crate::log::{Log, QueueDirError};
use crate::queue::{MemoryQueue, Queue};
use crate::signal::Signal;
use crate::store::{Store, Trace};
use crate::tail::{Source, TailPolicy, TailQueue};

/// Asks a shim, while it runs and after, what it has done.
#[derive(Debug, Clone)]
pub struct ShimHandle {
    pub(crate) sink: Sink,
    pub(crate) outlets: Vec<Arc<Outlet>>,
    pub(crate) counters: Arc<Counters>,
    /// Which traces are sent on; None sends all.
    pub(crate) tail: Option<TailPolicy>,
}

impl ShimHandle {
    /// What `destination` asks for, empty or as it was left.
    pub(crate) async fn open(
        destination: &Destination,
        tail: Option<TailPolicy>,
    ) -> Result<ShimHandle, QueueDirError> {
        let (backends, max_bytes, waiting) = match destination {
            Destination::Store { max_bytes } => {
                return Ok(ShimHandle {
                    sink: Sink::Store(Arc::new(Store::new(*max_bytes))),
                    outlets: Vec::new(),
                    counters: Arc::default(),
                    tail: None,
                });
            }
            Destination::Backends {
                backends,
                queue_max_bytes,
                waiting,
            } => (backends, *queue_max_bytes, waiting.clone()),
        };
        let counters = Arc::new(Counters::new(backends.len()));
        let outlets: Vec<_> = backends.iter().map(Outlet::new).map(Arc::new).collect();
        let sink = match waiting {
            Waiting::AtSender => {
                let direct = Direct::new(outlets.clone(), max_bytes, Arc::clone(&counters));
                Sink::Direct(Arc::new(direct))
            }
            Waiting::InMemory => {
                let queue = MemoryQueue::new(max_bytes, backends.len());
                Sink::Queue(Arc::new(Queue::Memory(queue)))
            }
            Waiting::OnDisk(dir) => {
                let counters = Arc::clone(&counters);
                let names = backends.iter().map(|backend| backend.name.clone());
                let names = names.collect();
                // All that waits is read once.
                let opening =
                    tokio::task::spawn_blocking(move || Log::open(dir, max_bytes, names, counters));
                let log = opening.await.expect("opening a log does not panic")?;
                Sink::Queue(Arc::new(Queue::Disk(log)))
            }
        };
        Ok(ShimHandle {
            sink,
            outlets,
            counters,
            tail,
        })
    }

    /// What spans came in and what became of them.
    pub fn counts(&self) -> Counts {
        self.counts_of(Signal::Traces)
    }

    /// The same of another signal: data points, log records, profiles.
    pub fn counts_of(&self, signal: Signal) -> Counts {
        let counters = &self.counters;
        // What became of items is read before what came in, so that the sums never run ahead.
        let mut counts = Counts::default();
        for backend in &counters.backends {
            counts.delivered_spans += backend.delivered.of(signal).get();
            counts.rejected_spans += backend.rejected.of(signal).get();
            counts.unsent_spans += backend.unsent.of(signal).get();
            if signal == Signal::Traces {
                counts.dropped_spans += backend.tail.dropped_spans.get();
            }
            counts.retries += backend.retries.get();
        }
        if signal == Signal::Traces {
            counts.delivered_spans += counters.stored_spans.get();
        }
        counts.received_spans = counters.accepted.of(signal).total();
        counts.refused_spans = counters.refused.of(signal).total();
        counts.recovered_spans = counters.recovered.of(signal).get();
        counts.damaged_records = counters.damaged_records.get();
        counts.torn_bytes = counters.torn_bytes.get();
        counts.dead_letters = counters.dead_letters.get();
        match &self.sink {
            Sink::Queue(queue) => {
                let backends = 0..self.outlets.len();
                let levels = backends.map(|backend| queue.level(backend));
                for level in levels {
                    counts.queued_spans += level.items.of(signal);
                    counts.queued_bytes += level.bytes as u64;
                }
            }
            Sink::Direct(_) => {}
            Sink::Store(store) => {
                let holdings = store.holdings();
                counts.evicted_spans = holdings.evicted_spans;
                counts.evicted_traces = holdings.evicted_traces;
            }
        }
        counts
    }

    /// Begins to send what waits; each sender ends once the queue is closed and empty.
    pub(crate) fn start_senders(&self) -> JoinSet<()> {
        let mut senders = JoinSet::new();
        if let Sink::Queue(queue) = &self.sink {
            for backend in 0..self.outlets.len() {
                let (outlets, queue) = (self.outlets.clone(), Arc::clone(queue));
                let counters = || Arc::clone(&self.counters);
                let source = match self.tail.clone() {
                    None => Source::Whole(queue),
                    Some(policy) => {
                        Source::Kept(Box::new(TailQueue::new(queue, backend, policy, counters())))
                    }
                };
                Exporter::new(outlets, backend, source, counters()).start(&mut senders);
            }
        }
        senders
    }

    /// A trace by its id: hex of any case, leading zeros optional. None when it is not known, or
    /// when spans are forwarded and not kept.
    pub fn trace(&self, trace_id: &str) -> Option<Trace> {
        match &self.sink {
            Sink::Queue(_) | Sink::Direct(_) => None,
            Sink::Store(store) => store.trace(trace_id).map(Trace::from),
        }
    }
}
