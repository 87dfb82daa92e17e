//! The walk against prost: what it accepts must decode, and its counts must agree.

use super::tally::{MAX_ELEMENTS, MAX_SPANS};
use super::{Tally, Visit, WireError, replace_invalid_text, split, tally, walk};
use crate::signal::Signal;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message;

fn tally_spans(request: &[u8]) -> Result<Tally, WireError> {
    tally(Signal::Traces, request)
}

fn count_spans(request: &[u8]) -> Result<u64, WireError> {
    tally_spans(request).map(|tally| tally.items)
}

fn span(name: &str) -> Span {
    Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: name.to_owned(),
        attributes: vec![KeyValue {
            key: "key".to_owned(),
            value: Some(AnyValue {
                value: Some(Value::StringValue("value".to_owned())),
            }),
            ..KeyValue::default()
        }],
        ..Span::default()
    }
}

fn resource_spans(count: usize) -> ResourceSpans {
    let scope_spans = ScopeSpans {
        spans: vec![span("operation"); count],
        ..ScopeSpans::default()
    };
    ResourceSpans {
        scope_spans: vec![scope_spans],
        ..ResourceSpans::default()
    }
}

fn request(spans_per_resource: &[usize]) -> Bytes {
    let resource_spans = spans_per_resource
        .iter()
        .copied()
        .map(resource_spans)
        .collect();
    Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec())
}

/// A field of wire type 2 around `inner`.
fn nest(field: u8, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
    bytes.extend_from_slice(inner);
    bytes
}

/// A request of one span: `fields`, then its ids.
fn in_span(fields: &[u8]) -> Vec<u8> {
    let ids = [nest(1, &[1; 16]), nest(2, &[2; 8])].concat();
    nest(1, &nest(2, &nest(2, &[fields, &ids].concat())))
}

#[test]
fn spans_are_counted_over_all_resources() {
    assert_eq!(count_spans(&request(&[3, 0, 4])), Ok(7));
    assert_eq!(count_spans(&[]), Ok(0));
}

#[test]
fn unknown_fields_of_every_wire_type_are_stepped_over() {
    let group = [0x9b, 0x06, 0x08, 0x01, 0x9c, 0x06];
    for unknown in [&[0x98, 0x06, 0x01][..], &[0x9a, 0x06, 0x01, 0xff], &group] {
        assert_eq!(count_spans(&in_span(unknown)), Ok(1), "{unknown:x?}");
    }
}

#[test]
fn faults_are_named_with_their_place() {
    let check = |bytes: &[u8], expect: &str| {
        let error = count_spans(bytes).expect_err("the bytes are broken");
        assert_eq!(error.to_string(), expect);
    };
    check(
        &[0x0a, 0x05, 0x00],
        "byte 2: 5 bytes are announced, 1 are left",
    );
    check(
        &[0xff; 11],
        "byte 0: a number runs past the end or past 64 bits",
    );
    check(&[0x00], "byte 0: field key 0 is not one");
    check(
        &[0x08, 0x01],
        "byte 1: field 1 of ExportTraceServiceRequest has wire type 0",
    );
    check(
        &in_span(&nest(1, b"short")),
        "byte 7: an id of 5 bytes instead of 16, in field 1 of Span",
    );
    check(
        &[0x0c],
        "byte 1: field 1 of ExportTraceServiceRequest has wire type 4",
    );
    check(&[0x1c], "byte 1: a group is not closed, or closed twice");
    check(&[0x1b], "byte 1: a group is not closed, or closed twice");
}

#[test]
fn nesting_is_bounded() {
    let mut value = Vec::new();
    for _ in 0..60 {
        value = nest(5, &nest(1, &value));
    }
    let error = count_spans(&in_span(&nest(9, &nest(2, &value)))).expect_err("too deep");
    assert!(
        error.to_string().ends_with("nested more than 90 deep"),
        "{error}"
    );
    let groups = vec![0x1b; 1000];
    assert!(count_spans(&groups).is_err());
}

#[test]
fn a_request_is_cut_between_resources_and_keeps_every_byte() {
    let whole = request(&[2, 2, 2, 2, 3]);
    let bound = whole.len() / 3;
    let parts = split(&whole, bound).expect("sound");
    assert!(parts.len() > 1);
    assert_eq!(parts.concat(), whole);
    let spans: u64 = parts
        .iter()
        .map(|part| count_spans(part).expect("sound"))
        .sum();
    assert_eq!(spans, 11);
    assert_eq!(split(&whole, whole.len()).expect("sound"), vec![whole]);
}

/// A request of one resource with two scopes, as an SDK sends it.
fn one_resource(spans: usize) -> ExportTraceServiceRequest {
    let scope_spans = |name: &str, from: usize, to: usize| ScopeSpans {
        scope: Some(InstrumentationScope {
            name: name.to_owned(),
            ..InstrumentationScope::default()
        }),
        spans: (from..to).map(|at| span(&format!("span {at}"))).collect(),
        schema_url: "https://example.com/scope".to_owned(),
    };
    let resource_spans = ResourceSpans {
        resource: Some(Resource {
            attributes: span("").attributes,
            ..Resource::default()
        }),
        scope_spans: vec![
            scope_spans("first", 0, spans / 3),
            scope_spans("second", spans / 3, spans),
        ],
        schema_url: "https://example.com/resource".to_owned(),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![resource_spans],
    }
}

/// Every span of `parts` in order, each with what it belongs to.
fn owned_spans(parts: &[Bytes]) -> Vec<(Option<Resource>, String, ScopeSpans)> {
    let mut found = Vec::new();
    for part in parts {
        let request = ExportTraceServiceRequest::decode(&part[..]).expect("sound");
        for resource_spans in request.resource_spans {
            for scope_spans in resource_spans.scope_spans {
                let alone = |span: &Span| ScopeSpans {
                    spans: vec![span.clone()],
                    ..scope_spans.clone()
                };
                found.extend(scope_spans.spans.iter().map(|span| {
                    let url = resource_spans.schema_url.clone();
                    (resource_spans.resource.clone(), url, alone(span))
                }));
            }
        }
    }
    found
}

#[test]
fn a_single_resource_is_cut_inside_and_every_span_keeps_its_owner() {
    let whole = Bytes::from(one_resource(40).encode_to_vec());
    for bound in [400, 600, 1_000, whole.len() - 1] {
        let parts = split(&whole, bound).expect("sound");
        assert!(parts.len() > 1);
        assert!(parts.iter().all(|part| part.len() <= bound), "{bound}");
        assert_eq!(
            owned_spans(&parts),
            owned_spans(std::slice::from_ref(&whole))
        );
    }
}

#[test]
fn neighbours_of_a_large_resource_are_kept_too() {
    let (before, after) = (request(&[1]), request(&[2]));
    let large = one_resource(40).encode_to_vec();
    let whole = Bytes::from([&before[..], &large, &after].concat());
    let parts = split(&whole, 600).expect("sound");
    assert_eq!((parts.first(), parts.last()), (Some(&before), Some(&after)));
    assert_eq!(owned_spans(&parts).len(), 43);
}

#[test]
fn what_cannot_be_cut_further_is_told_apart_from_what_is_broken() {
    let large_span = in_span(&nest(5, &[b'x'; 500]));
    let large_resource = nest(
        1,
        &[nest(3, &[b'x'; 400]), in_span(&[])[2..].to_vec()].concat(),
    );
    for whole in [large_span, large_resource, nest(9, &[0; 500])] {
        let error = split(&Bytes::from(whole), 300).expect_err("too large");
        assert!(error.is_over_a_bound(), "{error}");
    }
    let broken = count_spans(&[0x0a, 0x05, 0x00]).expect_err("broken");
    assert!(!broken.is_over_a_bound());
}

#[test]
fn what_may_be_decoded_is_bounded_in_number() {
    let check = |request: &[u8], is_decodable: bool| {
        let tally = tally_spans(request).expect("sound");
        assert_eq!(tally.check_decodable().is_ok(), is_decodable, "{tally:?}");
    };
    let empty = |count: u64| [0x4a, 0x00].repeat(count as usize);
    // Two of the elements are the resource's and the scope's entries.
    check(&in_span(&empty(MAX_ELEMENTS - 2)), true);
    check(&in_span(&empty(MAX_ELEMENTS)), false);
    let ids = [nest(1, &[1; 16]), nest(2, &[2; 8])].concat();
    let spans = |count: u64| nest(1, &nest(2, &nest(2, &ids).repeat(count as usize)));
    check(&spans(MAX_SPANS), true);
    check(&spans(MAX_SPANS + 1), false);
    let entity_refs = nest(
        1,
        &nest(1, &nest(3, &[0x1a, 0x00].repeat(MAX_ELEMENTS as usize))),
    );
    check(&entity_refs, false);
}

#[test]
fn numbers_in_a_row_are_taken_packed_and_one_by_one() {
    let histogram = |fields: &[u8]| nest(1, &nest(2, &nest(2, &nest(9, &nest(1, fields)))));
    let check = |fields: &[u8], is_sound: bool| {
        let tally = tally(Signal::Metrics, &histogram(fields));
        assert_eq!(tally.is_ok(), is_sound, "{fields:x?}");
    };
    check(&nest(6, &[0; 16]), true);
    check(
        &[&[6 << 3 | 1][..], &[0; 8], &[6 << 3 | 1], &[0; 8]].concat(),
        true,
    );
    check(&nest(6, &[0; 15]), false);
    // The sum is one number.
    check(&nest(5, &[0; 8]), false);
    let buckets = |content: &[u8]| {
        let point = nest(8, &nest(2, content));
        nest(1, &nest(2, &nest(2, &nest(10, &nest(1, &point)))))
    };
    assert!(tally(Signal::Metrics, &buckets(&[1, 0xff, 1])).is_ok());
    assert!(tally(Signal::Metrics, &buckets(&[1, 0xff])).is_err());
}

#[test]
fn items_of_every_signal_are_counted() {
    let items = |signal, entries: &[u8]| {
        let request = nest(1, &nest(2, entries));
        tally(signal, &request).expect("sound").items
    };
    let points = |field| nest(2, &nest(field, &[nest(1, &[]), nest(1, &[])].concat()));
    let metrics = [5, 7, 9, 10, 11].map(points).concat();
    assert_eq!(items(Signal::Metrics, &metrics), 10);
    assert_eq!(items(Signal::Logs, &nest(2, &[]).repeat(3)), 3);
    // Of a profile nothing is known, sound or not.
    assert_eq!(items(Signal::Profiles, &nest(2, &[0xff]).repeat(4)), 4);
}

/// Counts, and is told of everything: the walk takes no short way.
struct LongWay(Tally);

impl Visit for LongWay {
    fn item(&mut self) {
        self.0.item();
    }

    fn elements(&mut self, count: u64) {
        self.0.elements(count);
    }
}

/// What both ways find, which must be the same.
fn both_ways(request: &[u8]) -> Result<Tally, WireError> {
    let mut long = LongWay(Tally::default());
    let long = walk(Signal::Traces, request, &mut long).map(|()| long.0);
    assert_eq!(tally_spans(request), long, "{request:x?}");
    long
}

#[test]
fn the_short_way_finds_what_the_walk_finds() {
    let check = |fields: &[u8], is_sound: bool| {
        let found = both_ways(&in_span(fields));
        assert_eq!(found.is_ok(), is_sound, "{fields:x?}: {found:?}");
    };
    let attribute = |value: &[u8], is_sound: bool| {
        check(
            &nest(9, &[nest(1, b"key"), nest(2, value)].concat()),
            is_sound,
        );
    };
    attribute(&[], true);
    attribute(&nest(1, b"text"), true);
    for length in [0, 127, 128, 200, 16_383, 16_384] {
        attribute(&nest(1, &vec![b'x'; length]), true);
    }
    attribute(&[0x0a, 5, b'x'], false);
    attribute(&[0x0a, 0xff, 0x7f], false);
    attribute(&[0x10, 1], true);
    attribute(&[0x18, 0xff, 1], true);
    attribute(&[&[0x18][..], &[0xff; 9], &[1]].concat(), true);
    attribute(&[&[0x18][..], &[0xff; 9], &[2]].concat(), false);
    attribute(&[0x18, 0xff], false);
    attribute(&[0x18], false);
    attribute(&[&[0x21][..], &[0; 8]].concat(), true);
    attribute(&[&[0x21][..], &[0; 7]].concat(), false);
    attribute(&nest(5, &nest(1, &nest(1, b"item"))), true);
    attribute(&[&nest(1, b"text")[..], &[0x10, 1]].concat(), true);
    check(&[nest(4, &[3; 8]), nest(3, b"a=b")].concat(), true);
    check(&nest(4, &[3; 7]), false);
    check(&[0x30, 2], true);
    check(&[0x30, 0x82], false);
    check(&[&[0x39][..], &[1; 8], &[0x41], &[2; 8]].concat(), true);
    check(&nest(15, &[0x18, 2]), true);
    check(&nest(15, &nest(2, b"why")), true);
    check(&nest(15, &[0x18]), false);
    check(&[0x85, 1, 1, 0, 0, 0], true);
    check(&[0x85, 2, 1, 0, 0, 0], true);
    check(&[0x50, 1], true);
    check(&nest(11, &nest(2, b"event")), true);
}

#[test]
fn spans_without_ids_are_refused() {
    let check = |trace_id: &[u8], span_id: &[u8], expect: &str| {
        let fields = [nest(1, trace_id), nest(2, span_id)].concat();
        let request = nest(1, &nest(2, &nest(2, &fields)));
        let error = count_spans(&request).expect_err("no id").to_string();
        assert!(error.ends_with(expect), "{error}");
    };
    check(&[], &[1; 8], "a span without a trace id");
    check(&[0; 16], &[1; 8], "a span without a trace id");
    check(&[1; 16], &[], "a span without a span id");
    check(&[1; 16], &[0; 8], "a span without a span id");
}

#[test]
fn broken_text_is_replaced_in_place() {
    let bytes = in_span(&nest(5, b"caf\xe9 \xf0\x9f"));
    let clean = replace_invalid_text(&bytes).expect("sound");
    assert_eq!(clean.len(), bytes.len());
    let request = ExportTraceServiceRequest::decode(&clean[..]).expect("clean now");
    assert_eq!(
        request.resource_spans[0].scope_spans[0].spans[0].name,
        "caf? ??"
    );
}

proptest! {
    #[test]
    fn whatever_the_walk_accepts_decodes_with_as_many_spans(
        counts in prop::collection::vec(0_usize..4, 0..4),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = request(&counts).to_vec();
        for (index, byte) in edits {
            if !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
        }
        if let Ok(Tally { items: spans, .. }) = both_ways(&bytes) {
            let clean = replace_invalid_text(&bytes).expect("the walk accepted it");
            let request = ExportTraceServiceRequest::decode(&clean[..])
                .expect("what the walk accepts decodes");
            let decoded = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
            prop_assert_eq!(decoded.map(|scope| scope.spans.len() as u64).sum::<u64>(), spans);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if both_ways(&bytes).is_ok() {
            let clean = replace_invalid_text(&bytes).expect("the walk accepted it");
            prop_assert!(ExportTraceServiceRequest::decode(&clean[..]).is_ok());
        }
    }
}
