//! The key of a prompt: the hash of its first bytes, whether it stands in `prompt`, in `messages` or in
//! `input`. Requests with one key have the start of their prompt in common, and with it the part of the
//! key-value cache that serves them all.
//!
//! The text itself is hashed and not the body's bytes: parameters before it, spaces and escapes make no
//! difference. Of each string at most [`MAX_TEXT_BYTES`] count, as the scanner keeps no more.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use http::Method;
use http::header::EXPECT;
use http::request::Parts;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tokio::time::timeout;

use crate::bodies::{has_type, is_plain};
use crate::json::{MAX_TEXT_BYTES, Members, Node, Scanner, Value};

/// How much of a prompt decides: some 64 tokens, four blocks of vLLM's cache.
const PREFIX_BYTES: usize = 256;
const _: () = assert!(PREFIX_BYTES <= MAX_TEXT_BYTES);

/// A piece of the prompt.
#[derive(Clone, Copy)]
struct Piece;

/// A text, or a list of texts or of token ids.
const TEXTS: Node<Piece> = Node {
    field: Some(Piece),
    members: &[],
    items: Some(&TOKENS),
};

/// A token id, or a list of them.
static TOKENS: Node<Piece> = Node {
    field: Some(Piece),
    members: &[],
    items: Some(&TOKEN),
};

static TOKEN: Node<Piece> = Node::value(Piece);

static PART: Node<Piece> = Node::object(&[("text", Node::value(Piece))]);

/// A message: who says it, and what: a text or a list of parts.
static MESSAGE: Node<Piece> = Node {
    field: Some(Piece),
    members: &[
        ("role", Node::value(Piece)),
        (
            "content",
            Node {
                field: Some(Piece),
                members: &[],
                items: Some(&PART),
            },
        ),
    ],
    items: None,
};

const BODY: Members<Piece> = &[
    ("prompt", TEXTS),
    ("messages", Node::array(&MESSAGE)),
    ("instructions", Node::value(Piece)),
    (
        "input",
        Node {
            field: Some(Piece),
            members: &[],
            items: Some(&MESSAGE),
        },
    ),
];

static ROOT: Node<Piece> = Node::object(BODY);

/// Finds the key as the body passes by.
pub(crate) struct PrefixKey {
    scanner: Scanner<Piece>,
    prefix: Vec<u8>,
}

impl PrefixKey {
    fn new() -> Self {
        Self {
            scanner: Scanner::new(&ROOT),
            prefix: Vec::with_capacity(PREFIX_BYTES),
        }
    }

    /// The key of the prompt that the request's body starts with, if it does. Only what comes with the first
    /// read decides, at most the 64 KiB that pingora keeps for a retry: from there the upstream gets it. `limit`: the
    /// longest wait for it.
    pub(crate) async fn read(session: &mut Session, limit: Duration) -> Result<Option<u64>> {
        if !may_have_prompt(session.req_header()) {
            return Ok(None);
        }
        let client = session.as_downstream_mut();
        client.enable_retry_buffering();
        let mut key = Self::new();
        loop {
            // pingora bounds the wait in HTTP/1 alone.
            let Ok(read) = timeout(limit, client.read_request_body()).await else {
                let context = "no byte of the body came";
                return Err(Error::explain(ErrorType::ReadTimedout, context).into_down());
            };
            let Some(bytes) = read.map_err(|error| error.into_down())? else {
                break;
            };
            key.push(&bytes);
            if !bytes.is_empty() {
                break;
            }
        }
        if client.retry_buffer_truncated() {
            let context = "one read gave more of the body than can be kept";
            return Err(Error::explain(ErrorType::InternalError, context));
        }
        Ok(key.finish())
    }

    /// The next bytes of the body.
    fn push(&mut self, bytes: &[u8]) {
        let Self { scanner, prefix } = self;
        scanner.push(bytes, &mut |Piece, value| match value {
            Value::Text(text) => add(prefix, text.as_bytes()),
            Value::Int(token) => add(prefix, &token.to_le_bytes()),
            _ => {}
        });
    }

    /// The key of what was pushed; `None` if no prompt was in it.
    fn finish(mut self) -> Option<u64> {
        if let Some((Piece, text)) = self.scanner.unfinished_text() {
            add(&mut self.prefix, text.as_bytes());
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.prefix);
        (!self.prefix.is_empty()).then(|| hasher.finish())
    }
}

/// Whether a prompt may be read from the request's body, and before an upstream is chosen.
fn may_have_prompt(head: &Parts) -> bool {
    head.method == Method::POST
        && has_type(&head.headers, b"application/json")
        && is_plain(&head.headers)
        // It sends no body before the upstream has said that it wants one.
        && !head.headers.contains_key(EXPECT)
}

fn add(prefix: &mut Vec<u8>, piece: &[u8]) {
    let room = PREFIX_BYTES - prefix.len();
    prefix.extend_from_slice(&piece[..piece.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(body: &str) -> Option<u64> {
        let mut key = PrefixKey::new();
        key.push(body.as_bytes());
        key.finish()
    }

    /// Longer than what decides.
    fn long(text: &str) -> String {
        text.repeat(PREFIX_BYTES)
    }

    #[test]
    fn prompts_that_start_alike_have_one_key_whatever_else_is_in_the_body() {
        let (start, other) = (long("a b "), long("b a "));
        let one = key(&format!(r#"{{"model":"m","prompt":"{start}one"}}"#));
        let two = key(&format!(r#"{{"prompt" : "{start}two", "max_tokens": 5}}"#));
        assert!(one.is_some());
        assert_eq!(one, two);
        assert_ne!(one, key(&format!(r#"{{"prompt":"{other}"}}"#)));
    }

    #[test]
    fn a_conversation_keeps_its_key_from_turn_to_turn() {
        let system = long("be good ");
        let first = format!(r#"{{"role":"system","content":"{system}"}}"#);
        let one = key(&format!(
            r#"{{"messages":[{first},{{"role":"user","content":"hi"}}]}}"#
        ));
        let parts =
            format!(r#"{{"role":"system","content":[{{"type":"text","text":"{system}"}}]}}"#);
        for messages in [
            format!(r#"{first},{{"role":"user","content":"ho"}}"#),
            parts,
        ] {
            assert_eq!(
                one,
                key(&format!(r#"{{"stream":true,"messages":[{messages}]}}"#))
            );
        }
    }

    #[test]
    fn prompts_of_every_shape_have_a_key() {
        let mut keys = Vec::new();
        for body in [
            r#"{"prompt":"a"}"#,
            r#"{"prompt":["b","c"]}"#,
            r#"{"prompt":[1,2]}"#,
            r#"{"prompt":[[1,3],[4]]}"#,
            r#"{"input":"d"}"#,
            r#"{"input":[{"role":"user","content":"e"}]}"#,
            r#"{"instructions":"f","input":"d"}"#,
            r#"{"messages":[{"role":"user","content":"a"}]}"#,
            r#"{"messages":[{"role":"user","content":"cut "#,
            r#"{"messages":[{"role":"user","content":"shut "#,
        ] {
            keys.push(key(body).expect(body));
        }
        let mut different = keys.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn a_body_without_a_prompt_has_no_key() {
        for body in [
            "",
            "{}",
            "hello",
            r#"{"model":"m"}"#,
            r#"{"prompt":null}"#,
            "[1]",
        ] {
            assert_eq!(key(body), None, "{body}");
        }
    }
}
