//! Which requests leave a span though nobody sampled them: those that fail and those that are slow.

use std::time::Duration;

/// What is kept of what is not sampled. Nothing, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Requests that fail or are aborted.
    pub errors: bool,
    /// Requests that take longer.
    pub slower_than: Option<Duration>,
}

impl Keep {
    /// Whether anything may be kept, so that all spans must be recorded.
    pub fn is_any(self) -> bool {
        self.errors || self.slower_than.is_some()
    }

    /// Why a request that was not sampled is kept, if it is.
    pub(crate) fn reason(self, failed: bool, took: Duration) -> Option<&'static str> {
        if self.errors && failed {
            return Some("error");
        }
        self.slower_than
            .is_some_and(|limit| took > limit)
            .then_some("slow")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_failed_or_took_longer() {
        let (short, limit, long) = (1, 2, 3);
        let [short, limit, long] = [short, limit, long].map(Duration::from_secs);
        let both = Keep {
            errors: true,
            slower_than: Some(limit),
        };
        assert_eq!(both.reason(true, long), Some("error"));
        assert_eq!(both.reason(false, long), Some("slow"));
        assert_eq!(both.reason(false, limit), None);
        assert_eq!(both.reason(false, short), None);
        assert_eq!(Keep::default().reason(true, long), None);
        assert!(both.is_any() && !Keep::default().is_any());
    }
}
