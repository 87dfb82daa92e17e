//! One prompt's life for the span and the metrics: noted as it happens, told exactly once.
//!
//! Whoever drops a record unfinished has abandoned the prompt, and the record says so: no path
//! out of a handler can forget the span.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use opentelemetry::trace::SpanContext;

use crate::engine::request::StepTimes;
use crate::metrics::Ended;
use crate::spans::RequestSpan;

use super::exchange::{Exchange, Reason};
use super::timeline::Timeline;
use super::{Delta, Finish, GenerationParams};

/// Most bytes of a prompt, and of each completion, that a span carries when content is captured.
pub const MAX_CAPTURED_BYTES: usize = 16 * 1024;

/// Most events that a span has, the SDK's own limit: those of a search with many beams are cut off.
pub const MAX_MOMENTS: usize = 128;
/// Most of them that say that a sequence was scheduled: each of many does so at first, and what happens later
/// tells more.
const MAX_SCHEDULED: usize = MAX_MOMENTS / 2;

/// What one prompt has done so far.
pub struct Record {
    exchange: Arc<Exchange>,
    span: RequestSpan,
    facts: Facts,
    told: bool,
}

/// What spans and metrics are made of.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The model, as the request and the response name it.
    pub model: Option<String>,
    /// Whether the response is streamed.
    pub stream: bool,
    /// What was asked for; `None` when the request was refused before that was clear.
    pub params: Option<Arc<GenerationParams>>,
    /// When things happened.
    pub timeline: Timeline,
    /// The engine's steps; of sequences side by side, which share most of theirs, the longest.
    pub step_times: StepTimes,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<usize>,
    /// Those of them that were in the KV cache already, once it is known.
    pub cached_tokens: Option<usize>,
    /// What happened to its sequences; at most [`MAX_MOMENTS`].
    pub moments: Vec<(Instant, Moment)>,
    /// Tokens sampled; of beams and of a ranking those in the result, once there is one.
    pub completion_tokens: usize,
    /// The `finish_reason` of each sequence, by index.
    pub finish_reasons: Vec<Option<&'static str>>,
    /// The prompt, when captured.
    pub prompt_text: Option<String>,
    /// The completions, by index, when captured.
    pub completion_texts: Option<Vec<String>>,
}

/// Something that happened in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A sequence entered the batch.
    Scheduled {
        /// Tokens that the KV cache had already.
        cached_tokens: usize,
    },
    /// It gave its KV cache to an older one.
    Preempted,
    /// It entered the batch again.
    Resumed {
        /// Tokens that the KV cache still had.
        cached_tokens: usize,
    },
    /// The first token of any sequence.
    FirstToken,
}

/// How a prompt ended.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// With a result.
    Complete,
    /// Without.
    Failed(&'a Reason),
}

impl Facts {
    /// Keeps a moment if there is room for one of its kind; for the first token there always is.
    fn note(&mut self, at: Instant, moment: Moment) {
        let most = match moment {
            Moment::Scheduled { .. } => MAX_SCHEDULED,
            Moment::Preempted | Moment::Resumed { .. } => MAX_MOMENTS - 1,
            Moment::FirstToken => MAX_MOMENTS,
        };
        if self.moments.len() < most {
            self.moments.push((at, moment));
        }
    }
}

impl Record {
    /// Opens the record, and its span, of one prompt.
    pub fn open(exchange: &Arc<Exchange>) -> Self {
        let span = exchange.observers.spans.start(exchange);
        Self {
            exchange: Arc::clone(exchange),
            span,
            facts: Facts::default(),
            told: false,
        }
    }

    /// The request's model, as soon as it is known.
    pub fn set_model(&mut self, model: &str, stream: bool) {
        self.facts.model = Some(model.to_owned());
        self.facts.stream = stream;
    }

    /// What the prompt asks for.
    pub fn set_prompt(&mut self, tokens: usize, params: &Arc<GenerationParams>) {
        self.facts.prompt_tokens = Some(tokens);
        self.facts.params = Some(Arc::clone(params));
    }

    /// The prompt's text, kept only when content is captured.
    pub fn capture_prompt(&mut self, text: &str) {
        if self.span.captures_content() {
            self.facts.completion_texts = Some(Vec::new());
            let captured = self.facts.prompt_text.get_or_insert_default();
            append_bounded(captured, text);
        }
    }

    pub(super) fn note_queued(&mut self, at: Instant) {
        self.facts.timeline.note_queued(at);
    }

    /// The span of this prompt.
    pub(super) fn span_context(&self) -> SpanContext {
        self.span.context()
    }

    /// A sequence was scheduled, so many tokens of its prompt being there already.
    pub(super) fn note_scheduled(&mut self, at: Instant, cached_tokens: usize) {
        self.facts.timeline.note_scheduled(at);
        // What the first sequence finds counts: the others share the prompt with it anyhow.
        self.facts.cached_tokens.get_or_insert(cached_tokens);
        self.note_moment(at, Moment::Scheduled { cached_tokens });
    }

    /// Something happened to a sequence.
    pub(super) fn note_moment(&mut self, at: Instant, moment: Moment) {
        self.facts.note(at, moment);
    }

    /// The steps of one sequence until now.
    pub(super) fn note_step_times(&mut self, times: StepTimes) {
        self.facts.step_times = self.facts.step_times.longest(times);
    }

    /// A token was sampled at this instant, be it part of the result or not.
    pub(super) fn note_token_at(&mut self, at: Instant) {
        let first = self.facts.timeline.first_token.is_none();
        self.facts.timeline.note_token(at);
        if first {
            self.note_moment(at, Moment::FirstToken);
            let ttft = at.saturating_duration_since(self.exchange.clock.arrival());
            self.exchange.observers.metrics.first_token(
                ttft,
                self.facts.prompt_tokens,
                self.span.exported(),
            );
        }
    }

    /// That token counts, `previous` being the sequence's last one before.
    pub(super) fn note_token(&mut self, at: Instant, previous: Option<Instant>) {
        self.facts.completion_tokens += 1;
        let latency = previous.map(|previous| at.saturating_duration_since(previous));
        self.exchange
            .observers
            .metrics
            .token(latency, self.span.exported());
    }

    /// Every live beam has one more token, `times` being what that took. The tokens count once
    /// the result is known.
    pub(super) fn note_beam_step(&mut self, at: Instant, times: StepTimes) {
        self.facts.step_times = self.facts.step_times.and(times);
        self.note_token_at(at);
    }

    /// A beam is part of the result.
    pub(super) fn note_beam(&mut self, beam: &Delta) {
        self.facts.completion_tokens += beam.tokens.len();
        let metrics = &self.exchange.observers.metrics;
        (0..beam.tokens.len()).for_each(|_| metrics.token(None, None));
        self.note_delta(beam);
    }

    /// Of all that was sampled, this is the result.
    pub(super) fn note_ranked(&mut self, best: &[Delta]) {
        self.facts.completion_tokens = best.iter().map(|delta| delta.tokens.len()).sum();
        best.iter().for_each(|delta| self.note_delta(delta));
    }

    /// A piece of the result.
    pub(super) fn note_delta(&mut self, delta: &Delta) {
        self.note_text(delta.index, &delta.text);
        if let Some(finish) = &delta.finish {
            self.note_finish(delta.index, finish);
        }
    }

    fn note_text(&mut self, index: usize, text: &str) {
        if let Some(texts) = &mut self.facts.completion_texts {
            if texts.len() <= index {
                texts.resize_with(index + 1, String::new);
            }
            append_bounded(&mut texts[index], text);
        }
    }

    fn note_finish(&mut self, index: usize, finish: &Finish) {
        let reasons = &mut self.facts.finish_reasons;
        if reasons.len() <= index {
            reasons.resize(index + 1, None);
        }
        reasons[index] = Some(finish.reason());
    }

    /// The last output is out.
    pub(super) fn finish(&mut self) {
        self.tell(&Outcome::Complete);
    }

    /// The prompt was refused or has failed.
    pub fn fail(&mut self, error_type: &'static str, message: &impl Display) {
        self.tell(&Outcome::Failed(&Reason {
            error_type,
            message: message.to_string(),
        }));
    }

    fn tell(&mut self, outcome: &Outcome<'_>) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let end = Instant::now();
        self.span.end(&self.exchange, &self.facts, outcome, end);
        self.exchange.observers.metrics.request_ended(&Ended {
            exchange: &self.exchange,
            facts: &self.facts,
            outcome,
            trace: self.span.exported(),
            at: end,
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.told {
            let reason = self.exchange.drop_reason();
            self.tell(&Outcome::Failed(&reason));
        }
    }
}

/// Appends as much of `text` as [`MAX_CAPTURED_BYTES`] leaves room for, whole characters only.
fn append_bounded(captured: &mut String, text: &str) {
    let room = MAX_CAPTURED_BYTES.saturating_sub(captured.len());
    captured.push_str(&text[..text.floor_char_boundary(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_sequences_leave_room_for_what_happens_to_them_and_for_the_first_token() {
        let mut facts = Facts::default();
        let at = Instant::now();
        let scheduled = Moment::Scheduled { cached_tokens: 0 };
        let count = |facts: &Facts, wanted| {
            let moments = facts.moments.iter();
            moments.filter(|(_, moment)| *moment == wanted).count()
        };
        (0..200).for_each(|_| facts.note(at, scheduled));
        facts.note(at, Moment::Preempted);
        facts.note(at, Moment::Resumed { cached_tokens: 16 });
        assert_eq!(count(&facts, scheduled), MAX_SCHEDULED);
        assert_eq!(count(&facts, Moment::Preempted), 1);
        assert_eq!(count(&facts, Moment::Resumed { cached_tokens: 16 }), 1);
        (0..200).for_each(|_| facts.note(at, Moment::Preempted));
        facts.note(at, Moment::FirstToken);
        assert_eq!(count(&facts, Moment::FirstToken), 1);
        assert_eq!(facts.moments.len(), MAX_MOMENTS);
    }
}
