//! Calls of tools in what a model writes, piece by piece as it comes.
//!
//! What may become a call is held back until it is one, or proves to be none: then it is text like any other.

use serde::Serialize;
use serde_json::Value;

use crate::chat_template::ToolFormat;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// A call, as OpenAI's API has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Function {
    name: String,
    /// JSON, as text.
    arguments: String,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Content(String),
    Call(ToolCall),
}

/// The reader of one answer.
#[derive(Debug, Clone)]
pub(super) struct ToolParser {
    format: ToolFormat,
    /// More calls than one count.
    parallel: bool,
    calls: usize,
    /// Not decided yet.
    held: String,
    /// Text went out that was no call: in Llama's format there will be none.
    is_text: bool,
}

impl ToolParser {
    pub(super) fn new(format: ToolFormat, parallel: bool) -> Self {
        Self {
            format,
            parallel,
            calls: 0,
            held: String::new(),
            is_text: false,
        }
    }

    /// Takes the next text, which may be the last.
    pub(super) fn read(&mut self, text: &str, last: bool) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        match self.format {
            ToolFormat::Hermes => self.read_tagged(last, &mut pieces),
            ToolFormat::Llama => self.read_bare(last, &mut pieces),
        }
        pieces
    }

    /// Calls between tags, with text before them.
    fn read_tagged(&mut self, last: bool, pieces: &mut Vec<Piece>) {
        loop {
            let Some(open) = self.held.find(OPEN) else {
                let certain = if last {
                    self.held.len()
                } else {
                    self.held.len() - beginning_of(OPEN, &self.held)
                };
                let text: String = self.held.drain(..certain).collect();
                return self.text(text, pieces);
            };
            let text: String = self.held.drain(..open).collect();
            self.text(text, pieces);
            let (inner, end) = match self.held.find(CLOSE) {
                Some(close) => (OPEN.len()..close, close + CLOSE.len()),
                // A model may stop instead of closing.
                None if last => (OPEN.len()..self.held.len(), self.held.len()),
                None => return,
            };
            let call = serde_json::from_str(&self.held[inner]).ok();
            let written: String = self.held.drain(..end).collect();
            match call.and_then(|call| self.call(&call)) {
                Some(call) => self.push(call, pieces),
                None => self.text(written, pieces),
            }
        }
    }

    /// Calls that are the whole answer, separated by semicolons.
    fn read_bare(&mut self, last: bool, pieces: &mut Vec<Piece>) {
        let begins = self.held.trim_start().chars().next();
        let may_be_call = !self.is_text && begins.is_none_or(|first| first == '{');
        if may_be_call && !last {
            return;
        }
        let written = std::mem::take(&mut self.held);
        let calls = may_be_call.then(|| self.bare_calls(&written)).flatten();
        match calls {
            Some(calls) => calls.into_iter().for_each(|call| self.push(call, pieces)),
            None => self.text(written, pieces),
        }
    }

    fn bare_calls(&self, written: &str) -> Option<Vec<ToolCall>> {
        let mut rest = written.trim();
        let mut calls = Vec::new();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let value = values.next()?.ok()?;
            let end = values.byte_offset();
            calls.push(self.call(&value)?);
            rest = rest[end..].trim_start();
            rest = rest.strip_prefix(';').unwrap_or(rest).trim_start();
        }
        (!calls.is_empty()).then_some(calls)
    }

    fn call(&self, value: &Value) -> Option<ToolCall> {
        let name = value.get("name")?.as_str()?.to_owned();
        // Models take either key whatever they were told.
        let keys = [self.format.arguments_key(), "arguments", "parameters"];
        let arguments = keys.iter().find_map(|key| value.get(key))?;
        Some(ToolCall {
            id: format!("call_{}", uuid::Uuid::new_v4().simple()),
            kind: "function",
            function: Function {
                name,
                arguments: arguments.to_string(),
            },
        })
    }

    fn push(&mut self, call: ToolCall, pieces: &mut Vec<Piece>) {
        if self.calls == 0 || self.parallel {
            self.calls += 1;
            pieces.push(Piece::Call(call));
        }
    }

    /// Between calls white space is none of the answer's.
    fn text(&mut self, text: String, pieces: &mut Vec<Piece>) {
        if text.is_empty() || (self.calls > 0 && text.trim().is_empty()) {
            return;
        }
        self.is_text = true;
        pieces.push(Piece::Content(text));
    }
}

/// Bytes at the end of `text` that `tag` may begin with.
fn beginning_of(tag: &str, text: &str) -> usize {
    let most = (tag.len() - 1).min(text.len());
    let begins = |&length: &usize| text.as_bytes().ends_with(&tag.as_bytes()[..length]);
    (1..=most).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an answer reads as, given letter by letter: text, and calls as `name(arguments)`.
    fn read(format: ToolFormat, parallel: bool, answer: &str) -> Vec<String> {
        let mut parser = ToolParser::new(format, parallel);
        let mut pieces = Vec::new();
        for letter in answer.chars() {
            pieces.extend(parser.read(letter.encode_utf8(&mut [0; 4]), false));
        }
        pieces.extend(parser.read("", true));
        let mut shown: Vec<String> = Vec::new();
        let mut in_text = false;
        for piece in pieces {
            match piece {
                Piece::Content(text) if in_text => shown.last_mut().unwrap().push_str(&text),
                Piece::Content(text) => {
                    shown.push(text);
                    in_text = true;
                }
                Piece::Call(call) => {
                    let Function { name, arguments } = call.function;
                    shown.push(format!("{name}({arguments})"));
                    in_text = false;
                }
            }
        }
        shown
    }

    #[test]
    fn calls_between_tags_are_found_among_text() {
        let check = |answer: &str, expected: &[&str]| {
            assert_eq!(read(ToolFormat::Hermes, true, answer), expected, "{answer}");
        };
        let call =
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"<\"}}\n</tool_call>";
        let read_call = "f({\"b\":1,\"a\":\"<\"})";
        check(call, &[read_call]);
        check(
            &format!("Let me see.\n{call}\n{call}\n"),
            &["Let me see.\n", read_call, read_call],
        );
        check("1 <tool> 2 <", &["1 <tool> 2 <"]);
        check(
            "<tool_call>no</tool_call>!",
            &["<tool_call>no</tool_call>!"],
        );
        check(
            "<tool_call>{\"name\": \"f\", \"arguments\": {}}",
            &["f({})"],
        );
        check(
            "<tool_call>{\"name\": \"f\"",
            &["<tool_call>{\"name\": \"f\""],
        );
    }

    #[test]
    fn bare_calls_are_the_whole_answer() {
        let check = |answer: &str, expected: &[&str]| {
            assert_eq!(read(ToolFormat::Llama, true, answer), expected, "{answer}");
        };
        check(
            "{\"name\": \"f\", \"parameters\": {\"a\": [1]}}",
            &["f({\"a\":[1]})"],
        );
        check(
            " {\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"arguments\": {}}",
            &["f({})", "g({})"],
        );
        check("{\"name\": 1}", &["{\"name\": 1}"]);
        check(
            "see {\"name\": \"f\", \"parameters\": {}}",
            &["see {\"name\": \"f\", \"parameters\": {}}"],
        );
    }

    #[test]
    fn one_call_counts_where_more_are_not_wanted() {
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        assert_eq!(
            read(ToolFormat::Hermes, false, &format!("{call}{call}")),
            ["f({})"]
        );
    }
}
