//! `n` sequences of one prompt side by side, and the best `n` of `best_of`.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::engine::request::Request;
use crate::sampling_params::SamplingParams;

use super::record::Record;
use super::sequence::{Sequence, Step};
use super::{Delta, GenerationError, GenerationParams, Generator, Output, Prompt};

/// The sequences of one prompt.
pub(super) struct Sampling {
    sequences: Vec<Sequence>,
    /// Where the next poll begins, so that no sequence starves another.
    next: usize,
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
            next: 0,
            prompt_logprobs_due,
            record,
        })
    }

    /// The next output; `None` when every sequence is complete.
    pub(super) fn poll_output(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        if self.prompt_logprobs_due {
            return self.poll_prompt_logprobs(cx);
        }
        let count = self.sequences.len();
        let mut complete = 0;
        for offset in 0..count {
            let at = (self.next + offset) % count;
            match self.poll_sequence(at, cx) {
                Poll::Ready(Some(step)) => {
                    self.next = (at + 1) % count;
                    return Poll::Ready(Some(step));
                }
                Poll::Ready(None) => complete += 1,
                Poll::Pending => {}
            }
        }
        if complete < count {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }

    /// The next output of one sequence; `None` when it is complete.
    fn poll_sequence(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Output, GenerationError>>> {
        while !self.sequences[at].is_complete() {
            match self.sequences[at].poll_step(&mut self.record, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Step::Nothing)) => {}
                Poll::Ready(Ok(Step::PromptLogprobs(logprobs))) => {
                    return Poll::Ready(Some(Ok(Output::PromptLogprobs(logprobs))));
                }
                Poll::Ready(Ok(Step::Delta(delta))) => {
                    if self.sequences.iter().all(Sequence::is_complete) {
                        self.record.finish();
                    }
                    return Poll::Ready(Some(Ok(Output::Delta(delta))));
                }
                Poll::Ready(Err(error)) => {
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

/// Samples `best_of` sequences to their end and keeps the `n` most likely, best first.
pub(super) async fn best_of(
    generator: Generator,
    prompt: Prompt,
    record: Record,
) -> Result<VecDeque<Output>, GenerationError> {
    let n = prompt.params.n;
    let mut ranked = Prompt {
        params: Arc::clone(&prompt.params),
        ..prompt
    };
    // Ranking needs every token's log probability, asked for or not.
    Arc::make_mut(&mut ranked.params)
        .sampling
        .logprobs
        .get_or_insert(0);
    let mut sampling = Sampling::start(&generator, &ranked, record)?;
    let mut candidates: Vec<Candidate> = (0..ranked.params.best_of)
        .map(|_| Candidate::default())
        .collect();
    let mut outputs = VecDeque::new();
    while let Some(output) = std::future::poll_fn(|cx| sampling.poll_output(cx)).await {
        match output? {
            Output::PromptLogprobs(logprobs) => outputs.push_back(Output::PromptLogprobs(logprobs)),
            Output::Delta(delta) => candidates[delta.index].push(delta),
        }
    }
    candidates.sort_by(Candidate::better_first);
    let best = candidates.into_iter().take(n).enumerate();
    outputs.extend(best.filter_map(|(index, candidate)| candidate.into_output(index)));
    Ok(outputs)
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

    fn into_output(self, index: usize) -> Option<Output> {
        self.delta
            .map(|delta| Output::Delta(Delta { index, ..delta }))
    }
}
