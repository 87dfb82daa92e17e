//! Clients that leave, servers that stop, and connections of both HTTP versions.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lantern_inference::engine::request::{Event, FinishReason, StepTimes};
use opentelemetry::trace::Status;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Harness, Options, attribute, say};

/// Sends a completion request by hand, so that the test can hang up.
async fn open(harness: &Harness, stream: bool) -> TcpStream {
    let body = json!({"prompt": "hi", "stream": stream, "max_tokens": 100}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: lantern\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = TcpStream::connect(harness.address).await.unwrap();
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    socket
}

/// Reads until `text` has come.
async fn read_until(socket: &mut TcpStream, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut buffer = [0; 1024];
        let count = socket.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the server hung up after {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

#[tokio::test]
async fn client_that_leaves_half_way_cancels_its_request_and_leaves_a_span() {
    for stream in [true, false] {
        let (harness, submissions) = Harness::held(Options::default()).await;
        let mut socket = open(&harness, stream).await;
        let submission = tokio::task::spawn_blocking(move || submissions.recv().unwrap())
            .await
            .unwrap();
        let at = submission.queued + Duration::from_millis(5);
        submission
            .events
            .send(Event::Scheduled {
                at,
                cached_tokens: 0,
            })
            .unwrap();
        submission
            .events
            .send(Event::Token {
                id: 97,
                logprobs: None,
                at,
                times: StepTimes::default(),
            })
            .unwrap();
        if stream {
            read_until(&mut socket, "\"text\":\"a\"").await;
        }
        drop(socket);
        submission.events.closed().await;
        let span = harness.request_spans(1).await.remove(0);
        assert_eq!(
            attribute(&span, "error.type").as_deref(),
            Some("client_disconnected")
        );
        assert!(matches!(span.status, Status::Error { .. }));
        let spans = harness.spans(3).await;
        assert!(
            spans.iter().any(|span| span.name == "queue"),
            "phases reached are there"
        );
    }
}

#[tokio::test]
async fn client_that_leaves_before_its_body_is_whole_leaves_a_span() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    let mut socket = TcpStream::connect(harness.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: lantern\r\ncontent-length: 100\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    drop(socket);
    let span = harness.request_spans(1).await.remove(0);
    let error_type = attribute(&span, "error.type").unwrap();
    assert!(
        ["client_disconnected", "body_incomplete"].contains(&error_type.as_str()),
        "{error_type}"
    );
}

#[tokio::test]
async fn request_in_flight_finishes_after_the_server_is_told_to_stop() {
    let (harness, submissions) = Harness::held(Options::default()).await;
    let mut socket = open(&harness, true).await;
    let submission = tokio::task::spawn_blocking(move || submissions.recv().unwrap())
        .await
        .unwrap();
    let at = submission.queued;
    submission
        .events
        .send(Event::Token {
            id: 97,
            logprobs: None,
            at,
            times: StepTimes::default(),
        })
        .unwrap();
    read_until(&mut socket, "\"text\":\"a\"").await;
    harness.shutdown.cancel();
    // The listener goes away while the request goes on.
    loop {
        match TcpStream::connect(harness.address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
            _ => tokio::task::yield_now().await,
        }
    }
    submission
        .events
        .send(Event::Token {
            id: 98,
            logprobs: None,
            at,
            times: StepTimes::default(),
        })
        .unwrap();
    submission
        .events
        .send(Event::Finished {
            reason: FinishReason::Length,
            at,
        })
        .unwrap();
    read_until(&mut socket, "data: [DONE]").await;
    harness.server.await.unwrap();
    let spans = harness.exporter.get_finished_spans().unwrap();
    let span = spans
        .iter()
        .find(|span| span.name == "llm_request")
        .expect("its span has ended");
    assert_eq!(span.status, Status::Unset);
}

#[tokio::test]
async fn request_that_outlasts_the_grace_is_dropped_with_its_span() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let options = Options {
            drain_grace: Duration::from_millis(1),
            ..Options::default()
        };
        let (harness, submissions) = Harness::held(options).await;
        let mut client = Client::builder(TokioExecutor::new());
        let client = client
            .http2_only(version == Version::HTTP_2)
            .build_http::<Full<Bytes>>();
        let body = json!({"prompt": "hi", "stream": true}).to_string();
        let request = Request::post(harness.url("/v1/completions")).version(version);
        let response = client
            .request(request.body(body.into()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.version(), version);
        let submission = tokio::task::spawn_blocking(move || submissions.recv().unwrap())
            .await
            .unwrap();
        harness.shutdown.cancel();
        harness.server.await.unwrap();
        assert!(
            response.into_body().collect().await.is_err(),
            "the stream breaks off"
        );
        submission.events.closed().await;
        let spans = harness.exporter.get_finished_spans().unwrap();
        let span = spans
            .iter()
            .find(|span| span.name == "llm_request")
            .expect("it has ended");
        assert_eq!(
            attribute(span, "error.type").as_deref(),
            Some("server_shutdown")
        );
    }
}

#[tokio::test]
async fn http2_without_tls_is_served() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<Bytes>>();
    let body = json!({"prompt": "hi"}).to_string();
    let request = Request::post(harness.url("/v1/completions"))
        .body(body.into())
        .unwrap();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&bytes).contains("\"text\":\"ok\""));
}
