//! Requests that pingora never hands over: those it cannot parse, and connections over the bound.
//! They leave a span and get an answer like any other request.
//!
//! pingora answers the first kind by itself, before any code of ours runs. The client's connection
//! sees it happen: bytes of an answer are written to it while nobody has taken a request from it.
//! [`Refusals`] then has the last word: it writes the span and gives the answer to send instead.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use crate::answer::Answer;
use crate::error::Failure;
use crate::instrumentation::OTHER_METHOD;
use crate::observer::Observer;
use crate::origin::Arrival;
use crate::span::Transferred;

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) tls: bool,
}

/// Answers and records requests that are refused before they are one.
#[derive(Clone)]
pub(crate) struct Refusals(Arc<Observer>);

impl Refusals {
    pub(crate) fn new(observer: Arc<Observer>) -> Self {
        Self(observer)
    }

    /// Records a request of which `head` was read, and that ends in `failure`; the answer, for which
    /// the connection is closed.
    pub(crate) fn answer(&self, failure: Failure, ends: Ends, head: &[u8]) -> Bytes {
        let (head, version) = readable_head(head);
        let mut observed = self.0.begin(&arrival(&head, version, ends));
        let is_head = head.method == Method::HEAD;
        let answer = Answer::to(failure, None, &observed.identity, is_head);
        let sent = answer
            .as_ref()
            .map_or_else(Transferred::default, |answer| Transferred {
                status: Some(answer.status()),
                response_body_bytes: answer.body_bytes(),
                ..Transferred::default()
            });
        if let Some(span) = &mut observed.span {
            span.finish(Some(failure), sent);
        }
        answer.map_or_else(Bytes::new, |answer| answer.to_http1())
    }

    /// Records a request of which `head` was read, and that nobody answers.
    pub(crate) fn record(&self, failure: Failure, ends: Ends, head: &[u8]) {
        let (head, version) = readable_head(head);
        self.record_head(failure, None, &arrival(&head, version, ends));
    }

    /// Records a request of HTTP/2 that was refused within its connection, by an answer with this status if by any.
    /// Nobody can read its head.
    pub(crate) fn record_http2(&self, status: Option<StatusCode>, ends: Ends) {
        let (head, _) = readable_head(&[]);
        let failure = match status {
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => Failure::HeadTooLarge,
            _ => Failure::InvalidRequest,
        };
        let arrival = arrival(&head, Some(Version::HTTP_2), ends);
        self.record_head(failure, status, &arrival);
    }

    fn record_head(&self, failure: Failure, status: Option<StatusCode>, arrival: &Arrival<'_>) {
        if let Some(span) = &mut self.0.begin(arrival).span {
            let sent = Transferred {
                status,
                ..Transferred::default()
            };
            span.finish(Some(failure), sent);
        }
    }
}

fn arrival(head: &Parts, version: Option<Version>, ends: Ends) -> Arrival<'_> {
    Arrival {
        head,
        version,
        peer: Some(ends.peer),
        local: ends.local,
        tls: ends.tls,
    }
}

/// What can be read of the beginning of a request that is none, line by line; and its version, if that can be.
fn readable_head(bytes: &[u8]) -> (Parts, Option<Version>) {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = Method::from_bytes(OTHER_METHOD.as_bytes()).expect("a token");
    head.uri = Uri::from_static("*");
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
    let mut words = lines.next().unwrap_or_default().split(|&byte| byte == b' ');
    let mut version = None;
    if let Some(Ok(method)) = words.next().map(Method::from_bytes)
        // Without the rest of the line it may be anything.
        && let Some(target) = words.next()
    {
        head.method = method;
        if let Ok(uri) = Uri::try_from(target) {
            head.uri = uri;
        }
        version = match words.next().map(<[u8]>::trim_ascii_end) {
            Some(b"HTTP/1.0") => Some(Version::HTTP_10),
            Some(b"HTTP/1.1") => Some(Version::HTTP_11),
            _ => None,
        };
    }
    for line in lines.filter_map(|line| line.strip_suffix(b"\n")) {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            head.headers.append(name, value);
        }
    }
    (head, version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_of_a_head_is_read() {
        for (bytes, method, uri, version, headers) in [
            ("", OTHER_METHOD, "*", None, 0),
            ("\x16\x03\x01\x02\0", OTHER_METHOD, "*", None, 0),
            ("GET", OTHER_METHOD, "*", None, 0),
            (
                "GET /a HTTP/1.1\r\nA: 1\r\nB : 2\r\nC: 3",
                "GET",
                "/a",
                Some(Version::HTTP_11),
                1,
            ),
            (
                "GET /a HTTP/9.9\r\nA: 1\nB: 2\r\n\r\n",
                "GET",
                "/a",
                None,
                2,
            ),
            (
                "GET \x01 HTTP/1.1\r\n\r\n",
                "GET",
                "*",
                Some(Version::HTTP_11),
                0,
            ),
        ] {
            let (head, read) = readable_head(bytes.as_bytes());
            assert_eq!(read, version, "{bytes:?}");
            assert_eq!(head.method.as_str(), method, "{bytes:?}");
            assert_eq!(head.uri, uri, "{bytes:?}");
            assert_eq!(head.headers.len(), headers, "{bytes:?}");
        }
    }
}
