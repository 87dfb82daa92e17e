//! What a request asks of the sampler: validated numbers, ready to use.
//!
//! The API layer (`api`) builds these from OpenAI's and vLLM's fields and refuses what is out of
//! range; the engine (`engine`) reads them and checks nothing again.

use crate::grammar::Constraint;

/// How to choose tokens for one sequence, and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it. At least 0.
    pub temperature: f32,
    /// Nucleus mass in (0, 1]; 1 keeps every token.
    pub top_p: f32,
    /// Number of most likely tokens kept; `None` keeps all.
    pub top_k: Option<usize>,
    /// Tokens less likely than `min_p` times the most likely one are dropped; in [0, 1].
    pub min_p: f32,
    /// Seed of this sequence's own random stream; `None` draws one.
    pub seed: Option<u64>,
    /// Subtracted once from the logit of every token already generated; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token already generated; in [-2, 2].
    pub frequency_penalty: f32,
    /// Divides (positive logit) or multiplies (negative) tokens of prompt and output; above 0.
    pub repetition_penalty: f32,
    /// Most tokens to generate; at least 1.
    pub max_tokens: usize,
    /// End-of-sequence and stop tokens are not sampled before this many tokens.
    pub min_tokens: usize,
    /// Generate on past the end-of-sequence token.
    pub ignore_eos: bool,
    /// Token ids that end the sequence beside the model's own end of sequence.
    pub stop_token_ids: Vec<u32>,
    /// What the output must be; the sequence ends where it does. `min_tokens` and `ignore_eos` are not for these.
    pub constraint: Option<Constraint>,
    /// Report the sampled token's log probability and this many of the most likely tokens.
    pub logprobs: Option<usize>,
    /// The same for every prompt token, before the first output token.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    /// vLLM's defaults: temperature 1, nothing cut off, 16 tokens.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            max_tokens: 16,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}
