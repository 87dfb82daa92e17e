//! `OTEL_EXPORTER_OTLP_*`.

use std::fmt::Write as _;

use super::*;

const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const TRACES_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
const INSECURE: &str = "OTEL_EXPORTER_OTLP_TRACES_INSECURE";
const HTTP: (&str, &str) = (PROTOCOL, "http/protobuf");

#[test]
fn endpoint_becomes_the_url_to_send_to() {
    check(
        |settings| settings.exporter().endpoint.clone(),
        &[
            (&[], "http://localhost:4317"),
            (&[HTTP], "http://localhost:4318/v1/traces"),
            (
                &[(TRACES_ENDPOINT, "grpc://jaeger:4317")],
                "http://jaeger:4317",
            ),
            (
                &[(TRACES_ENDPOINT, "GRPC://jaeger:4317")],
                "http://jaeger:4317",
            ),
            (
                &[(TRACES_ENDPOINT, "http://jaeger:4317")],
                "http://jaeger:4317",
            ),
            (
                &[(TRACES_ENDPOINT, "https://[::1]:4317")],
                "https://[::1]:4317",
            ),
            (&[(TRACES_ENDPOINT, "https://[::1]")], "https://[::1]"),
            (&[(TRACES_ENDPOINT, "jaeger:4317")], "https://jaeger:4317"),
            (
                &[(TRACES_ENDPOINT, "jaeger:4317"), (INSECURE, "true")],
                "http://jaeger:4317",
            ),
            (
                &[(TRACES_ENDPOINT, "jaeger:4317"), (INSECURE, "false")],
                "https://jaeger:4317",
            ),
            (
                &[(TRACES_ENDPOINT, "https://jaeger:4317"), (INSECURE, "true")],
                "https://jaeger:4317",
            ),
            (
                &[(TRACES_ENDPOINT, "http://jaeger:4318/v1/traces"), HTTP],
                "http://jaeger:4318/v1/traces",
            ),
            (
                &[(TRACES_ENDPOINT, "http://jaeger:4318/my/path"), HTTP],
                "http://jaeger:4318/my/path",
            ),
            (
                &[(TRACES_ENDPOINT, "http://jaeger:4318"), HTTP],
                "http://jaeger:4318",
            ),
            (
                &[(ENDPOINT, "http://jaeger:4318"), HTTP],
                "http://jaeger:4318/v1/traces",
            ),
            (
                &[(ENDPOINT, "http://jaeger:4318/"), HTTP],
                "http://jaeger:4318/v1/traces",
            ),
            (
                &[(ENDPOINT, "http://jaeger:4318/otlp"), HTTP],
                "http://jaeger:4318/otlp/v1/traces",
            ),
            (&[(ENDPOINT, "http://jaeger:4317")], "http://jaeger:4317"),
            (
                &[
                    (ENDPOINT, "http://a:1"),
                    (TRACES_ENDPOINT, "http://b:2/x"),
                    HTTP,
                ],
                "http://b:2/x",
            ),
            (
                &[(ENDPOINT, "http://a:1"), (TRACES_ENDPOINT, ""), HTTP],
                "http://a:1/v1/traces",
            ),
        ],
    );
}

#[test]
fn unusable_endpoint_is_refused() {
    for bad in [
        "ftp://jaeger:21",
        "unix:///run/otlp.sock",
        "http://",
        "http:///v1/traces",
        "http://jaeger:port",
        "http://jaeger:70000",
        "http://jaeger:0",
        "http://jaeger:",
        "http://user:password@jaeger:4317",
        "two words",
        "/v1/traces",
    ] {
        let allowed = "grpc://host:port, http://host:port, https://host:port or host:port";
        let expect = format!("{TRACES_ENDPOINT}='{bad}' is not supported: use {allowed}");
        check_refused(&[(&[(TRACES_ENDPOINT, bad)], &expect)]);
    }
}

#[test]
fn flag_wins_over_the_environment_and_is_named_in_its_error() {
    let settings = || parse(&[(TRACES_ENDPOINT, "http://a:1"), HTTP]).expect("valid");
    let flag = "--otlp-traces-endpoint";
    let changed = settings()
        .with_traces_endpoint(flag, "grpc://b:2")
        .expect("valid");
    assert_eq!(changed.traces_endpoint(), Some("grpc://b:2"));
    assert_eq!(changed.exporter().endpoint, "http://b:2");
    let error = settings()
        .with_traces_endpoint(flag, "b c")
        .expect_err("refused");
    assert_eq!((&*error.variable, &*error.value), (flag, "b c"));
}

#[test]
fn changing_the_protocol_resolves_the_endpoint_again() {
    let settings = parse(&[(ENDPOINT, "http://a:1")]).expect("valid");
    let settings = settings.with_protocol(Protocol::HttpProtobuf);
    assert_eq!(settings.exporter().endpoint, "http://a:1/v1/traces");
    let settings = settings.with_protocol(Protocol::Grpc);
    assert_eq!(settings.exporter().endpoint, "http://a:1");
}

#[test]
fn protocol_is_grpc_unless_it_is_named() {
    check(
        |settings| settings.protocol().to_string(),
        &[
            (&[], "grpc"),
            (&[(PROTOCOL, "grpc")], "grpc"),
            (&[(PROTOCOL, "http/protobuf")], "http/protobuf"),
            (&[(PROTOCOL, " HTTP/Protobuf ")], "http/protobuf"),
            (
                &[(PROTOCOL, "http/protobuf"), (TRACES_PROTOCOL, "grpc")],
                "grpc",
            ),
            (
                &[(PROTOCOL, "http/protobuf"), (TRACES_PROTOCOL, "")],
                "http/protobuf",
            ),
            (&[(PROTOCOL, ""), (TRACES_PROTOCOL, " ")], "grpc"),
            (&[(PROTOCOL, "http/json")], "http/json"),
        ],
    );
    check_refused(&[
        (
            &[(TRACES_PROTOCOL, "foo")],
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='foo' is not supported: use grpc, http/protobuf or http/json",
        ),
        (
            &[(PROTOCOL, "http/xml")],
            "OTEL_EXPORTER_OTLP_PROTOCOL='http/xml' is not supported: use grpc, http/protobuf or http/json",
        ),
    ]);
}

#[test]
fn headers_are_decoded_and_those_for_traces_win() {
    let shown = |settings: &Settings| {
        settings
            .exporter()
            .headers
            .iter()
            .fold(String::new(), |mut shown, (name, value)| {
                let _ = write!(shown, "{name}: {};", value.to_str().expect("ASCII"));
                shown
            })
    };
    let general = "OTEL_EXPORTER_OTLP_HEADERS";
    let traces = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
    check(
        shown,
        &[
            (&[], ""),
            (&[(general, "api-key=secret")], "api-key: secret;"),
            (&[(general, "a=1,b=2")], "a: 1;b: 2;"),
            (&[(general, " A = 1 ,, b=x%20y%2Cz%3D ")], "a: 1;b: x y,z=;"),
            (&[(general, "a=b=c")], "a: b=c;"),
            (&[(general, "a=")], "a: ;"),
            (&[(general, "a=1"), (traces, "b=2")], "b: 2;"),
            (&[(general, "a=1"), (traces, "")], "a: 1;"),
        ],
    );
    let pairs = "key=value pairs separated by commas, other characters percent-encoded";
    let error = |name: &str, shown: &str| format!("{name}='{shown}' is not supported: use {pairs}");
    check_refused(&[
        (&[(general, "a=1,secret")], &error(general, "(entry 2)")),
        (&[(general, "=secret")], &error(general, "=…")),
        (&[(general, "a b=secret")], &error(general, "a b=…")),
        (&[(traces, "a=se%0Acret")], &error(traces, "a=…")),
        (&[(traces, "a=%ff")], &error(traces, "a=…")),
    ]);
}

#[test]
fn header_values_are_not_shown_by_debug() {
    let settings = parse(&[("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")]).expect("valid");
    assert!(!format!("{settings:?}").contains("secret"));
}

#[test]
fn transport_options_are_read() {
    check(
        |settings| {
            let exporter = settings.exporter();
            format!(
                "{:?} {:?} {}",
                exporter.timeout, exporter.compression, exporter.insecure
            )
        },
        &[
            (&[], "10s None false"),
            (&[("OTEL_EXPORTER_OTLP_TIMEOUT", "1500")], "1.5s None false"),
            (
                &[
                    ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
                    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2"),
                ],
                "2ms None false",
            ),
            (
                &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")],
                "10s Some(Gzip) false",
            ),
            (
                &[
                    ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
                ],
                "10s Some(None) false",
            ),
            (&[("OTEL_EXPORTER_OTLP_INSECURE", "TRUE")], "10s None true"),
        ],
    );
    check_refused(&[
        (
            &[("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")],
            "OTEL_EXPORTER_OTLP_TIMEOUT='10s' is not supported: \
             use a time from 1 to 3600000 milliseconds",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0")],
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT='0' is not supported: \
             use a time from 1 to 3600000 milliseconds",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd")],
            "OTEL_EXPORTER_OTLP_COMPRESSION='zstd' is not supported: use gzip or none",
        ),
        (
            &[(INSECURE, "1")],
            "OTEL_EXPORTER_OTLP_TRACES_INSECURE='1' is not supported: use true or false",
        ),
    ]);
}

#[test]
fn endpoint_is_known_only_when_somebody_named_it() {
    check(
        |settings| format!("{:?}", settings.traces_endpoint()),
        &[
            (&[], "None"),
            (&[(ENDPOINT, "jaeger:4317")], "Some(\"jaeger:4317\")"),
            (
                &[(TRACES_ENDPOINT, "grpc://jaeger:4317")],
                "Some(\"grpc://jaeger:4317\")",
            ),
        ],
    );
}

#[test]
fn tls_files_are_read_and_understood_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write =
        |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect(name);
    let issue = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("issued");
    let (mine, other) = (issue(), issue());
    write("cert.pem", &mine.cert.pem());
    write("key.pem", &mine.signing_key.serialize_pem());
    write("other-key.pem", &other.signing_key.serialize_pem());
    write("empty.pem", "");
    write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );

    let ca = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let (key, chain) = (
        "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    );
    let (cert_path, key_path) = (path("cert.pem"), path("key.pem"));
    let settings = parse(&[(ca, &cert_path), (key, &key_path), (chain, &cert_path)]);
    let exporter = settings.expect("valid").exporter().clone();
    assert_eq!(
        exporter.certificate.map(|file| file.pem),
        Some(mine.cert.pem().into_bytes())
    );
    assert!(exporter.client_key.is_some() && exporter.client_certificate.is_some());

    let refused = |variable: &str, vars: Table<'_>, allowed: &str| {
        let error = parse(vars)
            .map(|_| ())
            .expect_err(&format!("{vars:?} is refused"));
        assert_eq!(error.variable, variable);
        assert!(error.allowed.contains(allowed), "{error}");
    };
    let (missing, empty, broken) = (path("missing.pem"), path("empty.pem"), path("broken.pem"));
    let other_key = path("other-key.pem");
    refused(ca, &[(ca, &missing)], "No such file");
    refused(ca, &[(ca, &empty)], "one or more certificates");
    refused(ca, &[(ca, &broken)], "one or more certificates");
    refused(ca, &[(ca, &key_path)], "one or more certificates");
    refused(key, &[(key, &key_path)], chain);
    refused(chain, &[(chain, &cert_path)], key);
    refused(
        key,
        &[(key, &cert_path), (chain, &cert_path)],
        "private key",
    );
    refused(
        chain,
        &[(key, &key_path), (chain, &empty)],
        "one or more certificates",
    );
    refused(
        key,
        &[(key, &other_key), (chain, &cert_path)],
        "the private key of",
    );
}

#[test]
fn endpoint_knows_which_variable_or_flag_named_it() {
    let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    check(
        |settings| format!("{:?}", settings.traces_endpoint_variable()),
        &[
            (&[], "None"),
            (&[(ENDPOINT, "http://a:1")], &format!("Some({ENDPOINT:?})")),
            (
                &[(ENDPOINT, "http://a:1"), (traces, "http://b:2")],
                &format!("Some({traces:?})"),
            ),
        ],
    );
    let settings = parse(&[(traces, "http://a:1")]).expect("valid");
    let settings = settings.with_traces_endpoint("--to", "http://b:2");
    let settings = settings.expect("a valid flag");
    assert_eq!(settings.traces_endpoint_variable(), Some("--to"));
}

#[test]
fn a_proxy_that_cannot_be_used_is_named_without_its_password() {
    const ALLOWED: &str = "is not supported: use http://host:port or https://host:port, with \
                           user:password@ before the host where the proxy asks for them";
    for (name, value) in [
        ("HTTPS_PROXY", "socks5://user:secret@proxy:1080"),
        ("http_proxy", "ftp://proxy"),
        ("ALL_PROXY", "http://"),
        ("all_proxy", "not a host"),
    ] {
        check_refused(&[(&[(name, value)], &format!("{name}='…' {ALLOWED}"))]);
    }
}

#[test]
fn the_proxy_on_the_way_depends_on_the_endpoint_and_on_the_protocol() {
    let proxies = |endpoint, protocol| {
        [
            (TRACES_ENDPOINT, endpoint),
            (TRACES_PROTOCOL, protocol),
            ("HTTP_PROXY", "http://plain:3128"),
            ("https_proxy", "user:secret@secure:3128"),
            ("NO_PROXY", "inside.example.com, 10.0.0.0/8"),
        ]
    };
    let check = |endpoint, protocol, expect: &str| {
        let settings = parse(&proxies(endpoint, protocol)).expect("valid");
        let route = format!("{:?}", settings.exporter().route());
        assert!(!route.contains("secret"), "{route}");
        let kind = route.split('(').next().expect("its name");
        let by = ["plain:3128", "secure:3128"].into_iter();
        let by: String = by.filter(|proxy| route.contains(proxy)).collect();
        assert_eq!(format!("{kind} {by}").trim_end(), expect, "{endpoint}");
    };
    check("https://otlp.example.com", "grpc", "Tunnel secure:3128");
    check("http://otlp.example.com", "grpc", "Tunnel secure:3128");
    check(
        "https://otlp.example.com",
        "http/json",
        "Tunnel secure:3128",
    );
    check(
        "http://otlp.example.com",
        "http/json",
        "Forwarder plain:3128",
    );
    check(
        "http://otlp.example.com",
        "http/protobuf",
        "Forwarder plain:3128",
    );
    for here in [
        "http://localhost:4317",
        "http://127.0.0.2:4317",
        "http://[::1]:4317",
        "http://inside.example.com",
        "https://10.1.2.3",
    ] {
        check(here, "grpc", "Straight");
    }
}
