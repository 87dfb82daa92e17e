//! Usage that nobody asked for: an upstream of OpenAI's completions APIs tells a stream's tokens only
//! when the request has `"stream_options": {"include_usage": true}`. On demand the proxy asks, and
//! keeps the event that comes of it from a client that did not.
//!
//! Both directions stay streams. The request gets its new member before its last brace, as late as
//! that: whether it streams at all may stand just before. The answer's events are looked at one by one,
//! and an event that has come whole is never held back.
//!
//! An upstream that does not know the option may answer 400 or 422 because of it. The first time that one that
//! has never taken it does so, the request is sent once more as it came; if that succeeds, the upstream is
//! not asked again for as long as the proxy runs. For that the body must still be there: until an upstream is
//! known to take the option, requests beyond the 64 KiB that pingora keeps are not changed.
//!
//! What else the upstream does once it is asked, such as `"usage": null` in every event, the client sees.

mod answer;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::{ErrorType, Result};

use crate::bodies::{has_type, is_plain};
use crate::genai;
use crate::json::{Members, Node, Scanner, Value};
use answer::Answer;

/// What is put into a request. A member stands before it: `stream`.
const QUESTION: &[u8] = br#","stream_options":{"include_usage":true}"#;

/// Whether a request is one of those that can be asked for usage.
pub(crate) fn is_askable(method: &Method, route: Option<&str>, headers: &HeaderMap) -> bool {
    genai::operation(method, route).is_some()
        && route.is_some_and(|route| route.ends_with("/completions"))
        && is_plain(headers)
        && has_type(headers, b"application/json")
}

/// pingora's type for the error that an upstream's refusal of the question is made into, to try again.
pub(crate) const REFUSED: ErrorType = ErrorType::Custom("UsageRefused");

/// Whether an upstream takes the question, as far as its answers have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stance {
    #[default]
    Unknown,
    Takes,
    Refuses,
}

/// What is asked of one exchange, in the client's place.
pub(crate) struct Asking {
    question: Question,
    stance: Stance,
    /// Once there is something to hide.
    answer: Option<Answer>,
}

impl Asking {
    /// `stance`: the upstream's.
    pub(crate) fn new(stance: Stance) -> Self {
        Self {
            question: Question::new(),
            stance,
            answer: None,
        }
    }

    /// A piece of the request's body passes by. `is_kept`: it could be sent once more, with all before it.
    pub(crate) fn request_body(&mut self, body: &mut Option<Bytes>, is_kept: bool) {
        if is_kept || self.stance == Stance::Takes {
            *body = body.take().map(|bytes| self.question.pass(bytes));
        }
    }

    pub(crate) fn has_asked(&self) -> bool {
        self.question.asked
    }

    /// Whether an answer with this status may be one to the question alone.
    pub(crate) fn may_be_refused_by(&self, status: StatusCode) -> bool {
        let is_refusal = matches!(
            status,
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
        );
        self.question.asked && self.stance == Stance::Unknown && is_refusal
    }

    /// The head of the answer passes by, to a client that speaks `version`.
    pub(crate) fn response_head(
        &mut self,
        response: &mut ResponseHeader,
        version: Version,
    ) -> Result<()> {
        let headers = &response.headers;
        let has_events = has_type(headers, b"text/event-stream") && is_plain(headers);
        self.answer = (self.question.asked && has_events).then(Answer::new);
        // A length promises what is not sent.
        if self.answer.is_some()
            && response.remove_header(&CONTENT_LENGTH).is_some()
            && version == Version::HTTP_11
        {
            response.insert_header(TRANSFER_ENCODING, "chunked")?;
        }
        Ok(())
    }

    /// A piece of the answer's body passes by.
    pub(crate) fn response_body(&mut self, body: &mut Option<Bytes>, is_last: bool) {
        if let Some(answer) = &mut self.answer {
            let passed = answer.pass(body.as_deref().unwrap_or_default(), is_last);
            *body = (!passed.is_empty()).then_some(passed);
        }
    }
}

#[derive(Clone, Copy)]
enum Asked {
    Stream,
    Options,
}

const BODY: Members<Asked> = &[
    ("stream", Node::value(Asked::Stream)),
    (
        "stream_options",
        Node {
            field: Some(Asked::Options),
            // Without a member of interest an object would be passed over.
            members: &[("include_usage", Node::value(Asked::Options))],
            items: None,
        },
    ),
];

static REQUEST: Node<Asked> = Node::object(BODY);

/// A request's body on its way to the upstream.
struct Question {
    scanner: Scanner<Asked>,
    streams: bool,
    has_options: bool,
    asked: bool,
}

impl Question {
    fn new() -> Self {
        Self {
            scanner: Scanner::new(&REQUEST),
            streams: false,
            has_options: false,
            asked: false,
        }
    }

    /// The next bytes of the body, with the question in them once it is known to be due. A client that
    /// has set any options has decided for itself.
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        if self.scanner.is_complete() {
            return bytes;
        }
        let (streams, has_options) = (&mut self.streams, &mut self.has_options);
        self.scanner.push(&bytes, &mut |field, value| match field {
            Asked::Stream => *streams = value == Value::Bool(true),
            Asked::Options => *has_options = value != Value::Null,
        });
        // Nothing but white space is behind the end of a document that a server will take.
        let end = bytes.trim_ascii_end();
        if !self.scanner.is_complete() || !self.streams || self.has_options || !end.ends_with(b"}")
        {
            return bytes;
        }
        self.asked = true;
        let brace = end.len() - 1;
        let mut asking = BytesMut::with_capacity(bytes.len() + QUESTION.len());
        asking.extend_from_slice(&bytes[..brace]);
        asking.extend_from_slice(QUESTION);
        asking.extend_from_slice(&bytes[brace..]);
        asking.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str, size: usize) -> (String, bool) {
        let mut question = Question::new();
        let mut passed = Vec::new();
        for piece in body.as_bytes().chunks(size) {
            passed.extend_from_slice(&question.pass(Bytes::copy_from_slice(piece)));
        }
        let passed = String::from_utf8(passed).expect("text");
        (passed, question.asked)
    }

    #[test]
    fn a_request_that_streams_is_asked_for_usage_however_it_is_cut() {
        for (body, expected) in [
            (
                r#"{"stream":true}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                "{\"prompt\":\"}\\\"\",\"stream\": true, \"n\":[{}] }\r\n ",
                "{\"prompt\":\"}\\\"\",\"stream\": true, \"n\":[{}] ,\"stream_options\":{\"include_usage\":true}}\r\n ",
            ),
        ] {
            for size in 1..=body.len() {
                assert_eq!(asked(body, size), (expected.to_owned(), true), "{size}");
            }
        }
    }

    #[test]
    fn any_other_request_passes_unchanged() {
        for body in [
            "",
            "{}",
            r#"{"stream":false}"#,
            r#"{"stream":"true"}"#,
            r#"{"options":{"stream":true}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{}}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            r#"{"stream":true"#,
            r#"[{"stream":true}]"#,
            "no json",
        ] {
            for size in 1..=body.len().max(1) {
                assert_eq!(asked(body, size), (body.to_owned(), false), "{body} {size}");
            }
        }
    }

    #[test]
    fn options_that_are_null_are_none() {
        let body = r#"{"stream":true,"stream_options":null}"#;
        assert!(asked(body, body.len()).1);
    }

    #[test]
    fn only_the_completions_apis_in_json_are_asked() {
        let json = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            HeaderMap::from_iter([(http::header::CONTENT_TYPE, value)])
        };
        let is_json = json("application/json; charset=utf-8");
        for route in [
            "/v1/completions",
            "/v1/chat/completions",
            "/llm/{id}/chat/completions",
        ] {
            assert!(is_askable(&Method::POST, Some(route), &is_json), "{route}");
            assert!(!is_askable(&Method::GET, Some(route), &is_json), "{route}");
            let is_text = json("text/plain");
            assert!(!is_askable(&Method::POST, Some(route), &is_text), "{route}");
        }
        for route in [None, Some("/completions"), Some("/v1/responses")] {
            assert!(!is_askable(&Method::POST, route, &is_json), "{route:?}");
        }
    }
}
