//! Encrypted on the way out, with an authority of one's own.

use std::sync::Arc;

use lantern_shim::Config;
use rcgen::{Certificate, CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;

use crate::support::backend::Backend;
use crate::support::client::export;
use crate::support::spans::full_trace;
use crate::support::{Running, eventually, exporter};

/// A server's side with a certificate of its own making, and that certificate as PEM.
pub(crate) fn self_signed() -> (rustls::ServerConfig, String) {
    let names = ["127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("issued");
    (server_config(&cert, &signing_key), cert.pem())
}

/// A server's side with that certificate.
pub(crate) fn server_config(cert: &Certificate, key: &KeyPair) -> rustls::ServerConfig {
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("they belong together");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

#[tokio::test]
async fn a_backend_that_the_certificate_vouches_for_gets_the_spans_and_no_other_does() {
    for (protocol, path) in [("grpc", ""), ("http/protobuf", "/v1/traces")] {
        let (config, certificate) = self_signed();
        let backend = Backend::encrypted(config);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), certificate).expect("written");
        let url = format!("https://{}{path}", backend.address);
        let trust = [(
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            file.path().to_str().expect("text"),
        )];

        let wary = Running::start(Config::forwarding(exporter(&url, protocol, &[]))).await;
        export(wary.grpc, &full_trace()).await;
        eventually("the handshake has failed", || {
            wary.handle.counts().retries > 0
        })
        .await;
        assert!(backend.deliveries().is_empty(), "{protocol}");

        let shim = Running::start(Config::forwarding(exporter(&url, protocol, &trust))).await;
        export(shim.grpc, &full_trace()).await;
        assert_eq!(shim.settled(3).await.delivered_spans, 3, "{protocol}");
        assert_eq!(backend.deliveries()[0].message, full_trace());
    }
}

#[tokio::test]
async fn a_changed_certificate_is_used_without_a_restart() {
    let (config, certificate) = self_signed();
    let (_, other) = self_signed();
    let backend = Backend::encrypted(config);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), other).expect("written");
    let url = format!("https://{}", backend.address);
    let path = file.path().to_str().expect("text");
    let trust = [("OTEL_EXPORTER_OTLP_CERTIFICATE", path)];
    let mut config = Config::forwarding(exporter(&url, "grpc", &trust));
    config.door.reload_interval = std::time::Duration::from_millis(20);
    let shim = Running::start(config).await;
    export(shim.grpc, &full_trace()).await;
    eventually("the handshake has failed", || {
        shim.handle.counts().retries > 0
    })
    .await;
    // What cannot be used changes nothing.
    std::fs::write(file.path(), "no certificate").expect("written");
    std::fs::write(file.path(), certificate).expect("written");
    assert_eq!(shim.settled(3).await.delivered_spans, 3);
}
