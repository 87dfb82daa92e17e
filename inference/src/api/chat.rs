//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::chat_template::ChatRequest;
use crate::generation::exchange::Operation;
use crate::generation::{Delta, Finish, Output, OutputToken};

use super::call::Call;
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::ChatLogprobs;
use super::params::{self, Sampling};
use super::prompt::RawPrompt;
use super::response::{ChoiceResult, Envelope, PromptResult, StopReason, StreamOptions, Usage};
use super::sse::{self, Chunks, Shape};
use super::{App, body};

/// Answers one request.
pub(super) async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    let mut call = Call::open(&app, request.headers(), Operation::Chat);
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
    let sampling = sampling(&mut fields)?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(false);
    let raw = RawPrompt::Text(app.chat_prompt(&mut fields)?);
    let prompts = app
        .tokenize_prompts(vec![raw], add_special_tokens, false)
        .await?;
    let batch = call.start(&prompts, &sampling, "messages")?;
    let shape = ChatShape {
        app,
        envelope: call.envelope(),
        prompt_tokens: prompts[0].tokens.len(),
        stops: sampling.stops(),
        logprobs: sampling.wants_logprobs(),
    };
    sse::answer(batch, shape, &sampling, options).await
}

fn sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = params::logprobs(fields, "top_logprobs")?;
    if top.is_some_and(|top| top > 0) && !wanted {
        let message = "logprobs must be true when top_logprobs is given";
        return Err(ApiError::parameter("top_logprobs", message));
    }
    let sampling = Sampling::parse(fields, wanted.then(|| top.unwrap_or(0)), None)?;
    if sampling.generates_nothing() {
        return Err(ApiError::parameter(
            "max_tokens",
            "max_tokens must be at least 1, got 0",
        ));
    }
    Ok(sampling)
}

impl App {
    /// The prompt that a chat becomes.
    pub(super) fn chat_prompt(&self, fields: &mut Fields) -> Result<String, ApiError> {
        let Some(messages) = fields.take("messages") else {
            return Err(ApiError::parameter("messages", "messages is required"));
        };
        let request = ChatRequest {
            messages,
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            continue_final_message: fields.boolean("continue_final_message")?.unwrap_or(false),
            kwargs: fields.take("chat_template_kwargs"),
        };
        Ok(ChatRequest::render(
            request,
            self.model.chat_template.as_ref(),
        )?)
    }
}

/// What all choices of a response have in common.
struct ChatShape {
    app: Arc<App>,
    envelope: Envelope,
    prompt_tokens: usize,
    stops: Arc<[String]>,
    logprobs: bool,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: MessageDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

#[derive(Serialize)]
struct MessageDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: String,
}

impl ChatShape {
    fn logprobs(&self, tokens: &[OutputToken]) -> Option<ChatLogprobs> {
        (self.logprobs && !tokens.is_empty())
            .then(|| ChatLogprobs::new(&self.app.generator.tokenizer, tokens))
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Event {
        sse::event(&self.envelope.wrap("chat.completion.chunk", choices, usage))
    }
}

impl Shape for ChatShape {
    type Chunks = ChatChunks;

    /// A chat is one.
    fn prompts(&self) -> usize {
        1
    }

    fn whole(self, results: Vec<PromptResult>) -> Response {
        let mut completion_tokens = 0;
        let choice = |(index, result): (usize, ChoiceResult)| {
            completion_tokens += result.tokens.len();
            Choice {
                index,
                logprobs: self.logprobs(&result.tokens),
                finish_reason: result.finish.as_ref().map(Finish::reason),
                stop_reason: StopReason::of(result.finish.as_ref(), &self.stops),
                message: Message {
                    role: "assistant",
                    content: result.text,
                },
            }
        };
        let results = results.into_iter().flat_map(|result| result.choices);
        let choices = results.enumerate().map(choice).collect();
        let usage = Usage::new(self.prompt_tokens, completion_tokens);
        let answer = self.envelope.wrap("chat.completion", choices, Some(usage));
        Json(answer).into_response()
    }

    fn chunks(self, options: StreamOptions, n: usize) -> ChatChunks {
        ChatChunks::new(self, options, n)
    }
}

/// A streamed response.
struct ChatChunks {
    shape: ChatShape,
    options: StreamOptions,
    /// Tokens so far, by choice; `None` before its first chunk, which names the role.
    tokens: Vec<Option<usize>>,
}

impl ChatChunks {
    fn new(shape: ChatShape, options: StreamOptions, n: usize) -> Self {
        Self {
            shape,
            options,
            tokens: vec![None; n],
        }
    }

    fn usage(&self, index: usize) -> Option<Usage> {
        let tokens = self.tokens[index].unwrap_or(0);
        self.options
            .continuous_usage
            .then(|| Usage::new(self.shape.prompt_tokens, tokens))
    }

    fn role(&self, index: usize) -> Event {
        let delta = MessageDelta {
            role: Some("assistant"),
            content: String::new(),
        };
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
        };
        self.shape.chunk(vec![choice], self.usage(index))
    }

    fn delta(&mut self, delta: Delta) -> Event {
        let index = delta.index;
        *self.tokens[index].get_or_insert_default() += delta.tokens.len();
        let choice = ChunkChoice {
            index,
            logprobs: self.shape.logprobs(&delta.tokens),
            finish_reason: delta.finish.as_ref().map(Finish::reason),
            stop_reason: StopReason::of(delta.finish.as_ref(), &self.shape.stops),
            delta: MessageDelta {
                role: None,
                content: delta.text,
            },
        };
        self.shape.chunk(vec![choice], self.usage(index))
    }
}

impl Chunks for ChatChunks {
    fn output(&mut self, _prompt: usize, output: Output) -> Vec<Event> {
        match output {
            // A chat asks for none.
            Output::PromptLogprobs(_) => Vec::new(),
            Output::Delta(delta) => {
                let first = self.tokens[delta.index].is_none();
                let role = first.then(|| self.role(delta.index));
                role.into_iter().chain([self.delta(delta)]).collect()
            }
        }
    }

    fn end(&mut self) -> Vec<Event> {
        if !self.options.include_usage {
            return Vec::new();
        }
        let tokens = self.tokens.iter().flatten().sum();
        vec![self.shape.chunk(
            Vec::new(),
            Some(Usage::new(self.shape.prompt_tokens, tokens)),
        )]
    }
}
