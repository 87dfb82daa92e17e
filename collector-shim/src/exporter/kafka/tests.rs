//! Requests as records, whatever they hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::records::{batches, records};
use crate::coding::{self, Coding};
use crate::queue::Payload;
use crate::signal::Signal;

/// The trace that a span is of, and how long its name is.
type Sketch = Vec<Vec<Vec<(u8, usize)>>>;

/// Resources of scopes of spans, which are numbered by their ids.
fn request(sketch: &Sketch) -> (ExportTraceServiceRequest, u64) {
    let mut spans = 0_u64;
    let mut span = |(trace, length): &(u8, usize)| {
        spans += 1;
        Span {
            trace_id: vec![*trace + 1; 16],
            span_id: spans.to_be_bytes().to_vec(),
            name: "n".repeat(*length),
            ..Span::default()
        }
    };
    let mut resource_spans = Vec::new();
    for (number, scopes) in sketch.iter().enumerate() {
        let scope_spans = scopes.iter().enumerate().map(|(number, spans)| ScopeSpans {
            scope: Some(InstrumentationScope {
                name: format!("scope {number}"),
                ..InstrumentationScope::default()
            }),
            spans: spans.iter().map(&mut span).collect(),
            schema_url: String::new(),
        });
        resource_spans.push(ResourceSpans {
            scope_spans: scope_spans.collect(),
            resource: Some(Resource::default()),
            schema_url: format!("resource {number}"),
        });
    }
    (ExportTraceServiceRequest { resource_spans }, spans)
}

/// Each span with what stands around it, in order; by trace.
fn by_trace(request: &ExportTraceServiceRequest) -> BTreeMap<Vec<u8>, Vec<(String, String, Span)>> {
    let mut traces: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for resource in &request.resource_spans {
        for scope in &resource.scope_spans {
            let name = scope.scope.clone().expect("each has one").name;
            for span in &scope.spans {
                let around = (resource.schema_url.clone(), name.clone(), span.clone());
                traces
                    .entry(span.trace_id.clone())
                    .or_default()
                    .push(around);
            }
        }
    }
    traces
}

fn payload(request: &ExportTraceServiceRequest, items: u64, coding: Coding) -> Payload {
    let plain = request.encode_to_vec();
    let bytes = match coding {
        Coding::Gzip => coding::gzip(&plain).into(),
        Coding::Identity | Coding::Zstd => Bytes::from(plain),
    };
    Payload {
        coding,
        ..Payload::plain(Signal::Traces, bytes, items)
    }
}

proptest! {
    #[test]
    fn each_record_is_of_one_trace_and_together_they_are_the_request(
        sketch in vec(vec(vec((0..4_u8, 0..200_usize), 0..6), 0..4), 0..4),
        max_bytes in prop_oneof![Just(1_000_000_usize), 400..2_000_usize],
        is_compressed: bool,
    ) {
        let (request, items) = request(&sketch);
        let coding = if is_compressed { Coding::Gzip } else { Coding::Identity };
        let records = records(&payload(&request, items, coding), max_bytes);

        prop_assert_eq!(records.iter().map(|record| record.value.items).sum::<u64>(), items);
        let mut found: BTreeMap<Vec<u8>, Vec<_>> = BTreeMap::new();
        for record in &records {
            prop_assert_eq!(record.value.coding, Coding::Identity);
            prop_assert!(record.size() <= max_bytes);
            let value = ExportTraceServiceRequest::decode(&record.value.bytes[..]);
            let traces = by_trace(&value.expect("a request"));
            prop_assert!(traces.len() <= 1);
            for (trace, spans) in traces {
                let hex: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
                prop_assert_eq!(record.key.as_ref(), Some(&hex));
                found.entry(trace).or_default().extend(spans);
            }
        }
        prop_assert_eq!(found, by_trace(&request));

        let sizes: Vec<usize> = records.iter().map(super::Record::size).collect();
        let batches = batches(records, max_bytes);
        for batch in &batches {
            let bytes: usize = batch.iter().map(super::Record::size).sum();
            prop_assert!(bytes <= max_bytes || batch.len() == 1);
        }
        let in_order = batches.iter().flatten().map(super::Record::size);
        prop_assert_eq!(in_order.collect::<Vec<_>>(), sizes);
    }
}

#[test]
fn a_span_that_no_record_has_room_for_makes_one_that_is_too_large() {
    let (request, items) = request(&vec![vec![vec![(0, 10), (0, 5_000)]]]);
    let records = records(&payload(&request, items, Coding::Identity), 1_000);
    let [only] = &records[..] else {
        panic!("one, not {}", records.len());
    };
    assert_eq!(only.value.items, 2);
    assert_eq!(only.value.bytes, request.encode_to_vec());
}

#[test]
fn what_has_no_trace_has_no_key() {
    let metrics = Payload::plain(Signal::Metrics, Bytes::new(), 1);
    let records = records(&metrics, 1_000);
    assert_eq!(records.len(), 1);
    assert!(records[0].key.is_none());
}
