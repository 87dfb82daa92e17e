//! The ledger of lost spans. It decides when a person is told: at the first loss, then at most once a
//! minute with what was lost since, once when spans flow again, and at the end for what is left. What is
//! lost while somebody waits for a flush is theirs to tell.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time from one warning to the next.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The losses of one exporter, shared by its queue and its sender.
#[derive(Debug)]
pub(crate) struct DropLedger {
    endpoint: String,
    state: Mutex<State>,
}

/// Spans that were lost.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    pub(crate) spans: u64,
    /// Why the most recent of them were lost.
    pub(crate) reason: String,
}

impl DropLedger {
    pub(crate) fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            state: Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `spans` were given up because of `reason`.
    pub(crate) fn lost(&self, spans: usize, reason: &str) {
        let notice = self.state().lost(Instant::now(), spans as u64, reason);
        self.tell(notice);
    }

    /// An export succeeded.
    pub(crate) fn delivered(&self) {
        let notice = self.state().delivered(Instant::now());
        self.tell(notice);
    }

    /// Nothing more is coming: what was not told yet is told now.
    pub(crate) fn close(&self) {
        let notice = self.state().close();
        self.tell(notice);
    }

    /// From now on losses are not logged: whoever holds the [`Hush`] returns them as an error.
    pub(crate) fn hush(self: &Arc<Self>) -> Hush {
        self.state().hushed += 1;
        Hush(Arc::clone(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Outside the lock: writing a line may block.
    fn tell(&self, notice: Option<Notice>) {
        let endpoint = &self.endpoint;
        match notice {
            Some(Notice::Losing { spans, reason }) => {
                tracing::warn!("cannot export spans to {endpoint}: {reason}; {spans} dropped");
            }
            Some(Notice::Recovered { spans: 0 }) => {
                tracing::info!("spans are exported to {endpoint} again");
            }
            Some(Notice::Recovered { spans }) => {
                tracing::info!("spans are exported to {endpoint} again; meanwhile {spans} dropped");
            }
            None => {}
        }
    }
}

/// A time in which the ledger logs no losses; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Hush(Arc<DropLedger>);

impl Hush {
    /// What nobody was told yet. The caller tells it.
    pub(crate) fn untold(self) -> Option<Losses> {
        self.0.state().take_untold(Instant::now())
    }
}

impl Drop for Hush {
    fn drop(&mut self) {
        self.0.state().hushed -= 1;
    }
}

/// What a person is told.
#[derive(Debug, PartialEq)]
enum Notice {
    Losing { spans: u64, reason: String },
    Recovered { spans: u64 },
}

/// The decision, with time as an argument.
#[derive(Debug, Default)]
struct State {
    /// Lost and not yet told.
    untold: u64,
    /// Why the most recent span was lost.
    reason: String,
    told_at: Option<Instant>,
    /// A warning stands that no export has answered yet.
    warned: bool,
    /// The flushes that somebody waits for.
    hushed: u32,
}

impl State {
    fn lost(&mut self, now: Instant, spans: u64, reason: &str) -> Option<Notice> {
        reason.clone_into(&mut self.reason);
        self.untold += spans;
        let due = self
            .told_at
            .is_none_or(|told_at| now.duration_since(told_at) >= WARNING_INTERVAL);
        (due && self.hushed == 0).then(|| self.losing(now))
    }

    fn delivered(&mut self, now: Instant) -> Option<Notice> {
        if self.warned {
            self.warned = false;
            let spans = match self.hushed {
                0 => std::mem::take(&mut self.untold),
                _ => 0,
            };
            return Some(Notice::Recovered { spans });
        }
        // Losses between two successes wait for the minute like any other.
        let due = self
            .told_at
            .is_some_and(|told_at| now.duration_since(told_at) >= WARNING_INTERVAL);
        (due && self.untold > 0 && self.hushed == 0).then(|| {
            let notice = self.losing(now);
            self.warned = false;
            notice
        })
    }

    fn take_untold(&mut self, now: Instant) -> Option<Losses> {
        (self.untold > 0).then(|| {
            self.told_at = Some(now);
            self.warned = true;
            Losses {
                spans: std::mem::take(&mut self.untold),
                reason: self.reason.clone(),
            }
        })
    }

    fn close(&mut self) -> Option<Notice> {
        (self.untold > 0).then(|| Notice::Losing {
            spans: std::mem::take(&mut self.untold),
            reason: self.reason.clone(),
        })
    }

    fn losing(&mut self, now: Instant) -> Notice {
        self.told_at = Some(now);
        self.warned = true;
        Notice::Losing {
            spans: std::mem::take(&mut self.untold),
            reason: self.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn losing(spans: u64, reason: &str) -> Option<Notice> {
        Some(Notice::Losing {
            spans,
            reason: reason.to_owned(),
        })
    }

    #[test]
    fn first_loss_is_told_at_once() {
        let mut state = State::default();
        assert_eq!(
            state.lost(Instant::now(), 3, "refused"),
            losing(3, "refused")
        );
    }

    #[test]
    fn losses_within_a_minute_are_told_together_after_it() {
        let (mut state, start) = (State::default(), Instant::now());
        assert!(state.lost(start, 1, "refused").is_some());
        for second in 1..60 {
            assert_eq!(state.lost(start + SECOND * second, 2, "refused"), None);
        }
        assert_eq!(
            state.lost(start + SECOND * 60, 2, "timed out"),
            losing(120, "timed out")
        );
        assert_eq!(state.lost(start + SECOND * 119, 5, "refused"), None);
        assert_eq!(
            state.lost(start + SECOND * 120, 5, "refused"),
            losing(10, "refused")
        );
    }

    #[test]
    fn recovery_is_told_once_with_what_was_lost_since_the_warning() {
        let (mut state, start) = (State::default(), Instant::now());
        assert!(state.lost(start, 1, "refused").is_some());
        assert_eq!(state.lost(start + SECOND, 4, "refused"), None);
        let recovered = Some(Notice::Recovered { spans: 4 });
        assert_eq!(state.delivered(start + SECOND * 2), recovered);
        assert_eq!(state.delivered(start + SECOND * 3), None);
    }

    #[test]
    fn an_endpoint_that_flaps_causes_one_warning_and_one_recovery_a_minute() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut told = 0;
        for second in 0..60 {
            let now = start + SECOND * second;
            told += usize::from(state.lost(now, 1, "refused").is_some());
            told += usize::from(state.delivered(now).is_some());
        }
        assert_eq!(told, 2);
        assert_eq!(state.delivered(start + SECOND * 60), losing(59, "refused"));
    }

    #[test]
    fn success_without_loss_says_nothing() {
        let mut state = State::default();
        assert_eq!(state.delivered(Instant::now()), None);
        assert_eq!(state.close(), None);
    }

    #[test]
    fn what_was_not_told_is_told_at_the_end() {
        let (mut state, start) = (State::default(), Instant::now());
        assert!(state.lost(start, 1, "refused").is_some());
        assert_eq!(state.lost(start + SECOND, 7, "refused"), None);
        assert_eq!(state.close(), losing(7, "refused"));
        assert_eq!(state.close(), None);
    }

    #[test]
    fn losses_during_a_flush_are_its_own_to_tell() {
        let (mut state, start) = (State::default(), Instant::now());
        state.hushed = 1;
        assert_eq!(state.lost(start, 3, "refused"), None);
        assert_eq!(state.delivered(start + SECOND), None);
        let losses = Losses {
            spans: 3,
            reason: "refused".to_owned(),
        };
        assert_eq!(state.take_untold(start + SECOND), Some(losses));
        assert_eq!(state.take_untold(start + SECOND), None);
        state.hushed = 0;
        assert_eq!(state.lost(start + SECOND * 2, 1, "refused"), None);
        let recovered = Some(Notice::Recovered { spans: 1 });
        assert_eq!(state.delivered(start + SECOND * 3), recovered);
        assert_eq!(state.close(), None);
    }

    #[test]
    fn a_flush_that_nobody_waited_for_leaves_its_losses_to_the_ledger() {
        let ledger = Arc::new(DropLedger::new("http://a:1"));
        let hush = ledger.hush();
        ledger.lost(3, "refused");
        drop(hush);
        assert_eq!(ledger.state().close(), losing(3, "refused"));
    }
}
