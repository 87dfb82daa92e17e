//! What clients of our ports may take, each bound a flag.

use std::time::Duration;

use clap::value_parser;
use lantern_telemetry::serve::Limits;

const DAY_SECONDS: u64 = 86_400;

/// What the flags are when they are not typed.
pub(super) const DEFAULTS: LimitArgs = LimitArgs {
    max_connections: 1024,
    max_streams: 128,
    max_header_bytes: 64 * 1024,
    open_timeout_seconds: 10,
    // As long as clients keep an unused connection: closing it sooner would meet their next request.
    idle_timeout_seconds: 90,
    body_pause_seconds: 10,
    // 64 MiB at 2 Mbit/s.
    body_timeout_seconds: 300,
};

/// The bounds as typed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at once on each port; further ones wait
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULTS.max_connections,
        value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Requests at once on one HTTP/2 connection
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULTS.max_streams,
        value_parser = value_parser!(u32).range(1..=65_536))]
    pub max_streams: u32,

    /// The largest head of a request
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULTS.max_header_bytes,
        value_parser = value_parser!(u32).range(8_192..=16_777_216))]
    pub max_header_bytes: u32,

    /// How long a new connection may say nothing, its TLS handshake included
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULTS.open_timeout_seconds,
        value_parser = value_parser!(u64).range(1..=DAY_SECONDS))]
    pub open_timeout_seconds: u64,

    /// How long an HTTP/1 connection is kept without a request; HTTP/2 is pinged instead
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULTS.idle_timeout_seconds,
        value_parser = value_parser!(u64).range(1..=DAY_SECONDS))]
    pub idle_timeout_seconds: u64,

    /// How long a request's body may pause
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULTS.body_pause_seconds,
        value_parser = value_parser!(u64).range(1..=DAY_SECONDS))]
    pub body_pause_seconds: u64,

    /// How long all of a request's body may take
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULTS.body_timeout_seconds,
        value_parser = value_parser!(u64).range(1..=DAY_SECONDS))]
    pub body_timeout_seconds: u64,
}

/// How slow a sender may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Without a byte of its request's body.
    pub silence: Duration,
    /// For all of it.
    pub whole: Duration,
}

impl LimitArgs {
    pub(super) fn ports(&self) -> Limits {
        Limits {
            connections: self.max_connections as usize,
            streams: self.max_streams,
            first_bytes: Duration::from_secs(self.open_timeout_seconds),
            head: Duration::from_secs(self.idle_timeout_seconds),
            header_bytes: self.max_header_bytes,
        }
    }

    pub(super) fn pace(&self) -> Pace {
        Pace {
            silence: Duration::from_secs(self.body_pause_seconds),
            whole: Duration::from_secs(self.body_timeout_seconds),
        }
    }
}
