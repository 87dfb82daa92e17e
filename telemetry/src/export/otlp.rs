//! The OTLP exporter of opentelemetry-otlp, built from our settings.

use std::time::Duration;

use opentelemetry_otlp::{
    ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tonic::metadata::MetadataMap;

use super::grpc_channel::channel;
use super::guarded::Explain;
use super::http_client::OtlpHttpClient;
use super::last_failure::LastFailure;
use crate::chain;
use crate::config::{Compression, ConfigError, ExporterSettings, Protocol};

/// More retries than fit into an export: its time is the bound, not their number.
const MAX_RETRIES: usize = 100;
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);
const MAX_RETRY_JITTER: Duration = Duration::from_millis(100);

/// An OTLP exporter, by either protocol.
#[derive(Debug)]
pub(crate) struct OtlpExporter {
    exporter: SpanExporter,
    last_failure: LastFailure,
}

/// The exporter for `settings`. It must be built inside the runtime it will run on. Why an attempt
/// failed goes into `last_failure`.
pub(crate) fn build(
    settings: &ExporterSettings,
    resource: &Resource,
    last_failure: LastFailure,
) -> Result<OtlpExporter, ConfigError> {
    let mut exporter = match settings.protocol {
        Protocol::Grpc => grpc(settings, last_failure.clone()),
        Protocol::HttpProtobuf | Protocol::HttpJson => {
            http(settings, last_failure.clone()).map_err(|error| chain(&error))
        }
    };
    if let Ok(exporter) = &mut exporter {
        exporter.set_resource(resource);
    }
    // Everything was validated before; should the exporter know better, its words are the best there are.
    let exporter = exporter.map_err(|error| {
        let variable = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        ConfigError::new(
            variable,
            &settings.endpoint,
            format!("another one ({error})"),
        )
    })?;
    Ok(OtlpExporter {
        exporter,
        last_failure,
    })
}

fn grpc(settings: &ExporterSettings, last_failure: LastFailure) -> Result<SpanExporter, String> {
    let builder = SpanExporter::builder().with_tonic();
    let builder = grpc_settings(builder, settings, last_failure)?;
    builder.build().map_err(|error| chain(&error))
}

fn http(
    settings: &ExporterSettings,
    last_failure: LastFailure,
) -> Result<SpanExporter, ExporterBuildError> {
    http_settings(SpanExporter::builder().with_http(), settings, last_failure).build()
}

/// What an exporter by gRPC is told, whatever it exports.
pub(super) fn grpc_settings<B: WithTonicConfig + WithExportConfig>(
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

/// What an exporter by HTTP is told, whatever it exports.
pub(super) fn http_settings<B: WithHttpConfig + WithExportConfig>(
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

impl opentelemetry_sdk::trace::SpanExporter for OtlpExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.exporter.export(batch).await
    }
}

impl Explain for OtlpExporter {
    fn explain(&self, error: &OTelSdkError) -> String {
        self.last_failure.get().unwrap_or_else(|| match error {
            // The exporter's name for itself helps nobody.
            OTelSdkError::InternalFailure(reason) => {
                let words = reason.strip_prefix("TonicTracesClient export failed with ");
                words.unwrap_or(reason).to_owned()
            }
            other => other.to_string(),
        })
    }
}
