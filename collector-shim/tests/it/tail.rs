//! Tail decisions between a queue and a backend: what is sent, what is dropped, what outlives a stop.

use std::time::Duration;

use lantern_shim::{Config, TailPolicy};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::Status;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::support::backend::Backend;
use crate::support::client::{PROTOBUF, post};
use crate::support::spans::{encode, marks, resource_spans, span};
use crate::support::{Running, durable, eventually, exporter};

const SHORT: Duration = Duration::from_millis(50);
/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3_600);
const MAX_BYTES: usize = 256 * 1024 * 1024;

fn keeping_errors(config: Config, wait: Duration) -> Config {
    let tail = TailPolicy {
        rules: "errors".parse().expect("sound rules"),
        wait,
        max_bytes: MAX_BYTES,
        ..TailPolicy::default()
    };
    Config {
        tail: Some(tail),
        ..config
    }
}

/// A span of a trace of its own.
fn of_trace(trace: u8, name: &str) -> Span {
    Span {
        trace_id: vec![trace; 16],
        ..span(trace, 0, name, SpanKind::Internal)
    }
}

fn failed(span: Span) -> Span {
    let code = 2;
    Span {
        status: Some(Status {
            code,
            ..Status::default()
        }),
        ..span
    }
}

async fn send(shim: &Running, spans: Vec<Span>) {
    let request = encode(vec![resource_spans("web", spans)]);
    assert_eq!(post(shim.http, PROTOBUF, "", request).await.status, 200);
}

fn all_marks(backend: &Backend) -> Vec<String> {
    let deliveries = backend.deliveries();
    let marks = deliveries.iter().flat_map(|one| marks(&one.message));
    marks.collect()
}

#[tokio::test]
async fn kept_traces_arrive_whole_and_the_others_are_dropped_and_counted() {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.http_url(), "http/protobuf", &[]);
    let shim = Running::start(keeping_errors(Config::forwarding(exporter), SHORT)).await;
    send(&shim, vec![of_trace(1, "first"), of_trace(2, "boring")]).await;
    send(
        &shim,
        vec![failed(of_trace(1, "second")), of_trace(3, "boring")],
    )
    .await;
    eventually("all is decided", || shim.handle.counts().queued_spans == 0).await;
    let mut arrived = all_marks(&backend);
    arrived.sort();
    let counts = shim.handle.counts();
    // Where the first request waited for longer than it may, its part of the trace is gone.
    assert!(
        arrived == ["first", "second"] || arrived == ["second"],
        "{arrived:?}"
    );
    assert_eq!(counts.delivered_spans, arrived.len() as u64);
    assert_eq!(counts.dropped_spans + counts.delivered_spans, 4);
    shim.stop().await.0.expect("nothing is left");
}

#[tokio::test]
async fn what_is_undecided_on_disk_outlives_a_stop_and_is_decided_then() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.http_url(), "http/protobuf", &[]);
    let config = || durable(exporter.clone(), dir.path(), MAX_BYTES);
    let before = Running::start(keeping_errors(config(), HOUR)).await;
    send(&before, vec![of_trace(1, "before")]).await;
    send(&before, vec![failed(of_trace(2, "other"))]).await;
    backend.received(1).await;
    let (ended, counts) = before.stop().await;
    ended.expect("what is undecided is on disk");
    assert_eq!(counts.dropped_spans, 0);

    let after = Running::start(keeping_errors(config(), HOUR)).await;
    assert_eq!(after.handle.counts().recovered_spans, 2);
    send(&after, vec![failed(of_trace(1, "after"))]).await;
    eventually("the trace is whole", || {
        let arrived = all_marks(&backend);
        ["before", "after", "other"]
            .iter()
            .all(|mark| arrived.iter().any(|one| one == mark))
    })
    .await;
}

#[tokio::test]
async fn what_is_undecided_in_memory_is_dropped_at_the_end_and_counted() {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(keeping_errors(Config::forwarding(exporter), HOUR)).await;
    send(&shim, vec![of_trace(1, "boring")]).await;
    let (ended, counts) = shim.stop().await;
    ended.expect("it was decided");
    assert_eq!((counts.dropped_spans, counts.queued_spans), (1, 0));
    assert!(backend.deliveries().is_empty());
}
