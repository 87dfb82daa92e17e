//! Sampling of roots that belong to other traces: a span without a parent whose links lead to a trace that is kept is
//! kept with it, whatever its own draw would say.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// A sampler that keeps such roots, and leaves all else to `S`.
#[derive(Clone, Debug)]
pub(crate) struct Linked<S>(pub(crate) S);

impl<S: ShouldSample + Clone + 'static> ShouldSample for Linked<S> {
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
        let has_parent = parent.is_some_and(|parent| parent.span().span_context().is_valid());
        if !has_parent && links.iter().any(|link| link.span_context.is_sampled()) {
            result.decision = SamplingDecision::RecordAndSample;
        }
        result
    }
}
