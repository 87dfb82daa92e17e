//! Jaeger's query API over the embedded store, and what else the viewer's port serves.

use http::StatusCode;
use lantern_shim::{Config, Destination};

use crate::support::backend::Backend;
use crate::support::client::{call, export, frame, get};
use crate::support::spans::{TRACE_ID, full_trace, request};
use crate::support::{Running, exporter, forwarding};

/// The span times of the fixed trace, in microseconds.
const WINDOW: &str = "start=1767323045000000&end=1767323046000000";

/// Compares snapshots with all maps in the order of their keys: whether they keep the order of their making
/// depends on what else is built.
fn by_key(compare: impl FnOnce()) {
    insta::with_settings!({sort_maps => true}, { compare() });
}

async fn with_full_trace() -> Running {
    let shim = Running::embedded().await;
    assert_eq!(
        export(shim.grpc, &full_trace()).await.code(),
        tonic::Code::Ok
    );
    shim
}

#[tokio::test]
async fn a_trace_is_written_as_jaeger_writes_it() {
    let shim = with_full_trace().await;
    let answer = get(shim.viewer, &format!("/api/traces/{TRACE_ID}")).await;
    assert_eq!(answer.status, 200);
    by_key(|| insta::assert_json_snapshot!("trace", answer.json()));
}

#[tokio::test]
async fn services_operations_and_dependencies_are_listed() {
    let shim = with_full_trace().await;
    let mut answers = serde_json::Map::new();
    for path in [
        "/api/services",
        "/api/services/lantern-proxy/operations",
        "/api/operations?service=lantern-proxy",
        "/api/operations?service=lantern-proxy&spanKind=server",
        "/api/dependencies?endTs=1767323046000&lookback=60000",
        "/api/dependencies?endTs=1&lookback=1",
        "/ui/traces",
    ] {
        let answer = get(shim.viewer, path).await;
        assert_eq!(answer.status, 200, "{path}");
        answers.insert(path.to_owned(), answer.json());
    }
    by_key(|| insta::assert_json_snapshot!("lists", answers));
}

#[tokio::test]
async fn searches_find_by_each_parameter() {
    let shim = with_full_trace().await;
    let check = async |query: &str, expect: usize| {
        let path = format!("/api/traces?{WINDOW}&{query}");
        let answer = get(shim.viewer, &path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(
            answer.json()["data"].as_array().expect("a list").len(),
            expect,
            "{path}"
        );
    };
    check("service=lantern-proxy", 1).await;
    check("service=nobody", 0).await;
    check("service=lantern-proxy&operation=llm_request", 1).await;
    check("service=client-service&operation=llm_request", 0).await;
    check("service=client-service&minDuration=97ms&maxDuration=1s", 1).await;
    check("service=client-service&minDuration=99ms", 0).await;
    check("service=client-service&limit=0", 0).await;
    check(
        "service=lantern-proxy&tags=%7B%22error%22%3A%22true%22%7D",
        1,
    )
    .await;
    check(
        "service=client-service&tags=%7B%22error%22%3A%22true%22%7D",
        0,
    )
    .await;
    check(
        "service=client-service&tags=%7B%22count%22%3A%2242%22%7D",
        1,
    )
    .await;
    check("service=client-service&tag=host.name:node-1", 1).await;
    check("service=lantern-proxy&tag=exception.type:BrokenPipe", 1).await;
    check("traceID=4BF92F3577B34DA6A3CE929D0E0E4736", 1).await;
    check("traceID=abc", 0).await;
    check("service=lantern-proxy&start=1767323046000000", 0).await;
}

#[tokio::test]
async fn what_is_not_there_or_not_asked_well_is_told_in_jaegers_shape() {
    let shim = with_full_trace().await;
    let mut answers = serde_json::Map::new();
    for path in [
        "/api/traces/00000000000000000000000000000001",
        "/api/traces/xyz",
        "/api/traces",
        "/api/traces?service=s&limit=many",
        "/api/traces?traceID=1",
        "/api/operations",
        "/api/dependencies?endTs=soon",
    ] {
        let answer = get(shim.viewer, path).await;
        let told = serde_json::json!({ "status": answer.status.as_u16(), "body": answer.json() });
        answers.insert(path.to_owned(), told);
    }
    by_key(|| insta::assert_json_snapshot!("problems", answers));
    assert_eq!(get(shim.viewer, "/nothing/here").await.status, 404);
}

#[tokio::test]
async fn ids_are_found_with_and_without_leading_zeros() {
    let shim = Running::embedded().await;
    let mut message = full_trace().to_vec();
    let id = [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6];
    while let Some(at) = message.windows(8).position(|window| window == id) {
        message[at..at + 8].fill(0);
    }
    export(shim.grpc, &message).await;
    for asked in ["a3ce929d0e0e4736", "0000000000000000A3CE929D0E0E4736"] {
        let answer = get(shim.viewer, &format!("/api/traces/{asked}")).await;
        assert_eq!(answer.json()["data"][0]["traceID"], "a3ce929d0e0e4736");
    }
}

#[tokio::test]
async fn the_page_is_served_under_a_strict_policy() {
    let shim = with_full_trace().await;
    for path in ["/", "/search", &format!("/trace/{TRACE_ID}")] {
        let answer = get(shim.viewer, path).await;
        assert_eq!(
            answer.header("content-type"),
            "text/html; charset=utf-8",
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let policy = answer.header("content-security-policy");
        let nonce = policy
            .split("'nonce-")
            .nth(1)
            .and_then(|rest| rest.split('\'').next());
        let nonce = nonce.expect("a nonce");
        let page = std::str::from_utf8(&answer.body).expect("UTF-8");
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        assert!(!page.contains("{{nonce}}"));
        let again = get(shim.viewer, path).await;
        assert_ne!(
            again.header("content-security-policy"),
            policy,
            "a nonce is used once"
        );
    }
}

#[tokio::test]
async fn evictions_are_told() {
    let config = Config {
        destination: Destination::Store { max_bytes: 1 },
        ..Config::embedded()
    };
    let shim = Running::start(config).await;
    export(shim.grpc, &full_trace()).await;
    let overview = get(shim.viewer, "/ui/traces").await.json();
    assert_eq!(
        (&overview["evictedTraces"], &overview["storedSpans"]),
        (&1.into(), &0.into())
    );
    let counts = shim.handle.counts();
    assert_eq!(
        (
            counts.delivered_spans,
            counts.evicted_spans,
            counts.evicted_traces
        ),
        (3, 3, 1)
    );
    let metrics = get(shim.viewer, "/metrics").await;
    let metrics = std::str::from_utf8(&metrics.body)
        .expect("UTF-8")
        .to_owned();
    assert!(
        metrics.contains("\nlantern_store_evicted_traces 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_forwarding_shim_serves_health_and_metrics_alone() {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let shim = Running::start(Config::forwarding(exporter)).await;
    export(shim.grpc, &request("one", 4)).await;
    shim.settled(4).await;
    assert_eq!(&get(shim.viewer, "/healthz").await.body[..], b"ok\n");
    assert_eq!(get(shim.viewer, "/").await.status, 404);
    assert_eq!(get(shim.viewer, "/api/services").await.status, 404);
    assert_eq!(shim.handle.trace(TRACE_ID), None);
    let metrics = get(shim.viewer, "/metrics").await;
    assert!(
        metrics
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    let metrics = std::str::from_utf8(&metrics.body).expect("UTF-8");
    let (process, own): (Vec<_>, Vec<_>) =
        metrics.lines().partition(|line| line.contains("process_"));
    insta::assert_snapshot!("metrics", own.join("\n"));
    let value = |name: &str| {
        let value = process.iter().find_map(|line| line.strip_prefix(name));
        value.map(|value| value.trim().parse::<f64>().expect("a number"))
    };
    for name in [
        "otelcol_process_uptime",
        "otelcol_process_uptime_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        let value = value(&format!("{name} "));
        assert!(
            value.is_some_and(|value| value >= 0.0),
            "{name} in {process:?}"
        );
    }
    assert!(value("otelcol_process_memory_rss ") > Some(1e6));
}

#[tokio::test]
async fn readiness_and_grpc_health_follow_the_queue() {
    let backend = Backend::held();
    let large = request("one", 200);
    let exporter = exporter(&backend.grpc_url(), "grpc", &[]);
    let config = forwarding(exporter, large.len(), large.len());
    let shim = Running::start(config).await;
    let health = async || {
        let path = "/grpc.health.v1.Health/Check";
        let (_, answer) = call(shim.grpc, path, "identity", frame(false, b"")).await;
        (get(shim.viewer, "/readyz").await.status, answer[6])
    };
    assert_eq!(health().await, (StatusCode::OK, 1));
    export(shim.grpc, &large).await;
    assert_eq!(health().await, (StatusCode::SERVICE_UNAVAILABLE, 2));
    assert_eq!(get(shim.viewer, "/healthz").await.status, 200);
    backend.release();
    shim.settled(200).await;
    assert_eq!(health().await, (StatusCode::OK, 1));
}
