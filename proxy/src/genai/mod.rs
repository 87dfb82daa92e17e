//! What a request to a model and its answer show of themselves as they pass by: the GenAI attributes
//! of the request's span. Not a byte is changed or kept back, and none is collected unless messages
//! are asked for ([`content`]).
//!
//! Names are those of the GenAI conventions
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>); the bodies are those of
//! OpenAI's APIs as OpenAI, vLLM, llama.cpp, SGLang and TGI write them, and of Anthropic's messages, which some of
//! these have too.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

mod content;
mod error;
mod pace;
mod provider;
mod request;
mod response;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_semantic_conventions::attribute as semconv;

use crate::sse::Reader;
use content::Content;
use pace::Pace;
use request::Request;
use response::Response;

/// Whether the answer was cut short, so that its usage is what was seen until then (bool).
const USAGE_PARTIAL: &str = "lantern.gen_ai.usage.partial";

/// Known from the request's head, so that samplers see it.
pub(crate) const OPERATION_NAME: &str = semconv::GEN_AI_OPERATION_NAME;

/// The value of [`OPERATION_NAME`], for a request that is one of a model.
pub(crate) fn operation(method: &Method, route: Option<&str>) -> Option<&'static str> {
    if method != Method::POST {
        return None;
    }
    let route = route?;
    let ends_with = |end| route.ends_with(end);
    // These of llama.cpp have bodies of their own.
    if matches!(route, "/completions" | "/embeddings") {
        None
    } else if ["/chat/completions", "/responses", "/v1/messages"]
        .into_iter()
        .any(ends_with)
    {
        Some("chat")
    } else if ends_with("/completions") {
        Some("text_completion")
    } else if ends_with("/embeddings") {
        Some("embeddings")
    } else {
        None
    }
}

/// A request to a model, and its answer.
pub(crate) struct Exchange {
    operation: &'static str,
    started: Instant,
    request: Request,
    provider: Option<&'static str>,
    response: Response,
    pace: Pace,
    /// `None` unless messages are to be recorded.
    content: Option<Content>,
}

impl Exchange {
    /// `content_bytes`: how much of each body is kept for its messages, if they are to be recorded.
    pub(crate) fn new(
        operation: &'static str,
        started: Instant,
        content_bytes: Option<usize>,
    ) -> Self {
        Self {
            operation,
            started,
            request: Request::new(),
            provider: None,
            response: Response::new(),
            pace: Pace::default(),
            content: content_bytes.map(Content::new),
        }
    }

    /// The next bytes of the request's body.
    pub(crate) fn request_body(&mut self, bytes: &[u8]) {
        self.request.body(bytes);
        if let Some(content) = &mut self.content {
            content.request(bytes);
        }
    }

    /// The request's body will be sent once more, from its start.
    pub(crate) fn restart_request(&mut self) {
        self.request = Request::new();
        if let Some(content) = &mut self.content {
            content.restart_request();
        }
    }

    pub(crate) fn response_head(&mut self, headers: &HeaderMap) {
        self.provider = provider::of(headers);
    }

    /// The next bytes of an answer that is one JSON document.
    pub(crate) fn response_document(&mut self, bytes: &[u8]) {
        self.response.document(bytes);
        if let Some(content) = &mut self.content {
            content.document(bytes);
        }
    }

    /// The reader of an answer that is a stream of events, for those that come now.
    pub(crate) fn response_events(&mut self) -> impl Reader {
        Events {
            response: &mut self.response,
            pace: &mut self.pace,
            content: self.content.as_mut(),
            now: Instant::now(),
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        let (input_tokens, output_tokens) = self.response.tokens();
        let chunks = self.pace.first_and_last();
        Facts {
            operation: self.operation,
            provider: self.provider,
            request_model: self.request.model(),
            response_model: self.response.model(),
            input_tokens,
            output_tokens,
            time_to_first_chunk: chunks.map(|(first, _)| first - self.started),
            generation: chunks.map(|(first, last)| last - first),
        }
    }

    /// The tokens of prompt and answer; where nobody tells them, the chunks of the answer, for they have a
    /// token each, or a few.
    pub(crate) fn tokens(&self) -> u64 {
        let (input, output) = self.response.tokens();
        let output = output.unwrap_or_else(|| i64::from(self.pace.count()));
        let sum = input.unwrap_or(0).saturating_add(output);
        u64::try_from(sum).unwrap_or(0)
    }

    /// What went wrong, by the answer's own word. It may come after a head that said otherwise.
    pub(crate) fn error_type(&self) -> Option<Cow<'static, str>> {
        self.response.error_type()
    }

    /// What has been seen. `cut`: the answer was broken off, by whomever.
    pub(crate) fn attributes(&mut self, cut: bool, attributes: &mut Vec<KeyValue>) {
        self.request.attributes(attributes);
        if let Some(provider) = self.provider {
            attributes.push(KeyValue::new(semconv::GEN_AI_PROVIDER_NAME, provider));
        }
        // A client may leave on the last event, without waiting for the connection's word of the end.
        if cut && !self.response.is_done() {
            attributes.push(KeyValue::new(USAGE_PARTIAL, true));
        }
        self.response.attributes(attributes);
        self.pace.attributes(self.started, attributes);
        if let Some(content) = &self.content {
            content.attributes(attributes);
        }
    }
}

/// What metrics want to know of an exchange.
pub(crate) struct Facts {
    pub(crate) operation: &'static str,
    pub(crate) provider: Option<&'static str>,
    pub(crate) request_model: Option<String>,
    pub(crate) response_model: Option<String>,
    pub(crate) input_tokens: Option<i64>,
    pub(crate) output_tokens: Option<i64>,
    /// Of a stream: from the request's head to its first chunk.
    pub(crate) time_to_first_chunk: Option<Duration>,
    /// Of a stream: from its first to its last chunk.
    pub(crate) generation: Option<Duration>,
}

impl Facts {
    /// With the names of models as `bound` has them. What no server has answered for is no model: its
    /// name is whatever somebody sent.
    pub(crate) fn bounded(mut self, bound: impl Fn(String) -> String) -> Self {
        let answered = self.response_model.is_some();
        self.request_model = self.request_model.filter(|_| answered).map(&bound);
        self.response_model = self.response_model.map(&bound);
        self
    }
}

struct Events<'a> {
    response: &'a mut Response,
    pace: &'a mut Pace,
    content: Option<&'a mut Content>,
    now: Instant,
}

impl Reader for Events<'_> {
    fn data(&mut self, bytes: &[u8]) {
        self.response.data(bytes);
        if let Some(content) = &mut self.content {
            content.event_data(bytes);
        }
    }

    fn event(&mut self) {
        if let Some(content) = &mut self.content {
            content.end_event();
        }
        if self.response.end_event() {
            self.pace.chunk(self.now);
        }
    }
}

fn strings(list: Vec<String>) -> Value {
    Value::Array(Array::String(
        list.into_iter().map(StringValue::from).collect(),
    ))
}

#[cfg(test)]
mod tests;
