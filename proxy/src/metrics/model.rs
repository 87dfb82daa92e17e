//! What is measured of requests to a model.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use lantern_telemetry::instruments::{
    FIRST_TOKEN_SECONDS, Histogram, HistogramSeries, Instruments, Key, Labels, OPERATION_SECONDS,
    TOKEN_SECONDS, Trace,
};
use opentelemetry_semantic_conventions::{attribute as semconv, metric};

use super::known;
use super::series::Found;
use crate::genai::Facts;

/// `gen_ai.client.token.usage`, tokens.
pub(super) const TOKENS: &[f64] = &[
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

pub(super) struct ModelMetrics {
    request_duration: Histogram,
    operation_duration: Histogram,
    time_to_first_token: Histogram,
    time_per_output_token: Histogram,
    token_usage: Histogram,
    found: Found<Exchanged, ModelSeries>,
}

/// What tells requests to a model apart. Names of models are bounded.
#[derive(PartialEq, Eq, Hash)]
struct Exchanged {
    operation: &'static str,
    provider: Option<&'static str>,
    request_model: Option<String>,
    response_model: Option<String>,
    error_type: Option<Cow<'static, str>>,
}

/// What is observed of such requests. Those that not every request has are found when there is something to
/// observe: until then there is no such series.
struct ModelSeries {
    labels: Labels,
    request_duration: HistogramSeries,
    operation_duration: HistogramSeries,
    input_tokens: OnceLock<HistogramSeries>,
    output_tokens: OnceLock<HistogramSeries>,
    time_to_first_token: OnceLock<HistogramSeries>,
    time_per_output_token: OnceLock<HistogramSeries>,
}

impl ModelMetrics {
    pub(super) fn new(instruments: &mut Instruments<'_>) -> Self {
        Self {
            request_duration: instruments.histogram(
                metric::GEN_AI_SERVER_REQUEST_DURATION,
                "Duration of requests to a model",
                "s",
                OPERATION_SECONDS,
            ),
            operation_duration: instruments.histogram(
                metric::GEN_AI_CLIENT_OPERATION_DURATION,
                "Duration of operations of a model",
                "s",
                OPERATION_SECONDS,
            ),
            time_to_first_token: instruments.histogram(
                metric::GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
                "From a request's head to the first chunk of its stream",
                "s",
                FIRST_TOKEN_SECONDS,
            ),
            time_per_output_token: instruments.histogram(
                metric::GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
                "Time for each token of a stream after the first",
                "s",
                TOKEN_SECONDS,
            ),
            token_usage: instruments.histogram(
                metric::GEN_AI_CLIENT_TOKEN_USAGE,
                "Tokens of requests to a model",
                "{token}",
                TOKENS,
            ),
            found: Found::default(),
        }
    }

    pub(super) fn record(
        &self,
        facts: Facts,
        duration: Duration,
        error_type: Option<Cow<'static, str>>,
        trace: Option<Trace>,
    ) {
        let now = SystemTime::now();
        let observe = |series: &HistogramSeries, value| series.observe(value, trace, now);
        let succeeded = error_type.is_none();
        let series = self.found.get(
            Exchanged {
                operation: facts.operation,
                provider: facts.provider,
                request_model: facts.request_model,
                response_model: facts.response_model,
                error_type,
            },
            |exchanged| self.series(exchanged),
        );
        observe(&series.request_duration, duration.as_secs_f64());
        observe(&series.operation_duration, duration.as_secs_f64());
        for (tokens, kind, of_kind) in [
            (facts.input_tokens, "input", &series.input_tokens),
            (facts.output_tokens, "output", &series.output_tokens),
        ] {
            if let Some(tokens) = tokens {
                let find = || {
                    let mut labels = series.labels.clone();
                    labels.push((Key(semconv::GEN_AI_TOKEN_TYPE), kind.into()));
                    self.token_usage.series(&labels)
                };
                observe(of_kind.get_or_init(find), tokens as f64);
            }
        }
        if let Some(time) = facts.time_to_first_chunk {
            let find = || self.time_to_first_token.series(&series.labels);
            let found = series.time_to_first_token.get_or_init(find);
            observe(found, time.as_secs_f64());
        }
        if let (true, Some(time), Some(tokens @ 2..)) =
            (succeeded, facts.generation, facts.output_tokens)
        {
            let find = || self.time_per_output_token.series(&series.labels);
            let found = series.time_per_output_token.get_or_init(find);
            observe(found, time.as_secs_f64() / (tokens - 1) as f64);
        }
    }

    fn series(&self, exchanged: &Exchanged) -> ModelSeries {
        let labels = exchanged.labels();
        let mut of_whole = labels.clone();
        of_whole.extend(known([(semconv::ERROR_TYPE, exchanged.error_type.clone())]));
        ModelSeries {
            request_duration: self.request_duration.series(&of_whole),
            operation_duration: self.operation_duration.series(&of_whole),
            labels,
            input_tokens: OnceLock::new(),
            output_tokens: OnceLock::new(),
            time_to_first_token: OnceLock::new(),
            time_per_output_token: OnceLock::new(),
        }
    }
}

impl Exchanged {
    /// But for the error, which is one of the whole exchange alone.
    fn labels(&self) -> Labels {
        let further = [
            (semconv::GEN_AI_PROVIDER_NAME, self.provider.map(Cow::from)),
            (
                semconv::GEN_AI_REQUEST_MODEL,
                self.request_model.clone().map(Cow::from),
            ),
            (
                semconv::GEN_AI_RESPONSE_MODEL,
                self.response_model.clone().map(Cow::from),
            ),
        ];
        let mut labels = vec![(Key(semconv::GEN_AI_OPERATION_NAME), self.operation.into())];
        labels.extend(known(further));
        labels
    }
}
