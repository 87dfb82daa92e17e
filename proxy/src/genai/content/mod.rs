//! What was said: the messages of a request and of its answer, for whoever asks to have them on the
//! span. They are private, so nobody has them by default.
//!
//! The beginnings of both bodies are kept, up to a bound, and read when the request is over. A request
//! that is longer is left out, since half a JSON document is none; of an answer in events those that
//! fit are read.

mod streamed;

use opentelemetry::KeyValue;
use opentelemetry_semantic_conventions::attribute as semconv;
use serde_json::{Value, json};

use streamed::streamed;

/// Whether a body was longer than is kept, so that messages are missing or cut (bool).
const TRUNCATED: &str = "lantern.gen_ai.content.truncated";

/// What is kept of an exchange's bodies.
pub(super) struct Content {
    request: Kept,
    answer: Kept,
    /// Whether the answer is made of events.
    is_stream: bool,
}

/// The beginning of a body.
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
    is_cut: bool,
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            is_cut: false,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.limit - self.bytes.len();
        self.is_cut |= bytes.len() > room;
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Content {
    /// Keeps at most `limit` bytes of each body.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            request: Kept::new(limit),
            answer: Kept::new(limit),
            is_stream: false,
        }
    }

    pub(super) fn request(&mut self, bytes: &[u8]) {
        self.request.push(bytes);
    }

    /// The request's body will come once more, from its start.
    pub(super) fn restart_request(&mut self) {
        self.request = Kept::new(self.request.limit);
    }

    pub(super) fn document(&mut self, bytes: &[u8]) {
        self.answer.push(bytes);
    }

    /// The next bytes of an event's data.
    pub(super) fn event_data(&mut self, bytes: &[u8]) {
        self.is_stream = true;
        self.answer.push(bytes);
    }

    /// The event whose data has come is complete.
    pub(super) fn end_event(&mut self) {
        // JSON has no line feed of its own.
        self.answer.push(b"\n");
    }

    pub(super) fn attributes(&self, attributes: &mut Vec<KeyValue>) {
        let answer = if self.is_stream {
            streamed(&self.answer.bytes)
        } else {
            serde_json::from_slice(&self.answer.bytes)
                .map(|answer| answered(&answer))
                .unwrap_or_default()
        };
        let request = serde_json::from_slice(&self.request.bytes).unwrap_or_default();
        for (key, messages) in [
            (semconv::GEN_AI_INPUT_MESSAGES, asked(&request)),
            (semconv::GEN_AI_OUTPUT_MESSAGES, answer),
        ] {
            if !messages.is_empty() {
                let text = Value::from(messages).to_string();
                attributes.push(KeyValue::new(key, text));
            }
        }
        if let Some(instructions) = request.get("instructions").and_then(Value::as_str) {
            let text = json!([part(instructions)]).to_string();
            attributes.push(KeyValue::new(semconv::GEN_AI_SYSTEM_INSTRUCTIONS, text));
        }
        if self.request.is_cut || self.answer.is_cut {
            attributes.push(KeyValue::new(TRUNCATED, true));
        }
    }
}

fn part(text: &str) -> Value {
    json!({"type": "text", "content": text})
}

/// The messages that a request brings, in the conventions' form.
fn asked(request: &Value) -> Vec<Value> {
    let input = ["messages", "input", "prompt"]
        .into_iter()
        .find_map(|name| request.get(name));
    match input {
        Some(Value::String(text)) => vec![json!({"role": "user", "parts": [part(text)]})],
        Some(Value::Array(items)) => items.iter().filter_map(message).collect(),
        _ => Vec::new(),
    }
}

/// One message: an object with a role, one of several prompts, or the responses API's call of a tool or
/// what came of it.
fn message(item: &Value) -> Option<Value> {
    if let Some(text) = item.as_str() {
        return Some(json!({"role": "user", "parts": [part(text)]}));
    }
    match item.get("type").and_then(Value::as_str) {
        Some("function_call") => {
            return Some(json!({"role": "assistant", "parts": [function_call(item)]}));
        }
        Some("function_call_output") => {
            let response = json!({
                "type": "tool_call_response",
                "id": item["call_id"],
                "response": item["output"],
            });
            return Some(json!({"role": "tool", "parts": [response]}));
        }
        _ => {}
    }
    let role = item.get("role")?.as_str()?;
    let mut parts = parts(item.get("content").unwrap_or(&Value::Null));
    parts.extend(calls(item));
    Some(json!({"role": role, "parts": parts}))
}

/// A message's content: a text, or a list of texts and other things, of which the kind is told.
fn parts(content: &Value) -> Vec<Value> {
    let of_item = |item: &Value| match item.get("text").and_then(Value::as_str) {
        Some(text) => part(text),
        None => json!({"type": item.get("type").unwrap_or(&Value::Null)}),
    };
    match content {
        Value::String(text) => vec![part(text)],
        Value::Array(items) => items.iter().map(of_item).collect(),
        _ => Vec::new(),
    }
}

/// The tools that a message calls.
fn calls(message: &Value) -> Vec<Value> {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let call = |call: &Value| {
        let function = &call["function"];
        tool_call(&call["id"], &function["name"], &function["arguments"])
    };
    calls.into_iter().flatten().map(call).collect()
}

/// The responses API's item that is a call of a tool.
fn function_call(item: &Value) -> Value {
    tool_call(&item["call_id"], &item["name"], &item["arguments"])
}

fn tool_call(id: &Value, name: &Value, arguments: &Value) -> Value {
    json!({"type": "tool_call", "id": id, "name": name, "arguments": arguments})
}

/// The messages of an answer that is one document.
fn answered(answer: &Value) -> Vec<Value> {
    if let Some(output) = answer.get("output").and_then(Value::as_array) {
        return output.iter().filter_map(message).collect();
    }
    if let Some(content) = answer.get("content") {
        return vec![output(&parts(content), &answer["stop_reason"])];
    }
    let choices = answer.get("choices").and_then(Value::as_array);
    let of_choice = |choice: &Value| {
        let message = &choice["message"];
        let mut parts = parts(match choice.get("text") {
            Some(text) => text,
            None => &message["content"],
        });
        parts.extend(calls(message));
        output(&parts, &choice["finish_reason"])
    };
    choices.into_iter().flatten().map(of_choice).collect()
}

fn output(parts: &[Value], finish_reason: &Value) -> Value {
    json!({"role": "assistant", "parts": parts, "finish_reason": finish_reason})
}

#[cfg(test)]
mod tests;
