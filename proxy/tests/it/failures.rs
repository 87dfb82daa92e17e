//! Whoever fails, the span says so: the client, the upstream, and when.

use std::time::Duration;

use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::SpanData;

use crate::support::{Peer, RawUpstream, Response, TestProxy, attribute, config, nobody, request};

const POST: &[&str] = &[
    "POST /v1/completions HTTP/1.1",
    "Host: a",
    "Content-Length: 2",
];

fn check_failed(span: &SpanData, error_type: &str, status: Option<&str>) {
    assert_eq!(attribute(span, "error.type").as_deref(), Some(error_type));
    assert_eq!(
        span.status,
        Status::error(""),
        "a SERVER span's error has no description"
    );
    assert_eq!(
        attribute(span, "http.response.status_code").as_deref(),
        status
    );
}

fn check_openai_error(response: &Response, code: &str) {
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert!(
        response.body.starts_with(r#"{"error":{"message":""#),
        "{}",
        response.body
    );
    assert!(
        response.body.contains(r#""type":"server_error""#),
        "{}",
        response.body
    );
    assert!(
        response.body.contains(r#""param":null"#),
        "{}",
        response.body
    );
    assert!(
        response.body.contains(&format!(r#""code":"{code}""#)),
        "{}",
        response.body
    );
}

/// A request in flight: the client's end and the upstream's, which has read it.
async fn in_flight(proxy: &TestProxy, upstream: &RawUpstream) -> (Peer, Peer) {
    let mut client = proxy.connect().await;
    client.write(&request(POST, "{}")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    (client, server)
}

#[tokio::test]
async fn an_upstream_that_is_down_is_a_502_in_openais_words() {
    let mut proxy = TestProxy::in_front_of(nobody().await).await;
    let response = proxy.send(&request(POST, "{}")).await;
    assert_eq!(response.status, 502);
    check_openai_error(&response, "upstream_connection_refused");
    let span = proxy.spans.next().await;
    check_failed(&span, "upstream_connection_refused", Some("502"));
    assert_eq!(span.name, "POST /v1/completions");
}

#[tokio::test]
async fn the_error_answer_to_head_has_no_body() {
    let mut proxy = TestProxy::in_front_of(nobody().await).await;
    let mut client = proxy.connect().await;
    client
        .write(&request(&["HEAD /health HTTP/1.1", "Host: a"], ""))
        .await;
    assert_eq!(client.read_response_head().await.status, 502);
    assert_eq!(client.read_to_end().await, "");
    check_failed(
        &proxy.spans.next().await,
        "upstream_connection_refused",
        Some("502"),
    );
}

#[tokio::test]
async fn a_large_body_to_an_upstream_that_is_down_still_gets_its_answer() {
    let mut proxy = TestProxy::in_front_of(nobody().await).await;
    let body = "x".repeat(1 << 20);
    let length = format!("Content-Length: {}", body.len());
    let lines = ["POST /v1/completions HTTP/1.1", "Host: a", &length];
    let response = proxy.send(&request(&lines, &body)).await;
    assert_eq!(response.status, 502);
    check_failed(
        &proxy.spans.next().await,
        "upstream_connection_refused",
        Some("502"),
    );
}

#[tokio::test]
async fn the_next_upstream_answers_for_one_that_is_down() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(nobody().await);
    config.upstreams.push(upstream.address().into());
    let mut proxy = TestProxy::with(config).await;
    let (mut client, mut server) = in_flight(&proxy, &upstream).await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.read_response().await.status, 200);
    assert_eq!(proxy.spans.next().await.status, Status::Unset);
}

#[tokio::test]
async fn a_name_without_an_address_is_a_502_that_says_so() {
    let mut config = config(nobody().await);
    let name = lantern_proxy::Upstream::parse("http://upstream.invalid:8001").expect("a valid URL");
    config.upstreams = vec![name];
    let mut proxy = TestProxy::with(config).await;
    let response = proxy.send(&request(POST, "{}")).await;
    assert_eq!(response.status, 502);
    check_openai_error(&response, "upstream_unresolved");
    check_failed(
        &proxy.spans.next().await,
        "upstream_unresolved",
        Some("502"),
    );
}

#[tokio::test]
async fn an_upstream_that_hangs_up_before_its_answer_is_a_502() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, server) = in_flight(&proxy, &upstream).await;
    drop(server);
    let response = client.read_response().await;
    assert_eq!(response.status, 502);
    check_openai_error(&response, "upstream_closed");
    check_failed(&proxy.spans.next().await, "upstream_closed", Some("502"));
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_a_502() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut server) = in_flight(&proxy, &upstream).await;
    server.write("SSH-2.0-OpenSSH_9.9\r\n\r\n").await;
    let response = client.read_response().await;
    assert_eq!(response.status, 502);
    check_openai_error(&response, "upstream_invalid_response");
    check_failed(
        &proxy.spans.next().await,
        "upstream_invalid_response",
        Some("502"),
    );
}

#[tokio::test]
async fn a_chunk_without_a_size_is_an_invalid_answer() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut server) = in_flight(&proxy, &upstream).await;
    server
        .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.read_head().await;
    server.write("not a size\r\n").await;
    assert_eq!(client.read_to_end().await, "");
    check_failed(
        &proxy.spans.next().await,
        "upstream_invalid_response",
        Some("200"),
    );
}

#[tokio::test]
async fn an_upstream_that_stays_silent_is_a_504() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.read_timeout = Duration::from_millis(50);
    let mut proxy = TestProxy::with(config).await;
    let (mut client, _server) = in_flight(&proxy, &upstream).await;
    let response = client.read_response().await;
    assert_eq!(response.status, 504);
    check_openai_error(&response, "upstream_timeout");
    check_failed(&proxy.spans.next().await, "upstream_timeout", Some("504"));
}

#[tokio::test]
async fn an_answer_cut_short_is_an_error_with_the_status_that_was_sent() {
    for (head, part) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
            "only this",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "9\r\nonly this\r\n",
        ),
    ] {
        let upstream = RawUpstream::bind().await;
        let mut proxy = TestProxy::in_front_of(upstream.address()).await;
        let (mut client, mut server) = in_flight(&proxy, &upstream).await;
        server.write(head).await;
        server.write(part).await;
        client.read_head().await;
        client.read_until("only this").await;
        drop(server);
        let rest = client.read_to_end().await;
        assert!(
            !rest.contains("0\r\n\r\n"),
            "the client must not take it for complete: {rest:?}"
        );
        let span = proxy.spans.next().await;
        check_failed(&span, "upstream_closed", Some("200"));
        assert_eq!(
            attribute(&span, "http.response.body.size").as_deref(),
            Some("9")
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_leaves_a_span_without_a_status_code() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (client, mut server) = in_flight(&proxy, &upstream).await;
    drop(client);
    check_failed(&proxy.spans.next().await, "client_disconnected", None);
    assert_eq!(server.read_to_end().await, "", "the upstream learns of it");
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_is_an_error_and_the_upstream_learns_of_it() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let (mut client, mut server) = in_flight(&proxy, &upstream).await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    server.write_chunk("data: a\n\n").await;
    client.read_until("data: a\n\n\r\n").await;
    drop(client);
    let span = proxy.spans.next().await;
    check_failed(&span, "client_disconnected", Some("200"));
    assert_eq!(
        attribute(&span, "lantern.sse.event_count").as_deref(),
        Some("1")
    );
    assert_eq!(server.read_to_end().await, "");
}

#[tokio::test]
async fn a_client_that_leaves_within_its_body_is_an_error() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    client
        .write(&request(
            &[
                "POST /v1/completions HTTP/1.1",
                "Host: a",
                "Content-Length: 9",
            ],
            "half",
        ))
        .await;
    let mut server = upstream.accept().await;
    server.read_head().await;
    assert_eq!(server.read_bytes(4).await, "half");
    drop(client);
    check_failed(&proxy.spans.next().await, "client_disconnected", None);
}

#[tokio::test]
async fn a_body_that_is_no_http_is_a_400() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    let lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Transfer-Encoding: chunked",
    ];
    client.write(&request(&lines, "not a size\r\n")).await;
    let response = client.read_response().await;
    assert_eq!(response.status, 400);
    assert!(
        response.body.contains(r#""type":"invalid_request_error""#),
        "{}",
        response.body
    );
    let span = proxy.spans.next().await;
    let error_type = attribute(&span, "error.type");
    assert_eq!(error_type.as_deref(), Some("invalid_request"));
    assert_eq!(span.status, Status::Unset, "a 4xx is the client's");
}

#[tokio::test]
async fn a_client_that_leaves_within_its_head_leaves_a_span() {
    let mut proxy = TestProxy::in_front_of(nobody().await).await;
    let mut client = proxy.connect().await;
    client
        .write("GET /health HTTP/1.1\r\nHost: llm.example\r\nX-Cut")
        .await;
    drop(client);
    let span = proxy.spans.next().await;
    check_failed(&span, "client_disconnected", None);
    assert_eq!(span.name, "GET /health");
    let server = attribute(&span, "server.address");
    assert_eq!(server.as_deref(), Some("llm.example"));
}

#[tokio::test]
async fn a_connection_without_a_request_leaves_no_span() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    drop(proxy.connect().await);
    let (mut client, mut server) = in_flight(&proxy, &upstream).await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    client.read_response().await;
    proxy.spans.next().await;
    drop(client);
    assert!(proxy.stopped().await.is_empty());
}

#[tokio::test]
async fn every_attempt_is_a_span_with_its_number_and_its_end() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(nobody().await);
    config.upstreams.push(upstream.address().into());
    let mut proxy = TestProxy::with(config).await;
    let (mut client, mut server) = in_flight(&proxy, &upstream).await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    client.read_response().await;
    let span = proxy.spans.next().await;
    let attempts = proxy.spans.attempts();
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| {
            assert_eq!(attempt.parent_span_id, span.span_context.span_id());
            (
                attribute(attempt, "http.request.resend_count"),
                attribute(attempt, "error.type"),
                attribute(attempt, "http.response.status_code"),
            )
        })
        .collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        told,
        [
            (None, text("upstream_connection_refused"), None),
            (text("1"), None, text("200")),
        ]
    );
    assert_eq!(
        attempts[0].status,
        Status::error("the upstream server refused the connection")
    );
}
