//! The environment and what it means, one line a case.

use std::fmt::Write as _;

use super::*;

type Table<'a> = &'a [(&'a str, &'a str)];

fn parse(vars: Table<'_>) -> Result<Settings, ConfigError> {
    Settings::from_vars(|name| {
        vars.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    })
}

/// `vars` are accepted and `get` of the settings shows `expect`.
fn check(get: impl Fn(&Settings) -> String, cases: &[(Table<'_>, &str)]) {
    for (vars, expect) in cases {
        let settings = parse(vars).unwrap_or_else(|error| panic!("{vars:?}: {error}"));
        assert_eq!(&get(&settings), expect, "{vars:?}");
    }
}

/// `vars` are refused in exactly these words.
fn check_refused(cases: &[(Table<'_>, &str)]) {
    for (vars, expect) in cases {
        let error = parse(vars)
            .map(|_| ())
            .expect_err(&format!("{vars:?} is refused"));
        assert_eq!(&error.to_string(), expect);
    }
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
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
        ],
    );
    check_refused(&[
        (
            &[(TRACES_PROTOCOL, "foo")],
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='foo' is not supported: use grpc or http/protobuf",
        ),
        (
            &[(PROTOCOL, "http/json")],
            "OTEL_EXPORTER_OTLP_PROTOCOL='http/json' is not supported: use grpc or http/protobuf",
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
                "10s Gzip false",
            ),
            (
                &[
                    ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                    ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
                ],
                "10s None false",
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
fn sampler_and_its_argument_are_read() {
    let name = "OTEL_TRACES_SAMPLER";
    let arg = |value| ("OTEL_TRACES_SAMPLER_ARG", value);
    check(
        |settings| format!("{:?}", settings.sampler()),
        &[
            (&[], "ParentBased(AlwaysOn)"),
            (&[(name, "always_on")], "AlwaysOn"),
            (&[(name, "ALWAYS_OFF")], "AlwaysOff"),
            (
                &[(name, "traceidratio"), arg("0.25")],
                "TraceIdRatioBased(0.25)",
            ),
            (&[(name, "traceidratio")], "TraceIdRatioBased(1.0)"),
            (&[(name, "parentbased_always_on")], "ParentBased(AlwaysOn)"),
            (
                &[(name, "parentbased_always_off")],
                "ParentBased(AlwaysOff)",
            ),
            (
                &[(name, "parentbased_traceidratio"), arg("0")],
                "ParentBased(TraceIdRatioBased(0.0))",
            ),
            (&[(name, "always_on"), arg("unused")], "AlwaysOn"),
        ],
    );
    let refused = |value: &str| {
        format!("OTEL_TRACES_SAMPLER_ARG='{value}' is not supported: use a number from 0 to 1")
    };
    check_refused(&[
        (
            &[(name, "jaeger_remote")],
            "OTEL_TRACES_SAMPLER='jaeger_remote' is not supported: use always_on, always_off, \
             traceidratio, parentbased_always_on, parentbased_always_off or \
             parentbased_traceidratio",
        ),
        (&[(name, "traceidratio"), arg("1.5")], &refused("1.5")),
        (&[(name, "traceidratio"), arg("NaN")], &refused("NaN")),
        (
            &[(name, "parentbased_traceidratio"), arg("half")],
            &refused("half"),
        ),
    ]);
}

#[test]
fn batches_follow_the_queue_they_come_from() {
    let (queue, batch) = ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
    check(
        |settings| {
            let batch = settings.batch();
            format!(
                "{:?} {} {} {:?}",
                batch.schedule_delay,
                batch.max_queue_spans,
                batch.max_batch_spans,
                batch.export_timeout
            )
        },
        &[
            (&[], "5s 2048 512 30s"),
            (&[(queue, "100")], "5s 100 100 30s"),
            (&[(queue, "100"), (batch, "7")], "5s 100 7 30s"),
            (
                &[
                    ("OTEL_BSP_SCHEDULE_DELAY", "10"),
                    ("OTEL_BSP_EXPORT_TIMEOUT", "20"),
                ],
                "10ms 2048 512 20ms",
            ),
        ],
    );
    let refused = |name: &str, value: &str, most: u64| {
        format!("{name}='{value}' is not supported: use a whole number from 1 to {most}")
    };
    check_refused(&[
        (
            &[(queue, "100"), (batch, "101")],
            &refused(batch, "101", 100),
        ),
        (&[(queue, "0")], &refused(queue, "0", 262_144)),
        (&[(queue, "-1")], &refused(queue, "-1", 262_144)),
        (&[(batch, "many")], &refused(batch, "many", 2_048)),
    ]);
}

#[test]
fn limits_of_a_span_win_over_the_general_ones() {
    check(
        |settings| {
            let limits = settings.limits();
            format!(
                "{} {} {} {} {} {:?}",
                limits.attributes_per_span,
                limits.events_per_span,
                limits.links_per_span,
                limits.attributes_per_event,
                limits.attributes_per_link,
                limits.value_chars
            )
        },
        &[
            (&[], "128 128 128 128 128 None"),
            (&[("OTEL_ATTRIBUTE_COUNT_LIMIT", "9")], "9 128 128 9 9 None"),
            (
                &[
                    ("OTEL_ATTRIBUTE_COUNT_LIMIT", "9"),
                    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5"),
                ],
                "5 128 128 9 9 None",
            ),
            (
                &[
                    ("OTEL_SPAN_EVENT_COUNT_LIMIT", "1"),
                    ("OTEL_SPAN_LINK_COUNT_LIMIT", "2"),
                ],
                "128 1 2 128 128 None",
            ),
            (
                &[
                    ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "3"),
                    ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "0"),
                ],
                "128 128 128 3 0 None",
            ),
            (
                &[("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "64")],
                "128 128 128 128 128 Some(64)",
            ),
            (
                &[
                    ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "64"),
                    ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "32"),
                ],
                "128 128 128 128 128 Some(32)",
            ),
        ],
    );
    check_refused(&[(
        &[("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "none")],
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT='none' is not supported: \
         use a whole number from 0 to 4294967295",
    )]);
}

#[test]
fn propagators_are_read_in_order_and_once() {
    let name = "OTEL_PROPAGATORS";
    check(
        |settings| format!("{:?}", settings.propagators()),
        &[
            (&[], "[TraceContext, Baggage]"),
            (&[(name, "")], "[TraceContext, Baggage]"),
            (&[(name, "none")], "[]"),
            (&[(name, "b3, B3multi ,jaeger")], "[B3, B3Multi, Jaeger]"),
            (
                &[(name, "tracecontext,baggage,tracecontext")],
                "[TraceContext, Baggage]",
            ),
        ],
    );
    let allowed = "none, or a comma-separated list of tracecontext, baggage, b3, b3multi, jaeger";
    let refused = |value: &str| format!("{name}='{value}' is not supported: use {allowed}");
    check_refused(&[
        (&[(name, "xray")], &refused("xray")),
        (
            &[(name, "tracecontext,none")],
            &refused("tracecontext,none"),
        ),
    ]);
}

#[test]
fn resource_comes_from_its_attributes_and_the_service_name() {
    let name = "OTEL_RESOURCE_ATTRIBUTES";
    let shown = |settings: &Settings| {
        let resource = settings.resource("default");
        let mut shown: Vec<_> = resource
            .iter()
            .filter(|(key, _)| !key.as_str().starts_with("telemetry.sdk."))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        shown.sort_unstable();
        shown.join(" ")
    };
    check(
        shown,
        &[
            (&[], "service.name=default"),
            (&[("OTEL_SERVICE_NAME", "shop")], "service.name=shop"),
            (&[(name, "service.name=cart")], "service.name=cart"),
            (
                &[(name, "service.name=cart"), ("OTEL_SERVICE_NAME", "shop")],
                "service.name=shop",
            ),
            (
                &[(name, "deployment.environment.name=a%2Cb, x=%C3%A4")],
                "deployment.environment.name=a,b service.name=default x=ä",
            ),
        ],
    );
    assert_eq!(
        shown(
            &parse(&[("OTEL_SERVICE_NAME", "shop")])
                .expect("valid")
                .with_service_name("own")
        ),
        "service.name=own"
    );
    check_refused(&[(
        &[(name, "a=1,b")],
        "OTEL_RESOURCE_ATTRIBUTES='(entry 2)' is not supported: use key=value pairs separated by \
         commas, other characters percent-encoded",
    )]);
}

#[test]
fn traces_are_exported_unless_something_says_no() {
    let shown = |settings: &Settings| {
        let alone = settings.clone().only_if_endpoint_set();
        format!("{} {}", settings.exports_traces(), alone.exports_traces())
    };
    let exporter = "OTEL_TRACES_EXPORTER";
    let endpoint = (ENDPOINT, "http://a:1");
    check(
        shown,
        &[
            (&[], "true false"),
            (&[endpoint], "true true"),
            (&[(exporter, "otlp")], "true true"),
            (&[(exporter, "none"), endpoint], "false false"),
            (&[("OTEL_SDK_DISABLED", "true"), endpoint], "false false"),
            (&[("OTEL_SDK_DISABLED", "false"), endpoint], "true true"),
            (
                &[
                    ("OTEL_METRICS_EXPORTER", "none"),
                    ("OTEL_LOGS_EXPORTER", "none"),
                ],
                "true false",
            ),
        ],
    );
    let only_traces = "is not supported: use none, or leave it unset: only traces are exported";
    check_refused(&[
        (
            &[(exporter, "zipkin")],
            "OTEL_TRACES_EXPORTER='zipkin' is not supported: use otlp or none",
        ),
        (
            &[("OTEL_METRICS_EXPORTER", "otlp")],
            &format!("OTEL_METRICS_EXPORTER='otlp' {only_traces}"),
        ),
        (
            &[("OTEL_LOGS_EXPORTER", "otlp")],
            &format!("OTEL_LOGS_EXPORTER='otlp' {only_traces}"),
        ),
        (
            &[("OTEL_SDK_DISABLED", "yes")],
            "OTEL_SDK_DISABLED='yes' is not supported: use true or false",
        ),
    ]);
}

#[test]
fn log_level_becomes_a_filter() {
    let name = "OTEL_LOG_LEVEL";
    check(
        |settings| settings.log_filter().to_owned(),
        &[
            (&[], "info"),
            (&[(name, "NONE")], "off"),
            (&[(name, "error")], "error"),
            (&[(name, "warn")], "warn"),
            (&[(name, "debug")], "debug"),
            (&[(name, "verbose")], "trace"),
        ],
    );
    check_refused(&[(
        &[(name, "loud")],
        "OTEL_LOG_LEVEL='loud' is not supported: use none, error, warn, info, debug or trace",
    )]);
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
