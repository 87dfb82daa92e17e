//! Each protocol in to each protocol out, byte for byte.

use lantern_shim::Config;

use crate::support::backend::Backend;
use crate::support::client::{PROTOBUF, export, export_gzip, gzip, post};
use crate::support::spans::{count, full_trace};
use crate::support::{Running, exporter};

/// Fields that no version of the protocol has, on the span and on the request, of all wire types.
fn with_unknown_fields() -> Vec<u8> {
    let unknown = [
        0x98, 0x3f, 0x07, 0x9a, 0x3f, 0x02, 0xff, 0xfe, 0x9d, 0x3f, 1, 2, 3, 4,
    ];
    let ids = [&[0x0a, 16][..], &[1; 16], &[0x12, 8], &[2; 8]].concat();
    let span = [&[0x12, 42][..], &ids, &unknown].concat();
    let scope = [&[0x12, span.len() as u8][..], &span].concat();
    let resource = [&[0x0a, scope.len() as u8][..], &scope].concat();
    [&resource[..], &unknown].concat()
}

async fn check(way_in: &str, way_out: &str, more: &[(&str, &str)], message: &[u8]) {
    let backend = Backend::start([]).await;
    let exporter = exporter(&backend.url(way_out), way_out, more);
    let shim = Running::start(Config::forwarding(exporter)).await;
    match way_in {
        "grpc" => assert_eq!(export(shim.grpc, message).await.code(), tonic::Code::Ok),
        "grpc gzip" => assert_eq!(
            export_gzip(shim.grpc, message).await.code(),
            tonic::Code::Ok
        ),
        "http" => {
            let answer = post(shim.http, PROTOBUF, "", message.to_vec()).await;
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &[][..]));
            assert_eq!(answer.header("content-type"), PROTOBUF);
        }
        _ => {
            let answer = post(shim.http, PROTOBUF, "gzip", gzip(message)).await;
            assert_eq!(answer.status, 200);
        }
    }
    let spans = count(message);
    let counts = shim.settled(spans).await;
    assert_eq!(
        (counts.received_spans, counts.delivered_spans),
        (spans, spans),
        "{counts:?}"
    );
    let deliveries = backend.deliveries();
    let [delivery] = &deliveries[..] else {
        panic!("one request, not {}", deliveries.len())
    };
    assert_eq!(delivery.message, message, "{way_in} -> {way_out}");
    let expect = if more.is_empty() { "" } else { "gzip" };
    assert_eq!(delivery.coding, expect);
    if way_out == "grpc" {
        let export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        assert_eq!(delivery.path, export);
    } else {
        assert_eq!(delivery.path, "/v1/traces");
        assert_eq!(delivery.headers["content-type"], PROTOBUF);
    }
}

const GZIP: &[(&str, &str)] = &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")];

#[tokio::test]
async fn every_crossing_carries_the_same_bytes() {
    for way_in in ["grpc", "http"] {
        for way_out in ["grpc", "http/protobuf"] {
            check(way_in, way_out, &[], &full_trace()).await;
        }
    }
}

#[tokio::test]
async fn every_crossing_carries_the_same_bytes_compressed_both_ways() {
    for way_in in ["grpc gzip", "http gzip"] {
        for way_out in ["grpc", "http/protobuf"] {
            check(way_in, way_out, GZIP, &full_trace()).await;
        }
    }
}

#[tokio::test]
async fn unknown_fields_are_kept() {
    for (way_in, way_out) in [("grpc", "http/protobuf"), ("http", "grpc")] {
        check(way_in, way_out, &[], &with_unknown_fields()).await;
    }
}

#[tokio::test]
async fn headers_of_the_environment_go_with_every_request() {
    for way_out in ["grpc", "http/protobuf"] {
        let backend = Backend::start([]).await;
        let headers = [(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20abc,x-tenant=t1",
        )];
        let exporter = exporter(&backend.url(way_out), way_out, &headers);
        let shim = Running::start(Config::forwarding(exporter)).await;
        export(shim.grpc, &full_trace()).await;
        let delivery = &backend.received(1).await[0];
        assert_eq!(delivery.headers["authorization"], "Bearer abc", "{way_out}");
        assert_eq!(delivery.headers["x-tenant"], "t1", "{way_out}");
    }
}
