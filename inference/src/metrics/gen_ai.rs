//! The GenAI conventions' metrics of a server, for Prometheus and, where metrics go out by OTLP, for that too:
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>.
//!
//! The SDK has no exemplars and no text format, Prometheus' library no OTLP: each has its own series.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram as Pushed, Meter};
use opentelemetry::trace::SpanContext;
use opentelemetry_semantic_conventions::{attribute as semconv, metric};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::registry::{Registry, Unit};

use super::{Ended, time_per_output_token};
use crate::generation::record::Outcome;
use crate::generation::timeline::between;
use crate::spans::PROVIDER;

// Bounds are the conventions', in seconds.
const REQUEST_SECONDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// Noted as requests end.
pub(super) struct GenAiMetrics {
    request_duration: Latency,
    time_to_first_token: Latency,
    time_per_output_token: Latency,
}

impl GenAiMetrics {
    pub(super) fn register(registry: &mut Registry, meter: Option<&Meter>) -> Self {
        let mut latency =
            |name, help, bounds| Latency::register((&mut *registry, meter), name, (help, bounds));
        Self {
            request_duration: latency(
                metric::GEN_AI_SERVER_REQUEST_DURATION,
                "Arrival to the last of the output",
                REQUEST_SECONDS,
            ),
            time_to_first_token: latency(
                metric::GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
                "Arrival to first token, of requests that succeed",
                FIRST_TOKEN_SECONDS,
            ),
            time_per_output_token: latency(
                metric::GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
                "Mean time per token after the first, of requests that succeed",
                TOKEN_SECONDS,
            ),
        }
    }

    pub(super) fn observe(&self, ended: &Ended<'_>) {
        let Ended {
            exchange, facts, ..
        } = ended;
        let trace = ended.span.is_sampled().then(|| Trace::of(ended.span));
        let arrival = exchange.clock.arrival();
        let mut series = Series {
            gen_ai_operation_name: exchange.operation.name(),
            gen_ai_provider_name: PROVIDER,
            gen_ai_request_model: facts.model.clone().unwrap_or_default(),
            gen_ai_response_model: facts.model.clone().unwrap_or_default(),
            error_type: None,
        };
        match ended.outcome {
            Outcome::Complete => {
                let first = between(Some(arrival), facts.timeline.first_token);
                let first = first.map(|time| time.as_secs_f64());
                self.time_to_first_token.observe(first, &series, &trace);
                let each = time_per_output_token(facts);
                self.time_per_output_token.observe(each, &series, &trace);
            }
            Outcome::Failed(reason) => series.error_type = Some(reason.error_type),
        }
        let duration: Duration = ended.at.saturating_duration_since(arrival);
        let duration = Some(duration.as_secs_f64());
        self.request_duration.observe(duration, &series, &trace);
    }
}

/// What tells one series from another. Models are those that the server has: others never get here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Series {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: &'static str,
    gen_ai_request_model: String,
    gen_ai_response_model: String,
    /// To Prometheus an empty label is none.
    error_type: Option<&'static str>,
}

impl Series {
    fn attributes(&self) -> Vec<KeyValue> {
        let model = |name, model: &str| KeyValue::new(name, model.to_owned());
        let mut attributes = vec![
            KeyValue::new(semconv::GEN_AI_OPERATION_NAME, self.gen_ai_operation_name),
            KeyValue::new(semconv::GEN_AI_PROVIDER_NAME, self.gen_ai_provider_name),
            model(semconv::GEN_AI_REQUEST_MODEL, &self.gen_ai_request_model),
            model(semconv::GEN_AI_RESPONSE_MODEL, &self.gen_ai_response_model),
        ];
        let error = self.error_type;
        attributes.extend(error.map(|error| KeyValue::new(semconv::ERROR_TYPE, error)));
        attributes
    }
}

/// The trace that an observation belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Trace {
    trace_id: String,
    span_id: String,
}

impl Trace {
    fn of(span: &SpanContext) -> Self {
        Self {
            trace_id: span.trace_id().to_string(),
            span_id: span.span_id().to_string(),
        }
    }
}

/// A histogram of seconds.
struct Latency {
    scraped: Family<Series, HistogramWithExemplars<Trace>, Bounds>,
    pushed: Option<Pushed<f64>>,
}

#[derive(Clone, Copy)]
struct Bounds(&'static [f64]);

impl MetricConstructor<HistogramWithExemplars<Trace>> for Bounds {
    fn new_metric(&self) -> HistogramWithExemplars<Trace> {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

impl Latency {
    fn register(
        (registry, meter): (&mut Registry, Option<&Meter>),
        name: &'static str,
        (help, bounds): (&'static str, &'static [f64]),
    ) -> Self {
        let scraped = Family::new_with_constructor(Bounds(bounds));
        let flat = name.replace('.', "_");
        registry.register_with_unit(flat, help, Unit::Seconds, scraped.clone());
        let pushed = meter.map(|meter| {
            let builder = meter.f64_histogram(name).with_description(help);
            let builder = builder.with_unit("s").with_boundaries(bounds.to_vec());
            builder.build()
        });
        Self { scraped, pushed }
    }

    /// Nothing is noted of what is not known.
    fn observe(&self, seconds: Option<f64>, series: &Series, trace: &Option<Trace>) {
        let Some(seconds) = seconds else { return };
        let now = trace.as_ref().map(|_| SystemTime::now());
        self.scraped
            .get_or_create(series)
            .observe(seconds, trace.clone(), now);
        if let Some(pushed) = &self.pushed {
            pushed.record(seconds, &series.attributes());
        }
    }
}
