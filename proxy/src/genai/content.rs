//! What was said: the messages of a request and of its answer, for whoever asks to have them on the
//! span. They are private, so nobody has them by default.
//!
//! The beginnings of both bodies are kept, up to a bound, and read when the request is over. A request
//! that is longer is left out, since half a JSON document is none; of an answer in events those that
//! fit are read.

use opentelemetry::KeyValue;
use opentelemetry_semantic_conventions::attribute as semconv;
use serde_json::{Value, json};

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

/// One message of a request: an object with a role, or one of several prompts.
fn message(item: &Value) -> Option<Value> {
    if let Some(text) = item.as_str() {
        return Some(json!({"role": "user", "parts": [part(text)]}));
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
        json!({
            "type": "tool_call",
            "id": call["id"],
            "name": function["name"],
            "arguments": function["arguments"],
        })
    };
    calls.into_iter().flatten().map(call).collect()
}

/// The messages of an answer that is one document.
fn answered(answer: &Value) -> Vec<Value> {
    if let Some(output) = answer.get("output").and_then(Value::as_array) {
        return output.iter().filter_map(message).collect();
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

/// Most choices of a stream that are put together. OpenAI allows 128.
const MAX_CHOICES: usize = 128;

/// The messages that a stream's events make together; one event a line.
fn streamed(events: &[u8]) -> Vec<Value> {
    let mut choices: Vec<(String, Value)> = Vec::new();
    let events = events.split(|&byte| byte == b'\n');
    for event in events.filter_map(|event| serde_json::from_slice::<Value>(event).ok()) {
        if let Some(delta) = event.get("delta").and_then(Value::as_str) {
            // The responses API.
            text_of(&mut choices, 0, delta);
        }
        let chunks = event.get("choices").and_then(Value::as_array);
        for chunk in chunks.into_iter().flatten() {
            let index = chunk["index"].as_u64().unwrap_or(0);
            let index = usize::try_from(index).unwrap_or(MAX_CHOICES);
            let text = chunk.get("text").unwrap_or(&chunk["delta"]["content"]);
            text_of(&mut choices, index, text.as_str().unwrap_or_default());
            if let (Some(choice), Value::String(_)) =
                (choices.get_mut(index), &chunk["finish_reason"])
            {
                choice.1 = chunk["finish_reason"].clone();
            }
        }
    }
    let message = |(text, reason): (String, Value)| output(&[part(&text)], &reason);
    choices.into_iter().map(message).collect()
}

fn text_of(choices: &mut Vec<(String, Value)>, index: usize, text: &str) {
    if index < MAX_CHOICES {
        let len = choices.len().max(index + 1);
        choices.resize_with(len, Default::default);
        choices[index].0.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 4096;

    /// Attributes and their JSON, of which the order of keys does not matter.
    type Shown = Vec<(String, Value)>;

    fn shown(content: &Content) -> Shown {
        let mut attributes = Vec::new();
        content.attributes(&mut attributes);
        let show = |kv: &KeyValue| (kv.key.to_string(), json_of(&kv.value.to_string()));
        attributes.iter().map(show).collect()
    }

    fn told<const N: usize>(expected: [(&str, &str); N]) -> Shown {
        let tell = |(key, json): (&str, &str)| (key.to_owned(), json_of(json));
        expected.map(tell).into()
    }

    fn json_of(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn a_chat_is_told_in_the_conventions_form() {
        let mut content = Content::new(LIMIT);
        content.request(br#"{"messages":[{"role":"system","content":"be brief"},{"role":"user","#);
        content.request(br#""content":[{"type":"text","text":"hi"},{"type":"image_url"}]}]}"#);
        content.document(br#"{"choices":[{"message":{"role":"assistant","content":"yo","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"stop"}]}"#);
        assert_eq!(
            shown(&content),
            told([
                (
                    "gen_ai.input.messages",
                    r#"[{"parts":[{"content":"be brief","type":"text"}],"role":"system"},{"parts":[{"content":"hi","type":"text"},{"type":"image_url"}],"role":"user"}]"#
                ),
                (
                    "gen_ai.output.messages",
                    r#"[{"finish_reason":"stop","parts":[{"content":"yo","type":"text"},{"arguments":"{}","id":"1","name":"f","type":"tool_call"}],"role":"assistant"}]"#
                ),
            ])
        );
    }

    #[test]
    fn prompts_are_messages_of_the_user() {
        for (body, messages) in [
            (
                r#"{"prompt":"a"}"#,
                r#"[{"parts":[{"content":"a","type":"text"}],"role":"user"}]"#,
            ),
            (
                r#"{"prompt":["a","b"]}"#,
                r#"[{"parts":[{"content":"a","type":"text"}],"role":"user"},{"parts":[{"content":"b","type":"text"}],"role":"user"}]"#,
            ),
        ] {
            let mut content = Content::new(LIMIT);
            content.request(body.as_bytes());
            assert_eq!(shown(&content), told([("gen_ai.input.messages", messages)]));
        }
    }

    #[test]
    fn the_responses_api_has_instructions_and_an_output() {
        let mut content = Content::new(LIMIT);
        content.request(br#"{"input":"hi","instructions":"be brief"}"#);
        content.document(br#"{"output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"yo"}]}]}"#);
        assert_eq!(
            shown(&content),
            told([
                (
                    "gen_ai.input.messages",
                    r#"[{"parts":[{"content":"hi","type":"text"}],"role":"user"}]"#
                ),
                (
                    "gen_ai.output.messages",
                    r#"[{"parts":[{"content":"yo","type":"text"}],"role":"assistant"}]"#
                ),
                (
                    "gen_ai.system_instructions",
                    r#"[{"content":"be brief","type":"text"}]"#
                ),
            ])
        );
    }

    #[test]
    fn the_events_of_a_stream_make_its_messages() {
        let mut content = Content::new(LIMIT);
        for event in [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"length"}]}"#,
            "[DONE]",
        ] {
            content.event_data(event.as_bytes());
            content.end_event();
        }
        assert_eq!(
            shown(&content),
            told([(
                "gen_ai.output.messages",
                r#"[{"finish_reason":"length","parts":[{"content":"aa","type":"text"}],"role":"assistant"},{"finish_reason":null,"parts":[{"content":"b","type":"text"}],"role":"assistant"}]"#
            )])
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let mut content = Content::new(32);
        content.request(format!(r#"{{"prompt":"{}"}}"#, "x".repeat(32)).as_bytes());
        for _ in 0..2 {
            content.event_data(br#"{"choices":[{"text":"a"}]}"#);
            content.end_event();
        }
        assert_eq!(
            shown(&content),
            told([
                (
                    "gen_ai.output.messages",
                    r#"[{"finish_reason":null,"parts":[{"content":"a","type":"text"}],"role":"assistant"}]"#
                ),
                ("lantern.gen_ai.content.truncated", "true"),
            ])
        );
    }

    #[test]
    fn what_is_no_json_has_no_messages() {
        let mut content = Content::new(LIMIT);
        content.request(b"no json");
        content.document(b"no json");
        assert!(shown(&content).is_empty());
    }
}
