//! What is measured of requests to a model.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

use std::borrow::Cow;
use std::time::Duration;

use lantern_telemetry::instruments::{
    FIRST_TOKEN_SECONDS, Histogram, Instruments, Key, Labels, OPERATION_SECONDS, TOKEN_SECONDS,
    Trace,
};
use opentelemetry_semantic_conventions::{attribute as semconv, metric};

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
        }
    }

    pub(super) fn record(
        &self,
        facts: Facts,
        duration: Duration,
        error_type: Option<Cow<'static, str>>,
        trace: Option<Trace>,
    ) {
        let tokens = [
            ("input", facts.input_tokens),
            ("output", facts.output_tokens),
        ];
        let (first_chunk, generation) = (facts.time_to_first_chunk, facts.generation);
        let output_tokens = facts.output_tokens;
        let mut labels = labels(facts);
        for (kind, tokens) in tokens {
            if let Some(tokens) = tokens {
                let mut labels = labels.clone();
                labels.push((Key(semconv::GEN_AI_TOKEN_TYPE), kind.into()));
                self.token_usage.observe(tokens as f64, &labels, trace);
            }
        }
        if let Some(time) = first_chunk {
            self.time_to_first_token
                .observe(time.as_secs_f64(), &labels, trace);
        }
        let succeeded = error_type.is_none();
        if let (true, Some(time), Some(tokens @ 2..)) = (succeeded, generation, output_tokens) {
            let seconds = time.as_secs_f64() / (tokens - 1) as f64;
            self.time_per_output_token.observe(seconds, &labels, trace);
        }
        labels.extend(error_type.map(|error| (Key(semconv::ERROR_TYPE), error)));
        for histogram in [&self.request_duration, &self.operation_duration] {
            histogram.observe(duration.as_secs_f64(), &labels, trace);
        }
    }
}

fn labels(facts: Facts) -> Labels {
    let mut labels: Labels = vec![(Key(semconv::GEN_AI_OPERATION_NAME), facts.operation.into())];
    for (key, value) in [
        (semconv::GEN_AI_PROVIDER_NAME, facts.provider.map(Cow::from)),
        (
            semconv::GEN_AI_REQUEST_MODEL,
            facts.request_model.map(Cow::from),
        ),
        (
            semconv::GEN_AI_RESPONSE_MODEL,
            facts.response_model.map(Cow::from),
        ),
    ] {
        labels.extend(value.map(|value| (Key(key), value)));
    }
    labels
}
