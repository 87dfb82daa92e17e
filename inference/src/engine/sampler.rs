//! The sampler: one sequence's logits to its next token.
//!
//! In vLLM's order: log probabilities of the raw distribution, then the grammar, `min_tokens`, penalties, and either the
//! best token or temperature, `min_p`, `top_k` and `top_p` and a draw (`draw`): one per sequence with a random stream
//! of its own, so that a seed gives the same tokens whatever else is in the batch.

use std::collections::HashMap;

use super::draw::Draw;
use super::request::TokenLogprobs;
use super::sequence::Sequence;
use crate::grammar::{Constraint, GrammarState, Stuck};
use crate::ops::{
    Choice, ChosenToken, MAX_TOP_LOGPROBS, Penalized, Penalties, RowResult, Sampling,
};
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
    /// `None`: no token loses anything by having occurred.
    occurred: Option<Occurred>,
    /// How far the output has come in what it must be.
    grammar: Option<GrammarState>,
    /// Not sampled before `min_tokens`.
    ends: Vec<u32>,
}

/// Tokens that have occurred: in the prompt, if that matters, and the output.
#[derive(Default)]
struct Occurred {
    tokens: Vec<Penalized>,
    /// Where each is in `tokens`.
    places: HashMap<u32, usize>,
}

impl Sampler {
    pub(crate) fn new(sequence: &Sequence, eos_token_ids: &[u32]) -> Self {
        let params = &sequence.params;
        Self {
            draw: (params.temperature >= MIN_TEMPERATURE).then(|| Draw::new(params)),
            occurred: (penalties(params) != Penalties::NONE).then(|| {
                let mut occurred = Occurred::default();
                if params.repetition_penalty != Penalties::NONE.repetition {
                    sequence.prompt().iter().for_each(|&it| occurred.add(it, 0));
                }
                occurred
            }),
            grammar: params.constraint.as_ref().map(Constraint::begin),
            ends: [eos_token_ids, &params.stop_token_ids].concat(),
        }
    }

    /// Who can choose the sequence's next token, which is at `place` in it.
    pub(crate) fn choice(&self, params: &SamplingParams, place: usize) -> Choice {
        let logprobs = params.logprobs.filter(|&top| top <= MAX_TOP_LOGPROBS);
        if self.grammar.is_some() || logprobs != params.logprobs {
            return Choice::Host;
        }
        Choice::Device(Sampling {
            penalties: penalties(params),
            draw: self.draw.as_ref().map(|draw| draw.at(place, params)),
            logprobs: logprobs.map(|top| top as u32),
        })
    }

    /// Tokens whose logits are not taken as they are, as far as they have come to the host.
    pub(crate) fn penalized(&self) -> &[Penalized] {
        self.occurred.as_ref().map_or(&[], |it| &it.tokens)
    }

    /// Tokens that are not taken after so many of the output.
    pub(crate) fn banned(&self, params: &SamplingParams, output_tokens: usize) -> &[u32] {
        if output_tokens < params.min_tokens {
            &self.ends
        } else {
            &[]
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
            RowResult::Token(ChosenToken { token, logprobs }) => {
                self.note(token);
                let logprobs = logprobs.map(|logprobs| TokenLogprobs {
                    token: (token, logprobs.chosen),
                    rank: logprobs.rank as usize,
                    top: logprobs.top,
                });
                Ok(Sampled { token, logprobs })
            }
            RowResult::Logits(logits) => self.choose(logits, sequence),
        }
    }

    fn note(&mut self, token: u32) {
        if let Some(occurred) = &mut self.occurred {
            occurred.add(token, 1);
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
        for &banned in self.banned(params, sequence.output_tokens()) {
            if let Some(logit) = logits.get_mut(banned as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for penalized in self.penalized() {
            if let Some(logit) = logits.get_mut(penalized.token as usize) {
                *logit = penalties(params).applied(*logit, penalized.times);
            }
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
        self.note(token);
        let logprobs = raw.map(|(raw, top)| token_logprobs(&raw, token, top));
        Ok(Sampled { token, logprobs })
    }
}

impl Occurred {
    /// A token so many times more in the output.
    fn add(&mut self, token: u32, times: u32) {
        let next = self.tokens.len();
        let place = *self.places.entry(token).or_insert(next);
        if place == next {
            self.tokens.push(Penalized { token, times: 0 });
        }
        self.tokens[place].times += times;
    }
}

fn penalties(params: &SamplingParams) -> Penalties {
    Penalties {
        repetition: params.repetition_penalty,
        frequency: params.frequency_penalty,
        presence: params.presence_penalty,
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
