//! An answer's body, or the events of its stream → what the model did.

use std::borrow::Cow;

use opentelemetry::KeyValue;
use opentelemetry_semantic_conventions::attribute as semconv;

use super::error::ModelError;
use super::strings;
use crate::json::{Members, Node, Scanner, Value};

/// Most choices whose finish reasons are recorded. OpenAI allows 128.
const MAX_CHOICES: usize = 128;

/// What ends the stream of the completions APIs.
const DONE: &[u8] = b"[DONE]";

#[derive(Clone, Copy)]
enum Field {
    Id,
    Model,
    /// The kind of an event of the responses API.
    EventType,
    /// The end of a choice.
    Choice,
    ChoiceIndex,
    FinishReason,
    /// The responses API's, in place of finish reasons.
    Status,
    IncompleteReason,
    /// The messages API's.
    StopReason,
    InputTokens,
    OutputTokens,
    CachedTokens,
    /// llama.cpp's, which it sends at the end of every stream.
    EvaluatedTokens,
    ReusedTokens,
    PredictedTokens,
    /// An error, or what it says of itself.
    Error,
    ErrorCode,
    ErrorType,
}

static CHOICE: Node<Field> = Node {
    field: Some(Field::Choice),
    members: &[
        ("index", Node::value(Field::ChoiceIndex)),
        ("finish_reason", Node::value(Field::FinishReason)),
    ],
    items: None,
};

const CACHED: Members<Field> = &[("cached_tokens", Node::value(Field::CachedTokens))];

const USAGE: Members<Field> = &[
    ("prompt_tokens", Node::value(Field::InputTokens)),
    ("completion_tokens", Node::value(Field::OutputTokens)),
    ("prompt_tokens_details", Node::object(CACHED)),
    ("input_tokens", Node::value(Field::InputTokens)),
    ("output_tokens", Node::value(Field::OutputTokens)),
    ("input_tokens_details", Node::object(CACHED)),
];

const INCOMPLETE: Members<Field> = &[("reason", Node::value(Field::IncompleteReason))];

const STOP: Members<Field> = &[("stop_reason", Node::value(Field::StopReason))];

const TIMINGS: Members<Field> = &[
    ("prompt_n", Node::value(Field::EvaluatedTokens)),
    ("cache_n", Node::value(Field::ReusedTokens)),
    ("predicted_n", Node::value(Field::PredictedTokens)),
];

/// OpenAI's is an object, TGI's a text.
const ERROR: Node<Field> = Node {
    field: Some(Field::Error),
    members: &[
        ("code", Node::value(Field::ErrorCode)),
        ("type", Node::value(Field::ErrorType)),
    ],
    items: None,
};

/// The responses API's object, as a body and in its events.
const RESPONSE: Members<Field> = &[
    ("id", Node::value(Field::Id)),
    ("model", Node::value(Field::Model)),
    ("status", Node::value(Field::Status)),
    ("usage", Node::object(USAGE)),
    ("incomplete_details", Node::object(INCOMPLETE)),
    ("error", ERROR),
];

/// The messages API's object, in the first event of its stream.
const MESSAGE: Members<Field> = &[
    ("id", Node::value(Field::Id)),
    ("model", Node::value(Field::Model)),
    ("usage", Node::object(USAGE)),
];

/// All of it together: the APIs' names do not collide.
const BODY: Members<Field> = &[
    ("id", Node::value(Field::Id)),
    ("model", Node::value(Field::Model)),
    ("choices", Node::array(&CHOICE)),
    ("usage", Node::object(USAGE)),
    ("timings", Node::object(TIMINGS)),
    ("type", Node::value(Field::EventType)),
    ("status", Node::value(Field::Status)),
    ("incomplete_details", Node::object(INCOMPLETE)),
    ("response", Node::object(RESPONSE)),
    ("error", ERROR),
    ("message", Node::object(MESSAGE)),
    ("delta", Node::object(STOP)),
    ("stop_reason", Node::value(Field::StopReason)),
    // Beside the error in TGI's streams, and in the responses API's events that are one.
    ("error_type", Node::value(Field::ErrorType)),
    ("code", Node::value(Field::ErrorCode)),
];

static ROOT: Node<Field> = Node::object(BODY);

/// What has passed of an answer's body.
pub(super) struct Response {
    scanner: Scanner<Field>,
    answer: Answer,
    event: Event,
}

/// What the answer has said so far.
#[derive(Default)]
struct Answer {
    id: Option<String>,
    model: Option<String>,
    /// By the choice's index.
    finish_reasons: Vec<Option<String>>,
    status: Option<String>,
    incomplete_reason: Option<String>,
    usage: Usage,
    timings: Usage,
    error: ModelError,
    /// Whether the document is whole, or the stream's end was announced.
    done: bool,
}

/// Tokens; what counts is the last that was said, which is how vLLM's running usage is meant.
#[derive(Clone, Copy, Default)]
struct Usage {
    input: Option<i64>,
    output: Option<i64>,
    cached: Option<i64>,
}

/// What the current event, or the body, has shown of itself.
#[derive(Default)]
struct Event {
    /// The data's first bytes, as far as they are those of `[DONE]`, and the data's length.
    done_bytes: usize,
    bytes: usize,
    choices: usize,
    choice_index: Option<usize>,
    finish_reason: Option<String>,
    is_delta: bool,
}

impl Response {
    pub(super) fn new() -> Self {
        Self {
            scanner: Scanner::new(&ROOT),
            answer: Answer::default(),
            event: Event::default(),
        }
    }

    /// The next bytes of an answer that is one document.
    pub(super) fn document(&mut self, bytes: &[u8]) {
        self.data(bytes);
        self.answer.done = self.scanner.is_complete();
    }

    /// The next bytes of an event's data.
    pub(super) fn data(&mut self, bytes: &[u8]) {
        let Self {
            scanner,
            answer,
            event,
        } = self;
        event.look_for_done(bytes);
        scanner.push(bytes, &mut |field, value| answer.take(event, field, &value));
    }

    /// The event whose data has passed is complete. Whether it was a chunk of the answer: a part of a
    /// choice or a delta, which `[DONE]`, a last event with nothing but usage, an error and the
    /// responses API's announcements are not.
    pub(super) fn end_event(&mut self) -> bool {
        let event = std::mem::take(&mut self.event);
        self.scanner.restart();
        self.answer.done |=
            event.is_done() || self.answer.status.is_some() || self.answer.error.is_there;
        event.choices > 0 || event.is_delta
    }

    /// Whether the answer has said that this was its end.
    pub(super) fn is_done(&self) -> bool {
        self.answer.done
    }

    /// The model that answered.
    pub(super) fn model(&self) -> Option<String> {
        self.answer.model.clone()
    }

    /// Tokens of the prompt and of the answer.
    pub(super) fn tokens(&self) -> (Option<i64>, Option<i64>) {
        let usage = self.answer.usage();
        (usage.input, usage.output)
    }

    /// What went wrong, if the answer says that something did.
    pub(super) fn error_type(&self) -> Option<Cow<'static, str>> {
        self.answer.error.error_type()
    }

    pub(super) fn attributes(&mut self, attributes: &mut Vec<KeyValue>) {
        self.answer.attributes(attributes);
    }
}

impl Event {
    fn look_for_done(&mut self, bytes: &[u8]) {
        let wanted = DONE.get(self.bytes..).unwrap_or_default();
        self.done_bytes += wanted
            .iter()
            .zip(bytes)
            .filter(|(wanted, byte)| wanted == byte)
            .count();
        self.bytes = self.bytes.saturating_add(bytes.len());
    }

    fn is_done(&self) -> bool {
        self.done_bytes == DONE.len() && self.bytes == DONE.len()
    }
}

impl Answer {
    fn take(&mut self, event: &mut Event, field: Field, value: &Value<'_>) {
        match (field, value) {
            (Field::Id, Value::Text(id)) => keep_first(&mut self.id, id),
            (Field::Model, Value::Text(model)) => keep_first(&mut self.model, model),
            (Field::EventType, Value::Text(kind)) => {
                event.is_delta = kind.ends_with(".delta") || *kind == "content_block_delta";
                self.done |= *kind == "message_stop";
                self.error.is_there |= *kind == "error";
            }
            (Field::ChoiceIndex, Value::Int(index)) => {
                event.choice_index = usize::try_from(*index).ok();
            }
            (Field::FinishReason, Value::Text(reason)) => {
                event.finish_reason = Some((*reason).to_owned());
            }
            (Field::Choice, Value::End) => self.end_choice(event),
            (Field::Status, Value::Text(status)) if is_final(status) => {
                self.status = Some((*status).to_owned());
                self.error.is_there |= *status == "failed";
            }
            (Field::IncompleteReason | Field::StopReason, Value::Text(reason)) => {
                self.incomplete_reason = Some((*reason).to_owned());
            }
            (Field::InputTokens, Value::Int(tokens)) => self.usage.input = Some(*tokens),
            (Field::OutputTokens, Value::Int(tokens)) => self.usage.output = Some(*tokens),
            (Field::CachedTokens, Value::Int(tokens)) => self.usage.cached = Some(*tokens),
            (Field::EvaluatedTokens, Value::Int(tokens)) => self.timings.input = Some(*tokens),
            (Field::ReusedTokens, Value::Int(tokens)) => self.timings.cached = Some(*tokens),
            (Field::PredictedTokens, Value::Int(tokens)) => self.timings.output = Some(*tokens),
            (Field::Error, Value::Text(_) | Value::End) => self.error.is_there = true,
            (Field::ErrorCode, Value::Text(code)) => self.error.code(code),
            (Field::ErrorCode, Value::Int(code)) => self.error.number(*code),
            (Field::ErrorType, Value::Text(kind)) => self.error.kind(kind),
            _ => {}
        }
    }

    /// Its index may come behind its finish reason, so both wait for the choice's end.
    fn end_choice(&mut self, event: &mut Event) {
        let index = event.choice_index.take().unwrap_or(event.choices);
        event.choices += 1;
        let Some(reason) = event.finish_reason.take() else {
            return;
        };
        if index < MAX_CHOICES {
            let len = self.finish_reasons.len().max(index + 1);
            self.finish_reasons.resize(len, None);
            self.finish_reasons[index] = Some(reason);
        }
    }

    fn attributes(&mut self, attributes: &mut Vec<KeyValue>) {
        let texts = [
            (semconv::GEN_AI_RESPONSE_ID, self.id.take()),
            (semconv::GEN_AI_RESPONSE_MODEL, self.model.take()),
        ];
        for (key, text) in texts {
            attributes.extend(text.map(|text| KeyValue::new(key, text)));
        }
        let mut reasons: Vec<_> = self.finish_reasons.drain(..).flatten().collect();
        reasons.extend(self.incomplete_reason.take().or(self.status.take()));
        if !reasons.is_empty() {
            let reasons = strings(reasons);
            attributes.push(KeyValue::new(
                semconv::GEN_AI_RESPONSE_FINISH_REASONS,
                reasons,
            ));
        }
        let usage = self.usage();
        let tokens = [
            (semconv::GEN_AI_USAGE_INPUT_TOKENS, usage.input),
            (semconv::GEN_AI_USAGE_OUTPUT_TOKENS, usage.output),
            (semconv::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached),
        ];
        for (key, tokens) in tokens {
            attributes.extend(tokens.map(|tokens| KeyValue::new(key, tokens)));
        }
    }

    /// The usage, or what llama.cpp's timings say where none was sent. They count apart what was
    /// evaluated of the prompt and what was reused.
    fn usage(&self) -> Usage {
        let timings = Usage {
            input: self
                .timings
                .input
                .map(|evaluated| evaluated.saturating_add(self.timings.cached.unwrap_or(0))),
            ..self.timings
        };
        Usage {
            input: self.usage.input.or(timings.input),
            output: self.usage.output.or(timings.output),
            cached: self.usage.cached.or(timings.cached),
        }
    }
}

/// Every event of a stream repeats it. TGI's chat completions have an empty id.
fn keep_first(slot: &mut Option<String>, text: &str) {
    if slot.is_none() && !text.is_empty() {
        *slot = Some(text.to_owned());
    }
}

/// Whether a response of the responses API that says so is over.
fn is_final(status: &str) -> bool {
    matches!(status, "completed" | "incomplete" | "failed" | "cancelled")
}
