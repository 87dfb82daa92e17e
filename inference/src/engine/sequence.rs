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
        self.tokens.len() - self.computed_tokens
    }

    /// Blocks that `num_tokens` more need beyond those it holds.
    pub(crate) fn missing_blocks(&self, num_tokens: usize) -> usize {
        self.table.missing(self.computed_tokens + num_tokens)
    }

    /// Lets others find what is computed.
    pub(crate) fn name_blocks(&mut self, pool: &mut BlockPool) {
        pool.name(&mut self.table, &self.tokens, self.computed_tokens);
    }

    /// Whether running its next `num_tokens` continues it, with nothing to be computed anew.
    pub(crate) fn decodes(&self, num_tokens: usize) -> bool {
        num_tokens == 1 && self.output_tokens() > 0 && self.uncomputed_tokens() == 1
    }

    /// Appends a sampled token; says whether the sequence ends with it.
    pub(crate) fn push(
        &mut self,
        token: u32,
        eos_token_ids: &[u32],
        max_model_len: usize,
    ) -> Option<FinishReason> {
        self.tokens.push(token);
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
