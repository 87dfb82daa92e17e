//! What the bodies of one request and its answer show as they pass by: how many chunks and events,
//! and for a request to a model the GenAI attributes ([`crate::genai`]).
//!
//! A body with a Content-Encoding is left alone: decoding it would cost more than the whole proxy.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use opentelemetry::{Key, KeyValue};

use crate::genai::{Exchange, Facts};
use crate::sse::EventParser;

/// Pieces in which the body of an answer without a Content-Length arrived (int).
const CHUNK_COUNT: Key = Key::from_static_str("lantern.http.response.chunk_count");
/// Complete events of an answer that is a `text/event-stream` (int).
const EVENT_COUNT: Key = Key::from_static_str("lantern.sse.event_count");

/// The bodies of a request whose span records.
pub(crate) struct Bodies {
    /// `None` for a request that is none to a model.
    exchange: Option<Exchange>,
    /// Whether the request's body can be read.
    reads_request: bool,
    answer: Answer,
    chunks: Option<i64>,
}

/// What an answer's body is.
enum Answer {
    /// Not there yet, or nothing that is read.
    Opaque,
    Json,
    Events(EventParser),
}

impl Bodies {
    pub(crate) fn new(request_headers: &HeaderMap, exchange: Option<Exchange>) -> Self {
        Self {
            reads_request: exchange.is_some() && is_plain(request_headers),
            exchange,
            answer: Answer::Opaque,
            chunks: None,
        }
    }

    /// A piece of the request's body passes by.
    pub(crate) fn request(&mut self, bytes: &[u8]) {
        if let Some(exchange) = self.exchange.as_mut().filter(|_| self.reads_request) {
            exchange.request_body(bytes);
        }
    }

    /// The request's body will be sent once more, from its start.
    pub(crate) fn restart_request(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.restart_request();
        }
    }

    /// The head of the final answer passes by.
    pub(crate) fn response_head(&mut self, headers: &HeaderMap) {
        if !headers.contains_key(CONTENT_LENGTH) {
            self.chunks = Some(0);
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.response_head(headers);
        }
        if !is_plain(headers) {
            return;
        }
        if has_type(headers, b"text/event-stream") {
            self.answer = Answer::Events(EventParser::default());
        } else if has_type(headers, b"application/json") {
            self.answer = Answer::Json;
        }
    }

    /// A piece of the answer's body passes by.
    pub(crate) fn response(&mut self, bytes: &[u8]) {
        if let Some(chunks) = &mut self.chunks {
            *chunks += 1;
        }
        match (&mut self.answer, &mut self.exchange) {
            (Answer::Json, Some(exchange)) => exchange.response_document(bytes),
            (Answer::Events(parser), Some(exchange)) => {
                parser.push(bytes, &mut exchange.response_events());
            }
            (Answer::Events(parser), None) => parser.push(bytes, &mut ()),
            (Answer::Json, None) | (Answer::Opaque, _) => {}
        }
    }

    /// What metrics want to know of a request to a model.
    pub(crate) fn facts(&self) -> Option<Facts> {
        self.exchange.as_ref().map(Exchange::facts)
    }

    /// What went wrong, by a model's own word.
    pub(crate) fn error_type(&self) -> Option<Cow<'static, str>> {
        self.exchange.as_ref().and_then(Exchange::error_type)
    }

    /// The tokens that the exchange has taken.
    pub(crate) fn tokens(&self) -> u64 {
        self.exchange.as_ref().map_or(0, Exchange::tokens)
    }

    /// What has been seen. `failed`: the request was broken off, by whomever.
    pub(crate) fn attributes(&mut self, failed: bool, attributes: &mut Vec<KeyValue>) {
        if let Some(chunks) = self.chunks {
            attributes.push(KeyValue::new(CHUNK_COUNT, chunks));
        }
        if let Answer::Events(parser) = &self.answer {
            attributes.push(KeyValue::new(EVENT_COUNT, parser.events()));
        }
        if let Some(exchange) = &mut self.exchange {
            let cut = failed && !matches!(self.answer, Answer::Opaque);
            exchange.attributes(cut, attributes);
        }
    }
}

/// Whether the body is what its type says, without an encoding around it.
pub(crate) fn is_plain(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether the body has this media type, whatever its parameters.
pub(crate) fn has_type(headers: &HeaderMap, media_type: &[u8]) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let essence = value.as_bytes().split(|&byte| byte == b';').next();
    essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(media_type))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &http::HeaderName, values: &[&'static str]) -> HeaderMap {
        let pairs = values
            .iter()
            .map(|value| (name.clone(), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn only_a_body_without_an_encoding_is_read() {
        for (encodings, plain) in [
            (&[][..], true),
            (&["identity"], true),
            (&["Identity"], true),
            (&["gzip"], false),
            (&["identity", "br"], false),
        ] {
            assert_eq!(is_plain(&headers(&CONTENT_ENCODING, encodings)), plain);
        }
    }

    #[test]
    fn a_media_type_is_known_with_its_parameters_and_in_any_case() {
        for (value, is_json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json ;charset=utf-8", true),
            ("application/jsonl", false),
            ("text/plain", false),
        ] {
            let headers = headers(&CONTENT_TYPE, &[value]);
            assert_eq!(has_type(&headers, b"application/json"), is_json, "{value}");
        }
        assert!(!has_type(&HeaderMap::new(), b"application/json"));
    }
}
