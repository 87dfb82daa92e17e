//! Usage that nobody asked for: an upstream of OpenAI's completions APIs tells a stream's tokens only
//! when the request has `"stream_options": {"include_usage": true}`. On demand the proxy asks, and
//! keeps the event that comes of it from a client that did not.
//!
//! Both directions stay streams. The request gets its new member before its last brace, as late as
//! that: whether it streams at all may stand just before. The answer's events are looked at one by one,
//! and an event that has come whole is never held back.
//!
//! What else the upstream does once it is asked, such as `"usage": null` in every event, the client sees.

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method};
use memchr::memchr2;

use crate::bodies::{has_type, is_plain};
use crate::json::{Members, Node, Scanner, Value};
use crate::sse::{EventParser, Reader};

/// The routes that know the option.
const ROUTES: &[&str] = &["/v1/completions", "/v1/chat/completions"];

/// What is put into a request. A member stands before it: `stream`.
const QUESTION: &[u8] = br#","stream_options":{"include_usage":true}"#;

/// The longest event that may be the one to hide; a longer one passes as it comes.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Whether a request is one of those that can be asked for usage.
pub(crate) fn is_askable(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    method == Method::POST
        && ROUTES.contains(&path)
        && is_plain(headers)
        && has_type(headers, b"application/json")
}

/// What is asked of one exchange, in the client's place.
pub(crate) struct Asking {
    question: Question,
    /// Once there is something to hide.
    answer: Option<Answer>,
}

impl Asking {
    pub(crate) fn new() -> Self {
        Self {
            question: Question::new(),
            answer: None,
        }
    }

    /// A piece of the request's body passes by.
    pub(crate) fn request_body(&mut self, body: &mut Option<Bytes>) {
        *body = body.take().map(|bytes| self.question.pass(bytes));
    }

    /// The head of the answer passes by.
    pub(crate) fn response_head(&mut self, headers: &HeaderMap) {
        let has_events = has_type(headers, b"text/event-stream") && is_plain(headers);
        // A length promises what must not be kept.
        let is_open = !headers.contains_key(CONTENT_LENGTH);
        self.answer = (self.question.asked && has_events && is_open).then(Answer::new);
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

#[derive(Clone, Copy)]
enum Told {
    Choices,
    Choice,
    Usage,
    Other,
}

static CHOICE: Node<Told> = Node {
    field: Some(Told::Choice),
    members: &[("index", Node::value(Told::Other))],
    items: None,
};

const EVENT: Members<Told> = &[
    (
        "choices",
        Node {
            field: Some(Told::Choices),
            members: &[],
            items: Some(&CHOICE),
        },
    ),
    (
        "usage",
        Node {
            field: Some(Told::Usage),
            members: &[("prompt_tokens", Node::value(Told::Other))],
            items: None,
        },
    ),
];

static ANSWER: Node<Told> = Node::object(EVENT);

/// An answer's events on their way to a client that did not ask for usage.
struct Answer {
    /// The beginning of an event that has not ended.
    held: BytesMut,
    /// Whether the current event is too long to be held.
    overlong: bool,
    line: Line,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Start,
    /// At the start, behind a CR that an LF may complete.
    AfterCr,
    Within,
}

impl Answer {
    fn new() -> Self {
        Self {
            held: BytesMut::new(),
            overlong: false,
            line: Line::Start,
        }
    }

    /// The next bytes of the stream, less what is hidden or has to wait for the rest of its event.
    fn pass(&mut self, bytes: &[u8], is_last: bool) -> Bytes {
        let mut passed = BytesMut::with_capacity(self.held.len() + bytes.len());
        let mut rest = bytes;
        while let Some(end) = self.end_of_event(rest) {
            self.held.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            let overlong = std::mem::take(&mut self.overlong);
            if overlong || !is_usage_alone(&self.held) {
                passed.extend_from_slice(&self.held);
            }
            self.held.clear();
        }
        self.held.extend_from_slice(rest);
        if is_last || self.overlong || self.held.len() > MAX_EVENT_BYTES {
            self.overlong = true;
            passed.extend_from_slice(&self.held);
            self.held.clear();
        }
        passed.freeze()
    }

    /// How many of `bytes` belong to the current event, if it ends in them: with an empty line.
    fn end_of_event(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let before = self.line;
            match byte {
                b'\n' => self.line = Line::Start,
                b'\r' => self.line = Line::AfterCr,
                _ => {
                    self.line = Line::Within;
                    at += memchr2(b'\n', b'\r', &bytes[at..]).unwrap_or(bytes.len() - at);
                    continue;
                }
            }
            at += 1;
            let completes_cr = before == Line::AfterCr && byte == b'\n';
            if before != Line::Within && !completes_cr {
                return Some(at);
            }
        }
        None
    }
}

/// Whether an event has usage and no choices: the one that a stream ends with if it was asked.
fn is_usage_alone(event: &[u8]) -> bool {
    let mut looked = Looked {
        scanner: Scanner::new(&ANSWER),
        has_choices: false,
        has_no_choice: true,
        has_usage: false,
    };
    EventParser::default().push(event, &mut looked);
    looked.has_choices && looked.has_no_choice && looked.has_usage
}

struct Looked {
    scanner: Scanner<Told>,
    has_choices: bool,
    has_no_choice: bool,
    has_usage: bool,
}

impl Reader for Looked {
    fn data(&mut self, bytes: &[u8]) {
        let Self {
            scanner,
            has_choices,
            has_no_choice,
            has_usage,
        } = self;
        scanner.push(bytes, &mut |field, value| match (field, value) {
            (Told::Choices, Value::End) => *has_choices = true,
            (Told::Choice, _) => *has_no_choice = false,
            (Told::Usage, Value::End) => *has_usage = true,
            _ => {}
        });
    }

    fn event(&mut self) {}
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

    fn passed(stream: &str, size: usize) -> String {
        let mut answer = Answer::new();
        let mut passed = Vec::new();
        for piece in stream.as_bytes().chunks(size) {
            passed.extend_from_slice(&answer.pass(piece, false));
        }
        passed.extend_from_slice(&answer.pass(b"", true));
        String::from_utf8(passed).expect("text")
    }

    const USAGE: &str = r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1}}"#;

    #[test]
    fn the_event_with_nothing_but_usage_is_hidden_however_the_stream_is_cut() {
        for end in ["\n\n", "\r\n\r\n"] {
            let chunk = format!(r#"data: {{"choices":[{{"text":"a"}}],"usage":null}}{end}"#);
            let done = format!("data: [DONE]{end}");
            let stream = format!("{chunk}data: {USAGE}{end}{done}");
            for size in 1..=stream.len() {
                let expected = format!("{chunk}{done}");
                assert_eq!(passed(&stream, size), expected, "{size} {end:?}");
            }
        }
    }

    #[test]
    fn every_other_event_passes() {
        for stream in [
            "",
            ": ping\n\n",
            "data: {\"choices\":[{\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"choices\":[]}\n\n",
            "data: {\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"error\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tok",
            "event: x\rdata: y\r\rdata: z",
        ] {
            for size in 1..=stream.len().max(1) {
                assert_eq!(passed(stream, size), stream, "{size}");
            }
        }
    }

    #[test]
    fn a_whole_event_is_not_held_back() {
        let mut answer = Answer::new();
        let event = b"data: {\"choices\":[{}]}\n\n";
        assert_eq!(answer.pass(event, false), &event[..]);
    }

    #[test]
    fn an_event_that_is_too_long_passes_as_it_comes() {
        let mut answer = Answer::new();
        let long = format!("data: {}", "x".repeat(MAX_EVENT_BYTES));
        assert_eq!(answer.pass(long.as_bytes(), false).len(), long.len());
        assert_eq!(answer.pass(b"more\n\n", false), &b"more\n\n"[..]);
        let usage = format!("data: {USAGE}\n\n");
        assert!(answer.pass(usage.as_bytes(), false).is_empty());
    }

    #[test]
    fn only_the_completions_apis_in_json_are_asked() {
        let json = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            HeaderMap::from_iter([(http::header::CONTENT_TYPE, value)])
        };
        let is_json = json("application/json; charset=utf-8");
        assert!(is_askable(&Method::POST, "/v1/completions", &is_json));
        assert!(is_askable(&Method::POST, "/v1/chat/completions", &is_json));
        assert!(!is_askable(&Method::GET, "/v1/completions", &is_json));
        assert!(!is_askable(&Method::POST, "/v1/responses", &is_json));
        assert!(!is_askable(
            &Method::POST,
            "/v1/completions",
            &json("text/plain")
        ));
    }
}
