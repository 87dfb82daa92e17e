//! Metrics by OTLP. They are sums: an export that fails loses nothing that the next does not have, unless
//! the temporality is delta. So there is no queue and no ledger, only a line of log now and then.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use opentelemetry_otlp::{
    MetricExporter, RetryPolicy, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use tokio::runtime::Handle;
use tonic::metadata::MetadataMap;

use super::LastFailure;
use super::grpc_channel::channel;
use super::http_client::OtlpHttpClient;
use crate::config::{Compression, ConfigError, ExporterSettings, MetricSettings, Protocol};
use crate::{LimitedLog, chain};

/// More retries than fit into an export: its time is the bound, not their number.
const MAX_RETRIES: usize = 100;
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);
const MAX_RETRY_JITTER: Duration = Duration::from_millis(100);

/// An exporter that keeps to its time and tells of failures.
pub(crate) struct MeteredExporter {
    exporter: MetricExporter,
    /// Its connections live there; the reader's thread has no runtime.
    runtime: Handle,
    endpoint: String,
    limit: Duration,
    last_failure: LastFailure,
    failures: LimitedLog,
}

/// The exporter for `settings`. Its connections live in `runtime`.
pub(crate) fn build_metrics(
    settings: &MetricSettings,
    runtime: Handle,
) -> Result<MeteredExporter, ConfigError> {
    let inside = runtime.enter();
    let last_failure = LastFailure::default();
    let exporter = &settings.exporter;
    let builder = MetricExporter::builder().with_temporality(settings.temporality);
    let built = match exporter.protocol {
        Protocol::Grpc => grpc_settings(builder.with_tonic(), exporter, last_failure.clone())
            .and_then(|builder| builder.build().map_err(|error| chain(&error))),
        Protocol::HttpProtobuf | Protocol::HttpJson => {
            http_settings(builder.with_http(), exporter, last_failure.clone())
                .build()
                .map_err(|error| chain(&error))
        }
    };
    let built = built.map_err(|error| {
        let variable = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
        ConfigError::new(
            variable,
            &exporter.endpoint,
            format!("another one ({error})"),
        )
    })?;
    drop(inside);
    Ok(MeteredExporter {
        exporter: built,
        runtime,
        endpoint: exporter.endpoint.clone(),
        limit: exporter.timeout,
        last_failure,
        failures: LimitedLog::default(),
    })
}

/// What an exporter by gRPC is told.
fn grpc_settings<B: WithTonicConfig + WithExportConfig>(
    builder: B,
    settings: &ExporterSettings,
    last_failure: LastFailure,
) -> Result<B, String> {
    let channel = channel(settings, last_failure).map_err(|error| chain(&error))?;
    let headers = settings.headers.clone();
    // The exporter merges the environment's headers into its metadata; the settings have already
    // decided which apply.
    let own_metadata = move |mut request: tonic::Request<()>| {
        *request.metadata_mut() = MetadataMap::from_headers(headers.clone());
        Ok(request)
    };
    let builder = builder
        .with_channel(channel)
        .with_timeout(settings.timeout)
        .with_interceptor(own_metadata)
        .with_retry_policy(retry_policy());
    Ok(match settings.compression {
        Some(Compression::Gzip) => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
        None | Some(Compression::None) => builder,
    })
}

/// What an exporter by HTTP is told.
fn http_settings<B: WithHttpConfig + WithExportConfig>(
    builder: B,
    settings: &ExporterSettings,
    last_failure: LastFailure,
) -> B {
    let builder = builder
        .with_protocol(match settings.protocol {
            Protocol::HttpJson => opentelemetry_otlp::Protocol::HttpJson,
            Protocol::Grpc | Protocol::HttpProtobuf => opentelemetry_otlp::Protocol::HttpBinary,
        })
        .with_endpoint(&settings.endpoint)
        .with_timeout(settings.timeout)
        .with_http_client(OtlpHttpClient::new(settings, last_failure))
        .with_retry_policy(retry_policy());
    match settings.compression {
        Some(Compression::Gzip) => builder.with_compression(opentelemetry_otlp::Compression::Gzip),
        None | Some(Compression::None) => builder,
    }
}

fn retry_policy() -> RetryPolicy {
    RetryPolicy::recommended()
        .with_max_retries(MAX_RETRIES)
        .with_initial_delay(FIRST_RETRY_DELAY)
        .with_max_delay(MAX_RETRY_DELAY)
        .with_max_jitter(MAX_RETRY_JITTER)
}

impl PushMetricExporter for MeteredExporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut export = pin!(async {
            let exported = tokio::time::timeout(self.limit, self.exporter.export(metrics));
            exported
                .await
                .unwrap_or(Err(OTelSdkError::Timeout(self.limit)))
        });
        // What is exported is borrowed, so the export cannot be spawned there.
        let result = poll_fn(|cx| {
            let _inside = self.runtime.enter();
            export.as_mut().poll(cx)
        })
        .await;
        if let Err(error) = &result
            && let Some(failures) = self.failures.due(1)
        {
            let endpoint = &self.endpoint;
            let reason = self.last_failure.get().unwrap_or_else(|| error.to_string());
            tracing::warn!(failures, "cannot export metrics to {endpoint}: {reason}");
        }
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
