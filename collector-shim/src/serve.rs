//! What clients of our ports may take; the serving itself is [`lantern_telemetry::serve`].

use std::time::Duration;

use lantern_telemetry::serve::Limits;
pub(crate) use lantern_telemetry::serve::{Lifetime, Version, serve};

/// The same on every port.
pub(crate) const LIMITS: Limits = Limits {
    connections: 1024,
    streams: 128,
    first_bytes: Duration::from_secs(10),
    // As long as clients keep an unused connection: closing it sooner would meet their next request.
    head: Duration::from_secs(90),
    header_bytes: 64 * 1024,
};
