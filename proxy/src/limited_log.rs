//! A log line at most once a minute, which then speaks for all that happened since the last.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LimitedLog {
    told_at: Option<Instant>,
    untold: u64,
}

impl LimitedLog {
    /// Counts one; how many to tell of when a line is due.
    pub(crate) fn due(&mut self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        let told = self.told_at;
        if told.is_some_and(|told_at| now.duration_since(told_at) < INTERVAL) {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_failures_is_one_line_with_their_number() {
        let (mut log, start) = (LimitedLog::default(), Instant::now());
        assert_eq!(log.due_at(start), Some(1));
        for tenth in 1..600 {
            assert_eq!(log.due_at(start + Duration::from_millis(100 * tenth)), None);
        }
        assert_eq!(log.due_at(start + INTERVAL), Some(600));
    }
}
