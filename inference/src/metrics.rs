//! Metrics under vLLM's names (`vllm`), so that dashboards made for it read this server, and beside them those of the
//! GenAI conventions (`gen_ai`): for Prometheus and, where metrics go out by OTLP, for that too.
//!
//! Only names with a meaning here: nothing is exported that would always be zero.

mod gen_ai;
mod vllm;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::engine::Engine;
use crate::generation::GenerationError;
use crate::generation::exchange::Exchange;
use crate::generation::record::{Facts, Outcome};
use crate::generation::timeline::{Timeline, between};
use gen_ai::GenAiMetrics;
use lantern_telemetry::instruments::{Instruments, Meter, Trace};
use vllm::RequestMetrics;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: RequestMetrics,
    gen_ai: GenAiMetrics,
}

/// A prompt that has ended.
pub(crate) struct Ended<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) facts: &'a Facts,
    pub(crate) outcome: &'a Outcome<'a>,
    /// Where its span is exported.
    pub(crate) trace: Option<Trace>,
    pub(crate) at: Instant,
}

impl Metrics {
    /// Metrics of `engine`, whose label `model_name` is `model`. They also go out through `meter`, if there is one.
    pub fn new(model: &str, engine: &Engine, meter: Option<&Meter>) -> Self {
        let mut registry = Registry::default();
        let labels = vllm::labels(model);
        let mut instruments = Instruments {
            registry: &mut registry,
            meter,
        };
        vllm::observe(engine, &mut instruments, &labels);
        let requests = RequestMetrics::register(&mut instruments, labels);
        // By OTLP these are as the conventions have them.
        let label = ("model_name".into(), model.to_owned().into());
        let gen_ai = GenAiMetrics::register(&mut Instruments {
            registry: registry.sub_registry_with_label(label),
            meter,
        });
        Self(Arc::new(Inner {
            registry,
            requests,
            gen_ai,
        }))
    }

    /// The metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("writing to a string cannot fail");
        text
    }

    /// A request has its first token, so long after it arrived.
    pub(crate) fn first_token(
        &self,
        latency: Duration,
        prompt_tokens: Option<usize>,
        trace: Option<Trace>,
    ) {
        let requests = &self.0.requests;
        let seconds = latency.as_secs_f64();
        requests
            .time_to_first_token
            .observe(seconds, trace, SystemTime::now());
        let prompt_tokens = prompt_tokens.unwrap_or(0) as u64;
        requests.prompt_tokens_sum.add(prompt_tokens);
    }

    /// One more token, so long after the one before it in its sequence.
    pub(crate) fn token(&self, latency: Option<Duration>, trace: Option<Trace>) {
        let requests = &self.0.requests;
        requests.generation_tokens_sum.add(1);
        if let Some(latency) = latency {
            let seconds = latency.as_secs_f64();
            requests
                .inter_token_latency
                .observe(seconds, trace, SystemTime::now());
        }
    }

    /// A request has ended. One that never reached the engine is no request to it, as in vLLM; one for which the
    /// queue had no place has failed by the server, and the conventions count it.
    pub(crate) fn request_ended(&self, ended: &Ended<'_>) {
        let facts = ended.facts;
        let queued = facts.timeline.queued.is_some();
        let overload = matches!(
            ended.outcome,
            Outcome::Failed(reason) if reason.error_type == GenerationError::QUEUE_FULL
        );
        if queued || overload {
            self.0.gen_ai.observe(ended);
        }
        if !queued {
            return;
        }
        let requests = &self.0.requests;
        match ended.outcome {
            Outcome::Complete => {
                let reason = facts.finish_reasons.iter().flatten().next().copied();
                requests.count(reason.unwrap_or("stop"));
                requests.observe(ended);
            }
            Outcome::Failed(_) => requests.count("abort"),
        }
    }
}

/// Mean seconds per token after a sequence's first. Sequences side by side each have a token in the time of one.
fn time_per_output_token(facts: &Facts) -> Option<f64> {
    let Timeline {
        first_token,
        last_token,
        ..
    } = facts.timeline;
    let decode = between(first_token, last_token)?.as_secs_f64();
    let sequences = facts.finish_reasons.iter().flatten().count().max(1);
    let after_first = facts.completion_tokens.checked_sub(sequences);
    let after_first = after_first.filter(|tokens| *tokens > 0)?;
    Some(decode * sequences as f64 / after_first as f64)
}
