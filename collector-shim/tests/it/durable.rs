//! The queue on disk behind real sockets: what waits survives, in order and within its bound.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tonic::Code;

use crate::support::backend::{Backend, Reply, reserve};
use crate::support::client::{PROTOBUF, export, get, post};
use crate::support::spans::{count, marks, request};
use crate::support::{Running, durable, eventually, exporter};

const ROOM: usize = 64 * 1024 * 1024;

#[tokio::test]
async fn what_waited_is_delivered_after_a_restart_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = reserve();
    let address = socket.local_addr().expect("it is bound");
    let exporter = exporter(&format!("http://{address}"), "grpc", &[]);
    let config = durable(exporter, dir.path(), ROOM);
    let mut sent = Vec::new();
    for run in 0..3 {
        let shim = Running::start(config.clone()).await;
        assert_eq!(shim.handle.counts().recovered_spans, sent.len() as u64);
        for at in 0..10 {
            let mark = format!("{run}-{at}");
            let status = export(shim.grpc, &request(&mark, 1)).await;
            assert_eq!(status.code(), Code::Ok);
            sent.push(mark);
        }
        let (ended, counts) = shim.stop().await;
        ended.expect("what waits is safe, so nothing is lost by stopping");
        assert_eq!(counts.queued_spans, sent.len() as u64, "{counts:?}");
    }
    let backend = Backend::listen(socket, []);
    let shim = Running::start(config.clone()).await;
    eventually("all of it is delivered", || {
        shim.handle.counts().delivered_spans == 30
    })
    .await;
    let (_, counts) = shim.stop().await;
    assert_eq!((counts.recovered_spans, counts.queued_spans), (30, 0));
    let deliveries = backend.deliveries();
    let arrived: Vec<String> = deliveries
        .iter()
        .flat_map(|delivery| marks(&delivery.message))
        .collect();
    assert_eq!(arrived, sent);
    // An orderly stop leaves nothing to be sent twice.
    let shim = Running::start(config).await;
    let (_, counts) = shim.stop().await;
    assert_eq!(counts.recovered_spans, 0);
}

#[tokio::test]
async fn a_full_log_refuses_and_loses_nothing_that_it_took() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::held();
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let mut config = durable(exporter, dir.path(), 20_000);
    config.max_request_bytes = 10_000;
    let shim = Running::start(config).await;
    let message = request("bulk", 10);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..20 {
        let status = export(shim.grpc, &message).await;
        if status.code() == Code::Ok {
            taken += 10;
        } else {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().contains("the queue is full"), "{status}");
            refused += 10;
        }
        let answer = post(shim.http, PROTOBUF, "", message.clone()).await;
        if answer.status == 200 {
            taken += 10;
        } else {
            let hint = (answer.status.as_u16(), answer.header("retry-after"));
            assert_eq!(hint, (503, "1"));
            refused += 10;
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    let on_disk: u64 = std::fs::read_dir(dir.path())
        .expect("readable")
        .map(|entry| {
            entry
                .and_then(|entry| entry.metadata())
                .expect("there")
                .len()
        })
        .sum();
    assert!(on_disk <= 20_000, "{on_disk}");
    backend.release();
    let counts = shim.settled(taken).await;
    assert_eq!(
        (counts.delivered_spans, counts.refused_spans),
        (taken, refused)
    );
    let arrived: u64 = backend
        .deliveries()
        .iter()
        .map(|delivery| count(&delivery.message))
        .sum();
    assert_eq!(arrived, taken);
    // There is room again.
    assert_eq!(export(shim.grpc, &message).await.code(), Code::Ok);
}

#[tokio::test]
async fn what_the_backend_will_never_take_becomes_a_dead_letter() {
    let dir = tempfile::tempdir().expect("a directory");
    let status = tonic::Status::invalid_argument("spans from the future");
    let backend = Backend::start([Reply::Status(status)]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(durable(exporter, dir.path(), ROOM)).await;
    let (rejected, sound) = (request("rejected", 2), request("sound", 3));
    export(shim.grpc, &rejected).await;
    shim.settled(2).await;
    export(shim.grpc, &sound).await;
    let counts = shim.settled(5).await;
    assert_eq!((counts.rejected_spans, counts.dead_letters), (2, 1));
    let metrics = get(shim.viewer, "/metrics").await;
    let metrics = std::str::from_utf8(&metrics.body).expect("UTF-8");
    assert!(metrics.contains("\nlantern_dead_letters 1\n"), "{metrics}");
    let letters = std::fs::read_to_string(dir.path().join("dead-letters.jsonl")).expect("there");
    let letter: serde_json::Value = serde_json::from_str(letters.trim_end()).expect("one letter");
    let reason = letter["reason"].as_str().expect("text");
    assert!(reason.contains("spans from the future"), "{reason}");
    assert_eq!(
        (&letter["signal"], &letter["coding"]),
        (&"traces".into(), &"identity".into())
    );
    assert_eq!(
        (&letter["items"], &letter["backend"]),
        (&2.into(), &"default".into())
    );
    let bytes = STANDARD.decode(letter["request"].as_str().expect("text"));
    assert_eq!(bytes.expect("base64"), rejected);
}

#[tokio::test]
async fn flipped_bits_on_disk_cost_one_record_and_are_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = reserve();
    let address = socket.local_addr().expect("it is bound");
    let exporter = exporter(&format!("http://{address}"), "grpc", &[]);
    let config = durable(exporter, dir.path(), ROOM);
    let shim = Running::start(config.clone()).await;
    for mark in ["before", "damaged", "after"] {
        export(shim.grpc, &request(mark, 1)).await;
    }
    let _ = shim.stop().await;
    let segment = std::fs::read_dir(dir.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .find(|path| path.extension().is_some_and(|ending| ending == "segment"))
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("readable");
    let at = bytes.windows(7).position(|window| window == b"damaged");
    bytes[at.expect("it is there")] ^= 1;
    std::fs::write(&segment, bytes).expect("writable");
    let backend = Backend::listen(socket, []);
    let shim = Running::start(config).await;
    let counts = shim.settled(2).await;
    assert_eq!((counts.recovered_spans, counts.damaged_records), (2, 1));
    let arrived: Vec<String> = backend
        .deliveries()
        .iter()
        .flat_map(|delivery| marks(&delivery.message))
        .collect();
    assert_eq!(arrived, ["before", "after"]);
}
