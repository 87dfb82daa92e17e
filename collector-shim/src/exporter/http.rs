//! OTLP/HTTP out, in protobuf.

use std::io::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use lantern_telemetry::ExporterSettings;
use lantern_telemetry::config::Compression;
use prost::Message as _;

use super::{
    Answer, Cause, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_LIMIT, MAX_RESPONSE_BYTES, USER_AGENT, chain,
    grpc, retry, shortened,
};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// See the module.
pub(super) struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    compression: Compression,
}

impl HttpClient {
    pub(super) fn new(settings: &ExporterSettings) -> HttpClient {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_LIMIT)
            .build(settings.connector());
        let mut headers = settings.headers.clone();
        headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        headers.insert(header::CONTENT_TYPE, PROTOBUF);
        if settings.compression == Compression::Gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        HttpClient {
            client,
            uri: settings
                .endpoint
                .parse()
                .expect("the settings hold a checked URL"),
            headers,
            compression: settings.compression,
        }
    }

    /// Sends `body` once.
    pub(super) async fn send(&self, body: Bytes) -> Answer {
        let body = match self.compression {
            Compression::None => body,
            Compression::Gzip => gzip(&body),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        match self.client.request(request).await {
            Ok(response) => answer(response).await,
            Err(error) => Answer::Later {
                reason: chain(&error),
                after: None,
            },
        }
    }
}

fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder
        .write_all(body)
        .expect("a vector takes what is written");
    encoder
        .finish()
        .expect("a vector takes what is written")
        .into()
}

async fn answer(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let after = retry::retry_after(&parts.headers, SystemTime::now());
    // The status has decided; a body that breaks off or goes on for too long tells nothing.
    let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
    let body = body
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let is_protobuf = parts.headers.get(header::CONTENT_TYPE) == Some(&PROTOBUF);
    if parts.status.is_success() {
        let readable = if is_protobuf { &body[..] } else { &[] };
        return grpc::accepted(readable);
    }
    let reason = reason(parts.status, is_protobuf, &body);
    if retry::http_is_retryable(parts.status) {
        return Answer::Later { reason, after };
    }
    let cause = match parts.status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY
        | StatusCode::INTERNAL_SERVER_ERROR => Cause::Data,
        _ => Cause::Sender,
    };
    Answer::Refused { reason, cause }
}

/// The status, and the message of the `google.rpc.Status` or page that came with it.
fn reason(status: StatusCode, is_protobuf: bool, body: &[u8]) -> String {
    let told = match tonic_types::Status::decode(body) {
        Ok(told) if is_protobuf => told.message,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    shortened(&format!("{status} {told}"))
}
