//! Bodies of requests to models and of their answers: the same is found however they are cut, and for
//! requests it is what serde_json finds.
#![no_main]

use lantern_fuzz::in_pieces;
use lantern_proxy::fuzzing::{document_attributes, request_attributes, stream_attributes};
use libfuzzer_sys::fuzz_target;
use opentelemetry::{KeyValue, Value};
use serde_json::Value as Json;

/// Longer strings are cut.
const MAX_TEXT_BYTES: usize = 256;

fuzz_target!(|data: &[u8]| {
    let Some((body, pieces)) = in_pieces(data) else {
        return;
    };
    for attributes in [request_attributes, document_attributes, stream_attributes] {
        assert_eq!(attributes(&pieces), attributes(&[body]), "cut and whole");
    }
    let found = request_attributes(&[body]);
    assert!(found.iter().all(is_short));
    // Escaped keys and duplicates are told apart by parsers only.
    if let Ok(Json::Object(members)) = serde_json::from_slice(body)
        && !body.contains(&b'\\')
    {
        for (key, attribute) in [
            ("model", "gen_ai.request.model"),
            ("stream", "gen_ai.request.stream"),
            ("seed", "gen_ai.request.seed"),
        ] {
            if let Some(value) = members.get(key).filter(|_| occurs_once(body, key)) {
                let found = found.iter().find(|found| found.key.as_str() == attribute);
                compare(found.map(|found| &found.value), value);
            }
        }
    }
});

fn is_short(attribute: &KeyValue) -> bool {
    match &attribute.value {
        Value::String(text) => text.as_str().len() <= MAX_TEXT_BYTES,
        _ => true,
    }
}

fn occurs_once(body: &[u8], key: &str) -> bool {
    let quoted = format!("\"{key}\"");
    body.windows(quoted.len())
        .filter(|window| *window == quoted.as_bytes())
        .count()
        == 1
}

fn compare(found: Option<&Value>, expected: &Json) {
    match (found, expected) {
        (Some(Value::String(text)), Json::String(expected)) => {
            assert!(text.as_str() == expected || expected.len() > MAX_TEXT_BYTES);
        }
        (Some(Value::Bool(flag)), Json::Bool(expected)) => assert_eq!(flag, expected),
        (Some(Value::I64(int)), Json::Number(expected)) => {
            // Minus zero is an integer to us.
            assert!(
                expected.as_i64() == Some(*int) || (expected.as_f64() == Some(-0.0) && *int == 0)
            );
        }
        (Some(other), expected) => panic!("{other:?} instead of {expected}"),
        // A value of another type than the API's is none.
        (None, _) => {}
    }
}
