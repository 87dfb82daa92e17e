//! Several upstreams: who gets a request, and who does not.

use std::time::Duration;

use lantern_proxy::Balance;

use crate::support::{Echo, Peer, RawUpstream, TestProxy, config, nobody, request, within};

const GET: &[&str] = &["GET /v1/models HTTP/1.1", "Host: a"];
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A completion request with this prompt.
fn completion(prompt: &str) -> String {
    let body = format!(r#"{{"model":"m","prompt":"{prompt}"}}"#);
    let length = format!("Content-Length: {}", body.len());
    let lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        &length,
    ];
    request(&lines, &body)
}

/// A request that is in flight at the upstream until its two ends are dropped.
async fn hold(proxy: &TestProxy, upstream: &RawUpstream) -> (Peer, Peer) {
    let mut client = proxy.connect().await;
    client.write(&request(GET, "")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    (client, server)
}

#[tokio::test]
async fn a_busy_upstream_gets_nothing_while_another_is_idle() {
    let (busy, mut idle) = (RawUpstream::bind().await, Echo::start().await);
    let mut config = config(busy.address());
    config.upstreams.push(idle.address.into());
    let proxy = TestProxy::with(config).await;
    let _held = hold(&proxy, &busy).await;
    for _ in 0..4 {
        assert_eq!(proxy.send(&request(GET, "")).await.status, 200);
        idle.received().await;
    }
}

#[tokio::test]
async fn prompts_that_start_alike_go_to_one_upstream_with_their_bodies_whole() {
    let (mut first, mut second) = (Echo::start().await, Echo::start().await);
    let mut config = config(first.address);
    config.upstreams.push(second.address.into());
    config.balance = Balance::Prefix;
    let proxy = TestProxy::with(config).await;
    let mut used = [0; 2];
    for start in 0..16 {
        let start = format!("{start} ").repeat(300);
        for end in ["one", "two", "three"] {
            let sent = completion(&(start.clone() + end));
            assert_eq!(proxy.send(&sent).await.status, 200);
        }
        let (upstream, index) = if first.is_idle() {
            (&mut second, 1)
        } else {
            (&mut first, 0)
        };
        for end in ["one", "two", "three"] {
            let body = upstream.received().await.into_body();
            assert!(body.ends_with(format!("{end}\"}}").as_bytes()), "{body:?}");
        }
        used[index] += 1;
    }
    assert!(used.iter().all(|&count| count > 0), "{used:?}");
}

#[tokio::test]
async fn a_body_in_pieces_is_whole_at_the_upstream_that_its_first_piece_chose() {
    let (mut first, mut second) = (Echo::start().await, Echo::start().await);
    let mut config = config(first.address);
    config.upstreams.push(second.address.into());
    config.balance = Balance::Prefix;
    let proxy = TestProxy::with(config).await;
    let mut client = proxy.connect().await;
    let lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
    ];
    client.write(&request(&lines, "")).await;
    let long = "x".repeat(200_000);
    for piece in [r#"{"prompt":"#, "\"", &long, "\"}", ""] {
        client.write_chunk(piece).await;
    }
    assert_eq!(client.read_response().await.status, 200);
    let received = if first.is_idle() {
        second.received().await
    } else {
        first.received().await
    };
    assert_eq!(
        received.body(),
        format!(r#"{{"prompt":"{long}"}}"#).as_bytes()
    );
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_not_waited_for() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.upstreams.push(upstream.address().into());
    config.balance = Balance::Prefix;
    let proxy = TestProxy::with(config).await;
    let mut client = proxy.connect().await;
    let lines = [
        "POST /v1/completions HTTP/1.1",
        "Host: a",
        "Content-Type: application/json",
        "Expect: 100-continue",
        "Content-Length: 2",
    ];
    client.write(&request(&lines, "")).await;
    let mut server = upstream.accept().await;
    server.read_head().await;
    server.write("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 100"));
    client.write("{}").await;
    assert_eq!(server.read_bytes(2).await, "{}");
    server.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");
}

/// Answers the next health check.
async fn answer_check(upstream: &RawUpstream, status: &str) {
    let mut check = upstream.accept().await;
    let (head, _) = check.read_message().await;
    assert!(head.starts_with("GET /health HTTP/1.1\r\n"), "{head}");
    check
        .write(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))
        .await;
}

#[tokio::test]
async fn an_upstream_whose_checks_fail_is_out_until_they_succeed() {
    let (sick, mut well) = (RawUpstream::bind().await, Echo::start().await);
    let mut config = config(sick.address());
    config.upstreams.push(well.address.into());
    config.health.path = Some("/health".parse().expect("a path"));
    config.health.interval = Duration::from_millis(100);
    config.health.unhealthy_after = 2;
    let proxy = TestProxy::with(config).await;
    answer_check(&sick, "503 Service Unavailable").await;
    answer_check(&sick, "503 Service Unavailable").await;
    // The third check is sent when the second has been judged.
    let mut third = sick.accept().await;
    third.read_message().await;
    for _ in 0..3 {
        assert_eq!(proxy.send(&request(GET, "")).await.body, "answered");
    }
    third.write(OK).await;
    // From now on one of two requests goes to the other upstream, which tells it from a check.
    let recovered = async {
        loop {
            let mut client = proxy.connect().await;
            client.write(&request(GET, "")).await;
            let serving = async {
                loop {
                    let mut server = sick.accept().await;
                    let (head, _) = server.read_message().await;
                    server.write(OK).await;
                    if head.starts_with("GET /v1/models ") {
                        return;
                    }
                }
            };
            tokio::select! {
                () = serving => return,
                response = client.read_response() => assert_eq!(response.body, "answered"),
            }
        }
    };
    within("a request at the upstream that is in again", recovered).await;
    well.received().await;
}

#[tokio::test]
async fn an_upstream_that_nobody_can_connect_to_is_tried_no_more_for_a_while() {
    let (gone, mut well) = (nobody().await, Echo::start().await);
    let mut config = config(gone);
    config.upstreams.push(well.address.into());
    config.health.eject_after = 1;
    config.health.eject_for = Duration::from_secs(3600);
    let proxy = TestProxy::with(config).await;
    assert_eq!(proxy.send(&request(GET, "")).await.status, 200);
    well.received().await;
    // It is back, and is not asked.
    let _back = RawUpstream::bind_to(gone).await;
    for _ in 0..4 {
        assert_eq!(proxy.send(&request(GET, "")).await.status, 200);
        well.received().await;
    }
}

#[tokio::test]
async fn with_every_upstream_out_requests_are_tried_all_the_same() {
    let upstream = nobody().await;
    let mut config = config(upstream);
    config.health.eject_after = 1;
    config.health.eject_for = Duration::from_secs(3600);
    let proxy = TestProxy::with(config).await;
    assert_eq!(proxy.send(&request(GET, "")).await.status, 502);
    let back = RawUpstream::bind_to(upstream).await;
    let mut client = proxy.connect().await;
    client.write(&request(GET, "")).await;
    let mut server = back.accept().await;
    server.read_message().await;
    server.write(OK).await;
    assert_eq!(client.read_response().await.body, "ok");
}
