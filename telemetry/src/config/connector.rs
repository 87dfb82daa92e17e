//! Connections to an OTLP endpoint, the same for every exporter.

use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;

use super::{ExporterSettings, Protocol};

/// The longest that one attempt to connect may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

impl ExporterSettings {
    /// Connects to the endpoint: with TLS where it says https, and with HTTP/2 alone for gRPC.
    pub fn connector(&self) -> HttpsConnector<HttpConnector> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_LIMIT));
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(self.rustls_config())
            .https_or_http();
        match self.protocol {
            Protocol::Grpc => builder.enable_http2().wrap_connector(http),
            Protocol::HttpProtobuf => builder.enable_http1().enable_http2().wrap_connector(http),
        }
    }
}
