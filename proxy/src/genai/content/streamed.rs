//! The events of a stream, kept one a line → the messages that they make together.

use serde_json::{Value, json};

use super::{function_call, output, part, tool_call};

/// Most choices of a stream that are put together. OpenAI allows 128.
const MAX_CHOICES: usize = 128;

/// Most tools that one choice calls. OpenAI lets a request offer 128.
pub(super) const MAX_TOOL_CALLS: usize = 128;

/// What a choice has said so far.
#[derive(Default)]
struct Choice {
    text: String,
    /// By the index that the stream gives them.
    calls: Vec<(u64, Call)>,
    /// The responses API's, which come whole.
    items: Vec<Value>,
    finish_reason: Value,
}

/// A call of a tool whose arguments come in pieces.
#[derive(Default)]
struct Call {
    id: Value,
    name: Value,
    arguments: String,
}

pub(super) fn streamed(events: &[u8]) -> Vec<Value> {
    let mut choices = Vec::new();
    let events = events.split(|&byte| byte == b'\n');
    for event in events.filter_map(|event| serde_json::from_slice::<Value>(event).ok()) {
        of_typed(&event, &mut choices);
        let chunks = event.get("choices").and_then(Value::as_array);
        for chunk in chunks.into_iter().flatten() {
            of_chunk(chunk, &mut choices);
        }
    }
    choices.into_iter().map(Choice::message).collect()
}

/// An event that says its type: the responses API's, of whose many deltas only those of the text are what the model
/// says, or the messages API's.
fn of_typed(event: &Value, choices: &mut Vec<Choice>) {
    let item = &event["item"];
    match event.get("type").and_then(Value::as_str) {
        Some("response.output_text.delta") => {
            if let (Some(text), Some(choice)) = (event["delta"].as_str(), at(choices, 0)) {
                choice.text.push_str(text);
            }
        }
        Some("content_block_delta") => {
            let text = event["delta"]["text"].as_str();
            if let (Some(text), Some(choice)) = (text, at(choices, 0)) {
                choice.text.push_str(text);
            }
        }
        Some("message_delta") => {
            if let Some(choice) = at(choices, 0) {
                choice.finish_reason = event["delta"]["stop_reason"].clone();
            }
        }
        Some("response.output_item.done") if item["type"] == "function_call" => {
            let choice = at(choices, 0).filter(|choice| choice.items.len() < MAX_TOOL_CALLS);
            if let Some(choice) = choice {
                choice.items.push(function_call(item));
            }
        }
        _ => {}
    }
}

/// A piece of a choice of the completions APIs.
fn of_chunk(chunk: &Value, choices: &mut Vec<Choice>) {
    let index = chunk["index"].as_u64().unwrap_or(0);
    let index = usize::try_from(index).unwrap_or(MAX_CHOICES);
    let Some(choice) = at(choices, index) else {
        return;
    };
    let delta = &chunk["delta"];
    let text = chunk.get("text").unwrap_or(&delta["content"]);
    choice.text.push_str(text.as_str().unwrap_or_default());
    let calls = delta.get("tool_calls").and_then(Value::as_array);
    for call in calls.into_iter().flatten() {
        choice.call(call);
    }
    if chunk["finish_reason"].is_string() {
        choice.finish_reason = chunk["finish_reason"].clone();
    }
}

/// The choice with this index, if it is not one too many.
fn at(choices: &mut Vec<Choice>, index: usize) -> Option<&mut Choice> {
    if index >= MAX_CHOICES {
        return None;
    }
    let len = choices.len().max(index + 1);
    choices.resize_with(len, Choice::default);
    choices.get_mut(index)
}

impl Choice {
    /// A piece of a call: the first has id and name, all have some of the arguments.
    fn call(&mut self, piece: &Value) {
        let index = piece["index"].as_u64().unwrap_or(0);
        let known = self.calls.iter().position(|(known, _)| *known == index);
        let at = match known {
            Some(at) => at,
            None if self.calls.len() == MAX_TOOL_CALLS => return,
            None => {
                self.calls.push((index, Call::default()));
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at].1;
        let function = &piece["function"];
        for (slot, value) in [
            (&mut call.id, &piece["id"]),
            (&mut call.name, &function["name"]),
        ] {
            if slot.is_null() {
                slot.clone_from(value);
            }
        }
        let arguments = function["arguments"].as_str().unwrap_or_default();
        call.arguments.push_str(arguments);
    }

    fn message(self) -> Value {
        let mut parts = Vec::new();
        if !self.text.is_empty() {
            parts.push(part(&self.text));
        }
        let call = |(_, call): (u64, Call)| tool_call(&call.id, &call.name, &json!(call.arguments));
        parts.extend(self.calls.into_iter().map(call));
        parts.extend(self.items);
        output(&parts, &self.finish_reason)
    }
}
