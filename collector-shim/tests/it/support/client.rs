//! Clients that send what they are told, sound or not.

use std::io::Write as _;
use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::write::GzEncoder;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tonic::Status;

pub(crate) const PROTOBUF: &str = "application/x-protobuf";
pub(crate) const JSON: &str = "application/json";
pub(crate) const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("a vector takes it");
    encoder.finish().expect("a vector takes it").into()
}

pub(crate) fn zstd(bytes: &[u8]) -> Bytes {
    zstd::encode_all(bytes, 1).expect("compressed").into()
}

pub(crate) async fn send(request: Request<Full<Bytes>>) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    let request = Request::get(format!("http://{address}{path}")).body(Full::default());
    send(request.expect("a request")).await
}

/// Posts to /v1/traces, with a content encoding unless that is empty.
pub(crate) async fn post(
    address: SocketAddr,
    content_type: &str,
    encoding: &str,
    body: impl Into<Bytes>,
) -> Answer {
    let url = format!("http://{address}/v1/traces");
    post_to(&url, content_type, encoding, body).await
}

/// The same to any URL.
pub(crate) async fn post_to(
    url: &str,
    content_type: &str,
    encoding: &str,
    body: impl Into<Bytes>,
) -> Answer {
    let mut request = Request::post(url).header("content-type", content_type);
    if !encoding.is_empty() {
        request = request.header("content-encoding", encoding);
    }
    send(request.body(Full::new(body.into())).expect("a request")).await
}

/// A gRPC frame around `message`.
pub(crate) fn frame(compressed: bool, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(u8::from(compressed));
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// Calls `path` with a body that should be a frame; the status that comes back, and the body.
pub(crate) async fn call(
    address: SocketAddr,
    path: &str,
    encoding: &str,
    body: Bytes,
) -> (Status, Bytes) {
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(Full::new(body))
        .expect("a request");
    let (parts, body) = client
        .request(request)
        .await
        .expect("an answer")
        .into_parts();
    assert_eq!(
        parts.status,
        StatusCode::OK,
        "gRPC tells failures in its own status"
    );
    let collected = body.collect().await.expect("a whole body");
    let trailers = collected.trailers().cloned().unwrap_or(parts.headers);
    let status = Status::from_header_map(&trailers).expect("a status");
    (status, collected.to_bytes())
}

/// Exports `message` by gRPC.
pub(crate) async fn export(address: SocketAddr, message: &[u8]) -> Status {
    call(address, EXPORT, "identity", frame(false, message))
        .await
        .0
}

/// Exports `message` by gRPC, compressed.
pub(crate) async fn export_gzip(address: SocketAddr, message: &[u8]) -> Status {
    call(address, EXPORT, "gzip", frame(true, &gzip(message)))
        .await
        .0
}

/// Exports a body that is sent as it is.
pub(crate) async fn export_raw(address: SocketAddr, encoding: &str, body: Bytes) -> Status {
    call(address, EXPORT, encoding, body).await.0
}
