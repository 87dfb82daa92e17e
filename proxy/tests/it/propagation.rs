//! What the environment decides about trace context: propagators, samplers, and no tracing at all.

use lantern_telemetry::{Settings, Telemetry};
use tokio::net::TcpListener;

use crate::support::{Echo, Spans, TestProxy, config, request};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

/// Telemetry by these variables. Its spans go to a listener that never answers: what is looked at is
/// what the upstream is told.
async fn telemetry(variables: &[(&str, &str)]) -> (Telemetry, TcpListener) {
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!(
        "http://{}",
        collector.local_addr().expect("a bound listener")
    );
    let settings = Settings::from_vars(|name| match name {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(endpoint.clone()),
        _ => variables
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned()),
    })
    .expect("valid variables");
    (
        Telemetry::start(&settings, "proxy-under-test").expect("valid settings"),
        collector,
    )
}

/// The headers that the upstream gets when the client sends `headers`.
async fn sent_on(telemetry: Telemetry, headers: &[&str]) -> http::HeaderMap {
    let mut echo = Echo::start().await;
    let proxy = TestProxy::traced_by(config(echo.address), telemetry, Spans::new().1).await;
    let lines: Vec<_> = ["GET /health HTTP/1.1", "Host: a"]
        .iter()
        .chain(headers)
        .copied()
        .collect();
    assert_eq!(proxy.send(&request(&lines, "")).await.status, 200);
    echo.received().await.headers().clone()
}

fn value<'a>(headers: &'a http::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("text"))
}

#[tokio::test]
async fn an_unsampled_trace_is_continued_unsampled_with_a_span_of_our_own() {
    let (telemetry, _collector) = telemetry(&[]).await;
    let parent = format!("traceparent: 00-{TRACE_ID}-{PARENT_ID}-00");
    let headers = sent_on(telemetry, &[&parent, "tracestate: a=1"]).await;
    let sent = value(&headers, "traceparent").expect("a context");
    assert!(
        sent.starts_with(&format!("00-{TRACE_ID}-")) && sent.ends_with("-00"),
        "{sent}"
    );
    assert!(!sent.contains(PARENT_ID), "{sent}");
    assert_eq!(value(&headers, "tracestate"), Some("a=1"));
}

#[tokio::test]
async fn a_new_trace_that_is_not_sampled_is_told_so_to_the_upstream() {
    let (telemetry, _collector) = telemetry(&[("OTEL_TRACES_SAMPLER", "always_off")]).await;
    let headers = sent_on(telemetry, &[]).await;
    let sent = value(&headers, "traceparent").expect("a context");
    assert!(sent.ends_with("-00"), "{sent}");
}

#[tokio::test]
async fn b3_is_read_and_written_when_the_environment_asks_for_it() {
    let (telemetry, _collector) = telemetry(&[("OTEL_PROPAGATORS", "b3")]).await;
    let b3 = format!("b3: {TRACE_ID}-{PARENT_ID}-1");
    let headers = sent_on(telemetry, &[&b3, "traceparent: someone-elses"]).await;
    let sent = value(&headers, "b3").expect("a context");
    assert!(
        sent.starts_with(&format!("{TRACE_ID}-")) && !sent.contains(PARENT_ID),
        "{sent}"
    );
    assert_eq!(
        value(&headers, "traceparent"),
        Some("someone-elses"),
        "not ours to replace"
    );
}

#[tokio::test]
async fn b3_of_several_headers_replaces_all_of_them() {
    let (telemetry, _collector) = telemetry(&[("OTEL_PROPAGATORS", "b3multi")]).await;
    let (trace, span) = (
        format!("X-B3-TraceId: {TRACE_ID}"),
        format!("X-B3-SpanId: {PARENT_ID}"),
    );
    let headers = sent_on(telemetry, &[&trace, &span, "X-B3-Sampled: 1"]).await;
    assert_eq!(value(&headers, "x-b3-traceid"), Some(TRACE_ID));
    assert_eq!(value(&headers, "x-b3-sampled"), Some("1"));
    assert_ne!(value(&headers, "x-b3-spanid"), Some(PARENT_ID));
}

#[tokio::test]
async fn the_upstream_sees_no_b3_parent_but_the_proxy_whichever_form_the_client_sent() {
    for written in ["b3", "b3multi", "b3,b3multi"] {
        let (telemetry, _collector) = telemetry(&[("OTEL_PROPAGATORS", written)]).await;
        let sent = [
            format!("b3: {TRACE_ID}-{PARENT_ID}-1"),
            format!("X-B3-TraceId: {TRACE_ID}"),
            format!("X-B3-SpanId: {PARENT_ID}"),
            format!("X-B3-ParentSpanId: {PARENT_ID}"),
            "X-B3-Sampled: 1".to_owned(),
        ];
        let headers = sent_on(telemetry, &sent.each_ref().map(String::as_str)).await;
        let left = headers
            .iter()
            .find(|(_, value)| value.to_str().is_ok_and(|value| value.contains(PARENT_ID)));
        assert_eq!(left, None, "{written}");
        let (single, multi) = (headers.get("b3"), headers.get("x-b3-spanid"));
        assert_eq!(single.is_some(), written != "b3multi", "{written}");
        assert_eq!(multi.is_some(), written != "b3", "{written}");
    }
}

#[tokio::test]
async fn without_tracing_the_trace_headers_pass_as_they_are() {
    let parent = format!("00-{TRACE_ID}-{PARENT_ID}-01");
    let line = format!("traceparent: {parent}");
    let headers = sent_on(Telemetry::disabled(), &[&line, "tracestate: a=1"]).await;
    assert_eq!(value(&headers, "traceparent"), Some(parent.as_str()));
    assert_eq!(value(&headers, "tracestate"), Some("a=1"));
}
