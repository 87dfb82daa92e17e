//! Which sequences run in the next step, and how many tokens of each.
//!
//! Pure: no tensors, no clock, no I/O. First come, first served: running sequences first, in the order they
//! were admitted, then waiting ones while tokens, places and KV cache last. A prompt longer than what is
//! left of a step's tokens is run in chunks, so a long one never holds up the tokens of others for longer
//! than one step. A sequence that begins as others did shares their blocks of KV cache and runs what is left.
//! Blocks are taken as sequences grow; when none is left, the newest running sequence gives its own
//! back and is computed anew later. (The alternative, reserving prompt + `max_tokens` at
//! admission, needs no preemption but leaves most of the cache empty.)

use std::collections::VecDeque;

use super::blocks::BlockPool;
use super::request::FinishReason;
use super::sequence::{Sequence, SequenceId, SequenceState};

/// What a step may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    pub(crate) max_model_len: usize,
    /// At least what one sequence of `max_model_len` takes.
    pub(crate) kv_blocks: usize,
    /// Whether what was computed is found again.
    pub(crate) prefix_caching: bool,
}

/// One sequence's part in a step: run its next `num_tokens` uncomputed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) id: SequenceId,
    /// Tokens that came before.
    pub(crate) context: usize,
    pub(crate) num_tokens: usize,
    /// These tokens complete the sequence so far: a new token is sampled after them.
    pub(crate) samples: bool,
}

/// A step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) scheduled: Vec<Scheduled>,
    /// Taken out of the queue, for the first time or again.
    pub(crate) admitted: Vec<Admitted>,
    /// Put back to the queue.
    pub(crate) preempted: Vec<SequenceId>,
}

/// A sequence that enters the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) id: SequenceId,
    /// Tokens that need not be run: their keys and values are there.
    pub(crate) cached_tokens: usize,
    /// It was in the batch before, and preempted.
    pub(crate) again: bool,
}

/// Counts since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Sequences preempted.
    pub(crate) preemptions: u64,
    /// Prompt tokens that were looked for in the cache.
    pub(crate) cache_queries: u64,
    /// Those found.
    pub(crate) cache_hits: u64,
}

/// The queue and the batch.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    /// Oldest first.
    running: Vec<Sequence>,
    /// Of those that wait: the queue may be long, and whoever asks after each step would walk it.
    num_preempted: usize,
    pool: BlockPool,
    counts: Counts,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_preempted: 0,
            pool: BlockPool::new(limits.kv_blocks, limits.prefix_caching),
            counts: Counts::default(),
        }
    }

    /// Queues a sequence.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Chooses the next step. Each sequence it names must then be [`Scheduler::launched`], and
    /// [`Scheduler::postprocess`]ed if it samples: before the next step, or, where its token is carried, before the
    /// one after that.
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
            if num_tokens == 0 {
                // All of it is in a step under way.
                index += 1;
                continue;
            }
            let blocks = sequence.missing_blocks(num_tokens);
            while blocks > self.pool.free() && self.running.len() > index + 1 {
                self.preempt_newest(step);
            }
            if blocks > self.pool.free() {
                // It is the newest itself. Alone it always fits, so an older one is running on.
                self.preempt_newest(step);
                return;
            }
            step.scheduled.push(self.take(index, num_tokens));
            *tokens_left -= num_tokens;
            index += 1;
        }
    }

    fn admit(&mut self, step: &mut Step, tokens_left: &mut usize) {
        while *tokens_left > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(sequence) = self.waiting.front() else {
                return;
            };
            let tokens = sequence.tokens();
            // All rows of a prompt are run when log probabilities of them are wanted.
            let findable = sequence.params.prompt_logprobs.is_none();
            let prefix = self.pool.find(if findable { tokens } else { &[] });
            if prefix.needed_blocks(tokens.len()) > self.pool.free() {
                return;
            }
            let mut sequence = self
                .waiting
                .pop_front()
                .expect("the front was just looked at");
            let cached_tokens = prefix.tokens();
            sequence.state = SequenceState::Running;
            sequence.computed_tokens = cached_tokens;
            sequence.table = self.pool.hold(prefix);
            let again = std::mem::replace(&mut sequence.was_scheduled, true);
            self.num_preempted -= usize::from(again);
            if findable && !again {
                self.counts.cache_queries += sequence.tokens().len() as u64;
                self.counts.cache_hits += cached_tokens as u64;
            }
            let num_tokens = sequence.uncomputed_tokens().min(*tokens_left);
            step.admitted.push(Admitted {
                id: sequence.id,
                cached_tokens,
                again,
            });
            self.running.push(sequence);
            step.scheduled
                .push(self.take(self.running.len() - 1, num_tokens));
            *tokens_left -= num_tokens;
        }
    }

    /// Gives the running sequence at `index` its blocks and its part in the step.
    fn take(&mut self, index: usize, num_tokens: usize) -> Scheduled {
        let sequence = &mut self.running[index];
        let tokens = sequence.computed_tokens + num_tokens;
        self.pool.extend(&mut sequence.table, tokens);
        let samples = num_tokens == sequence.uncomputed_tokens();
        Scheduled {
            id: sequence.id,
            context: sequence.computed_tokens,
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
        sequence.carried = None;
        step.preempted.push(sequence.id);
        self.counts.preemptions += 1;
        self.num_preempted += 1;
        // To the front: it came before everything that waits.
        self.waiting.push_front(sequence);
    }

    fn release(&mut self, sequence: &mut Sequence) {
        self.pool.release(std::mem::take(&mut sequence.table));
    }

    /// Records that a step with these tokens is under way. If the device chooses the token after them, the next
    /// step can take it from there: from `chosen` of the step's wanted rows.
    pub(crate) fn launched(&mut self, scheduled: Scheduled, chosen: Option<u32>) {
        let max_model_len = self.limits.max_model_len;
        let index = self.index(scheduled.id);
        let sequence = &mut self.running[index.expect("a scheduled sequence is running")];
        sequence.computed_tokens += scheduled.num_tokens;
        sequence.carried = chosen.filter(|_| !sequence.ends_after_next(max_model_len));
        sequence.name_blocks(&mut self.pool);
    }

    /// Appends the token that was sampled; a sequence that ends with it leaves the batch.
    pub(crate) fn postprocess(
        &mut self,
        id: SequenceId,
        token: u32,
        eos_token_ids: &[u32],
    ) -> Option<FinishReason> {
        let max_model_len = self.limits.max_model_len;
        let sequence = match self.index(id) {
            Some(index) => &mut self.running[index],
            // Preempted since that step.
            None => {
                let mut waiting = self.waiting.iter_mut();
                let found = waiting.find(|sequence| sequence.id == id);
                found.expect("a sequence that has a token is here")
            }
        };
        let reason = sequence.push(token, eos_token_ids, max_model_len)?;
        self.remove(id);
        Some(reason)
    }

    /// Forgets a sequence, wherever it is.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        if let Some(index) = self.index(id) {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
        } else if let Some(index) = self.waiting.iter().position(|waiting| waiting.id == id) {
            let sequence = self.waiting.remove(index);
            let preempted = sequence.is_some_and(|sequence| sequence.was_scheduled);
            self.num_preempted -= usize::from(preempted);
        }
    }

    /// A sequence of the batch, or of the queue.
    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        let waiting = || self.waiting.iter().find(|sequence| sequence.id == id);
        self.running(id).or_else(waiting)
    }

    /// A sequence of the batch.
    pub(crate) fn running(&self, id: SequenceId) -> Option<&Sequence> {
        self.index(id).map(|index| &self.running[index])
    }

    /// Where in the batch, which is in the order of ids.
    fn index(&self, id: SequenceId) -> Option<usize> {
        let found = self.running.binary_search_by_key(&id, |running| running.id);
        found.ok()
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
        self.num_preempted
    }

    /// Blocks held by running sequences.
    pub(crate) fn used_kv_blocks(&self) -> usize {
        self.limits.kv_blocks - self.pool.free()
    }

    /// Blocks that nobody holds, whatever they remember.
    pub(crate) fn free_kv_blocks(&self) -> usize {
        self.pool.free()
    }

    /// What has happened since the start.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
#[path = "scheduler_properties.rs"]
mod properties;
#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
