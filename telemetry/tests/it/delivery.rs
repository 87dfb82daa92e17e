//! What arrives at a receiver, by each protocol.

use std::collections::BTreeMap;

use http::HeaderMap;
use opentelemetry::trace::{
    Event, Link, Span as _, SpanContext, SpanKind, TraceContextExt as _, TraceFlags, TraceState,
    Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::common::v1::KeyValue as ProtoKeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::receiver::{Received, Receiver};
use crate::{PATIENCE, PROTOCOLS, end_spans, start};

fn texts(attributes: &[ProtoKeyValue]) -> BTreeMap<&str, &str> {
    attributes
        .iter()
        .filter_map(
            |attribute| match attribute.value.as_ref()?.value.as_ref()? {
                Value::StringValue(text) => Some((attribute.key.as_str(), text.as_str())),
                _ => None,
            },
        )
        .collect()
}

fn spans(received: &Received) -> Vec<&Span> {
    let resources = received.request.resource_spans.iter();
    resources
        .flat_map(|resource| &resource.scope_spans)
        .flat_map(|scope| &scope.spans)
        .collect()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .map(|value| value.to_str().expect("ASCII"))
}

#[tokio::test]
async fn spans_arrive_with_resource_headers_and_scope() {
    for protocol in PROTOCOLS {
        let mut receiver = Receiver::start(protocol).await;
        let telemetry = start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", receiver.addr),
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "api-key=open%20sesame,tenant=7",
            ),
            ("OTEL_RESOURCE_ATTRIBUTES", "region=north%20sea"),
            ("OTEL_SERVICE_NAME", "shop"),
        ]);
        let tracer = telemetry.tracer("checkout");
        tracer
            .span_builder("pay")
            .with_kind(SpanKind::Server)
            .start(&tracer)
            .end();
        telemetry.flush().await.expect("flushed");

        let received = receiver.next().await;
        assert_eq!(
            header(&received.headers, "api-key"),
            Some("open sesame"),
            "{protocol}"
        );
        assert_eq!(header(&received.headers, "tenant"), Some("7"), "{protocol}");
        assert_eq!(header(&received.headers, "grpc-encoding"), None);
        assert_eq!(header(&received.headers, "content-encoding"), None);
        let (path, content_type) = match protocol {
            "grpc" => ("", "application/grpc"),
            "http/protobuf" => ("/v1/traces", "application/x-protobuf"),
            _ => ("/v1/traces", "application/json"),
        };
        assert_eq!(received.path, path);
        assert_eq!(
            header(&received.headers, "content-type"),
            Some(content_type)
        );
        let resource = &received.request.resource_spans[0];
        let attributes = texts(&resource.resource.as_ref().expect("a resource").attributes);
        assert_eq!(attributes["service.name"], "shop");
        assert_eq!(attributes["region"], "north sea");
        assert_eq!(attributes["telemetry.sdk.language"], "rust");
        let scope = resource.scope_spans[0].scope.as_ref().expect("a scope");
        assert_eq!(
            (&*scope.name, &*scope.version),
            ("checkout", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(
            spans(&received)
                .iter()
                .map(|span| &*span.name)
                .collect::<Vec<_>>(),
            ["pay"]
        );
        telemetry.shutdown(PATIENCE).await.expect("nothing is left");
    }
}

#[tokio::test]
async fn requests_are_compressed_when_asked_for() {
    for protocol in PROTOCOLS {
        let mut receiver = Receiver::start(protocol).await;
        let telemetry = start(&[
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                &format!("http://{}/in", receiver.addr),
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ]);
        end_spans(&telemetry, 3);
        telemetry.shutdown(PATIENCE).await.expect("delivered");
        let received = receiver.next().await;
        assert_eq!(spans(&received).len(), 3);
        let name = if protocol == "grpc" {
            "grpc-encoding"
        } else {
            "content-encoding"
        };
        assert_eq!(header(&received.headers, name), Some("gzip"), "{protocol}");
        assert!(
            protocol == "grpc" || received.path == "/in",
            "the path is taken as it is"
        );
    }
}

#[tokio::test]
async fn limits_cut_what_a_span_holds() {
    for protocol in PROTOCOLS {
        let mut receiver = Receiver::start(protocol).await;
        let telemetry = start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", receiver.addr),
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5"),
            ("OTEL_ATTRIBUTE_COUNT_LIMIT", "2"),
            ("OTEL_SPAN_EVENT_COUNT_LIMIT", "1"),
            ("OTEL_SPAN_LINK_COUNT_LIMIT", "1"),
        ]);
        let attributes = || {
            ["a", "b", "c"]
                .map(|key| KeyValue::new(key, "long text"))
                .to_vec()
        };
        let linked = SpanContext::new(
            7.into(),
            7.into(),
            TraceFlags::SAMPLED,
            true,
            TraceState::NONE,
        );
        let link = || Link::new(linked.clone(), attributes(), 0);
        let event = || Event::new("said", std::time::SystemTime::now(), attributes(), 0);
        let tracer = telemetry.tracer("test");
        tracer
            .span_builder("work")
            .with_attributes(attributes())
            .with_links(vec![link(), link()])
            .with_events(vec![event(), event()])
            .start(&tracer)
            .end();
        telemetry.shutdown(PATIENCE).await.expect("delivered");

        let received = receiver.next().await;
        let span = spans(&received)[0];
        let cut = BTreeMap::from([("a", "long "), ("b", "long ")]);
        assert_eq!(texts(&span.attributes), cut);
        assert_eq!(span.dropped_attributes_count, 1);
        assert_eq!((span.events.len(), span.dropped_events_count), (1, 1));
        assert_eq!(texts(&span.events[0].attributes), cut);
        assert_eq!((span.links.len(), span.dropped_links_count), (1, 1));
        assert_eq!(texts(&span.links[0].attributes), cut);
    }
}

#[tokio::test]
async fn sampler_decides_what_is_sent() {
    let parent = |flags| {
        let parent = SpanContext::new(7.into(), 7.into(), flags, true, TraceState::NONE);
        Context::new().with_remote_span_context(parent)
    };
    let (sampled, not) = (parent(TraceFlags::SAMPLED), parent(TraceFlags::default()));
    let root = Context::new();
    for (sampler, arg, expect) in [
        ("always_on", "", [true, true, true]),
        ("always_off", "", [false, false, false]),
        ("traceidratio", "0", [false, false, false]),
        ("parentbased_always_on", "", [true, true, false]),
        ("parentbased_always_off", "", [false, true, false]),
        ("parentbased_traceidratio", "1", [true, true, false]),
    ] {
        let mut receiver = Receiver::start("grpc").await;
        let telemetry = start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("grpc://{}", receiver.addr),
            ),
            ("OTEL_TRACES_SAMPLER", sampler),
            ("OTEL_TRACES_SAMPLER_ARG", arg),
        ]);
        let tracer = telemetry.tracer("test");
        for (name, parent) in [("root", &root), ("sampled", &sampled), ("not", &not)] {
            tracer.start_with_context(name, parent).end();
        }
        telemetry.shutdown(PATIENCE).await.expect("delivered");
        let received = receiver.so_far();
        let names: Vec<_> = received
            .iter()
            .flat_map(spans)
            .map(|span| &*span.name)
            .collect();
        let sent = ["root", "sampled", "not"].map(|name| names.contains(&name));
        assert_eq!(sent, expect, "{sampler} {arg}");
    }
}

#[tokio::test]
async fn full_batches_leave_without_a_flush() {
    for protocol in PROTOCOLS {
        let mut receiver = Receiver::start(protocol).await;
        let telemetry = start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", receiver.addr),
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ]);
        end_spans(&telemetry, 2);
        assert_eq!(spans(&receiver.next().await).len(), 2, "{protocol}");
        telemetry.shutdown(PATIENCE).await.expect("nothing is left");
    }
}

#[tokio::test]
async fn large_batch_is_sent_in_parts_that_a_receiver_takes() {
    // tonic's server refuses messages of more than 4 MiB, as deployed receivers do.
    let mut receiver = Receiver::start("grpc").await;
    let endpoint = format!("grpc://{}", receiver.addr);
    let telemetry = start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]);
    let tracer = telemetry.tracer("test");
    for _ in 0..10 {
        let prompt = KeyValue::new("prompt", "x".repeat(1024 * 1024));
        tracer
            .span_builder("work")
            .with_attributes([prompt])
            .start(&tracer)
            .end();
    }
    telemetry.shutdown(PATIENCE).await.expect("delivered");
    let received = receiver.so_far();
    assert_eq!(
        received.iter().map(|part| spans(part).len()).sum::<usize>(),
        10
    );
    assert!(received.len() > 1);
}
