//! OTLP/HTTP in: `POST /v1/traces` and the other signals' paths, in protobuf and in JSON.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::post;
use http::{HeaderMap, HeaderValue, Method, Response, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::status::{Encoding, http_response};
use super::{Receiver, body};
use crate::coding::Coding;
use crate::config::Origins;
use crate::counts::Transport;
use crate::exporter::Accepted;
use crate::intake::Refusal;
use crate::signal::Signal;

/// How long a browser need not ask again.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// All that the port serves.
pub(crate) fn router(receiver: Receiver) -> Router {
    let origins = receiver.door.origins.clone();
    let mut router = Router::new();
    for signal in Signal::ALL {
        let export =
            move |State(receiver), request| async move { export(receiver, signal, request).await };
        router = router.route(signal.http_path(), post(export).fallback(wrong_method));
    }
    let router = router.fallback(wrong_path).with_state(receiver);
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

async fn export(receiver: Receiver, signal: Signal, request: Request) -> Response<Body> {
    let encoding = encoding(request.headers());
    // A body of unknown type is refused in the one that people can read.
    let answer_in = *encoding.as_ref().unwrap_or(&Encoding::Json);
    let accepted = match encoding {
        Ok(encoding) => accept(&receiver, signal, request, encoding).await,
        Err(refusal) => Err(refusal),
    };
    match accepted {
        Ok(accepted) => success(&accepted, signal, answer_in),
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

async fn accept(
    receiver: &Receiver,
    signal: Signal,
    request: Request,
    encoding: Encoding,
) -> Result<Accepted, Refusal> {
    receiver.admit(request.headers())?;
    receiver.intake.check_signal(signal)?;
    let coding = coding(request.headers())?;
    let mut room = receiver.room();
    let max_bytes = receiver.intake.max_request_bytes;
    let body = request.into_body();
    let bytes = body::read(body, max_bytes, &mut room, |_| Ok(None), receiver.pace).await?;
    let body = super::Body {
        transport: Transport::Http,
        signal,
        encoding,
        coding,
        bytes,
    };
    receiver.accept(body, room).await
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

fn coding(headers: &HeaderMap) -> Result<Coding, Refusal> {
    let named = headers
        .get(header::CONTENT_ENCODING)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let named = String::from_utf8_lossy(named);
    Coding::named(&named).ok_or_else(|| Refusal::Encoding(named.into_owned()))
}

fn success(accepted: &Accepted, signal: Signal, encoding: Encoding) -> Response<Body> {
    let body = match encoding {
        Encoding::Protobuf => Body::from(accepted.to_protobuf()),
        Encoding::Json => Body::from(accepted.to_json(signal)),
    };
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(encoding.media_type());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
