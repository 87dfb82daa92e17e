//! One request as the scheduler sees it: tokens, how many of them are computed, and a state.

use super::blocks::{BlockPool, BlockTable};
use super::request::FinishReason;
use crate::sampling_params::SamplingParams;

/// Names a sequence for as long as the engine lives; later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId(pub(crate) u64);

/// Where a sequence is. A preempted one is `Waiting` again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SequenceState {
    /// In the queue.
    Waiting,
    /// In the batch.
    Running,
    /// Complete; the scheduler has let go of it.
    Finished(FinishReason),
}

/// A prompt and what has been generated from it.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) params: SamplingParams,
    pub(crate) state: SequenceState,
    /// Prompt, then output.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens whose keys and values are in the cache; the rest is still to be run.
    pub(crate) computed_tokens: usize,
    /// Where those are.
    pub(crate) table: BlockTable,
    /// Its newest token was chosen on the device, after this wanted row of the step launched last, and has not
    /// come to the host yet.
    pub(crate) carried: Option<u32>,
    /// Set by the first step; a preemption leaves it.
    pub(crate) was_scheduled: bool,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, prompt: Vec<u32>, params: SamplingParams) -> Self {
        Self {
            id,
            params,
            state: SequenceState::Waiting,
            prompt_tokens: prompt.len(),
            tokens: prompt,
            computed_tokens: 0,
            table: BlockTable::default(),
            carried: None,
            was_scheduled: false,
        }
    }

    /// Prompt and output.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens]
    }

    /// Tokens generated so far.
    pub(crate) fn output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens to run before the next one can be sampled: the prompt at first, then one at a time.
    pub(crate) fn uncomputed_tokens(&self) -> usize {
        self.tokens.len() + usize::from(self.carried.is_some()) - self.computed_tokens
    }

    /// Its tokens from `context` on, so many of them; one that has not come yet is 0.
    pub(crate) fn tokens_after(&self, context: usize, num_tokens: usize) -> &[u32] {
        const NOT_HERE_YET: &[u32] = &[0];
        if context == self.tokens.len() {
            return NOT_HERE_YET;
        }
        &self.tokens[context..context + num_tokens]
    }

    /// Whether the token after all that were given to a step is its last, whichever it is.
    pub(crate) fn ends_after_next(&self, max_model_len: usize) -> bool {
        let tokens = self.computed_tokens + 1;
        tokens - self.prompt_tokens >= self.params.max_tokens || tokens >= max_model_len
    }

    /// Blocks that `num_tokens` more need beyond those it holds.
    pub(crate) fn missing_blocks(&self, num_tokens: usize) -> usize {
        self.table.missing(self.computed_tokens + num_tokens)
    }

    /// Lets others find what is computed.
    pub(crate) fn name_blocks(&mut self, pool: &mut BlockPool) {
        let known = self.computed_tokens.min(self.tokens.len());
        pool.name(&mut self.table, &self.tokens, known);
    }

    /// Whether running its next `num_tokens` continues it, with nothing to be computed anew.
    pub(crate) fn decodes(&self, num_tokens: usize) -> bool {
        let continued = self.output_tokens() > 0 || self.carried.is_some();
        num_tokens == 1 && continued && self.uncomputed_tokens() == 1
    }

    /// Appends a sampled token; says whether the sequence ends with it.
    pub(crate) fn push(
        &mut self,
        token: u32,
        eos_token_ids: &[u32],
        max_model_len: usize,
    ) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.computed_tokens < self.tokens.len() {
            // It came before a step could take it from the device.
            self.carried = None;
        }
        let reason = self.stop_reason(token, eos_token_ids).or_else(|| {
            let full = self.output_tokens() >= self.params.max_tokens
                || self.tokens.len() >= max_model_len;
            full.then_some(FinishReason::Length)
        })?;
        self.state = SequenceState::Finished(reason);
        Some(reason)
    }

    fn stop_reason(&self, token: u32, eos_token_ids: &[u32]) -> Option<FinishReason> {
        if self.output_tokens() < self.params.min_tokens {
            return None;
        }
        if !self.params.ignore_eos && eos_token_ids.contains(&token) {
            return Some(FinishReason::Eos);
        }
        let stops = self.params.stop_token_ids.contains(&token);
        stops.then_some(FinishReason::StopToken(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: u32 = 2;

    fn push_all(params: SamplingParams, tokens: &[u32]) -> Option<(usize, FinishReason)> {
        let mut sequence = Sequence::new(SequenceId(0), vec![7, 7], params);
        for (index, &token) in tokens.iter().enumerate() {
            if let Some(reason) = sequence.push(token, &[EOS], 8) {
                assert_eq!(sequence.state, SequenceState::Finished(reason));
                return Some((index + 1, reason));
            }
        }
        None
    }

    #[test]
    fn a_sequence_ends_at_eos_stop_token_or_length() {
        let params = SamplingParams {
            stop_token_ids: vec![9],
            ..SamplingParams::default()
        };
        assert_eq!(
            push_all(params.clone(), &[5, EOS, 5]),
            Some((2, FinishReason::Eos))
        );
        assert_eq!(
            push_all(params.clone(), &[5, 9]),
            Some((2, FinishReason::StopToken(9)))
        );
        let two = SamplingParams {
            max_tokens: 2,
            ..params.clone()
        };
        assert_eq!(push_all(two, &[5, 5, 5]), Some((2, FinishReason::Length)));
        assert_eq!(
            push_all(params, &[5; 10]),
            Some((6, FinishReason::Length)),
            "context of 8"
        );
    }

    #[test]
    fn ignored_eos_and_min_tokens_let_a_sequence_go_on() {
        let ignore = SamplingParams {
            ignore_eos: true,
            ..SamplingParams::default()
        };
        assert_eq!(push_all(ignore, &[EOS, 5]), None);
        let min = SamplingParams {
            min_tokens: 2,
            ..SamplingParams::default()
        };
        assert_eq!(push_all(min, &[EOS, EOS]), Some((2, FinishReason::Eos)));
    }
}
