//! What the viewer's port serves: over the embedded store one page and Jaeger's query API;
//! always health, readiness and metrics.

mod jaeger;
pub(crate) mod metrics;
mod overview;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::handle::ShimHandle;
use crate::intake::Sink;
use crate::readiness;

const PAGE: &str = include_str!("page.html");
/// Where the page wants the number that lets its own script and style through its policy.
const NONCE: &str = "{{nonce}}";

/// All that the port serves.
pub(crate) fn router(handle: ShimHandle) -> Router {
    let common = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::metrics))
        .with_state(handle.clone());
    let Sink::Store(store) = handle.sink else {
        return common.layer(axum::middleware::map_response(secured));
    };
    let pages = Router::new()
        .route("/", get(page))
        .route("/search", get(page))
        .route("/trace/{id}", get(page))
        .route("/ui/traces", get(overview::overview))
        .with_state(std::sync::Arc::clone(&store));
    common
        .merge(pages)
        .merge(jaeger::router(store))
        .layer(axum::middleware::map_response(secured))
}

/// Unlike health, which says that the process lives, this follows the queue.
async fn ready(State(handle): State<ShimHandle>) -> (StatusCode, String) {
    match readiness::obstacle(&handle.sink) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}

/// The page runs its one script and style and talks to this server; nothing else.
async fn page() -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).expect("hex digits and plain words");
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (header::CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, PAGE.replace(NONCE, &nonce)).into_response()
}

/// Adds what every answer carries.
async fn secured(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, HeaderValue); 4] = [
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'"),
        ),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}
