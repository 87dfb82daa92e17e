//! The client under the OTLP/gRPC exporter: one unary call, whose message is the bytes that are to be sent.
//! Its channel connects as the HTTP client does, and remembers why it could not: tonic keeps that to
//! itself for as long as it tries again.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Uri};
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::last_failure::LastFailure;
use super::otlp::Response;
use crate::chain;
use crate::config::{Compression, Connector, ExporterSettings};

/// A client of one method.
pub(super) struct GrpcClient {
    grpc: Grpc<Channel>,
    path: PathAndQuery,
    headers: HeaderMap,
}

impl GrpcClient {
    pub(super) fn new(
        settings: &ExporterSettings,
        path: PathAndQuery,
        last_failure: LastFailure,
    ) -> Result<Self, tonic::transport::Error> {
        let grpc = Grpc::new(channel(settings, last_failure)?);
        let grpc = match settings.compression {
            Some(Compression::Gzip) => grpc
                .send_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Gzip),
            None | Some(Compression::None) => grpc,
        };
        Ok(Self {
            grpc,
            path,
            headers: settings.headers.clone(),
        })
    }

    /// Sends an encoded request once.
    pub(super) async fn send(&self, message: Bytes) -> Result<Response, Status> {
        let mut grpc = self.grpc.clone();
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers.clone());
        let answer = async {
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(chain(&error)))?;
            grpc.unary(request, self.path.clone(), Raw).await
        };
        answer.await.map(tonic::Response::into_inner)
    }
}

/// The message is encoded already.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Response;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Response;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Response>, Status> {
        // It was taken; an answer that cannot be read does not change that.
        Ok(Some(Response::decode(message).unwrap_or_default()))
    }
}

/// A channel to the endpoint of `settings`; it connects when it is first used.
fn channel(
    settings: &ExporterSettings,
    last_failure: LastFailure,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(settings.endpoint.clone())?;
    let uri = endpoint.uri().clone();
    let connector = Remembering {
        connector: settings.connector(),
        uri: uri.clone(),
        last_failure,
    };
    // tonic would do TLS over TLS if it saw https; requests still name the true origin.
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    let plain = Uri::from_parts(parts).expect("a URI stays one with another scheme");
    Ok(Endpoint::from(plain)
        .origin(uri)
        .timeout(settings.timeout)
        .connect_with_connector_lazy(connector))
}

struct Remembering {
    connector: Connector,
    uri: Uri,
    last_failure: LastFailure,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Stream = <Connector as Service<Uri>>::Response;

impl Service<Uri> for Remembering {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, _plain: Uri) -> Self::Future {
        let connecting = self.connector.call(self.uri.clone());
        let last_failure = self.last_failure.clone();
        Box::pin(async move {
            let connected = connecting.await;
            let failure = connected.as_ref().err().map(|error| chain(error.as_ref()));
            last_failure.set(failure);
            connected
        })
    }
}
