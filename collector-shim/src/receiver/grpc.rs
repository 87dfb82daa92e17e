//! OTLP/gRPC in: the `Export` of each signal's service, and the standard health check.
//!
//! The framing is read here and not by `tonic::server`, for two reasons. The message has to
//! reach the intake as the bytes that were sent. And tonic answers a declared oversize with
//! OUT_OF_RANGE, which OTLP calls worth a retry, and reads the first of several gzip members as
//! if it were all of them.

use std::convert::Infallible;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as HttpBody;
use tonic::Status;
use tonic::body::Body;

use super::status::Encoding;
use super::{Receiver, body, status};
use crate::coding::Coding;
use crate::counts::Transport;
use crate::exporter::Accepted;
use crate::intake::Refusal;
use crate::readiness;
use crate::signal::Signal;

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const MEDIA_TYPE: &str = "application/grpc";

/// A compression flag and a big-endian length stand before each message.
const FRAME_HEADER_BYTES: usize = 5;
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
    let path = request.uri().path();
    let signal = Signal::ALL
        .into_iter()
        .find(|signal| path == signal.grpc_path());
    let answer = match (signal, path) {
        (Some(signal), _) => export(&receiver, signal, request)
            .await
            .map(|accepted| response(&accepted)),
        // Whichever service is asked about: they share the queue.
        (None, HEALTH_CHECK) => Ok(Bytes::from_static(
            match readiness::obstacle(&receiver.intake.sink) {
                None => SERVING_RESPONSE,
                Some(_) => NOT_SERVING_RESPONSE,
            },
        )),
        (None, other) => Err(Refusal::Path(other.to_owned())),
    };
    Ok(match answer {
        Ok(frame) => success(frame),
        Err(refusal) => {
            receiver.intake.count_refused(Transport::Grpc);
            status::grpc_status(&refusal).into_http()
        }
    })
}

async fn export<B>(
    receiver: &Receiver,
    signal: Signal,
    request: Request<B>,
) -> Result<Accepted, Refusal>
where
    B: HttpBody<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    receiver.admit(request.headers())?;
    receiver.intake.check_signal(signal)?;
    let coding = coding(request.headers())?;
    let mut room = receiver.room();
    let max_bytes = receiver.intake.max_request_bytes;
    let check = |so_far: &[u8]| match frame_length(so_far) {
        Some(length) if length > max_bytes => Err(Refusal::TooLarge { max_bytes }),
        length => Ok(length.map(|length| length + FRAME_HEADER_BYTES)),
    };
    let most = max_bytes + FRAME_HEADER_BYTES;
    let body = request.into_body();
    let framed = body::read(body, most, &mut room, check, receiver.pace).await?;
    let (coding, bytes) = match unframe(&framed)? {
        Frame::Plain(message) => (Coding::Identity, message),
        Frame::Compressed(message) if coding != Coding::Identity => (coding, message),
        Frame::Compressed(_) => {
            return Err(Refusal::Malformed(
                "a compressed message without grpc-encoding".into(),
            ));
        }
    };
    let body = super::Body {
        transport: Transport::Grpc,
        signal,
        encoding: Encoding::Protobuf,
        coding,
        bytes,
    };
    receiver.accept(body, room).await
}

/// How compressed messages of this call are compressed.
fn coding(headers: &HeaderMap) -> Result<Coding, Refusal> {
    let named = headers
        .get("grpc-encoding")
        .map_or(&b""[..], HeaderValue::as_bytes);
    let named = String::from_utf8_lossy(named);
    Coding::named(&named).ok_or_else(|| Refusal::Encoding(named.into_owned()))
}

/// A frame around the response.
fn response(accepted: &Accepted) -> Bytes {
    let response = accepted.to_protobuf();
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + response.len());
    frame.put_u8(0);
    frame.put_u32(response.len() as u32);
    frame.put_slice(&response);
    frame.freeze()
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

fn success(frame: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let body = Full::new(frame).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(Body::new(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}
