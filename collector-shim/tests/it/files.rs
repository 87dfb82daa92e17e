//! OTLP/JSON as a way out: lines in files, and bodies of requests.

use std::path::Path;

use lantern_shim::{Backend as Out, Config, FileSettings, Signal, Signals, Way};
use lantern_telemetry::ExporterSettings;

use crate::support::backend::{Backend, Reply};
use crate::support::client::{JSON, PROTOBUF, export, gzip, post, post_to};
use crate::support::signals::{http_path, two_of};
use crate::support::spans::{count, full_trace, marks, request};
use crate::support::{Running, durable_for, eventually, exporter};

fn files(dir: &Path) -> Out {
    Out {
        name: "copy".to_owned(),
        way: Way::Files(FileSettings {
            dir: dir.to_owned(),
            max_bytes: 1 << 30,
            max_full_files: 1,
        }),
        signals: Signals::ALL,
    }
}

fn lines(dir: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// What a shim makes of `json`, as one that forwards by gRPC.
async fn as_protobuf(json: &str) -> bytes::Bytes {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    let answer = post(shim.http, JSON, "", json.to_owned()).await;
    assert_eq!(answer.status, 200);
    backend.received(1).await[0].message.clone()
}

#[tokio::test]
async fn each_signal_has_a_file_of_lines_that_say_what_came() {
    let (queue, dir) = (
        tempfile::tempdir().expect("one"),
        tempfile::tempdir().expect("another"),
    );
    let config = durable_for(vec![files(dir.path())], queue.path(), 64 * 1024 * 1024);
    let shim = Running::start(config.clone()).await;
    assert_eq!(
        export(shim.grpc, &full_trace()).await.code(),
        tonic::Code::Ok
    );
    shim.settled(3).await;
    let zipped = post(shim.http, PROTOBUF, "gzip", gzip(&request("later", 2))).await;
    assert_eq!(zipped.status, 200);
    shim.settled(5).await;
    for (signal, expect) in [
        (Signal::Metrics, 200),
        (Signal::Logs, 200),
        // There is no JSON for what is in them.
        (Signal::Profiles, 404),
    ] {
        let url = format!("http://{}{}", shim.http, http_path(signal));
        let answer = post_to(&url, PROTOBUF, "", two_of(signal)).await;
        assert_eq!(answer.status, expect, "{signal}");
    }
    eventually("the other signals have their files", || {
        ["metrics.jsonl", "logs.jsonl"]
            .iter()
            .all(|name| lines(dir.path(), name).len() == 1)
    })
    .await;
    shim.stop().await.0.expect("nothing waits");

    let traces = lines(dir.path(), "traces.jsonl");
    let [first, second] = &traces[..] else {
        panic!("two lines, not {}", traces.len());
    };
    assert_eq!(as_protobuf(first).await, full_trace());
    assert_eq!(marks(&as_protobuf(second).await), ["later", "later"]);

    // What is in the file is not written again after a restart.
    let shim = Running::start(config).await;
    assert_eq!(shim.handle.counts().recovered_spans, 0);
    export(shim.grpc, &request("last", 1)).await;
    shim.settled(1).await;
    assert_eq!(lines(dir.path(), "traces.jsonl").len(), 3);
}

fn by_json(backend: &Backend, more: &[(&str, &str)]) -> ExporterSettings {
    exporter(&backend.http_url(), "http/json", more)
}

#[tokio::test]
async fn a_backend_of_http_json_gets_the_same_request_in_json() {
    for (compressed, setting, expect) in [
        (false, None, ""),
        (true, None, "gzip"),
        (true, Some("none"), ""),
        (false, Some("gzip"), "gzip"),
    ] {
        let backend = Backend::start([]).await;
        let compression = setting.map(|value| ("OTEL_EXPORTER_OTLP_COMPRESSION", value));
        let exporter = by_json(&backend, compression.as_slice());
        let shim = Running::start(Config::forwarding(exporter)).await;
        if compressed {
            post(shim.http, PROTOBUF, "gzip", gzip(&full_trace())).await;
        } else {
            export(shim.grpc, &full_trace()).await;
        }
        assert_eq!(shim.settled(3).await.delivered_spans, 3);
        let delivery = &backend.deliveries()[0];
        assert_eq!(delivery.headers["content-type"], JSON);
        assert_eq!((&*delivery.coding, &*delivery.path), (expect, "/v1/traces"));
        let json = std::str::from_utf8(&delivery.message).expect("text");
        assert_eq!(as_protobuf(json).await, full_trace());
    }
}

#[tokio::test]
async fn what_a_backend_of_http_json_rejects_is_counted() {
    let backend = Backend::start([Reply::Partial(2)]).await;
    let shim = Running::start(Config::forwarding(by_json(&backend, &[]))).await;
    export(shim.grpc, &full_trace()).await;
    let counts = shim.settled(count(&full_trace())).await;
    assert_eq!((counts.delivered_spans, counts.rejected_spans), (1, 2));
}
