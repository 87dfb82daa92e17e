//! What is not sampled and recorded all the same: requests that fail, are aborted or are slow.

use std::time::Duration;

use lantern_proxy::Keep;
use lantern_telemetry::Settings;

use crate::support::{Peer, RawUpstream, Spans, TestProxy, attribute, config, request};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const KEPT: &str = "lantern.sampling.kept";

async fn keeping(keep: Keep, upstream: &RawUpstream) -> TestProxy {
    let settings = Settings::from_vars(|_| None).expect("no variable, nothing to be wrong");
    let (telemetry, spans) = Spans::sampled(&settings.recording_unsampled());
    let mut config = config(upstream.address());
    config.keep = keep;
    TestProxy::traced_by(config, telemetry, spans).await
}

/// Sends a request whose trace has `flags` and lets the upstream `answer`; what the upstream was told.
async fn exchange(proxy: &TestProxy, upstream: &RawUpstream, flags: &str, answer: &str) -> String {
    let parent = format!("traceparent: 00-{TRACE_ID}-00f067aa0ba902b7-{flags}");
    let mut client = proxy.connect().await;
    let lines = ["GET /health HTTP/1.1", "Host: a", &parent];
    client.write(&request(&lines, "")).await;
    let mut server = upstream.accept().await;
    let (head, _) = server.read_message().await;
    server.write(answer).await;
    drop(server);
    client.read_head().await;
    let mut lines = head.lines();
    let sent = lines.find_map(|line| line.strip_prefix("traceparent: "));
    sent.expect("a context").to_owned()
}

#[tokio::test]
async fn an_unsampled_request_that_fails_is_recorded_with_its_attempt() {
    let upstream = RawUpstream::bind().await;
    let keep = Keep {
        errors: true,
        slower_than: None,
    };
    let mut proxy = keeping(keep, &upstream).await;
    exchange(&proxy, &upstream, "00", OK).await;
    let told = exchange(&proxy, &upstream, "00", "").await;
    assert!(told.ends_with("-00"), "others keep to the decision: {told}");

    let span = proxy.spans.next().await;
    assert_eq!(attribute(&span, KEPT).as_deref(), Some("error"));
    let status = attribute(&span, "http.response.status_code");
    assert_eq!(status.as_deref(), Some("502"), "the first was not kept");
    assert_eq!(span.span_context.trace_id().to_string(), TRACE_ID);
    let [attempt] = &proxy.spans.attempts()[..] else {
        panic!("one attempt");
    };
    assert_eq!(attempt.parent_span_id, span.span_context.span_id());
    assert!(told.contains(&attempt.span_context.span_id().to_string()));
}

#[tokio::test]
async fn what_the_proxy_refuses_as_the_clients_mistake_is_not_kept() {
    let upstream = RawUpstream::bind().await;
    let keep = Keep {
        errors: true,
        slower_than: None,
    };
    let mut proxy = keeping(keep, &upstream).await;
    let parent = format!("traceparent: 00-{TRACE_ID}-00f067aa0ba902b7-00");
    let large = format!("Content-Length: {}", usize::MAX);
    let lines = ["POST /health HTTP/1.1", "Host: a", &parent, &large];
    assert_eq!(proxy.send(&request(&lines, "")).await.status, 413);
    exchange(&proxy, &upstream, "00", "").await;
    let status = attribute(&proxy.spans.next().await, "http.response.status_code");
    assert_eq!(status.as_deref(), Some("502"), "the first was not kept");
}

#[tokio::test]
async fn a_request_that_is_kept_is_an_exemplar_of_what_is_measured() {
    let upstream = RawUpstream::bind().await;
    let settings = Settings::from_vars(|_| None).expect("no variable, nothing to be wrong");
    let (telemetry, spans) = Spans::sampled(&settings.recording_unsampled());
    let mut config = config(upstream.address());
    config.keep.errors = true;
    config.metrics = Some(([127, 0, 0, 1], 0).into());
    let mut proxy = TestProxy::traced_by(config, telemetry, spans).await;
    exchange(&proxy, &upstream, "00", "").await;
    let span = proxy.spans.next().await;

    let mut scraper = Peer::connect(proxy.metrics.expect("metrics are served")).await;
    let lines = ["GET /metrics HTTP/1.1", "Host: a"];
    scraper.write(&request(&lines, "")).await;
    let text = scraper.read_response().await.body;
    let exemplar = format!(r#"span_id="{}""#, span.span_context.span_id());
    assert!(text.contains(&exemplar), "{text}");
}

#[tokio::test]
async fn an_unsampled_request_that_is_slow_is_recorded() {
    let upstream = RawUpstream::bind().await;
    let keep = Keep {
        errors: false,
        slower_than: Some(Duration::from_nanos(1)),
    };
    let mut proxy = keeping(keep, &upstream).await;
    exchange(&proxy, &upstream, "00", OK).await;
    let span = proxy.spans.next().await;
    assert_eq!(attribute(&span, KEPT).as_deref(), Some("slow"));
}

#[tokio::test]
async fn a_sampled_request_says_nothing_of_being_kept() {
    let upstream = RawUpstream::bind().await;
    let keep = Keep {
        errors: true,
        slower_than: Some(Duration::from_nanos(1)),
    };
    let mut proxy = keeping(keep, &upstream).await;
    let told = exchange(&proxy, &upstream, "01", "").await;
    assert!(told.ends_with("-01"), "{told}");
    assert_eq!(attribute(&proxy.spans.next().await, KEPT), None);
}

#[tokio::test]
async fn an_unsampled_request_that_is_well_leaves_nothing() {
    let upstream = RawUpstream::bind().await;
    let keep = Keep {
        errors: true,
        slower_than: Some(Duration::from_secs(3600)),
    };
    let mut proxy = keeping(keep, &upstream).await;
    exchange(&proxy, &upstream, "00", OK).await;
    exchange(&proxy, &upstream, "01", OK).await;
    assert_eq!(attribute(&proxy.spans.next().await, KEPT), None);
    assert!(proxy.stopped().await.is_empty(), "only one was sampled");
}
