//! OTLP/gRPC out: one unary call, whose message is the bytes that are to be sent.
//!
//! Not tonic's client: that compresses messages itself and copies them into a buffer of its own. What
//! came compressed is to leave as it came, and from where it lies.

use bytes::buf::Chain;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use lantern_telemetry::ExporterSettings;
use lantern_telemetry::config::{self, Stream};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::util::MapResponse;

use super::batched::Batched;
use super::{
    Accepted, Answer, Cause, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_LIMIT, MAX_RESPONSE_BYTES, Message,
    Rejection, USER_AGENT, chain, retry, shortened,
};
use crate::coding::Coding;
use crate::counts::PerSignal;
use crate::signal::Signal;

/// A compression flag and a big-endian length stand before each message.
const FRAME_HEADER_BYTES: usize = 5;

/// The frame's header and the message, not copied together.
type Framed = Full<Chain<Bytes, Message>>;

type TlsStream = MaybeHttpsStream<Stream>;
type Connector = MapResponse<config::Connector, fn(TlsStream) -> Batched<TlsStream>>;

/// See the module.
pub(super) struct GrpcClient {
    client: Client<Connector, Framed>,
    uris: PerSignal<Uri>,
    headers: HeaderMap,
}

impl GrpcClient {
    pub(super) fn new(settings: &ExporterSettings) -> GrpcClient {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_LIMIT)
            .http2_keep_alive_while_idle(true)
            .build(Connector::new(settings.connector(), Batched::new));
        let mut headers = settings.headers.clone();
        headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        let content_type = HeaderValue::from_static("application/grpc");
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let mut uris = PerSignal::default();
        for signal in Signal::ALL {
            *uris.of_mut(signal) = uri(&settings.endpoint, signal);
        }
        GrpcClient {
            client,
            uris,
            headers,
        }
    }

    /// Sends `message`, compressed by `coding`, once.
    pub(super) async fn send(&self, signal: Signal, coding: Coding, message: Message) -> Answer {
        let Ok(length) = u32::try_from(message.remaining()) else {
            return refused(Code::ResourceExhausted, "longer than a message can be");
        };
        let mut frame_header = BytesMut::with_capacity(FRAME_HEADER_BYTES);
        frame_header.put_u8(u8::from(coding != Coding::Identity));
        frame_header.put_u32(length);
        let mut request = Request::new(Full::new(frame_header.freeze().chain(message)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uris.of(signal).clone();
        *request.headers_mut() = self.headers.clone();
        if coding != Coding::Identity {
            let coding = HeaderValue::from_static(coding.as_str());
            request.headers_mut().insert("grpc-encoding", coding);
        }
        match self.client.request(request).await {
            Ok(response) => answer(response).await,
            Err(error) => Answer::later(chain(&error)),
        }
    }
}

/// The method of `endpoint`, whose own path OTLP/gRPC has no use for.
fn uri(endpoint: &str, signal: Signal) -> Uri {
    let uri: Uri = endpoint.parse().expect("the settings hold a checked URL");
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(signal.grpc_path()));
    Uri::from_parts(parts).expect("only the path was replaced")
}

async fn answer(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    // A status in the head means that there is nothing behind it.
    if let Some(status) = Status::from_header_map(&parts.headers) {
        return judged(&status, &[]);
    }
    if parts.status != StatusCode::OK {
        let code = code_of(parts.status);
        return judged(&Status::new(code, parts.status.to_string()), &[]);
    }
    let body = match Limited::new(body, MAX_RESPONSE_BYTES).collect().await {
        Ok(body) => body,
        Err(error) => return Answer::later(shortened(&error.to_string())),
    };
    let Some(status) = body.trailers().and_then(Status::from_header_map) else {
        return Answer::later("an answer without a status".to_owned());
    };
    // An answer is never compressed: none of our requests has asked for it.
    let message = body.to_bytes();
    judged(
        &status,
        message.get(FRAME_HEADER_BYTES..).unwrap_or_default(),
    )
}

/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

fn judged(status: &Status, message: &[u8]) -> Answer {
    if status.code() == Code::Ok {
        return Answer::Accepted(Accepted::from_protobuf(message));
    }
    let retry_info = status.get_details_retry_info();
    if retry::grpc_is_retryable(status.code(), retry_info.is_some()) {
        return Answer::Later {
            reason: reason(status.code(), status.message()),
            after: retry_info.and_then(|info| info.retry_delay),
        };
    }
    refused(status.code(), status.message())
}

fn reason(code: Code, message: &str) -> String {
    shortened(&format!("{code:?}: {message}"))
}

fn refused(code: Code, message: &str) -> Answer {
    let cause = match code {
        Code::InvalidArgument | Code::ResourceExhausted | Code::Internal | Code::Unknown => {
            Cause::Data
        }
        Code::Unimplemented => Cause::Kind,
        _ => Cause::Sender,
    };
    Answer::Refused(Rejection {
        reason: reason(code, message),
        cause,
        code,
    })
}
