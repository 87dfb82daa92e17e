//! Prometheus metrics under vLLM's names, so that dashboards made for it read this server, and beside them
//! (`gen_ai`) those of the GenAI conventions, which go out by OTLP too.
//!
//! Only names with a meaning here: nothing is exported that would always be zero.

mod gen_ai;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::engine::EngineStats;
use crate::generation::GenerationError;
use crate::generation::exchange::Exchange;
use crate::generation::record::{Facts, Outcome};
use crate::generation::timeline::{Timeline, between};
use gen_ai::GenAiMetrics;
use lantern_telemetry::instruments::{Instruments, Meter};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

// Bucket bounds are vLLM's, seconds or tokens.
const FIRST_TOKEN_SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_SECONDS: [f64; 17] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
];
const REQUEST_SECONDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TOKENS: [f64; 15] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0,
];
const SEQUENCES: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// All metrics of the server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    engine: EngineMetrics,
    requests: RequestMetrics,
    gen_ai: GenAiMetrics,
}

/// A prompt that has ended.
pub(crate) struct Ended<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) facts: &'a Facts,
    pub(crate) outcome: &'a Outcome<'a>,
    pub(crate) span: &'a SpanContext,
    pub(crate) at: Instant,
}

/// Read from the engine when they are asked for.
struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    kv_cache_usage: Gauge<f64, AtomicU64>,
    preemptions: Counter,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
}

/// Noted as requests go on.
struct RequestMetrics {
    prompt_tokens_sum: Counter,
    generation_tokens_sum: Counter,
    success: Family<[(&'static str, &'static str); 1], Counter>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    e2e_latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
}

impl Metrics {
    /// Metrics whose label `model_name` is `model`; the engine notes its `step_tokens` itself. Those of the
    /// conventions also go out through `meter`, if there is one.
    pub fn new(model: &str, step_tokens: Histogram, meter: Option<&Meter>) -> Self {
        let label = ("model_name".into(), model.to_owned().into());
        let mut registry = Registry::with_labels([label].into_iter());
        let engine = EngineMetrics::register(&mut registry);
        let requests = RequestMetrics::register(&mut registry);
        let gen_ai = GenAiMetrics::register(&mut Instruments {
            registry: &mut registry,
            meter,
        });
        let help = "Tokens per engine step";
        registry.register("vllm:iteration_tokens_total", help, step_tokens);
        Self(Arc::new(Inner {
            registry,
            engine,
            requests,
            gen_ai,
        }))
    }

    /// The metrics as OpenMetrics text.
    pub fn render(&self, stats: &EngineStats) -> String {
        let engine = &self.0.engine;
        engine
            .running
            .set(stats.running.try_into().unwrap_or(i64::MAX));
        engine
            .waiting
            .set(stats.waiting.try_into().unwrap_or(i64::MAX));
        engine.kv_cache_usage.set(stats.kv_cache_usage);
        // The engine's counts only grow; of two scrapes at once one finds nothing left to add.
        for (counter, count) in [
            (&engine.preemptions, stats.preemptions),
            (&engine.prefix_cache_queries, stats.prefix_cache_queries),
            (&engine.prefix_cache_hits, stats.prefix_cache_hits),
        ] {
            let relaxed = std::sync::atomic::Ordering::Relaxed;
            counter.inner().fetch_max(count, relaxed);
        }
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("writing to a string cannot fail");
        text
    }

    pub(crate) fn first_token(&self, latency: Duration, prompt_tokens: Option<usize>) {
        self.0
            .requests
            .time_to_first_token
            .observe(latency.as_secs_f64());
        self.0
            .requests
            .prompt_tokens_sum
            .inc_by(prompt_tokens.unwrap_or(0) as u64);
    }

    /// One more token, so long after the one before it in its sequence.
    pub(crate) fn token(&self, latency: Option<Duration>) {
        self.0.requests.generation_tokens_sum.inc();
        if let Some(latency) = latency {
            self.0
                .requests
                .inter_token_latency
                .observe(latency.as_secs_f64());
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
                requests.observe(ended.exchange.clock.arrival(), facts);
            }
            Outcome::Failed(_) => requests.count("abort"),
        }
    }
}

impl EngineMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            running: add(
                registry,
                "num_requests_running",
                "Sequences in the current batch",
            ),
            waiting: add(
                registry,
                "num_requests_waiting",
                "Requests waiting for the batch",
            ),
            kv_cache_usage: add(registry, "kv_cache_usage_perc", "KV cache in use, 0 to 1"),
            preemptions: add(
                registry,
                "num_preemptions",
                "Sequences put back to the queue",
            ),
            prefix_cache_queries: add(
                registry,
                "prefix_cache_queries",
                "Prompt tokens looked for in the prefix cache",
            ),
            prefix_cache_hits: add(
                registry,
                "prefix_cache_hits",
                "Prompt tokens found in the prefix cache",
            ),
        }
    }
}

impl RequestMetrics {
    fn register(registry: &mut Registry) -> Self {
        let r = registry;
        Self {
            prompt_tokens_sum: add(r, "prompt_tokens", "Prompt tokens processed"),
            generation_tokens_sum: add(r, "generation_tokens", "Tokens generated"),
            success: add(r, "request_success", "Requests ended, by reason"),
            time_to_first_token: histogram(
                r,
                "time_to_first_token_seconds",
                "Arrival to first token",
                &FIRST_TOKEN_SECONDS,
            ),
            inter_token_latency: histogram(
                r,
                "inter_token_latency_seconds",
                "From one token of a sequence to the next",
                &TOKEN_SECONDS,
            ),
            time_per_output_token: histogram(
                r,
                "request_time_per_output_token_seconds",
                "Mean time per token after the first",
                &TOKEN_SECONDS,
            ),
            e2e_latency: request_seconds(r, "e2e_request_latency_seconds", "Arrival to last token"),
            queue_time: request_seconds(r, "request_queue_time_seconds", "Time in the queue"),
            inference_time: request_seconds(
                r,
                "request_inference_time_seconds",
                "First scheduled to last token",
            ),
            prefill_time: request_seconds(
                r,
                "request_prefill_time_seconds",
                "First scheduled to first token",
            ),
            decode_time: request_seconds(
                r,
                "request_decode_time_seconds",
                "First token to last token",
            ),
            prompt_tokens: histogram(r, "request_prompt_tokens", "Prompt tokens", &TOKENS),
            generation_tokens: histogram(
                r,
                "request_generation_tokens",
                "Tokens generated",
                &TOKENS,
            ),
            params_n: histogram(r, "request_params_n", "The parameter n", &SEQUENCES),
            params_max_tokens: histogram(
                r,
                "request_params_max_tokens",
                "The parameter max_tokens",
                &TOKENS,
            ),
        }
    }

    fn count(&self, reason: &'static str) {
        self.success
            .get_or_create(&[("finished_reason", reason)])
            .inc();
    }

    fn observe(&self, arrival: Instant, facts: &Facts) {
        let times = facts.timeline;
        let spans = [
            (&self.e2e_latency, between(Some(arrival), times.last_token)),
            (&self.queue_time, between(times.queued, times.scheduled)),
            (
                &self.inference_time,
                between(times.scheduled, times.last_token),
            ),
            (
                &self.prefill_time,
                between(times.scheduled, times.first_token),
            ),
            (
                &self.decode_time,
                between(times.first_token, times.last_token),
            ),
        ];
        for (histogram, span) in spans {
            span.into_iter()
                .for_each(|span| histogram.observe(span.as_secs_f64()));
        }
        if let Some(seconds) = time_per_output_token(facts) {
            self.time_per_output_token.observe(seconds);
        }
        self.prompt_tokens
            .observe(facts.prompt_tokens.unwrap_or(0) as f64);
        self.generation_tokens
            .observe(facts.completion_tokens as f64);
        if let Some(params) = &facts.params {
            self.params_n.observe(params.n as f64);
            self.params_max_tokens.observe(params.max_tokens() as f64);
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

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(format!("vllm:{name}"), help, metric.clone());
    metric
}

fn histogram(registry: &mut Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let histogram = Histogram::new(buckets.iter().copied());
    registry.register(format!("vllm:{name}"), help, histogram.clone());
    histogram
}

fn request_seconds(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    histogram(registry, name, help, &REQUEST_SECONDS)
}
