//! Spans that are kept though nobody sampled them: what a request turns out to be is known only at
//! its end, when the sampler has long decided.
//!
//! The sampler of such a program records what it does not sample; whoever ends a span says with the
//! attribute [`KEPT`] that it is to be exported all the same. Everything else that was not sampled is
//! dropped here, before it takes a place in the queue. What others are told of the trace stays as it
//! was decided: its flag says unsampled.

use std::time::Duration;

use opentelemetry::trace::{Link, SpanContext, SpanKind, TraceFlags, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SamplingDecision, SamplingResult, ShouldSample, Span, SpanData, SpanProcessor,
};

/// Why a span that was not sampled is exported (string).
pub const KEPT: &str = "lantern.sampling.kept";

/// A sampler that records what `S` drops.
#[derive(Clone, Debug)]
pub(crate) struct RecordAll<S>(pub(crate) S);

impl<S: ShouldSample + Clone + 'static> ShouldSample for RecordAll<S> {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut result = self
            .0
            .should_sample(parent, trace_id, name, kind, attributes, links);
        if result.decision == SamplingDecision::Drop {
            result.decision = SamplingDecision::RecordOnly;
        }
        result
    }
}

/// Lets through what is sampled or kept.
#[derive(Debug)]
pub(crate) struct KeptSpans<P>(pub(crate) P);

impl<P: SpanProcessor> SpanProcessor for KeptSpans<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.0.on_start(span, cx);
    }

    fn on_end(&self, mut span: SpanData) {
        if !span.span_context.is_sampled() {
            if !span
                .attributes
                .iter()
                .any(|known| known.key.as_str() == KEPT)
            {
                return;
            }
            span.span_context = sampled(&span.span_context);
        }
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// The processors behind export sampled spans alone.
fn sampled(context: &SpanContext) -> SpanContext {
    SpanContext::new(
        context.trace_id(),
        context.span_id(),
        context.trace_flags() | TraceFlags::SAMPLED,
        context.is_remote(),
        context.trace_state().clone(),
    )
}
