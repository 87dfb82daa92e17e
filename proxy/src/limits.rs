//! What is refused for being too much: heads, bodies, requests at once and their bytes at once.
//!
//! The proxy itself holds no more than a few pieces of any body. The bytes in flight are those of requests
//! that are not answered yet: what the servers behind it have to hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use tokio_util::task::TaskTracker;

use crate::error::Failure;

/// What a line of a head has besides name and value.
const LINE_OVERHEAD_BYTES: usize = 4;

/// Most of each that is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's head; more is answered 431.
    pub header_bytes: usize,
    /// Bytes of a request's body; more is answered 413.
    pub body_bytes: usize,
    /// Requests at once; more are answered 503.
    pub requests: usize,
    /// Bytes of the bodies of requests at once; more are answered 503.
    pub in_flight_bytes: usize,
}

/// Keeps the limits.
pub(crate) struct Gate {
    limits: Limits,
    /// All requests, those that are refused among them until they end.
    requests: TaskTracker,
    in_flight_bytes: AtomicUsize,
}

/// A request that was let through. Dropping it makes room for another.
pub(crate) struct Admission {
    gate: Arc<Gate>,
    /// Its part of the bytes in flight.
    bytes: usize,
}

impl Gate {
    pub(crate) fn new(limits: Limits, requests: TaskTracker) -> Self {
        Self {
            limits,
            requests,
            in_flight_bytes: AtomicUsize::new(0),
        }
    }

    /// Lets a request through by its head. One that names the length of its body needs room for all of
    /// it; another makes its way piece by piece.
    pub(crate) fn admit(self: &Arc<Self>, head: &Parts) -> Result<Admission, Failure> {
        if self.requests.len() > self.limits.requests {
            return Err(Failure::TooManyRequests);
        }
        if head_bytes(head) > self.limits.header_bytes {
            return Err(Failure::HeadTooLarge);
        }
        let mut admission = Admission {
            gate: Arc::clone(self),
            bytes: 0,
        };
        // What is no length is pingora's to refuse.
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        admission.body(length.unwrap_or(0))?;
        Ok(admission)
    }
}

impl Admission {
    /// The body has come to this many bytes.
    pub(crate) fn body(&mut self, bytes: usize) -> Result<(), Failure> {
        if bytes > self.gate.limits.body_bytes {
            return Err(Failure::BodyTooLarge);
        }
        let Some(more) = bytes.checked_sub(self.bytes).filter(|&more| more > 0) else {
            return Ok(());
        };
        let most = self.gate.limits.in_flight_bytes;
        let added = |now: usize| now.checked_add(more).filter(|&sum| sum <= most);
        let counter = &self.gate.in_flight_bytes;
        counter
            .try_update(Ordering::Relaxed, Ordering::Relaxed, added)
            .map_err(|_| Failure::TooManyBytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let counter = &self.gate.in_flight_bytes;
        counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The size of a head as HTTP/1 writes it, near enough.
fn head_bytes(head: &Parts) -> usize {
    let target = head.uri.path_and_query();
    let target = target.map_or(0, |target| target.as_str().len());
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + LINE_OVERHEAD_BYTES
    };
    target + head.headers.iter().map(line).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn gate(requests: &TaskTracker) -> Arc<Gate> {
        let limits = Limits {
            header_bytes: 100,
            body_bytes: 60,
            requests: 2,
            in_flight_bytes: 100,
        };
        Arc::new(Gate::new(limits, requests.clone()))
    }

    fn head(name: &str, value: &str) -> Parts {
        let request = Request::get("/").header(name, value).body(());
        request.expect("a request").into_parts().0
    }

    #[test]
    fn bytes_in_flight_make_room_when_their_request_is_over() {
        let gate = gate(&TaskTracker::new());
        let first = gate.admit(&head("content-length", "60")).expect("room");
        let second = gate.admit(&head("content-length", "60"));
        assert_eq!(second.err(), Some(Failure::TooManyBytes));
        let mut chunked = gate
            .admit(&head("transfer-encoding", "chunked"))
            .expect("room");
        assert_eq!(chunked.body(40), Ok(()));
        assert_eq!(chunked.body(41), Err(Failure::TooManyBytes));
        drop(first);
        assert_eq!(chunked.body(60), Ok(()));
        assert_eq!(chunked.body(61), Err(Failure::BodyTooLarge));
        drop(chunked);
        assert_eq!(gate.in_flight_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_head() {
        let gate = gate(&TaskTracker::new());
        let long = "x".repeat(100);
        assert_eq!(
            gate.admit(&head("a", &long)).err(),
            Some(Failure::HeadTooLarge)
        );
        let failure = gate.admit(&head("content-length", "61")).err();
        assert_eq!(failure, Some(Failure::BodyTooLarge));
    }

    #[test]
    fn requests_over_the_limit_are_refused_until_one_is_over() {
        let requests = TaskTracker::new();
        let gate = gate(&requests);
        let mut tokens: Vec<_> = (0..3).map(|_| requests.token()).collect();
        let failure = gate.admit(&head("a", "b")).err();
        assert_eq!(failure, Some(Failure::TooManyRequests));
        tokens.pop();
        assert!(gate.admit(&head("a", "b")).is_ok());
    }
}
