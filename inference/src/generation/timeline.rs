//! When things happened to one prompt's sequences, and those instants as wall-clock time.

use std::time::{Duration, Instant, SystemTime};

/// Turns the engine's monotonic instants into wall-clock time by one anchor, so that a clock
/// stepped during the request cannot reorder its spans.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    instant: Instant,
    wall: SystemTime,
}

impl Clock {
    /// An anchor taken now.
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// The instant of the anchor: the request's arrival.
    pub fn arrival(&self) -> Instant {
        self.instant
    }

    /// `at` as wall-clock time; nothing lies before the anchor.
    pub fn wall(&self, at: Instant) -> SystemTime {
        self.wall + at.saturating_duration_since(self.instant)
    }
}

/// The instants of a request; with several sequences the first scheduling and first token of any
/// of them, and the last token of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timeline {
    /// Handed to the engine.
    pub queued: Option<Instant>,
    /// Taken out of the queue.
    pub scheduled: Option<Instant>,
    /// First token sampled.
    pub first_token: Option<Instant>,
    /// Last token sampled.
    pub last_token: Option<Instant>,
}

impl Timeline {
    /// A sequence was handed to the engine.
    pub fn note_queued(&mut self, at: Instant) {
        self.queued = Some(self.queued.map_or(at, |seen| seen.min(at)));
    }

    /// A sequence was scheduled.
    pub fn note_scheduled(&mut self, at: Instant) {
        self.scheduled = Some(self.scheduled.map_or(at, |seen| seen.min(at)));
    }

    /// A token was sampled.
    pub fn note_token(&mut self, at: Instant) {
        self.first_token = Some(self.first_token.map_or(at, |seen| seen.min(at)));
        self.last_token = Some(self.last_token.map_or(at, |seen| seen.max(at)));
    }
}

/// `to - from` where both have happened.
pub(crate) fn between(from: Option<Instant>, to: Option<Instant>) -> Option<Duration> {
    Some(to?.saturating_duration_since(from?))
}
