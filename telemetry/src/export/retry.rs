//! Which failed exports are worth another attempt, and when.
//! <https://opentelemetry.io/docs/specs/otlp/#failures> and `#failures-1`.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(2);
/// Added to each delay at most, so that programs which failed together do not return together.
const MAX_JITTER: Duration = Duration::from_millis(100);

/// What became of an attempt that failed.
#[derive(Debug, PartialEq)]
pub(super) enum Retry {
    Never,
    /// Not before this, if the endpoint has said so.
    After(Option<Duration>),
}

impl Retry {
    /// After an answer by gRPC, or none.
    pub(super) fn of_status(status: &Status) -> Self {
        let info = status.get_details_retry_info();
        let is_retryable = match status.code() {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => true,
            Code::ResourceExhausted => info.is_some(),
            _ => false,
        };
        if is_retryable {
            Self::After(info.and_then(|info| info.retry_delay))
        } else {
            Self::Never
        }
    }

    /// After an answer by HTTP.
    pub(super) fn of_response(status: StatusCode, headers: &HeaderMap) -> Self {
        match status.as_u16() {
            429 | 502 | 503 | 504 => Self::After(retry_after(headers, SystemTime::now())),
            _ => Self::Never,
        }
    }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

/// Delays that double up to a bound.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_DELAY }
    }
}

impl Backoff {
    /// How long to wait now: at least as long as was asked for.
    pub(super) fn next_delay(&mut self, asked: Option<Duration>) -> Duration {
        let base = self.next.max(asked.unwrap_or_default());
        self.next = (2 * self.next).min(MAX_DELAY);
        base.saturating_add(MAX_JITTER.mul_f64(rand::random_range(0.0..=1.0)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_and_are_never_shorter_than_asked_for() {
        let mut backoff = Backoff::default();
        for millis in [100, 200, 400, 800, 1600, 2000, 2000] {
            let (delay, least) = (backoff.next_delay(None), Duration::from_millis(millis));
            assert!(
                (least..=least + MAX_JITTER).contains(&delay),
                "{delay:?} for {least:?}"
            );
        }
        let asked = Duration::from_secs(7);
        let delay = Backoff::default().next_delay(Some(asked));
        assert!((asked..=asked + MAX_JITTER).contains(&delay), "{delay:?}");
        let delay = Backoff::default().next_delay(Some(Duration::MAX));
        assert_eq!(delay, Duration::MAX);
    }

    #[test]
    fn the_codes_that_are_retried_are_those_of_the_specification() {
        let is_retried = |status: &Status| Retry::of_status(status) != Retry::Never;
        let retried: Vec<i32> = (0..=16)
            .filter(|&code| is_retried(&Status::new(code.into(), "")))
            .collect();
        assert_eq!(retried, [1, 4, 10, 11, 14, 15]);
        let retried: Vec<u16> = (200..600)
            .filter(|&code| {
                let status = StatusCode::from_u16(code).expect("in range");
                Retry::of_response(status, &HeaderMap::new()) != Retry::Never
            })
            .collect();
        assert_eq!(retried, [429, 502, 503, 504]);
    }

    #[test]
    fn an_exhausted_endpoint_is_asked_again_if_it_says_when() {
        let delay = Duration::from_secs(3);
        let details = tonic_types::ErrorDetails::with_retry_info(Some(delay));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        assert_eq!(Retry::of_status(&status), Retry::After(Some(delay)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (value, expect) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            let read = retry_after(&headers, now);
            assert_eq!(read, expect.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
