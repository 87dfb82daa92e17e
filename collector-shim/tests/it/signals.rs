//! Traces, metrics, logs and profiles alike; and what a backend or a setting leaves out.

use lantern_shim::{Config, Counts, Signal};
use tonic::{Code, Status};

use crate::support::backend::{Backend, Reply, reserve};
use crate::support::client::{JSON, PROTOBUF, call, frame, get, post_to};
use crate::support::signals::{grpc_path, http_path, two_of};
use crate::support::{Running, backend, direct, durable_for, eventually, exporter};

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

/// Sends two items of `signal` by `protocol`; the gRPC code, or the HTTP status.
async fn send(shim: &Running, protocol: &str, signal: Signal) -> i32 {
    if protocol == "grpc" {
        let frame = frame(false, &two_of(signal));
        let (status, _) = call(shim.grpc, grpc_path(signal), "identity", frame).await;
        return status.code() as i32;
    }
    let url = format!("http://{}{}", shim.http, http_path(signal));
    let answer = post_to(&url, PROTOBUF, "", two_of(signal)).await;
    i32::from(answer.status.as_u16())
}

fn counts(shim: &Running, signal: Signal) -> Counts {
    shim.handle.counts_of(signal)
}

#[tokio::test]
async fn every_signal_crosses_every_way_with_the_same_bytes() {
    for way_out in PROTOCOLS {
        let backend = Backend::start([]).await;
        let exporter = exporter(&backend.url(way_out), way_out, &[]);
        let shim = Running::start(Config::forwarding(exporter)).await;
        let mut sent = 0;
        for signal in Signal::ALL {
            for (way_in, success) in [("grpc", 0), ("http", 200)] {
                assert_eq!(send(&shim, way_in, signal).await, success, "{signal}");
                sent += 1;
                let delivery = backend.received(sent).await.pop().expect("it came");
                assert_eq!(delivery.message, two_of(signal));
                let expect = match way_out {
                    "grpc" => grpc_path(signal),
                    _ => http_path(signal),
                };
                assert_eq!(delivery.path, expect);
            }
            eventually("it is counted", || {
                counts(&shim, signal).delivered_spans == 4
            })
            .await;
            assert_eq!(counts(&shim, signal).received_spans, 4);
        }
        let metrics = get(shim.viewer, "/metrics").await;
        let metrics = String::from_utf8(metrics.body.to_vec()).expect("text");
        for counted in [
            "otelcol_receiver_accepted_metric_points{receiver=\"otlp\",transport=\"grpc\"} 2\n",
            "otelcol_exporter_sent_log_records{exporter=\"otlp/default\"} 4\n",
        ] {
            assert!(metrics.contains(counted), "{metrics}");
        }
    }
}

#[tokio::test]
async fn json_of_metrics_and_logs_is_taken() {
    let backend = Backend::start([]).await;
    let shim = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(shim)).await;
    let metrics = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"metric","gauge":
        {"dataPoints":[{"asInt":"7"},{"asInt":7}]}}]}]}]}"#;
    let logs = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"said"}},
        {"body":{"stringValue":"said"}}]}]}]}"#;
    for (at, (signal, json)) in [(Signal::Metrics, metrics), (Signal::Logs, logs)]
        .into_iter()
        .enumerate()
    {
        let url = format!("http://{}{}", shim.http, http_path(signal));
        let answer = post_to(&url, JSON, "", json).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (200, &b"{}"[..])
        );
        let deliveries = backend.received(at + 1).await;
        assert_eq!(deliveries[at].message, two_of(signal));
    }
}

#[tokio::test]
async fn signals_that_are_switched_off_are_refused_and_so_is_what_the_store_has_no_place_for() {
    let backend = Backend::start([]).await;
    let forwarding = Config::forwarding(exporter(&backend.grpc_url(), "grpc", &[]));
    let logs_only = Config {
        signals: [Signal::Logs].into_iter().collect(),
        ..forwarding
    };
    for (config, taken) in [
        (logs_only, Signal::Logs),
        (Config::embedded(), Signal::Traces),
    ] {
        let shim = Running::start(config).await;
        for signal in Signal::ALL {
            let expect = if signal == taken { (0, 200) } else { (12, 404) };
            let answers = (
                send(&shim, "grpc", signal).await,
                send(&shim, "http", signal).await,
            );
            assert_eq!(answers, expect, "{signal}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_lacks_a_signal_is_not_sent_it_again_and_senders_are_told() {
    for (protocol, reply) in [
        ("grpc", Reply::Status(Status::unimplemented("no metrics"))),
        ("http/protobuf", Reply::Http(404, None)),
    ] {
        let backend = Backend::start([reply]).await;
        let settings = exporter(&backend.url(protocol), protocol, &[]);
        let shim = Running::start(Config::forwarding(settings)).await;
        assert_eq!(send(&shim, "grpc", Signal::Metrics).await, 0);
        eventually("it has been refused", || {
            counts(&shim, Signal::Metrics).rejected_spans == 2
        })
        .await;
        assert_eq!(send(&shim, "grpc", Signal::Metrics).await, 12);
        assert_eq!(send(&shim, "http", Signal::Metrics).await, 404);
        assert_eq!(send(&shim, "grpc", Signal::Traces).await, 0);
        shim.settled(2).await;
        assert_eq!(backend.deliveries().len(), 2, "{protocol}");
    }
}

#[tokio::test]
async fn one_refusal_does_not_end_a_signal_that_the_backend_has_taken_before() {
    let script = [Reply::Accept, Reply::Http(404, None)];
    let backend = Backend::start(script).await;
    let settings = exporter(&backend.http_url(), "http/protobuf", &[]);
    let shim = Running::start(Config::forwarding(settings)).await;
    for sent in 1..=3 {
        assert_eq!(send(&shim, "grpc", Signal::Traces).await, 0);
        shim.settled(2 * sent).await;
    }
    assert_eq!(shim.handle.counts().rejected_spans, 2);
}

#[tokio::test]
async fn a_signal_that_one_backend_lacks_still_reaches_the_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let lacks = Reply::Status(Status::unimplemented("traces alone"));
    let (jaeger, other) = (Backend::start([lacks]).await, Backend::start([]).await);
    let backends = [("jaeger", &jaeger), ("other", &other)]
        .map(|(name, one)| backend(name, exporter(&one.grpc_url(), "grpc", &[])))
        .to_vec();
    let shim = Running::start(durable_for(backends, dir.path(), 64 * 1024 * 1024)).await;
    for sent in 1..=3 {
        assert_eq!(send(&shim, "grpc", Signal::Metrics).await, 0);
        eventually("both have been asked", || {
            let counts = counts(&shim, Signal::Metrics);
            counts.delivered_spans == 2 * sent && counts.queued_spans == 0
        })
        .await;
    }
    let counted = counts(&shim, Signal::Metrics);
    assert_eq!((counted.rejected_spans, counted.unsent_spans), (2, 4));
    assert_eq!(
        (jaeger.deliveries().len(), other.deliveries().len()),
        (1, 3)
    );
    assert_eq!(counted.dead_letters, 1);
}

#[tokio::test]
async fn what_no_backend_turns_out_to_have_becomes_dead_letters() {
    let dir = tempfile::tempdir().expect("a directory");
    let lacks = || Reply::Status(Status::unimplemented("traces alone"));
    let socket = reserve();
    let away = format!("http://{}", socket.local_addr().expect("it is bound"));
    let first = Backend::start([lacks()]).await;
    let backends = vec![
        backend("first", exporter(&first.grpc_url(), "grpc", &[])),
        backend("second", exporter(&away, "grpc", &[])),
    ];
    let shim = Running::start(durable_for(backends, dir.path(), 64 * 1024 * 1024)).await;
    assert_eq!(send(&shim, "grpc", Signal::Metrics).await, 0);
    eventually("the first has refused it", || {
        counts(&shim, Signal::Metrics).rejected_spans == 2
    })
    .await;
    for _ in 0..2 {
        assert_eq!(send(&shim, "grpc", Signal::Metrics).await, 0);
    }
    eventually("it is spared the others", || {
        counts(&shim, Signal::Metrics).unsent_spans == 4
    })
    .await;
    let _second = Backend::listen(socket, [lacks()]);
    eventually("the second has refused them", || {
        counts(&shim, Signal::Metrics).queued_spans == 0
    })
    .await;
    // One of the first's, and all of the second's.
    assert_eq!(counts(&shim, Signal::Metrics).dead_letters, 4);
}

#[tokio::test]
async fn a_waiting_sender_is_not_refused_for_a_backend_that_lacks_what_another_takes() {
    let lacks = Reply::Status(Status::unimplemented("traces alone"));
    let (jaeger, other) = (Backend::start([lacks]).await, Backend::start([]).await);
    let backends = [("jaeger", &jaeger), ("other", &other)]
        .map(|(name, one)| backend(name, exporter(&one.grpc_url(), "grpc", &[])))
        .to_vec();
    let shim = Running::start(direct(backends, 64 * 1024 * 1024)).await;
    for _ in 0..2 {
        assert_eq!(send(&shim, "grpc", Signal::Metrics).await, 0);
    }
    assert_eq!(
        (jaeger.deliveries().len(), other.deliveries().len()),
        (1, 2)
    );
}

#[tokio::test]
async fn profiles_are_neither_joined_nor_cut() {
    let backend = Backend::held();
    let settings = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(settings)).await;
    for _ in 0..6 {
        assert_eq!(send(&shim, "grpc", Signal::Profiles).await, 0);
    }
    let dictionary = vec![0; 5 * 1024 * 1024];
    let mut large = two_of(Signal::Profiles).to_vec();
    large.push(2 << 3 | 2);
    prost::encoding::encode_varint(dictionary.len() as u64, &mut large);
    large.extend(dictionary);
    let path = grpc_path(Signal::Profiles);
    let (status, _) = call(shim.grpc, path, "identity", frame(false, &large)).await;
    assert_eq!(status.code(), Code::Ok);
    backend.release();
    let deliveries = backend.received(7).await;
    let largest = deliveries.iter().map(|one| one.message.len()).max();
    assert_eq!(largest, Some(large.len()));
}
