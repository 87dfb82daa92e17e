//! Which requests leave a span though nobody sampled them: those that fail by more than their client's own doing,
//! and those that are slow.

use std::time::Duration;

use http::StatusCode;

use crate::error::Failure;

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

/// Whether a request failed by more than its client's own doing: a 5xx, an answer that was not finished, or none
/// at all. What is refused by a 4xx comes in floods, as do handshakes that are none.
pub(crate) fn is_worth_keeping(failure: Option<Failure>, status: Option<StatusCode>) -> bool {
    let is_refused = status.is_some_and(|status| status.is_client_error());
    match failure {
        Some(failure) => !is_refused && failure != Failure::TlsHandshake,
        None => status.is_some_and(|status| status.is_server_error()),
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

    #[test]
    fn a_failure_counts_unless_the_client_was_told_that_it_is_its_own() {
        use Failure::*;
        for (failure, status, kept) in [
            (None, Some(200), false),
            (None, Some(404), false),
            (None, Some(503), true),
            (Some(InvalidApiKey), Some(401), false),
            (Some(BodyTooLarge), Some(413), false),
            (Some(RateLimited), Some(429), false),
            (Some(InvalidRequest), Some(400), false),
            (Some(ClientTimeout), Some(408), false),
            (Some(ClientTimeout), Some(200), true),
            (Some(ClientDisconnected), None, true),
            (Some(ClientDisconnected), Some(200), true),
            (Some(Aborted), None, true),
            (Some(TooManyRequests), Some(503), true),
            (Some(UpstreamClosed), Some(502), true),
            (Some(TlsHandshake), None, false),
        ] {
            let status = status.map(|code| StatusCode::from_u16(code).expect("a status"));
            assert_eq!(
                is_worth_keeping(failure, status),
                kept,
                "{failure:?} {status:?}"
            );
        }
    }
}
