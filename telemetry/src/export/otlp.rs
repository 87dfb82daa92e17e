//! The OTLP exporter: a request, encoded once, is sent by either protocol, and sent again for as long as
//! its time allows where the endpoint may take it later.

use std::io::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::Request;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use opentelemetry_http::HttpClient as _;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::grpc_channel::GrpcClient;
use super::http_client::OtlpHttpClient;
use super::last_failure::LastFailure;
use super::retry::{Backoff, Retry};
use crate::chain;
use crate::config::{Compression, ConfigError, ExporterSettings, Protocol};

/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/#user-agent>
const AGENT: &str = concat!("OTel-OTLP-Exporter-Rust/", env!("CARGO_PKG_VERSION"));

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Traces,
    Metrics,
}

/// A client of one endpoint for one signal.
pub(crate) struct OtlpClient {
    signal: Signal,
    transport: Transport,
    /// The longest that an export may take, its retries included.
    timeout: Duration,
    last_failure: LastFailure,
}

enum Transport {
    Grpc(Box<GrpcClient>),
    Http {
        client: Box<OtlpHttpClient>,
        endpoint: String,
        is_json: bool,
        is_gzip: bool,
    },
}

/// What an endpoint has rejected of what it took.
#[derive(Debug, Default)]
pub(super) struct Rejection {
    /// Spans or data points.
    pub(super) count: usize,
    pub(super) message: String,
}

/// Why an attempt failed.
struct Failure {
    words: String,
    retry: Retry,
}

/// `ExportTraceServiceResponse` and `ExportMetricsServiceResponse`, which are the same on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl OtlpClient {
    /// The client for `settings`. It must be made inside the runtime it will run on. Why an attempt
    /// failed goes into `last_failure`.
    pub(crate) fn new(
        settings: &ExporterSettings,
        signal: Signal,
        last_failure: LastFailure,
    ) -> Result<Self, ConfigError> {
        // Everything was validated before; should the client know better, its words are the best there are.
        let refused = |reason: String| {
            ConfigError::new(
                signal.endpoint_variable(),
                &settings.endpoint,
                format!("another one ({reason})"),
            )
        };
        let transport = match settings.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(
                GrpcClient::new(settings, signal.grpc_path(), last_failure.clone())
                    .map_err(|error| refused(chain(&error)))?,
            )),
            Protocol::HttpProtobuf | Protocol::HttpJson => Transport::Http {
                client: Box::new(OtlpHttpClient::new(settings, last_failure.clone())),
                endpoint: settings.endpoint.clone(),
                is_json: settings.protocol == Protocol::HttpJson,
                is_gzip: settings.compression == Some(Compression::Gzip),
            },
        };
        Ok(Self {
            signal,
            transport,
            timeout: settings.timeout,
            last_failure,
        })
    }

    /// Sends a request, which is protobuf. An error says why it could not.
    pub(super) async fn export(&self, request: Bytes) -> Result<Rejection, String> {
        let request = self.transport.prepared(request, self.signal);
        let end = Instant::now() + self.timeout;
        let mut backoff = Backoff::default();
        loop {
            // What a transport logs of each attempt is not for the program's log.
            let attempt = self.transport.send(request.clone(), self.signal);
            let Failure { words, retry } =
                match attempt.with_subscriber(NoSubscriber::default()).await {
                    Ok(response) => {
                        self.last_failure.set(None);
                        return Ok(response.rejection());
                    }
                    Err(failure) => failure,
                };
            // Transports know more of connections that fail than their errors say.
            let reason = self.last_failure.get().unwrap_or(words);
            let Retry::After(asked) = retry else {
                return Err(reason);
            };
            let delay = backoff.next_delay(asked);
            if delay >= end.saturating_duration_since(Instant::now()) {
                return Err(reason);
            }
            sleep(delay).await;
        }
    }
}

impl Transport {
    /// The bytes as they are sent, each time.
    fn prepared(&self, request: Bytes, signal: Signal) -> Bytes {
        match self {
            // Its frames are compressed as they are written.
            Self::Grpc(_) => request,
            Self::Http {
                is_json, is_gzip, ..
            } => {
                let request = if *is_json {
                    signal.json(request)
                } else {
                    request
                };
                if *is_gzip {
                    gzip(&request).expect("memory takes all").into()
                } else {
                    request
                }
            }
        }
    }

    async fn send(&self, request: Bytes, signal: Signal) -> Result<Response, Failure> {
        match self {
            Self::Grpc(client) => {
                let sent = client.send(request).await;
                sent.map_err(|status| Failure::of_status(&status))
            }
            Self::Http {
                client,
                endpoint,
                is_json,
                is_gzip,
            } => {
                let content_type = if *is_json {
                    "application/json"
                } else {
                    "application/x-protobuf"
                };
                let mut builder = Request::post(endpoint)
                    .header(CONTENT_TYPE, content_type)
                    .header(USER_AGENT, AGENT);
                if *is_gzip {
                    builder = builder.header(CONTENT_ENCODING, "gzip");
                }
                let request = builder
                    .body(request)
                    .expect("the endpoint is a checked URL");
                let response = match client.send_bytes(request).await {
                    Ok(response) => response,
                    Err(error) => {
                        return Err(Failure {
                            words: chain(error.as_ref()),
                            retry: Retry::After(None),
                        });
                    }
                };
                let (status, headers) = (response.status(), response.headers());
                if status.is_success() {
                    // It was taken; an answer that cannot be read does not change that.
                    let answer = &**response.body();
                    return Ok(if *is_json {
                        Response::of_json(answer, signal)
                    } else {
                        Response::decode(answer).unwrap_or_default()
                    });
                }
                Err(Failure {
                    words: status.to_string(),
                    retry: Retry::of_response(status, headers),
                })
            }
        }
    }
}

impl Failure {
    fn of_status(status: &Status) -> Self {
        let (code, message) = (status.code(), status.message());
        let colon = if message.is_empty() { "" } else { ": " };
        Self {
            words: format!("gRPC code {code:?}{colon}{message}"),
            retry: Retry::of_status(status),
        }
    }
}

impl Response {
    /// OTLP/JSON writes large integers as text, and takes them as numbers too.
    fn of_json(answer: &[u8], signal: Signal) -> Self {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let partial = &answer["partialSuccess"];
        let rejected = &partial[match signal {
            Signal::Traces => "rejectedSpans",
            Signal::Metrics => "rejectedDataPoints",
        }];
        let written = || rejected.as_str().and_then(|text| text.parse().ok());
        Self {
            partial_success: Some(PartialSuccess {
                rejected: rejected.as_i64().or_else(written).unwrap_or(0),
                error_message: partial["errorMessage"].as_str().unwrap_or("").to_owned(),
            }),
        }
    }

    fn rejection(self) -> Rejection {
        let partial = self.partial_success.unwrap_or_default();
        Rejection {
            count: usize::try_from(partial.rejected).unwrap_or(0),
            message: partial.error_message,
        }
    }
}

impl Signal {
    fn endpoint_variable(self) -> &'static str {
        match self {
            Self::Traces => "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            Self::Metrics => "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        }
    }

    fn grpc_path(self) -> PathAndQuery {
        PathAndQuery::from_static(match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        })
    }

    /// The same request in OTLP/JSON.
    fn json(self, request: Bytes) -> Bytes {
        match self {
            Self::Traces => json::<ExportTraceServiceRequest>(request),
            Self::Metrics => json::<ExportMetricsServiceRequest>(request),
        }
    }
}

fn json<T: Message + Default + Serialize>(request: Bytes) -> Bytes {
    let request = T::decode(request).expect("it was encoded here");
    let json = serde_json::to_vec(&request);
    json.expect("a request has a JSON").into()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}
