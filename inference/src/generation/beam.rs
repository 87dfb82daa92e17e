//! Beam search of width `n`, one token at a time: every live beam asks the engine for one token
//! with the `2n` most likely ones, and the best `n` continuations live on.
//!
//! Scores, their tie order and the treatment of the end of sequence are vLLM's: a beam's score is
//! its log probability over its length (prompt included, end of sequence not) to the power of
//! `length_penalty`. Asking for `2n` leaves `n` continuations even if every beam could also end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::future::try_join_all;

use crate::engine::Reservation;
use crate::engine::request::{Event, Request, RequestStream, StepTimes, TokenLogprobs};
use crate::sampling_params::SamplingParams;

use super::record::Record;
use super::sequence::TextStream;
use super::{
    BeamParams, Collected, Delta, Finish, GenerationError, GenerationParams, Generator, Output,
    OutputToken, Prompt,
};

/// Takes the search's places in the engine's queue, one for each beam: having begun, it cannot find
/// the queue full. The future searches to the end and yields the `n` best beams, best first.
pub(super) fn search(
    generator: &Generator,
    prompt: Prompt,
    beam: BeamParams,
    mut record: Record,
) -> Result<impl Future<Output = Collected> + Send + use<>, GenerationError> {
    let places = generator.engine.reserve(prompt.params.n).map_err(|error| {
        let error = GenerationError::from(error);
        record.fail(error.error_type(), &error);
        error
    })?;
    let search = Search {
        generator: generator.clone(),
        places,
        prompt,
        beam,
        prompt_logprobs: None,
    };
    Ok(search.into_outputs(record))
}

/// One search.
struct Search {
    generator: Generator,
    places: Reservation,
    prompt: Prompt,
    beam: BeamParams,
    /// Of the first step, where they were asked for.
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

/// One hypothesis.
#[derive(Debug, Clone)]
struct Beam {
    /// The output so far; the end of sequence is part of it only where it stays in the text.
    tokens: Vec<u32>,
    /// One per token, kept only when the request wants them.
    logprobs: Vec<TokenLogprobs>,
    /// Of the whole output, the end of sequence included.
    logprob: f64,
    score: f64,
    ended: bool,
}

/// What the engine said about the token after one beam.
struct NextToken {
    scheduled: Option<(Instant, usize)>,
    sampled: Instant,
    times: StepTimes,
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    logprobs: TokenLogprobs,
}

impl Search {
    async fn into_outputs(mut self, mut record: Record) -> Collected {
        let outputs = match self.run(&mut record).await {
            Ok(beams) => self.outputs(&beams, &mut record),
            Err(error) => Err(error),
        };
        match &outputs {
            Ok(_) => record.finish(),
            Err(error) => record.fail(error.error_type(), error),
        }
        outputs
    }

    fn params(&self) -> &GenerationParams {
        &self.prompt.params
    }

    async fn run(&mut self, record: &mut Record) -> Result<Vec<Beam>, GenerationError> {
        let width = self.params().n;
        let start = Beam {
            tokens: vec![],
            logprobs: vec![],
            logprob: 0.0,
            score: 0.0,
            ended: false,
        };
        let mut live = vec![start];
        let mut complete: Vec<Beam> = Vec::new();
        for _ in 0..self.params().sampling.max_tokens {
            let mut grown = Vec::new();
            let next = self.step(&live, record).await?;
            for (beam, next) in live.iter().zip(next) {
                self.grow(beam, &next.logprobs, &mut grown, &mut complete);
            }
            best_first(&mut grown, width);
            live = grown;
            best_first(&mut complete, width);
            if live.is_empty() || self.is_decided(&live, &complete) {
                break;
            }
        }
        complete.extend(live);
        best_first(&mut complete, width);
        Ok(complete)
    }

    /// One token after each live beam, all in the engine at once.
    async fn step(
        &mut self,
        live: &[Beam],
        record: &mut Record,
    ) -> Result<Vec<NextToken>, GenerationError> {
        let streams = live.iter().map(|beam| {
            let prompt_tokens = [self.prompt.tokens.as_slice(), &beam.tokens].concat();
            let mut params = self.one_token();
            if beam.tokens.is_empty() {
                params.prompt_logprobs = self.params().sampling.prompt_logprobs;
            }
            Ok(self.places.submit(Request {
                prompt_tokens,
                params,
                span: record.span_context(),
            })?)
        });
        let streams = streams.collect::<Result<Vec<RequestStream>, GenerationError>>()?;
        streams
            .iter()
            .for_each(|stream| record.note_queued(stream.queued));
        let mut next = try_join_all(streams.into_iter().map(next_token)).await?;
        for token in &mut next {
            if let Some(logprobs) = token.prompt_logprobs.take() {
                self.prompt_logprobs = Some(logprobs);
            }
            token
                .scheduled
                .into_iter()
                .for_each(|(at, cached)| record.note_scheduled(at, cached));
        }
        if let Some(at) = next.iter().map(|token| token.sampled).max() {
            let times = next.iter().map(|token| token.times);
            record.note_beam_step(at, times.fold(StepTimes::default(), StepTimes::longest));
        }
        Ok(next)
    }

    fn one_token(&self) -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            max_tokens: 1,
            // The end of sequence is a continuation like any other here.
            ignore_eos: true,
            logprobs: Some(
                self.continuations()
                    .max(self.params().sampling.logprobs.unwrap_or(0)),
            ),
            ..SamplingParams::default()
        }
    }

    /// The continuations of one beam.
    fn grow(
        &self,
        beam: &Beam,
        next: &TokenLogprobs,
        grown: &mut Vec<Beam>,
        complete: &mut Vec<Beam>,
    ) {
        for &(token, logprob) in next.top.iter().take(self.continuations()) {
            let ended = self.ends(token);
            let mut tokens = beam.tokens.clone();
            if !ended || self.params().include_stop_str_in_output {
                tokens.push(token);
            }
            let mut logprobs = beam.logprobs.clone();
            if let Some(wanted) = self.params().sampling.logprobs {
                logprobs.push(chosen(next, (token, logprob), wanted));
            }
            let total = beam.logprob + f64::from(logprob);
            let score = total / self.length_term(beam.tokens.len() + usize::from(!ended));
            let continuation = Beam {
                tokens,
                logprobs,
                logprob: total,
                score,
                ended,
            };
            if ended {
                complete.push(continuation);
            } else {
                grown.push(continuation);
            }
        }
    }

    /// Continuations considered per beam.
    fn continuations(&self) -> usize {
        2 * self.params().n
    }

    fn ends(&self, token: u32) -> bool {
        !self.params().sampling.ignore_eos && self.generator.eos_token_ids.contains(&token)
    }

    /// What a log probability is divided by, for an output of this length.
    fn length_term(&self, output_tokens: usize) -> f64 {
        let length = self.prompt.tokens.len() + output_tokens;
        (length as f64).powf(self.beam.length_penalty)
    }

    /// No live beam can change the result any more, or the request does not want to wait for it.
    fn is_decided(&self, live: &[Beam], complete: &[Beam]) -> bool {
        let Some(worst) = complete.get(self.params().n - 1) else {
            return false;
        };
        if self.beam.early_stopping {
            return true;
        }
        // Log probabilities only fall, so a live beam scores at best what it has now over the
        // longest (for a negative penalty: the shortest) length it can still have.
        live.iter().all(|beam| {
            let longest = self.length_term(self.params().sampling.max_tokens);
            let shortest = self.length_term(beam.tokens.len());
            beam.logprob / longest.max(shortest) < worst.score
        })
    }

    fn outputs(&mut self, beams: &[Beam], record: &mut Record) -> Collected {
        let mut outputs: VecDeque<_> = self
            .prompt_logprobs
            .take()
            .map(Output::PromptLogprobs)
            .into_iter()
            .collect();
        for (index, beam) in beams.iter().enumerate() {
            let delta = self.delta(index, beam)?;
            record.note_beam(&delta);
            outputs.push_back(Output::Delta(delta));
        }
        Ok(outputs)
    }

    fn delta(&self, index: usize, beam: &Beam) -> Result<Delta, GenerationError> {
        let finish = if beam.ended {
            Finish::Stop
        } else {
            Finish::Length
        };
        let logprobs = beam.logprobs.iter().cloned().map(Some);
        let logprobs = logprobs.chain(std::iter::repeat(None));
        let tokens = beam.tokens.iter().zip(logprobs);
        Ok(Delta {
            index,
            text: self.text(beam)?,
            tokens: tokens
                .map(|(&id, logprobs)| OutputToken { id, logprobs })
                .collect(),
            finish: Some(finish),
        })
    }

    /// The text of a beam. Stop strings do not apply to beams, in vLLM neither.
    fn text(&self, beam: &Beam) -> Result<String, GenerationError> {
        let params = GenerationParams {
            stop: Arc::new([]),
            ..self.params().clone()
        };
        let mut stream = TextStream::new(&self.generator.tokenizer, &self.prompt.tokens, &params)?;
        let mut text = String::new();
        for &token in &beam.tokens {
            text.push_str(&stream.push(token)?.text);
        }
        Ok(text)
    }
}

/// Sorts by score and keeps the first `width`. The sort is stable: ties stay in the order in
/// which they were found, as in vLLM.
fn best_first(beams: &mut Vec<Beam>, width: usize) {
    beams.sort_by(|a, b| b.score.total_cmp(&a.score));
    beams.truncate(width);
}

/// `next` as if `token` had been sampled, with the `wanted` most likely tokens.
fn chosen(next: &TokenLogprobs, token: (u32, f32), wanted: usize) -> TokenLogprobs {
    let rank = 1 + next
        .top
        .iter()
        .filter(|(_, logprob)| *logprob > token.1)
        .count();
    TokenLogprobs {
        token,
        rank,
        top: next.top.iter().take(wanted).copied().collect(),
    }
}

/// Reads a one-token request to its end.
async fn next_token(mut stream: RequestStream) -> Result<NextToken, GenerationError> {
    let mut scheduled = None;
    let mut prompt_logprobs = None;
    while let Some(event) = stream.next().await {
        match event {
            Event::Scheduled { at, cached_tokens } => scheduled = Some((at, cached_tokens)),
            Event::Token {
                logprobs: Some(logprobs),
                at,
                times,
                ..
            } => {
                return Ok(NextToken {
                    scheduled,
                    sampled: at,
                    times,
                    prompt_logprobs,
                    logprobs,
                });
            }
            Event::PromptLogprobs(logprobs) => prompt_logprobs = Some(logprobs),
            Event::Failed { message } => return Err(GenerationError::Failed(message)),
            Event::Token { .. }
            | Event::Finished { .. }
            | Event::Preempted { .. }
            | Event::Resumed { .. } => {}
        }
    }
    Err(GenerationError::events_ended())
}
