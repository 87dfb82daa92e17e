//! One sequence: engine events in, [`Delta`]s out.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::StreamExt;

use crate::engine::request::{Event, FinishReason, Request, RequestStream, TokenLogprobs};
use crate::tokenizer::Tokenizer;

use super::detokenizer::Detokenizer;
use super::record::{Moment, Record};
use super::stop::StopMatcher;
use super::{Delta, Finish, GenerationError, GenerationParams, Generator, OutputToken};

/// One sequence in the engine.
pub(super) struct Sequence {
    index: usize,
    /// `None` once the sequence is complete: dropping the stream cancels what is left of it.
    stream: Option<RequestStream>,
    text: TextStream,
    /// Tokens whose text is not out yet.
    tokens: Vec<OutputToken>,
    /// Token ids that may end the sequence.
    ending: Vec<u32>,
    /// A token of `ending` whose fate the next event tells: its text goes out only if it ended
    /// nothing.
    undecided: Option<u32>,
    /// Tokens go out as they come, also those without text yet.
    every_token: bool,
    /// Nothing of what it generates goes out.
    prompt_only: bool,
    last_token_at: Option<Instant>,
}

/// What an event led to.
pub(super) enum Step {
    /// Nothing to tell yet.
    Nothing,
    /// The prompt's log probabilities.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// The next piece.
    Delta(Delta),
}

impl Sequence {
    /// Hands the sequence to the engine.
    pub(super) fn submit(
        generator: &Generator,
        request: Request,
        params: &GenerationParams,
        index: usize,
    ) -> Result<Self, GenerationError> {
        let mut ending = request.params.stop_token_ids.clone();
        if !request.params.ignore_eos {
            ending.extend(generator.eos_token_ids.iter());
        }
        let every_token = params.sampling.logprobs.is_some();
        let text = TextStream::new(&generator.tokenizer, &request.prompt_tokens, params)?;
        let stream = generator.engine.submit(request)?;
        Ok(Self {
            index,
            stream: Some(stream),
            text,
            tokens: Vec::new(),
            ending,
            undecided: None,
            every_token,
            prompt_only: params.prompt_only,
            last_token_at: None,
        })
    }

    /// When it was handed over.
    pub(super) fn queued(&self) -> Option<Instant> {
        self.stream.as_ref().map(|stream| stream.queued)
    }

    /// Whether its last delta is out.
    pub(super) fn is_complete(&self) -> bool {
        self.stream.is_none()
    }

    /// The next step; never ready once complete.
    pub(super) fn poll_step(
        &mut self,
        record: &mut Record,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, GenerationError>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Pending;
        };
        let Some(event) = ready!(stream.poll_next_unpin(cx)) else {
            return Poll::Ready(Err(GenerationError::events_ended()));
        };
        Poll::Ready(self.on_event(event, record))
    }

    fn on_event(&mut self, event: Event, record: &mut Record) -> Result<Step, GenerationError> {
        match event {
            Event::Scheduled { at, cached_tokens } => {
                record.note_scheduled(at, cached_tokens);
                Ok(Step::Nothing)
            }
            Event::Preempted { at } => {
                record.note_moment(at, Moment::Preempted);
                Ok(Step::Nothing)
            }
            Event::Resumed { at, cached_tokens } => {
                record.note_moment(at, Moment::Resumed { cached_tokens });
                Ok(Step::Nothing)
            }
            Event::PromptLogprobs(logprobs) => Ok(Step::PromptLogprobs(logprobs)),
            Event::Token {
                id,
                logprobs,
                at,
                times,
            } => {
                record.note_step_times(times);
                record.note_token_at(at);
                if self.prompt_only {
                    return Ok(Step::Nothing);
                }
                record.note_token(at, self.last_token_at.replace(at));
                self.on_token(OutputToken { id, logprobs })
            }
            Event::Finished { reason, .. } => self.on_finished(reason).map(Step::Delta),
            Event::Failed { message } => Err(GenerationError::Failed(message)),
        }
    }

    fn on_token(&mut self, token: OutputToken) -> Result<Step, GenerationError> {
        let id = token.id;
        self.tokens.push(token);
        let mut piece = Piece::default();
        if let Some(waiting) = self.undecided.take() {
            piece = self.text.push(waiting)?;
        }
        if piece.stop.is_none() {
            if self.ending.contains(&id) {
                self.undecided = Some(id);
            } else {
                piece.append(&self.text.push(id)?);
            }
        }
        if let Some(stop) = piece.stop {
            let finish = Finish::StopString(stop);
            return Ok(Step::Delta(self.complete(piece.text, finish)));
        }
        if piece.text.is_empty() && !self.every_token {
            return Ok(Step::Nothing);
        }
        Ok(Step::Delta(Delta {
            index: self.index,
            text: piece.text,
            tokens: std::mem::take(&mut self.tokens),
            finish: None,
        }))
    }

    fn on_finished(&mut self, reason: FinishReason) -> Result<Delta, GenerationError> {
        if self.prompt_only {
            return Ok(self.complete(String::new(), Finish::Length));
        }
        let mut finish = match reason {
            FinishReason::Eos => Finish::Stop,
            FinishReason::StopToken(id) => Finish::StopToken(id),
            FinishReason::Length => Finish::Length,
        };
        let mut piece = Piece::default();
        if let Some(last) = self.undecided.take()
            && (reason == FinishReason::Length || self.text.include_stop)
        {
            piece = self.text.push(last)?;
        }
        match piece.stop {
            Some(stop) => finish = Finish::StopString(stop),
            None => piece.text.push_str(&self.text.finish()),
        }
        Ok(self.complete(piece.text, finish))
    }

    fn complete(&mut self, text: String, finish: Finish) -> Delta {
        self.stream = None;
        let tokens = std::mem::take(&mut self.tokens);
        Delta {
            index: self.index,
            text,
            tokens,
            finish: Some(finish),
        }
    }
}

/// Text that may go out, and the stop string that ended it.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) stop: Option<usize>,
}

impl Piece {
    fn append(&mut self, next: &Piece) {
        self.text.push_str(&next.text);
        self.stop = next.stop;
    }
}

/// Tokens to text that is free of stop strings and broken characters.
pub(super) struct TextStream {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    include_stop: bool,
    /// Stop strings count only in text after this many tokens.
    min_tokens: usize,
    tokens: usize,
}

impl TextStream {
    /// Text that follows `prompt`.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        params: &GenerationParams,
    ) -> Result<Self, GenerationError> {
        let include_stop = params.include_stop_str_in_output;
        Ok(Self {
            detokenizer: Detokenizer::new(tokenizer.clone(), prompt, params.skip_special_tokens)?,
            stop: StopMatcher::new(Arc::clone(&params.stop), include_stop),
            include_stop,
            min_tokens: params.sampling.min_tokens,
            tokens: 0,
        })
    }

    /// Takes one token.
    pub(super) fn push(&mut self, token: u32) -> Result<Piece, GenerationError> {
        let text = self.detokenizer.push(token)?;
        self.tokens += 1;
        if self.tokens <= self.min_tokens {
            return Ok(Piece { text, stop: None });
        }
        let scanned = self.stop.push(&text);
        Ok(Piece {
            text: scanned.text,
            stop: scanned.stop,
        })
    }

    /// What was held back for a stop string that did not come. An incomplete character is not
    /// text and stays out.
    pub(super) fn finish(&mut self) -> String {
        self.stop.finish()
    }
}
