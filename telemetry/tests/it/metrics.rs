//! Metrics at a receiver, by each protocol.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lantern_telemetry::Telemetry;
use lantern_telemetry::instruments::{Instruments, Key, Trace};
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality;
use opentelemetry_proto::tonic::metrics::v1::exemplar::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use prometheus_client::registry::Registry;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::{PATIENCE, PROTOCOLS, settings};

struct Received {
    api_key: String,
    path: String,
    request: ExportMetricsServiceRequest,
}

#[derive(Clone)]
struct Sender(mpsc::UnboundedSender<Received>);

#[tonic::async_trait]
impl MetricsService for Sender {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let api_key = request.metadata().get("api-key");
        let received = Received {
            api_key: api_key
                .map_or("", |key| key.to_str().expect("text"))
                .to_owned(),
            path: "/v1/metrics".to_owned(),
            request: request.into_inner(),
        };
        let _ = self.0.send(received);
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

async fn receiver(protocol: &str) -> (SocketAddr, mpsc::UnboundedReceiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    let (sender, received) = mpsc::unbounded_channel();
    let sender = Sender(sender);
    if protocol == "grpc" {
        let server = Server::builder().add_service(MetricsServiceServer::new(sender));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    } else {
        tokio::spawn(serve_http(listener, sender));
    }
    (addr, received)
}

async fn serve_http(listener: TcpListener, sender: Sender) {
    while let Ok((stream, _)) = listener.accept().await {
        let sender = sender.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let sender = sender.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let request = if parts.headers["content-type"] == "application/json" {
                    serde_json::from_slice(&body).expect("JSON")
                } else {
                    ExportMetricsServiceRequest::decode(body).expect("protobuf")
                };
                let received = Received {
                    api_key: parts.headers["api-key"].to_str().expect("text").to_owned(),
                    path: parts.uri.path().to_owned(),
                    request,
                };
                let _ = sender.0.send(received);
                Ok::<_, hyper::Error>(http::Response::new(Full::<Bytes>::default()))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new();
        tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
    }
}

fn start(protocol: &str, addr: SocketAddr, more: &[(&str, &str)]) -> Telemetry {
    let endpoint = format!("http://{addr}");
    let mut vars = vec![
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=open"),
    ];
    vars.extend(more);
    Telemetry::start(&settings(&vars).with_metrics(), "test-service").expect("telemetry starts")
}

#[tokio::test]
async fn metrics_arrive_at_the_end_though_no_interval_has_passed() {
    for protocol in PROTOCOLS {
        let (addr, mut received) = receiver(protocol).await;
        let preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let telemetry = start(protocol, addr, &[(preference, "delta")]);
        let meter = telemetry.meter("test").expect("metrics are exported");
        let histogram = meter.f64_histogram("work").with_unit("s");
        let histogram = histogram.with_boundaries(vec![1.0, 2.0]).build();
        histogram.record(1.5, &[KeyValue::new("kind", "a")]);
        telemetry.shutdown(PATIENCE).await.expect("nothing is lost");

        let received = received.recv().await.expect("a request");
        assert_eq!(received.path, "/v1/metrics");
        assert_eq!(received.api_key, "open");
        let resource = &received.request.resource_metrics[0];
        let metric = &resource.scope_metrics[0].metrics[0];
        assert_eq!((metric.name.as_str(), metric.unit.as_str()), ("work", "s"));
        let Some(Data::Histogram(histogram)) = &metric.data else {
            panic!("no histogram: {metric:?}");
        };
        let temporality = histogram.aggregation_temporality;
        assert_eq!(temporality, AggregationTemporality::Delta as i32);
        let point = &histogram.data_points[0];
        assert_eq!(point.bucket_counts, [0, 1, 0]);
        assert_eq!(point.attributes[0].key, "kind");
    }
}

#[tokio::test]
async fn an_exemplar_of_each_bucket_is_the_last_observation_with_a_trace() {
    let (addr, mut received) = receiver("http/protobuf").await;
    let telemetry = start("http/protobuf", addr, &[]);
    let meter = telemetry.meter("test").expect("metrics are exported");
    let mut instruments = Instruments {
        registry: &mut Registry::default(),
        meter: Some(&meter),
    };
    let work = instruments.histogram("work", "Help", "s", &[1.0, 2.0]);
    let trace = |id: u64| {
        let (trace, span) = (TraceId::from(u128::from(id)), SpanId::from(id));
        let state = TraceState::default();
        let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state);
        Some(Trace::of(&context))
    };
    let status = |code: &'static str| {
        vec![
            (Key("kind"), "a".into()),
            (Key("http.response.status_code"), code.into()),
        ]
    };
    for (value, labels, trace) in [
        (0.5, status("200"), trace(1)),
        // On the bound: still within it.
        (1.0, status("200"), trace(2)),
        (9.0, status("200"), trace(3)),
        (8.0, status("200"), None),
        (1.5, status("500"), trace(4)),
    ] {
        work.observe(value, &labels, trace);
    }
    telemetry.shutdown(PATIENCE).await.expect("nothing is lost");

    let received = received.recv().await.expect("a request");
    let metric = &received.request.resource_metrics[0].scope_metrics[0].metrics[0];
    let Some(Data::Histogram(histogram)) = &metric.data else {
        panic!("no histogram: {metric:?}");
    };
    let mut series: Vec<_> = histogram
        .data_points
        .iter()
        .map(|point| {
            let exemplars = point.exemplars.iter().map(|exemplar| {
                let Some(Value::AsDouble(value)) = exemplar.value else {
                    panic!("no number: {exemplar:?}");
                };
                assert!(exemplar.time_unix_nano >= point.start_time_unix_nano);
                assert_eq!(exemplar.span_id, exemplar.trace_id[8..]);
                (value, *exemplar.trace_id.last().expect("16 bytes"))
            });
            (point.count, exemplars.collect::<Vec<_>>())
        })
        .collect();
    series.sort_unstable_by_key(|(count, _)| *count);
    assert_eq!(series, [(1, vec![(1.5, 4)]), (4, vec![(1.0, 2), (9.0, 3)])]);
}

#[tokio::test]
async fn metrics_arrive_at_every_interval() {
    let (addr, mut received) = receiver("grpc").await;
    let telemetry = start("grpc", addr, &[("OTEL_METRIC_EXPORT_INTERVAL", "10")]);
    let meter = telemetry.meter("test").expect("metrics are exported");
    meter.u64_counter("work").build().add(1, &[]);
    for _ in 0..2 {
        let next = tokio::time::timeout(PATIENCE, received.recv()).await;
        next.expect("in time").expect("a request");
    }
    telemetry.shutdown(PATIENCE).await.expect("nothing is lost");
}

#[test]
fn a_program_without_metrics_and_one_that_is_not_asked_for_them_have_no_meter() {
    let asked = settings(&[
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ]);
    let not_asked = settings(&[("OTEL_TRACES_EXPORTER", "none")]).with_metrics();
    let disabled = [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_SDK_DISABLED", "true"),
    ];
    for settings in [asked, not_asked, settings(&disabled).with_metrics()] {
        let telemetry = Telemetry::start(&settings, "test-service").expect("it starts");
        assert!(telemetry.meter("test").is_none());
    }
}
