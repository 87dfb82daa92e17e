//! Attribute values as JSON: what viewers show for those that are not scalars.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

use super::model::Value;

/// `value` as JSON. Bytes are base64; NaN and the infinities, which JSON lacks, are strings.
pub(super) fn to_json(value: &Value) -> Json {
    match value {
        Value::Empty => Json::Null,
        Value::String(text) => text.as_str().into(),
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Double(value) => double_to_json(*value),
        Value::Bytes(bytes) => base64_text(bytes).into(),
        Value::Array(values) => values.iter().map(to_json).collect(),
        Value::Map(attributes) => attributes
            .iter()
            .map(|attribute| (attribute.key.clone(), to_json(&attribute.value)))
            .collect(),
    }
}

pub(super) fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A number, or its name in proto3's JSON.
pub(crate) fn double_to_json(value: f64) -> Json {
    match serde_json::Number::from_f64(value) {
        Some(number) => number.into(),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}
