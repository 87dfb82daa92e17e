//! Who may send: encrypted ports, clients' certificates, tokens, and pages of other origins.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use lantern_shim::{Config, Door, Origins, Tokens};
use lantern_telemetry::serve::{Tls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::support::client::{
    Answer, JSON, PROTOBUF, call, export, export_raw, frame, get, post, send,
};
use crate::support::spans::full_trace;
use crate::support::{Running, eventually, exporter, within_patience};

const SOON: Duration = Duration::from_millis(10);

/// An authority with its files.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = Authority {
            dir: tempfile::tempdir().expect("a directory"),
            issuer: CertifiedIssuer::self_signed(params, key).expect("issued"),
        };
        fs::write(authority.path("ca"), authority.issuer.pem()).expect("written");
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `name`.cert and `name`.key, for the loopback address; what was there is replaced.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.signed_by(&key, &self.issuer).expect("issued");
        let paths = [".cert", ".key"].map(|kind| self.path(&format!("{name}{kind}")));
        fs::write(&paths[0], certificate.pem()).expect("written");
        fs::write(&paths[1], key.serialize_pem()).expect("written");
        let [certificate, key] = paths;
        (certificate, key)
    }
}

/// A shim that keeps what comes through `door`.
async fn behind(door: Door) -> Running {
    let config = Config {
        door,
        ..Config::embedded()
    };
    Running::start(config).await
}

fn encrypted(certificate: &(PathBuf, PathBuf), client_ca: Option<PathBuf>) -> Door {
    let files = TlsFiles {
        certificate: certificate.0.clone(),
        key: certificate.1.clone(),
        client_ca,
    };
    Door {
        tls: Some(Arc::new(Tls::load(files).expect("they belong together"))),
        reload_interval: SOON,
        ..Door::default()
    }
}

/// A shim that forwards to `to` by `protocol` with these variables, and has got a trace to forward.
async fn sending(to: &Running, protocol: &str, variables: &[(&str, &PathBuf)]) -> Running {
    let url = match protocol {
        "grpc" => format!("https://{}", to.grpc),
        _ => format!("https://{}/v1/traces", to.http),
    };
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, path)| (*name, path.to_str().expect("text")))
        .collect();
    let sender = Running::start(Config::forwarding(exporter(&url, protocol, &variables))).await;
    export(sender.grpc, &full_trace()).await;
    sender
}

const TRUST: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";

#[tokio::test]
async fn both_ports_are_encrypted_and_no_plain_request_comes_through() {
    let authority = Authority::new();
    let shim = behind(encrypted(&authority.issue("server"), None)).await;
    for (protocol, spans) in [("grpc", 3), ("http/protobuf", 6)] {
        let sender = sending(&shim, protocol, &[(TRUST, &authority.path("ca"))]).await;
        assert_eq!(sender.settled(3).await.delivered_spans, 3, "{protocol}");
        assert_eq!(shim.handle.counts().received_spans, spans, "{protocol}");
    }
    let plain = format!("http://{}/v1/traces", shim.http);
    let plain = Config::forwarding(exporter(&plain, "http/protobuf", &[]));
    let plain = Running::start(plain).await;
    export(plain.grpc, &full_trace()).await;
    eventually("it is turned away", || plain.handle.counts().retries > 0).await;
    assert_eq!(shim.handle.counts().received_spans, 6);
    assert_eq!(get(shim.viewer, "/healthz").await.status, 200);
}

#[tokio::test]
async fn with_an_authority_for_clients_only_its_clients_come_in() {
    let authority = Authority::new();
    let ca = authority.path("ca");
    let shim = behind(encrypted(&authority.issue("server"), Some(ca.clone()))).await;
    let strangers = Authority::new();
    let stranger = strangers.issue("client");
    let known = authority.issue("client");
    for protocol in ["grpc", "http/protobuf"] {
        let before = shim.handle.counts().received_spans;
        for client in [None, Some(&stranger)] {
            let mut variables = vec![(TRUST, &ca)];
            if let Some((certificate, key)) = client {
                variables.push(("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificate));
                variables.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY", key));
            }
            let sender = sending(&shim, protocol, &variables).await;
            eventually("it is turned away", || sender.handle.counts().retries > 0).await;
            assert_eq!(shim.handle.counts().received_spans, before, "{protocol}");
        }
        let variables = [
            (TRUST, &ca),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &known.0),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &known.1),
        ];
        let sender = sending(&shim, protocol, &variables).await;
        assert_eq!(sender.settled(3).await.delivered_spans, 3, "{protocol}");
    }
}

#[tokio::test]
async fn changed_certificates_are_used_and_broken_ones_are_not() {
    let old = Authority::new();
    let files = old.issue("server");
    let shim = behind(encrypted(&files, None)).await;
    let trust_old = [(TRUST, &old.path("ca"))];
    assert_eq!(
        sending(&shim, "grpc", &trust_old)
            .await
            .settled(3)
            .await
            .delivered_spans,
        3
    );

    fs::write(&files.0, "no certificate").expect("written");
    let still = sending(&shim, "grpc", &trust_old).await;
    assert_eq!(still.settled(3).await.delivered_spans, 3);

    let new = Authority::new();
    let renewed = new.issue("server");
    fs::copy(renewed.1, &files.1).expect("copied");
    fs::copy(renewed.0, &files.0).expect("copied");
    // Tried again until the new certificate is shown.
    let sender = sending(&shim, "grpc", &[(TRUST, &new.path("ca"))]).await;
    assert_eq!(sender.settled(3).await.delivered_spans, 3);
}

/// Posts with an `authorization` header.
async fn post_as(shim: &Running, authorization: &'static str) -> Answer {
    let request = Request::post(format!("http://{}/v1/traces", shim.http))
        .header("content-type", PROTOBUF)
        .header("authorization", authorization);
    send(request.body(Full::new(full_trace())).expect("a request")).await
}

#[tokio::test]
async fn with_a_token_file_requests_need_a_token_of_it_that_may_change() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "first\n").expect("written");
    let door = Door {
        tokens: Some(Arc::new(Tokens::load(file.path()).expect("a token"))),
        reload_interval: SOON,
        ..Door::default()
    };
    let shim = behind(door).await;
    let answer = post(shim.http, JSON, "", "{}").await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    assert_eq!(answer.json()["code"], tonic::Code::Unauthenticated as i32);
    assert_eq!(post_as(&shim, "Bearer other").await.status, 401);
    assert_eq!(post_as(&shim, "Bearer first").await.status, 200);
    // Refused before the body is looked at.
    let status = export_raw(shim.grpc, "identity", Bytes::from_static(b"no frame")).await;
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let health = "/grpc.health.v1.Health/Check";
    let (status, _) = call(shim.grpc, health, "identity", frame(false, b"")).await;
    assert_eq!(status.code(), tonic::Code::Ok, "probes have no token");

    let url = format!("http://{}", shim.grpc);
    let headers = [(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20second",
    )];
    let sender = Running::start(Config::forwarding(exporter(&url, "grpc", &headers))).await;
    fs::write(file.path(), "second\n").expect("written");
    // Asks again until the file has been looked at; the test's own patience bounds it.
    let turned_away = async { while post_as(&shim, "Bearer first").await.status != 401 {} };
    within_patience(turned_away).await;
    export(sender.grpc, &full_trace()).await;
    assert_eq!(sender.settled(3).await.delivered_spans, 3);
}

async fn preflight(shim: &Running, origin: &'static str) -> Answer {
    let request = Request::options(format!("http://{}/v1/traces", shim.http))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type,x-page");
    send(request.body(Full::default()).expect("a request")).await
}

#[tokio::test]
async fn pages_of_named_origins_may_send_and_others_may_not() {
    let allowed = "https://app.example.com";
    let door = Door {
        origins: Some(Origins::These(vec![HeaderValue::from_static(allowed)])),
        ..Door::default()
    };
    let shim = behind(door).await;
    let answer = preflight(&shim, allowed).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), allowed);
    assert_eq!(answer.header("access-control-allow-methods"), "POST");
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "content-type,x-page"
    );
    let answer = preflight(&shim, "https://evil.example.com").await;
    assert_eq!(answer.header("access-control-allow-origin"), "");

    let request = Request::post(format!("http://{}/v1/traces", shim.http))
        .header("content-type", PROTOBUF)
        .header("origin", allowed);
    let answer = send(request.body(Full::new(full_trace())).expect("a request")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), allowed);

    let open = behind(Door {
        origins: Some(Origins::Any),
        ..Door::default()
    });
    let answer = preflight(&open.await, "https://evil.example.com").await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let closed = preflight(&Running::embedded().await, allowed).await;
    assert_eq!(closed.status, 405);
    assert_eq!(closed.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn a_head_over_its_bound_is_refused() {
    let mut config = Config::embedded();
    config.limits.header_bytes = 8 * 1024;
    let shim = Running::start(config).await;
    let request = Request::post(format!("http://{}/v1/traces", shim.http))
        .header("content-type", PROTOBUF)
        .header("x-long", "x".repeat(9_000));
    let answer = send(request.body(Full::new(full_trace())).expect("a request")).await;
    assert_eq!(answer.status, 431);
    assert_eq!(shim.handle.counts().received_spans, 0);
}
