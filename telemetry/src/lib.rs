//! OpenTelemetry for Lantern's programs: the `OTEL_*` environment becomes an exporter, a sampler,
//! propagators, a resource and a guard that flushes at shutdown.
//!
//! ```no_run
//! # async fn run() -> anyhow::Result<()> {
//! use std::time::Duration;
//!
//! use lantern_telemetry::{Settings, Telemetry, process};
//! use opentelemetry::trace::{Span as _, Tracer as _};
//!
//! let settings = Settings::from_env()?;
//! process::init_logging(settings.log_filter());
//! let telemetry = Telemetry::start(&settings, "my-service")?;
//! let tracer = telemetry.tracer("my-crate");
//! tracer.start("work").end();
//! telemetry.shutdown(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! - [`config`]: every variable, parsed once; what cannot be used is a [`ConfigError`] of one line.
//! - `export`: spans as OTLP has them, the queue of these, the ledger of lost ones, and the exporter of spans and metrics.
//! - `propagation`: trace context in HTTP headers.
//! - `kept`: spans exported though nobody sampled them; `linked`: those that belong to sampled ones.
//!   `recorded`: which may be, before they begin.
//! - [`instruments`]: metrics for Prometheus and for OTLP. `exemplars`: those of OTLP, which the SDK does not keep.
//! - `guard`: [`Telemetry`], which holds it all and flushes. Nothing is global.
//! - [`process`]: logging, signals and exit codes, the same in every program.
//! - [`serve`]: an accept loop with its bounds and its drain, for every port but the proxy's.
//!
//! # Variables
//!
//! Where two names are given, the first wins. An empty variable counts as unset; the names of values
//! are read in any case. A value that cannot be used ends the program with exit code 64 before anything
//! binds, and a line that names the variable, its value and what is allowed.
//!
//! `…` stands for `OTEL_EXPORTER_OTLP`.
//!
//! | variable | values | default |
//! |---|---|---|
//! | `…_TRACES_ENDPOINT` | `grpc://host:port` and `http://` (plaintext), `https://`, or `host:port` (https, unless insecure); used as it is | `http://localhost:4317`, for HTTP `http://localhost:4318/v1/traces` |
//! | `…_ENDPOINT` | the same; `/v1/traces` is appended for HTTP | |
//! | `…_TRACES_PROTOCOL`, `…_PROTOCOL` | `grpc`, `http/protobuf`, `http/json` | `grpc` |
//! | `…_TRACES_HEADERS`, `…_HEADERS` | `key=value,…`, percent-encoded | none |
//! | `…_TRACES_TIMEOUT`, `…_TIMEOUT` | milliseconds for one export with its retries | 10000 |
//! | `…_TRACES_COMPRESSION`, `…_COMPRESSION` | `gzip`, `none` | `none` |
//! | `…_TRACES_INSECURE`, `…_INSECURE` | `true`, `false`; for endpoints without a scheme | `false` |
//! | `…_TRACES_CERTIFICATE`, `…_CERTIFICATE` | PEM file of the authorities to trust | the public ones |
//! | `…_TRACES_CLIENT_KEY`, `…_CLIENT_KEY` | PEM file of the client's private key | none |
//! | `…_TRACES_CLIENT_CERTIFICATE`, `…_CLIENT_CERTIFICATE` | PEM file of the client's certificates | none |
//! | `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` | `http://host:port` or `https://host:port`, with `user:password@`; names in capitals or not. gRPC goes by `HTTPS_PROXY`, through a tunnel, what is on this machine by none | none |
//! | `NO_PROXY` | hosts, domains and networks that need no proxy, `*` for all | none |
//! | `OTEL_SERVICE_NAME` | the service | the program's name |
//! | `OTEL_RESOURCE_ATTRIBUTES` | `key=value,…`, percent-encoded | none |
//! | `OTEL_TRACES_SAMPLER` | `always_on`, `always_off`, `traceidratio`, and each with `parentbased_` | `parentbased_always_on` |
//! | `OTEL_TRACES_SAMPLER_ARG` | the ratio, from 0 to 1 | 1 |
//! | `OTEL_PROPAGATORS` | `none`, or a list of `tracecontext`, `baggage`, `b3`, `b3multi`, `jaeger` | `tracecontext,baggage` |
//! | `OTEL_BSP_SCHEDULE_DELAY` | milliseconds between two exports | 5000 |
//! | `OTEL_BSP_EXPORT_TIMEOUT` | milliseconds for one export, whatever the OTLP timeout says | 30000 |
//! | `OTEL_BSP_MAX_QUEUE_SIZE` | spans that may wait | 2048 |
//! | `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` | spans of one export, at most the queue's | 512 |
//! | `OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT`, `OTEL_ATTRIBUTE_COUNT_LIMIT` | attributes of a span | 128 |
//! | `OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT`, `OTEL_ATTRIBUTE_COUNT_LIMIT` | attributes of an event | 128 |
//! | `OTEL_LINK_ATTRIBUTE_COUNT_LIMIT`, `OTEL_ATTRIBUTE_COUNT_LIMIT` | attributes of a link | 128 |
//! | `OTEL_SPAN_EVENT_COUNT_LIMIT`, `OTEL_SPAN_LINK_COUNT_LIMIT` | events, links of a span | 128; links: what the program needs, if more ([`Settings::with_links_per_span`]) |
//! | `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT`, `OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT` | characters of a string value | no limit |
//! | `OTEL_SDK_DISABLED` | `true`, `false`; propagation goes on | `false` |
//! | `OTEL_TRACES_EXPORTER` | `otlp`, `none` | `otlp` |
//! | `OTEL_METRICS_EXPORTER` | `otlp`, for programs that have metrics ([`Settings::with_metrics`]); what has no effect is told in one line | `none` |
//! | `…_METRICS_…` | as `…_TRACES_…`, with the path `/v1/metrics` | |
//! | `OTEL_METRIC_EXPORT_INTERVAL` | milliseconds between two exports of metrics | 60000 |
//! | `…_METRICS_TEMPORALITY_PREFERENCE` | `cumulative`, `delta`, `lowmemory` | `cumulative` |
//! | `OTEL_LOGS_EXPORTER` | the standard names; logs are not exported, and one line says so | `none` |
//! | `OTEL_LOG_LEVEL` | `none`, `error`, `warn`, `info`, `debug`, `trace`: what the program logs | `info` |
//!
//! # When spans cannot be exported
//!
//! An export is retried, as OTLP asks, until its timeout. What is then lost, what the endpoint rejects
//! and what finds the queue full is counted: the first loss is one warning with the endpoint and the
//! reason, repeated at most once a minute with the spans dropped since; one line says that exports
//! succeed again. No request waits for any of it.

pub mod config;
mod error_chain;
mod exemplars;
mod export;
mod guard;
pub mod instruments;
mod kept;
mod limited_log;
mod linked;
pub mod process;
mod propagation;
mod recorded;
pub mod serve;

pub use config::{ConfigError, ExporterSettings, Protocol, Settings};
pub use error_chain::chain;
pub use guard::{FlushError, Telemetry};
pub use kept::KEPT;
pub use limited_log::LimitedLog;
pub use propagation::{Propagator, trace_id_digits, traceparent};
pub use recorded::Recorded;
