//! The port that Prometheus scrapes: `/metrics`, as OpenMetrics, which alone has room for exemplars.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use lantern_telemetry::serve::{self, Lifetime, Limits, Version};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Metrics;

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

const LIMITS: Limits = Limits {
    connections: 64,
    streams: 16,
    first_bytes: Duration::from_secs(10),
    head: Duration::from_secs(30),
    header_bytes: 16 * 1024,
};

/// A scrape takes milliseconds.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// The bound port.
pub(crate) struct Endpoint {
    listener: TcpListener,
    local_addr: SocketAddr,
    metrics: Metrics,
}

impl Endpoint {
    pub(crate) fn new(listener: TcpListener, local_addr: SocketAddr, metrics: Metrics) -> Self {
        Self {
            listener,
            local_addr,
            metrics,
        }
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown`.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let metrics = self.metrics;
        let service = service_fn(move |request| {
            let response = answer(&request, &metrics);
            async { Ok::<_, Infallible>(response) }
        });
        let lifetime = Lifetime {
            shutdown,
            abandoned: CancellationToken::new(),
            drain_grace: DRAIN_GRACE,
        };
        serve::serve(self.listener, Version::Any, service, LIMITS, lifetime).await;
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, name, value, body) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => {
            (StatusCode::OK, CONTENT_TYPE, OPEN_METRICS, metrics.render())
        }
        ("/metrics", _) => {
            let methods = HeaderValue::from_static("GET, HEAD");
            (
                StatusCode::METHOD_NOT_ALLOWED,
                ALLOW,
                methods,
                String::new(),
            )
        }
        _ => {
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            let hint = "metrics are at /metrics\n".to_owned();
            (StatusCode::NOT_FOUND, CONTENT_TYPE, text, hint)
        }
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
}
