//! API keys, and what each may have in a minute.

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry::trace::Status;

use crate::support::{Echo, RawUpstream, TestProxy, attribute, config, request, within};

/// A file of keys, in a directory that goes with it.
struct Keys {
    directory: tempfile::TempDir,
}

impl Keys {
    fn new(text: &str) -> Self {
        let keys = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        keys.replace(text);
        keys
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("keys.toml")
    }

    fn replace(&self, text: &str) {
        std::fs::write(self.path(), text).expect("it can be written");
    }
}

const ALICE: &str = "[[key]]\nname = \"alice\"\nkey = \"sk-alice\"\n";

fn get(path: &str, lines: &[&str]) -> String {
    let first = format!("GET {path} HTTP/1.1");
    request(&[&[&first, "Host: a"], lines].concat(), "")
}

#[tokio::test]
async fn a_request_with_a_known_key_is_let_in_and_the_key_goes_no_further() {
    let mut echo = Echo::start().await;
    let keys = Keys::new(ALICE);
    let mut config = config(echo.address);
    config.api_keys = Some(keys.path());
    let mut proxy = TestProxy::with(config).await;
    for line in [
        "Authorization: Bearer sk-alice",
        "authorization: bearer  sk-alice",
        "X-API-Key: sk-alice",
    ] {
        assert_eq!(
            proxy.send(&get("/v1/models", &[line])).await.status,
            200,
            "{line}"
        );
        let received = echo.received().await;
        assert_eq!(received.headers().get("authorization"), None);
        assert_eq!(received.headers().get("x-api-key"), None);
        let span = proxy.spans.next().await;
        assert_eq!(
            attribute(&span, "lantern.api_key.name").as_deref(),
            Some("alice")
        );
    }
}

#[tokio::test]
async fn a_request_without_a_known_key_is_401_in_openais_words() {
    let echo = Echo::start().await;
    let keys = Keys::new(ALICE);
    let mut config = config(echo.address);
    config.api_keys = Some(keys.path());
    let mut proxy = TestProxy::with(config).await;
    for line in [
        "X-Other: sk-alice",
        "Authorization: Bearer sk-bob",
        "Authorization: Bearer sk-alic",
        "Authorization: Bearer",
        "Authorization: Basic sk-alice",
        "X-API-Key: sk-bob",
    ] {
        let response = proxy.send(&get("/v1/models", &[line])).await;
        assert_eq!(response.status, 401, "{line}");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        assert!(
            response.body.contains(r#""code":"invalid_api_key""#),
            "{}",
            response.body
        );
        let span = proxy.spans.next().await;
        assert_eq!(
            attribute(&span, "error.type").as_deref(),
            Some("invalid_api_key")
        );
        assert_eq!(attribute(&span, "lantern.api_key.name"), None);
        assert_eq!(span.status, Status::Unset, "the fault is the client's");
    }
    assert!(echo.is_idle());
}

#[tokio::test]
async fn a_load_balancer_needs_no_key_to_ask_for_health() {
    let echo = Echo::start().await;
    let keys = Keys::new(ALICE);
    let mut config = config(echo.address);
    config.api_keys = Some(keys.path());
    let proxy = TestProxy::with(config).await;
    assert_eq!(proxy.send(&get("/health", &[])).await.status, 200);
    assert_eq!(proxy.send(&get("/health/x", &[])).await.status, 401);
}

#[tokio::test]
async fn a_key_that_has_used_up_its_requests_is_429_and_told_when_to_come_again() {
    let echo = Echo::start().await;
    let keys = Keys::new(&format!(
        "{ALICE}requests_per_minute = 2\n[[key]]\nname = \"bob\"\nkey = \"sk-bob\"\n"
    ));
    let mut config = config(echo.address);
    config.api_keys = Some(keys.path());
    let mut proxy = TestProxy::with(config).await;
    let alice = get("/v1/models", &["Authorization: Bearer sk-alice"]);
    for _ in 0..2 {
        assert_eq!(proxy.send(&alice).await.status, 200);
        proxy.spans.next().await;
    }
    let refused = proxy.send(&alice).await;
    assert_eq!(refused.status, 429);
    let wait: u64 = refused
        .header("retry-after")
        .expect("a time")
        .parse()
        .expect("a number");
    assert!((1..=30).contains(&wait), "{wait}");
    assert!(
        refused.body.contains(r#""type":"rate_limit_error""#),
        "{}",
        refused.body
    );
    assert!(
        refused.body.contains(r#""code":"rate_limit_exceeded""#),
        "{}",
        refused.body
    );
    let span = proxy.spans.next().await;
    let name = attribute(&span, "lantern.api_key.name");
    assert_eq!(name.as_deref(), Some("alice"));
    let bob = get("/v1/models", &["Authorization: Bearer sk-bob"]);
    assert_eq!(
        proxy.send(&bob).await.status,
        200,
        "another key has its own"
    );
}

/// What the next completion of a key with 60 tokens a minute is answered, after one with this answer. Whether
/// their spans are `sampled` makes no difference.
async fn status_after(answer: &str) -> u16 {
    let [sampled, unsampled] = [
        status_of_second(answer, "01").await,
        status_of_second(answer, "00").await,
    ];
    assert_eq!(sampled, unsampled);
    sampled
}

async fn status_of_second(answer: &str, flags: &str) -> u16 {
    let upstream = RawUpstream::bind().await;
    let keys = Keys::new(&format!("{ALICE}tokens_per_minute = 60\n"));
    let mut config = config(upstream.address());
    config.api_keys = Some(keys.path());
    let proxy = TestProxy::with(config).await;
    let parent =
        format!("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    let lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Authorization: Bearer sk-alice",
        "Content-Length: 2",
        &parent,
    ];
    let mut client = proxy.connect().await;
    client.write(&request(&lines, "{}")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server.write(answer).await;
    assert_eq!(client.read_response().await.status, 200);

    // On the same connection, so that the first is over.
    client.write(&request(&lines, "{}")).await;
    let answering = async {
        server.read_message().await;
        server
            .write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        response = client.read_response() => response.status,
        () = answering => 0,
    }
}

fn document(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_key_that_has_used_up_its_tokens_is_429() {
    let usage = |output| {
        document(&format!(
            r#"{{"usage":{{"prompt_tokens":50,"completion_tokens":{output}}}}}"#
        ))
    };
    assert_eq!(status_after(&usage(5)).await, 200);
    assert_eq!(status_after(&usage(50)).await, 429);
}

#[tokio::test]
async fn chunks_count_as_tokens_where_a_stream_tells_no_usage() {
    let stream = |chunks| {
        let event = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        let body = event.repeat(chunks);
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    assert_eq!(status_after(&stream(5)).await, 200);
    assert_eq!(status_after(&stream(80)).await, 429);
}

#[tokio::test]
async fn keys_that_change_are_known_without_a_restart() {
    let echo = Echo::start().await;
    let keys = Keys::new(ALICE);
    let mut config = config(echo.address);
    config.api_keys = Some(keys.path());
    config.reload_interval = Duration::from_millis(5);
    let proxy = TestProxy::with(config).await;
    let bob = get("/v1/models", &["Authorization: Bearer sk-bob"]);
    assert_eq!(proxy.send(&bob).await.status, 401);
    keys.replace("[[key]]\nname = \"bob\"\nkey = \"sk-bob\"\n");
    let known = async { while proxy.send(&bob).await.status == 401 {} };
    within("the new key", known).await;
    let alice = get("/v1/models", &["Authorization: Bearer sk-alice"]);
    assert_eq!(proxy.send(&alice).await.status, 401);
}
