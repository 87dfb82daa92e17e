//! TLS and HTTP/2 on both sides.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, Version};
use lantern_proxy::{Identity, ServerTls, Upstream, UpstreamTls};
use opentelemetry::trace::Status;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{
    Client, Echo, RawUpstream, TestProxy, attribute, config, refuses_connections, request, within,
};

const GET: &[&str] = &["GET /v1/models HTTP/1.1", "Host: a"];

/// An authority, and the files of what it has signed, in a directory that goes with it.
struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("written");
        let issuer = Issuer::new(params, key);
        Self { directory, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Signs a certificate for 127.0.0.1; one of the same name is replaced.
    fn sign(&self, name: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.signed_by(&key, &self.issuer).expect("a signature");
        let identity = Identity {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        };
        std::fs::write(&identity.certificate, certificate.pem()).expect("written");
        std::fs::write(&identity.key, key.serialize_pem()).expect("written");
        identity
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca()) {
            roots.add(certificate).expect("an authority");
        }
        roots
    }

    /// A client that believes this authority.
    fn client(&self, identity: Option<&Identity>, protocols: &[&str]) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots());
        let mut config = match identity {
            Some(identity) => builder
                .with_client_auth_cert(certificates(&identity.certificate), key(identity))
                .expect("a pair"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        config
    }

    /// A server with a certificate of this authority; it asks its clients for one if told so.
    fn server(&self, asks: bool, protocols: &[&str]) -> ServerConfig {
        let identity = self.sign("upstream");
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = if asks {
            let roots = Arc::new(self.roots());
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider());
            builder.with_client_cert_verifier(verifier.build().expect("an authority"))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder
            .with_single_cert(certificates(&identity.certificate), key(&identity))
            .expect("a pair");
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        config
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &PathBuf) -> Vec<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(path).expect("a file");
    certificates
        .collect::<Result<_, _>>()
        .expect("certificates")
}

fn key(identity: &Identity) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(&identity.key).expect("a key")
}

async fn encrypted(
    proxy: &TestProxy,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(proxy.address).await?;
    let name = ServerName::from(proxy.address.ip());
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// A completion request for a client of HTTP/2.
fn completion() -> Request<Full<Bytes>> {
    Request::post("http://a/v1/completions")
        .header("content-type", "application/json")
        .body(Full::from(r#"{"prompt":"hi"}"#))
        .expect("a request")
}

async fn text(response: hyper::Response<hyper::body::Incoming>) -> Bytes {
    let body = within("a body", response.into_body().collect()).await;
    body.expect("a whole body").to_bytes()
}

#[tokio::test]
async fn a_client_of_http2_without_tls_is_served_several_requests_at_once() {
    let mut echo = Echo::start().await;
    let mut proxy = TestProxy::in_front_of(echo.address).await;
    let client = Client::http2(TcpStream::connect(proxy.address).await.expect("it listens")).await;
    let (one, two) = tokio::join!(client.send(completion()), client.send(completion()));
    for response in [one, two] {
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(text(response).await, "answered");
        let received = echo.received().await;
        assert_eq!(received.body(), r#"{"prompt":"hi"}"#);
        assert_eq!(received.headers()["host"], "a");
        assert_eq!(received.headers()["x-forwarded-proto"], "http");
        let span = proxy.spans.next().await;
        assert_eq!(
            attribute(&span, "network.protocol.version").as_deref(),
            Some("2")
        );
        assert_eq!(span.status, Status::Unset);
    }
}

#[tokio::test]
async fn a_request_of_http1_that_is_shorter_than_the_preface_of_http2_is_served() {
    let upstream = RawUpstream::bind().await;
    let proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    client.write("P").await;
    client.write("UT / HTTP/1.0\r\n\r\n").await;
    let mut server = upstream.accept().await;
    assert!(server.read_head().await.starts_with("PUT / HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_client_chooses_the_version_of_http_in_the_tls_handshake() {
    let authority = Authority::new();
    let mut echo = Echo::start().await;
    let mut config = config(echo.address);
    config.tls = Some(ServerTls {
        identity: authority.sign("proxy"),
        client_ca: None,
    });
    let mut proxy = TestProxy::with(config).await;
    for (protocol, version) in [("h2", "2"), ("http/1.1", "1.1")] {
        let stream = encrypted(&proxy, authority.client(None, &[protocol])).await;
        let stream = stream.expect("a handshake");
        assert_eq!(
            stream.get_ref().1.alpn_protocol(),
            Some(protocol.as_bytes())
        );
        let client = if protocol == "h2" {
            Client::http2(stream).await
        } else {
            Client::http1(stream).await
        };
        assert_eq!(text(client.send(completion()).await).await, "answered");
        assert_eq!(
            echo.received().await.headers()["x-forwarded-proto"],
            "https"
        );
        let span = proxy.spans.next().await;
        assert_eq!(attribute(&span, "url.scheme").as_deref(), Some("https"));
        assert_eq!(
            attribute(&span, "network.protocol.version").as_deref(),
            Some(version)
        );
    }
}

#[tokio::test]
async fn a_connection_over_the_bound_is_refused_in_tls_too() {
    let authority = Authority::new();
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.max_connections = 1;
    config.tls = Some(ServerTls {
        identity: authority.sign("proxy"),
        client_ca: None,
    });
    let mut proxy = TestProxy::with(config).await;
    let first = encrypted(&proxy, authority.client(None, &["http/1.1"])).await;
    let first = Client::http1(first.expect("a handshake")).await;
    assert_eq!(first.send(completion()).await.status(), 200);
    proxy.spans.next().await;

    let second = encrypted(&proxy, authority.client(None, &["http/1.1"])).await;
    let mut answer = String::new();
    let mut second = second.expect("a handshake");
    let reading = second.read_to_string(&mut answer);
    within("the refusal", reading).await.expect("a clean end");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    let span = proxy.spans.next().await;
    let error_type = attribute(&span, "error.type");
    assert_eq!(error_type.as_deref(), Some("too_many_connections"));
    assert_eq!(attribute(&span, "url.scheme").as_deref(), Some("https"));

    let third = encrypted(&proxy, authority.client(None, &["h2"])).await;
    drop(third.expect("a handshake"));
    let span = proxy.spans.next().await;
    let status = attribute(&span, "http.response.status_code");
    assert_eq!(status, None, "it was sent none");
}

#[tokio::test]
async fn a_client_that_says_nothing_in_tls_is_let_go_and_leaves_no_span() {
    let authority = Authority::new();
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.client.header = Duration::from_secs(1);
    config.tls = Some(ServerTls {
        identity: authority.sign("proxy"),
        client_ca: None,
    });
    let proxy = TestProxy::with(config).await;
    let silent = async |protocol| {
        let stream = encrypted(&proxy, authority.client(None, &[protocol])).await;
        let mut stream = stream.expect("a handshake");
        let mut answer = Vec::new();
        // It ends without a word, which TLS calls an error.
        let _ = within("the connection's end", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{protocol}: {answer:?}");
    };
    tokio::join!(silent("h2"), silent("http/1.1"));
    assert!(proxy.stopped().await.is_empty());
}

#[tokio::test]
async fn a_tls_handshake_that_is_broken_off_leaves_a_span_and_a_look_at_the_port_does_not() {
    let authority = Authority::new();
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    config.tls = Some(ServerTls {
        identity: authority.sign("proxy"),
        client_ca: None,
    });
    let mut proxy = TestProxy::with(config).await;
    drop(proxy.connect().await);
    let mut client = proxy.connect().await;
    // The beginning of a record, of which the rest does not come.
    client.write("\x16\x03\x01\x02").await;
    drop(client);
    let span = proxy.spans.next().await;
    let error = attribute(&span, "error.type");
    assert_eq!(error.as_deref(), Some("tls_handshake_failed"));
    assert!(proxy.stopped().await.is_empty());
}

#[tokio::test]
async fn a_client_without_the_certificate_that_is_asked_for_is_not_served() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mut echo = Echo::start().await;
    let mut config = config(echo.address);
    config.tls = Some(ServerTls {
        identity: authority.sign("proxy"),
        client_ca: Some(authority.ca()),
    });
    let mut proxy = TestProxy::with(config).await;
    let known = authority.sign("client");
    let client = encrypted(&proxy, authority.client(Some(&known), &["http/1.1"])).await;
    let client = Client::http1(client.expect("a handshake")).await;
    assert_eq!(client.send(completion()).await.status(), 200);
    echo.received().await;
    proxy.spans.next().await;

    let unknown = stranger.sign("client");
    for identity in [None, Some(&unknown)] {
        // With TLS 1.3 the client hears of it when it first reads.
        let refused = async {
            let stream = encrypted(&proxy, authority.client(identity, &["http/1.1"])).await?;
            let client = Client::http1(stream).await;
            client
                .try_send(completion())
                .await
                .map_err(std::io::Error::other)
        };
        within("the refusal", refused)
            .await
            .expect_err("no certificate");
        let span = proxy.spans.next().await;
        let error = attribute(&span, "error.type");
        assert_eq!(error.as_deref(), Some("tls_handshake_failed"));
        assert_eq!(attribute(&span, "url.scheme").as_deref(), Some("https"));
    }
    assert!(echo.is_idle());
}

#[tokio::test]
async fn a_certificate_that_changes_is_shown_to_the_next_clients() {
    let authority = Authority::new();
    let echo = Echo::start().await;
    let mut config = config(echo.address);
    let identity = authority.sign("proxy");
    config.tls = Some(ServerTls {
        identity: identity.clone(),
        client_ca: None,
    });
    config.reload_interval = Duration::from_millis(5);
    let proxy = TestProxy::with(config).await;
    let shown = async || {
        let stream = encrypted(&proxy, authority.client(None, &[])).await;
        let stream = stream.expect("a handshake");
        let chain = stream.get_ref().1.peer_certificates();
        chain.expect("a certificate")[0].clone().into_owned()
    };
    assert_eq!(shown().await, certificates(&identity.certificate)[0]);
    let renewed = authority.sign("proxy");
    let renewed = certificates(&renewed.certificate)[0].clone();
    within("the new certificate", async {
        while shown().await != renewed {}
    })
    .await;
}

async fn answer_of(proxy: &TestProxy) -> (u16, String) {
    let response = proxy.send(&request(GET, "")).await;
    (response.status, response.body)
}

#[tokio::test]
async fn an_upstream_with_tls_speaks_the_version_of_http_that_it_likes() {
    let authority = Authority::new();
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let mut echo = Echo::encrypted(authority.server(false, protocols)).await;
        let mut config = config(echo.address);
        config.upstreams = vec![https(&echo)];
        config.upstream_tls.ca = Some(authority.ca());
        let proxy = TestProxy::with(config).await;
        assert_eq!(answer_of(&proxy).await, (200, "answered".to_owned()));
        assert_eq!(echo.received().await.version(), version);
    }
}

fn https(echo: &Echo) -> Upstream {
    Upstream::parse(&format!("https://{}", echo.address)).expect("a URL")
}

#[tokio::test]
async fn an_upstream_that_no_trusted_authority_has_signed_is_not_spoken_to() {
    let (authority, other) = (Authority::new(), Authority::new());
    let echo = Echo::encrypted(authority.server(false, &[])).await;
    let mut config = config(echo.address);
    config.upstreams = vec![https(&echo)];
    for ca in [Some(other.ca()), None] {
        config.upstream_tls = UpstreamTls { ca, identity: None };
        let mut proxy = TestProxy::with(config.clone()).await;
        assert_eq!(answer_of(&proxy).await.0, 502);
        let span = proxy.spans.next().await;
        let error = attribute(&span, "error.type");
        assert_eq!(error.as_deref(), Some("upstream_connect_failed"));
    }
    assert!(echo.is_idle());
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_certificate_is_shown_one() {
    let authority = Authority::new();
    let mut echo = Echo::encrypted(authority.server(true, &["http/1.1"])).await;
    let mut config = config(echo.address);
    config.upstreams = vec![https(&echo)];
    config.upstream_tls = UpstreamTls {
        ca: Some(authority.ca()),
        identity: Some(authority.sign("proxy")),
    };
    let proxy = TestProxy::with(config).await;
    assert_eq!(answer_of(&proxy).await, (200, "answered".to_owned()));
    echo.received().await;
}

#[tokio::test]
async fn an_upstream_of_http2_without_tls_gets_http2() {
    let mut echo = Echo::start().await;
    let mut config = config(echo.address);
    let url = format!("h2c://{}", echo.address);
    config.upstreams = vec![Upstream::parse(&url).expect("a URL")];
    let mut proxy = TestProxy::with(config).await;
    for _ in 0..2 {
        let lines = [
            "POST /v1/completions HTTP/1.1",
            "Host: a",
            "Content-Length: 2",
        ];
        assert_eq!(proxy.send(&request(&lines, "{}")).await.body, "answered");
        let received = echo.received().await;
        assert_eq!(
            (received.version(), &received.body()[..]),
            (Version::HTTP_2, &b"{}"[..])
        );
        assert_eq!(proxy.spans.next().await.status, Status::Unset);
    }
}

#[tokio::test]
async fn shutdown_lets_a_stream_of_http2_finish_and_keeps_its_span() {
    let upstream = RawUpstream::bind().await;
    let proxy = TestProxy::in_front_of(upstream.address()).await;
    let stream = TcpStream::connect(proxy.address).await.expect("it listens");
    let client = Client::http2(stream).await;
    let answering = async {
        let mut server = upstream.accept().await;
        server.read_message().await;
        server
            .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        server
    };
    let (response, mut server) = tokio::join!(client.send(completion()), answering);
    proxy.begin_shutdown();
    refuses_connections(proxy.address).await;
    server.write_chunk("still here").await;
    server.write_chunk("").await;
    assert_eq!(text(response).await, "still here");
    let mut spans = proxy.stopped().await;
    assert_eq!(spans.next().await.status, Status::Unset);
    assert!(spans.is_empty(), "frames are no requests");
}

#[tokio::test]
async fn a_stream_of_http2_that_outlives_the_drain_timeout_has_its_span_when_the_proxy_has_stopped()
{
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.drain_timeout = Duration::from_millis(50);
    let proxy = TestProxy::with(config).await;
    let stream = TcpStream::connect(proxy.address).await.expect("it listens");
    let client = Client::http2(stream).await;
    let answering = async {
        let mut server = upstream.accept().await;
        server.read_message().await;
        server
            .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        server
    };
    let (_response, _server) = tokio::join!(client.send(completion()), answering);
    let mut spans = proxy.stopped().await;
    assert!(!spans.is_empty(), "the span has ended when the proxy has");
    assert_eq!(spans.next().await.status, Status::error(""));
}
