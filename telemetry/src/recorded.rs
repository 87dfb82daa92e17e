//! What is known of sampling before a span begins, so that nobody describes a span that is then dropped.

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry_sdk::trace::{SamplingDecision, ShouldSample as _};

use crate::config::Settings;

/// Which spans may be recorded, as far as that is known before they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    roots: bool,
    below_sampled: bool,
    below_unsampled: bool,
}

impl Recorded {
    /// Whether all are, or none is.
    pub(crate) const fn every(is_recorded: bool) -> Self {
        Self {
            roots: is_recorded,
            below_sampled: is_recorded,
            below_unsampled: is_recorded,
        }
    }

    /// The sampler is asked. None that can be configured looks at a span's attributes, and every ratio
    /// takes the lowest trace id, if it takes any.
    pub(crate) fn by(settings: &Settings) -> Self {
        if settings.records_unsampled() {
            return Self::every(true);
        }
        let (sampler, kind) = (settings.sampler(), SpanKind::Internal);
        let records = |parent: Option<&Context>| {
            let lowest = TraceId::INVALID;
            let result = sampler.should_sample(parent, lowest, "", &kind, &[], &[]);
            result.decision != SamplingDecision::Drop
        };
        let below = |flags| {
            let parent = SpanContext::new(1.into(), 1.into(), flags, true, TraceState::NONE);
            records(Some(&Context::new().with_remote_span_context(parent)))
        };
        Self {
            roots: records(None),
            below_sampled: below(TraceFlags::SAMPLED),
            below_unsampled: below(TraceFlags::default()),
        }
    }

    /// Whether a span below `parent` may be recorded. Of one that is not, nothing need be found out.
    pub fn may_record(self, parent: &Context) -> bool {
        let parent = parent.span();
        let parent = parent.span_context();
        match (parent.is_valid(), parent.is_sampled()) {
            (false, _) => self.roots,
            (true, true) => self.below_sampled,
            (true, false) => self.below_unsampled,
        }
    }
}
