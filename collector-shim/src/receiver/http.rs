//! OTLP/HTTP in: `POST /v1/traces` in protobuf and in JSON.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::post;
use http::{HeaderMap, HeaderValue, Method, Response, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::status::{Encoding, http_response};
use super::{Receiver, body, json};
use crate::config::Origins;
use crate::counts::Transport;
use crate::intake::{Refusal, beside_if_large};

/// How long a browser need not ask again.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// All that the port serves.
pub(crate) fn router(receiver: Receiver) -> Router {
    let origins = receiver.door.origins.clone();
    let router = Router::new()
        .route("/v1/traces", post(export).fallback(wrong_method))
        .fallback(wrong_path)
        .with_state(receiver);
    match origins {
        Some(origins) => router.layer(cross_origin(origins)),
        None => router,
    }
}

/// Lets pages of `origins` send, and answers what their browsers ask before that.
fn cross_origin(origins: Origins) -> CorsLayer {
    let origins = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::These(origins) => AllowOrigin::list(origins),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods(Method::POST)
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .max_age(PREFLIGHT_AGE)
}

async fn export(State(receiver): State<Receiver>, request: Request) -> Response<Body> {
    let encoding = encoding(request.headers());
    // A body of unknown type is refused in the one that people can read.
    let answer_in = *encoding.as_ref().unwrap_or(&Encoding::Json);
    let accepted = match encoding {
        Ok(encoding) => accept(&receiver, request, encoding).await,
        Err(refusal) => Err(refusal),
    };
    match accepted {
        Ok(()) => success(answer_in),
        Err(refusal) => {
            receiver.intake.count_refused(Transport::Http);
            http_response(&refusal, answer_in)
        }
    }
}

async fn wrong_method(method: Method, headers: HeaderMap) -> Response<Body> {
    let refusal = Refusal::Method(method.to_string());
    http_response(&refusal, encoding(&headers).unwrap_or(Encoding::Json))
}

async fn wrong_path(uri: Uri, headers: HeaderMap) -> Response<Body> {
    let refusal = Refusal::Path(uri.path().to_owned());
    http_response(&refusal, encoding(&headers).unwrap_or(Encoding::Json))
}

async fn accept(receiver: &Receiver, request: Request, encoding: Encoding) -> Result<(), Refusal> {
    receiver.admit(request.headers())?;
    let gzip = is_gzip(request.headers())?;
    let mut room = receiver.room();
    let max_bytes = receiver.intake.max_request_bytes;
    let body = request.into_body();
    let mut message = body::read(body, max_bytes, &mut room, |_| Ok(()), receiver.pace).await?;
    if gzip {
        (message, room) = body::gunzip(message, max_bytes, room).await?;
    }
    let _worker = receiver.worker(message.len()).await?;
    if encoding == Encoding::Json {
        message = beside_if_large(message.len(), move || {
            json::to_protobuf(&message).map_err(Refusal::from)
        })
        .await?;
    }
    let accepted = receiver.intake.accept(message, Transport::Http).await;
    drop(room);
    accepted
}

/// What the body is in, parameters such as `; charset=utf-8` set aside.
fn encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let content_type = String::from_utf8_lossy(content_type);
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    [Encoding::Protobuf, Encoding::Json]
        .into_iter()
        .find(|encoding| media_type.eq_ignore_ascii_case(encoding.media_type()))
        .ok_or_else(|| Refusal::MediaType(content_type.into_owned()))
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Refusal> {
    let named = headers
        .get(header::CONTENT_ENCODING)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let named = String::from_utf8_lossy(named);
    match named.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" => Ok(true),
        _ => Err(Refusal::Encoding(named.into_owned())),
    }
}

/// An `ExportTraceServiceResponse` of full success: no field is set.
fn success(encoding: Encoding) -> Response<Body> {
    let body = match encoding {
        Encoding::Protobuf => Body::empty(),
        Encoding::Json => Body::from("{}"),
    };
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(encoding.media_type());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
