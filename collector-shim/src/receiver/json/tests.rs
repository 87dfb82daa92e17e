//! What senders write as OTLP/JSON, and what they meant.

use super::*;

fn convert(json: &str) -> Result<ExportTraceServiceRequest> {
    let bytes = to_protobuf(json.as_bytes())?;
    Ok(ExportTraceServiceRequest::decode(bytes).expect("what we encode decodes"))
}

/// The one span with `fields`.
fn span(fields: &str) -> Result<trace::Span> {
    let request = convert(&format!(
        r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#
    ))?;
    Ok(request.resource_spans[0].scope_spans[0].spans[0].clone())
}

/// An attribute's value written as `json`.
fn value(json: &str) -> Result<Option<Value>> {
    let span = span(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#))?;
    Ok(span.attributes[0]
        .value
        .clone()
        .and_then(|value| value.value))
}

#[test]
fn null_and_absent_are_unset() {
    for json in [
        "{}",
        r#"{"resourceSpans":null}"#,
        r#"{"resourceSpans":[{"resource":null,"scopeSpans":null,"schemaUrl":null}]}"#,
        r#"{"resourceSpans":[{"scopeSpans":[{"scope":null,"spans":null}]}]}"#,
    ] {
        convert(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    }
    let all_null = r#""traceId":null,"spanId":null,"parentSpanId":null,"traceState":null,
        "flags":null,"name":null,"kind":null,"startTimeUnixNano":null,"endTimeUnixNano":null,
        "attributes":null,"droppedAttributesCount":null,"events":null,"links":null,"status":null"#;
    assert_eq!(span(all_null).expect("all unset"), trace::Span::default());
}

#[test]
fn integers_are_numbers_or_strings() {
    let check = |json: &str, expect: u64| {
        let span = span(&format!(r#""startTimeUnixNano":{json}"#)).expect(json);
        assert_eq!(span.start_time_unix_nano, expect, "{json}");
    };
    check("1767323045000006000", 1_767_323_045_000_006_000);
    check(r#""18446744073709551615""#, u64::MAX);
    check("1e3", 1_000);
    check("5.0", 5);
    assert_eq!(
        span(r#""droppedEventsCount":"3""#)
            .expect("u32 as text")
            .dropped_events_count,
        3
    );
    for bad in [
        "-1",
        "1.5",
        r#""many""#,
        r#""99999999999999999999""#,
        "true",
        "[]",
    ] {
        assert!(
            span(&format!(r#""startTimeUnixNano":{bad}"#)).is_err(),
            "{bad}"
        );
    }
    assert!(span(r#""droppedLinksCount":4294967296"#).is_err());
}

#[test]
fn ids_are_hex_of_any_case_and_of_their_length() {
    let lower = span(r#""traceId":"4bf92f3577b34da6a3ce929d0e0e4736""#).expect("lower");
    let upper = span(r#""traceId":"4BF92F3577B34DA6A3CE929D0E0E4736""#).expect("upper");
    assert_eq!(lower.trace_id, upper.trace_id);
    assert_eq!(lower.trace_id[..2], [0x4b, 0xf9]);
    assert!(
        span(r#""parentSpanId":"""#)
            .expect("empty")
            .parent_span_id
            .is_empty()
    );
    for bad in [
        "abc",
        "4bf92f35",
        "zzf067aa0ba902b7",
        "00f067aa0ba902b700",
        "00f067aa0ba902bé",
    ] {
        let error = span(&format!(r#""spanId":"{bad}""#)).expect_err(bad);
        let expect = format!("spanId: {bad:?} is not 16 hex digits");
        assert_eq!(error.to_string(), expect);
    }
}

#[test]
fn enums_are_integers_even_unknown_ones_or_names() {
    assert_eq!(span(r#""kind":2"#).expect("a number").kind, 2);
    assert_eq!(span(r#""kind":77"#).expect("unknown").kind, 77);
    assert_eq!(
        span(r#""kind":"SPAN_KIND_CLIENT""#).expect("a name").kind,
        3
    );
    let status = span(r#""status":{"code":"STATUS_CODE_ERROR","message":"m"}"#).expect("a name");
    assert_eq!(status.status.expect("set").code, 2);
    assert!(span(r#""kind":"SPAN_KIND_MADE_UP""#).is_err());
}

#[test]
fn values_of_every_type_are_taken() {
    let check = |json: &str, expect: Option<Value>| {
        assert_eq!(
            value(json).unwrap_or_else(|error| panic!("{json}: {error}")),
            expect,
            "{json}"
        );
    };
    check("null", None);
    check("{}", None);
    check(r#"{"stringValue":null}"#, None);
    check(
        r#"{"stringValue":""}"#,
        Some(Value::StringValue(String::new())),
    );
    check(r#"{"boolValue":false}"#, Some(Value::BoolValue(false)));
    check(
        r#"{"intValue":"-9223372036854775808"}"#,
        Some(Value::IntValue(i64::MIN)),
    );
    check(r#"{"intValue":7}"#, Some(Value::IntValue(7)));
    check(r#"{"doubleValue":1}"#, Some(Value::DoubleValue(1.0)));
    check(
        r#"{"doubleValue":"-Infinity"}"#,
        Some(Value::DoubleValue(f64::NEG_INFINITY)),
    );
    check(
        r#"{"arrayValue":{}}"#,
        Some(Value::ArrayValue(common::ArrayValue::default())),
    );
    check(
        r#"{"kvlistValue":{"values":null}}"#,
        Some(Value::KvlistValue(Default::default())),
    );
    check(
        r#"{"bytesValue":"+/8="}"#,
        Some(Value::BytesValue(vec![0xfb, 0xff])),
    );
    check(
        r#"{"bytesValue":"-_8"}"#,
        Some(Value::BytesValue(vec![0xfb, 0xff])),
    );
    let Some(Value::DoubleValue(not_a_number)) = value(r#"{"doubleValue":"NaN"}"#).expect("NaN")
    else {
        panic!("a double");
    };
    assert!(not_a_number.is_nan());
    assert!(value(r#"{"bytesValue":"*"}"#).is_err());
    assert!(value(r#"{"doubleValue":"fast"}"#).is_err());
}

#[test]
fn unknown_fields_are_ignored_and_broken_json_is_not() {
    assert!(span(r#""new":{"a":[1,{"b":null}]},"trace_id":"ignored""#).is_ok());
    for bad in [
        "",
        "[]",
        "{",
        r#"{"resourceSpans":{}}"#,
        r#"{"resourceSpans":[[]]}"#,
        "nul",
        "{}{}",
    ] {
        assert!(convert(bad).is_err(), "{bad}");
    }
}

#[test]
fn nesting_is_bounded_where_it_is_kept_and_harmless_where_it_is_ignored() {
    let ignored = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(convert(&ignored).is_ok());
    let open = r#"{"arrayValue":{"values":["#.repeat(1_000);
    let kept = format!("{open}{{}}{}", "]}}".repeat(1_000));
    let error = value(&kept).expect_err("too deep").to_string();
    assert!(error.contains("recursion limit"), "{error}");
}

#[test]
fn broken_text_does_not_lose_the_batch() {
    let name = |written: &[u8]| {
        let json = [
            &br#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":""#[..],
            written,
            br#""}]}]}]}"#,
        ];
        let bytes = to_protobuf(&json.concat()).expect("repaired");
        let request = ExportTraceServiceRequest::decode(bytes).expect("what we encode decodes");
        request.resource_spans[0].scope_spans[0].spans[0]
            .name
            .clone()
    };
    assert_eq!(name(br"cut \ud83d"), "cut \u{fffd}");
    assert_eq!(
        name(br"\ude00 and \ud83d\ud83d\ude00"),
        "\u{fffd} and \u{fffd}\u{1f600}"
    );
    assert_eq!(name(b"caf\xe9"), "caf?");
    // An escaped backslash before a `u` is no escape of a character.
    assert_eq!(name(br"\\ud83d \ud83d"), "\\ud83d \u{fffd}");
}

#[test]
fn spans_and_what_they_hold_are_counted_before_they_are_made() {
    use crate::wire::{MAX_ELEMENTS, MAX_SPANS};
    let check = |before: &str, count: u64, after: &str| {
        let json = format!("{before}{}{{}}{after}", "{},".repeat(count as usize));
        let error = to_protobuf(json.as_bytes()).expect_err("too many");
        assert!(matches!(error, JsonError::TooMany(_)), "{error}");
    };
    check(
        r#"{"resourceSpans":[{"scopeSpans":[{"spans":["#,
        MAX_SPANS,
        "]}]}]}",
    );
    check(r#"{"resourceSpans":["#, MAX_ELEMENTS, "]}");
    // The next request on this thread starts anew.
    convert("{}").expect("empty");
}
