//! What becomes of spans when the backend is down, slow, unwilling or gone.

use std::time::Duration;

use lantern_shim::Config;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::support::backend::{Backend, Reply, reserve};
use crate::support::client::{PROTOBUF, export, post};
use crate::support::spans::{count, request};
use crate::support::{Running, eventually, exporter, forwarding};

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

fn url(address: std::net::SocketAddr, protocol: &str) -> String {
    let path = if protocol == "grpc" { "" } else { "/v1/traces" };
    format!("http://{address}{path}")
}

#[tokio::test]
async fn spans_sent_before_the_backend_is_up_arrive_once_it_is() {
    for protocol in PROTOCOLS {
        let socket = reserve();
        let address = socket.local_addr().expect("it is bound");
        let exporter = exporter(&url(address, protocol), protocol, &[]);
        let shim = Running::start(Config::forwarding(exporter)).await;
        for mark in 0..20 {
            let status = export(shim.grpc, &request(&mark.to_string(), 3)).await;
            assert_eq!(status.code(), Code::Ok);
        }
        eventually("an attempt has failed", || shim.handle.counts().retries > 0).await;
        assert_eq!(shim.handle.counts().queued_spans, 60);
        let backend = Backend::listen(socket, []);
        let counts = shim.settled(60).await;
        assert_eq!(
            (counts.received_spans, counts.delivered_spans),
            (60, 60),
            "{counts:?}"
        );
        let arrived: u64 = backend
            .deliveries()
            .iter()
            .map(|delivery| count(&delivery.message))
            .sum();
        assert_eq!(arrived, 60, "{protocol}");
    }
}

/// Sends one request to a backend that answers `reply` first; how often it was sent.
async fn attempts(protocol: &str, reply: Reply) -> usize {
    let backend = Backend::start([reply]).await;
    let exporter = exporter(&url(backend.address, protocol), protocol, &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    export(shim.grpc, &request("one", 2)).await;
    let counts = shim.settled(2).await;
    let attempts = backend.deliveries().len();
    let expect = if attempts == 2 { (2, 0) } else { (0, 2) };
    assert_eq!(
        (counts.delivered_spans, counts.rejected_spans),
        expect,
        "{counts:?}"
    );
    attempts
}

#[tokio::test]
async fn grpc_answers_are_retried_or_final_as_otlp_says() {
    for code in 1..=16 {
        let code = Code::from(code);
        let retried = matches!(
            code,
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss
        );
        let attempts = attempts("grpc", Reply::Status(Status::new(code, "no"))).await;
        assert_eq!(attempts, if retried { 2 } else { 1 }, "{code:?}");
    }
}

#[tokio::test]
async fn resource_exhausted_is_retried_only_with_retry_info() {
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
    let status = Status::with_error_details(Code::ResourceExhausted, "later", details);
    assert_eq!(attempts("grpc", Reply::Status(status)).await, 2);
}

#[tokio::test]
async fn http_answers_are_retried_or_final_as_otlp_says() {
    for status in [
        301, 400, 401, 403, 404, 408, 413, 415, 429, 500, 501, 502, 503, 504, 505,
    ] {
        let expect = if matches!(status, 429 | 502 | 503 | 504) {
            2
        } else {
            1
        };
        let attempts = attempts("http/protobuf", Reply::Http(status, None)).await;
        assert_eq!(attempts, expect, "{status}");
    }
}

#[tokio::test]
async fn the_wait_that_a_backend_asks_for_is_kept() {
    let asked = Duration::from_secs(1);
    let details = ErrorDetails::with_retry_info(Some(asked));
    let busy = Status::with_error_details(Code::Unavailable, "busy", details);
    for (protocol, reply) in [
        ("grpc", Reply::Status(busy)),
        ("http/protobuf", Reply::Http(503, Some("1"))),
    ] {
        let start = std::time::Instant::now();
        assert_eq!(attempts(protocol, reply).await, 2);
        let waited = start.elapsed();
        assert!(waited >= asked, "{protocol}: {waited:?}");
    }
}

#[tokio::test]
async fn a_partial_success_is_never_sent_again() {
    for protocol in PROTOCOLS {
        let backend = Backend::start([Reply::Partial(2)]).await;
        let exporter = exporter(&url(backend.address, protocol), protocol, &[]);
        let shim = Running::start(Config::forwarding(exporter)).await;
        export(shim.grpc, &request("one", 5)).await;
        let counts = shim.settled(5).await;
        assert_eq!(
            (counts.delivered_spans, counts.rejected_spans),
            (3, 2),
            "{protocol}"
        );
        assert_eq!(backend.deliveries().len(), 1);
    }
}

/// Batches that the shim has on their way at once.
const SENDERS: usize = 4;

/// Gives every sender a request that a held backend does not answer, so that what follows waits
/// together.
async fn occupy_senders(shim: &Running, backend: &Backend) {
    for sent in 1..=SENDERS {
        export(shim.grpc, &request("first", 1)).await;
        backend.received(sent).await;
    }
}

#[tokio::test]
async fn requests_that_wait_leave_merged() {
    let backend = Backend::held();
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    occupy_senders(&shim, &backend).await;
    let waiting: Vec<_> = (0..10).map(|mark| request(&mark.to_string(), 2)).collect();
    for request in &waiting {
        export(shim.grpc, request).await;
    }
    backend.release();
    shim.settled(SENDERS as u64 + 20).await;
    let deliveries = backend.deliveries();
    assert_eq!(deliveries.len(), SENDERS + 1);
    assert_eq!(deliveries[SENDERS].message, waiting.concat());
}

#[tokio::test]
async fn one_bad_request_does_not_take_the_others_of_its_batch_with_it() {
    let backend = Backend::held_refusing("spoilt");
    let exporter = exporter(&backend.http_url(), "http/protobuf", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    occupy_senders(&shim, &backend).await;
    for mark in ["sound", "spoilt", "sound too"] {
        export(shim.grpc, &request(mark, 1)).await;
    }
    backend.release();
    let counts = shim.settled(SENDERS as u64 + 3).await;
    assert_eq!(counts.rejected_spans, 1, "{counts:?}");
    assert_eq!(backend.deliveries().len(), SENDERS + 4);
}

#[tokio::test]
async fn a_request_waits_for_room_as_long_as_its_sender_does() {
    let backend = Backend::held();
    let message = request("bulk", 10);
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let config = Config {
        queue_wait: Duration::from_secs(3_600),
        ..forwarding(exporter, message.len(), message.len())
    };
    let shim = Running::start(config).await;
    assert_eq!(export(shim.grpc, &message).await.code(), Code::Ok);
    let gone = export(shim.grpc, &message);
    let gone = tokio::time::timeout(Duration::from_millis(300), gone).await;
    assert!(gone.is_err(), "{gone:?}");
    let address = shim.grpc;
    let waiting = tokio::spawn(async move { export(address, &message).await });
    backend.release();
    assert_eq!(waiting.await.expect("no panic").code(), Code::Ok);
    let counts = shim.settled(20).await;
    assert_eq!((counts.received_spans, counts.refused_spans), (20, 0));
    assert_eq!(backend.deliveries().len(), 2);
}

#[tokio::test]
async fn a_full_queue_refuses_and_loses_nothing_that_it_took() {
    let backend = Backend::held();
    let message = request("bulk", 10);
    let room = 8 * message.len();
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(forwarding(exporter, room, room)).await;
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..6 {
        let status = export(shim.grpc, &message).await;
        if status.code() == Code::Ok {
            taken += 10;
        } else {
            assert_eq!(status.code(), Code::Unavailable);
            let retry_info = status.get_details_retry_info().expect("RetryInfo");
            assert_eq!(retry_info.retry_delay, Some(Duration::from_secs(1)));
            refused += 10;
        }
        let answer = post(shim.http, PROTOBUF, "", message.clone()).await;
        if answer.status == 200 {
            taken += 10;
        } else {
            assert_eq!(
                (answer.status.as_u16(), answer.header("retry-after")),
                (503, "1")
            );
            refused += 10;
        }
    }
    assert_eq!((taken, refused), (80, 40));
    backend.release();
    let counts = shim.settled(taken).await;
    assert_eq!(
        (counts.received_spans, counts.delivered_spans),
        (80, 80),
        "{counts:?}"
    );
    assert_eq!(counts.refused_spans, 40);
    let arrived: u64 = backend
        .deliveries()
        .iter()
        .map(|delivery| count(&delivery.message))
        .sum();
    assert_eq!(arrived, 80);
}

#[tokio::test]
async fn a_request_larger_than_a_batch_leaves_in_parts_under_four_mebibytes() {
    const MIB: usize = 1024 * 1024;
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    let large: Vec<u8> = (0..6).flat_map(|_| request(&"x".repeat(MIB), 1)).collect();
    assert_eq!(export(shim.grpc, &large).await.code(), Code::Ok);
    shim.settled(6).await;
    let deliveries = backend.deliveries();
    assert!(deliveries.len() > 1);
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery.message.len() < 4 * MIB)
    );
    assert_eq!(
        deliveries
            .iter()
            .map(|delivery| delivery.message.len())
            .sum::<usize>(),
        large.len()
    );
}

#[tokio::test]
async fn one_resource_larger_than_a_batch_is_cut_inside_and_all_its_spans_arrive() {
    const MIB: usize = 1024 * 1024;
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    let batch = request(&"x".repeat(MIB / 8), 50);
    assert_eq!(export(shim.grpc, &batch).await.code(), Code::Ok);
    assert_eq!(shim.settled(50).await.delivered_spans, 50);
    let deliveries = backend.deliveries();
    assert!(
        deliveries
            .iter()
            .all(|delivery| delivery.message.len() < 4 * MIB)
    );
    let arrived: u64 = deliveries.iter().map(|one| count(&one.message)).sum();
    assert_eq!(arrived, 50);
}

#[tokio::test]
async fn a_span_that_no_backend_would_take_is_refused_and_not_acknowledged() {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    let message = request(&"x".repeat(5 * 1024 * 1024), 1);
    let status = export(shim.grpc, &message).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.details().is_empty(), "no RetryInfo: {status:?}");
    let answer = post(shim.http, PROTOBUF, "", message).await;
    assert_eq!(answer.status, 413);
    assert_eq!(shim.handle.counts().received_spans, 0);
}

#[tokio::test]
async fn shutdown_sends_what_waits() {
    let backend = Backend::held();
    let exporter = exporter(&backend.http_url(), "http/protobuf", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    for mark in 0..30 {
        export(shim.grpc, &request(&mark.to_string(), 1)).await;
    }
    let stopping = tokio::spawn(shim.stop());
    backend.release();
    let (ended, counts) = stopping.await.expect("no panic");
    ended.expect("nothing is left");
    assert_eq!(
        (counts.delivered_spans, counts.queued_spans),
        (30, 0),
        "{counts:?}"
    );
}

#[tokio::test]
async fn shutdown_gives_up_in_time_and_tells_what_is_left() {
    let address = reserve().local_addr().expect("it is bound");
    let exporter = exporter(&url(address, "grpc"), "grpc", &[]);
    let mut config = Config::forwarding(exporter);
    config.drain_timeout = Duration::from_millis(300);
    let shim = Running::start(config).await;
    export(shim.grpc, &request("left", 7)).await;
    let (ended, counts) = shim.stop().await;
    let error = ended.expect_err("acknowledged spans are lost");
    assert!(
        error.to_string().contains("7 acknowledged spans"),
        "{error}"
    );
    assert_eq!(
        (counts.received_spans, counts.queued_spans),
        (7, 7),
        "{counts:?}"
    );
}
