//! OpenTelemetry for Lantern's programs: the `OTEL_*` environment becomes an exporter, a sampler,
//! propagators, a resource and a guard that flushes at shutdown.

pub mod config;
mod export;
mod guard;
pub mod process;
mod propagation;

pub use config::{ConfigError, ExporterSettings, Protocol, Settings};
pub use guard::{FlushError, Telemetry};
pub use propagation::Propagator;
