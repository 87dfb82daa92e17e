//! A request while the engine works on it: who is told what, and the clock of its steps.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use rayon::prelude::*;
use tokio::sync::mpsc::UnboundedSender;

use super::observer::{Member, StepReport};
use super::queue::QueueSlot;
use super::request::{Event, StepTimes, TokenLogprobs};
use super::runner::ModelRunner;
use super::sampler::{SampleError, Sampled, Sampler, token_logprobs};
use super::scheduler::{Scheduled, Scheduler, Step};
use super::sequence::{Sequence, SequenceId};
use crate::grammar::GrammarState;
use crate::ops::{Pass, RowResult, StepResult};

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
pub(super) struct Flight {
    pub(super) step: Step,
    /// Time that it took to choose.
    pub(super) scheduler: Duration,
    /// When it was launched.
    pub(super) launched: Instant,
    /// Nothing is wanted of it that the next step overwrites.
    pub(super) can_wait: bool,
    /// As far as it is known, if somebody wants to hear of it.
    pub(super) report: Option<StepReport>,
}

/// Where the time of a step has gone.
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

    /// Adds what this step says of the prompt; sends all of it once complete. The rows of
    /// its `part` start at `row`.
    pub(super) fn extend_prompt_logprobs(
        &mut self,
        runner: &ModelRunner,
        result: &StepResult,
        sequence: &Sequence,
        (row, part): (usize, &Scheduled),
    ) -> candle_core::Result<()> {
        let (Some(logprobs), Some(top)) =
            (&mut self.prompt_logprobs, sequence.params.prompt_logprobs)
        else {
            return Ok(());
        };
        let prompt = sequence.prompt();
        // The row of a token speaks of the next one; what follows the last is the output's.
        let rows = part.num_tokens.min(prompt.len() - 1 - part.context);
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

/// Has the grammars of a step say what can come next, all at once and while the device computes. They have seen all
/// tokens there are: a sequence for which the host chooses is not in a step before its last token has come.
pub(super) fn prepare_grammars(active: &mut BTreeMap<SequenceId, Active>, step: &Step) {
    let samples = step.scheduled.iter().filter(|it| it.samples);
    let samples: HashSet<_> = samples.map(|it| it.id).collect();
    let sampling = active.iter_mut().filter(|(id, _)| samples.contains(id));
    let grammars: Vec<_> = sampling
        .filter_map(|(_, active)| active.sampler.grammar())
        .collect();
    grammars.into_par_iter().for_each(GrammarState::prepare);
}

/// Draws the tokens after a step's wanted rows, side by side where the host has several to draw. Those that were
/// cancelled, or have ended by the step before, are not there any more.
pub(super) fn draw(
    active: &mut BTreeMap<SequenceId, Active>,
    scheduler: &Scheduler,
    (step, rows): (&Step, Vec<RowResult>),
) -> Vec<(SequenceId, Result<Sampled, SampleError>)> {
    let on_host = |row: &&RowResult| matches!(row, RowResult::Logits(_));
    let several = rows.iter().filter(on_host).nth(1).is_some();
    let sampling = step.scheduled.iter().filter(|it| it.samples);
    let mut rows: BTreeMap<_, _> = sampling.map(|it| it.id).zip(rows).collect();
    let (Some((&first, _)), Some((&last, _))) = (rows.first_key_value(), rows.last_key_value())
    else {
        return Vec::new();
    };
    // Not all of them: those that wait for their first step may be many more.
    let there = active.range_mut(first..=last);
    let there = there.filter_map(|(id, active)| Some((*id, rows.remove(id)?, &mut active.sampler)));
    let sample = |(id, row, sampler): (SequenceId, RowResult, &mut Sampler)| {
        let sequence = scheduler.sequence(id);
        let sequence = sequence.expect("what is active is scheduled or waits");
        (id, sampler.sample(row, sequence))
    };
    if several {
        let there: Vec<_> = there.collect();
        there.into_par_iter().map(sample).collect()
    } else {
        there.map(sample).collect()
    }
}

/// A step as far as it is known when it is launched.
pub(super) fn step_report(
    step: &Step,
    scheduler: &Scheduler,
    active: &BTreeMap<SequenceId, Active>,
    (begun, launched): (Instant, Instant),
) -> StepReport {
    let member = |scheduled: &Scheduled| Member {
        span: active[&scheduled.id].span.clone(),
        tokens: scheduled.num_tokens,
    };
    let decodes = |part: &&Scheduled| {
        let sequence = scheduler.running(part.id);
        sequence.is_some_and(|sequence| sequence.decodes(part.num_tokens))
    };
    let tokens: usize = step.scheduled.iter().map(|part| part.num_tokens).sum();
    let decode_tokens = step.scheduled.iter().filter(decodes).count();
    let cached = step.admitted.iter().map(|admitted| admitted.cached_tokens);
    StepReport {
        index: 0,
        begun,
        launched,
        execute: launched,
        computed: launched,
        ended: launched,
        device_time: None,
        pass: Pass::Graph,
        prefill_tokens: tokens - decode_tokens,
        decode_tokens,
        cached_tokens: cached.sum(),
        preempted: 0,
        kv_blocks_used: scheduler.used_kv_blocks(),
        kv_blocks_free: scheduler.free_kv_blocks(),
        waiting: 0,
        members: step.scheduled.iter().map(member).collect(),
    }
}
