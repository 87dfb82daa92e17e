//! The metrics that vLLM has, under its names, bounds and label.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lantern_telemetry::instruments::{
    Counter, CounterSeries, HistogramSeries, Instruments, Key, Labels, Source,
};

use super::{Ended, time_per_output_token};
use crate::engine::{Engine, EngineStats};
use crate::generation::timeline::between;

// Bucket bounds are vLLM's, seconds or tokens.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0,
];
const SEQUENCES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0,
];

/// The labels that all of them have.
pub(super) fn labels(model: &str) -> Labels {
    vec![(Key("model_name"), model.to_owned().into())]
}

/// What the engine knows of itself, read when it is asked for; its steps it notes itself.
pub(super) fn observe(engine: &Engine, to: &mut Instruments<'_>, labels: &Labels) {
    let steps = to.histogram(
        "vllm:iteration_tokens_total",
        "Tokens per engine step",
        "{token}",
        STEP_TOKENS,
    );
    engine.count_step_tokens(steps.series(labels));
    let count = |read: fn(EngineStats) -> u64| -> Arc<dyn Fn() -> u64 + Send + Sync> {
        let stats = engine.stats_reader();
        Arc::new(move || read(stats()))
    };
    let mut observed = |name, help, source| to.observed(name, help, labels.clone(), source);
    observed(
        "vllm:num_requests_running",
        "Sequences in the current batch",
        Source::Gauge(count(|stats| stats.running as u64)),
    );
    observed(
        "vllm:num_requests_waiting",
        "Requests waiting for the batch",
        Source::Gauge(count(|stats| stats.waiting as u64)),
    );
    let stats = engine.stats_reader();
    observed(
        "vllm:kv_cache_usage_perc",
        "KV cache in use, 0 to 1",
        Source::Ratio(Arc::new(move || stats().kv_cache_usage)),
    );
    observed(
        "vllm:num_preemptions",
        "Sequences put back to the queue",
        Source::Counter(count(|stats| stats.preemptions)),
    );
    observed(
        "vllm:prefix_cache_queries",
        "Prompt tokens looked for in the prefix cache",
        Source::Counter(count(|stats| stats.prefix_cache_queries)),
    );
    observed(
        "vllm:prefix_cache_hits",
        "Prompt tokens found in the prefix cache",
        Source::Counter(count(|stats| stats.prefix_cache_hits)),
    );
}

/// Noted as requests go on.
pub(super) struct RequestMetrics {
    labels: Labels,
    pub(super) prompt_tokens_sum: CounterSeries,
    pub(super) generation_tokens_sum: CounterSeries,
    success: Counter,
    pub(super) time_to_first_token: HistogramSeries,
    pub(super) inter_token_latency: HistogramSeries,
    time_per_output_token: HistogramSeries,
    e2e_latency: HistogramSeries,
    queue_time: HistogramSeries,
    inference_time: HistogramSeries,
    prefill_time: HistogramSeries,
    decode_time: HistogramSeries,
    prompt_tokens: HistogramSeries,
    generation_tokens: HistogramSeries,
    params_n: HistogramSeries,
    params_max_tokens: HistogramSeries,
}

impl RequestMetrics {
    pub(super) fn register(to: &mut Instruments<'_>, labels: Labels) -> Self {
        let tokens = |to: &mut Instruments<'_>, name, help| {
            to.counter(name, help, "{token}").series(&labels)
        };
        let histogram = |to: &mut Instruments<'_>, name, help, (unit, bounds)| {
            to.histogram(name, help, unit, bounds).series(&labels)
        };
        let time = |to: &mut Instruments<'_>, name, help| {
            histogram(to, name, help, ("s", REQUEST_SECONDS))
        };
        let count =
            |to: &mut Instruments<'_>, name, help| histogram(to, name, help, ("{token}", TOKENS));
        let r = to;
        Self {
            prompt_tokens_sum: tokens(r, "vllm:prompt_tokens", "Prompt tokens processed"),
            generation_tokens_sum: tokens(r, "vllm:generation_tokens", "Tokens generated"),
            success: r.counter(
                "vllm:request_success",
                "Requests ended, by reason",
                "{request}",
            ),
            time_to_first_token: histogram(
                r,
                "vllm:time_to_first_token_seconds",
                "Arrival to first token",
                ("s", FIRST_TOKEN_SECONDS),
            ),
            inter_token_latency: histogram(
                r,
                "vllm:inter_token_latency_seconds",
                "From one token of a sequence to the next",
                ("s", TOKEN_SECONDS),
            ),
            time_per_output_token: histogram(
                r,
                "vllm:request_time_per_output_token_seconds",
                "Mean time per token after the first",
                ("s", TOKEN_SECONDS),
            ),
            e2e_latency: time(
                r,
                "vllm:e2e_request_latency_seconds",
                "Arrival to last token",
            ),
            queue_time: time(r, "vllm:request_queue_time_seconds", "Time in the queue"),
            inference_time: time(
                r,
                "vllm:request_inference_time_seconds",
                "First scheduled to last token",
            ),
            prefill_time: time(
                r,
                "vllm:request_prefill_time_seconds",
                "First scheduled to first token",
            ),
            decode_time: time(
                r,
                "vllm:request_decode_time_seconds",
                "First token to last token",
            ),
            prompt_tokens: count(r, "vllm:request_prompt_tokens", "Prompt tokens"),
            generation_tokens: count(r, "vllm:request_generation_tokens", "Tokens generated"),
            params_n: histogram(
                r,
                "vllm:request_params_n",
                "The parameter n",
                ("{sequence}", SEQUENCES),
            ),
            params_max_tokens: count(
                r,
                "vllm:request_params_max_tokens",
                "The parameter max_tokens",
            ),
            labels,
        }
    }

    /// A request has ended so.
    pub(super) fn count(&self, reason: &'static str) {
        let mut labels = self.labels.clone();
        labels.push((Key("finished_reason"), reason.into()));
        self.success.series(&labels).add(1);
    }

    /// A request is complete.
    pub(super) fn observe(&self, ended: &Ended<'_>) {
        let (facts, trace, now) = (ended.facts, ended.trace, SystemTime::now());
        let times = facts.timeline;
        let arrival = Some(ended.exchange.clock.arrival());
        let seconds = |span: Option<Duration>| span.map(|span| span.as_secs_f64());
        let params = facts.params.as_ref();
        for (histogram, value) in [
            (
                &self.e2e_latency,
                seconds(between(arrival, times.last_token)),
            ),
            (
                &self.queue_time,
                seconds(between(times.queued, times.scheduled)),
            ),
            (
                &self.inference_time,
                seconds(between(times.scheduled, times.last_token)),
            ),
            (
                &self.prefill_time,
                seconds(between(times.scheduled, times.first_token)),
            ),
            (
                &self.decode_time,
                seconds(between(times.first_token, times.last_token)),
            ),
            (&self.time_per_output_token, time_per_output_token(facts)),
            (
                &self.prompt_tokens,
                Some(facts.prompt_tokens.unwrap_or(0) as f64),
            ),
            (
                &self.generation_tokens,
                Some(facts.completion_tokens as f64),
            ),
            (&self.params_n, params.map(|params| params.n as f64)),
            (
                &self.params_max_tokens,
                params.map(|params| params.max_tokens() as f64),
            ),
        ] {
            if let Some(value) = value {
                histogram.observe(value, trace, now);
            }
        }
    }
}
