//! Metrics by OTLP. They are sums: an export that fails loses nothing that the next does not have, unless
//! the temporality is delta. So there is no queue and no ledger, only a line of log now and then.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use tokio::runtime::Handle;

use super::LastFailure;
use super::otlp::{grpc_settings, http_settings};
use crate::config::{ConfigError, MetricSettings, Protocol};
use crate::{LimitedLog, chain};

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
