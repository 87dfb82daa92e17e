//! OTLP/HTTP out, in protobuf or JSON.

use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use lantern_telemetry::config::Connector;
use lantern_telemetry::{ExporterSettings, Protocol};
use prost::Message as _;
use tonic::Code;

use super::{
    Accepted, Answer, Cause, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_LIMIT, MAX_RESPONSE_BYTES, Message,
    Rejection, USER_AGENT, chain, retry, shortened,
};
use crate::coding::Coding;
use crate::counts::PerSignal;
use crate::signal::Signal;

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// See the module.
pub(super) struct HttpClient {
    client: Client<Connector, Full<Message>>,
    /// None where it is not known where the signal goes.
    uris: PerSignal<Option<Uri>>,
    headers: HeaderMap,
}

impl HttpClient {
    pub(super) fn new(settings: &ExporterSettings) -> HttpClient {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_LIMIT)
            .build(settings.connector());
        let mut headers = settings.request_headers();
        headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        let content_type = match settings.protocol {
            Protocol::HttpJson => JSON,
            Protocol::Grpc | Protocol::HttpProtobuf => PROTOBUF,
        };
        headers.insert(header::CONTENT_TYPE, content_type);
        let mut uris = PerSignal::default();
        for signal in Signal::ALL {
            *uris.of_mut(signal) = uri(&settings.endpoint, signal);
        }
        HttpClient {
            client,
            uris,
            headers,
        }
    }

    pub(super) fn has_place_for(&self, signal: Signal) -> bool {
        self.uris.of(signal).is_some()
    }

    /// Sends `body`, compressed by `coding`, once.
    pub(super) async fn send(&self, signal: Signal, coding: Coding, body: Message) -> Answer {
        let uri = self.uris.of(signal).clone();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = uri.expect("only signals with a place are sent");
        *request.headers_mut() = self.headers.clone();
        if coding != Coding::Identity {
            let coding = HeaderValue::from_static(coding.as_str());
            request
                .headers_mut()
                .insert(header::CONTENT_ENCODING, coding);
        }
        match self.client.request(request).await {
            Ok(response) => answer(signal, response).await,
            Err(error) => Answer::later(chain(&error)),
        }
    }
}

/// Where `signal` goes when traces go to `endpoint`. With a path of one's own choice for traces
/// nothing is known of the others'.
fn uri(endpoint: &str, signal: Signal) -> Option<Uri> {
    let checked = "the settings hold a checked URL";
    if signal == Signal::Traces {
        return Some(endpoint.parse().expect(checked));
    }
    let base = endpoint.strip_suffix(Signal::Traces.http_path())?;
    Some(
        format!("{base}{}", signal.http_path())
            .parse()
            .expect(checked),
    )
}

async fn answer(signal: Signal, response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let after = retry::retry_after(&parts.headers, SystemTime::now());
    // The status has decided; a body that breaks off or goes on for too long tells nothing.
    let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await;
    let body = body
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    if parts.status.is_success() {
        return Answer::Accepted(match content_type {
            Some(content_type) if content_type == PROTOBUF => Accepted::from_protobuf(&body),
            Some(content_type) if is_json(content_type) => Accepted::from_json(&body, signal),
            Some(_) | None => Accepted::default(),
        });
    }
    let reason = reason(parts.status, content_type, &body);
    if retry::http_is_retryable(parts.status) {
        return Answer::Later { reason, after };
    }
    let (cause, code) = match parts.status.as_u16() {
        400 | 422 => (Cause::Data, Code::InvalidArgument),
        413 => (Cause::Data, Code::ResourceExhausted),
        500 => (Cause::Data, Code::Internal),
        404 | 405 | 415 | 501 => (Cause::Kind, Code::Unimplemented),
        401 => (Cause::Sender, Code::Unauthenticated),
        403 => (Cause::Sender, Code::PermissionDenied),
        _ => (Cause::Sender, Code::Unknown),
    };
    Answer::Refused(Rejection {
        reason,
        cause,
        code,
    })
}

/// The status, and the message of the `google.rpc.Status` or page that came with it.
fn reason(status: StatusCode, content_type: Option<&HeaderValue>, body: &[u8]) -> String {
    let told = match content_type {
        Some(content_type) if content_type == PROTOBUF => {
            let told = tonic_types::Status::decode(body);
            told.ok().map(|told| told.message)
        }
        Some(content_type) if is_json(content_type) => {
            let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
            told.and_then(|told| told["message"].as_str().map(str::to_owned))
        }
        Some(_) | None => None,
    };
    let told = told.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    shortened(&format!("{status} {told}"))
}

/// Whatever parameters follow.
fn is_json(content_type: &HeaderValue) -> bool {
    let name = content_type.as_bytes().get(..JSON.len());
    name.is_some_and(|name| name.eq_ignore_ascii_case(JSON.as_bytes()))
}
