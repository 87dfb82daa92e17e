//! The engine's spans: `llm_request` for each prompt, with children `queue`, `prefill`, `decode`.
//!
//! Names are vLLM's, with those of the current GenAI conventions beside them
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>). No HTTP is traced here:
//! that is the proxy's part, and its span is this one's parent.

#![allow(
    deprecated,
    reason = "the GenAI conventions have moved to a repository that has no crate yet; the names stand"
)]

use std::time::Instant;

use lantern_telemetry::instruments::Trace;
use lantern_telemetry::{Propagator, Telemetry};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use opentelemetry_semantic_conventions::attribute as semconv;
use serde_json::json;

use crate::generation::exchange::Exchange;
use crate::generation::record::{Facts, Moment, Outcome};
use crate::generation::timeline::{Timeline, between};
use crate::sampling_params::SamplingParams;

/// Value of `gen_ai.provider.name`.
pub(crate) const PROVIDER: &str = "lantern";

// vLLM's names that no semantic convention has.
const REQUEST_ID: &str = "gen_ai.request.id";
const REQUEST_N: &str = "gen_ai.request.n";
const USAGE_NUM_SEQUENCES: &str = "gen_ai.usage.num_sequences";
const LATENCY_TIME_TO_FIRST_TOKEN: &str = "gen_ai.latency.time_to_first_token";
const LATENCY_E2E: &str = "gen_ai.latency.e2e";
const LATENCY_TIME_IN_QUEUE: &str = "gen_ai.latency.time_in_queue";
const LATENCY_TIME_IN_MODEL_PREFILL: &str = "gen_ai.latency.time_in_model_prefill";
const LATENCY_TIME_IN_MODEL_DECODE: &str = "gen_ai.latency.time_in_model_decode";
const LATENCY_TIME_IN_MODEL_INFERENCE: &str = "gen_ai.latency.time_in_model_inference";
const LATENCY_TIME_IN_SCHEDULER: &str = "gen_ai.latency.time_in_scheduler";
const LATENCY_TIME_IN_MODEL_FORWARD: &str = "gen_ai.latency.time_in_model_forward";
const LATENCY_TIME_IN_MODEL_EXECUTE: &str = "gen_ai.latency.time_in_model_execute";

/// On the events of a sequence that enters the batch: tokens that the KV cache had already.
const PREFIX_HIT_TOKENS: &str = "lantern.prefix_hit_tokens";

/// Makes the spans of requests. Cheap to clone.
#[derive(Clone)]
pub struct Spans {
    tracer: SdkTracer,
    propagator: Propagator,
    capture_content: bool,
}

impl Spans {
    /// Spans that go where `telemetry` sends them. With `capture_content` they carry prompts and
    /// completions, which are private otherwise.
    pub fn new(telemetry: &Telemetry, capture_content: bool) -> Self {
        let tracer = telemetry.tracer(env!("CARGO_PKG_NAME"));
        Self {
            tracer,
            propagator: telemetry.propagator(),
            capture_content,
        }
    }

    /// Whether prompts and completions are wanted.
    pub(crate) fn captures_content(&self) -> bool {
        self.capture_content
    }

    /// The caller's trace context.
    pub fn parent(&self, headers: &http::HeaderMap) -> Context {
        self.propagator.extract(headers)
    }

    /// Starts the span of one prompt, as of the request's arrival.
    pub(crate) fn start(&self, exchange: &Exchange) -> RequestSpan {
        let span = SpanBuilder::from_name("llm_request")
            .with_kind(SpanKind::Server)
            .with_start_time(exchange.clock.wall(exchange.clock.arrival()))
            .with_attributes([
                KeyValue::new(semconv::GEN_AI_OPERATION_NAME, exchange.operation.name()),
                KeyValue::new(semconv::GEN_AI_PROVIDER_NAME, PROVIDER),
                KeyValue::new(REQUEST_ID, exchange.id.clone()),
            ])
            .start_with_context(&self.tracer, &exchange.parent);
        RequestSpan {
            spans: self.clone(),
            span,
        }
    }
}

/// The span of one prompt.
pub(crate) struct RequestSpan {
    spans: Spans,
    span: Span,
}

impl RequestSpan {
    /// Whether prompt and completions are wanted.
    pub(crate) fn captures_content(&self) -> bool {
        self.spans.capture_content && self.span.is_recording()
    }

    /// What others link to.
    pub(crate) fn context(&self) -> SpanContext {
        self.span.span_context().clone()
    }

    /// What an exemplar says of it, if it is exported.
    pub(crate) fn exported(&self) -> Option<Trace> {
        let context = self.span.span_context();
        context.is_sampled().then(|| Trace::of(context))
    }

    /// Ends the span and makes its children, whose times were only instants until now.
    pub(crate) fn end(
        &mut self,
        exchange: &Exchange,
        facts: &Facts,
        outcome: &Outcome<'_>,
        end: Instant,
    ) {
        if self.span.is_recording() {
            self.span.set_attributes(request_attributes(facts));
            self.span
                .set_attributes(response_attributes(exchange, facts));
            self.span
                .set_attributes(latency_attributes(exchange, facts));
            self.span.set_attributes(content_attributes(facts));
            if let Outcome::Failed(reason) = outcome {
                self.span
                    .set_attribute(KeyValue::new(semconv::ERROR_TYPE, reason.error_type));
                self.span.set_status(Status::error(reason.message.clone()));
            }
            self.moments(exchange, facts);
            self.phases(exchange, &facts.timeline, end);
        }
        self.span.end_with_timestamp(exchange.clock.wall(end));
    }

    fn moments(&mut self, exchange: &Exchange, facts: &Facts) {
        for &(at, moment) in &facts.moments {
            let (name, cached_tokens) = match moment {
                Moment::Scheduled { cached_tokens } => ("scheduled", Some(cached_tokens)),
                Moment::Preempted => ("preempted", None),
                Moment::Resumed { cached_tokens } => ("resumed", Some(cached_tokens)),
                Moment::FirstToken => ("first_token", None),
            };
            let cached_tokens = cached_tokens.into_iter();
            let attributes = cached_tokens
                .map(|tokens| KeyValue::new(PREFIX_HIT_TOKENS, integer(tokens)))
                .collect();
            let at = exchange.clock.wall(at);
            self.span.add_event_with_timestamp(name, at, attributes);
        }
    }

    /// The phases that were reached; one that never ended is cut off where the request was.
    fn phases(&self, exchange: &Exchange, timeline: &Timeline, end: Instant) {
        let parent = exchange
            .parent
            .with_remote_span_context(self.span.span_context().clone());
        let Timeline {
            queued,
            scheduled,
            first_token,
            last_token,
        } = *timeline;
        let phases = [
            ("queue", queued, scheduled),
            ("prefill", scheduled, first_token),
            ("decode", first_token, last_token),
        ];
        for (name, from, to) in phases {
            let Some(from) = from else { continue };
            SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(exchange.clock.wall(from))
                .start_with_context(&self.spans.tracer, &parent)
                .end_with_timestamp(exchange.clock.wall(to.unwrap_or(end)));
        }
    }
}

fn request_attributes(facts: &Facts) -> Vec<KeyValue> {
    let mut attributes = Vec::new();
    if let Some(model) = &facts.model {
        attributes.push(KeyValue::new(semconv::GEN_AI_REQUEST_MODEL, model.clone()));
        attributes.push(KeyValue::new(semconv::GEN_AI_REQUEST_STREAM, facts.stream));
    }
    if let Some(params) = facts.params.as_deref() {
        attributes.extend(sampling_attributes(&params.sampling));
        attributes.push(KeyValue::new(
            semconv::GEN_AI_REQUEST_MAX_TOKENS,
            integer(params.max_tokens()),
        ));
        attributes.push(KeyValue::new(REQUEST_N, integer(params.n)));
        attributes.push(KeyValue::new(
            semconv::GEN_AI_REQUEST_CHOICE_COUNT,
            integer(params.n),
        ));
        attributes.push(KeyValue::new(
            USAGE_NUM_SEQUENCES,
            integer(params.sequences()),
        ));
        if !params.stop.is_empty() {
            let stop = strings(params.stop.iter().cloned());
            attributes.push(KeyValue::new(semconv::GEN_AI_REQUEST_STOP_SEQUENCES, stop));
        }
    }
    attributes
}

fn sampling_attributes(sampling: &SamplingParams) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(
            semconv::GEN_AI_REQUEST_TEMPERATURE,
            double(sampling.temperature),
        ),
        KeyValue::new(semconv::GEN_AI_REQUEST_TOP_P, double(sampling.top_p)),
    ];
    // Left out where they do nothing, as the conventions have it for what was not asked for.
    if let Some(top_k) = sampling.top_k {
        attributes.push(KeyValue::new(semconv::GEN_AI_REQUEST_TOP_K, top_k as f64));
    }
    if let Some(seed) = sampling.seed {
        attributes.push(KeyValue::new(
            semconv::GEN_AI_REQUEST_SEED,
            seed.cast_signed(),
        ));
    }
    let penalties = [
        (
            semconv::GEN_AI_REQUEST_FREQUENCY_PENALTY,
            sampling.frequency_penalty,
        ),
        (
            semconv::GEN_AI_REQUEST_PRESENCE_PENALTY,
            sampling.presence_penalty,
        ),
    ];
    for (name, penalty) in penalties {
        if penalty != 0.0 {
            attributes.push(KeyValue::new(name, double(penalty)));
        }
    }
    attributes
}

fn response_attributes(exchange: &Exchange, facts: &Facts) -> Vec<KeyValue> {
    let mut attributes = Vec::new();
    if let Some(tokens) = facts.prompt_tokens {
        attributes.push(KeyValue::new(
            semconv::GEN_AI_USAGE_PROMPT_TOKENS,
            integer(tokens),
        ));
        attributes.push(KeyValue::new(
            semconv::GEN_AI_USAGE_INPUT_TOKENS,
            integer(tokens),
        ));
    }
    if facts.timeline.queued.is_some() {
        let tokens = integer(facts.completion_tokens);
        attributes.push(KeyValue::new(
            semconv::GEN_AI_USAGE_COMPLETION_TOKENS,
            tokens,
        ));
        attributes.push(KeyValue::new(semconv::GEN_AI_USAGE_OUTPUT_TOKENS, tokens));
        attributes.push(KeyValue::new(
            semconv::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
            integer(facts.cached_tokens.unwrap_or(0)),
        ));
        attributes.push(KeyValue::new(
            semconv::GEN_AI_RESPONSE_ID,
            exchange.id.clone(),
        ));
        if let Some(model) = &facts.model {
            attributes.push(KeyValue::new(semconv::GEN_AI_RESPONSE_MODEL, model.clone()));
        }
    }
    let reasons: Vec<_> = facts.finish_reasons.iter().flatten().copied().collect();
    if !reasons.is_empty() {
        attributes.push(KeyValue::new(
            semconv::GEN_AI_RESPONSE_FINISH_REASONS,
            strings(reasons),
        ));
    }
    attributes
}

/// vLLM's latencies: from the same instants as the child spans, and the time in the engine's steps,
/// known as of the last token.
fn latency_attributes(exchange: &Exchange, facts: &Facts) -> Vec<KeyValue> {
    let arrival = Some(exchange.clock.arrival());
    let Timeline {
        queued,
        scheduled,
        first_token,
        last_token,
    } = facts.timeline;
    let steps = first_token.map(|_| facts.step_times);
    let latencies = [
        (LATENCY_TIME_TO_FIRST_TOKEN, between(arrival, first_token)),
        (LATENCY_E2E, between(arrival, last_token)),
        (LATENCY_TIME_IN_QUEUE, between(queued, scheduled)),
        (
            LATENCY_TIME_IN_MODEL_PREFILL,
            between(scheduled, first_token),
        ),
        (
            LATENCY_TIME_IN_MODEL_DECODE,
            between(first_token, last_token),
        ),
        (
            LATENCY_TIME_IN_MODEL_INFERENCE,
            between(scheduled, last_token),
        ),
        (
            LATENCY_TIME_IN_SCHEDULER,
            steps.map(|steps| steps.scheduler),
        ),
        (
            LATENCY_TIME_IN_MODEL_FORWARD,
            steps.map(|steps| steps.model_forward),
        ),
        (
            LATENCY_TIME_IN_MODEL_EXECUTE,
            steps.map(|steps| steps.model_execute),
        ),
    ];
    let known = latencies
        .into_iter()
        .filter_map(|(name, latency)| Some((name, latency?)));
    known
        .map(|(name, latency)| KeyValue::new(name, latency.as_secs_f64()))
        .collect()
}

/// Prompt and completions as the conventions' message JSON.
fn content_attributes(facts: &Facts) -> Vec<KeyValue> {
    let message = |role: &str, text: &str| json!({"role": role, "parts": [{"type": "text", "content": text}]});
    let mut attributes = Vec::new();
    if let Some(prompt) = &facts.prompt_text {
        let messages = json!([message("user", prompt)]).to_string();
        attributes.push(KeyValue::new(semconv::GEN_AI_INPUT_MESSAGES, messages));
    }
    let texts = facts.completion_texts.iter().flatten().enumerate();
    let completions: Vec<_> = texts
        .map(|(index, text)| {
            let mut completion = message("assistant", text);
            if let Some(Some(reason)) = facts.finish_reasons.get(index) {
                completion["finish_reason"] = json!(reason);
            }
            completion
        })
        .collect();
    if !completions.is_empty() {
        let messages = json!(completions).to_string();
        attributes.push(KeyValue::new(semconv::GEN_AI_OUTPUT_MESSAGES, messages));
    }
    attributes
}

fn integer(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The double that is written like `value`: 0.7 and not 0.699999988079071.
fn double(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn strings<S: Into<StringValue>>(values: impl IntoIterator<Item = S>) -> Value {
    Value::Array(Array::String(values.into_iter().map(Into::into).collect()))
}
