//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use crate::chat_template::{ChatRequest, ChatTemplate, ChatTemplateError};
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
use super::tool_calls::{Piece, ToolCall, ToolParser};
use super::tools::Tools;
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
    let template = app.model.chat_template.as_ref();
    let tools = Tools::parse(&mut fields, template.and_then(ChatTemplate::tool_format))?;
    let mut sampling = sampling(&mut fields)?;
    if let Some(structure) = tools.as_ref().and_then(Tools::structure) {
        sampling.demand(structure)?;
    }
    sampling.compile(&app.grammars).await?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(false);
    let offered = tools.as_ref().map(Tools::offered);
    let raw = RawPrompt::Text(app.chat_prompt(&mut fields, offered).await?);
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
        parser: tools.as_ref().map(Tools::parser),
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
    /// The prompt that a chat becomes: a template may take as long as its fuel lasts, which holds up nobody else.
    pub(super) async fn chat_prompt(
        self: &Arc<Self>,
        fields: &mut Fields,
        tools: Option<Value>,
    ) -> Result<String, ApiError> {
        let Some(messages) = fields.take("messages") else {
            return Err(ApiError::parameter("messages", "messages is required"));
        };
        let request = ChatRequest {
            messages,
            tools,
            add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
            continue_final_message: fields.boolean("continue_final_message")?.unwrap_or(false),
            kwargs: fields.take("chat_template_kwargs"),
        };
        let app = Arc::clone(self);
        let render = move || request.render(app.model.chat_template.as_ref());
        let rendered = tokio::task::spawn_blocking(render).await;
        Ok(rendered.map_err(|panic| ChatTemplateError::Render(panic.to_string()))??)
    }
}

/// What all choices of a response have in common.
struct ChatShape {
    app: Arc<App>,
    envelope: Envelope,
    prompt_tokens: usize,
    stops: Arc<[String]>,
    logprobs: bool,
    /// Finds calls of tools in an answer, where there are tools.
    parser: Option<ToolParser>,
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
    /// None where the answer is calls alone.
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: MessageDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

#[derive(Default, Serialize)]
struct MessageDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta; 1]>,
}

/// A call, whole, and which of the answer's it is.
#[derive(Serialize)]
struct CallDelta {
    index: usize,
    #[serde(flatten)]
    call: ToolCall,
}

impl ChatShape {
    fn logprobs(&self, tokens: &[OutputToken]) -> Option<ChatLogprobs> {
        (self.logprobs && !tokens.is_empty())
            .then(|| ChatLogprobs::new(&self.app.generator.tokenizer, tokens))
    }

    /// A whole answer as a message.
    fn message(&self, text: String) -> Message {
        let pieces = match &self.parser {
            None => vec![Piece::Content(text)],
            Some(parser) => parser.clone().read(&text, true),
        };
        let (mut content, mut tool_calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Content(text) => content.push_str(&text),
                Piece::Call(call) => tool_calls.push(call),
            }
        }
        Message {
            role: "assistant",
            content: Some(content).filter(|text| !text.is_empty() || tool_calls.is_empty()),
            tool_calls,
        }
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
            let message = self.message(result.text);
            let called = !message.tool_calls.is_empty();
            Choice {
                index,
                logprobs: self.logprobs(&result.tokens),
                finish_reason: finish_reason(result.finish.as_ref(), called),
                stop_reason: StopReason::of(result.finish.as_ref(), &self.stops),
                message,
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
    /// By choice.
    parsers: Vec<Option<ToolParser>>,
    /// Calls so far, by choice.
    calls: Vec<usize>,
}

impl ChatChunks {
    fn new(shape: ChatShape, options: StreamOptions, n: usize) -> Self {
        Self {
            parsers: vec![shape.parser.clone(); n],
            shape,
            options,
            tokens: vec![None; n],
            calls: vec![0; n],
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
            content: Some(String::new()),
            ..MessageDelta::default()
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

    fn delta(&mut self, delta: Delta) -> Vec<Event> {
        let index = delta.index;
        *self.tokens[index].get_or_insert_default() += delta.tokens.len();
        let mut logprobs = self.shape.logprobs(&delta.tokens);
        let last = delta.finish.is_some();
        let mut messages = self.messages(index, delta.text, last);
        if messages.is_empty() && (last || logprobs.is_some()) {
            messages.push(MessageDelta::default());
        }
        let finish = delta.finish.as_ref();
        let ends = messages.len();
        let mut events = Vec::with_capacity(ends);
        for (at, message) in messages.into_iter().enumerate() {
            let finish = finish.filter(|_| at + 1 == ends);
            let choice = ChunkChoice {
                index,
                logprobs: logprobs.take(),
                finish_reason: finish_reason(finish, self.calls[index] > 0),
                stop_reason: StopReason::of(finish, &self.shape.stops),
                delta: message,
            };
            events.push(self.shape.chunk(vec![choice], self.usage(index)));
        }
        events
    }

    /// The text, or what it is where there are tools to be called.
    fn messages(&mut self, index: usize, text: String, last: bool) -> Vec<MessageDelta> {
        let pieces = match &mut self.parsers[index] {
            None => vec![Piece::Content(text)],
            Some(parser) => parser.read(&text, last),
        };
        let calls = &mut self.calls[index];
        let message = |piece| match piece {
            Piece::Content(text) => MessageDelta {
                content: Some(text),
                ..MessageDelta::default()
            },
            Piece::Call(call) => {
                *calls += 1;
                let index = *calls - 1;
                MessageDelta {
                    tool_calls: Some([CallDelta { index, call }]),
                    ..MessageDelta::default()
                }
            }
        };
        pieces.into_iter().map(message).collect()
    }
}

/// Calls of tools are a reason of their own to end.
fn finish_reason(finish: Option<&Finish>, called: bool) -> Option<&'static str> {
    match finish? {
        Finish::Stop if called => Some("tool_calls"),
        finish => Some(finish.reason()),
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
                role.into_iter().chain(self.delta(delta)).collect()
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
