//! Bodies in, messages out.

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

#[test]
fn the_messages_api_has_its_text_in_blocks() {
    let expected = told([(
        "gen_ai.output.messages",
        r#"[{"finish_reason":"end_turn","parts":[{"content":"ab","type":"text"}],"role":"assistant"}]"#,
    )]);
    let mut content = Content::new(LIMIT);
    content.document(
        br#"{"type":"message","role":"assistant","content":[{"type":"text","text":"ab"}],"stop_reason":"end_turn"}"#,
    );
    assert_eq!(shown(&content), expected);
    let events = [
        r#"{"type":"message_start","message":{"content":[]}}"#,
        r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"hm"}}"#,
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#,
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"b"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    assert_eq!(output_of(&events), expected);
}

/// The messages that these events' data make.
fn output_of(events: &[&str]) -> Shown {
    let mut content = Content::new(LIMIT);
    for event in events {
        content.event_data(event.as_bytes());
        content.end_event();
    }
    shown(&content)
}

#[test]
fn only_deltas_of_the_text_are_text() {
    assert_eq!(
        output_of(&[
            r#"{"type":"response.reasoning_text.delta","delta":"hm"}"#,
            r#"{"type":"response.reasoning_summary_text.delta","delta":"hm"}"#,
            r#"{"type":"response.output_text.delta","delta":"a"}"#,
            r#"{"type":"response.audio.delta","delta":"UklGRg=="}"#,
            r#"{"type":"response.function_call_arguments.delta","delta":"{}"}"#,
            r#"{"delta":"of nothing"}"#,
            r#"{"type":"response.output_text.delta","delta":"b"}"#,
        ]),
        told([(
            "gen_ai.output.messages",
            r#"[{"finish_reason":null,"parts":[{"content":"ab","type":"text"}],"role":"assistant"}]"#
        )])
    );
}

#[test]
fn the_tool_calls_of_a_streamed_chat_are_told_as_those_of_a_document() {
    assert_eq!(
        output_of(&[
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"1","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"2","function":{"name":"g","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        ]),
        told([(
            "gen_ai.output.messages",
            r#"[{"finish_reason":"tool_calls","parts":[{"arguments":"{\"a\":1}","id":"1","name":"f","type":"tool_call"},{"arguments":"{}","id":"2","name":"g","type":"tool_call"}],"role":"assistant"}]"#
        )])
    );
}

#[test]
fn tool_calls_beyond_the_bound_are_left_out() {
    let calls = (0..streamed::MAX_TOOL_CALLS + 1)
        .map(|index| format!(r#"{{"index":{index},"id":"{index}"}}"#))
        .collect::<Vec<_>>()
        .join(",");
    let event = format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{calls}]}}}}]}}"#);
    let messages = streamed(event.as_bytes());
    let parts = messages[0]["parts"].as_array().expect("parts");
    assert_eq!(parts.len(), streamed::MAX_TOOL_CALLS);
}

const FUNCTION_CALL: &str =
    r#"{"type":"function_call","id":"fc_1","call_id":"1","name":"f","arguments":"{}"}"#;
const TOLD_CALL: &str = r#"{"arguments":"{}","id":"1","name":"f","type":"tool_call"}"#;

#[test]
fn the_responses_api_calls_tools_by_items_of_their_own() {
    let mut content = Content::new(LIMIT);
    let result = r#"{"type":"function_call_output","call_id":"1","output":"42"}"#;
    content.request(format!(r#"{{"input":[{FUNCTION_CALL},{result}]}}"#).as_bytes());
    let reasoning = r#"{"type":"reasoning","summary":[]}"#;
    content.document(format!(r#"{{"output":[{reasoning},{FUNCTION_CALL}]}}"#).as_bytes());
    let call = format!(r#"{{"parts":[{TOLD_CALL}],"role":"assistant"}}"#);
    let response =
        r#"{"parts":[{"id":"1","response":"42","type":"tool_call_response"}],"role":"tool"}"#;
    assert_eq!(
        shown(&content),
        told([
            ("gen_ai.input.messages", &*format!("[{call},{response}]")),
            ("gen_ai.output.messages", &format!("[{call}]")),
        ])
    );
}

#[test]
fn a_stream_of_the_responses_api_has_its_calls_where_they_are_complete() {
    let done = format!(r#"{{"type":"response.output_item.done","item":{FUNCTION_CALL}}}"#);
    let message = r#"{"type":"response.output_item.done","item":{"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}]}}"#;
    let text = r#"{"type":"response.output_text.delta","delta":"a"}"#;
    let expected = format!(
        r#"[{{"finish_reason":null,"parts":[{{"content":"a","type":"text"}},{TOLD_CALL}],"role":"assistant"}}]"#
    );
    assert_eq!(
        output_of(&[text, message, &done]),
        told([("gen_ai.output.messages", &*expected)])
    );
}
