//! Which answers are worth another attempt, and when.
//!
//! <https://opentelemetry.io/docs/specs/otlp/#failures> and `#failures-1`. An attempt that got no
//! answer at all (no connection, a broken one, no time left) is always repeated: the spans may
//! then arrive twice, which backends know to handle, rather than not at all.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use tonic::Code;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(10);
/// A backend that asks for longer is asked again after this.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(300);

/// Delays that double up to a bound, each drawn from the upper half, so that senders which failed
/// together do not return together.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: FIRST_DELAY }
    }
}

impl Backoff {
    /// How long to wait now; at least `requested`, when the backend said so.
    pub(super) fn next_delay(&mut self, requested: Option<Duration>) -> Duration {
        let base = self.next;
        self.next = (2 * base).min(MAX_DELAY);
        let drawn = base.mul_f64(rand::random_range(0.5..=1.0));
        match requested {
            Some(requested) => requested.min(MAX_REQUESTED_DELAY) + drawn.min(FIRST_DELAY),
            None => drawn,
        }
    }
}

/// Whether a gRPC status means "not now".
pub(super) fn grpc_is_retryable(code: Code, has_retry_info: bool) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => has_retry_info,
        _ => false,
    }
}

/// Whether an HTTP status means "not now".
pub(super) fn http_is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// The `Retry-After` header: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_with_jitter() {
        let mut backoff = Backoff::default();
        let mut base = FIRST_DELAY;
        for _ in 0..12 {
            let delay = backoff.next_delay(None);
            assert!(delay >= base / 2 && delay <= base, "{delay:?} for {base:?}");
            base = (2 * base).min(MAX_DELAY);
        }
        assert_eq!(base, MAX_DELAY);
    }

    #[test]
    fn a_requested_delay_is_kept_within_reason() {
        let asked = Duration::from_secs(7);
        let delay = Backoff::default().next_delay(Some(asked));
        assert!(delay >= asked && delay <= asked + FIRST_DELAY, "{delay:?}");
        let delay = Backoff::default().next_delay(Some(Duration::MAX));
        assert!(delay <= MAX_REQUESTED_DELAY + FIRST_DELAY, "{delay:?}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        let check = |value: &'static str, expect: Option<u64>| {
            let headers =
                [(header::RETRY_AFTER, http::HeaderValue::from_static(value))].into_iter();
            let read = retry_after(&headers.collect(), now);
            assert_eq!(read, expect.map(Duration::from_secs), "{value:?}");
        };
        check("120", Some(120));
        check("Sun, 06 Nov 1994 08:49:40 GMT", Some(3));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("soon", None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn the_codes_that_are_retried_are_those_of_the_specification() {
        let retried: Vec<i32> = (0..=16)
            .filter(|code| grpc_is_retryable(Code::from(*code), false))
            .collect();
        assert_eq!(retried, [1, 4, 10, 11, 14, 15]);
        assert!(grpc_is_retryable(Code::ResourceExhausted, true));
        let retried: Vec<u16> = (200..600)
            .filter(|code| http_is_retryable(StatusCode::from_u16(*code).expect("in range")))
            .collect();
        assert_eq!(retried, [429, 502, 503, 504]);
    }
}
