//! What the engine tells of its steps, for those who want to know of each.

use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;

use crate::ops::Pass;

/// Hears of every step, on the engine's thread: what it does there, all requests wait for.
pub trait StepObserver: Send {
    /// A step is over.
    fn step(&self, report: &StepReport);
}

/// One step, from choosing its sequences to the last of its tokens.
#[derive(Debug)]
pub struct StepReport {
    /// Steps before it since the start.
    pub index: u64,
    /// When it began.
    pub begun: Instant,
    /// When it was chosen, and launched.
    pub launched: Instant,
    /// When its forward pass began: where a step is launched early, once the one before it was computed.
    pub execute: Instant,
    /// When the results of that were there.
    pub computed: Instant,
    /// When its tokens were sampled and sent.
    pub ended: Instant,
    /// Time on the device, where it is known.
    pub device_time: Option<Duration>,
    /// How the forward pass was run.
    pub pass: Pass,
    /// Tokens of prompts, or of sequences that are computed anew.
    pub prefill_tokens: usize,
    /// Tokens that continue sequences.
    pub decode_tokens: usize,
    /// Tokens of sequences that entered the batch and need not be run.
    pub cached_tokens: usize,
    /// Sequences put back to the queue since the step before it was launched.
    pub preempted: usize,
    /// Blocks of KV cache that sequences hold.
    pub kv_blocks_used: usize,
    /// Blocks that nobody holds.
    pub kv_blocks_free: usize,
    /// Requests that wait for their first step.
    pub waiting: usize,
    /// Whose sequences were in it.
    pub members: Vec<Member>,
}

/// A sequence in a step.
#[derive(Debug, Clone)]
pub struct Member {
    /// The span of whoever asked.
    pub span: SpanContext,
    /// Its tokens.
    pub tokens: usize,
}
