//! The spans that wait to be exported, as the bytes that will be sent. A span is encoded on the thread that
//! ended it: that costs less than to hand it over, and what the span was made of goes back to the allocator
//! where it came from. The queue grows as it fills, up to its bound; what finds it full is dropped and
//! entered into the ledger.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::{Notify, mpsc};

use super::limits::truncate_values;
use super::{DropLedger, encode};

/// Deployed gRPC receivers refuse messages of more than 4 MiB, and a few captured prompts make a large
/// batch; the rest is for the resource and the scopes.
const MAX_REQUEST_BYTES: usize = 3 * 1024 * 1024;
/// Room for an ordinary span.
const SPAN_BYTES: usize = 1024;
/// Flushes that are asked for at once.
pub(super) const MAX_COMMANDS: usize = 64;
/// How long a flush waits. Whoever calls gives up earlier.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// How much waits, and how much is sent at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// Spans that may wait.
    pub(crate) queue_spans: usize,
    /// Spans of one request.
    pub(crate) batch_spans: usize,
    /// The longest that a string value may be.
    pub(crate) value_chars: Option<usize>,
}

/// The queue, between those who end spans and the one who exports them.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    limits: QueueLimits,
    state: Mutex<State>,
    complete: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Spans are added to the last.
    batches: VecDeque<Batch>,
    queued: usize,
    in_flight: usize,
}

/// The spans of one request.
#[derive(Debug, Default)]
pub(super) struct Batch {
    parts: Vec<Part>,
    spans: usize,
    bytes: usize,
}

/// Those of them that one scope made.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) scope: InstrumentationScope,
    /// One after the other, as OTLP has them.
    pub(super) spans: Vec<u8>,
}

impl Batch {
    /// One more span, encoded.
    pub(super) fn push(&mut self, scope: &InstrumentationScope, span: &[u8]) {
        self.spans += 1;
        self.bytes += span.len();
        match self.parts.iter_mut().find(|part| part.scope == *scope) {
            Some(part) => part.spans.extend_from_slice(span),
            None => self.parts.push(Part {
                scope: scope.clone(),
                spans: span.to_vec(),
            }),
        }
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn spans(&self) -> usize {
        self.spans
    }

    /// The size of its spans.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl State {
    /// Whether this span completes a batch.
    fn push(&mut self, limits: &QueueLimits, scope: &InstrumentationScope, span: &[u8]) -> bool {
        let last = self.batches.back();
        let is_full = last.is_none_or(|last| last.spans >= limits.batch_spans);
        let is_cut =
            !is_full && last.is_some_and(|last| last.bytes + span.len() > MAX_REQUEST_BYTES);
        if is_full || is_cut {
            self.batches.push_back(Batch::default());
        }
        let last = self.batches.back_mut().expect("there is one now");
        last.push(scope, span);
        self.queued += 1;
        is_cut || last.spans == limits.batch_spans
    }
}

impl SpanQueue {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            complete: Notify::new(),
        }
    }

    /// Spans that were accepted and have neither been sent nor given up.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state();
        state.queued + state.in_flight
    }

    /// Waits until a batch is complete.
    pub(super) async fn completed(&self) {
        self.complete.notified().await;
    }

    /// How many batches there are, complete or not.
    pub(super) fn batches(&self) -> usize {
        self.state().batches.len()
    }

    /// The next batch, to be exported. `complete`: only one that is complete.
    pub(super) fn take(&self, complete: bool) -> Option<Batch> {
        let mut state = self.state();
        let is_complete = state.batches.len() > 1
            || state
                .batches
                .front()
                .is_some_and(|first| first.spans >= self.limits.batch_spans);
        if complete && !is_complete {
            return None;
        }
        let batch = state.batches.pop_front()?;
        state.queued -= batch.spans;
        state.in_flight += batch.spans;
        Some(batch)
    }

    /// The export of so many spans is over.
    pub(super) fn export_ends(&self, spans: usize) {
        self.state().in_flight -= spans;
    }

    /// Takes the span in, if there is a place.
    fn enter(&self, mut span: SpanData) -> bool {
        if let Some(limit) = self.limits.value_chars {
            truncate_values(&mut span, limit);
        }
        let mut encoded = Vec::with_capacity(SPAN_BYTES);
        encode::span(&span, &mut encoded);
        let mut state = self.state();
        if state.queued >= self.limits.queue_spans {
            return false;
        }
        let completes = state.push(&self.limits, &span.instrumentation_scope, &encoded);
        drop(state);
        if completes {
            self.complete.notify_one();
        }
        true
    }

    /// What is locked is whole between any two statements.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the exporter is asked to do, and where it tells how that went.
#[derive(Debug)]
pub(super) enum Command {
    /// To export what there is.
    Flush(SyncSender<OTelSdkResult>),
    /// And to end.
    Shutdown(SyncSender<OTelSdkResult>),
}

/// The queue as the SDK sees it.
#[derive(Debug)]
pub(crate) struct QueueProcessor {
    queue: Arc<SpanQueue>,
    commands: mpsc::Sender<Command>,
    ledger: Arc<DropLedger>,
    full: String,
}

impl QueueProcessor {
    /// `commands` go to the exporter that takes from `queue`.
    pub(super) fn new(
        queue: Arc<SpanQueue>,
        commands: mpsc::Sender<Command>,
        ledger: Arc<DropLedger>,
    ) -> Self {
        let full = format!("the queue of {} spans is full", queue.limits.queue_spans);
        Self {
            queue,
            commands,
            ledger,
            full,
        }
    }

    fn ask(
        &self,
        command: impl FnOnce(SyncSender<OTelSdkResult>) -> Command,
        limit: Duration,
    ) -> OTelSdkResult {
        let (answer, answered) = sync_channel(1);
        let refused = |error: mpsc::error::TrySendError<Command>| match error {
            mpsc::error::TrySendError::Closed(_) => OTelSdkError::AlreadyShutdown,
            mpsc::error::TrySendError::Full(_) => {
                OTelSdkError::InternalFailure("too many flushes at once".to_owned())
            }
        };
        self.commands.try_send(command(answer)).map_err(refused)?;
        answered.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => OTelSdkError::Timeout(limit),
            RecvTimeoutError::Disconnected => {
                OTelSdkError::InternalFailure("the exporter is gone".to_owned())
            }
        })?
    }
}

impl SpanProcessor for QueueProcessor {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !self.queue.enter(span) {
            self.ledger.lost(1, &self.full);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.ask(Command::Flush, FLUSH_LIMIT)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.ask(Command::Shutdown, timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits {
        queue_spans: 8,
        batch_spans: 2,
        value_chars: None,
    };

    /// The sizes of the batches that spans of these sizes become, and which of them completed one.
    fn batches(span_bytes: &[usize]) -> (Vec<usize>, Vec<bool>) {
        let (mut state, scope) = (State::default(), InstrumentationScope::default());
        let completed = span_bytes
            .iter()
            .map(|&bytes| state.push(&LIMITS, &scope, &vec![0; bytes]))
            .collect();
        assert_eq!(state.queued, span_bytes.len());
        (state.batches.iter().map(Batch::spans).collect(), completed)
    }

    #[test]
    fn a_batch_is_complete_with_its_last_span() {
        assert_eq!(batches(&[9]), (vec![1], vec![false]));
        let completed = vec![false, true, false, true, false];
        assert_eq!(batches(&[9; 5]), (vec![2, 2, 1], completed));
    }

    #[test]
    fn a_batch_that_would_be_too_long_for_receivers_is_cut_before() {
        let half = MAX_REQUEST_BYTES / 2 + 1;
        assert_eq!(batches(&[half, half]), (vec![1, 1], vec![false, true]));
        let longer = MAX_REQUEST_BYTES + 1;
        assert_eq!(batches(&[longer, 0]).0, [1, 1]);
        assert_eq!(batches(&[0, longer]).0, [1, 1]);
    }

    #[test]
    fn what_is_taken_is_in_flight_until_its_export_ends() {
        let queue = SpanQueue::new(LIMITS);
        let scope = InstrumentationScope::default();
        for _ in 0..3 {
            queue.state().push(&LIMITS, &scope, &[0]);
        }
        assert_eq!(queue.take(true).map(|batch| batch.spans()), Some(2));
        assert!(queue.take(true).is_none(), "the other is not complete");
        assert_eq!(queue.take(false).map(|batch| batch.spans()), Some(1));
        assert_eq!((queue.waiting(), queue.batches()), (3, 0));
        queue.export_ends(2);
        assert_eq!(queue.waiting(), 1);
    }
}
