//! What is too much, and what takes too long.

use std::time::Duration;

use lantern_proxy::Config;
use opentelemetry::trace::Status;

use crate::support::{
    Echo, Peer, RawUpstream, Response, TestProxy, attribute, config, request, within,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A POST whose head has these lines besides, and its body.
fn post(line: &str, body: &str) -> String {
    request(&["POST /v1/completions HTTP/1.1", "Host: a", line], body)
}

fn check_refused(response: &Response, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.head);
    let expect = format!(r#""code":"{code}""#);
    assert!(response.body.contains(&expect), "{}", response.body);
    let retry_after = (status == 503).then_some("1");
    assert_eq!(response.header("retry-after"), retry_after);
}

async fn proxy_with(change: impl FnOnce(&mut Config)) -> (TestProxy, RawUpstream) {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    change(&mut config);
    (TestProxy::with(config).await, upstream)
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let (mut proxy, _upstream) = proxy_with(|config| config.limits.header_bytes = 200).await;
    let line = format!("X-Long: {}", "x".repeat(200));
    let response = proxy.send(&post(&line, "")).await;
    check_refused(&response, 431, "request_header_too_large");
    let span = proxy.spans.next().await;
    let error = attribute(&span, "error.type");
    assert_eq!(error.as_deref(), Some("request_header_too_large"));
    assert_eq!(span.status, Status::Unset, "the fault is the client's");
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_413_and_goes_nowhere() {
    let (proxy, _upstream) = proxy_with(|config| config.limits.body_bytes = 4).await;
    let response = proxy.send(&post("Content-Length: 5", "12345")).await;
    check_refused(&response, 413, "request_body_too_large");
}

#[tokio::test]
async fn a_chunked_body_is_413_when_it_has_become_too_large() {
    let (mut proxy, upstream) = proxy_with(|config| config.limits.body_bytes = 4).await;
    let mut client = proxy.connect().await;
    client.write(&post("Transfer-Encoding: chunked", "")).await;
    client.write_chunk("1234").await;
    let mut server = upstream.accept().await;
    server.read_head().await;
    assert_eq!(server.read_chunk().await, "1234");
    client.write_chunk("5").await;
    check_refused(&client.read_response().await, 413, "request_body_too_large");
    assert_eq!(
        server.read_to_end().await,
        "",
        "it is not told that this was the end"
    );
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("413")
    );
}

/// A request that is at the upstream.
async fn in_flight(proxy: &TestProxy, upstream: &RawUpstream, body: &str) -> (Peer, Peer) {
    let mut client = proxy.connect().await;
    let length = format!("Content-Length: {}", body.len());
    client.write(&post(&length, body)).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    (client, server)
}

#[tokio::test]
async fn one_request_too_many_is_503_until_another_is_answered() {
    let (proxy, upstream) = proxy_with(|config| config.limits.requests = 1).await;
    let (mut client, mut server) = in_flight(&proxy, &upstream, "{}").await;
    let refused = proxy.send(&post("Content-Length: 2", "{}")).await;
    check_refused(&refused, 503, "too_many_requests_in_flight");
    server.write(OK).await;
    assert_eq!(client.read_response().await.status, 200);
    drop(server);
    let free = async {
        loop {
            let mut next = proxy.connect().await;
            next.write(&post("Content-Length: 2", "{}")).await;
            let serving = async {
                let mut server = upstream.accept().await;
                server.read_message().await;
                server.write(OK).await;
                server
            };
            // The first request ends in its own time.
            tokio::select! {
                refused = next.read_response() => assert_eq!(refused.status, 503),
                _server = serving => return next.read_response().await.status,
            }
        }
    };
    assert_eq!(within("a free place", free).await, 200);
}

#[tokio::test]
async fn bytes_in_flight_over_the_bound_are_503() {
    let (proxy, upstream) = proxy_with(|config| config.limits.in_flight_bytes = 10).await;
    let (_client, _server) = in_flight(&proxy, &upstream, "12345678").await;
    let refused = proxy.send(&post("Content-Length: 3", "123")).await;
    check_refused(&refused, 503, "too_many_bytes_in_flight");
    let (mut client, mut server) = in_flight(&proxy, &upstream, "12").await;
    server.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_not_waited_for_for_ever() {
    let limit = Duration::from_millis(100);
    let (mut proxy, _upstream) = proxy_with(|config| config.client.header = limit).await;
    let mut client = proxy.connect().await;
    client
        .write("GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        .await;
    let dripping = async {
        // Each byte comes long before the limit.
        while client.try_write("x").await {
            tokio::time::sleep(limit / 20).await;
        }
    };
    within("the end of the connection", dripping).await;
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("client_timeout")
    );
}

#[tokio::test]
async fn a_connection_that_begins_with_silence_is_closed() {
    let short = Duration::from_millis(20);
    let (proxy, _upstream) = proxy_with(|config| config.client.header = short).await;
    assert_eq!(proxy.connect().await.read_to_end().await, "");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408() {
    let short = Duration::from_millis(50);
    let (mut proxy, _upstream) = proxy_with(|config| config.client.silence = short).await;
    let mut client = proxy.connect().await;
    client.write(&post("Content-Length: 10", "12")).await;
    assert_eq!(client.read_response().await.status, 408);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("client_timeout")
    );
}

#[tokio::test]
async fn a_client_that_sends_no_next_request_is_let_go() {
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.client.idle = Duration::from_millis(50);
    let proxy = TestProxy::with(config).await;
    let mut client = proxy.connect().await;
    client
        .write(&request(&["GET / HTTP/1.1", "Host: a"], ""))
        .await;
    assert_eq!(client.read_response().await.status, 200);
    assert_eq!(client.read_to_end().await, "");
}
