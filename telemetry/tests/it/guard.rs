//! The guard itself: where it may live, and what it is when tracing is off.

use http::{HeaderMap, HeaderValue};
use lantern_telemetry::Telemetry;
use opentelemetry::Context;
use opentelemetry::trace::{
    Span as _, SpanContext, TraceContextExt as _, TraceFlags, TraceState, Tracer as _,
};
use opentelemetry_sdk::trace::InMemorySpanExporter;

use crate::receiver::Receiver;
use crate::{PATIENCE, end_spans, settings, start};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn incoming() -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("traceparent"),
        HeaderValue::from_static(TRACEPARENT),
    )])
}

/// What a proxy does with a request: a span under the incoming one, injected into the same headers.
fn pass_on(telemetry: &Telemetry) -> HeaderMap {
    let (tracer, propagator) = (telemetry.tracer("proxy"), telemetry.propagator());
    let mut headers = incoming();
    let parent = propagator.extract(&headers);
    let span = tracer.start_with_context("GET", &parent);
    propagator.inject(&parent.with_span(span), &mut headers);
    headers
}

#[tokio::test]
async fn tracing_that_is_off_passes_a_trace_on_untouched() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    for telemetry in [
        Telemetry::disabled(),
        start(&[("OTEL_SDK_DISABLED", "true"), endpoint]),
        start(&[("OTEL_TRACES_EXPORTER", "none"), endpoint]),
    ] {
        assert_eq!(pass_on(&telemetry), incoming());
        assert!(!telemetry.tracer("test").start("work").is_recording());
        telemetry.flush().await.expect("there is nothing to flush");
        telemetry
            .shutdown(PATIENCE)
            .await
            .expect("there is nothing to flush");
    }
}

#[tokio::test]
async fn exporter_of_a_test_sees_every_span_even_after_the_shutdown() {
    let exporter = InMemorySpanExporter::default();
    let telemetry = Telemetry::with_exporter(exporter.clone(), "test-service");
    let headers = pass_on(&telemetry);
    let passed_on = headers["traceparent"].to_str().expect("ASCII").to_owned();
    assert_eq!(passed_on[..35], TRACEPARENT[..35], "the trace goes on");
    assert_ne!(
        passed_on[36..52],
        TRACEPARENT[36..52],
        "under a span of its own"
    );
    telemetry.shutdown(PATIENCE).await.expect("shut down");
    let spans = exporter.get_finished_spans().expect("spans");
    assert_eq!(spans.len(), 1);
    assert!(spans[0].parent_span_is_remote);
}

#[test]
fn program_without_a_runtime_can_trace() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime for the receiver");
    for protocol in crate::PROTOCOLS {
        let mut receiver = runtime.block_on(Receiver::start(protocol));
        let telemetry = start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", receiver.addr),
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ]);
        end_spans(&telemetry, 1);
        // Any executor will do.
        futures::executor::block_on(telemetry.shutdown(PATIENCE)).expect("delivered");
        assert_eq!(receiver.so_far().len(), 1, "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_guard_flushes_even_inside_a_runtime() {
    let mut receiver = Receiver::start("grpc").await;
    let telemetry = start(&[(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        &format!("grpc://{}", receiver.addr),
    )]);
    end_spans(&telemetry, 1);
    drop(telemetry);
    assert_eq!(receiver.so_far().len(), 1);
}

#[tokio::test]
async fn guards_of_one_process_do_not_share_anything() {
    let (mut one, mut two) = (Receiver::start("grpc").await, Receiver::start("grpc").await);
    let start = |receiver: &Receiver, name: &str| {
        start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("grpc://{}", receiver.addr),
            ),
            ("OTEL_SERVICE_NAME", name),
        ])
    };
    let (first, second) = (start(&one, "one"), start(&two, "two"));
    let tracer = second.tracer("test");
    end_spans(&first, 1);
    first.shutdown(PATIENCE).await.expect("delivered");
    let span = tracer.start_with_context("later", &Context::new());
    assert!(
        span.is_recording(),
        "the second goes on when the first is shut down"
    );
    drop(span);
    second.shutdown(PATIENCE).await.expect("delivered");
    assert_eq!((one.so_far().len(), two.so_far().len()), (1, 1));
}

#[test]
fn what_may_be_recorded_is_known_before_a_span_begins() {
    let below = |flags| {
        let parent = SpanContext::new(7.into(), 7.into(), flags, true, TraceState::NONE);
        Context::new().with_remote_span_context(parent)
    };
    let parents = [
        Context::new(),
        below(TraceFlags::SAMPLED),
        below(TraceFlags::default()),
    ];
    for (sampler, ratio) in [
        ("always_on", ""),
        ("always_off", ""),
        ("traceidratio", "1"),
        ("parentbased_always_on", ""),
        ("parentbased_always_off", ""),
        ("parentbased_traceidratio", "1"),
    ] {
        let vars = [
            ("OTEL_TRACES_SAMPLER", sampler),
            ("OTEL_TRACES_SAMPLER_ARG", ratio),
        ];
        let sampled = settings(&vars);
        for (settings, keeps) in [
            (sampled.clone(), false),
            (sampled.recording_unsampled(), true),
        ] {
            let exporter = InMemorySpanExporter::default();
            let telemetry = Telemetry::with_exporter_sampled(exporter, "test", &settings);
            let tracer = telemetry.tracer("test");
            for parent in &parents {
                let is_recording = tracer.start_with_context("work", parent).is_recording();
                assert_eq!(
                    telemetry.recorded().may_record(parent),
                    is_recording,
                    "{sampler}, {keeps}, {parent:?}"
                );
            }
        }
    }
    let off = Telemetry::disabled().recorded();
    assert!(parents.iter().all(|parent| !off.may_record(parent)));
}
