//! The GenAI conventions' metrics of a server, for Prometheus and, where metrics go out by OTLP, for that too:
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

use lantern_telemetry::instruments::{
    FIRST_TOKEN_SECONDS, Histogram, Instruments, Key, Labels, OPERATION_SECONDS, TOKEN_SECONDS,
};
use opentelemetry_semantic_conventions::{attribute as semconv, metric};

use super::{Ended, time_per_output_token};
use crate::generation::record::Outcome;
use crate::generation::timeline::between;
use crate::spans::PROVIDER;

/// Noted as requests end.
pub(super) struct GenAiMetrics {
    request_duration: Histogram,
    time_to_first_token: Histogram,
    time_per_output_token: Histogram,
}

impl GenAiMetrics {
    pub(super) fn register(instruments: &mut Instruments<'_>) -> Self {
        let mut seconds = |name, help, bounds| instruments.histogram(name, help, "s", bounds);
        Self {
            request_duration: seconds(
                metric::GEN_AI_SERVER_REQUEST_DURATION,
                "Arrival to the last of the output",
                OPERATION_SECONDS,
            ),
            time_to_first_token: seconds(
                metric::GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
                "Arrival to first token, of requests that succeed",
                FIRST_TOKEN_SECONDS,
            ),
            time_per_output_token: seconds(
                metric::GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
                "Mean time per token after the first, of requests that succeed",
                TOKEN_SECONDS,
            ),
        }
    }

    pub(super) fn observe(&self, ended: &Ended<'_>) {
        let Ended {
            exchange,
            facts,
            trace,
            ..
        } = *ended;
        let arrival = exchange.clock.arrival();
        // Models are those that the server has: others never get here.
        let model = facts.model.clone().unwrap_or_default();
        let mut labels: Labels = vec![
            (
                Key(semconv::GEN_AI_OPERATION_NAME),
                exchange.operation.name().into(),
            ),
            (Key(semconv::GEN_AI_PROVIDER_NAME), PROVIDER.into()),
            (Key(semconv::GEN_AI_REQUEST_MODEL), model.clone().into()),
            (Key(semconv::GEN_AI_RESPONSE_MODEL), model.into()),
        ];
        match ended.outcome {
            Outcome::Complete => {
                let first = between(Some(arrival), facts.timeline.first_token);
                if let Some(time) = first {
                    self.time_to_first_token
                        .observe(time.as_secs_f64(), &labels, trace);
                }
                if let Some(seconds) = time_per_output_token(facts) {
                    self.time_per_output_token.observe(seconds, &labels, trace);
                }
            }
            Outcome::Failed(reason) => {
                labels.push((Key(semconv::ERROR_TYPE), reason.error_type.into()));
            }
        }
        let duration = ended.at.saturating_duration_since(arrival);
        self.request_duration
            .observe(duration.as_secs_f64(), &labels, trace);
    }
}
