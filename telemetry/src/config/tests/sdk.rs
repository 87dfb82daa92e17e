//! The SDK's own variables.

use super::*;

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
    check_refused(&[
        (
            &[(exporter, "zipkin")],
            "OTEL_TRACES_EXPORTER='zipkin' is not supported: use otlp or none",
        ),
        (
            &[("OTEL_SDK_DISABLED", "yes")],
            "OTEL_SDK_DISABLED='yes' is not supported: use true or false",
        ),
    ]);
}

#[test]
fn signals_that_are_not_exported_may_be_named_and_the_user_is_told() {
    let shown = |settings: &Settings| settings.other_signals().notice().unwrap_or_default();
    let (metrics, logs) = ("OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER");
    let both = "this program does not export that, so it has no effect: OTEL_METRICS_EXPORTER='otlp', \
                OTEL_LOGS_EXPORTER='otlp,console'";
    check(
        shown,
        &[
            (&[], ""),
            (&[(metrics, "none"), (logs, "None")], ""),
            (&[(metrics, "otlp"), (logs, "otlp,console")], both),
            (
                &[(metrics, "Prometheus")],
                "this program does not export that, so it has no effect: OTEL_METRICS_EXPORTER='Prometheus'",
            ),
        ],
    );
    check_refused(&[
        (
            &[(metrics, "otpl")],
            "OTEL_METRICS_EXPORTER='otpl' is not supported: use otlp, prometheus, console, \
             logging, none, a list of them, or leave it unset: only traces are exported",
        ),
        (
            &[(logs, "otlp,prometheus")],
            "OTEL_LOGS_EXPORTER='otlp,prometheus' is not supported: use otlp, console, logging, \
             none, a list of them, or leave it unset: only traces are exported",
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
fn metrics_have_an_endpoint_of_their_own_and_are_off_unless_asked_for() {
    let metrics = ("OTEL_METRICS_EXPORTER", "otlp");
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let shown = |settings: &Settings| match settings.clone().with_metrics().metrics() {
        Some(metrics) => format!("{} {:?}", metrics.exporter.endpoint, metrics.interval),
        None => "off".to_owned(),
    };
    check(
        shown,
        &[
            (&[], "off"),
            (&[("OTEL_METRICS_EXPORTER", "none")], "off"),
            (&[metrics, ("OTEL_SDK_DISABLED", "true")], "off"),
            (&[metrics], "http://localhost:4317 60s"),
            (
                &[("OTEL_METRICS_EXPORTER", "prometheus, OTLP")],
                "http://localhost:4317 60s",
            ),
            (&[metrics, http], "http://localhost:4318/v1/metrics 60s"),
            (
                &[
                    metrics,
                    http,
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1/base/"),
                ],
                "http://a:1/base/v1/metrics 60s",
            ),
            (
                &[
                    metrics,
                    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a:1"),
                    ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "grpc://b:2"),
                    ("OTEL_METRIC_EXPORT_INTERVAL", "1500"),
                ],
                "http://b:2 1.5s",
            ),
        ],
    );
    check_refused(&[
        (
            &[metrics, ("OTEL_METRIC_EXPORT_INTERVAL", "0")],
            "OTEL_METRIC_EXPORT_INTERVAL='0' is not supported: use a time from 1 to 3600000 \
             milliseconds",
        ),
        (
            &[
                metrics,
                (
                    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
                    "sometimes",
                ),
            ],
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE='sometimes' is not supported: use \
             cumulative, delta or lowmemory",
        ),
    ]);
}

#[test]
fn a_program_with_metrics_is_told_only_of_what_has_no_effect() {
    let shown = |settings: &Settings| {
        let settings = settings.clone().with_metrics();
        settings.other_signals().notice().unwrap_or_default()
    };
    let (metrics, logs) = ("OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER");
    check(
        shown,
        &[
            (&[(metrics, "otlp")], ""),
            (
                &[(metrics, "otlp"), (logs, "otlp")],
                "this program does not export that, so it has no effect: OTEL_LOGS_EXPORTER='otlp'",
            ),
        ],
    );
}

#[test]
fn a_program_has_room_for_its_links_unless_the_environment_says_how_many() {
    let links = |vars: Table<'_>, links| {
        let settings = parse(vars).unwrap().with_links_per_span(links);
        settings.limits().links_per_span
    };
    assert_eq!(links(&[], 300), 300);
    assert_eq!(links(&[], 3), 128, "never fewer than by default");
    assert_eq!(links(&[("OTEL_SPAN_LINK_COUNT_LIMIT", "2")], 300), 2);
}
