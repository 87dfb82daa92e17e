//! Metrics by OTLP. They are sums: an export that fails loses nothing that the next does not have, unless
//! the temporality is delta. So there is no queue and no ledger, only a line of log now and then.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use prost::Message as _;
use tokio::runtime::Handle;

use super::LastFailure;
use super::otlp::{OtlpClient, Signal};
use crate::LimitedLog;
use crate::config::{ConfigError, MetricSettings};
use crate::exemplars::Exemplars;

/// An exporter that keeps to its time and tells of failures.
pub(crate) struct MeteredExporter {
    client: OtlpClient,
    exemplars: Exemplars,
    temporality: Temporality,
    /// Its connections live there; the reader's thread has no runtime.
    runtime: Handle,
    endpoint: String,
    limit: Duration,
    failures: LimitedLog,
}

impl MeteredExporter {
    /// The exporter for `settings`, of metrics and `exemplars`. Its connections live in `runtime`.
    pub(crate) fn new(
        settings: &MetricSettings,
        exemplars: Exemplars,
        runtime: Handle,
    ) -> Result<Self, ConfigError> {
        let inside = runtime.enter();
        let exporter = &settings.exporter;
        let client = OtlpClient::new(exporter, Signal::Metrics, LastFailure::default())?;
        drop(inside);
        Ok(Self {
            client,
            exemplars,
            temporality: settings.temporality,
            runtime,
            endpoint: exporter.endpoint.clone(),
            limit: exporter.timeout,
            failures: LimitedLog::default(),
        })
    }

    /// Sends all of them. An error says why it could not, or what was rejected.
    async fn send(&self, metrics: &ResourceMetrics) -> Result<(), String> {
        let mut request = ExportMetricsServiceRequest::from(metrics);
        self.exemplars.join(&mut request);
        let request = request.encode_to_vec().into();
        let sent = tokio::time::timeout(self.limit, self.client.export(request));
        let Ok(answer) = sent.await else {
            return Err(format!("no answer within {:?}", self.limit));
        };
        match answer? {
            rejection if rejection.count > 0 => Err(format!(
                "it rejected {} data points: {}",
                rejection.count, rejection.message
            )),
            _ => Ok(()),
        }
    }
}

impl PushMetricExporter for MeteredExporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut sending = pin!(self.send(metrics));
        // What is exported is borrowed, so the export cannot be spawned there.
        let result = poll_fn(|cx| {
            let _inside = self.runtime.enter();
            sending.as_mut().poll(cx)
        })
        .await;
        result.map_err(|reason| {
            if let Some(failures) = self.failures.due(1) {
                let endpoint = &self.endpoint;
                tracing::warn!(failures, "cannot export metrics to {endpoint}: {reason}");
            }
            OTelSdkError::InternalFailure(reason)
        })
    }

    fn force_flush(&self) -> OTelSdkResult {
        // Nothing waits here.
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        self.temporality
    }
}
