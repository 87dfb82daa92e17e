//! A request while the engine works on it: who is told what, and the clock of its steps.

use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use tokio::sync::mpsc::UnboundedSender;

use super::queue::QueueSlot;
use super::request::{Event, StepTimes, TokenLogprobs};
use super::runner::ModelRunner;
use super::sampler::{Sampler, token_logprobs};
use super::sequence::Sequence;
use crate::ops::StepResult;

/// A request beside its sequence.
pub(super) struct Active {
    pub(super) events: UnboundedSender<Event>,
    /// Whose it is.
    pub(super) span: SpanContext,
    /// Held until it is scheduled.
    pub(super) slot: Option<QueueSlot>,
    pub(super) sampler: Sampler,
    /// While they are being computed: one entry per prompt token so far.
    pub(super) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Its steps so far.
    pub(super) times: StepTimes,
}

/// A step under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepClock {
    pub(super) scheduler: Duration,
    pub(super) model_forward: Duration,
    /// When the forward pass began.
    pub(super) execute: Instant,
}

impl StepClock {
    /// The step until then.
    pub(super) fn times(&self, until: Instant) -> StepTimes {
        StepTimes {
            scheduler: self.scheduler,
            model_forward: self.model_forward,
            model_execute: until.saturating_duration_since(self.execute),
        }
    }
}

impl Active {
    /// A send fails when the stream was dropped; the next step finds that out.
    pub(super) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Adds what this step says of the prompt; sends all of it once complete. The sequence's
    /// `num_tokens` rows start at `row`.
    pub(super) fn extend_prompt_logprobs(
        &mut self,
        runner: &ModelRunner,
        result: &StepResult,
        sequence: &Sequence,
        (row, num_tokens): (usize, usize),
    ) -> candle_core::Result<()> {
        let (Some(logprobs), Some(top)) =
            (&mut self.prompt_logprobs, sequence.params.prompt_logprobs)
        else {
            return Ok(());
        };
        let prompt = sequence.prompt();
        // The row of a token speaks of the next one; what follows the last is the output's.
        let rows = num_tokens.min(prompt.len() - 1 - sequence.computed_tokens);
        runner.for_each_row(result, (row, row + rows), |logits| {
            let token = prompt[logprobs.len()];
            logprobs.push(Some(token_logprobs(logits, token, top)));
        })?;
        if logprobs.len() == prompt.len() {
            let logprobs = std::mem::take(logprobs);
            self.prompt_logprobs = None;
            self.send(Event::PromptLogprobs(logprobs));
        }
        Ok(())
    }
}
