//! What a receiver owes its senders: <https://opentelemetry.io/docs/specs/otlp/>.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use lantern_shim::{Config, Value};
use prost::Message as _;
use tonic::Code;

use crate::support::Running;
use crate::support::client::{
    JSON, PROTOBUF, call, export, export_gzip, export_raw, frame, get, gzip, post, send, zstd,
};
use crate::support::spans::{TRACE_ID, full_trace, request};

/// A shim that takes requests of at most 10,000 bytes.
async fn small() -> Running {
    Running::start(Config {
        max_request_bytes: 10_000,
        ..Config::embedded()
    })
    .await
}

#[tokio::test]
async fn json_becomes_the_spans_that_it_describes() {
    let shim = Running::embedded().await;
    let body = format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[
            {{"key":"service.name","value":{{"stringValue":"json-service"}}}}]}},
          "scopeSpans":[{{"scope":null,"spans":[{{
            "traceId":"{}","spanId":"00F067AA0BA902B7","parentSpanId":null,
            "name":"from json","kind":3,"futureField":{{"deep":[1]}},
            "startTimeUnixNano":"1767323045000006000","endTimeUnixNano":1767323045000106000,
            "attributes":[{{"key":"n","value":{{"intValue":"7"}}}}]}}]}}]}}]}}"#,
        TRACE_ID.to_uppercase()
    );
    for (encoding, body) in [
        ("", Bytes::from(body.clone())),
        ("gzip", gzip(body.as_bytes())),
    ] {
        let answer = post(shim.http, "application/json; charset=utf-8", encoding, body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (200, &b"{}"[..])
        );
        assert_eq!(answer.header("content-type"), JSON);
    }
    let trace = shim.handle.trace(TRACE_ID).expect("it was kept");
    let [span] = &trace.spans[..] else {
        panic!("the same span twice is kept once")
    };
    assert_eq!(
        (&*span.service_name, span.name.as_str()),
        ("json-service", "from json")
    );
    assert_eq!(
        (span.span_id.as_str(), &span.parent_span_id),
        ("00f067aa0ba902b7", &None)
    );
    assert_eq!(
        (span.kind.as_str(), span.duration_ns()),
        ("client", 100_000)
    );
    assert_eq!(span.attribute("n"), Some(&Value::Int(7)));
}

#[tokio::test]
async fn empty_requests_succeed() {
    let shim = Running::embedded().await;
    assert_eq!(export(shim.grpc, b"").await.code(), Code::Ok);
    assert_eq!(post(shim.http, PROTOBUF, "", "").await.status, 200);
    assert_eq!(post(shim.http, JSON, "", "{}").await.status, 200);
    assert_eq!(
        post(shim.http, JSON, "", r#"{"resourceSpans":null}"#)
            .await
            .status,
        200
    );
    assert_eq!(shim.handle.counts(), lantern_shim::Counts::default());
}

/// The `google.rpc.Status` of a refusal, read from the type that it says it is in.
fn rpc_status(answer: &crate::support::client::Answer) -> (i32, String) {
    match answer.header("content-type") {
        JSON => {
            let body = answer.json();
            (
                body["code"].as_i64().expect("a code") as i32,
                body["message"].to_string(),
            )
        }
        PROTOBUF => {
            let status = tonic_types::Status::decode(&answer.body[..]).expect("a Status");
            (status.code, status.message)
        }
        other => panic!("a Status in {other:?}"),
    }
}

#[tokio::test]
async fn http_refusals_are_a_status_in_the_requests_own_type() {
    let shim = small().await;
    let large = || Bytes::from(vec![b' '; 10_001]);
    let bomb = || gzip(&vec![0; 5_000_000]);
    let zstd_bomb = || zstd(&vec![0; 5_000_000]);
    for (content_type, encoding, body, expect) in [
        (PROTOBUF, "", Bytes::from("\x0a\x05x"), (400, 3)),
        (JSON, "", Bytes::from("{"), (400, 3)),
        (
            JSON,
            "",
            Bytes::from(r#"{"resourceSpans":[{"scopeSpans":7}]}"#),
            (400, 3),
        ),
        (PROTOBUF, "gzip", Bytes::from("no gzip"), (400, 3)),
        (PROTOBUF, "", large(), (413, 8)),
        (JSON, "", large(), (413, 8)),
        (PROTOBUF, "gzip", bomb(), (413, 8)),
        (JSON, "gzip", bomb(), (413, 8)),
        (PROTOBUF, "br", Bytes::new(), (415, 12)),
        (PROTOBUF, "zstd", Bytes::from("no zstd"), (400, 3)),
        (PROTOBUF, "zstd", zstd_bomb(), (413, 8)),
        ("text/plain", "", Bytes::new(), (415, 12)),
        ("", "", Bytes::new(), (415, 12)),
    ] {
        let answer = post(shim.http, content_type, encoding, body).await;
        let (code, message) = rpc_status(&answer);
        assert_eq!(
            (answer.status.as_u16(), code),
            expect,
            "{content_type} {encoding}: {message}"
        );
        assert!(!message.is_empty());
        let answered_in = if content_type == PROTOBUF {
            PROTOBUF
        } else {
            JSON
        };
        assert_eq!(answer.header("content-type"), answered_in);
        if encoding == "br" {
            assert_eq!(answer.header("accept-encoding"), "gzip,zstd");
        }
    }
    assert_eq!(shim.handle.counts().received_spans, 0);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_with_a_status() {
    let shim = small().await;
    let answer = get(shim.http, "/v1/traces").await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("allow")),
        (405, "POST")
    );
    assert_eq!(rpc_status(&answer).0, 12);
    let request = Request::post(format!("http://{}/v1/metrics", shim.http))
        .header("content-type", PROTOBUF)
        .body(Full::default());
    let answer = send(request.expect("a request")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("content-type")),
        (404, PROTOBUF)
    );
    assert_eq!(rpc_status(&answer).0, 12);
}

#[tokio::test]
async fn grpc_refusals_have_the_codes_of_the_specification() {
    let shim = small().await;
    let check = async |encoding: &str, body: Bytes, expect: Code| {
        let status = export_raw(shim.grpc, encoding, body).await;
        assert_eq!(status.code(), expect, "{status:?}");
        assert!(status.details().is_empty(), "no RetryInfo: {status:?}");
    };
    check(
        "identity",
        frame(false, b"\x0a\x05x"),
        Code::InvalidArgument,
    )
    .await;
    check("gzip", frame(true, b"no gzip"), Code::InvalidArgument).await;
    check("identity", frame(true, &gzip(b"")), Code::InvalidArgument).await;
    check(
        "identity",
        Bytes::from_static(b"\0\0"),
        Code::InvalidArgument,
    )
    .await;
    check(
        "identity",
        Bytes::from_static(b"\x07\0\0\0\0"),
        Code::InvalidArgument,
    )
    .await;
    check("br", frame(true, b""), Code::Unimplemented).await;
    check(
        "identity",
        frame(false, &[0; 10_001]),
        Code::ResourceExhausted,
    )
    .await;
    check(
        "identity",
        Bytes::from_static(b"\0\xff\xff\xff\xff\0"),
        Code::ResourceExhausted,
    )
    .await;
    check(
        "gzip",
        frame(true, &gzip(&vec![0; 5_000_000])),
        Code::ResourceExhausted,
    )
    .await;
    let (status, _) = call(
        shim.grpc,
        "/some.Service/Call",
        "identity",
        frame(false, b""),
    )
    .await;
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn several_gzip_members_are_read_as_one_body() {
    let shim = Running::embedded().await;
    let members = [gzip(&request("first", 2)), gzip(&request("second", 3))].concat();
    assert_eq!(
        post(shim.http, PROTOBUF, "gzip", members.clone())
            .await
            .status,
        200
    );
    assert_eq!(shim.handle.counts().received_spans, 5);
    let status = export_raw(shim.grpc, "gzip", frame(true, &members)).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(shim.handle.counts().received_spans, 10);
}

#[tokio::test]
async fn text_that_is_no_utf8_is_cleaned_and_not_refused() {
    let shim = Running::embedded().await;
    let mut message = request("broken name", 1).to_vec();
    let at = message
        .windows(6)
        .position(|window| window == b"broken")
        .expect("the name");
    message[at] = 0xff;
    assert_eq!(export_gzip(shim.grpc, &message).await.code(), Code::Ok);
    let trace = shim.handle.trace(TRACE_ID).expect("it was kept");
    assert_eq!(trace.spans[0].name, "?roken name");
}

#[tokio::test]
async fn the_health_check_says_serving() {
    let shim = Running::embedded().await;
    let path = "/grpc.health.v1.Health/Check";
    let (status, body) = call(shim.grpc, path, "identity", frame(false, b"")).await;
    assert_eq!(
        (status.code(), &body[..]),
        (Code::Ok, &[0, 0, 0, 0, 2, 8, 1][..])
    );
}

#[tokio::test]
async fn the_generated_client_is_understood() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use tonic::codec::CompressionEncoding::Gzip;
    let shim = Running::embedded().await;
    let client = TraceServiceClient::connect(format!("http://{}", shim.grpc)).await;
    let mut client = client
        .expect("connects")
        .send_compressed(Gzip)
        .accept_compressed(Gzip);
    let request = ExportTraceServiceRequest::decode(full_trace()).expect("a request");
    let response = client.export(request).await.expect("accepted").into_inner();
    assert_eq!(response.partial_success, None);
    assert_eq!(
        shim.handle
            .trace(TRACE_ID)
            .expect("it was kept")
            .spans
            .len(),
        3
    );
}

#[tokio::test]
async fn answers_stay_small_whatever_was_sent() {
    let shim = Running::embedded().await;
    let id = "x".repeat(1_000_000);
    let body =
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"spanId":"{id}"}}]}}]}}]}}"#);
    let answer = post(shim.http, JSON, "", body).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.len() < 1_000, "{} bytes", answer.body.len());
}
