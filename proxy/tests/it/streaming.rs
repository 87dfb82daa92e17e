//! Bodies pass through as they come, in both directions.

use opentelemetry::trace::Status;

use crate::support::{Peer, RawUpstream, TestProxy, attribute, request};

const SSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A client that has sent `lines`, and the upstream's end of it with the head read.
async fn exchange(lines: &[&str]) -> (TestProxy, RawUpstream, Peer, Peer) {
    let upstream = RawUpstream::bind().await;
    let proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    client.write(&request(lines, "")).await;
    let mut server = upstream.accept().await;
    server.read_head().await;
    (proxy, upstream, client, server)
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let (mut proxy, _upstream, mut client, mut server) =
        exchange(&["GET /v1/completions HTTP/1.1", "Host: a"]).await;
    server.write(SSE_HEAD).await;
    client.read_head().await;
    for token in [
        "data: one\n\n",
        "data: two\n\n",
        "data: three\n\n",
        "data: [DONE]\n\n",
    ] {
        server.write_chunk(token).await;
        assert_eq!(client.read_chunk().await, token);
        assert!(proxy.spans.is_empty(), "the span lasts until the last byte");
    }
    server.write_chunk("").await;
    assert_eq!(client.read_chunk().await, "");

    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "lantern.sse.event_count").as_deref(),
        Some("4")
    );
    assert_eq!(
        attribute(&span, "lantern.http.response.chunk_count").as_deref(),
        Some("4")
    );
    assert_eq!(
        attribute(&span, "http.response.body.size").as_deref(),
        Some("49")
    );
    assert_eq!(span.status, Status::Unset);
    assert!(
        span.events.iter().next().is_none(),
        "nothing is recorded for each chunk"
    );
}

#[tokio::test]
async fn an_answer_of_known_length_is_not_held_back_until_it_is_complete() {
    let (mut proxy, _upstream, mut client, mut server) =
        exchange(&["GET /v1/models HTTP/1.1", "Host: a"]).await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst")
        .await;
    client.read_head().await;
    assert_eq!(client.read_bytes(5).await, "first");
    server.write("later").await;
    assert_eq!(client.read_bytes(5).await, "later");
    let span = proxy.spans.next().await;
    assert_eq!(attribute(&span, "lantern.http.response.chunk_count"), None);
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_complete() {
    let (mut proxy, _upstream, mut client, mut server) =
        exchange(&["GET /v1/models HTTP/1.1", "Host: a"]).await;
    server.write("HTTP/1.1 200 OK\r\n\r\nall of it").await;
    drop(server);
    assert_eq!(client.read_response().await.body, "all of it");
    assert_eq!(proxy.spans.next().await.status, Status::Unset);
}

#[tokio::test]
async fn a_request_body_streams_to_the_upstream_before_its_end() {
    let (mut proxy, _upstream, mut client, mut server) = exchange(&[
        "POST /v1/audio/transcriptions HTTP/1.1",
        "Host: a",
        "Transfer-Encoding: chunked",
    ])
    .await;
    for piece in ["early", "middle", "late"] {
        client.write_chunk(piece).await;
        assert_eq!(server.read_chunk().await, piece);
    }
    client.write_chunk("").await;
    assert_eq!(server.read_chunk().await, "");
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.read_response().await.status, 200);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "http.request.body.size").as_deref(),
        Some("15")
    );
}

#[tokio::test]
async fn an_answer_may_begin_before_the_request_has_ended() {
    let (_proxy, _upstream, mut client, mut server) = exchange(&[
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Transfer-Encoding: chunked",
    ])
    .await;
    server.write(SSE_HEAD).await;
    server.write_chunk("data: early\n\n").await;
    client.read_head().await;
    assert_eq!(client.read_chunk().await, "data: early\n\n");
    client.write_chunk("more").await;
    assert_eq!(server.read_chunk().await, "more");
}

#[tokio::test]
async fn a_head_request_has_no_body_and_keeps_the_answers_length() {
    let (mut proxy, _upstream, mut client, mut server) =
        exchange(&["HEAD /v1/models HTTP/1.1", "Host: a"]).await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")
        .await;
    let response = client.read_response_head().await;
    assert_eq!(response.header("content-length"), Some("1234"));
    let span = proxy.spans.next().await;
    assert_eq!(span.name, "HEAD /v1/models");
    assert_eq!(
        attribute(&span, "http.response.body.size").as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn a_100_continue_passes_and_is_not_the_status_of_the_span() {
    let (mut proxy, _upstream, mut client, mut server) = exchange(&[
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Content-Length: 4",
        "Expect: 100-continue",
    ])
    .await;
    server.write("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.read_response_head().await.status, 100);
    client.write("body").await;
    assert_eq!(server.read_bytes(4).await, "body");
    server
        .write("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.read_response().await.status, 201);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("201")
    );
}

#[tokio::test]
async fn early_hints_pass_and_are_not_the_status_of_the_span() {
    let (mut proxy, _upstream, mut client, mut server) =
        exchange(&["GET /docs HTTP/1.1", "Host: a"]).await;
    server
        .write("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        .await;
    assert_eq!(client.read_response_head().await.status, 103);
    server
        .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(client.read_response().await.status, 200);
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("200")
    );
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (mut proxy, _upstream, mut client, mut server) =
        exchange(&["GET /v1/completions HTTP/1.0", "Host: a"]).await;
    server.write(SSE_HEAD).await;
    server.write_chunk("data: a\n\n").await;
    server.write_chunk("").await;
    let head = client.read_head().await;
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    assert_eq!(client.read_to_end().await, "data: a\n\n");
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "network.protocol.version").as_deref(),
        Some("1.0")
    );
    assert_eq!(span.status, Status::Unset);
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let (mut proxy, _upstream, mut client, mut server) = exchange(&[
        "GET /v1/realtime HTTP/1.1",
        "Host: a",
        "Connection: Upgrade",
        "Upgrade: websocket",
    ])
    .await;
    server
        .write(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
    assert_eq!(client.read_response_head().await.status, 101);
    client.write("to server").await;
    assert_eq!(server.read_bytes(9).await, "to server");
    server.write("to client").await;
    assert_eq!(client.read_bytes(9).await, "to client");
    drop(server);
    assert_eq!(client.read_to_end().await, "");
    let span = proxy.spans.next().await;
    assert_eq!(
        attribute(&span, "http.response.status_code").as_deref(),
        Some("101")
    );
}
