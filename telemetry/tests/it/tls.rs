//! Encrypted export with an authority of our own, with and without a certificate of the client.

use std::path::Path;
use std::sync::Arc;

use lantern_telemetry::Telemetry;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::receiver::{Receiver, ServerTls};
use crate::{PATIENCE, PROTOCOLS, end_spans, start};

/// A certificate authority and what it issued, as files.
struct Authority {
    folder: tempfile::TempDir,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
struct Issued {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::default()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("written");
        Self {
            folder,
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> Issued {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("valid names");
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate().expect("a key");
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("a certificate")
            .pem();
        Issued {
            certificate,
            key: key.serialize_pem(),
        }
    }

    /// The TLS of a receiver that this authority vouches for, and whose clients `client_ca` does.
    fn server(&self, client_ca: Option<&Self>) -> ServerTls {
        let Issued { certificate, key } = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        let provider = Arc::new(ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions");
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.certificate.der().clone()).expect("a root");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let mut config = builder
            .with_single_cert(chain, private)
            .expect("a valid identity");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let client_ca = client_ca.map(|ca| ca.certificate.pem());
        ServerTls {
            certificate,
            key,
            client_ca,
            config: Arc::new(config),
        }
    }

    fn ca_path(&self) -> String {
        shown(&self.folder.path().join("ca.pem"))
    }

    /// A certificate for a client, as the paths of certificate and key.
    fn client(&self) -> (String, String) {
        let issued = self.issue(ExtendedKeyUsagePurpose::ClientAuth);
        let certificate = self.folder.path().join("client.pem");
        let key = self.folder.path().join("client-key.pem");
        std::fs::write(&certificate, issued.certificate).expect("written");
        std::fs::write(&key, issued.key).expect("written");
        (shown(&certificate), shown(&key))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Towards a receiver with TLS; the endpoint has no scheme, which means https.
fn start_towards(receiver: &Receiver, protocol: &str, more: &[(&str, &str)]) -> Telemetry {
    let endpoint = receiver.addr.to_string();
    let own = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
    ];
    start(&[&own[..], more].concat())
}

const CA: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const CLIENT: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
const CLIENT_KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";
/// A failing handshake is retried until the timeout, so tests that expect one shorten it.
const SOON: (&str, &str) = ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000");

#[tokio::test]
async fn authority_of_ones_own_is_trusted() {
    let authority = Authority::new();
    for protocol in PROTOCOLS {
        let tls = Some(authority.server(None));
        let mut receiver = Receiver::with_tls(protocol, [], tls).await;
        let telemetry = start_towards(&receiver, protocol, &[(CA, &authority.ca_path())]);
        end_spans(&telemetry, 1);
        telemetry.shutdown(PATIENCE).await.expect("delivered");
        assert_eq!(receiver.so_far().len(), 1, "{protocol}");
    }
}

#[tokio::test]
async fn server_of_an_unknown_authority_gets_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    for protocol in PROTOCOLS {
        let tls = Some(authority.server(None));
        let mut receiver = Receiver::with_tls(protocol, [], tls).await;
        let path = other.ca_path();
        let ends = [vec![SOON], vec![SOON, (CA, &path)]].map(|vars| {
            let telemetry = start_towards(&receiver, protocol, &vars);
            end_spans(&telemetry, 1);
            telemetry.shutdown(PATIENCE)
        });
        for end in futures::future::join_all(ends).await {
            let error = end.expect_err("not trusted");
            assert!(
                error.to_string().contains("certificate"),
                "{protocol}: {error}"
            );
        }
        assert!(receiver.so_far().is_empty(), "{protocol}");
    }
}

#[tokio::test]
async fn client_shows_its_certificate_where_the_server_asks_for_one() {
    let authority = Authority::new();
    let (certificate, key) = authority.client();
    let ca = authority.ca_path();
    for protocol in PROTOCOLS {
        let tls = || Some(authority.server(Some(&authority)));
        let mut receiver = Receiver::with_tls(protocol, [], tls()).await;
        let identity = [(CA, &*ca), (CLIENT, &*certificate), (CLIENT_KEY, &*key)];
        let telemetry = start_towards(&receiver, protocol, &identity);
        end_spans(&telemetry, 1);
        telemetry.shutdown(PATIENCE).await.expect("delivered");
        assert_eq!(receiver.so_far().len(), 1, "{protocol}");

        let telemetry = start_towards(&receiver, protocol, &[SOON, (CA, &ca)]);
        end_spans(&telemetry, 1);
        telemetry
            .shutdown(PATIENCE)
            .await
            .expect_err("the client shows no certificate");
        assert!(receiver.so_far().is_empty(), "{protocol}");
    }
}
