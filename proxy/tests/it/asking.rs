//! `--ask-for-usage`: the usage of streams whose client did not ask for it, and upstreams that will not be asked.

use opentelemetry_sdk::trace::SpanData;

use crate::support::{Peer, RawUpstream, TestProxy, attribute, config, request};

const SSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const STREAM: &str = r#"{"messages":[],"stream":true}"#;
const ASKED: &str = r#"{"messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

/// A `POST` of `body` as a client sends it.
fn post(body: &str) -> String {
    let length = format!("Content-Length: {}", body.len());
    let lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        &length,
    ];
    request(&lines, body)
}

async fn asking(upstream: &RawUpstream) -> TestProxy {
    let mut config = config(upstream.address());
    config.ask_for_usage = true;
    TestProxy::with(config).await
}

/// A stream's exchange with a proxy that asks for usage: what the upstream got, what the client got, and
/// the span.
async fn asked(body: &str, events: &[&str]) -> (String, String, SpanData) {
    let upstream = RawUpstream::bind().await;
    let mut proxy = asking(&upstream).await;
    let mut client = proxy.connect().await;
    client.write(&post(body)).await;
    let mut server = upstream.accept().await;
    let (_, received) = server.read_message().await;
    server.write(SSE_HEAD).await;
    for event in events {
        server.write_chunk(event).await;
    }
    server.write_chunk("").await;
    let (_, answer) = client.read_message().await;
    (received, answer, proxy.spans.next().await)
}

const TEXT_EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const USAGE_EVENT: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n";
const DONE_EVENT: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn usage_that_the_client_did_not_ask_for_is_on_the_span_alone() {
    let (received, answer, span) = asked(STREAM, &[TEXT_EVENT, USAGE_EVENT, DONE_EVENT]).await;
    assert_eq!(received, ASKED);
    assert_eq!(answer, format!("{TEXT_EVENT}{DONE_EVENT}"));
    for (key, value) in [
        ("gen_ai.usage.input_tokens", "3"),
        ("gen_ai.usage.output_tokens", "1"),
        ("http.request.body.size", &STREAM.len().to_string()),
    ] {
        assert_eq!(attribute(&span, key).as_deref(), Some(value), "{key}");
    }
}

#[tokio::test]
async fn usage_that_the_client_asked_for_reaches_it() {
    let body = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
    let events = [TEXT_EVENT, USAGE_EVENT, DONE_EVENT];
    let (received, answer, _) = asked(body, &events).await;
    assert_eq!(received, body);
    assert_eq!(answer, events.concat());
}

#[tokio::test]
async fn a_request_that_does_not_stream_is_not_asked() {
    let body = r#"{"stream":false}"#;
    let (received, answer, _) = asked(body, &[USAGE_EVENT]).await;
    assert_eq!((received.as_str(), answer.as_str()), (body, USAGE_EVENT));
}

#[tokio::test]
async fn a_stream_that_told_its_length_is_chunked_without_the_event_that_is_hidden() {
    let upstream = RawUpstream::bind().await;
    let proxy = asking(&upstream).await;
    let mut client = proxy.connect().await;
    client.write(&post(STREAM)).await;
    let mut server = upstream.accept().await;
    assert_eq!(server.read_message().await.1, ASKED);
    let body = [TEXT_EVENT, USAGE_EVENT, DONE_EVENT].concat();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length:";
    server
        .write(&format!("{head} {}\r\n\r\n{body}", body.len()))
        .await;
    let answer = client.read_response().await;
    assert_eq!(answer.body, format!("{TEXT_EVENT}{DONE_EVENT}"));
    assert_eq!(answer.header("content-length"), None);
}

/// Lets the upstream refuse the request that it reads next; the request's body.
async fn refuse(server: &mut Peer, status: &str) -> String {
    let (_, body) = server.read_message().await;
    let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 4\r\n\r\nnone");
    server.write(&answer).await;
    body
}

/// Lets it answer; the request's body.
async fn stream(server: &mut Peer) -> String {
    let (_, body) = server.read_message().await;
    server.write(SSE_HEAD).await;
    server.write_chunk(DONE_EVENT).await;
    server.write_chunk("").await;
    body
}

#[tokio::test]
async fn an_upstream_that_refuses_the_question_gets_the_request_as_it_came_and_no_other_question() {
    for refusal in ["400 Bad Request", "422 Unprocessable Content"] {
        let upstream = RawUpstream::bind().await;
        let mut proxy = asking(&upstream).await;
        let mut client = proxy.connect().await;
        client.write(&post(STREAM)).await;
        assert_eq!(refuse(&mut upstream.accept().await, refusal).await, ASKED);
        let mut server = upstream.accept().await;
        assert_eq!(stream(&mut server).await, STREAM);
        let answer = client.read_response().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, DONE_EVENT));

        client.write(&post(STREAM)).await;
        assert_eq!(stream(&mut server).await, STREAM, "it is known by now");
        assert_eq!(client.read_response().await.status, 200);

        let span = proxy.spans.next().await;
        assert_eq!(attribute(&span, "error.type"), None);
        proxy.spans.next().await;
        let attempts = proxy.spans.attempts();
        let statuses: Vec<_> = attempts
            .iter()
            .map(|attempt| attribute(attempt, "error.type"))
            .collect();
        assert_eq!(statuses, [Some(refusal[..3].to_owned()), None, None]);
    }
}

#[tokio::test]
async fn a_request_that_is_refused_both_ways_says_nothing_of_the_question() {
    let upstream = RawUpstream::bind().await;
    let proxy = asking(&upstream).await;
    for _ in 0..2 {
        let mut client = proxy.connect().await;
        client.write(&post(STREAM)).await;
        for expected in [ASKED, STREAM] {
            let mut server = upstream.accept().await;
            assert_eq!(refuse(&mut server, "400 Bad Request").await, expected);
        }
        let answer = client.read_response().await;
        assert_eq!((answer.status, answer.body.as_str()), (400, "none"));
    }
}

#[tokio::test]
async fn an_upstream_that_has_taken_the_question_is_believed_when_it_refuses_a_request() {
    let upstream = RawUpstream::bind().await;
    let proxy = asking(&upstream).await;
    let mut client = proxy.connect().await;
    client.write(&post(STREAM)).await;
    let mut server = upstream.accept().await;
    assert_eq!(stream(&mut server).await, ASKED);
    client.read_response().await;
    client.write(&post(STREAM)).await;
    assert_eq!(refuse(&mut server, "400 Bad Request").await, ASKED);
    assert_eq!(client.read_response().await.status, 400);
}

#[tokio::test]
async fn a_body_that_could_not_be_sent_again_is_changed_only_for_an_upstream_that_takes_it() {
    let upstream = RawUpstream::bind().await;
    let proxy = asking(&upstream).await;
    let padding = "x".repeat(100_000);
    let long = format!(r#"{{"prompt":"{padding}","stream":true}}"#);
    let mut client = proxy.connect().await;
    client.write(&post(&long)).await;
    let mut server = upstream.accept().await;
    assert_eq!(stream(&mut server).await, long);
    client.read_response().await;
    client.write(&post(STREAM)).await;
    assert_eq!(stream(&mut server).await, ASKED);
    client.read_response().await;
    client.write(&post(&long)).await;
    assert!(stream(&mut server).await.contains("include_usage"));
    assert_eq!(client.read_response().await.status, 200);
}
