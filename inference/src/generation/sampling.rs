//! `n` sequences of one prompt side by side, and the best `n` of `best_of`.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::engine::request::Request;
use crate::sampling_params::SamplingParams;

use super::record::Record;
use super::round_robin::RoundRobin;
use super::sequence::{Sequence, Step};
use super::{Collected, Delta, GenerationError, GenerationParams, Generator, Output, Prompt};

/// The sequences of one prompt.
pub(super) struct Sampling {
    sequences: Vec<Sequence>,
    turns: RoundRobin,
    /// Prompt log probabilities go before any text; only the first sequence has them.
    prompt_logprobs_due: bool,
    record: Record,
}

impl Sampling {
    /// Hands `params.best_of` sequences to the engine, or none.
    pub(super) fn start(
        generator: &Generator,
        prompt: &Prompt,
        mut record: Record,
    ) -> Result<Self, GenerationError> {
        let submitted = (0..prompt.params.best_of)
            .map(|index| {
                let mut sampling = sequence_params(&prompt.params, index);
                sampling.seed = sampling.seed.or_else(|| generator.next_seed());
                let request = Request {
                    prompt_tokens: prompt.tokens.clone(),
                    params: sampling,
                    span: record.span_context(),
                };
                Sequence::submit(generator, request, &prompt.params, index)
            })
            .collect::<Result<Vec<_>, _>>();
        let sequences = match submitted {
            Ok(sequences) => sequences,
            Err(error) => {
                record.fail(error.error_type(), &error);
                return Err(error);
            }
        };
        sequences
            .iter()
            .filter_map(Sequence::queued)
            .for_each(|at| record.note_queued(at));
        let prompt_logprobs_due = prompt.params.sampling.prompt_logprobs.is_some();
        Ok(Self {
            sequences,
            turns: RoundRobin::default(),
            prompt_logprobs_due,
            record,
        })
    }

    /// The next output, as part of the result; `None` when every sequence is complete.
    pub(super) fn poll_output(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        let output = ready!(self.poll_sequences(cx));
        if let Some(Ok(Output::Delta(delta))) = &output {
            self.record.note_delta(delta);
            if self.sequences.iter().all(Sequence::is_complete) {
                self.record.finish();
            }
        }
        Poll::Ready(output)
    }

    /// The next output, which may or may not become part of the result.
    fn poll_sequences(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        if self.prompt_logprobs_due {
            return self.poll_prompt_logprobs(cx);
        }
        let (count, mut turns) = (self.sequences.len(), std::mem::take(&mut self.turns));
        let output = turns.poll(count, |at| self.poll_sequence(at, cx));
        self.turns = turns;
        output.map(|output| output.map(|(_, output)| output))
    }

    /// The next output of one sequence; `None` when it is complete.
    fn poll_sequence(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        while !self.sequences[at].is_complete() {
            match ready!(self.sequences[at].poll_step(&mut self.record, cx)) {
                Ok(Step::Nothing) => {}
                Ok(Step::PromptLogprobs(logprobs)) => {
                    return Poll::Ready(Some(Ok(Output::PromptLogprobs(logprobs))));
                }
                Ok(Step::Delta(delta)) => return Poll::Ready(Some(Ok(Output::Delta(delta)))),
                Err(error) => {
                    self.record.fail(error.error_type(), &error);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }

    fn poll_prompt_logprobs(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        let output = self.poll_sequence(0, cx);
        if output.is_ready() {
            self.prompt_logprobs_due = false;
        }
        output
    }
}

/// What sequence `index` asks of the engine: its own random stream, and the prompt's log
/// probabilities only once.
fn sequence_params(params: &GenerationParams, index: usize) -> SamplingParams {
    let mut sampling = params.sampling.clone();
    sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(index as u64));
    if index > 0 {
        sampling.prompt_logprobs = None;
    }
    sampling
}

/// Hands `best_of` sequences to the engine, or none. The future samples them to their end and keeps
/// the `n` most likely, best first.
pub(super) fn best_of(
    generator: &Generator,
    prompt: Prompt,
    record: Record,
) -> Result<impl Future<Output = Collected> + Send + use<>, GenerationError> {
    let n = prompt.params.n;
    let mut ranked = prompt;
    // Ranking needs every token's log probability, asked for or not.
    Arc::make_mut(&mut ranked.params)
        .sampling
        .logprobs
        .get_or_insert(0);
    let sampling = Sampling::start(generator, &ranked, record)?;
    Ok(sampling.rank(n))
}

impl Sampling {
    async fn rank(mut self, n: usize) -> Collected {
        let mut candidates: Vec<Candidate> = Vec::new();
        candidates.resize_with(self.sequences.len(), Candidate::default);
        let mut outputs = VecDeque::new();
        while let Some(output) = std::future::poll_fn(|cx| self.poll_sequences(cx)).await {
            match output? {
                Output::Delta(delta) => candidates[delta.index].push(delta),
                logprobs @ Output::PromptLogprobs(_) => outputs.push_back(logprobs),
            }
        }
        candidates.sort_by(Candidate::better_first);
        let best = candidates.into_iter().take(n).enumerate();
        let best: Vec<_> = best
            .filter_map(|(index, candidate)| candidate.into_delta(index))
            .collect();
        self.record.note_ranked(&best);
        self.record.finish();
        outputs.extend(best.into_iter().map(Output::Delta));
        Ok(outputs)
    }
}

/// One sequence of `best_of`, as far as it has come.
#[derive(Default)]
struct Candidate {
    delta: Option<Delta>,
    logprob: f64,
}

impl Candidate {
    fn push(&mut self, next: Delta) {
        let logprobs = next
            .tokens
            .iter()
            .filter_map(|token| token.logprobs.as_ref());
        self.logprob += logprobs
            .map(|logprobs| f64::from(logprobs.token.1))
            .sum::<f64>();
        match &mut self.delta {
            None => self.delta = Some(next),
            Some(delta) => {
                delta.text.push_str(&next.text);
                delta.tokens.extend(next.tokens);
                delta.finish = next.finish;
            }
        }
    }

    fn better_first(&self, other: &Self) -> Ordering {
        other.logprob.total_cmp(&self.logprob)
    }

    fn into_delta(self, index: usize) -> Option<Delta> {
        self.delta.map(|delta| Delta { index, ..delta })
    }
}
