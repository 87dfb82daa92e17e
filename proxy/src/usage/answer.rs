//! An answer's events on their way to a client that did not ask for usage: the one event that there would not be is
//! kept from it.

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

use crate::json::{Members, Node, Scanner, Value};
use crate::sse::{EventParser, Reader};

/// The longest event that may be the one to hide; a longer one passes as it comes.
const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Lets all events pass but that one.
pub(super) struct Answer {
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
    pub(super) fn new() -> Self {
        Self {
            held: BytesMut::new(),
            overlong: false,
            line: Line::Start,
        }
    }

    /// The next bytes of the stream, less what is hidden or has to wait for the rest of its event.
    pub(super) fn pass(&mut self, bytes: &[u8], is_last: bool) -> Bytes {
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
}
