//! Connections and shutdown: reuse on both sides, bounds, and no span lost.

use std::time::Duration;

use opentelemetry::trace::Status;
use tokio::net::TcpStream;

use crate::support::{
    Echo, Peer, RawUpstream, TestProxy, attribute, config, nobody, refuses_connections, request,
    within,
};

const GET: &[&str] = &["GET /v1/models HTTP/1.1", "Host: a"];
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const SSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

#[tokio::test]
async fn two_requests_on_one_connection_are_two_spans_of_two_traces() {
    let echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        client.write(&request(GET, "")).await;
        let response = client.read_response().await;
        assert_eq!(response.header("connection"), Some("keep-alive"));
    }
    let (first, second) = (proxy.spans.next().await, proxy.spans.next().await);
    assert_ne!(
        first.span_context.trace_id(),
        second.span_context.trace_id()
    );
    assert_eq!(
        attribute(&first, "network.peer.port"),
        attribute(&second, "network.peer.port")
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    let mut client = proxy.connect().await;
    let second = &["GET /version HTTP/1.1", "Host: a"];
    client
        .write(&(request(GET, "") + &request(second, "")))
        .await;
    assert_eq!(client.read_response().await.status, 200);
    assert_eq!(client.read_response().await.status, 200);
    assert_eq!(proxy.spans.next().await.name, "GET /v1/models");
    assert_eq!(proxy.spans.next().await.name, "GET /version");
}

#[tokio::test]
async fn requests_take_turns_over_the_upstreams() {
    let (mut first, mut second) = (Echo::start().await, Echo::start().await);
    let mut config = config(first.address);
    config.upstreams.push(second.address.into());
    let proxy = TestProxy::with(config).await;
    for _ in 0..2 {
        proxy.send(&request(GET, "")).await;
        proxy.send(&request(GET, "")).await;
        first.received().await;
        second.received().await;
    }
}

/// A client and the upstream's end of a pooled connection, after one exchange on each.
async fn pooled_connection(proxy: &mut TestProxy, upstream: &RawUpstream) -> (Peer, Peer) {
    let mut client = proxy.connect().await;
    client.write(&request(GET, "")).await;
    let mut pooled = upstream.accept().await;
    pooled.read_message().await;
    pooled.write(OK).await;
    client.read_response().await;
    proxy.spans.next().await;
    (client, pooled)
}

const POST: &[&str] = &[
    "POST /v1/completions HTTP/1.1",
    "Host: a",
    "Content-Length: 15",
];
const PROMPT: &str = r#"{"prompt":"hi"}"#;

/// The race of a server that closes an idle connection: the request is already on its way.
#[tokio::test]
async fn a_post_that_the_upstream_had_not_read_when_it_closed_the_connection_is_sent_again() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, pooled) = pooled_connection(&mut proxy, &upstream).await;
    client.write(&request(POST, PROMPT)).await;
    pooled.readable().await;
    drop(pooled);
    let mut fresh = upstream.accept().await;
    let (head, body) = fresh.read_message().await;
    assert!(head.starts_with("POST /v1/completions "), "{head}");
    assert_eq!(body, PROMPT);
    fresh.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");

    let span = proxy.spans.next().await;
    assert_eq!(span.status, Status::Unset);
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("200")
    );
    assert_eq!(
        attribute(&span, "http.request.body.size").as_deref(),
        Some("15")
    );
    assert!(proxy.spans.is_empty(), "both attempts are one request");
    let resends: Vec<_> = proxy.spans.attempts();
    let resends: Vec<_> = resends
        .iter()
        .map(|attempt| attribute(attempt, "http.request.resend_count"))
        .collect();
    assert_eq!(resends.last(), Some(&Some("1".to_owned())));
}

#[tokio::test]
async fn a_post_that_the_upstream_had_read_is_not_sent_again() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut pooled) = pooled_connection(&mut proxy, &upstream).await;
    client.write(&request(POST, PROMPT)).await;
    assert_eq!(pooled.read_message().await.1, PROMPT);
    drop(pooled);
    assert_eq!(client.read_response().await.status, 502);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("upstream_closed")
    );
}

#[tokio::test]
async fn a_get_is_sent_again_whether_the_upstream_had_read_it_or_not() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut pooled) = pooled_connection(&mut proxy, &upstream).await;
    client.write(&request(GET, "")).await;
    pooled.read_message().await;
    drop(pooled);
    let mut fresh = upstream.accept().await;
    fresh.read_message().await;
    fresh.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");
}

#[tokio::test]
async fn a_post_whose_answer_had_begun_is_not_sent_again() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut pooled) = pooled_connection(&mut proxy, &upstream).await;
    let lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Content-Length: 2",
    ];
    client.write(&request(&lines, "{}")).await;
    pooled.read_message().await;
    pooled.write("HTTP/1.1 200").await;
    drop(pooled);
    assert_eq!(client.read_response().await.status, 502);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("upstream_closed")
    );
}

#[tokio::test]
async fn a_post_that_is_too_long_to_be_kept_is_not_sent_again() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut pooled) = pooled_connection(&mut proxy, &upstream).await;
    let body = "x".repeat(100_000);
    let length = format!("Content-Length: {}", body.len());
    let lines = ["POST /v1/completions HTTP/1.1", "Host: a", &length];
    client.write(&request(&lines, &body)).await;
    pooled.read_message().await;
    drop(pooled);
    assert_eq!(client.read_response().await.status, 502);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("upstream_closed")
    );
}

#[tokio::test]
async fn shutdown_lets_a_stream_in_flight_finish_and_keeps_its_span() {
    let upstream = RawUpstream::bind().await;
    let proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    client.write(&request(GET, "")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server.write(SSE_HEAD).await;
    client.read_head().await;

    proxy.begin_shutdown();
    refuses_connections(proxy.address).await;
    server.write_chunk("data: still here\n\n").await;
    assert_eq!(client.read_chunk().await, "data: still here\n\n");
    server.write_chunk("").await;
    assert_eq!(client.read_to_end().await, "0\r\n\r\n");

    let mut spans = proxy.stopped().await;
    let span = spans.next().await;
    assert_eq!(span.status, Status::Unset);
    assert_eq!(
        attribute(&span, "lantern.sse.event_count").as_deref(),
        Some("1")
    );
}

#[tokio::test]
async fn a_request_that_is_on_its_way_when_the_shutdown_begins_is_answered() {
    let echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    let mut silent = proxy.connect().await;
    // It is accepted after the silent one, and answered.
    proxy.send(&request(GET, "")).await;
    proxy.spans.next().await;
    let mut queued = proxy.connect().await;
    proxy.begin_shutdown();
    let closing = async { while TcpStream::connect(proxy.address).await.is_ok() {} };
    within("the port's end", closing).await;
    for client in [&mut silent, &mut queued] {
        client.write(&request(GET, "")).await;
        let response = client.read_response().await;
        assert_eq!(response.status, 200);
        assert_eq!(response.header("connection"), Some("close"));
    }
    let mut spans = proxy.stopped().await;
    for _ in 0..2 {
        assert_eq!(spans.next().await.status, Status::Unset);
    }
}

#[tokio::test]
async fn shutdown_closes_idle_connections_at_once() {
    let echo = Echo::start().await;
    let proxy = TestProxy::in_front_of(echo.address).await;
    let mut client = proxy.connect().await;
    client.write(&request(GET, "")).await;
    client.read_response().await;
    proxy.begin_shutdown();
    assert_eq!(client.read_to_end().await, "");
    proxy.stopped().await;
}

#[tokio::test]
async fn an_answer_after_the_shutdown_began_says_that_the_connection_closes() {
    let upstream = RawUpstream::bind().await;
    let proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    client.write(&request(GET, "")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    proxy.begin_shutdown();
    refuses_connections(proxy.address).await;
    server.write(OK).await;
    assert_eq!(
        client.read_response().await.header("connection"),
        Some("close")
    );
    proxy.stopped().await;
}

#[tokio::test]
async fn a_request_that_outlives_the_drain_timeout_is_aborted_and_leaves_its_span() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.drain_timeout = Duration::from_millis(50);
    let proxy = TestProxy::with(config).await;
    let mut client = proxy.connect().await;
    let post = ["POST /tokenize HTTP/1.1", "Host: a", "Content-Length: 4"];
    client.write(&request(&post, "body")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server.write(SSE_HEAD).await;
    server.write_chunk("data: a\n\n").await;
    client.read_until("data: a\n\n\r\n").await;

    let mut spans = proxy.stopped().await;
    assert!(!spans.is_empty(), "the span has ended when the proxy has");
    let span = spans.next().await;
    assert_eq!(attribute(&span, "error.type").as_deref(), Some("aborted"));
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("200")
    );
    let body = attribute(&span, "http.request.body.size");
    assert_eq!(body.as_deref(), Some("4"));
    assert_eq!(span.status, Status::error(""));
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn a_connection_over_the_bound_is_refused_and_one_after_it_is_not() {
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.max_connections = 1;
    let mut proxy = TestProxy::with(config).await;
    let mut first = proxy.connect().await;
    first.write(&request(GET, "")).await;
    assert_eq!(first.read_response().await.status, 200);
    proxy.spans.next().await;

    let refused = proxy.send(&request(GET, "")).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let span = proxy.spans.next().await;
    assert_eq!(span.name, "HTTP");
    let error_type = attribute(&span, "error.type");
    assert_eq!(error_type.as_deref(), Some("too_many_connections"));
    let trace_id = span.span_context.trace_id().to_string();
    assert_eq!(refused.header("x-request-id"), Some(trace_id.as_str()));
    assert!(refused.body.contains(&trace_id), "{}", refused.body);
    assert!(
        refused.body.contains(r#""code":"too_many_connections""#),
        "{}",
        refused.body
    );

    let mut http2 = proxy.connect().await;
    http2.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(http2.read_to_end().await, "", "HTTP/1 means nothing to it");
    let status = attribute(&proxy.spans.next().await, "http.response.status_code");
    assert_eq!(status, None, "it was sent none");

    drop(first);
    // The proxy sees the end of the first connection in its own time.
    let answered = async { while proxy.send(&request(GET, "")).await.status == 503 {} };
    within("a free place", answered).await;
}

#[tokio::test]
async fn several_proxies_run_in_one_process() {
    let echo = Echo::start().await;
    let mut behind = TestProxy::in_front_of(echo.address).await;
    let mut front = TestProxy::in_front_of(behind.address).await;
    assert_eq!(front.send(&request(GET, "")).await.body, "answered");
    let (outer, inner) = (front.spans.next().await, behind.spans.next().await);
    assert_eq!(outer.span_context.trace_id(), inner.span_context.trace_id());
    let [attempt] = &front.spans.attempts()[..] else {
        panic!("one attempt");
    };
    assert_eq!(attempt.parent_span_id, outer.span_context.span_id());
    assert_eq!(inner.parent_span_id, attempt.span_context.span_id());
}

#[tokio::test]
async fn a_proxy_without_an_upstream_is_an_error() {
    let mut config = config(nobody().await);
    config.upstreams.clear();
    let telemetry = lantern_telemetry::Telemetry::disabled();
    let error = lantern_proxy::Proxy::bind(config, &telemetry).await.err();
    assert_eq!(
        error.expect("none").to_string(),
        "a proxy needs at least one upstream"
    );
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_that_names_it() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.listen = upstream.address();
    let telemetry = lantern_telemetry::Telemetry::disabled();
    let error = lantern_proxy::Proxy::bind(config, &telemetry)
        .await
        .err()
        .expect("taken");
    assert_eq!(
        error.to_string(),
        format!("could not listen on {}", upstream.address())
    );
}
