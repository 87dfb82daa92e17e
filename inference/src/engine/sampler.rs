//! The sampler: one sequence's logits to its next token.
//!
//! In vLLM's order: log probabilities of the raw distribution, then the grammar, `min_tokens`, penalties, and either the
//! best token or temperature, `min_p`, `top_k` and `top_p` and a draw (`draw`): one per sequence with a random stream
//! of its own, so that a seed gives the same tokens whatever else is in the batch.

use std::collections::{HashMap, HashSet};

use super::draw::Draw;
use super::request::TokenLogprobs;
use super::sequence::Sequence;
use crate::grammar::{Constraint, GrammarState, Stuck};
use crate::ops::{Choice, RowResult};
use crate::sampling_params::SamplingParams;
use crate::tensor_error::TensorError;

/// Below this a temperature means greedy, as in vLLM.
const MIN_TEMPERATURE: f32 = 1e-5;

/// Why no token could be drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SampleError {
    #[error("the model's logits are not numbers")]
    NotANumber,
    #[error("no token can be drawn: {0}")]
    Draw(#[from] TensorError),
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

impl From<candle_core::Error> for SampleError {
    fn from(error: candle_core::Error) -> Self {
        Self::Draw(error.into())
    }
}

/// A sequence's token, and its log probabilities if they were asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Sampled {
    pub(crate) token: u32,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// What is kept of one sequence between its tokens.
pub(crate) struct Sampler {
    /// `None`: greedy.
    draw: Option<Draw>,
    penalties: Option<Penalties>,
    /// How far the output has come in what it must be.
    grammar: Option<GrammarState>,
    /// Not sampled before `min_tokens`.
    ends: Vec<u32>,
}

/// Tokens that have occurred.
struct Penalties {
    prompt: HashSet<u32>,
    output: HashMap<u32, u32>,
}

impl Sampler {
    pub(crate) fn new(sequence: &Sequence, eos_token_ids: &[u32]) -> Self {
        let params = &sequence.params;
        let penalized = params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
            || params.repetition_penalty != 1.0;
        Self {
            draw: (params.temperature >= MIN_TEMPERATURE).then(|| Draw::new(params)),
            penalties: penalized.then(|| Penalties {
                prompt: sequence.prompt().iter().copied().collect(),
                output: HashMap::new(),
            }),
            grammar: params.constraint.as_ref().map(Constraint::begin),
            ends: [eos_token_ids, &params.stop_token_ids].concat(),
        }
    }

    /// Who can choose the sequence's next token, which is at `place` in it.
    pub(crate) fn choice(&self, sequence: &Sequence, place: usize) -> Choice {
        let params = &sequence.params;
        let is_plain = self.penalties.is_none()
            && self.grammar.is_none()
            && params.logprobs.is_none()
            && sequence.output_tokens() >= params.min_tokens;
        match &self.draw {
            _ if !is_plain => Choice::Host,
            None => Choice::Greedy,
            Some(draw) => Choice::Draw(draw.at(place, params)),
        }
    }

    /// What the output must be, if it must be something: it has work that needs no logits.
    pub(crate) fn grammar(&mut self) -> Option<&mut GrammarState> {
        self.grammar.as_mut()
    }

    /// The token after a row.
    pub(crate) fn sample(
        &mut self,
        row: RowResult,
        sequence: &Sequence,
    ) -> Result<Sampled, SampleError> {
        match row {
            RowResult::Token(token) => Ok(Sampled {
                token,
                logprobs: None,
            }),
            RowResult::Logits(logits) => self.choose(logits, sequence),
        }
    }

    /// The token after `logits` (V).
    fn choose(
        &mut self,
        mut logits: Vec<f32>,
        sequence: &Sequence,
    ) -> Result<Sampled, SampleError> {
        let params = &sequence.params;
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(SampleError::NotANumber);
        }
        let raw = params.logprobs.map(|top| (logits.clone(), top));
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(&mut logits)?;
        }
        if sequence.output_tokens() < params.min_tokens {
            for &end in &self.ends {
                if let Some(logit) = logits.get_mut(end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(penalties) = &self.penalties {
            penalties.apply(&mut logits, params);
        }
        let token = match &mut self.draw {
            None => argmax(&logits),
            Some(draw) => {
                keep_min_p(&mut logits, params);
                keep_top_k(&mut logits, params.top_k);
                draw.token(logits)?
            }
        };
        if let Some(grammar) = &mut self.grammar {
            grammar.advance(token)?;
        }
        if let Some(penalties) = &mut self.penalties {
            *penalties.output.entry(token).or_default() += 1;
        }
        let logprobs = raw.map(|(raw, top)| token_logprobs(&raw, token, top));
        Ok(Sampled { token, logprobs })
    }
}

impl Penalties {
    fn apply(&self, logits: &mut [f32], params: &SamplingParams) {
        let output = self.output.keys();
        for &token in self.prompt.union(&output.copied().collect()) {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            *logit *= if *logit > 0.0 {
                1.0 / params.repetition_penalty
            } else {
                params.repetition_penalty
            };
        }
        for (&token, &count) in &self.output {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            *logit -= count as f32 * params.frequency_penalty + params.presence_penalty;
        }
    }
}

/// The best token, of equals the one with the lowest id.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn max(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Drops tokens less likely, at the temperature, than `min_p` times the best.
fn keep_min_p(logits: &mut [f32], params: &SamplingParams) {
    if params.min_p > 0.0 {
        let least = max(logits) + params.min_p.ln() * params.temperature;
        drop_below(logits, least);
    }
}

/// Drops all but the k best tokens; equals of the k-th stay.
fn keep_top_k(logits: &mut [f32], top_k: Option<usize>) {
    if let Some(k) = top_k.filter(|&k| 0 < k && k < logits.len()) {
        let mut sorted = logits.to_vec();
        let (_, kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let least = *kth;
        drop_below(logits, least);
    }
}

fn drop_below(logits: &mut [f32], least: f32) {
    for logit in logits {
        if *logit < least {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Log probabilities of the distribution that `logits` (V) are: of `token`, and of the `top` best.
pub(crate) fn token_logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let max = max(logits);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    let log_sum = max + sum.ln() as f32;
    let own = logits[token as usize];
    TokenLogprobs {
        token: (token, own - log_sum),
        rank: 1 + logits.iter().filter(|logit| **logit > own).count(),
        top: best(logits, top)
            .into_iter()
            .map(|id| (id, logits[id as usize] - log_sum))
            .collect(),
    }
}

/// The `count` best tokens, best first, of equals the lower id first.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let better = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then_with(|| a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if 0 < count && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, better);
    }
    ids.truncate(count);
    ids.sort_unstable_by(better);
    ids
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
