//! The length limit of attribute values, which the SDK lacks. It is applied on the exporter's thread,
//! so that a request never waits for it.

use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SpanData;

/// Cuts every string value of the span, its events and its links to `limit` characters.
///
/// <https://opentelemetry.io/docs/specs/otel/common/#attribute-limits>
pub(super) fn truncate_values(span: &mut SpanData, limit: usize) {
    truncate_all(&mut span.attributes, limit);
    for event in &mut span.events.events {
        truncate_all(&mut event.attributes, limit);
    }
    for link in &mut span.links.links {
        truncate_all(&mut link.attributes, limit);
    }
}

fn truncate_all(attributes: &mut [KeyValue], limit: usize) {
    for attribute in attributes {
        match &mut attribute.value {
            Value::String(text) => truncate(text, limit),
            Value::Array(Array::String(texts)) => {
                texts.iter_mut().for_each(|text| truncate(text, limit));
            }
            _ => {}
        }
    }
}

fn truncate(text: &mut StringValue, limit: usize) {
    // Characters count, bytes are cheaper: no text of few bytes has many characters.
    if text.as_str().len() <= limit {
        return;
    }
    if let Some((end, _)) = text.as_str().char_indices().nth(limit) {
        *text = text.as_str()[..end].to_owned().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: impl Into<Value>, limit: usize, expect: impl Into<Value>) {
        let mut attributes = [KeyValue::new("key", value)];
        truncate_all(&mut attributes, limit);
        assert_eq!(attributes[0].value, expect.into());
    }

    #[test]
    fn strings_are_cut_to_characters_and_other_values_left_alone() {
        check("abcdef", 3, "abc");
        check("abc", 3, "abc");
        check("äöü€x", 4, "äöü€");
        check("äöü", 3, "äöü");
        check("abc", 0, "");
        check(123_456, 3, 123_456);
        let texts = |texts: &[&'static str]| {
            Value::Array(
                texts
                    .iter()
                    .map(|text| StringValue::from(*text))
                    .collect::<Vec<_>>()
                    .into(),
            )
        };
        check(texts(&["abcdef", "a"]), 2, texts(&["ab", "a"]));
    }
}
