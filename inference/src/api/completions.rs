//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::request::TokenLogprobs;
use crate::generation::exchange::Operation;
use crate::generation::{Delta, Finish, Output, OutputToken};

use super::call::Call;
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::{CompletionLogprobs, TextOffset};
use super::params::{self, Sampling};
use super::prompt::{self, TokenizedPrompt};
use super::response::{Completion, Envelope, PromptResult, StopReason, StreamOptions, Usage};
use super::sse::{self, Chunks, Shape};
use super::{App, body};

/// Tokens generated when the request does not say: OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Answers one request.
pub(super) async fn completions(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut call = Call::open(&app, request.headers(), Operation::TextCompletion);
    match answer(&mut call, request).await {
        Ok(response) => response,
        Err(error) => call.refuse(error),
    }
}

async fn answer(call: &mut Call, request: Request) -> Result<Response, ApiError> {
    let app = Arc::clone(&call.app);
    let mut fields = body::read(request, app.max_body_bytes).await?;
    let options = StreamOptions::parse(&mut fields)?;
    call.set_model(fields.text("model")?, options.stream)?;
    let raw = prompt::parse(fields.take("prompt"), app.model.vocab_size)?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let (mut sampling, echo) = sampling(&mut fields)?;
    sampling.compile(&app.grammars).await?;
    let want_text = echo || app.observers.spans.captures_content();
    let prompts = app
        .tokenize_prompts(raw, add_special_tokens, want_text)
        .await?;
    let batch = call.start(&prompts, &sampling, "prompt")?;
    let shape = CompletionShape::new(call, prompts, &sampling, echo);
    sse::answer(batch, shape, &sampling, options).await
}

/// The parameters, and whether the prompt is part of the text.
fn sampling(fields: &mut Fields) -> Result<(Sampling, bool), ApiError> {
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = params::logprobs(fields, "logprobs")?;
    let mut sampling = Sampling::parse(fields, logprobs, Some(DEFAULT_MAX_TOKENS))?;
    if sampling.generates_nothing() && !echo {
        let message = "max_tokens must be at least 1 without echo, got 0";
        return Err(ApiError::parameter("max_tokens", message));
    }
    if echo {
        sampling.want_prompt_logprobs();
    }
    Ok((sampling, echo))
}

/// What all choices of a response have in common.
struct CompletionShape {
    app: Arc<App>,
    envelope: Envelope,
    prompts: Vec<TokenizedPrompt>,
    stops: Arc<[String]>,
    echo: bool,
    logprobs: bool,
    skip_special_tokens: bool,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

impl CompletionShape {
    fn new(call: &Call, prompts: Vec<TokenizedPrompt>, sampling: &Sampling, echo: bool) -> Self {
        Self {
            app: Arc::clone(&call.app),
            envelope: call.envelope(),
            prompts,
            stops: sampling.stops(),
            echo,
            logprobs: sampling.wants_logprobs(),
            skip_special_tokens: sampling.skips_special_tokens(),
        }
    }

    /// Of all prompts.
    fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }

    fn completion(&self, choices: Vec<Choice>, usage: Option<Usage>) -> Completion<'_, Choice> {
        self.envelope.wrap("text_completion", choices, usage)
    }

    /// The next piece of choice `index`, which belongs to prompt `at`.
    fn choice(
        &self,
        (index, at): (usize, usize),
        piece: &Piece,
        prompt_logprobs: Option<&[Option<TokenLogprobs>]>,
        progress: &mut Progress,
    ) -> Choice {
        let tokenizer = &self.app.generator.tokenizer;
        let mut text = String::new();
        let mut logprobs = self.logprobs.then(CompletionLogprobs::default);
        if self.echo && !std::mem::replace(&mut progress.echoed, true) {
            let prompt = &self.prompts[at];
            text.push_str(&prompt.text);
            if let (Some(logprobs), Some(prompt_logprobs)) = (&mut logprobs, prompt_logprobs) {
                progress.offset.special_hidden = prompt.from_text;
                for (&id, known) in prompt.tokens.iter().zip(prompt_logprobs) {
                    logprobs.push(tokenizer, id, known.as_ref(), &mut progress.offset);
                }
            }
        }
        text.push_str(&piece.text);
        progress.tokens += piece.tokens.len();
        if let Some(logprobs) = &mut logprobs {
            progress.offset.special_hidden = self.skip_special_tokens;
            for token in &piece.tokens {
                let known = token.logprobs.as_ref();
                logprobs.push(tokenizer, token.id, known, &mut progress.offset);
            }
        }
        let logprobs = logprobs.filter(|logprobs| !logprobs.is_empty());
        let stop_reason = StopReason::of(piece.finish.as_ref(), &self.stops);
        let finish_reason = piece.finish.as_ref().map(Finish::reason);
        Choice {
            index,
            text,
            logprobs,
            finish_reason,
            stop_reason,
        }
    }
}

impl Shape for CompletionShape {
    type Chunks = CompletionChunks;

    fn prompts(&self) -> usize {
        self.prompts.len()
    }

    fn whole(self, results: Vec<PromptResult>) -> Response {
        let mut choices = Vec::new();
        let mut completion_tokens = 0;
        for (at, result) in results.into_iter().enumerate() {
            for choice in result.choices {
                let mut progress = Progress::default();
                let piece = Piece {
                    text: choice.text,
                    tokens: choice.tokens,
                    finish: choice.finish,
                };
                let prompt_logprobs = result.prompt_logprobs.as_deref();
                choices.push(self.choice(
                    (choices.len(), at),
                    &piece,
                    prompt_logprobs,
                    &mut progress,
                ));
                completion_tokens += progress.tokens;
            }
        }
        let usage = Usage::new(self.prompt_tokens(), completion_tokens);
        Json(self.completion(choices, Some(usage))).into_response()
    }

    fn chunks(self, options: StreamOptions, n: usize) -> CompletionChunks {
        CompletionChunks::new(self, options, n)
    }
}

/// Some or all of one sequence.
struct Piece {
    text: String,
    tokens: Vec<OutputToken>,
    finish: Option<Finish>,
}

/// How far one choice has come.
#[derive(Debug, Default, Clone)]
struct Progress {
    echoed: bool,
    tokens: usize,
    offset: TextOffset,
}

/// A streamed response.
struct CompletionChunks {
    shape: CompletionShape,
    options: StreamOptions,
    n: usize,
    /// By choice.
    progress: Vec<Progress>,
    /// By prompt.
    prompt_logprobs: Vec<Option<Vec<Option<TokenLogprobs>>>>,
}

impl CompletionChunks {
    fn new(shape: CompletionShape, options: StreamOptions, n: usize) -> Self {
        let prompts = shape.prompts.len();
        let progress = vec![Progress::default(); prompts * n];
        Self {
            shape,
            options,
            n,
            progress,
            prompt_logprobs: vec![None; prompts],
        }
    }

    fn chunk(&mut self, at: usize, delta: Delta) -> Event {
        let index = at * self.n + delta.index;
        let progress = &mut self.progress[index];
        let piece = Piece {
            text: delta.text,
            tokens: delta.tokens,
            finish: delta.finish,
        };
        let prompt_logprobs = self.prompt_logprobs[at].as_deref();
        let choice = self
            .shape
            .choice((index, at), &piece, prompt_logprobs, progress);
        let usage = self
            .options
            .continuous_usage
            .then(|| Usage::new(self.shape.prompts[at].tokens.len(), progress.tokens));
        sse::event(&self.shape.completion(vec![choice], usage))
    }
}

impl Chunks for CompletionChunks {
    fn output(&mut self, prompt: usize, output: Output) -> Vec<Event> {
        match output {
            Output::PromptLogprobs(logprobs) => {
                self.prompt_logprobs[prompt] = Some(logprobs);
                Vec::new()
            }
            Output::Delta(delta) => vec![self.chunk(prompt, delta)],
        }
    }

    fn end(&mut self) -> Vec<Event> {
        if !self.options.include_usage {
            return Vec::new();
        }
        let completion_tokens = self.progress.iter().map(|progress| progress.tokens).sum();
        let usage = Usage::new(self.shape.prompt_tokens(), completion_tokens);
        vec![sse::event(&self.shape.completion(Vec::new(), Some(usage)))]
    }
}
