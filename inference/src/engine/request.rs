//! The engine's border: a [`Request`] goes in, [`Event`]s come out, dropping the stream cancels.
//!
//! Everything here is plain data and channels, so the API layer is tested against a scripted
//! engine and the engine against a plain caller. [`super::Engine`] owns the other end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use opentelemetry::trace::SpanContext;
use tokio::sync::mpsc;

use super::queue::QueueSlot;
use crate::sampling_params::SamplingParams;

/// One sequence to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids of the prompt; at least one.
    pub prompt_tokens: Vec<u32>,
    /// How to sample and when to stop.
    pub params: SamplingParams,
    /// The span of whoever asks: handed on to those who are told of steps, and not read.
    pub span: SpanContext,
}

/// Log probabilities (natural logarithm, of the model's own distribution) at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token at this position and its log probability.
    pub token: (u32, f32),
    /// Rank of that token, 1 for the most likely.
    pub rank: usize,
    /// The most likely tokens, best first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end-of-sequence token.
    Eos,
    /// One of the request's own `stop_token_ids`.
    StopToken(u32),
    /// `max_tokens` or the model's context was reached.
    Length,
}

/// Time of the engine's steps that a sequence took part in, summed up. A step that it shared with
/// others counts whole for each of them: that is how long it kept the sequence busy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Choosing the steps.
    pub scheduler: Duration,
    /// Forward passes, until the logits that they were run for are on the host.
    pub model_forward: Duration,
    /// Forward passes, waits for the device and sampling.
    pub model_execute: Duration,
}

impl StepTimes {
    /// Both one after the other.
    pub fn and(self, next: Self) -> Self {
        Self {
            scheduler: self.scheduler + next.scheduler,
            model_forward: self.model_forward + next.model_forward,
            model_execute: self.model_execute + next.model_execute,
        }
    }

    /// The longer of each.
    pub fn longest(self, other: Self) -> Self {
        Self {
            scheduler: self.scheduler.max(other.scheduler),
            model_forward: self.model_forward.max(other.model_forward),
            model_execute: self.model_execute.max(other.model_execute),
        }
    }
}

/// What happens to a request, in order: `Scheduled`, `PromptLogprobs` where asked, `Token`s, then
/// `Finished` or `Failed` once. The terminating token is sent as a `Token` too. Between those, `Preempted`
/// and after it `Resumed`, as often as the KV cache is short.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The scheduler took it out of the queue for the first time.
    Scheduled {
        /// When.
        at: Instant,
        /// Tokens of the prompt that need not be run: another request's cache has them.
        cached_tokens: usize,
    },
    /// It gave its KV cache to an older one, and waits again.
    Preempted {
        /// When.
        at: Instant,
    },
    /// It goes on; what the cache has lost is computed anew.
    Resumed {
        /// When.
        at: Instant,
        /// Tokens that the cache still has.
        cached_tokens: usize,
    },
    /// One entry per prompt token; the first has nothing before it and is `None`.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// One sampled token.
    Token {
        /// Its id.
        id: u32,
        /// Present when `params.logprobs` asked for it.
        logprobs: Option<TokenLogprobs>,
        /// When it was sampled.
        at: Instant,
        /// All steps until then. With every token and not at the end, which a request that is
        /// cancelled (by a stop string, say) never sees.
        times: StepTimes,
    },
    /// The sequence is complete.
    Finished {
        /// Why.
        reason: FinishReason,
        /// When.
        at: Instant,
    },
    /// The engine could not go on with it (a device error, a shutdown).
    Failed {
        /// What went wrong, for the error body and the span.
        message: String,
    },
}

/// A request on its way into the engine.
#[derive(Debug)]
pub struct Submission {
    /// What to generate.
    pub request: Request,
    /// When it was handed over.
    pub queued: Instant,
    /// Where its events go. Closed when the caller has dropped the stream: that cancels it.
    pub events: mpsc::UnboundedSender<Event>,
    /// Its place in the bounded queue; given back when the engine first schedules it.
    pub(crate) slot: Option<QueueSlot>,
}

/// The events of one request; always ends with `Finished` or `Failed`. Dropping it cancels the request.
///
/// The channel needs no bound of its own: it holds at most `max_tokens` + 3 events, and two for each time that the
/// request was preempted, for which older ones have to fill a block.
#[derive(Debug)]
pub struct RequestStream {
    events: mpsc::UnboundedReceiver<Event>,
    /// The last event has been seen.
    ended: bool,
    /// When the request was handed over.
    pub queued: Instant,
    /// Counts the streams that were dropped, so that the engine looks for them only if there are any.
    pub(super) dropped: Arc<AtomicUsize>,
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        // Closed before it is counted: whoever sees the count finds the stream closed.
        self.events.close();
        self.dropped.fetch_add(1, Ordering::Release);
    }
}

impl Submission {
    /// A submission and the stream that its events arrive on.
    pub fn new(request: Request) -> (Self, RequestStream) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = Instant::now();
        (
            Self {
                request,
                queued,
                events: sender,
                slot: None,
            },
            RequestStream {
                events: receiver,
                ended: false,
                queued,
                dropped: Arc::default(),
            },
        )
    }
}

impl Submission {
    /// Gives its place in the queue back: it is about to run.
    pub fn leave_queue(&mut self) {
        self.slot = None;
    }
}

impl Stream for RequestStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = match self.events.poll_recv(cx) {
            // The engine is gone without a word: it panicked, or ended between submit and intake.
            Poll::Ready(None) if !self.ended => Event::Failed {
                message: "the engine ended".into(),
            },
            Poll::Ready(Some(event)) => event,
            other => return other,
        };
        self.ended = matches!(event, Event::Finished { .. } | Event::Failed { .. });
        Poll::Ready(Some(event))
    }
}
