//! OTLP/gRPC in: `TraceService/Export`, and the standard health check.
//!
//! The framing is read here and not by `tonic::server`, for two reasons. The message has to
//! reach the intake as the bytes that were sent. And tonic answers a declared oversize with
//! OUT_OF_RANGE, which OTLP calls worth a retry, and reads the first of several gzip members as
//! if it were all of them.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as HttpBody;
use tonic::Status;
use tonic::body::Body;

use super::{Receiver, body, status};
use crate::counts::Transport;
use crate::intake::Refusal;
use crate::readiness;

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const MEDIA_TYPE: &str = "application/grpc";

/// A compression flag and a big-endian length stand before each message.
const FRAME_HEADER_BYTES: usize = 5;
/// A frame around an empty message: an `ExportTraceServiceResponse` of full success.
const EMPTY_RESPONSE: &[u8] = &[0, 0, 0, 0, 0];
/// Frames around a `HealthCheckResponse`: its status is SERVING, or NOT_SERVING.
const SERVING_RESPONSE: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];
const NOT_SERVING_RESPONSE: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x02];

/// Answers one call.
pub(crate) async fn serve<B>(
    receiver: Receiver,
    request: Request<B>,
) -> Result<Response<Body>, Infallible>
where
    B: HttpBody<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let media_type = request.headers().get(header::CONTENT_TYPE);
    if !media_type.is_some_and(|value| value.as_bytes().starts_with(MEDIA_TYPE.as_bytes())) {
        // What is no gRPC call is answered in HTTP, as gRPC's protocol asks.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Ok(response);
    }
    let answer = match request.uri().path() {
        EXPORT => export(&receiver, request).await.map(|()| EMPTY_RESPONSE),
        // Whichever service is asked about: they share the queue.
        HEALTH_CHECK => Ok(match readiness::obstacle(&receiver.intake.sink) {
            None => SERVING_RESPONSE,
            Some(_) => NOT_SERVING_RESPONSE,
        }),
        other => Err(Refusal::Path(other.to_owned())),
    };
    Ok(match answer {
        Ok(frame) => success(frame),
        Err(refusal) => {
            receiver.intake.count_refused(Transport::Grpc);
            status::grpc_status(&refusal).into_http()
        }
    })
}

async fn export<B>(receiver: &Receiver, request: Request<B>) -> Result<(), Refusal>
where
    B: HttpBody<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    receiver.admit(request.headers())?;
    let gzip = is_gzip(request.headers())?;
    let mut room = receiver.room();
    let max_bytes = receiver.intake.max_request_bytes;
    let check = |so_far: &[u8]| match frame_length(so_far) {
        Some(length) if length > max_bytes => Err(Refusal::TooLarge { max_bytes }),
        _ => Ok(()),
    };
    let most = max_bytes + FRAME_HEADER_BYTES;
    let framed = body::read(request.into_body(), most, &mut room, check, receiver.pace).await?;
    let message = match unframe(&framed)? {
        Frame::Plain(message) => message,
        Frame::Compressed(message) if gzip => {
            let (message, more) = body::gunzip(message, max_bytes, room).await?;
            room = more;
            message
        }
        Frame::Compressed(_) => {
            return Err(Refusal::Malformed(
                "a compressed message without grpc-encoding".into(),
            ));
        }
    };
    let _worker = receiver.worker(message.len()).await?;
    let accepted = receiver.intake.accept(message, Transport::Grpc).await;
    drop(room);
    accepted
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Refusal> {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(false),
        Some(b"gzip") => Ok(true),
        Some(other) => Err(Refusal::Encoding(
            String::from_utf8_lossy(other).into_owned(),
        )),
    }
}

pub(super) enum Frame {
    Plain(Bytes),
    Compressed(Bytes),
}

/// The length that a frame's header announces, once that much of it has come.
pub(super) fn frame_length(framed: &[u8]) -> Option<usize> {
    let length = framed.get(1..FRAME_HEADER_BYTES)?;
    let length = u32::from_be_bytes(length.try_into().expect("four bytes were taken"));
    usize::try_from(length).ok()
}

/// The one message of a unary call.
pub(super) fn unframe(framed: &Bytes) -> Result<Frame, Refusal> {
    let malformed = |reason: &str| Err(Refusal::Malformed(reason.to_owned()));
    let Some(length) = frame_length(framed) else {
        return malformed("a body shorter than a message's header");
    };
    let message = framed.slice(FRAME_HEADER_BYTES..);
    if message.len() != length {
        let reason = format!("a message of {} bytes announced as {length}", message.len());
        return malformed(&reason);
    }
    match framed[0] {
        0 => Ok(Frame::Plain(message)),
        1 => Ok(Frame::Compressed(message)),
        flag => malformed(&format!("compression flag {flag} is neither 0 nor 1")),
    }
}

fn success(frame: &'static [u8]) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(frame)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(Body::new(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}
