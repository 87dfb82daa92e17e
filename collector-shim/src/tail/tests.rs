//! Which spans come out, with which bytes, and when requests are done with.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use tokio::time::Instant;

use super::TailPolicy;
use super::buffer::Buffer;
use crate::queue::Payload;
use crate::signal::Signal;

const WAIT: Duration = Duration::from_secs(10);
const ANY_SIZE: usize = usize::MAX;

fn policy(rules: &str) -> TailPolicy {
    TailPolicy {
        rules: rules.parse().expect("sound rules"),
        services: HashMap::new(),
        wait: WAIT,
        max_bytes: ANY_SIZE,
    }
}

/// Span `number` of `trace`.
fn span(trace: u8, number: u8, is_error: bool) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![number; 8],
        name: format!("{trace}/{number}"),
        status: is_error.then(|| Status {
            code: 2,
            ..Status::default()
        }),
        ..Span::default()
    }
}

fn of_service(service: &str, spans: Vec<Span>) -> ResourceSpans {
    let name = KeyValue {
        key: "service.name".to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(service.to_owned())),
        }),
        ..KeyValue::default()
    };
    ResourceSpans {
        resource: Some(Resource {
            attributes: vec![name],
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans {
            spans,
            schema_url: "of the scope".to_owned(),
            ..ScopeSpans::default()
        }],
        schema_url: "of the resource".to_owned(),
    }
}

fn payload(resource_spans: Vec<ResourceSpans>) -> Payload {
    let scopes = resource_spans.iter().flat_map(|one| &one.scope_spans);
    let items = scopes.map(|scope| scope.spans.len() as u64).sum();
    let bytes: Bytes = ExportTraceServiceRequest { resource_spans }
        .encode_to_vec()
        .into();
    Payload::plain(Signal::Traces, bytes, items)
}

fn web(spans: Vec<Span>) -> Payload {
    payload(vec![of_service("web", spans)])
}

/// All that is ready, each with the number to confirm it by.
fn ready(buffer: &mut Buffer) -> Vec<Payload> {
    let batches = std::iter::from_fn(|| buffer.next_batch(ANY_SIZE));
    batches.flat_map(super::Batch::into_payloads).collect()
}

fn resource_spans(payload: &Payload) -> Vec<ResourceSpans> {
    let request = ExportTraceServiceRequest::decode(&payload.bytes[..]);
    request.expect("a request").resource_spans
}

fn names(payloads: &[Payload]) -> Vec<String> {
    let resources = payloads.iter().flat_map(resource_spans);
    let scopes = resources.flat_map(|resource| resource.scope_spans);
    scopes
        .flat_map(|scope| scope.spans)
        .map(|span| span.name)
        .collect()
}

#[test]
fn an_error_keeps_its_trace_with_what_came_before_and_comes_after() {
    let mut buffer = Buffer::new(policy("errors"));
    let now = Instant::now();
    buffer.add(web(vec![span(1, 1, false), span(2, 1, false)]), now);
    assert!(ready(&mut buffer).is_empty());
    buffer.add(web(vec![span(3, 1, false), span(1, 2, true)]), now);
    assert_eq!(names(&ready(&mut buffer)), ["1/1", "1/2"]);
    buffer.add(web(vec![span(1, 3, false), span(2, 2, false)]), now);
    assert_eq!(names(&ready(&mut buffer)), ["1/3"]);
    let outcome = buffer.expire(now + WAIT);
    assert_eq!((outcome.dropped_traces, outcome.dropped_spans), (2, 3));
    assert_eq!(outcome.early_traces, 0);
    assert!(ready(&mut buffer).is_empty());
}

#[test]
fn what_leaves_in_part_has_its_bytes_resource_and_scope() {
    let mut buffer = Buffer::new(policy("errors"));
    let mut odd = web(vec![span(1, 1, true), span(2, 1, false)]);
    // A field that nobody knows, in the span that is kept.
    let mut kept = span(1, 1, true).encode_to_vec();
    kept.extend([0xfa, 0x3f, 2, b'?', b'?']);
    let mut scope = ScopeSpans {
        spans: vec![span(2, 1, false)],
        schema_url: "of the scope".to_owned(),
        ..ScopeSpans::default()
    }
    .encode_to_vec();
    prost::encoding::bytes::encode(2, &kept, &mut scope);
    let mut resource = of_service("web", Vec::new());
    resource.scope_spans.clear();
    let mut resource = resource.encode_to_vec();
    prost::encoding::bytes::encode(2, &scope, &mut resource);
    let mut request = Vec::new();
    prost::encoding::bytes::encode(1, &resource, &mut request);
    odd.bytes = request.into();
    buffer.add(odd, Instant::now());
    let out = ready(&mut buffer);
    let expect = ResourceSpans {
        scope_spans: vec![ScopeSpans {
            spans: vec![span(1, 1, true)],
            schema_url: "of the scope".to_owned(),
            ..ScopeSpans::default()
        }],
        ..of_service("web", Vec::new())
    };
    assert_eq!(resource_spans(&out[0]), [expect]);
    let bytes = &out[0].bytes[..];
    assert!(bytes.windows(kept.len()).any(|window| window == kept));
}

#[test]
fn what_is_kept_whole_leaves_as_it_came_and_other_signals_always_do() {
    let mut buffer = Buffer::new(policy("errors"));
    let whole = web(vec![span(1, 1, true), span(1, 2, false)]);
    let metrics = Payload::plain(Signal::Metrics, Bytes::from_static(b"whatever"), 5);
    buffer.add(whole.clone(), Instant::now());
    buffer.add(metrics.clone(), Instant::now());
    let out = ready(&mut buffer);
    assert_eq!(out[0].bytes, whole.bytes);
    assert_eq!((&out[1].bytes, out[1].items), (&metrics.bytes, 5));
}

#[test]
fn what_many_traces_share_leaves_once_with_all_of_them() {
    let mut buffer = Buffer::new(policy("errors"));
    let now = Instant::now();
    let traces = 100;
    let mut resource = of_service(&"long".repeat(10_000), Vec::new());
    // Each trace in two scopes, and in one that it shares with no other.
    let scope = |number: u8| ScopeSpans {
        spans: (0..traces)
            .map(|trace| span(trace, number, false))
            .collect(),
        ..ScopeSpans::default()
    };
    let alone = (0..traces).map(|trace| ScopeSpans {
        spans: vec![span(trace, 3, false)],
        ..ScopeSpans::default()
    });
    resource.scope_spans = [scope(1), scope(2)].into_iter().chain(alone).collect();
    let dull = span(traces, 1, false);
    resource.scope_spans[0].spans.push(dull);
    let waiting = payload(vec![resource]);
    buffer.add(waiting.clone(), now);
    let errors = (0..traces).map(|trace| span(trace, 4, true)).collect();
    buffer.add(web(errors), now);
    let out = ready(&mut buffer);
    assert_eq!(out.len(), 2);
    assert_eq!(out[0].items, waiting.items - 1);
    assert!(out[0].bytes.len() < waiting.bytes.len());
    assert_eq!(buffer.ready_bytes(), 0);
}

#[test]
fn a_request_is_done_when_all_before_it_are_and_each_of_its_spans_is() {
    let mut buffer = Buffer::new(policy("errors"));
    let now = Instant::now();
    let place = |seq: u64, spans| Payload { seq, ..web(spans) };
    let add = |buffer: &mut Buffer, payload| buffer.add(payload, now).done.len();
    assert_eq!(add(&mut buffer, place(7, vec![span(1, 1, false)])), 0);
    assert_eq!(
        add(
            &mut buffer,
            place(8, vec![span(2, 1, true), span(2, 2, false)])
        ),
        0
    );
    let kept = ready(&mut buffer);
    assert_eq!(kept[0].items, 2);
    let done = buffer.confirm(kept[0].seq, kept[0].items);
    assert!(done.is_empty(), "the one before it is undecided");
    let done = buffer.expire(now + WAIT).done;
    let places: Vec<u64> = done.iter().map(|payload| payload.seq).collect();
    assert_eq!(places, [7, 8]);
}

#[test]
fn over_the_bound_the_oldest_traces_go_early_and_are_counted() {
    let traces = 100;
    let one = web(vec![span(1, 1, false)]);
    let mut buffer = Buffer::new(TailPolicy {
        max_bytes: 10 * (2 * one.bytes.len() + 400),
        ..policy("errors")
    });
    let now = Instant::now();
    let mut early = 0;
    for trace in 0..traces {
        let outcome = buffer.add(web(vec![span(trace, 1, false)]), now);
        assert_eq!(outcome.early_traces, outcome.dropped_traces);
        assert_eq!(outcome.done.len() as u64, outcome.dropped_spans);
        early += outcome.early_traces;
    }
    let rest = buffer.expire(now + WAIT).dropped_traces;
    assert_eq!(early + rest, u64::from(traces));
    assert!((1..=20).contains(&rest), "{rest} were left");
}

#[test]
fn a_trace_that_is_undecided_anew_has_its_whole_time_again() {
    let mut buffer = Buffer::new(policy("errors"));
    let start = Instant::now();
    buffer.add(web(vec![span(1, 1, false)]), start);
    let later = start + WAIT / 2;
    assert_eq!(buffer.expire(start + WAIT).dropped_traces, 1);
    buffer.add(web(vec![span(1, 2, false)]), start + WAIT);
    assert_eq!(buffer.expire(later + WAIT).dropped_traces, 0);
    buffer.add(web(vec![span(1, 3, true)]), later + WAIT);
    assert_eq!(names(&ready(&mut buffer)), ["1/2", "1/3"]);
}

proptest! {
    /// Requests of spans: trace, and whether it is an error; and after each how much time passes.
    #[test]
    fn every_span_is_kept_or_dropped_once_and_no_kept_trace_is_torn(
        requests in vec((vec((0..8_u8, prop::bool::weighted(0.1)), 1..6), 0..4_u64), 1..30),
        max_bytes in prop_oneof![Just(ANY_SIZE), Just(4_000_usize)],
    ) {
        let mut buffer = Buffer::new(TailPolicy { max_bytes, ..policy("errors") });
        let mut now = Instant::now();
        let (mut dropped, mut done, mut out) = (0, 0, Vec::new());
        let mut count = |outcome: super::Outcome| {
            dropped += outcome.dropped_spans;
            done += outcome.done.len();
        };
        let mut number = 0;
        for (spans, seconds) in &requests {
            let spans = spans.iter().map(|(trace, is_error)| {
                number += 1;
                span(*trace, number, *is_error)
            });
            count(buffer.add(web(spans.collect()), now));
            now += Duration::from_secs(*seconds);
            count(buffer.expire(now));
            out.extend(ready(&mut buffer));
        }
        count(buffer.expire(now + WAIT));
        let kept = names(&out);
        let sent: u64 = out.iter().map(|payload| payload.items).sum();
        prop_assert_eq!(kept.len() as u64, sent);
        prop_assert_eq!(sent + dropped, u64::from(number));
        let unique: std::collections::HashSet<_> = kept.iter().collect();
        prop_assert_eq!(unique.len(), kept.len());
        for payload in &out {
            done += buffer.confirm(payload.seq, payload.items).len();
        }
        prop_assert_eq!(done, requests.len());
        // From the first error on, all of a trace is there.
        let all = requests.iter().flat_map(|(spans, _)| spans);
        let mut erred = std::collections::HashSet::new();
        for ((trace, is_error), number) in all.zip(1..) {
            if *is_error {
                erred.insert(*trace);
            }
            let name = format!("{trace}/{number}");
            prop_assert!(!erred.contains(trace) || kept.contains(&name), "{}", name);
        }
    }
}
