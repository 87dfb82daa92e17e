//! HTTP/2 by hand: requests that are refused before the proxy's own code sees them.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use lantern_proxy::Balance;
use opentelemetry::trace::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Client, Echo, TestProxy, attribute, config, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// A frame of headers that is the whole of its request.
const WHOLE: u8 = 0x5;
/// GET, http, /, and for `:authority` a.
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let header = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [header, payload.to_vec()].concat()
}

/// A connection to the proxy on which these frames were sent. What it answers is read and dropped.
async fn connection(proxy: &TestProxy, frames: &[Vec<u8>]) -> TcpStream {
    let stream = TcpStream::connect(proxy.address).await;
    let mut stream = stream.expect("it listens");
    let settings = frame(SETTINGS, 0, 0, &[]);
    let bytes = [PREFACE, &settings, &frames.concat()].concat();
    stream.write_all(&bytes).await.expect("an open connection");
    stream
}

#[tokio::test]
async fn a_request_whose_stream_is_reset_for_its_form_leaves_a_span_and_the_next_is_served() {
    let echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    for malformed in [
        // A header of HTTP/1; a path with a line's end in it; two lengths that differ.
        [GET, b"\x00\x0aconnection\x05close"].concat(),
        b"\x82\x86\x04\x03/\r\n\x41\x01a".to_vec(),
        [
            GET,
            b"\x00\x0econtent-length\x011\x00\x0econtent-length\x012",
        ]
        .concat(),
    ] {
        let frames = [
            frame(HEADERS, WHOLE, 1, &malformed),
            frame(HEADERS, WHOLE, 3, GET),
        ];
        let _stream = connection(&proxy, &frames).await;
        let mut spans = [proxy.spans.next().await, proxy.spans.next().await];
        spans.sort_by_key(|span| span.name != "HTTP");
        let [refused, served] = spans;
        let is = |key, value| assert_eq!(attribute(&refused, key).as_deref(), value, "{key}");
        assert_eq!(refused.name, "HTTP", "{malformed:?}");
        assert_eq!(refused.status, Status::error(""));
        is("error.type", Some("invalid_request"));
        is("network.protocol.version", Some("2"));
        is("client.address", Some("127.0.0.1"));
        is("http.response.status_code", None);
        assert_eq!(served.name, "GET /");
        assert_eq!(served.status, Status::Unset);
        assert!(proxy.spans.is_empty());
    }
}

#[tokio::test]
async fn a_request_that_names_two_servers_is_answered_400_and_leaves_a_span() {
    let echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    let two = [GET, b"\x00\x04host\x01b"].concat();
    let _stream = connection(&proxy, &[frame(HEADERS, WHOLE, 1, &two)]).await;
    let refused = proxy.spans.next().await;
    assert_eq!(refused.name, "HTTP");
    for (key, value) in [
        ("error.type", "invalid_request"),
        ("http.response.status_code", "400"),
        ("network.protocol.version", "2"),
    ] {
        assert_eq!(attribute(&refused, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(refused.status, Status::Unset);
    assert!(proxy.spans.is_empty());
}

#[tokio::test]
async fn a_connection_that_breaks_the_protocol_leaves_a_span_and_one_that_ends_does_not() {
    let echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    drop(connection(&proxy, &[]).await);
    for breach in [
        // There is no stream 0 to send data on, and no name of a header is in upper case.
        frame(DATA, 0, 0, b"data"),
        frame(HEADERS, WHOLE, 1, &[GET, b"\x00\x01A\x01b"].concat()),
    ] {
        let mut broken = connection(&proxy, &[breach]).await;
        let span = proxy.spans.next().await;
        assert_eq!(span.name, "HTTP");
        let error = attribute(&span, "error.type");
        assert_eq!(error.as_deref(), Some("invalid_request"));
        let mut answer = Vec::new();
        // It may be reset.
        let _ = within("the connection's end", broken.read_to_end(&mut answer)).await;
    }
    assert!(proxy.stopped().await.is_empty());
}

/// A request whose head is a little larger than this.
fn with_head(bytes: usize) -> Request<Full<Bytes>> {
    let request = Request::get("http://a/").header("x-long", "x".repeat(bytes));
    request.body(Full::default()).expect("a request")
}

#[tokio::test]
async fn a_head_is_as_large_as_it_may_be_in_http2_too() {
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.limits.header_bytes = 100_000;
    let mut proxy = TestProxy::with(config).await;
    let stream = TcpStream::connect(proxy.address).await;
    let client = Client::http2(stream.expect("it listens")).await;
    assert_eq!(client.send(with_head(90_000)).await.status(), 200);
    proxy.spans.next().await;

    let refused = client.send(with_head(100_000)).await;
    assert_eq!(refused.status(), 431);
    let body = within("a body", refused.into_body().collect()).await;
    let body = body.expect("a whole body").to_bytes();
    assert!(body.starts_with(b"{\"error\""), "{body:?}");
    let span = proxy.spans.next().await;
    let error = attribute(&span, "error.type");
    assert_eq!(error.as_deref(), Some("request_header_too_large"));
}

#[tokio::test]
async fn a_head_that_the_library_refuses_leaves_a_span() {
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.limits.header_bytes = 200;
    let mut proxy = TestProxy::with(config).await;
    let stream = TcpStream::connect(proxy.address).await;
    let client = Client::http2(stream.expect("it listens")).await;
    // The second time the answer's head is another.
    for _ in 0..2 {
        assert_eq!(client.send(with_head(20_000)).await.status(), 431);
        let span = proxy.spans.next().await;
        assert_eq!(span.name, "HTTP");
        for (key, value) in [
            ("error.type", "request_header_too_large"),
            ("http.response.status_code", "431"),
            ("network.protocol.version", "2"),
        ] {
            assert_eq!(attribute(&span, key).as_deref(), Some(value), "{key}");
        }
    }
    assert!(proxy.spans.is_empty());
}

#[tokio::test]
async fn a_prompt_that_does_not_come_is_not_waited_for() {
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.upstreams.push(config.upstreams[0].clone());
    config.balance = Balance::Prefix;
    config.client.silence = Duration::from_millis(100);
    let mut proxy = TestProxy::with(config).await;
    let head = [
        &b"\x83\x86\x04\x0f/v1/completions\x41\x01a"[..],
        b"\x0f\x10\x10application/json",
    ];
    // Its end is still to come.
    let _stream = connection(&proxy, &[frame(HEADERS, 0x4, 1, &head.concat())]).await;
    let span = proxy.spans.next().await;
    for (key, value) in [
        ("error.type", "client_timeout"),
        ("http.response.status_code", "408"),
    ] {
        assert_eq!(attribute(&span, key).as_deref(), Some(value), "{key}");
    }
}
