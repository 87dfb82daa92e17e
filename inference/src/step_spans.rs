//! Spans of single engine steps (`--collect-detailed-traces`), each linked to all requests it served.
//!
//! A step belongs to many requests, so it is in none of their traces: it is a root, and its links say who
//! shared it and how many of its tokens were whose. What vLLM's flag only promises. It is sampled if one of the
//! requests is, and linked to those alone: a link to what nobody keeps leads nowhere.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use lantern_telemetry::Telemetry;
use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;

use crate::engine::observer::{Member, StepObserver, StepReport};
use crate::ops::Pass;

const STEP_INDEX: &str = "lantern.step.index";
const STEP_SEQUENCES: &str = "lantern.step.sequences";
const STEP_WAITING: &str = "lantern.step.waiting";
const STEP_PREFILL_TOKENS: &str = "lantern.step.prefill_tokens";
const STEP_DECODE_TOKENS: &str = "lantern.step.decode_tokens";
const STEP_CACHED_TOKENS: &str = "lantern.step.cached_tokens";
const STEP_PREEMPTED: &str = "lantern.step.preempted";
const STEP_GRAPH: &str = "lantern.step.graph";
const STEP_EAGER_REASON: &str = "lantern.step.eager_reason";
const STEP_DEVICE_TIME: &str = "lantern.step.device_time";
const KV_BLOCKS_USED: &str = "lantern.kv_cache.blocks_used";
const KV_BLOCKS_FREE: &str = "lantern.kv_cache.blocks_free";
/// On a link: the tokens of that request in the step.
const LINK_TOKENS: &str = "lantern.step.tokens";

/// Which parts of a step have spans of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Detail {
    /// The forward pass.
    pub model: bool,
    /// What the engine's thread does around it: scheduling and sampling.
    pub worker: bool,
}

impl Detail {
    /// Whether steps have spans at all.
    pub fn any(self) -> bool {
        self.model || self.worker
    }
}

/// Makes a span of every step.
pub struct StepSpans {
    tracer: SdkTracer,
    detail: Detail,
}

impl StepSpans {
    /// Spans that go where `telemetry` sends them.
    pub fn new(telemetry: &Telemetry, detail: Detail) -> Self {
        Self {
            tracer: telemetry.tracer(env!("CARGO_PKG_NAME")),
            detail,
        }
    }
}

impl StepObserver for StepSpans {
    fn step(&self, report: &StepReport) {
        let links = links(report);
        if links.is_empty() {
            return;
        }
        let clock = StepClock::now();
        let mut step = SpanBuilder::from_name("engine.step")
            .with_kind(SpanKind::Internal)
            .with_start_time(clock.wall(report.begun))
            .with_links(links)
            .with_attributes(attributes(report))
            .start_with_context(&self.tracer, &Context::new());
        let within = Context::new().with_remote_span_context(step.span_context().clone());
        let Detail { model, worker } = self.detail;
        let parts = [
            (worker, "schedule", report.begun, report.launched),
            (model, "model_forward", report.execute, report.computed),
            (worker, "sample", report.computed, report.ended),
        ];
        for (_, name, from, to) in parts.into_iter().filter(|(wanted, ..)| *wanted) {
            SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(clock.wall(from))
                .start_with_context(&self.tracer, &within)
                .end_with_timestamp(clock.wall(to));
        }
        step.end_with_timestamp(clock.wall(report.ended));
    }
}

/// The instants of a step that is just over, as wall-clock time.
struct StepClock {
    instant: Instant,
    wall: SystemTime,
}

impl StepClock {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn wall(&self, at: Instant) -> SystemTime {
        self.wall - self.instant.saturating_duration_since(at)
    }
}

/// One link for each request that is sampled, which may have several sequences in the step.
fn links(report: &StepReport) -> Vec<Link> {
    let mut tokens: Vec<(&SpanContext, usize)> = Vec::with_capacity(report.members.len());
    let mut places = HashMap::with_capacity(report.members.len());
    let sampled = report.members.iter();
    for Member { span, tokens: own } in sampled.filter(|member| member.span.is_sampled()) {
        // Others may have come between the sequences of one request.
        let place = *places
            .entry((span.trace_id(), span.span_id()))
            .or_insert(tokens.len());
        match tokens.get_mut(place) {
            Some((_, sum)) => *sum += own,
            None => tokens.push((span, *own)),
        }
    }
    let link = |(span, tokens): (&SpanContext, usize)| {
        let tokens = KeyValue::new(LINK_TOKENS, integer(tokens));
        Link::new(span.clone(), vec![tokens], 0)
    };
    tokens.into_iter().map(link).collect()
}

fn attributes(report: &StepReport) -> Vec<KeyValue> {
    let counts = [
        (STEP_SEQUENCES, report.members.len()),
        (STEP_WAITING, report.waiting),
        (STEP_PREFILL_TOKENS, report.prefill_tokens),
        (STEP_DECODE_TOKENS, report.decode_tokens),
        (STEP_CACHED_TOKENS, report.cached_tokens),
        (STEP_PREEMPTED, report.preempted),
        (KV_BLOCKS_USED, report.kv_blocks_used),
        (KV_BLOCKS_FREE, report.kv_blocks_free),
    ];
    let counts = counts.map(|(name, count)| KeyValue::new(name, integer(count)));
    let mut attributes = Vec::from(counts);
    attributes.push(KeyValue::new(STEP_INDEX, report.index.cast_signed()));
    attributes.push(KeyValue::new(STEP_GRAPH, report.pass == Pass::Graph));
    if let Pass::Eager { reason } = report.pass {
        attributes.push(KeyValue::new(STEP_EAGER_REASON, reason));
    }
    let device_time = report.device_time.as_ref().map(Duration::as_secs_f64);
    attributes.extend(device_time.map(|seconds| KeyValue::new(STEP_DEVICE_TIME, seconds)));
    attributes
}

fn integer(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use lantern_telemetry::Settings;
    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SpanData};

    use super::*;

    fn member(span: u64) -> Member {
        flagged(span, TraceFlags::SAMPLED)
    }

    fn flagged(span: u64, flags: TraceFlags) -> Member {
        let state = TraceState::default();
        let span = SpanContext::new(TraceId::from(1), SpanId::from(span), flags, true, state);
        Member { span, tokens: 2 }
    }

    fn spans(members: Vec<Member>) -> Vec<SpanData> {
        spans_sampled("parentbased_always_on", members)
    }

    /// The spans of one step of these sequences, that waited for the device until its forward pass.
    fn spans_sampled(sampler: &str, members: Vec<Member>) -> Vec<SpanData> {
        // Over by now, as every step is that somebody hears of.
        let begun = Instant::now() - Duration::from_secs(10);
        let at = |seconds| begun + Duration::from_secs(seconds);
        let report = StepReport {
            index: 0,
            begun,
            launched: at(1),
            execute: at(3),
            computed: at(7),
            ended: at(8),
            device_time: None,
            pass: Pass::Graph,
            prefill_tokens: 0,
            decode_tokens: members.len(),
            cached_tokens: 0,
            preempted: 0,
            kv_blocks_used: 1,
            kv_blocks_free: 1,
            waiting: 0,
            members,
        };
        let exporter = InMemorySpanExporter::default();
        let sampler = |name: &str| (name == "OTEL_TRACES_SAMPLER").then(|| sampler.to_owned());
        let settings = Settings::from_vars(sampler).expect("the sampler is known");
        let settings = settings.with_links_per_span(report.members.len());
        let telemetry = Telemetry::with_exporter_sampled(exporter.clone(), "test", &settings);
        let detail = Detail {
            model: true,
            worker: true,
        };
        StepSpans::new(&telemetry, detail).step(&report);
        exporter.get_finished_spans().expect("the exporter runs")
    }

    #[test]
    fn a_request_has_one_link_though_others_came_between_its_sequences() {
        let spans = spans([7, 8, 7, 9, 8].map(member).into());
        let step = spans.last().expect("the step ends last");
        let links = step.links.iter();
        let links = links.map(|link| {
            let tokens = link.attributes[0].value.to_string();
            (link.span_context.span_id(), tokens)
        });
        let expected = [(7, 4), (8, 4), (9, 2)];
        let expected = expected.map(|(span, tokens)| (SpanId::from(span), tokens.to_string()));
        assert_eq!(links.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_step_is_sampled_with_the_requests_in_it_and_linked_to_those_that_are() {
        let dropped = |span| flagged(span, TraceFlags::default());
        // A draw of its own would never keep the step.
        let mixed = vec![dropped(7), member(8), dropped(9)];
        let kept = spans_sampled("parentbased_always_off", mixed);
        let names: Vec<_> = kept.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(
            names,
            ["schedule", "model_forward", "sample", "engine.step"]
        );
        let links: Vec<_> = kept[3].links.iter().collect();
        assert_eq!(links.len(), 1);
        assert_eq!(links[0].span_context.span_id(), SpanId::from(8));
        assert!(spans(vec![dropped(7), dropped(9)]).is_empty());
    }

    #[test]
    fn a_full_batch_has_all_its_links() {
        let spans = spans((1..=256).map(member).collect());
        let step = spans.last().expect("the step ends last");
        assert_eq!((step.links.len(), step.links.dropped_count), (256, 0));
    }
}
