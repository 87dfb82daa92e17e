//! Backends behind the proxy that the environment names.

use lantern_shim::Config;
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::support::backend::Backend;
use crate::support::client::export;
use crate::support::proxy::Proxy;
use crate::support::spans::full_trace;
use crate::support::{Running, eventually, exporter};
use crate::tls::server_config;

/// No resolver has it, so that whoever gets there got there through the proxy.
const HOST: &str = "backend.test";
/// `user:secret`.
const AUTHORIZATION: &str = "Basic dXNlcjpzZWNyZXQ=";

fn assert_authorized(head: &str) {
    let is_authorization = |line: &str| {
        let header = line.split_once(": ");
        header.is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization") && value == AUTHORIZATION
        })
    };
    assert!(head.lines().any(is_authorization), "{head}");
}

#[tokio::test]
async fn grpc_and_tls_go_through_a_tunnel_and_the_proxy_sees_no_span() {
    for (protocol, scheme, path) in [
        ("grpc", "http", ""),
        ("grpc", "https", ""),
        ("http/protobuf", "https", "/v1/traces"),
    ] {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([HOST.to_owned()]).expect("issued");
        let backend = match scheme {
            "http" => Backend::start([]).await,
            _ => Backend::encrypted(server_config(&cert, &signing_key)),
        };
        let trust = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(trust.path(), cert.pem()).expect("written");
        let proxy = Proxy::to(backend.address).await;
        let variables = [
            (
                "HTTPS_PROXY",
                &*format!("http://user:secret@{}", proxy.address),
            ),
            (
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                trust.path().to_str().expect("text"),
            ),
        ];
        let url = format!("{scheme}://{HOST}{path}");
        let shim = Running::start(Config::forwarding(exporter(&url, protocol, &variables))).await;
        export(shim.grpc, &full_trace()).await;
        assert_eq!(
            shim.settled(3).await.delivered_spans,
            3,
            "{protocol} {scheme}"
        );
        assert_eq!(backend.deliveries()[0].message, full_trace());
        let headers = &backend.deliveries()[0].headers;
        assert!(!headers.contains_key("proxy-authorization"));
        let heads = proxy.heads();
        let port = if scheme == "http" { 80 } else { 443 };
        let connect = format!("CONNECT {HOST}:{port} HTTP/1.1");
        assert!(heads[0].starts_with(&connect), "{heads:?}");
        assert_authorized(&heads[0]);
    }
}

#[tokio::test]
async fn plain_http_is_handed_to_the_proxy_to_pass_on() {
    for protocol in ["http/protobuf", "http/json"] {
        let backend = Backend::start([]).await;
        let proxy = Proxy::to(backend.address).await;
        let variables = [("all_proxy", &*format!("user:secret@{}", proxy.address))];
        let url = format!("http://{HOST}:9999/v1/traces");
        let shim = Running::start(Config::forwarding(exporter(&url, protocol, &variables))).await;
        export(shim.grpc, &full_trace()).await;
        assert_eq!(shim.settled(3).await.delivered_spans, 3);
        let heads = proxy.heads();
        let expect = format!("POST http://{HOST}:9999/v1/traces HTTP/1.1");
        assert!(heads[0].starts_with(&expect), "{heads:?}");
        assert_authorized(&heads[0]);
    }
}

#[tokio::test]
async fn the_way_to_the_proxy_may_be_encrypted_as_well() {
    for (protocol, scheme) in [
        ("grpc", "http"),
        ("http/protobuf", "http"),
        ("grpc", "https"),
    ] {
        let names = [HOST.to_owned(), "127.0.0.1".to_owned()];
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).expect("issued");
        let tls = || server_config(&cert, &signing_key);
        let backend = match scheme {
            "http" => Backend::start([]).await,
            _ => Backend::encrypted(tls()),
        };
        let proxy = Proxy::encrypted(backend.address, tls()).await;
        let trust = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(trust.path(), cert.pem()).expect("written");
        let certificate = trust.path().to_str().expect("text");
        let named = format!("https://{}", proxy.address);
        let url = format!("{scheme}://{HOST}:4317");
        let trusting = [
            ("ALL_PROXY", &*named),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate),
        ];
        let wary = exporter(&url, protocol, &trusting[..1]);
        let wary = Running::start(Config::forwarding(wary)).await;
        export(wary.grpc, &full_trace()).await;
        eventually("the handshake has failed", || {
            wary.handle.counts().retries > 0
        })
        .await;
        assert!(proxy.heads().is_empty());

        let shim = Running::start(Config::forwarding(exporter(&url, protocol, &trusting))).await;
        export(shim.grpc, &full_trace()).await;
        assert_eq!(
            shim.settled(3).await.delivered_spans,
            3,
            "{protocol} {scheme}"
        );
        assert_eq!(backend.deliveries()[0].message, full_trace());
    }
}

#[tokio::test]
async fn what_needs_no_proxy_is_reached_without() {
    let backend = Backend::start([]).await;
    let proxy = Proxy::to(backend.address).await;
    let named = format!("http://{}", proxy.address);
    // On this machine.
    let variables = [("HTTPS_PROXY", &*named), ("HTTP_PROXY", &*named)];
    let here = exporter(&backend.grpc_url(), "grpc", &variables);
    let shim = Running::start(Config::forwarding(here)).await;
    export(shim.grpc, &full_trace()).await;
    assert_eq!(shim.settled(3).await.delivered_spans, 3);
    // By NO_PROXY, so that nothing is reached at all.
    let variables = [("HTTPS_PROXY", &*named), ("NO_PROXY", "example.com, .test")];
    let url = format!("http://{HOST}:4317");
    let shim = Running::start(Config::forwarding(exporter(&url, "grpc", &variables))).await;
    export(shim.grpc, &full_trace()).await;
    eventually("it was tried", || shim.handle.counts().retries > 0).await;
    assert!(proxy.heads().is_empty());
}
