//! OTLP/gRPC out: tonic's client, with a codec that carries bytes as they are.

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, header};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use lantern_telemetry::ExporterSettings;
use lantern_telemetry::config::Compression;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{
    BufferSettings, Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder,
};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    Answer, Cause, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_LIMIT, MAX_RESPONSE_BYTES, USER_AGENT, chain,
    retry, shortened,
};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// See the module.
pub(super) struct GrpcClient {
    grpc: Grpc<Client<HttpsConnector<HttpConnector>, tonic::body::Body>>,
    metadata: MetadataMap,
}

impl GrpcClient {
    pub(super) fn new(settings: &ExporterSettings) -> GrpcClient {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_LIMIT)
            .http2_keep_alive_while_idle(true)
            .build(settings.connector());
        let mut grpc = Grpc::with_origin(client, origin(&settings.endpoint))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        if settings.compression == Compression::Gzip {
            grpc = grpc.send_compressed(CompressionEncoding::Gzip);
        }
        let mut headers = settings.headers.clone();
        headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        GrpcClient {
            grpc,
            metadata: MetadataMap::from_headers(headers),
        }
    }

    /// Sends `message` once.
    pub(super) async fn send(&self, message: Bytes) -> Answer {
        let mut grpc = self.grpc.clone();
        if let Err(error) = grpc.ready().await {
            return Answer::Later {
                reason: chain(&error),
                after: None,
            };
        }
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        match grpc
            .unary(request, PathAndQuery::from_static(EXPORT), BytesCodec)
            .await
        {
            Ok(response) => accepted(&response.into_inner()),
            Err(status) => failed(&status),
        }
    }
}

/// `endpoint` without its path, which OTLP/gRPC has no use for.
fn origin(endpoint: &str) -> Uri {
    let uri: Uri = endpoint.parse().expect("the settings hold a checked URL");
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).expect("only the path was replaced")
}

/// What a backend that took the request has to say.
pub(super) fn accepted(response: &[u8]) -> Answer {
    // The status said that it was accepted; an answer that cannot be read does not change that.
    let response = ExportTraceServiceResponse::decode(response).unwrap_or_default();
    let partial = response.partial_success.unwrap_or_default();
    Answer::Accepted {
        rejected_spans: u64::try_from(partial.rejected_spans).unwrap_or(0),
        message: shortened(&partial.error_message),
    }
}

fn failed(status: &Status) -> Answer {
    // A status with a source was made here, for a connection that failed.
    if let Some(source) = std::error::Error::source(status) {
        return Answer::Later {
            reason: chain(source),
            after: None,
        };
    }
    let reason = shortened(&format!("{:?}: {}", status.code(), status.message()));
    let retry_info = status.get_details_retry_info();
    if retry::grpc_is_retryable(status.code(), retry_info.is_some()) {
        return Answer::Later {
            reason,
            after: retry_info.and_then(|info| info.retry_delay),
        };
    }
    let cause = match status.code() {
        Code::InvalidArgument | Code::ResourceExhausted | Code::Internal | Code::Unknown => {
            Cause::Data
        }
        _ => Cause::Sender,
    };
    Answer::Refused { reason, cause }
}

/// Messages are the bytes that they are.
#[derive(Debug, Clone, Copy, Default)]
struct BytesCodec;

/// Most batches fit into one buffer of this size.
const ENCODE_BUFFER_BYTES: usize = 64 * 1024;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(ENCODE_BUFFER_BYTES, ENCODE_BUFFER_BYTES)
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
