//! Which sequences run in the next step, and how many tokens of each.
//!
//! Pure: no tensors, no clock, no I/O. First come, first served: running sequences first, in the order they
//! were admitted, then waiting ones while tokens, places and KV cache last. A prompt longer than what is
//! left of a step's tokens is run in chunks, so a long one never holds up the tokens of others for longer
//! than one step. KV cache is counted in blocks and taken as sequences grow; when none is left, the newest running
//! sequence gives its own back and is computed anew later. (The alternative, reserving prompt +
//! `max_tokens` at admission, needs no preemption but leaves most of the cache empty.)

use std::collections::VecDeque;

use super::request::FinishReason;
use super::sequence::{Sequence, SequenceId, SequenceState};

/// Tokens per block of KV cache: the unit in which memory is counted and caches grow.
pub(crate) const KV_BLOCK_TOKENS: usize = 64;

/// What a step may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    pub(crate) max_model_len: usize,
    /// At least what one sequence of `max_model_len` takes.
    pub(crate) kv_blocks: usize,
}

/// One sequence's part in a step: run its next `num_tokens` uncomputed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) id: SequenceId,
    pub(crate) num_tokens: usize,
    /// These tokens complete the sequence so far: a new token is sampled after them.
    pub(crate) samples: bool,
}

/// A step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) scheduled: Vec<Scheduled>,
    /// Taken out of the queue for the first time.
    pub(crate) admitted: Vec<SequenceId>,
    /// Put back to the queue: what is cached of them is to be freed.
    pub(crate) preempted: Vec<SequenceId>,
}

/// The queue and the batch.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    /// Oldest admission first.
    running: Vec<Sequence>,
    free_kv_blocks: usize,
    preemptions: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_kv_blocks: limits.kv_blocks,
            preemptions: 0,
        }
    }

    /// Queues a sequence.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Chooses the next step. Each sequence it names must then be [`Scheduler::computed`], and
    /// [`Scheduler::postprocess`]ed if it samples.
    pub(crate) fn schedule(&mut self) -> Step {
        let mut step = Step::default();
        let mut tokens_left = self.limits.max_num_batched_tokens;
        self.schedule_running(&mut step, &mut tokens_left);
        if step.preempted.is_empty() {
            // What a preemption has freed is for those that run on; admitting at once would thrash.
            self.admit(&mut step, &mut tokens_left);
        }
        step
    }

    fn schedule_running(&mut self, step: &mut Step, tokens_left: &mut usize) {
        let mut index = 0;
        while index < self.running.len() && *tokens_left > 0 {
            let sequence = &self.running[index];
            let num_tokens = sequence.uncomputed_tokens().min(*tokens_left);
            let blocks = missing_blocks(sequence, num_tokens);
            while blocks > self.free_kv_blocks && self.running.len() > index + 1 {
                self.preempt_newest(step);
            }
            if blocks > self.free_kv_blocks {
                // It is the newest itself. Alone it always fits, so an older one is running on.
                self.preempt_newest(step);
                return;
            }
            step.scheduled.push(self.take(index, num_tokens, blocks));
            *tokens_left -= num_tokens;
            index += 1;
        }
    }

    fn admit(&mut self, step: &mut Step, tokens_left: &mut usize) {
        while *tokens_left > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(sequence) = self.waiting.front() else {
                return;
            };
            let uncomputed = sequence.uncomputed_tokens();
            if missing_blocks(sequence, uncomputed) > self.free_kv_blocks {
                return;
            }
            let num_tokens = uncomputed.min(*tokens_left);
            let blocks = missing_blocks(sequence, num_tokens);
            let mut sequence = self
                .waiting
                .pop_front()
                .expect("the front was just looked at");
            sequence.state = SequenceState::Running;
            if !std::mem::replace(&mut sequence.was_scheduled, true) {
                step.admitted.push(sequence.id);
            }
            self.running.push(sequence);
            step.scheduled
                .push(self.take(self.running.len() - 1, num_tokens, blocks));
            *tokens_left -= num_tokens;
        }
    }

    /// Gives the running sequence at `index` its blocks and its part in the step.
    fn take(&mut self, index: usize, num_tokens: usize, blocks: usize) -> Scheduled {
        self.free_kv_blocks -= blocks;
        let sequence = &mut self.running[index];
        sequence.kv_blocks += blocks;
        let samples = num_tokens == sequence.uncomputed_tokens();
        Scheduled {
            id: sequence.id,
            num_tokens,
            samples,
        }
    }

    fn preempt_newest(&mut self, step: &mut Step) {
        let mut sequence = self
            .running
            .pop()
            .expect("a running sequence asked for its blocks");
        self.release(&mut sequence);
        sequence.state = SequenceState::Waiting;
        sequence.computed_tokens = 0;
        step.preempted.push(sequence.id);
        self.preemptions += 1;
        // To the front: it came before everything that waits.
        self.waiting.push_front(sequence);
    }

    fn release(&mut self, sequence: &mut Sequence) {
        self.free_kv_blocks += std::mem::take(&mut sequence.kv_blocks);
    }

    /// Records that a step has run these tokens.
    pub(crate) fn computed(&mut self, scheduled: Scheduled) {
        let sequence = self
            .running_mut(scheduled.id)
            .expect("a scheduled sequence is running");
        sequence.computed_tokens += scheduled.num_tokens;
    }

    /// Appends the token that was sampled; a sequence that ends with it leaves the batch.
    pub(crate) fn postprocess(
        &mut self,
        id: SequenceId,
        token: u32,
        eos_token_ids: &[u32],
    ) -> Option<FinishReason> {
        let max_model_len = self.limits.max_model_len;
        let sequence = self
            .running_mut(id)
            .expect("a scheduled sequence is running");
        let reason = sequence.push(token, eos_token_ids, max_model_len)?;
        self.remove(id);
        Some(reason)
    }

    /// Forgets a sequence, wherever it is.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
        } else {
            self.waiting.retain(|sequence| sequence.id != id);
        }
    }

    /// A sequence of the batch.
    pub(crate) fn running(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().find(|sequence| sequence.id == id)
    }

    fn running_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id == id)
    }

    /// True when there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences in the batch.
    pub(crate) fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue that ran before.
    pub(crate) fn num_preempted(&self) -> usize {
        self.waiting
            .iter()
            .filter(|sequence| sequence.was_scheduled)
            .count()
    }

    /// Blocks held by running sequences.
    pub(crate) fn used_kv_blocks(&self) -> usize {
        self.limits.kv_blocks - self.free_kv_blocks
    }

    /// Sequences preempted since the start.
    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }
}

/// Blocks that `num_tokens` more tokens of a sequence need beyond those it holds.
fn missing_blocks(sequence: &Sequence, num_tokens: usize) -> usize {
    let tokens = sequence.computed_tokens + num_tokens;
    tokens
        .div_ceil(KV_BLOCK_TOKENS)
        .saturating_sub(sequence.kv_blocks)
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
