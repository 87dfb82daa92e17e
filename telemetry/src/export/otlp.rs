//! The OTLP exporter of opentelemetry-otlp, built from our settings.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tonic::metadata::MetadataMap;

use super::guarded::Explain;
use super::http_client::OtlpHttpClient;
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
    http: Option<Arc<OtlpHttpClient>>,
}

/// The exporter for `settings`. It must be built inside the runtime it will run on.
pub(crate) fn build(
    settings: &ExporterSettings,
    resource: &Resource,
) -> Result<OtlpExporter, ConfigError> {
    let (mut exporter, http) = match settings.protocol {
        Protocol::Grpc => (grpc(settings), None),
        Protocol::HttpProtobuf => {
            let client = Arc::new(OtlpHttpClient::new(settings));
            (
                http(settings, SharedClient(Arc::clone(&client))),
                Some(client),
            )
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
    Ok(OtlpExporter { exporter, http })
}

fn grpc(settings: &ExporterSettings) -> Result<SpanExporter, ExporterBuildError> {
    let headers = settings.headers.clone();
    // The exporter merges the environment's headers into its metadata; the settings have already
    // decided which apply.
    let own_metadata = move |mut request: tonic::Request<()>| {
        *request.metadata_mut() = MetadataMap::from_headers(headers.clone());
        Ok(request)
    };
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&settings.endpoint)
        .with_timeout(settings.timeout)
        .with_interceptor(own_metadata)
        .with_retry_policy(retry_policy());
    if settings.endpoint.starts_with("https://") {
        builder = builder.with_tls_config(settings.grpc_tls_config());
    }
    if settings.compression == Compression::Gzip {
        builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
    }
    builder.build()
}

fn http(
    settings: &ExporterSettings,
    client: SharedClient,
) -> Result<SpanExporter, ExporterBuildError> {
    let mut builder = SpanExporter::builder()
        .with_http()
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(&settings.endpoint)
        .with_timeout(settings.timeout)
        .with_http_client(client)
        .with_retry_policy(retry_policy());
    if settings.compression == Compression::Gzip {
        builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
    }
    builder.build()
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
        let told = self.http.as_ref().and_then(|client| client.last_failure());
        told.unwrap_or_else(|| match error {
            // The exporter's name for itself helps nobody.
            OTelSdkError::InternalFailure(reason) => {
                let words = reason.strip_prefix("TonicTracesClient export failed with ");
                words.unwrap_or(reason).to_owned()
            }
            other => other.to_string(),
        })
    }
}

/// The client in two hands: the exporter's, and ours to ask why a request failed.
#[derive(Debug)]
struct SharedClient(Arc<OtlpHttpClient>);

#[async_trait]
impl HttpClient for SharedClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.0.send_bytes(request).await
    }
}
