//! What clients of the API may take; the serving itself is [`lantern_telemetry::serve`].

use std::time::Duration;

use axum::Router;
use hyper_util::service::TowerToHyperService;
pub use lantern_telemetry::serve::Lifetime;
use lantern_telemetry::serve::{self, Limits, Version};
use tokio::net::TcpListener;

const LIMITS: Limits = Limits {
    connections: 4096,
    streams: 256,
    first_bytes: Duration::from_secs(30),
    // As long as clients keep an unused connection: closing it sooner would meet their next request.
    head: Duration::from_secs(90),
    header_bytes: 64 * 1024,
};

/// Serves until told to stop. When this returns, every request has ended or been dropped.
pub async fn serve(listener: TcpListener, router: Router, lifetime: Lifetime) {
    let service = TowerToHyperService::new(router);
    serve::serve(listener, Version::Any, service, LIMITS, lifetime).await;
}
