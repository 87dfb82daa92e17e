//! The gRPC channel under the OTLP/gRPC exporter. It connects as the HTTP client does, and remembers
//! why it could not: the exporter keeps that to itself for as long as it tries again.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Scheme;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use super::last_failure::LastFailure;
use crate::chain;
use crate::config::{Connector, ExporterSettings};

/// A channel to the endpoint of `settings`; it connects when it is first used.
pub(super) fn channel(
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
