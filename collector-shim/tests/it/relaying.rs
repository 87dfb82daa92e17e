//! Compressed requests leave as they came, where the backend takes that.

use bytes::Bytes;
use lantern_shim::Config;
use tonic::{Code, Status};

use crate::support::backend::{Backend, Delivery, Reply};
use crate::support::client::{EXPORT, PROTOBUF, call, frame, gzip, post, zstd};
use crate::support::spans::{count, full_trace, request};
use crate::support::{Running, durable, exporter};

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

async fn shim(backend: &Backend, protocol: &str, compression: &str) -> Running {
    let variable = [("OTEL_EXPORTER_OTLP_COMPRESSION", compression)];
    let exporter = exporter(&backend.url(protocol), protocol, &variable);
    Running::start(Config::forwarding(exporter)).await
}

/// Sends what is compressed by `coding`.
async fn send(shim: &Running, way_in: &str, coding: &str, bytes: Bytes) {
    if way_in == "grpc" {
        let (status, _) = call(shim.grpc, EXPORT, coding, frame(true, &bytes)).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    } else {
        let answer = post(shim.http, PROTOBUF, coding, bytes).await;
        assert_eq!(answer.status, 200);
    }
}

fn compress(coding: &str, plain: &[u8]) -> Bytes {
    match coding {
        "gzip" => gzip(plain),
        _ => zstd(plain),
    }
}

#[tokio::test]
async fn compressed_requests_cross_every_way_untouched() {
    for way_out in PROTOCOLS {
        let backend = Backend::start([]).await;
        let shim = shim(&backend, way_out, "").await;
        let mut sent = 0;
        for coding in ["gzip", "zstd"] {
            for way_in in ["grpc", "http"] {
                let bytes = compress(coding, &full_trace());
                send(&shim, way_in, coding, bytes.clone()).await;
                sent += 1;
                let delivery = backend.received(sent).await.pop().expect("it came");
                assert_eq!(delivery.raw, bytes, "{way_in} -> {way_out}");
                assert_eq!(delivery.coding, coding);
            }
        }
        assert_eq!(shim.settled(12).await.delivered_spans, 12);
    }
}

#[tokio::test]
async fn the_compression_that_is_asked_for_decides() {
    for (compression, coding, expect) in [
        ("gzip", "identity", "gzip"),
        ("gzip", "zstd", "zstd"),
        ("none", "gzip", ""),
        ("none", "zstd", ""),
        ("none", "identity", ""),
        ("", "identity", ""),
    ] {
        let backend = Backend::start([]).await;
        let shim = shim(&backend, "grpc", compression).await;
        if coding == "identity" {
            let answer = post(shim.http, PROTOBUF, "", full_trace()).await;
            assert_eq!(answer.status, 200);
        } else {
            send(&shim, "http", coding, compress(coding, &full_trace())).await;
        }
        let delivery = backend.received(1).await.remove(0);
        assert_eq!(delivery.coding, expect, "{compression:?} {coding}");
        assert_eq!(delivery.message, full_trace());
    }
}

#[tokio::test]
async fn a_backend_that_does_not_decompress_gets_it_plain_from_then_on() {
    for (protocol, reply) in [
        ("grpc", Reply::Status(Status::unimplemented("zstd"))),
        ("http/protobuf", Reply::Http(415, None)),
        // The Collector's answers to a coding that it does not know, and to what it takes for protobuf.
        ("http/protobuf", Reply::Http(400, None)),
        ("grpc", Reply::Status(Status::internal("no protobuf"))),
    ] {
        let backend = Backend::start([reply]).await;
        let shim = shim(&backend, protocol, "").await;
        for spans in [3, 6] {
            send(&shim, "http", "zstd", zstd(&full_trace())).await;
            let counts = shim.settled(spans).await;
            assert_eq!((counts.delivered_spans, counts.rejected_spans), (spans, 0));
        }
        send(&shim, "http", "gzip", gzip(&full_trace())).await;
        shim.settled(9).await;
        let codings: Vec<_> = backend
            .deliveries()
            .into_iter()
            .map(|delivery| delivery.coding)
            .collect();
        assert_eq!(codings, ["zstd", "", "", "gzip"], "{protocol}");
    }
}

#[tokio::test]
async fn bad_data_is_no_reason_to_doubt_a_coding_that_was_taken() {
    let script = [Reply::Accept, Reply::Http(400, None)];
    let backend = Backend::start(script).await;
    let shim = shim(&backend, "http/protobuf", "").await;
    for spans in [3, 6, 9] {
        send(&shim, "http", "zstd", zstd(&full_trace())).await;
        shim.settled(spans).await;
    }
    assert_eq!(shim.handle.counts().rejected_spans, 3);
    let deliveries = backend.deliveries();
    let codings: Vec<_> = deliveries.iter().map(|one| one.coding.as_str()).collect();
    assert_eq!(codings, ["zstd"; 3]);
}

#[tokio::test]
async fn what_some_readers_would_read_in_part_is_passed_on_plain() {
    let backend = Backend::start([]).await;
    let shim = shim(&backend, "grpc", "").await;
    let members = [gzip(&request("first", 2)), gzip(&request("second", 3))].concat();
    send(&shim, "http", "gzip", members.into()).await;
    shim.settled(5).await;
    let deliveries = backend.deliveries();
    assert_eq!((spans(&deliveries), &*deliveries[0].coding), (5, ""));
}

/// What the requests of the deliveries hold together, as a reader of the first member sees it.
fn spans(deliveries: &[Delivery]) -> u64 {
    deliveries.iter().map(|one| count(&one.message)).sum()
}

#[tokio::test]
async fn compressed_requests_that_wait_are_never_put_in_a_row() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::held();
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(durable(exporter, dir.path(), 64 * 1024 * 1024)).await;
    for mark in 0..10 {
        send(&shim, "http", "gzip", gzip(&request(&mark.to_string(), 2))).await;
    }
    backend.release();
    shim.settled(20).await;
    let deliveries = backend.deliveries();
    assert_eq!((deliveries.len(), spans(&deliveries)), (10, 20));
}

#[tokio::test]
async fn what_was_compressed_survives_a_restart_as_it_came() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = crate::support::backend::reserve();
    let address = socket.local_addr().expect("it is bound");
    let exporter = exporter(&format!("http://{address}"), "grpc", &[]);
    let config = durable(exporter, dir.path(), 64 * 1024 * 1024);
    let before = Running::start(config.clone()).await;
    let bytes = zstd(&full_trace());
    send(&before, "grpc", "zstd", bytes.clone()).await;
    let _ = before.stop().await;
    let backend = Backend::listen(socket, []);
    let _after = Running::start(config).await;
    let delivery = backend.received(1).await.remove(0);
    assert_eq!((delivery.raw, delivery.coding.as_str()), (bytes, "zstd"));
}

#[tokio::test]
async fn a_request_that_is_too_large_once_decompressed_leaves_in_parts() {
    const MIB: usize = 1024 * 1024;
    let backend = Backend::start([]).await;
    let shim = shim(&backend, "grpc", "").await;
    let large: Vec<u8> = (0..6).flat_map(|_| request(&"x".repeat(MIB), 1)).collect();
    send(&shim, "http", "gzip", gzip(&large)).await;
    shim.settled(6).await;
    let deliveries = backend.deliveries();
    assert!(deliveries.len() > 1);
    assert!(deliveries.iter().all(|one| one.message.len() < 4 * MIB));
    assert_eq!(spans(&deliveries), 6);
}

#[tokio::test]
async fn what_is_inside_is_checked_all_the_same() {
    let backend = Backend::start([]).await;
    let shim = shim(&backend, "grpc", "").await;
    for coding in ["gzip", "zstd"] {
        let broken = compress(coding, b"\x0a\x05x");
        assert_eq!(post(shim.http, PROTOBUF, coding, broken).await.status, 400);
    }
    assert_eq!(shim.handle.counts().received_spans, 0);
}
