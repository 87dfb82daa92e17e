//! What is written is what the decoder of the way in, and others' decoders, read as the same request.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use super::double as double_json;
use super::*;
use crate::receiver::json::to_protobuf;

fn written(request: &[u8]) -> Result<(String, Lossy)> {
    let mut json = Vec::new();
    let lossy = to_json(&mut json, Signal::Traces, request)?;
    Ok((String::from_utf8(json).expect("JSON is UTF-8"), lossy))
}

fn json_of(request: &[u8]) -> String {
    let (json, lossy) = written(request).expect("sound");
    assert_eq!(lossy, Lossy::default(), "{json}");
    json
}

/// A request of one span, of which `span` are the bytes.
fn around(span: &[u8]) -> Vec<u8> {
    [2, 2, 1].iter().fold(span.to_vec(), |inner, number| {
        [&[number << 3 | 2, inner.len() as u8], &inner[..]].concat()
    })
}

/// The JSON of a span.
fn span_json(span: &[u8]) -> String {
    let (json, _) = written(&around(span)).expect("sound");
    let around = r#"{"resourceSpans":[{"scopeSpans":[{"spans":["#;
    let span = json.strip_prefix(around).expect("one span");
    span.strip_suffix("]}]}]}").expect("one span").to_owned()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        ".{0,8}",
        Just("\"\\\n\u{1}é😀".to_owned())
    ]
}

fn id(bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), vec(any::<u8>(), bytes)]
}

/// Numbers that serde_json reads back exactly: of those with more digits it may miss the last bit
/// unless its feature `float_roundtrip` is on.
fn double() -> impl Strategy<Value = f64> {
    const SPECIAL: [f64; 5] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e22];
    let exact = any::<i32>().prop_map(|number| f64::from(number) / 64.0);
    prop_oneof![exact, prop::sample::select(&SPECIAL[..])]
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        Just(None),
        text().prop_map(|text| Some(Any::StringValue(text))),
        any::<bool>().prop_map(|value| Some(Any::BoolValue(value))),
        any::<i64>().prop_map(|number| Some(Any::IntValue(number))),
        double().prop_map(|number| Some(Any::DoubleValue(number))),
        vec(any::<u8>(), 0..5).prop_map(|bytes| Some(Any::BytesValue(bytes))),
    ]
    .prop_map(|value| AnyValue { value });
    leaf.prop_recursive(4, 12, 3, |inner| {
        let list =
            vec(inner.clone(), 0..3).prop_map(|values| Any::ArrayValue(ArrayValue { values }));
        let map = vec(key_value(inner), 0..3)
            .prop_map(|values| Any::KvlistValue(KeyValueList { values }));
        prop_oneof![list, map].prop_map(|value| AnyValue { value: Some(value) })
    })
}

fn key_value(value: impl Strategy<Value = AnyValue>) -> impl Strategy<Value = KeyValue> {
    (text(), option::of(value)).prop_map(|(key, value)| KeyValue {
        key,
        value,
        ..KeyValue::default()
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec(key_value(any_value()), 0..3)
}

fn event() -> impl Strategy<Value = Event> {
    (any::<u64>(), text(), attributes(), any::<u32>()).prop_map(
        |(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count,
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    (id(16), id(8), text(), attributes(), any::<[u32; 2]>()).prop_map(
        |(trace_id, span_id, trace_state, attributes, [dropped_attributes_count, flags])| Link {
            trace_id,
            span_id,
            trace_state,
            attributes,
            dropped_attributes_count,
            flags,
        },
    )
}

fn span() -> impl Strategy<Value = Span> {
    let status = (text(), any::<i32>()).prop_map(|(message, code)| Status { message, code });
    let parts = (
        attributes(),
        vec(event(), 0..2),
        vec(link(), 0..2),
        option::of(status),
    );
    let ids = (id(16), id(8), id(8));
    let numbers = (any::<i32>(), any::<[u64; 2]>(), any::<[u32; 4]>());
    (ids, (text(), text()), numbers, parts).prop_map(|(ids, texts, numbers, parts)| {
        let (trace_id, span_id, parent_span_id) = ids;
        let (kind, [start, end], counts) = numbers;
        let (attributes, events, links, status) = parts;
        Span {
            trace_id,
            span_id,
            trace_state: texts.0,
            parent_span_id,
            flags: counts[0],
            name: texts.1,
            kind,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            attributes,
            dropped_attributes_count: counts[1],
            events,
            dropped_events_count: counts[2],
            links,
            dropped_links_count: counts[3],
            status,
        }
    })
}

fn request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let scope = (text(), text(), attributes(), any::<u32>()).prop_map(
        |(name, version, attributes, dropped_attributes_count)| InstrumentationScope {
            name,
            version,
            attributes,
            dropped_attributes_count,
        },
    );
    let scope_spans =
        (option::of(scope), vec(span(), 0..3), text()).prop_map(|(scope, spans, schema_url)| {
            ScopeSpans {
                scope,
                spans,
                schema_url,
            }
        });
    let entity = (text(), text(), vec(text(), 0..3), vec(text(), 0..3)).prop_map(
        |(schema_url, r#type, id_keys, description_keys)| EntityRef {
            schema_url,
            r#type,
            id_keys,
            description_keys,
        },
    );
    let resource = (attributes(), any::<u32>(), vec(entity, 0..2)).prop_map(
        |(attributes, dropped_attributes_count, entity_refs)| Resource {
            attributes,
            dropped_attributes_count,
            entity_refs,
        },
    );
    let resource_spans = (option::of(resource), vec(scope_spans, 0..3), text()).prop_map(
        |(resource, scope_spans, schema_url)| ResourceSpans {
            resource,
            scope_spans,
            schema_url,
        },
    );
    vec(resource_spans, 0..3)
        .prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn our_decoder_reads_back_the_same_bytes(request in request()) {
        let bytes = request.encode_to_vec();
        let json = json_of(&bytes);
        let back = to_protobuf(Signal::Traces, json.as_bytes());
        prop_assert_eq!(&back.expect("OTLP/JSON")[..], &bytes[..], "{}", json);
    }

    #[test]
    fn cut_off_bytes_are_an_error_or_shorter_json_and_never_a_panic(
        request in request(),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = request.encode_to_vec();
        if let Ok((json, _)) = written(&bytes[..cut.index(bytes.len() + 1)]) {
            prop_assert!(to_protobuf(Signal::Traces, json.as_bytes()).is_ok(), "{}", json);
        }
    }
}

#[test]
fn the_proto_crates_own_types_read_what_is_written() {
    let attribute = |key: &str, value| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    };
    let span = Span {
        trace_id: vec![0xab; 16],
        span_id: vec![0xcd; 8],
        name: "GET /\u{e9}".to_owned(),
        kind: 2,
        start_time_unix_nano: u64::MAX,
        attributes: vec![
            attribute("text", Any::StringValue(String::new())),
            attribute("flag", Any::BoolValue(false)),
            attribute("count", Any::IntValue(i64::MIN)),
            attribute("ratio", Any::DoubleValue(1e300)),
        ],
        status: Some(Status {
            message: "no".to_owned(),
            code: 2,
        }),
        ..Span::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let json = json_of(&request.encode_to_vec());
    let read: ExportTraceServiceRequest = serde_json::from_str(&json).expect("their JSON");
    assert_eq!(read, request, "{json}");
}

proptest! {
    #[test]
    fn a_double_is_written_with_all_its_digits(number: f64) {
        let mut json = Vec::new();
        double_json(&mut json, number).expect("a vector takes it");
        let json = String::from_utf8(json).expect("JSON is UTF-8");
        let back: f64 = json.trim_matches('"').parse().expect("a number");
        prop_assert!(back == number || (back.is_nan() && number.is_nan()), "{}", json);
    }
}

#[test]
fn the_forms_are_those_of_the_specification() {
    let value = |value: &[u8]| {
        let attribute = [&[0x12, value.len() as u8], value].concat();
        let json = span_json(&[&[0x4a, attribute.len() as u8], &attribute[..]].concat());
        let value = json
            .strip_prefix(r#"{"attributes":[{"value":"#)
            .expect("one");
        value.strip_suffix("}]}").expect("one").to_owned()
    };
    let int = Any::IntValue(-1);
    let double = |number| {
        AnyValue {
            value: Some(Any::DoubleValue(number)),
        }
        .encode_to_vec()
    };
    assert_eq!(
        value(&AnyValue { value: Some(int) }.encode_to_vec()),
        r#"{"intValue":"-1"}"#
    );
    assert_eq!(
        value(&double(f64::NEG_INFINITY)),
        r#"{"doubleValue":"-Infinity"}"#
    );
    assert_eq!(value(&double(0.5)), r#"{"doubleValue":0.5}"#);
    assert_eq!(
        value(&[0x3a, 3, 0xfb, 0xff, 0xfe]),
        r#"{"bytesValue":"+//+"}"#
    );
    assert_eq!(value(&[0x2a, 0]), r#"{"arrayValue":{}}"#);
    assert_eq!(value(&[]), "{}");
    assert_eq!(span_json(&[0x12, 2, 0xAB, 0x01]), r#"{"spanId":"ab01"}"#);
    assert_eq!(span_json(&[0x30, 3]), r#"{"kind":3}"#);
    assert_eq!(
        span_json(&[0x39, 1, 0, 0, 0, 0, 0, 0, 0]),
        r#"{"startTimeUnixNano":"1"}"#
    );
}

#[test]
fn fields_in_any_order_are_read_as_protobuf_reads_them() {
    // Of a field that counts once the last; of one that repeats all, wherever they stand.
    let event = |name: u8| [0x5a, 3, 0x12, 1, name];
    let spread = [
        &event(b'a')[..],
        &[0x2a, 1, b'x'],
        &event(b'b'),
        &[0x2a, 1, b'y'],
    ]
    .concat();
    assert_eq!(
        span_json(&spread),
        r#"{"name":"y","events":[{"name":"a"},{"name":"b"}]}"#
    );
    // A message that comes twice is one.
    let status = [0x7a, 3, 0x12, 1, b'm', 0x7a, 2, 0x18, 2];
    assert_eq!(span_json(&status), r#"{"status":{"message":"m","code":2}}"#);
    // Of fields that exclude one another the last; a message that comes twice in a row is one.
    let any = [
        0x2a, 2, 0x0a, 0, 0x10, 1, 0x2a, 2, 0x0a, 0, 0x2a, 2, 0x0a, 0,
    ];
    let attribute = [
        &[0x4a, any.len() as u8 + 2, 0x12, any.len() as u8],
        &any[..],
    ]
    .concat();
    let expect = r#"{"attributes":[{"value":{"arrayValue":{"values":[{},{}]}}}]}"#;
    assert_eq!(span_json(&attribute), expect);
}

#[test]
fn what_json_cannot_say_is_counted() {
    let (json, lossy) = written(&around(&[0x2a, 2, b'a', 0xff, 0xf8, 0x3f, 1])).expect("sound");
    assert!(json.contains(r#"{"name":"a�"}"#), "{json}");
    let expect = Lossy {
        unknown_fields: 1,
        repaired_texts: 1,
    };
    assert_eq!(lossy, expect);
    assert!(lossy.is_any());
}

#[test]
fn what_is_no_request_is_refused_with_its_reason() {
    let check = |bytes: &[u8], expect: &str| {
        let error = written(bytes).expect_err(expect).to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(&[0x0a, 200], "not protobuf");
    check(&[0x08, 1], "resourceSpans is not of its type");
    check(&around(&[0x2d, 0, 0, 0, 0]), "name is not of its type");
    let deep = (0..MAX_DEPTH).fold(Vec::new(), |inner, _| {
        let mut list = Vec::new();
        prost::encoding::bytes::encode(1, &inner, &mut list);
        let mut value = Vec::new();
        prost::encoding::bytes::encode(5, &list, &mut value);
        value
    });
    let mut attribute = Vec::new();
    prost::encoding::bytes::encode(2, &deep, &mut attribute);
    let mut resource = Vec::new();
    prost::encoding::bytes::encode(1, &attribute, &mut resource);
    let mut entry = Vec::new();
    prost::encoding::bytes::encode(1, &resource, &mut entry);
    let mut request = Vec::new();
    prost::encoding::bytes::encode(1, &entry, &mut request);
    check(&request, "nested more than 100 deep");
}

#[test]
fn metrics_and_logs_come_back_as_they_were() {
    let metrics = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"h","histogram":{"dataPoints":[{"count":"3","sum":1.5,"bucketCounts":["1","2"],"explicitBounds":[0.5],"min":-1.0}],"aggregationTemporality":2}},{"exponentialHistogram":{"dataPoints":[{"scale":-2,"positive":{"offset":-1,"bucketCounts":["1","300"]}}]}},{"sum":{"dataPoints":[{"asInt":"-9"}],"isMonotonic":true}}]}]}]}"#;
    let logs = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1","severityNumber":18,"body":{"stringValue":"b"},"traceId":"4bf92f3577b34da6a3ce929d0e0e4736"}]}]}]}"#;
    for (signal, json) in [(Signal::Metrics, metrics), (Signal::Logs, logs)] {
        let request = to_protobuf(signal, json.as_bytes()).expect("sound");
        let mut back = Vec::new();
        let lossy = to_json(&mut back, signal, &request).expect("sound");
        assert!(!lossy.is_any());
        assert_eq!(String::from_utf8(back).expect("UTF-8"), json);
    }
}

#[test]
fn numbers_in_a_row_are_a_list() {
    // Two bucket counts and two bounds, packed, of one histogram's point.
    let counts = [
        &[6 << 3 | 2, 16][..],
        &7_u64.to_le_bytes(),
        &8_u64.to_le_bytes(),
    ]
    .concat();
    let bounds = [&[7 << 3 | 2, 8][..], &0.5_f64.to_le_bytes()].concat();
    let mut bytes = [counts, bounds].concat();
    for field in [1, 9, 2, 2, 1] {
        let length = bytes.len() as u8;
        bytes = [&[field << 3 | 2, length][..], &bytes].concat();
    }
    let mut json = Vec::new();
    to_json(&mut json, Signal::Metrics, &bytes).expect("sound");
    let json = String::from_utf8(json).expect("UTF-8");
    let expect = r#"{"dataPoints":[{"bucketCounts":["7","8"],"explicitBounds":[0.5]}]}"#;
    assert!(json.contains(expect), "{json}");
}
