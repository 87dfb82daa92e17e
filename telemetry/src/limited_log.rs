//! A log line at most once a minute, which then speaks for all that happened since the last.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(60);

/// Counts what happens and says when a line about it is due.
#[derive(Debug, Default)]
pub struct LimitedLog {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    untold: u64,
}

impl LimitedLog {
    /// Counts `amount`; the sum to tell when a line is due.
    pub fn due(&self, amount: u64) -> Option<u64> {
        self.due_at(amount, Instant::now())
    }

    fn due_at(&self, amount: u64, now: Instant) -> Option<u64> {
        let mut state = self
            .state
            .lock()
            .expect("no holder of the log's lock panics");
        state.untold += amount;
        if state
            .last
            .is_some_and(|last| now.duration_since(last) < INTERVAL)
        {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_events_becomes_one_line_with_their_sum() {
        let log = LimitedLog::default();
        let start = Instant::now();
        assert_eq!(log.due_at(3, start), Some(3));
        assert_eq!(log.due_at(4, start + Duration::from_secs(59)), None);
        assert_eq!(log.due_at(5, start + Duration::from_secs(60)), Some(9));
    }
}
