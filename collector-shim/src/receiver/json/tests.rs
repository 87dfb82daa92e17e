//! What senders write as OTLP/JSON, and what they meant.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1 as trace;
use proptest::prelude::*;
use prost::Message as _;

use super::{JsonError, to_protobuf};
use crate::signal::Signal;
use crate::wire;

type Result<T> = std::result::Result<T, JsonError>;

fn convert(json: &str) -> Result<ExportTraceServiceRequest> {
    let bytes = to_protobuf(Signal::Traces, json.as_bytes())?;
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
        assert!(error.to_string().contains(&expect), "{error}");
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
        let bytes = to_protobuf(Signal::Traces, &json.concat()).expect("repaired");
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
fn metrics_of_every_kind_are_what_the_generated_types_read() {
    let json = r#"{"resourceMetrics":[{"resource":{},"scopeMetrics":[{"scope":{"name":"s"},"metrics":[
        {"name":"g","unit":"1","gauge":{"dataPoints":[{"asDouble":"NaN","timeUnixNano":"5","flags":1,
            "exemplars":[{"asInt":"-3","traceId":"4bf92f3577b34da6a3ce929d0e0e4736",
                "spanId":"00f067aa0ba902b7","filteredAttributes":[{"key":"k"}]}]}]}},
        {"name":"s","sum":{"isMonotonic":true,"aggregationTemporality":"AGGREGATION_TEMPORALITY_DELTA",
            "dataPoints":[{"asInt":"-9"},{"asInt":7}]}},
        {"name":"h","histogram":{"aggregationTemporality":2,"dataPoints":[{"count":"3","sum":1.5,
            "bucketCounts":["1",2],"explicitBounds":[0.5],"min":0,"max":1}]}},
        {"name":"e","exponentialHistogram":{"dataPoints":[{"scale":-2,"zeroCount":1,"zeroThreshold":0.1,
            "positive":{"offset":-1,"bucketCounts":[1,"2"]},"negative":{}}]}},
        {"name":"q","summary":{"dataPoints":[{"quantileValues":[{"quantile":0.5,"value":2}]}]},
            "metadata":[{"key":"m","value":{"stringValue":"v"}}]}]}]}]}"#;
    let bytes = to_protobuf(Signal::Metrics, json.as_bytes()).expect("sound");
    assert_eq!(
        wire::tally(Signal::Metrics, &bytes).expect("sound").items,
        6
    );
    let request = ExportMetricsServiceRequest::decode(bytes).expect("what we encode decodes");
    insta::assert_json_snapshot!(request);
}

#[test]
fn logs_are_converted_and_profiles_are_refused() {
    let json = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1",
        "severityNumber":"SEVERITY_NUMBER_ERROR2","severityText":"E","body":{"stringValue":"b"},
        "traceId":"","flags":257,"observedTimeUnixNano":2,"eventName":"e"}]}]}]}"#;
    let bytes = to_protobuf(Signal::Logs, json.as_bytes()).expect("sound");
    let body = [0x0a, 1, b'b'];
    let mut record = vec![
        0x09, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 18, 0x1a, 1, b'E', 0x2a, 3,
    ];
    record.extend(body);
    record.extend([
        0x4a, 0, 0x45, 1, 1, 0, 0, 0x59, 2, 0, 0, 0, 0, 0, 0, 0, 0x62, 1, b'e',
    ]);
    let length = record.len() as u8;
    let around = [0x0a, length + 4, 0x12, length + 2, 0x12, length];
    assert_eq!(bytes, [&around[..], &record].concat());
    assert_eq!(wire::tally(Signal::Logs, &bytes).expect("sound").items, 1);

    let json = br#"{"resourceProfiles":[{"scopeProfiles":[{"profiles":[{}]}]}]}"#;
    let error = to_protobuf(Signal::Profiles, json).expect_err("not known");
    assert!(error.to_string().contains("in protobuf alone"), "{error}");
}

#[test]
fn a_double_past_the_largest_is_refused() {
    for written in ["1e400", "-1e400"] {
        assert!(value(&format!(r#"{{"doubleValue":{written}}}"#)).is_err());
    }
}

proptest! {
    #[test]
    fn a_double_keeps_its_last_bit(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        // The shortest form that is this number and no other.
        for written in [format!("{number:e}"), format!("\"{number:e}\"")] {
            let read = value(&format!(r#"{{"doubleValue":{written}}}"#)).expect("a number");
            let Some(Value::DoubleValue(read)) = read else {
                panic!("{read:?} is no double");
            };
            prop_assert_eq!(read.to_bits(), bits);
        }
    }
}
