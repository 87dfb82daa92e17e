//! What the proxy measures of all requests, by the names and buckets of the conventions:
//! <https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#http-server> and
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>.
//!
//! Sampling does not touch them: a request counts whether or not anybody keeps its span.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

mod endpoint;
mod instrument;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use opentelemetry_semantic_conventions::{attribute as semconv, metric};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use endpoint::Endpoint;
pub(crate) use instrument::Trace;
use instrument::{Histogram, Key, Labels, UpDown, Value};

use crate::genai::Facts;

/// `http.server.request.duration`, s.
const HTTP_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Body sizes, which the conventions give no bounds.
const BODY_BYTES: &[f64] = &[
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];
/// Whole operations of a model, s.
const OPERATION_SECONDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Most names of models that have series of their own; clients choose them.
const MAX_MODELS: usize = 128;
/// The name of every further one.
const OTHER_MODEL: &str = "_OTHER";

/// All instruments. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    http: HttpMetrics,
    model: ModelMetrics,
    models: Mutex<HashSet<String>>,
}

struct HttpMetrics {
    duration: Histogram,
    active: UpDown,
    request_body: Histogram,
    response_body: Histogram,
}

struct ModelMetrics {
    request_duration: Histogram,
    operation_duration: Histogram,
    time_to_first_token: Histogram,
    time_per_output_token: Histogram,
    token_usage: Histogram,
}

/// A request's fixed attributes.
pub(crate) struct Request {
    pub(crate) method: Cow<'static, str>,
    pub(crate) scheme: &'static str,
    pub(crate) route: Option<&'static str>,
    pub(crate) version: &'static str,
}

/// How a request ended.
pub(crate) struct Outcome<'a> {
    pub(crate) duration: Duration,
    pub(crate) status: Option<StatusCode>,
    pub(crate) error_type: Option<Cow<'static, str>>,
    pub(crate) request_body_bytes: usize,
    pub(crate) response_body_bytes: usize,
    pub(crate) trace: Option<&'a Trace>,
    /// Of a request to a model.
    pub(crate) facts: Option<Facts>,
}

/// A request that is counted as active until it is [`InFlight::finish`]ed.
pub(crate) struct InFlight {
    metrics: Metrics,
    active: Labels,
    labels: Labels,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        Self(Arc::new(Inner {
            http: HttpMetrics::new(&mut registry),
            model: ModelMetrics::new(&mut registry),
            models: Mutex::default(),
            registry,
        }))
    }

    /// A request has begun.
    pub(crate) fn begin(&self, request: Request) -> InFlight {
        let mut labels = vec![
            (Key(semconv::HTTP_REQUEST_METHOD), request.method),
            (Key(semconv::URL_SCHEME), request.scheme.into()),
        ];
        let active = labels.clone();
        self.0.http.active.add(1, &active);
        let route = request
            .route
            .map(|route| (Key(semconv::HTTP_ROUTE), route.into()));
        labels.extend(route);
        let version = Key(semconv::NETWORK_PROTOCOL_VERSION);
        labels.push((version, request.version.into()));
        InFlight {
            metrics: self.clone(),
            active,
            labels,
        }
    }

    /// All series as OpenMetrics text.
    fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("writing to a string cannot fail");
        text
    }

    /// `model`, or the name of all those that are too many.
    fn bounded(&self, model: String) -> Value {
        let mut known = self.0.models.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&model) {
            return model.into();
        }
        if known.len() >= MAX_MODELS {
            return OTHER_MODEL.into();
        }
        known.insert(model.clone());
        model.into()
    }
}

impl InFlight {
    pub(crate) fn finish(mut self, outcome: Outcome<'_>) {
        let http = &self.metrics.0.http;
        http.active.add(-1, &self.active);
        let status = outcome.status.map(|status| {
            let code = status.as_str().to_owned();
            (Key(semconv::HTTP_RESPONSE_STATUS_CODE), code.into())
        });
        self.labels.extend(status);
        let error = outcome.error_type.clone();
        self.labels
            .extend(error.map(|error| (Key(semconv::ERROR_TYPE), error)));
        let (labels, trace) = (&self.labels, outcome.trace);
        http.duration
            .observe(outcome.duration.as_secs_f64(), labels, trace);
        let bytes = |bytes: usize| bytes as f64;
        http.request_body
            .observe(bytes(outcome.request_body_bytes), labels, trace);
        http.response_body
            .observe(bytes(outcome.response_body_bytes), labels, trace);
        if let Some(facts) = outcome.facts {
            let ended = ModelOutcome {
                duration: outcome.duration,
                error_type: outcome.error_type,
                trace,
            };
            self.metrics.0.model.record(&self.metrics, facts, ended);
        }
    }
}

impl HttpMetrics {
    fn new(registry: &mut Registry) -> Self {
        let mut bytes =
            |name, help| Histogram::new(registry, (name, help), Some(Unit::Bytes), BODY_BYTES);
        Self {
            request_body: bytes(
                metric::HTTP_SERVER_REQUEST_BODY_SIZE,
                "Size of request bodies",
            ),
            response_body: bytes(
                metric::HTTP_SERVER_RESPONSE_BODY_SIZE,
                "Size of response bodies",
            ),
            duration: Histogram::new(
                registry,
                (
                    metric::HTTP_SERVER_REQUEST_DURATION,
                    "Duration of requests, to their last byte",
                ),
                Some(Unit::Seconds),
                HTTP_SECONDS,
            ),
            active: UpDown::new(
                registry,
                (metric::HTTP_SERVER_ACTIVE_REQUESTS, "Requests in flight"),
            ),
        }
    }
}

struct ModelOutcome<'a> {
    duration: Duration,
    error_type: Option<Cow<'static, str>>,
    trace: Option<&'a Trace>,
}

impl ModelMetrics {
    fn new(registry: &mut Registry) -> Self {
        let mut seconds = |name, help, bounds| {
            Histogram::new(registry, (name, help), Some(Unit::Seconds), bounds)
        };
        Self {
            request_duration: seconds(
                metric::GEN_AI_SERVER_REQUEST_DURATION,
                "Duration of requests to a model",
                OPERATION_SECONDS,
            ),
            operation_duration: seconds(
                metric::GEN_AI_CLIENT_OPERATION_DURATION,
                "Duration of operations of a model",
                OPERATION_SECONDS,
            ),
            time_to_first_token: seconds(
                metric::GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
                "From a request's head to the first chunk of its stream",
                FIRST_TOKEN_SECONDS,
            ),
            time_per_output_token: seconds(
                metric::GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
                "Time for each token of a stream after the first",
                TOKEN_SECONDS,
            ),
            token_usage: Histogram::new(
                registry,
                (
                    metric::GEN_AI_CLIENT_TOKEN_USAGE,
                    "Tokens of requests to a model",
                ),
                None,
                TOKENS,
            ),
        }
    }

    fn record(&self, metrics: &Metrics, facts: Facts, outcome: ModelOutcome<'_>) {
        let mut labels: Labels =
            vec![(Key(semconv::GEN_AI_OPERATION_NAME), facts.operation.into())];
        let provider = facts.provider.map(Cow::from);
        labels.extend(provider.map(|name| (Key(semconv::GEN_AI_PROVIDER_NAME), name)));
        // What a server has refused to know is no model; its name is whatever somebody sent.
        let asked = facts
            .request_model
            .filter(|_| facts.response_model.is_some());
        for (key, model) in [
            (semconv::GEN_AI_REQUEST_MODEL, asked),
            (semconv::GEN_AI_RESPONSE_MODEL, facts.response_model),
        ] {
            labels.extend(model.map(|model| (Key(key), metrics.bounded(model))));
        }
        let trace = outcome.trace;
        for (kind, tokens) in [
            ("input", facts.input_tokens),
            ("output", facts.output_tokens),
        ] {
            if let Some(tokens) = tokens {
                let mut labels = labels.clone();
                labels.push((Key(semconv::GEN_AI_TOKEN_TYPE), kind.into()));
                self.token_usage.observe(tokens as f64, &labels, trace);
            }
        }
        if let Some(time) = facts.time_to_first_chunk {
            self.time_to_first_token
                .observe(time.as_secs_f64(), &labels, trace);
        }
        let succeeded = outcome.error_type.is_none();
        if let (true, Some(time), Some(tokens @ 2..)) =
            (succeeded, facts.generation, facts.output_tokens)
        {
            let seconds = time.as_secs_f64() / (tokens - 1) as f64;
            self.time_per_output_token.observe(seconds, &labels, trace);
        }
        let error = outcome.error_type;
        labels.extend(error.map(|error| (Key(semconv::ERROR_TYPE), error)));
        for duration in [&self.request_duration, &self.operation_duration] {
            duration.observe(outcome.duration.as_secs_f64(), &labels, trace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_beyond_the_bound_share_one_name() {
        let metrics = Metrics::new();
        for number in 0..MAX_MODELS {
            let name = format!("m{number}");
            assert_eq!(metrics.bounded(name.clone()), name);
        }
        assert_eq!(metrics.bounded("one more".to_owned()), OTHER_MODEL);
        assert_eq!(metrics.bounded("m0".to_owned()), "m0");
    }
}
