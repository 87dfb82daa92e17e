//! A [`Refusal`] in each protocol's words: the one place that chooses codes.
//!
//! <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-response> and `#otlphttp-response`. A
//! request that is too large must not carry RetryInfo: it would be sent again, for nothing.

use std::time::Duration;

use http::StatusCode;
use prost::Message as _;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::coding::Coding;
use crate::intake::Refusal;

/// The two encodings of OTLP/HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Encoding::Protobuf => "application/x-protobuf",
            Encoding::Json => "application/json",
        }
    }
}

/// Answers stay small, whatever of the request is named in them.
const MAX_MESSAGE_CHARS: usize = 300;

fn message(refusal: &Refusal) -> String {
    let whole = refusal.to_string();
    match whole.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &whole[..end]),
        None => whole,
    }
}

fn codes(refusal: &Refusal) -> (Code, StatusCode) {
    match refusal {
        Refusal::Malformed(_) => (Code::InvalidArgument, StatusCode::BAD_REQUEST),
        Refusal::TooLarge { .. } | Refusal::TooMuch(_) => {
            (Code::ResourceExhausted, StatusCode::PAYLOAD_TOO_LARGE)
        }
        Refusal::Encoding(_) | Refusal::MediaType(_) => {
            (Code::Unimplemented, StatusCode::UNSUPPORTED_MEDIA_TYPE)
        }
        Refusal::Unauthorized => (Code::Unauthenticated, StatusCode::UNAUTHORIZED),
        Refusal::Method(_) => (Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED),
        Refusal::Path(_) | Refusal::Signal { .. } => (Code::Unimplemented, StatusCode::NOT_FOUND),
        Refusal::Backend { code, .. } => (*code, backend_status(*code)),
        Refusal::Unavailable { .. } => (Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// The HTTP status that says what a backend said for good: none of those that are tried again.
fn backend_status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::ResourceExhausted => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unimplemented | Code::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// For OTLP/gRPC.
pub(crate) fn grpc_status(refusal: &Refusal) -> tonic::Status {
    let (code, _) = codes(refusal);
    let mut status = match refusal {
        Refusal::Unavailable { retry_after, .. } => tonic::Status::with_error_details(
            code,
            message(refusal),
            ErrorDetails::with_retry_info(Some(*retry_after)),
        ),
        _ => tonic::Status::new(code, message(refusal)),
    };
    if let Refusal::Encoding(_) = refusal {
        let accepted = tonic::metadata::MetadataValue::from_static(Coding::GRPC_ACCEPTED);
        status
            .metadata_mut()
            .insert("grpc-accept-encoding", accepted);
    }
    status
}

/// For OTLP/HTTP: a `google.rpc.Status` in the request's own encoding.
pub(crate) fn http_response(
    refusal: &Refusal,
    encoding: Encoding,
) -> http::Response<axum::body::Body> {
    let (code, http_status) = codes(refusal);
    let message = message(refusal);
    let body = match encoding {
        Encoding::Json => serde_json::json!({ "code": code as i32, "message": message })
            .to_string()
            .into_bytes(),
        Encoding::Protobuf => tonic_types::Status {
            code: code as i32,
            message,
            details: Vec::new(),
        }
        .encode_to_vec(),
    };
    let mut response = http::Response::new(axum::body::Body::from(body));
    *response.status_mut() = http_status;
    let headers = response.headers_mut();
    let content_type = http::HeaderValue::from_static(encoding.media_type());
    headers.insert(http::header::CONTENT_TYPE, content_type);
    match refusal {
        Refusal::Unavailable { retry_after, .. } => {
            headers.insert(
                http::header::RETRY_AFTER,
                whole_seconds(*retry_after).into(),
            );
        }
        Refusal::Method(_) => {
            headers.insert(http::header::ALLOW, http::HeaderValue::from_static("POST"));
        }
        // RFC 9110 15.5.2: how to be let in.
        Refusal::Unauthorized => {
            headers.insert(
                http::header::WWW_AUTHENTICATE,
                http::HeaderValue::from_static("Bearer"),
            );
        }
        // RFC 9110 15.5.16: what would have been accepted.
        Refusal::Encoding(_) => {
            headers.insert(
                http::header::ACCEPT_ENCODING,
                http::HeaderValue::from_static(Coding::ACCEPTED),
            );
        }
        Refusal::Malformed(_)
        | Refusal::TooLarge { .. }
        | Refusal::TooMuch(_)
        | Refusal::MediaType(_)
        | Refusal::Path(_)
        | Refusal::Signal { .. }
        | Refusal::Backend { .. } => {}
    }
    response
}

/// At least one second: 0 would mean at once.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs() + u64::from(delay.subsec_nanos() > 0)
}
